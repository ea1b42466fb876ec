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

use serde_json::Value;

use crate::definition::{Entries, RawDefinition, RawHost};
use crate::desired::{Bridge, Desired, DesiredJail, DesiredRoot, HostConfig, Paths};
use crate::diagnostic::{self, Diagnostic, did_you_mean};
use crate::jail::{Jail, JailName, Network, Settings};
use crate::template::{self, Template};

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
    entries: Entries,
    settings: Settings,
    /// What expressions and templates can say.
    variables: Value,
    jail: Option<Jail>,
    root: DesiredRoot,
    /// Its template is absent or has errors: what an image in it would run is not known.
    template_unknown: bool,
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
    let mut drafts: Vec<Draft> = Vec::with_capacity(input.definitions.len());
    for definition in input.definitions {
        let broken = first_errors.get(&definition.source.file).cloned();
        drafts.push(draft(definition, broken, (&input.host, &host), &input.templates, &mut found));
    }
    clash::check(&mut drafts, &host, &mut found);
    for draft in &mut drafts {
        root(draft, &input.templates, &input.broken_templates, &mut found);
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
fn host_config(given: &Paths, host: &RawHost) -> HostConfig {
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

/// Everything about one jail that needs no other jail.
fn draft(
    definition: RawDefinition,
    broken: Option<String>,
    (host, config): (&RawHost, &HostConfig),
    templates: &BTreeMap<String, Template>,
    found: &mut Vec<Diagnostic>,
) -> Draft {
    let name = definition.name.clone();
    let entries = merge::merge(&definition, host);
    let expanded = expand::expand(&name, &entries);
    let mut draft = Draft {
        name,
        definition,
        entries,
        settings: expanded.settings,
        variables: Value::Null,
        jail: None,
        root: DesiredRoot::default(),
        template_unknown: false,
        broken,
    };
    for diagnostic in expanded.found {
        draft.fault(diagnostic, found);
    }
    defaults_of_image(&mut draft, templates, found);
    for diagnostic in agree::check(&mut draft, config) {
        draft.fault(diagnostic, found);
    }
    draft.variables = expand::variables(&draft.name, &draft.settings);
    match Jail::from_settings(&draft.name, &draft.settings) {
        Ok(jail) => draft.jail = Some(jail),
        // Only a key that already has its own error can be missing or wrong here.
        Err(message) if draft.broken.is_none() => {
            let diagnostic = draft.definition.source.error(&(0..0), message);
            draft.fault(diagnostic, found);
        }
        Err(_) => {}
    }
    draft
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

/// Fills in the root from the jail's template.
fn root(
    draft: &mut Draft,
    templates: &BTreeMap<String, Template>,
    broken: &BTreeMap<String, String>,
    found: &mut Vec<Diagnostic>,
) {
    let Some(jail) = draft.jail.as_ref() else { return };
    let Some(name) = &jail.template else { return };
    if broken.contains_key(name) {
        let error = draft.error_in("template", 0, format!("the template `{name}` has errors"));
        draft.fault(error, found);
        return;
    }
    if !templates.contains_key(name) {
        let mut error = draft.error_in("template", 0, format!("there is no template `{name}`"));
        error.help = did_you_mean(name, templates.keys().map(String::as_str));
        draft.fault(error, found);
        return;
    }
    match template::root(templates, jail, &draft.variables) {
        Ok(root) => draft.root = root,
        Err(errors) => {
            for error in errors {
                let error = of_jail(error, &draft.name);
                draft.fault(error, found);
            }
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
    match (broken, draft.jail) {
        (None, Some(jail)) => {
            let file = draft.definition.source.file.clone();
            let jail = DesiredJail { file, settings: draft.settings, jail, root: draft.root };
            desired.jails.insert(draft.name, jail);
        }
        (broken, _) => {
            let why = broken.unwrap_or_else(|| draft.definition.source.file.display().to_string());
            desired.broken.insert(draft.name, why);
        }
    }
}

#[cfg(test)]
mod tests;
