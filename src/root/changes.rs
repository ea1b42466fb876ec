//! What jails have written and set aside: `changes/ID/upper`, immutable, each owned by the ids of
//! the jail that wrote it. It lies in `changes/ID/volume` where that is a subvolume, and a whole
//! root is `changes/ID/root`.
//!
//! A snapshot, and what is below a jail's own upper after one, are lists of such ids, topmost
//! first. They are shared: by snapshots, by the jail they come from, by its clones. So nothing of
//! them belongs to a jail's directory, and what no list names any more is swept away.

mod merge;
mod sink;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::copy::Index;
use super::volume::{self, SUBVOLUME, THICK};
use super::{layers, removal, snapshot};
use crate::jail::JailName;
use crate::journal;
use crate::sys::file;

pub use merge::merge;

/// Sets of changes in one state directory.
const CHANGES_MAX: usize = 1_000_000;
/// How many lower directories one jail may have of its own; the kernel takes 500 in all.
pub const CHAIN_MAX: usize = 200;
const INDEX: &str = "index";
const REMOVING: &str = ".removing-";
/// Holds an id range whose jail is gone while changes with its ids are left. No jail's name.
pub const HOLDER: &str = ".changes";

/// Where changes come from, `changes/ID/origin.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    pub schema: u32,
    pub jail: JailName,
    /// The first host id of their owners.
    pub first_id: u32,
    /// The number of that range in the pool, where it is from there.
    pub range: Option<u32>,
}

/// One lower directory of a jail's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnLower {
    pub path: PathBuf,
    pub first_id: u32,
}

fn store(state: &Path) -> PathBuf {
    state.join("changes")
}

/// The directory of changes that are, or will be, whole.
pub fn upper(state: &Path, id: &str) -> PathBuf {
    part(state, id, SUBVOLUME).unwrap_or_else(|| store(state).join(id)).join("upper")
}

/// A part of changes by its name, if that is what they are.
pub fn part(state: &Path, id: &str, name: &str) -> Option<PathBuf> {
    let path = store(state).join(id).join(name);
    fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir()).then_some(path)
}

pub fn is_whole(state: &Path, id: &str) -> bool {
    ["upper", SUBVOLUME, THICK].iter().any(|name| part(state, id, name).is_some())
}

/// Held while lists of changes are written or searched, so that nothing is swept away that is
/// just about to be named. Never held for long.
pub struct Guard {
    _file: File,
}

pub fn guard(state: &Path) -> anyhow::Result<Guard> {
    let directory = store(state);
    journal::make_directory(&directory, 0o700)?;
    let path = directory.join(".lock");
    let mut options = File::options();
    let file = options.read(true).write(true).create(true).truncate(false).open(&path);
    let file = file.with_context(|| format!("open {}", path.display()))?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive)
        .with_context(|| format!("lock {}", path.display()))?;
    Ok(Guard { _file: file })
}

/// Makes the place for new changes, which are whole as soon as it has an `upper`. A pending
/// operation must name `id` already.
pub fn begin(state: &Path, id: &str, origin: &Origin) -> anyhow::Result<OwnedFd> {
    let place = store(state).join(id);
    journal::make_directory(&place, 0o700)?;
    let text = serde_json::to_vec(origin).context("write an origin")?;
    journal::replace_synced(&place.join("origin.json"), &text)?;
    file::open_directory(&place).with_context(|| format!("open {}", place.display()))
}

pub fn origin(state: &Path, id: &str) -> anyhow::Result<Origin> {
    let path = store(state).join(id).join("origin.json");
    let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))
}

/// What a running jail's snapshot has found in its writes, `changes/ID/index`; none where there is
/// nothing to go by, which only makes the next snapshot a copy of everything.
pub fn index(state: &Path, id: &str) -> Option<Index> {
    let bytes = fs::read(store(state).join(id).join(INDEX)).ok()?;
    Index::from_bytes(&bytes).ok()
}

/// Before the changes are whole: with them it is put on the disk.
pub fn write_index(place: &OwnedFd, index: &Index) -> anyhow::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::openat(place, INDEX, flags, Mode::RUSR | Mode::WUSR).context("make the index")?;
    File::from(file).write_all(&index.to_bytes()?).context("write the index")
}

/// Only the last snapshot's is of use.
pub fn forget_index(state: &Path, id: &str) -> anyhow::Result<()> {
    journal::remove(&store(state).join(id).join(INDEX))
}

