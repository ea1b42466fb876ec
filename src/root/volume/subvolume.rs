//! A part of a volume as a subvolume of the state directory's btrfs.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};

use crate::root::removal;
use crate::sys::{btrfs, file};

/// Makes the subvolume `name`, closed to others as everything of a jail is.
pub fn create(directory: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    btrfs::create(directory, name).with_context(|| format!("make subvolume {}", name.display()))?;
    let made = file::open_child(directory, name)?;
    rustix::fs::fchmod(&made, 0o700.into()).with_context(|| format!("chmod {}", name.display()))
}

/// The directory at `path`, if it is the top of a subvolume.
pub fn open(path: &Path) -> Option<OwnedFd> {
    file::open_directory(path).ok().filter(|open| btrfs::is_subvolume(open.as_fd()))
}

/// Makes `name` of what `from` has at this moment, on the disk when this returns.
pub fn snapshot(from: &OwnedFd, directory: BorrowedFd<'_>, name: &str, read_only: bool) -> Result<()> {
    btrfs::snapshot(from.as_fd(), directory, OsStr::new(name), read_only)
        .with_context(|| format!("make a snapshot as {name}"))
}

/// Deletes it at once, whatever is in it, and its quota group; nothing there is done already.
pub fn remove(directory: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    let Ok(open) = file::open_child(directory, name) else {
        return removal::remove(directory, name);
    };
    let number = btrfs::number(open.as_fd());
    drop(open);
    let (Ok(number), Ok(())) = (number, btrfs::destroy(directory, name)) else {
        // No subvolume, or one that holds others: as a tree, then.
        return removal::remove(directory, name);
    };
    // The group can only go once the cleaner has been there; a kernel that removes it by itself, or
    // has none, says that it is not there. What stays limits nothing and is never used again.
    let _ = btrfs::forget(directory, number);
    Ok(())
}
