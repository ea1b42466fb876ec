//! `diff`, `recover`, `commit`: what a jail has written, seen from outside, taken out of it, and
//! made a template of.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use clap_complete::ArgValueCandidates;
use rustix::fs::{FileType, OFlags, RenameFlags};
use rustix::io::Errno;
use serde_json::{Value, json};

use super::{DONE, Options, complete, named, output, snapshot};
use crate::desired::DesiredJail;
use crate::execute::Host;
use crate::execute::snapshot::refuse;
use crate::jail::JailName;
use crate::root::changes::{self, OwnLower};
use crate::root::copy::{self, Owners};
use crate::root::diff::{self, Change, Kind};
use crate::root::sides::Sides;
use crate::root::volume::{self, Kind as Storage};
use crate::root::{layers, removal, snapshot as books};
use crate::sys::file;

#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The jail
    #[arg(add = ArgValueCandidates::new(complete::jails))]
    pub name: String,
    /// A snapshot instead of what the jail has now
    #[arg(long, value_name = "LABEL")]
    pub from: Option<String>,
}

#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// The jail
    #[arg(add = ArgValueCandidates::new(complete::jails))]
    pub name: String,
    /// Files and directories, as the jail sees them
    #[arg(required = true)]
    pub paths: Vec<PathBuf>,
    /// Where to on the host; a directory that is there
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub to: PathBuf,
    /// A snapshot instead of what the jail has now
    #[arg(long, value_name = "LABEL")]
    pub from: Option<String>,
    /// With owners, set-id bits, attributes, links and device nodes, as they are in the jail
    #[arg(long)]
    pub as_is: bool,
}

/// The jail and where its parts lie.
pub struct Seen {
    pub host: Host,
    pub wanted: DesiredJail,
    layers: Vec<PathBuf>,
    own: Vec<OwnLower>,
}

impl Seen {
    pub fn of(options: &Options, name: &str, from: Option<&str>) -> Result<Self> {
        let (desired, host) = named::open(options)?;
        let wanted = named::jail(&desired, name)?.clone();
        refuse(&wanted).with_context(|| name.to_owned())?;
        let name = &wanted.jail.name;
        let state = &host.journal.paths.state;
        let record = host.journal.record(name)?;
        let wanted_layers = || wanted.root.layers.iter().map(|layer| layer.id.clone()).collect();
        let ids: Vec<String> = match from {
            Some(label) => snapshot::find(&host, name, label)?.layers,
            None => record.map_or_else(wanted_layers, |record| record.layers),
        };
        let layers: Vec<PathBuf> = ids.iter().map(|id| layers::path(state, id)).collect();
        if let Some(missing) = layers.iter().find(|layer| !layer.is_dir()) {
            bail!("{name}: its layer {} is not there", missing.display());
        }
        let own = own_lowers(&host, name, from)?;
        Ok(Self { host, wanted, layers, own })
    }

    /// Of no use to anybody after this but through the view.
    pub fn sides(&self) -> Result<Sides> {
        Sides::open(&self.layers, &self.own, &self.host.journal.paths.state.join("ids"))
    }
}

/// What is the jail's own, topmost first.
fn own_lowers(host: &Host, name: &JailName, from: Option<&str>) -> Result<Vec<OwnLower>> {
    let state = &host.journal.paths.state;
    if let Some(label) = from {
        return changes::own_lowers(state, &snapshot::find(host, name, label)?.chain);
    }
    let upper = upper(state, name)?;
    let first_id = crate::execute::snapshot::origin(host, name)?.first_id;
    let mut own: Vec<OwnLower> = upper.map(|path| OwnLower { path, first_id }).into_iter().collect();
    own.extend(changes::own_lowers(state, &books::base(state, name)?)?);
    Ok(own)
}

/// Where the jail writes, once it has.
fn upper(state: &Path, name: &JailName) -> Result<Option<PathBuf>> {
    let own = volume::jail_directory(state, name);
    let upper = match volume::held(state, name)?.map(|held| held.kind) {
        None => return Ok(None),
        Some(Storage::Overlay) => own.join("upper"),
        Some(Storage::Btrfs) => own.join(volume::SUBVOLUME).join("upper"),
        Some(Storage::Directory) => {
            bail!("{name}: its own writes are not kept apart (root.storage = \"directory\")")
        }
        Some(kind) => bail!("{name}: not with root.storage = \"{kind}\": take a snapshot and give --from"),
    };
    Ok(upper.is_dir().then_some(upper))
}