/// The lower directories that a list of changes stands for.
pub fn own_lowers(state: &Path, chain: &[String]) -> anyhow::Result<Vec<OwnLower>> {
    chain
        .iter()
        .map(|id| {
            if !is_whole(state, id) {
                bail!("{} is missing", upper(state, id).display());
            }
            if part(state, id, THICK).is_some() {
                bail!(
                    "a whole root was set aside, over which nothing can lie (root.storage = \"directory\")"
                );
            }
            Ok(OwnLower { path: upper(state, id), first_id: origin(state, id)?.first_id })
        })
        .collect()
}

/// The bytes that changes take on the disk.
pub fn disk_bytes(state: &Path, id: &str) -> anyhow::Result<u64> {
    let store = open_store(state)?.context("there are no changes")?;
    layers::size(&store, OsStr::new(id), 0).with_context(|| format!("measure changes {id}"))
}

fn open_store(state: &Path) -> anyhow::Result<Option<OwnedFd>> {
    match file::open_directory(&store(state)) {
        Ok(store) => Ok(Some(store)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("open {}", store(state).display())),
    }
}

/// Changes that no jail, snapshot or pending operation names.
pub fn unused(state: &Path) -> anyhow::Result<Vec<String>> {
    let Some(store) = open_store(state)? else { return Ok(Vec::new()) };
    let _guard = guard(state)?;
    unused_now(state, &store)
}

fn unused_now(state: &Path, store: &OwnedFd) -> anyhow::Result<Vec<String>> {
    let mut all = Vec::new();
    for name in file::names(store, CHANGES_MAX).context("list the changes")? {
        all.extend(name.into_string().ok().filter(|name| !name.starts_with('.')));
    }
    if all.is_empty() {
        return Ok(all);
    }
    let used = snapshot::named(state)?;
    all.retain(|id| !used.contains(id));
    all.sort();
    Ok(all)
}

/// Removes changes that nothing names, and gives id ranges back that only they have kept.
pub fn sweep(state: &Path) -> anyhow::Result<()> {
    let Some(store) = open_store(state)? else { return Ok(()) };
    let guard = guard(state)?;
    let mut ranges = BTreeSet::new();
    for id in unused_now(state, &store)? {
        ranges.extend(origin(state, &id).ok().and_then(|origin| origin.range));
        // Without its name first: half of it is never taken for the whole.
        rustix::fs::renameat(&store, &id, &store, format!("{REMOVING}{id}"))
            .with_context(|| format!("take changes {id} out of their place"))?;
    }
    for name in file::names(&store, CHANGES_MAX).context("list the changes")? {
        if name.to_str().is_some_and(|name| name.starts_with(REMOVING)) {
            remove(&store, &name)?;
        }
    }
    for range in ranges {
        if !keeps_range(state, &store, range)? {
            release(state, range)?;
        }
    }
    drop(guard);
    Ok(())
}

fn remove(store: &OwnedFd, name: &OsStr) -> anyhow::Result<()> {
    let place = file::open_child(store, name).with_context(|| format!("open {}", name.display()))?;
    for part in [SUBVOLUME, THICK] {
        volume::subvolume::remove(place.as_fd(), part.as_ref())?;
    }
    removal::remove(store, name)
}

/// Whether changes are left whose owners are of this range.
fn keeps_range(state: &Path, store: &OwnedFd, range: u32) -> anyhow::Result<bool> {
    for name in file::names(store, CHANGES_MAX).context("list the changes")? {
        let Some(id) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
        if origin(state, id)?.range == Some(range) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn link(state: &Path, range: u32) -> PathBuf {
    state.join("ids").join(range.to_string())
}

/// For a jail that goes: keeps its range from being given to another as long as changes with its
/// ids are left. False when none are.
pub fn inherit_range(state: &Path, range: u32) -> anyhow::Result<bool> {
    let Some(store) = open_store(state)? else { return Ok(false) };
    let _guard = guard(state)?;
    if !keeps_range(state, &store, range)? {
        return Ok(false);
    }
    // Replaced at once: the range is never free in between.
    let link = link(state, range);
    let new = link.with_extension("new");
    journal::remove(&new)?;
    std::os::unix::fs::symlink(HOLDER, &new)
        .and_then(|()| fs::rename(&new, &link))
        .with_context(|| format!("keep id range {range}"))?;
    Ok(true)
}

fn release(state: &Path, range: u32) -> anyhow::Result<()> {
    let link = link(state, range);
    match fs::read_link(&link) {
        Ok(holder) if holder.as_os_str() == HOLDER => {
            fs::remove_file(&link).with_context(|| format!("release id range {range}"))
        }
        // Its jail lives, or it is not taken at all.
        _ => Ok(()),
    }
}
