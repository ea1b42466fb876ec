//! `export`: one archive of a jail, to a file or a pipe.

mod full;

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use clap_complete::ArgValueCandidates;
use rustix::pipe::PipeFlags;
use serde_json::json;

use super::progress::Progress;
use super::{DONE, Options, complete, named, output, snapshot};
use crate::desired::Desired;
use crate::execute::{self, Host};
use crate::jail::JailName;
use crate::journal::{ids, lock};
use crate::limits::Cgroup;
use crate::live::JailState;
use crate::root::export::{self, Written};
use crate::root::manifest::Manifest;
use crate::root::{Volume, changes, layers, snapshot as books};
use crate::storage::Kind;
use crate::sys::file;
use crate::sys::process::{self, Cloned};
use crate::template::{self, Base};
use crate::{probe, source, status};

const CHUNK: usize = 1 << 20;

#[derive(Debug, Args)]
pub struct Export {
    /// The jail
    #[arg(add = ArgValueCandidates::new(complete::jails))]
    pub name: String,
    /// Where to, or - for standard output
    #[arg(default_value = "-", value_name = "FILE")]
    pub file: PathBuf,
    /// A snapshot instead of what the jail has now
    #[arg(long, value_name = "LABEL")]
    pub snapshot: Option<String>,
    /// With the layers, so that it needs nothing of the host it comes to
    #[arg(long)]
    pub full: bool,
}

/// What goes along of a jail, and what is said of it.
struct Parts {
    manifest: Manifest,
    /// Topmost first.
    writes: Vec<OwnedFd>,
    /// What goes along with a jail that is to stand alone.
    brought: Vec<OwnedFd>,
    texts: Vec<String>,
}

pub fn export(options: &Options, asked: &Export) -> Result<i32> {
    let name = JailName::new(&asked.name).map_err(|e| anyhow!(e))?;
    let to_pipe = asked.file == Path::new("-");
    ensure!(
        !to_pipe || !io::stdout().is_terminal(),
        "export: an archive does not go to a terminal: name a file"
    );
    ensure!(!asked.file.is_dir(), "{} is a directory: name a file", asked.file.display());
    let (desired, host) = named::open(options)?;
    crate::interrupt::catch()?;
    process::ignore_pipe_signal();
    process::raise_descriptor_limit().context("raise the limit of open files")?;
    let lock = lock::jail(&host.journal.paths, &name)?;
    execute::snapshot::settle(&host, &name)?;
    let jail = probe::one(&host.journal, &host.config, &host.hierarchies, &name)?;
    ensure!(jail.state != JailState::Partial, "{name}: its start or stop was cut off: apply first");
    let runs = matches!(jail.state, JailState::Up | JailState::Orphaned) && asked.snapshot.is_none();
    let Parts { manifest, writes, brought, texts } = parts(options, &host, &desired, (&name, asked))?;
    let definition = std::fs::read(&desired.jails[&name].file).context("read the definition")?;
    let along: u64 = manifest.alone.iter().flat_map(|alone| &alone.layers).map(|layer| layer.bytes).sum();
    let progress = Progress::new(options, name.as_str(), Some(manifest.bytes + along))?;
    let upper = writes.first().map(AsFd::as_fd).map(|upper| upper.try_clone_to_owned()).transpose()?;
    let templates = host.config.paths.config.join("templates");
    let layers = layers(&host, &manifest)?;
    let all = export::Export {
        manifest: &manifest,
        definition: &definition,
        templates: &templates,
        layers,
        writes,
        brought,
        texts,
    };
    let cgroup = execute::cgroup(&host, &name)?;
    let (frozen, pause) = (Cell::new(None), Cell::new(None));
    let begin = || {
        if runs {
            frozen.set(Some(Frozen::new(&cgroup)?));
        }
        upper.map_or(Ok(()), |upper| rustix::fs::syncfs(upper).context("flush the jail's files"))
    };
    let end = || pause.set(frozen.take().map(Frozen::end));
    let written =
        to(&asked.file, |out| export::write(&all, out, &|bytes| progress.add(bytes), (begin, end)))?;
    drop((progress, lock));
    report(options, &manifest, &written, pause.take(), to_pipe);
    Ok(DONE)
}

fn report(options: &Options, manifest: &Manifest, written: &Written, pause: Option<Duration>, to_pipe: bool) {
    for path in &written.left_out {
        eprintln!("stockade: left out: {}: no file, directory or link", path.display());
    }
    if options.json && !to_pipe {
        let left_out: Vec<String> = written.left_out.iter().map(|path| path.display().to_string()).collect();
        let pause_ms = pause.map(|pause| pause.as_millis());
        let item = json!({
            "name": manifest.name, "entries": manifest.entries, "bytes": manifest.bytes,
            "checksum": written.checksum, "left_out": left_out, "pause_ms": pause_ms.map(|ms| u64::try_from(ms).unwrap_or(u64::MAX)),
        });
        return output::json_text(&output::envelope("exported", json!([item])));
    }
    let paused = pause.map(|pause| format!(", paused for {:.2} s", pause.as_secs_f64())).unwrap_or_default();
    let (entries, size) = (manifest.entries, status::size(manifest.bytes));
    eprintln!("{}: exported, {entries} files of its own, {size}{paused}", manifest.name);
}

