//! What a volume may take and takes: set, read back, and counted without a walk.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{IMAGE, Kind, SUBVOLUME, image, jail_directory};
use crate::jail::{JailName, Limits, Settings};
use crate::storage::{Choice, FileSystem, Held, IMAGE_BYTES_DEFAULT, Quota};
use crate::sys::btrfs::{self, Counting};
use crate::sys::namespace::IDS;
use crate::sys::{file, quota};

const DISK: &str = "limits.disk";
const INODES: &str = "limits.inodes";
/// Of the quota groups that each count one jail, where the kernel counts by who wrote a block.
const GROUP_LEVEL: u16 = 27;

/// What a volume takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    pub bytes: u64,
    /// Where they are counted.
    pub inodes: Option<u64>,
}

/// The project that all of a jail belongs to: no two have the same range of ids.
pub fn project(first_id: u32) -> u32 {
    first_id / IDS
}

/// Gives the jail's whole directory to its project: what is made in it later belongs to it too.
pub fn count(place: &Path, first_id: u32) -> Result<()> {
    let open = file::open_directory(place).with_context(|| format!("open {}", place.display()))?;
    quota::give(open.as_fd(), project(first_id), true)
        .with_context(|| format!("give {} to a project", place.display()))
}

/// Whether all of the jail's directory is counted. It is given to its project before anything else
/// is made in it, or after everything in it was.
pub fn counted(place: &Path) -> bool {
    let Ok(open) = file::open_directory(place) else { return false };
    quota::project(open.as_fd()).is_ok_and(|(project, inherit)| project != 0 && inherit)
}

/// Puts the limits in force on the volume that is there, running or not.
pub fn set_limits(
    state: &Path,
    name: &JailName,
    first_id: u32,
    (choice, limits): (&Choice, &Limits),
    grows_ext4: bool,
) -> Result<()> {
    let place = jail_directory(state, name);
    match choice.quota {
        Quota::None => lift(&place, first_id, choice.kind),
        Quota::Project => {
            let open = open(&place)?;
            quota::set(open.as_fd(), project(first_id), limits.disk, limits.inodes)
                .context("set the project's quota")
        }
        Quota::Subvolume => limit_subvolume(&place, first_id, limits.disk),
        Quota::Size if choice.kind == Kind::Image => {
            let file_system = choice.file_system.unwrap_or(image::USUAL);
            match limits.disk {
                Some(bytes) => image::resize(&place, file_system, bytes, grows_ext4),
                None => Ok(()),
            }
        }
        Quota::Size => Ok(()),
    }
}

/// Takes limits away that are no longer wanted; where there are no quotas there are none.
fn lift(place: &Path, first_id: u32, kind: Kind) -> Result<()> {
    if kind == Kind::Btrfs {
        // Without quotas there is no limit to take away.
        let _ = limit_subvolume(place, first_id, None);
    } else if counted(place) {
        let open = open(place)?;
        quota::set(open.as_fd(), project(first_id), None, None).context("lift the project's quota")?;
    }
    Ok(())
}

fn open(place: &Path) -> Result<std::os::fd::OwnedFd> {
    file::open_directory(place).with_context(|| format!("open {}", place.display()))
}

fn limit_subvolume(place: &Path, first_id: u32, bytes: Option<u64>) -> Result<()> {
    let top = open(&place.join(SUBVOLUME))?;
    let number = btrfs::number(top.as_fd()).context("find the subvolume's number")?;
    let group = group(top.as_fd(), first_id).context("find the subvolume's quota group")?;
    // From outside: a full subvolume has no room even for being counted.
    let outside = open(place)?;
    if group != number {
        btrfs::assign(outside.as_fd(), number, group).context("count the subvolume")?;
    }
    btrfs::limit(outside.as_fd(), group, bytes).context("limit the subvolume")
}

/// The quota group that a jail's limit is on: its subvolume's own, which counts what that refers
/// to. Simple quotas count a block for ever where it was first written, and a volume that was made
/// of a snapshot would begin with nothing: there it is a group of all subvolumes the jail has had.
fn group(top: BorrowedFd<'_>, first_id: u32) -> std::io::Result<u64> {
    if first_id > 0 && btrfs::counting(top)? == Counting::Simple {
        return Ok(btrfs::group_above(GROUP_LEVEL, project(first_id)));
    }
    btrfs::number(top)
}

/// The length that a new image has.
pub fn image_bytes(limits: &Limits) -> u64 {
    limits.disk.unwrap_or(IMAGE_BYTES_DEFAULT)
}

