//! All files together: what is wanted of this host, and every error that takes more than one file
//! to see.
//!
//! Pure. A jail with an error goes to `Desired::broken` and is left as it is; the others go on.

mod agree;
mod clash;
mod depend;
mod expand;
mod image;
mod merge;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use crate::cores;
use crate::definition::{Entries, RawDefinition, RawHost};
use crate::desired::{Bridge, Desired, DesiredJail, DesiredRoot, HostConfig, Paths};
use crate::diagnostic::{self, Diagnostic, did_you_mean};
use crate::jail::{Jail, JailName, Network, Settings};
use crate::template::{self, Roots, Template};

/// The bridge that needs no definition, and the addresses the host has on it by default.
pub const BRIDGE: &str = "stockade0";
const BRIDGE_ADDRESSES: [&str; 2] = ["10.77.0.1/24", "fd77::1/64"];

/// Where things are when neither a flag nor stockade.toml says otherwise.
pub const CONFIG_DIR: &str = "/etc/stockade";
const STATE_DIR: &str = "/var/lib/stockade";
const RUN_DIR: &str = "/run/stockade";
const LOG_DIR: &str = "/var/log/stockade";
const CGROUP: &str = "stockade";

/// Everything that was read and parsed.
#[derive(Debug, Default)]
pub struct Input {
    /// As given on the command line; an empty path is stockade.toml's to say.
    pub paths: Paths,
    pub host: RawHost,
    pub definitions: Vec<RawDefinition>,
    /// Jails whose file could not be read or taken, with the reason.
    pub refused: BTreeMap<JailName, String>,
    /// The built-in `host` among them.
    pub templates: BTreeMap<String, Template>,
    /// Templates that are there but have errors, with the first.
    pub broken_templates: BTreeMap<String, String>,
    /// What reading and parsing found.
    pub diagnostics: Vec<Diagnostic>,
    /// False when something could not be listed.
    pub complete: bool,
}

/// One jail on its way from the file to the plan.
struct Draft {
    name: JailName,
    definition: RawDefinition,
    /// The merged keys, with their places.
    entries: Arc<Entries>,
    settings: Settings,
    jail: Option<Box<Jail>>,
    /// Its template is absent or has errors: what an image in it would run is not known.
    template_unknown: bool,
    /// Its errors count after those of what jails cannot share.
    root: Result<DesiredRoot, Vec<Diagnostic>>,
    /// The first error, whoever found it.
    broken: Option<String>,
}

impl Draft {
    fn entry(&self, key: &'static str) -> Option<&crate::definition::Entry> {
        self.entries.get(&(key, String::new())).map(AsRef::as_ref)
    }

    /// An error at the key's name, or at the file's first line when it is not written.
    fn error(&self, key: &'static str, message: impl Into<String>) -> Diagnostic {
        match self.entry(key) {
            Some(entry) => entry.error(message),
            None => self.definition.source.error(&(0..0), message),
        }
    }

    /// An error at one item of a list key.
    fn error_in(&self, key: &'static str, item: usize, message: impl Into<String>) -> Diagnostic {
        let Some(entry) = self.entry(key) else { return self.error(key, message) };
        match &entry.raw.value {
            crate::definition::RawValue::List(items) if item < items.len() => {
                entry.source.error(&items[item].span, message)
            }
            _ => entry.source.error(&entry.raw.span, message),
        }
    }

    /// Takes note of an error of this jail.
    fn fault(&mut self, found: Diagnostic, all: &mut Vec<Diagnostic>) {
        if found.is_error() && self.broken.is_none() {
            self.broken = Some(found.summary());
        }
        all.push(found);
    }

    fn is_enabled(&self) -> bool {
        self.settings.get("enabled").and_then(Value::as_bool).unwrap_or(true)
    }
}

/// Works out everything. The diagnostics are all there are, those of the input too, sorted.
pub fn resolve(input: Input) -> (Desired, Vec<Diagnostic>) {
    let mut found = input.diagnostics;
    let first_errors = first_errors(&mut found);
    let host = host_config(&input.paths, &input.host);
    let shared = Shared {
        host: &input.host,
        config: &host,
        roots: Roots::new(&input.templates),
        templates: &input.templates,
        broken_templates: &input.broken_templates,
    };
    let alone = cores::map(&input.definitions, |definition| {
        let broken = first_errors.get(&definition.source.file).cloned();
        draft(definition.clone(), broken, &shared)
    });
    let mut drafts: Vec<Draft> = Vec::with_capacity(alone.len());
    for (draft, errors) in alone {
        drafts.push(draft);
        found.extend(errors);
    }
    clash::check(&mut drafts, &host, &mut found);
    for draft in &mut drafts {
        fault_root(draft, &mut found);
    }
    depend::check(&mut drafts, &input.refused, &mut found);
    diagnostic::sort(&mut found);
    let host_broken = input.host.broken;
    let complete = input.complete && host_broken.is_none();
    let mut desired =
        Desired { host, jails: BTreeMap::new(), broken: input.refused.into_iter().collect(), complete };
    for draft in drafts {
        settle(draft, host_broken.as_ref(), &mut desired);
    }
    (desired, found)
}

/// What every draft is made with.
struct Shared<'a> {
    host: &'a RawHost,
    config: &'a HostConfig,
    roots: Roots<'a>,
    templates: &'a BTreeMap<String, Template>,
    broken_templates: &'a BTreeMap<String, String>,
}

