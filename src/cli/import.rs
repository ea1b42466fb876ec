//! `import`: a jail from an archive, under its own or another name. What the archive holds is
//! checked against this host before anything of it has a name here.

mod dead;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use serde_json::{Value, json};

use super::progress::Progress;
use super::{DONE, FAILED, Options, output};
use crate::desired::{Desired, Paths};
use crate::execute::Host;
use crate::jail::{JailName, NetworkMode};
use crate::journal::{self, ids, lock};
use crate::root::import::{self, Head, Place};
use crate::root::manifest::Manifest;
use crate::root::{export, layers, volume};
use crate::storage::Kind;
use crate::sys::process;
use crate::template::{Base, Template};
use crate::{source, status};

pub use dead::{Dead, dead};

#[derive(Debug, Args)]
pub struct Import {
    /// The archive, or - for standard input
    #[arg(default_value = "-", value_name = "FILE")]
    pub file: PathBuf,
    /// Another name for the jail
    pub name: Option<String>,
    /// Only read and verify it, and say what would be written and what is missing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Accept a definition that reaches the host: hooks, mounts, devices and the like
    #[arg(long)]
    pub trust: bool,
}

/// What an import would mean here.
#[derive(Default)]
struct Findings {
    /// Why it cannot be.
    conflicts: Vec<String>,
    /// What is not here yet, and comes by itself or has to be looked after.
    missing: Vec<String>,
    /// Keys that let the jail, or whoever wrote the archive, do something on the host.
    reaches: Vec<String>,
    writes: Vec<PathBuf>,
    /// Templates that are not here yet.
    new_templates: Vec<JailName>,
    userns: bool,
}

pub fn import(options: &Options, asked: &Import) -> Result<i32> {
    let archive = open(&asked.file)?;
    let wanted = asked.name.as_deref().map(|name| JailName::new(name).map_err(|e| anyhow!(e))).transpose()?;
    let (desired, _) = source::load(&options.paths());
    let host = Host::open(desired.host.clone())?;
    process::catch_interrupt()?;
    dead::sweep(&host)?;
    let job = Job { options, asked, host: &host, wanted };
    job.run(archive)
}

fn open(file: &Path) -> Result<File> {
    if file == Path::new("-") {
        let copy = rustix::io::fcntl_dupfd_cloexec(io::stdin().as_fd(), 3).context("open standard input")?;
        return Ok(copy.into());
    }
    File::open(file).with_context(|| format!("open {}", file.display()))
}

struct Job<'j> {
    options: &'j Options,
    asked: &'j Import,
    host: &'j Host,
    wanted: Option<JailName>,
}

/// The places that are filled while the archive is read.
struct Places {
    name: JailName,
    jail: Place,
    lock: lock::Lock,
    range: Option<u32>,
    findings: Findings,
}