/// Forgets the limits of a jail whose files are gone.
pub fn forget(state: &Path, first_id: u32) {
    let Ok(open) = file::open_directory(state) else { return };
    if first_id > 0 && btrfs::counting(open.as_fd()).is_ok_and(|counting| counting == Counting::Simple) {
        // What it leaves limits nothing: its subvolumes are deleted.
        let _ = btrfs::forget_above(open.as_fd(), btrfs::group_above(GROUP_LEVEL, project(first_id)));
    }
    if first_id > 0 && quota::enforced(open.as_fd()).unwrap_or(false) {
        // Without a limit, and with nothing counted, the kernel drops the entry.
        let _ = quota::set(open.as_fd(), project(first_id), None, None);
    }
}

/// The limits among `wanted`'s keys as they are in force; `root` is the running jail's own.
pub fn observe(
    state: &Path,
    (name, first_id): (&JailName, u32),
    wanted: &Settings,
    root: Option<BorrowedFd<'_>>,
) -> Settings {
    let mut observed = Settings::new();
    if !wanted.contains_key(DISK) && !wanted.contains_key(INODES) {
        return observed;
    }
    let Some((disk, inodes)) = in_force(state, name, first_id, wanted, root) else { return observed };
    for (key, found, unit) in [(DISK, disk, 4096), (INODES, inodes, 1)] {
        if let Some(want) = wanted.get(key) {
            observed.insert(key.to_owned(), rounded(want, found, unit));
        }
    }
    observed
}

/// What is wanted, if only the kernel's rounding lies between.
fn rounded(want: &Value, found: Option<u64>, unit: u64) -> Value {
    let wanted = want.as_u64().unwrap_or(0);
    if found.is_some_and(|found| found.abs_diff(wanted) < unit) { want.clone() } else { found.into() }
}

type Limited = (Option<u64>, Option<u64>);

fn in_force(
    state: &Path,
    name: &JailName,
    first_id: u32,
    wanted: &Settings,
    root: Option<BorrowedFd<'_>>,
) -> Option<Limited> {
    if wanted.get("root.storage").is_some_and(|storage| storage == "tmpfs") {
        let found = rustix::fs::fstatfs(root?).ok()?;
        return Some((Some(found.f_blocks * u64::try_from(found.f_bsize).ok()?), Some(found.f_files)));
    }
    let place = jail_directory(state, name);
    let held = super::held(state, name).ok()??;
    match held.kind {
        Kind::Overlay | Kind::Directory => {
            let found = quota::get(open(&place).ok()?.as_fd(), project(first_id));
            // Where the quota is off no limit is in force.
            Some(found.map(|found| (found.bytes_max, found.inodes_max)).unwrap_or_default())
        }
        Kind::Btrfs => {
            let top = open(&place.join(SUBVOLUME)).ok()?;
            let group = group(top.as_fd(), first_id).ok()?;
            Some((btrfs::limit_of(top.as_fd(), group).unwrap_or(None), None))
        }
        Kind::Image => Some((held.bytes, None)),
        Kind::Tmpfs => None,
    }
}

/// What the jail's volume takes, where something has counted it already.
pub fn used(
    state: &Path,
    name: &JailName,
    first_id: u32,
    held: &Held,
    root: Option<BorrowedFd<'_>>,
) -> Option<Used> {
    let place = jail_directory(state, name);
    match held.kind {
        Kind::Overlay | Kind::Directory if counted(&place) => {
            let found = quota::get(open(&place).ok()?.as_fd(), project(first_id)).ok()?;
            Some(Used { bytes: found.bytes, inodes: Some(found.inodes) })
        }
        Kind::Overlay | Kind::Directory => None,
        Kind::Btrfs => {
            let top = open(&place.join(SUBVOLUME)).ok()?;
            let group = group(top.as_fd(), first_id).ok()?;
            Some(Used { bytes: btrfs::referenced(top.as_fd(), group).ok()??, inodes: None })
        }
        Kind::Image if root.is_none() => {
            let found = std::fs::metadata(place.join(IMAGE)).ok()?;
            Some(Used { bytes: found.blocks() * 512, inodes: None })
        }
        // The root is a file system of its own, and knows.
        Kind::Image | Kind::Tmpfs => of_root(root?, held),
    }
}

fn of_root(root: BorrowedFd<'_>, held: &Held) -> Option<Used> {
    let found = rustix::fs::fstatfs(root).ok()?;
    let bytes = found.f_blocks.saturating_sub(found.f_bfree) * u64::try_from(found.f_bsize).ok()?;
    // btrfs makes inodes as it needs them, and counts none.
    let counts = held.file_system != Some(FileSystem::Btrfs);
    Some(Used { bytes, inodes: counts.then(|| found.f_files.saturating_sub(found.f_ffree)) })
}