/// What the archive says, and the jail's own writes: those of a snapshot, or of now.
fn parts(
    options: &Options,
    host: &Host,
    desired: &Desired,
    (name, asked): (&JailName, &Export),
) -> Result<Parts> {
    let Some(wanted) = desired.jails.get(name) else {
        let reason = desired.broken.get(name).map_or("it is not defined", String::as_str);
        bail!("{name}: {reason}");
    };
    let paths = options.paths();
    let input = source::parse(&paths, source::read(&paths));
    let mut templates = Vec::new();
    let mut next = wanted.jail.template.clone();
    while let Some(own) = next.filter(|_| templates.len() < template::PARENTS_MAX) {
        next = match input.templates.get(&own).map(|template| &template.base) {
            Some(Base::Template(parent)) => Some(parent.clone()),
            _ => None,
        };
        templates.push(JailName::new(&own).map_err(|e| anyhow!(e))?);
    }
    let label = asked.snapshot.as_deref();
    let snapshot = label.map(|label| snapshot::find(host, name, label)).transpose()?;
    let journal = &host.journal;
    let number = ids::recorded(&journal.state_dir(name))?;
    let first_id = number.map_or(0, |number| ids::first(host.config.ids, number));
    let shift = wanted.jail.security.userns;
    let state = &journal.paths.state;
    let chain = snapshot.as_ref().map_or_else(|| books::base(state, name), |own| Ok(own.chain.clone()))?;
    let volume = if snapshot.is_some() { None } else { Volume::open(state, name)? };
    let kind = volume.as_ref().map_or(Kind::Overlay, Volume::kind);
    let upper = volume.map(|volume| export::own_writes(&volume, if shift { first_id } else { 0 }));
    let aside = changes::own_lowers(state, &chain)?;
    let aside = aside.iter().map(|lower| export::set_aside(lower, shift));
    let writes = upper.into_iter().chain(aside).collect::<Result<Vec<_>>>()?;
    let measured = writes.iter().map(export::measure).collect::<Result<Vec<_>>>();
    let measured = measured.context("look at the jail's files")?;
    let (entries, bytes) = measured.iter().fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    let wanted_layers = || wanted.root.layers.iter().map(|layer| layer.id.clone()).collect();
    let mut manifest = Manifest {
        schema: Manifest::schema(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        name: name.clone(),
        templates,
        layers: snapshot.as_ref().map_or_else(wanted_layers, |snapshot| snapshot.layers.clone()),
        storage: kind,
        first_id,
        snapshot: snapshot.map(|snapshot| snapshot.label),
        writes: !writes.is_empty(),
        entries,
        bytes,
        alone: None,
    };
    let (mut brought, mut texts) = (Vec::new(), Vec::new());
    if asked.full {
        let found = full::full(host, &input, wanted, &manifest.layers)?;
        (manifest.alone, brought, texts) = (Some(found.alone), found.layers, found.texts);
    }
    Ok(Parts { manifest, writes, brought, texts })
}

/// The layers that the archive speaks of; none where one is not here.
fn layers(host: &Host, manifest: &Manifest) -> Result<Option<Vec<OwnedFd>>> {
    let state = &host.journal.paths.state;
    if !manifest.layers.iter().all(|id| layers::is_built(state, id)) {
        return Ok(None);
    }
    let open = |id: &String| {
        file::open_directory(&layers::path(state, id)).with_context(|| format!("open layer {id}"))
    };
    manifest.layers.iter().map(open).collect::<Result<Vec<_>>>().map(Some)
}

/// A jail whose processes stand still until this is ended, or this process is, however it ends:
/// another one waits for that.
struct Frozen<'c> {
    cgroup: &'c Cgroup,
    since: Instant,
    hold: Option<OwnedFd>,
    thawer: OwnedFd,
}

impl<'c> Frozen<'c> {
    fn new(cgroup: &'c Cgroup) -> Result<Self> {
        let (wait, hold) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context("make a pipe")?;
        match process::fork().context("fork")? {
            Cloned::Child => {
                drop(hold);
                process::block_all_signals();
                // It ends when the other end is closed, which is all there is to know.
                let _ = File::from(wait).read(&mut [0]);
                process::exit_now(i32::from(cgroup.thaw().is_err()))
            }
            Cloned::Parent { pidfd, .. } => {
                let frozen = Self { cgroup, since: Instant::now(), hold: Some(hold), thawer: pidfd };
                cgroup.freeze().context("freeze the jail")?;
                Ok(frozen)
            }
        }
    }

    /// How long it stood still.
    fn end(self) -> Duration {
        let since = self.since;
        drop(self);
        since.elapsed()
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.hold = None;
        let is_thawed = process::reap(self.thawer.as_fd()).is_ok_and(|ended| ended.status() == 0);
        if !is_thawed && self.cgroup.thaw().is_err() {
            eprintln!("stockade: the jail could not be thawed: thaw it");
        }
    }
}

/// Writes standard output, or a file that has its name when it is whole.
fn to(file: &Path, write: impl FnOnce(&mut dyn Write) -> Result<Written>) -> Result<Written> {
    if file == Path::new("-") {
        return write(&mut BufWriter::with_capacity(CHUNK, io::stdout().lock()));
    }
    let name = file.file_name().with_context(|| format!("{} has no name", file.display()))?;
    let temporary = file.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let whole = || -> Result<Written> {
        let created = create(&temporary).with_context(|| format!("create {}", temporary.display()))?;
        let mut out = BufWriter::with_capacity(CHUNK, created);
        let written = write(&mut out)?;
        out.flush().and_then(|()| out.get_ref().sync_all()).context("write the archive")?;
        std::fs::rename(&temporary, file).with_context(|| format!("rename to {}", file.display()))?;
        Ok(written)
    };
    // The first error is the one to tell.
    whole().inspect_err(|_| drop(std::fs::remove_file(&temporary)))
}

/// What a jail has written is for nobody but root.
fn create(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().write(true).create_new(true).mode(0o600).open(path)
}
