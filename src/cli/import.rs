//! `import`: a jail from an archive, under its own or another name. What the archive holds is
//! checked against this host before anything of it has a name here.

mod dead;
mod reach;
mod same;
mod standing;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use serde_json::{Value, json};

use super::progress::Progress;
use super::{DONE, FAILED, Options, named, output};
use crate::desired::{Desired, Paths};
use crate::execute::Host;
use crate::jail::{JailName, NetworkMode};
use crate::journal::{self, ids, lock};
use crate::root::import::{self, Head, Laid, Place};
use crate::root::layers::arriving::{Arriving, is_here};
use crate::root::manifest::Manifest;
use crate::root::{export, layers, volume};
use crate::storage::Kind;
use crate::template::imported::{Alone, Brought};
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
    /// Let the templates of the archive build the layers here, though these came along
    #[arg(long)]
    pub without_layers: bool,
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
    let (_, host) = named::open(options)?;
    crate::interrupt::catch()?;
    dead::sweep(&host)?;
    layers::remove_half_built(&host.journal.paths.state)?;
    let job = Job { options, asked, host: &host, wanted };
    job.run(archive)
}

fn open(file: &Path) -> Result<File> {
    if file == Path::new("-") {
        let copy = rustix::io::fcntl_dupfd_cloexec(io::stdin().as_fd(), 3).context("open standard input")?;
        return Ok(copy.into());
    }
    let opened = File::open(file).with_context(|| format!("open {}", file.display()))?;
    anyhow::ensure!(!opened.metadata()?.is_dir(), "{} is a directory", file.display());
    Ok(opened)
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
    /// As it is written here.
    definition: String,
    /// The layers that are on their way, with the names that they are to have.
    arriving: Vec<(Arriving, String)>,
    lock: lock::Lock,
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
            self.laid(head, made)
        };
        import::read(archive, copy, &|bytes| progress.add(bytes), &mut decide)
    }

    /// Looks at the definition and the templates on this host, and makes the jail's place.
    fn make(&self, head: &Head, templates: &Place) -> Result<Places> {
        let manifest = head.manifest.as_ref().context("there is no manifest")?;
        let name = self.wanted.clone().unwrap_or_else(|| manifest.name.clone());
        let lock = lock::jail(&self.host.journal.paths, &name)?;
        match self.make_place(head, manifest, &name, templates) {
            Ok((jail, definition, findings)) => {
                Ok(Places { name, jail, definition, arriving: Vec::new(), lock, findings })
            }
            Err(error) => self.host.journal.unlock(lock, &name).and(Err(error)),
        }
    }

    fn make_place(
        &self,
        head: &Head,
        manifest: &Manifest,
        name: &JailName,
        templates: &Place,
    ) -> Result<(Place, String, Findings)> {
        let alone = self.alone(manifest);
        let own =
            alone.map(|alone| standing::template(alone, &head.texts, name, &templates.path)).transpose()?;
        let definition = match &own {
            Some(own) => standing::definition(&head.definition, own),
            None => head.definition.clone(),
        };
        let names = own.map_or_else(|| manifest.templates.clone(), |own| vec![own]);
        let findings = self.look(&definition, &names, manifest, name, templates)?;
        if !self.asked.dry_run {
            refuse(name, &findings, self.asked.trust)?;
        }
        let jail = Place::make(&self.paths().state.join("jails"), name)?;
        if !self.asked.dry_run {
            std::fs::write(jail.path.join(import::MARK), "").context("mark the import")?;
        }
        Ok((jail, definition, findings))
    }

    /// What came along, if it is to be used.
    fn alone<'m>(&self, manifest: &'m Manifest) -> Option<&'m Alone> {
        manifest.alone.as_ref().filter(|_| !self.asked.without_layers)
    }

    /// Where the large parts go; nowhere on a dry run.
    fn laid(&self, head: &Head, places: &mut Places) -> Result<Laid> {
        let manifest = head.manifest.as_ref().context("there is no manifest")?;
        let mut laid = Laid::default();
        if self.asked.dry_run {
            return Ok(laid);
        }
        let state = &self.paths().state;
        let brought = self.alone(manifest).into_iter().flat_map(|alone| &alone.layers);
        for (number, layer) in brought.enumerate() {
            let known = places.arriving.iter().any(|(_, content)| *content == layer.content);
            laid.layers.push(None);
            if !known && !is_here(state, &layer.content) {
                let (arriving, root) = Arriving::make(state, number)?;
                places.arriving.push((arriving, layer.content.clone()));
                laid.layers[number] = Some(root);
            }
        }
        laid.writes = self.writes(manifest, places)?;
        Ok(laid)
    }

    fn writes(&self, manifest: &Manifest, places: &mut Places) -> Result<Option<OwnedFd>> {
        if !manifest.writes {
            return Ok(None);
        }
        let state = &self.paths().state;
        let first_id = if places.findings.userns {
            ids::claim(state, &places.jail.path, &places.name, self.host.config.ids)?
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

    fn look(
        &self,
        definition: &str,
        names: &[JailName],
        manifest: &Manifest,
        name: &JailName,
        templates: &Place,
    ) -> Result<Findings> {
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
        self.look_at_templates(names, templates, &mut found)?;
        found.writes.push(state);
        if !found.conflicts.is_empty() {
            return Ok(found);
        }
        let (desired, wrong) =
            source::load_more(&self.options.paths(), file, definition.to_owned(), &templates.path);
        // What is wrong with a template that comes along says more than that it has errors.
        let theirs = wrong.iter().find(|wrong| wrong.file.starts_with(&templates.path));
        if let Some(wrong) = theirs.filter(|_| !desired.jails.contains_key(name)) {
            found.conflicts.push(wrong.summary());
            return Ok(found);
        }
        self.look_at_definition(&desired, manifest, name, &mut found);
        found.reaches.extend(reach::bases(&self.options.paths(), templates, &found.new_templates));
        found.reaches.extend(self.alone(manifest).and_then(reach::layers));
        Ok(found)
    }

    fn look_at_templates(&self, names: &[JailName], new: &Place, found: &mut Findings) -> Result<()> {
        for name in names {
            let (own, theirs) =
                (self.paths().config.join("templates").join(name.as_str()), new.path.join(name.as_str()));
            if !theirs.exists() {
                continue;
            }
            if !own.exists() {
                found.writes.push(own);
                found.new_templates.push(name.clone());
            } else if same::contents(&own)? != same::contents(&theirs)? {
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
        let brought: Vec<&str> = self
            .alone(manifest)
            .iter()
            .flat_map(|alone| &alone.layers)
            .map(|layer| layer.content.as_str())
            .collect();
        let comes = |id: &str| brought.contains(&id);
        for layer in wanted.root.layers.iter().filter(|layer| !built(&layer.id) && !comes(&layer.id)) {
            let template = wanted.jail.template.as_deref().unwrap_or_default();
            found.missing.push(format!(
                "layer {}: the first start builds it, or `template build {template}`",
                layer.id
            ));
        }
        let own: Vec<&str> = wanted.root.layers.iter().map(|layer| layer.id.as_str()).collect();
        let others = manifest.layers.iter().filter(|_| self.alone(manifest).is_none());
        for layer in others.filter(|layer| !own.contains(&layer.as_str())) {
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
        found.reaches.extend(reach::keys(&wanted.settings));
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
        self.report(manifest, made, left_out);
        if self.asked.dry_run {
            return Ok(if made.findings.conflicts.is_empty() { DONE } else { FAILED });
        }
        let _all = lock::all(&self.host.journal.paths, &|holder| {
            eprintln!("stockade: waiting for another apply ({holder})");
        })?;
        let made = places.as_mut().context("the archive holds no jail")?;
        // One that is not what it should be leaves none of the others.
        for (arriving, content) in &mut made.arriving {
            arriving.verify(content).with_context(|| format!("verify layer {content}"))?;
        }
        while let Some((arriving, content)) = made.arriving.pop() {
            arriving.settle(&content).with_context(|| format!("take over layer {content}"))?;
        }
        for name in &made.findings.new_templates {
            templates.hand_over(name.as_str().as_ref(), name.as_str().as_ref())?;
        }
        let made = places.take().context("the archive holds no jail")?;
        let (name, new_templates) = (made.name.clone(), made.findings.new_templates.clone());
        // The first error is the one to tell; what cannot be taken back now is swept by `gc`.
        self.finish(made).inspect_err(|_| drop(dead::take_back(self.host, &name, &new_templates)))?;
        if !self.options.json {
            eprintln!("{name}: imported; `apply`, or the daemon, starts it");
        }
        Ok(DONE)
    }

    /// The jail has its name, and then its definition.
    fn finish(&self, made: Places) -> Result<()> {
        let directory = made.jail.become_named(made.name.as_str().as_ref())?;
        journal::make_directory(&self.paths().config.join("jails.d"), 0o755)?;
        journal::replace_synced(&made.findings.writes[0], made.definition.as_bytes())?;
        import::unmark(&directory)
    }

    fn report(&self, manifest: &Manifest, made: &Places, left_out: &[PathBuf]) {
        let found = &made.findings;
        if self.options.json {
            return output::json_text(&output::envelope(
                "imported",
                json!([self.item(manifest, made, left_out)]),
            ));
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
        block("brings", &self.brings(manifest));
        block("needs", &found.missing);
        block("reaches", &found.reaches);
        block("conflict", &found.conflicts);
        output::text(&text);
    }

    /// The layers that came along, a line each.
    fn brings(&self, manifest: &Manifest) -> Vec<String> {
        let line = |layer: &Brought| {
            let built = is_here(&self.paths().state, &layer.content);
            let here = if built { ", which is here" } else { "" };
            format!("layer {}: {} files, {}{here}", layer.content, layer.entries, status::size(layer.bytes))
        };
        self.alone(manifest).into_iter().flat_map(|alone| &alone.layers).map(line).collect()
    }

    fn item(&self, manifest: &Manifest, made: &Places, left_out: &[PathBuf]) -> Value {
        let left_out: Vec<String> = left_out.iter().map(|path| path.display().to_string()).collect();
        let state = &self.paths().state;
        let layer = |layer: &Brought| {
            let here = is_here(state, &layer.content);
            json!({ "id": layer.content, "from": layer.id, "entries": layer.entries, "bytes": layer.bytes, "here": here })
        };
        let brings: Vec<Value> =
            self.alone(manifest).into_iter().flat_map(|alone| &alone.layers).map(layer).collect();
        let found = &made.findings;
        let writes: Vec<String> = found.writes.iter().map(|path| path.display().to_string()).collect();
        json!({
            "name": made.name, "from": manifest.name, "version": manifest.version,
            "snapshot": manifest.snapshot, "entries": manifest.entries, "bytes": manifest.bytes, "imported": !self.asked.dry_run,
            "writes": writes, "layers": brings, "missing": found.missing, "reaches": found.reaches, "conflicts": found.conflicts,
            "left_out": left_out,
        })
    }

    /// Removes what was made and has not got its name.
    fn clear(&self, places: Option<Places>, all: bool) -> Result<()> {
        let Some(places) = places.filter(|_| all) else { return Ok(()) };
        for (arriving, _) in places.arriving {
            arriving.remove()?;
        }
        let (state, name) = (&self.host.journal.paths.state, &places.name);
        // Whether or not it was claimed to the end.
        let range = ids::recorded(&places.jail.path)?;
        places.jail.remove()?;
        range.map_or(Ok(()), |number| ids::release(state, name, number))?;
        self.host.journal.unlock(places.lock, name)
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