impl Job<'_> {
    fn run(&self, archive: File) -> Result<i32> {
        // The name inside is known only once the archive is read: templates wait under a name of
        // this process's own.
        let scratch = JailName::new(&format!("import-{}", std::process::id())).map_err(|e| anyhow!(e))?;
        let templates = Place::make(&self.templates()?, &scratch)?;
        let mut places = None;
        let read = self.read(archive, &templates, &mut places);
        let done = read.and_then(|(head, left_out)| self.place(&head, &left_out, &templates, &mut places));
        let cleared = self.clear(places, done.is_err() || self.asked.dry_run);
        let status = done.and_then(|status| cleared.map(|()| status));
        templates.remove()?;
        status
    }

    fn templates(&self) -> Result<PathBuf> {
        let templates = self.paths().config.join("templates");
        journal::make_directory(&templates, 0o755)?;
        Ok(templates)
    }

    fn paths(&self) -> &Paths {
        &self.host.config.paths
    }

    fn read(
        &self,
        archive: File,
        templates: &Place,
        places: &mut Option<Places>,
    ) -> Result<(Head, Vec<PathBuf>)> {
        let progress = Progress::new(self.options, "import", None)?;
        let copy = templates.directory.try_clone().context("copy a descriptor")?;
        let mut decide = |head: &Head| {
            let made = places.insert(self.make(head, templates)?);
            self.writes(head, made)
        };
        import::read(archive, copy, &|bytes| progress.add(bytes), &mut decide)
    }

    /// Looks at the definition and the templates on this host, and makes the jail's place.
    fn make(&self, head: &Head, templates: &Place) -> Result<Places> {
        let manifest = head.manifest.as_ref().context("there is no manifest")?;
        let name = self.wanted.clone().unwrap_or_else(|| manifest.name.clone());
        let lock = lock::jail(&self.host.journal.paths, &name)?;
        match self.make_place(head, manifest, &name, templates) {
            Ok((jail, findings)) => Ok(Places { name, jail, lock, range: None, findings }),
            Err(error) => self.unlock(lock, &name).and(Err(error)),
        }
    }

    fn make_place(
        &self,
        head: &Head,
        manifest: &Manifest,
        name: &JailName,
        templates: &Place,
    ) -> Result<(Place, Findings)> {
        let findings = self.look(head, manifest, name, templates)?;
        if !self.asked.dry_run {
            refuse(name, &findings, self.asked.trust)?;
        }
        let jail = Place::make(&self.paths().state.join("jails"), name)?;
        if !self.asked.dry_run {
            std::fs::write(jail.path.join(import::MARK), "").context("mark the import")?;
        }
        Ok((jail, findings))
    }

    /// The lock's file goes too, if there is no such jail.
    fn unlock(&self, lock: lock::Lock, name: &JailName) -> Result<()> {
        let journal = &self.host.journal;
        if journal.names()?.contains(name) { Ok(()) } else { lock::remove(lock, &journal.paths, name) }
    }

    /// Where the jail's own writes go; nowhere on a dry run.
    fn writes(&self, head: &Head, places: &mut Places) -> Result<Option<OwnedFd>> {
        let manifest = head.manifest.as_ref().context("there is no manifest")?;
        if self.asked.dry_run || manifest.entries == 0 {
            return Ok(None);
        }
        let state = &self.paths().state;
        let first_id = if places.findings.userns {
            let first = ids::claim(state, &places.jail.path, &places.name, self.host.config.ids)?;
            places.range = Some(ids::number(self.host.config.ids, first));
            first
        } else {
            0
        };
        let thick = manifest.storage == Kind::Directory;
        let (own, shift) = (export::part(manifest.storage), if thick { 0 } else { first_id });
        make_directory(&places.jail.path.join(own), 0o755, shift)?;
        if thick {
            volume::note_thick(&places.jail.path)?;
        } else {
            make_directory(&places.jail.path.join("work"), 0o700, 0)?;
        }
        export::shifted(places.jail.directory.as_fd(), own, shift).map(Some)
    }

    fn look(&self, head: &Head, manifest: &Manifest, name: &JailName, templates: &Place) -> Result<Findings> {
        let paths = self.paths();
        let file = paths.config.join("jails.d").join(format!("{name}.toml"));
        let mut found = Findings { writes: vec![file.clone()], ..Findings::default() };
        if file.exists() {
            found.conflicts.push(format!("a jail named {name} is defined: give the import another name"));
        }
        let state = self.host.journal.state_dir(name);
        if state.exists() {
            found
                .conflicts
                .push(format!("files of a jail named {name} are there: destroy it, or give another name"));
        }
        self.look_at_templates(manifest, templates, &mut found)?;
        found.writes.push(state);
        if !found.conflicts.is_empty() {
            return Ok(found);
        }
        let text = head.definition.clone();
        let (desired, _) = source::load_more(&self.options.paths(), file, text, &templates.path);
        self.look_at_definition(&desired, manifest, name, &mut found);
        reaching_bases(&self.options.paths(), templates, &mut found);
        Ok(found)
    }

    fn look_at_templates(&self, manifest: &Manifest, new: &Place, found: &mut Findings) -> Result<()> {
        for name in &manifest.templates {
            let (own, theirs) =
                (self.paths().config.join("templates").join(name.as_str()), new.path.join(name.as_str()));
            if !theirs.exists() {
                continue;
            }
            if !own.exists() {
                found.writes.push(own);
                found.new_templates.push(name.clone());
            } else if contents(&own)? != contents(&theirs)? {
                found.conflicts.push(format!("a template named {name} is there, and not the same"));
            }
        }
        Ok(())
    }

    fn look_at_definition(
        &self,
        desired: &Desired,
        manifest: &Manifest,
        name: &JailName,
        found: &mut Findings,
    ) {
        let Some(wanted) = desired.jails.get(name) else {
            let reason = desired.broken.get(name).map_or("its definition is not valid", String::as_str);
            return found.conflicts.push(reason.to_owned());
        };
        found.userns = wanted.jail.security.userns;
        let built = |id: &str| layers::path(&self.host.journal.paths.state, id).is_dir();
        for layer in wanted.root.layers.iter().filter(|layer| !built(&layer.id)) {
            let template = wanted.jail.template.as_deref().unwrap_or_default();
            found.missing.push(format!(
                "layer {}: the first start builds it, or `template build {template}`",
                layer.id
            ));
        }
        let own: Vec<&str> = wanted.root.layers.iter().map(|layer| layer.id.as_str()).collect();
        for layer in manifest.layers.iter().filter(|layer| !own.contains(&layer.as_str())) {
            found.missing.push(format!(
                "layer {layer} is another one here: what is below the jail's own files differs"
            ));
        }
        if let Some(bridge) = &wanted.jail.network.bridge
            && !self.host.config.bridges.contains_key(bridge)
        {
            found.missing.push(format!("bridge {bridge}: the first start makes it, without an address"));
        }
        for (other, jail) in desired.jails.iter().filter(|(other, _)| *other != name) {
            for address in
                wanted.jail.network.address.iter().filter(|own| jail.jail.network.address.contains(own))
            {
                found.conflicts.push(format!("network.address: {address} is {other}'s"));
            }
        }
        found.reaches.extend(reaching(&wanted.settings));
        if wanted.jail.network.mode == NetworkMode::Inherit {
            found.reaches.push("network.mode".to_owned());
        }
    }

    /// Gives everything its name: the definition last, for it is what makes a jail.
    fn place(
        &self,
        head: &Head,
        left_out: &[PathBuf],
        templates: &Place,
        places: &mut Option<Places>,
    ) -> Result<i32> {
        let made = places.as_ref().context("the archive holds no jail")?;
        for path in left_out {
            eprintln!("stockade: left out: {}: no file, directory or link", path.display());
        }
        let manifest = head.manifest.as_ref().context("there is no manifest")?;
        self.report(manifest, made);
        if self.asked.dry_run {
            return Ok(if made.findings.conflicts.is_empty() { DONE } else { FAILED });
        }
        let _all = lock::all(&self.host.journal.paths, &|holder| {
            eprintln!("stockade: waiting for another apply ({holder})");
        })?;
        for name in &made.findings.new_templates {
            templates.hand_over(name.as_str().as_ref(), name.as_str().as_ref())?;
        }
        let made = places.take().context("the archive holds no jail")?;
        let file = made.findings.writes[0].clone();
        let directory = made.jail.become_named(made.name.as_str().as_ref())?;
        journal::make_directory(&self.paths().config.join("jails.d"), 0o755)?;
        journal::replace_synced(&file, head.definition.as_bytes())?;
        import::unmark(&directory)?;
        if !self.options.json {
            eprintln!("{}: imported; `apply`, or the daemon, starts it", made.name);
        }
        Ok(DONE)
    }

    fn report(&self, manifest: &Manifest, made: &Places) {
        let found = &made.findings;
        if self.options.json {
            return output::json_text(&output::envelope("imported", json!([self.item(manifest, made)])));
        }
        if !self.asked.dry_run {
            found.missing.iter().for_each(|line| eprintln!("stockade: {}: {}", made.name, plain(line)));
            return;
        }
        let (entries, size) = (manifest.entries, status::size(manifest.bytes));
        let mut text = format!(
            "{}: {}{} as exported by stockade {}, {entries} files of its own, {size}\n",
            made.name,
            manifest.name,
            manifest
                .snapshot
                .as_ref()
                .map(|label| format!(", snapshot {}", plain(label)))
                .unwrap_or_default(),
            manifest.version.escape_debug()
        );
        let mut block = |title: &str, lines: &[String]| {
            for line in lines {
                text.push_str(&format!("  {title:<10}{}\n", plain(line)));
            }
        };
        let writes: Vec<String> = found.writes.iter().map(|path| path.display().to_string()).collect();
        block("writes", &writes);
        block("needs", &found.missing);
        block("reaches", &found.reaches);
        block("conflict", &found.conflicts);
        output::text(&text);
    }

    fn item(&self, manifest: &Manifest, made: &Places) -> Value {
        let found = &made.findings;
        let writes: Vec<String> = found.writes.iter().map(|path| path.display().to_string()).collect();
        json!({
            "name": made.name, "from": manifest.name, "version": manifest.version,
            "snapshot": manifest.snapshot, "entries": manifest.entries, "bytes": manifest.bytes, "imported": !self.asked.dry_run,
            "writes": writes, "missing": found.missing, "reaches": found.reaches, "conflicts": found.conflicts,
        })
    }

    /// Removes what was made and has not got its name.
    fn clear(&self, places: Option<Places>, all: bool) -> Result<()> {
        let Some(places) = places.filter(|_| all) else { return Ok(()) };
        places.jail.remove()?;
        let (state, name) = (&self.host.journal.paths.state, &places.name);
        places.range.map_or(Ok(()), |number| ids::release(state, name, number))?;
        self.unlock(places.lock, name)
    }
}