/// The first error of each file.
fn first_errors(found: &mut Vec<Diagnostic>) -> BTreeMap<PathBuf, String> {
    diagnostic::sort(found);
    let mut first = BTreeMap::new();
    for diagnostic in found.iter().filter(|diagnostic| diagnostic.is_error()) {
        first.entry(diagnostic.file.clone()).or_insert_with(|| diagnostic.summary());
    }
    first
}

/// Flags go above stockade.toml, and that above what is built in.
pub fn host_config(given: &Paths, host: &RawHost) -> HostConfig {
    let choose = |flag: &Path, key: Option<&PathBuf>, default: &str| {
        if flag.as_os_str().is_empty() {
            key.cloned().unwrap_or_else(|| PathBuf::from(default))
        } else {
            flag.to_owned()
        }
    };
    let mut bridges = host.bridges.clone();
    bridges.entry(BRIDGE.to_owned()).or_insert_with(default_bridge);
    HostConfig {
        paths: Paths {
            config: choose(&given.config, None, CONFIG_DIR),
            state: choose(&given.state, host.state.as_ref(), STATE_DIR),
            run: choose(&given.run, host.run.as_ref(), RUN_DIR),
            log: choose(&given.log, host.log.as_ref(), LOG_DIR),
        },
        ids: host.ids,
        bridges,
        cgroup: host.cgroup.clone().unwrap_or_else(|| CGROUP.to_owned()),
        broken: host.broken.clone(),
    }
}

fn default_bridge() -> Bridge {
    let address = BRIDGE_ADDRESSES
        .iter()
        .map(|text| Network::try_from((*text).to_owned()).expect("the built-in addresses are addresses"))
        .collect();
    Bridge { address, mtu: None }
}

/// Everything about one jail that needs no other jail, and the errors of that but its root's.
fn draft(definition: RawDefinition, broken: Option<String>, shared: &Shared<'_>) -> (Draft, Vec<Diagnostic>) {
    let mut found = Vec::new();
    let name = definition.name.clone();
    let entries = merge::merge(&definition, shared.host);
    let expanded = expand::expand(&name, &entries);
    let settings = expanded.settings;
    let root = Ok(DesiredRoot::default());
    let mut draft =
        Draft { name, definition, entries, settings, jail: None, template_unknown: false, root, broken };
    for diagnostic in expanded.found {
        draft.fault(diagnostic, &mut found);
    }
    defaults_of_image(&mut draft, shared.templates, &mut found);
    for diagnostic in agree::check(&mut draft, shared.config) {
        draft.fault(diagnostic, &mut found);
    }
    match Jail::from_settings(&draft.name, &draft.settings) {
        Ok(jail) => {
            draft.root = root_of(&draft, &jail, shared);
            draft.jail = Some(Box::new(jail));
        }
        // Only a key that already has its own error can be missing or wrong here.
        Err(message) if draft.broken.is_none() => {
            let diagnostic = draft.definition.source.error(&(0..0), message);
            draft.fault(diagnostic, &mut found);
        }
        Err(_) => {}
    }
    (draft, found)
}

/// What an image starts by itself is below all that was said so far.
fn defaults_of_image(draft: &mut Draft, templates: &BTreeMap<String, Template>, found: &mut Vec<Diagnostic>) {
    let Some(name) = draft.settings.get("template").and_then(Value::as_str) else { return };
    match template::run_of(templates, name) {
        Ok(Some((template, run))) => {
            for diagnostic in image::add(&mut draft.settings, template, run) {
                draft.fault(diagnostic, found);
            }
        }
        Ok(None) => {}
        // Said where the root is made.
        Err(_) => draft.template_unknown = true,
    }
}

/// The root from the jail's template.
fn root_of(draft: &Draft, jail: &Jail, shared: &Shared<'_>) -> Result<DesiredRoot, Vec<Diagnostic>> {
    if let Some(name) = &jail.template {
        if shared.broken_templates.contains_key(name) {
            return Err(vec![draft.error_in("template", 0, format!("the template `{name}` has errors"))]);
        }
        if !shared.templates.contains_key(name) {
            let mut error = draft.error_in("template", 0, format!("there is no template `{name}`"));
            error.help = did_you_mean(name, shared.templates.keys().map(String::as_str));
            return Err(vec![error]);
        }
    }
    let root = shared.roots.root(jail, || expand::variables(&draft.name, &draft.settings));
    root.map_err(|errors| errors.into_iter().map(|error| of_jail(error, &draft.name)).collect())
}

fn fault_root(draft: &mut Draft, found: &mut Vec<Diagnostic>) {
    if let Err(errors) = &mut draft.root {
        for error in std::mem::take(errors) {
            draft.fault(error, found);
        }
    }
}

/// An error in a file that a template renders differs from jail to jail: it says which.
fn of_jail(mut error: Diagnostic, name: &JailName) -> Diagnostic {
    if error.file.file_name().is_none_or(|file| file != "template.toml") {
        let message = expand::first_sentence(&error.message);
        error.message = format!("{message} (for the jail `{name}`)");
    }
    error
}

/// Puts the jail where it belongs.
fn settle(draft: Draft, host_broken: Option<&String>, desired: &mut Desired) {
    let broken = draft.broken.or_else(|| host_broken.cloned());
    match (broken, draft.jail, draft.root) {
        (None, Some(jail), Ok(root)) => {
            let file = draft.definition.source.file.clone();
            let jail = DesiredJail { file, settings: draft.settings, jail, root };
            desired.jails.insert(draft.name, jail);
        }
        (broken, ..) => {
            let why = broken.unwrap_or_else(|| draft.definition.source.file.display().to_string());
            desired.broken.insert(draft.name, why);
        }
    }
}

#[cfg(test)]
mod tests;