pub fn diff(options: &Options, asked: &DiffArgs) -> Result<i32> {
    let seen = Seen::of(options, &asked.name, asked.from.as_deref())?;
    let sides = seen.sides()?;
    let changes = changes_of(&seen, &sides)?;
    if options.json {
        output::json_text(&output::envelope("changes", changes.iter().map(item).collect()));
        return Ok(DONE);
    }
    if !changes.is_empty() {
        output::text(&changes.iter().map(line).collect::<String>());
    }
    Ok(DONE)
}

/// Without the files that stockade itself writes into the jail.
pub fn changes_of(seen: &Seen, sides: &Sides) -> Result<Vec<Change>> {
    let mut changes = diff::diff(sides).with_context(|| format!("compare {}", seen.wanted.jail.name))?;
    let rendered = seen.wanted.root.files.iter().map(|file| file.target.clone());
    let ours: BTreeSet<PathBuf> =
        rendered.chain(seen.wanted.root.etc.iter().map(|file| file.target().to_owned())).collect();
    changes.retain(|change| change.kind == Kind::Deleted || !ours.contains(&change.path));
    Ok(changes)
}

fn letter(kind: Kind) -> &'static str {
    match kind {
        Kind::Added => "A",
        Kind::Modified | Kind::Metadata => "M",
        Kind::Deleted => "D",
    }
}

fn type_name(file_type: FileType) -> &'static str {
    match file_type {
        FileType::RegularFile => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "link",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
        FileType::CharacterDevice | FileType::BlockDevice => "device",
        FileType::Unknown => "unknown",
    }
}

/// Names are a jail's own choice: what could move a terminal's cursor is escaped.
fn line(change: &Change) -> String {
    let slash = if change.file_type.is_dir() { "/" } else { "" };
    let mark = if change.kind == Kind::Metadata { "  (metadata)" } else { "" };
    let path = crate::log::escape(&change.path.to_string_lossy());
    format!("{} {path}{slash}{mark}\n", letter(change.kind))
}

fn item(change: &Change) -> Value {
    json!({
        "path": change.path.to_string_lossy(),
        "change": letter(change.kind),
        "metadata_only": change.kind == Kind::Metadata,
        "type": type_name(change.file_type),
    })
}

pub fn recover(options: &Options, asked: &RecoverArgs) -> Result<i32> {
    let seen = Seen::of(options, &asked.name, asked.from.as_deref())?;
    // Opened while the host's mounts are still in sight.
    let to = file::open_directory(&asked.to).with_context(|| format!("open {}", asked.to.display()))?;
    let sides = seen.sides()?;
    let owners = if asked.as_is { Owners::Same } else { Owners::Plain };
    let mut items = Vec::new();
    for path in &asked.paths {
        let copied =
            one(&sides.full, path, &to, owners).with_context(|| format!("recover {}", path.display()))?;
        if copied.left_out > 0 && !options.json {
            eprintln!(
                "stockade: {}: {} links, device nodes and the like are left out (--as-is takes them)",
                path.display(),
                copied.left_out
            );
        }
        items.push(json!({ "path": path, "entries": copied.entries, "bytes": copied.bytes, "left_out": copied.left_out }));
    }
    if options.json {
        output::json_text(&output::envelope("recovered", items.into()));
    }
    Ok(DONE)
}

/// Links on the way are followed as the jail would, inside; the last one is not. It has its name
/// once all of it is there.
fn one(root: &OwnedFd, path: &Path, to: &OwnedFd, owners: Owners) -> Result<copy::Copied> {
    let name = path.file_name().filter(|_| path.components().next_back() != Some(Component::ParentDir));
    let name = name.ok_or_else(|| anyhow!("it has no name"))?;
    let above = path.parent().unwrap_or(Path::new("."));
    let directory = file::open_inside(root.as_fd(), above, OFlags::DIRECTORY, file::INSIDE_ONE)?;
    let taken = rustix::fs::statat(to, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).is_ok();
    ensure!(!taken, "there is something of that name already");
    let progress = |_: &copy::Copied| {
        ensure!(!crate::interrupt::asked(), "interrupted");
        Ok(())
    };
    let new = OsString::from(format!(".recovering-{}", std::process::id()));
    let copied =
        copy::one((directory.as_fd(), name), (to.as_fd(), &new), owners, &progress).and_then(|copied| {
            // Nothing was made when it was left out.
            match rustix::fs::renameat_with(to, &new, to, name, RenameFlags::NOREPLACE) {
                Err(Errno::NOENT) if copied.left_out > 0 => Ok(copied),
                other => other.context("rename into place").map(|()| copied),
            }
        });
    if copied.is_err() {
        // The first error is the one to tell.
        let _ = removal::remove(to, &new);
    }
    copied
}