fn make_directory(path: &Path, mode: u32, owner: u32) -> Result<()> {
    journal::make_directory(path, mode)?;
    std::os::unix::fs::chown(path, Some(owner), Some(owner))
        .with_context(|| format!("chown {}", path.display()))
}

fn refuse(name: &JailName, found: &Findings, trust: bool) -> Result<()> {
    if !found.conflicts.is_empty() {
        bail!("import {name}: {}", plain(&found.conflicts.join("; ")));
    }
    if !trust && !found.reaches.is_empty() {
        bail!(
            "import {name}: the archive reaches this host by {}: look at it with --dry-run, and give --trust if you do",
            found.reaches.join(", ")
        );
    }
    Ok(())
}

/// Words of an archive may be meant for the terminal they are shown on.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// What a definition may let its jail, or a line of its own, do on the host.
const REACHING: &[&str] = &[
    "path",
    "mount",
    "allow.devices",
    "allow.host_network",
    "allow.kmsg",
    "allow.settime",
    "security.userns",
    "security.unsafe",
    "security.seccomp",
    "exec.prepare",
    "exec.prestart",
    "exec.created",
    "exec.poststart",
    "exec.prestop",
    "exec.poststop",
    "exec.release",
];

fn reaching(settings: &crate::jail::Settings) -> Vec<String> {
    let is_set = |key: &&&str| {
        let harmless = |value: &Value| match value {
            Value::Bool(on) => *on == (**key == "security.userns"),
            Value::Array(all) => all.is_empty(),
            Value::String(text) => text == "default",
            _ => false,
        };
        settings.get(**key).is_some_and(|value| !harmless(value))
    };
    REACHING.iter().filter(is_set).map(|key| (*key).to_owned()).collect()
}

/// Bases of new templates that read this host's files, or run something on it.
fn reaching_bases(paths: &Paths, new: &Place, found: &mut Findings) {
    let (file, text) = (PathBuf::from("import.toml"), String::new());
    let input = source::with_more(paths, file, text, &new.path);
    let harmless = |template: &Template| matches!(template.base, Base::Host | Base::Template(_));
    for name in &found.new_templates {
        if input.templates.get(name.as_str()).is_none_or(|template| !harmless(template)) {
            found.reaches.push(format!("the base of template {name}"));
        }
    }
}

/// Everything in a small tree of our own, to compare it with another.
fn contents(directory: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut open = vec![PathBuf::new()];
    while let Some(below) = open.pop() {
        let path = directory.join(&below);
        for entry in std::fs::read_dir(&path).with_context(|| format!("list {}", path.display()))? {
            let entry = entry?;
            let (kind, inner) = (entry.file_type()?, below.join(entry.file_name()));
            ensure!(found.len() < source::ENTRIES_MAX, "{} has too many entries", directory.display());
            let value = if kind.is_dir() {
                open.push(inner.clone());
                Vec::new()
            } else if kind.is_symlink() {
                std::fs::read_link(entry.path())?.into_os_string().into_encoded_bytes()
            } else {
                digest(&entry.path())?
            };
            found.insert(inner, value);
        }
    }
    Ok(found)
}

fn digest(path: &Path) -> Result<Vec<u8>> {
    use sha2::{Digest, Sha256};
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let (mut digest, mut chunk, mut at) = (Sha256::new(), vec![0; 1 << 16], 0);
    loop {
        match file.read_at(&mut chunk, at)? {
            0 => return Ok(digest.finalize().to_vec()),
            count => {
                digest.update(&chunk[..count]);
                at += count as u64;
            }
        }
    }
}
