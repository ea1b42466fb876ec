//! Removes a tree that may be hostile: no link is followed, no path is joined, and neither the
//! depth nor the length of a path matters, for each directory met is moved up to the top first.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, bail};
use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;

use crate::sys::file;

/// Names read from a directory at a time.
const BATCH: usize = 4096;
/// Passes over one directory that still find something in it.
const PASSES_MAX: usize = 1_000_000;

/// Removes `name` in `parent`, whatever it is; nothing there is done already.
pub fn remove(parent: impl AsFd, name: &OsStr) -> anyhow::Result<()> {
    let shown = name.display();
    if unlink(&parent, name).with_context(|| format!("remove {shown}"))? {
        return Ok(());
    }
    let top = file::open_child(&parent, name).with_context(|| format!("open {shown}"))?;
    clear(&top).with_context(|| format!("empty {shown}"))?;
    match rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("remove {shown}")),
    }
}

/// Empties `top` and leaves it in place.
pub fn clear(top: &OwnedFd) -> anyhow::Result<()> {
    let mut moved = 0_u64;
    for _ in 0..PASSES_MAX {
        let names = file::names(top, BATCH).context("list the directory")?;
        if names.is_empty() {
            return Ok(());
        }
        for name in names {
            if !unlink(top, &name).with_context(|| format!("remove {}", name.display()))? {
                empty_child(top, &name, &mut moved).with_context(|| format!("empty {}", name.display()))?;
            }
        }
    }
    bail!("the directory fills up while it is emptied")
}

/// Removes the directory `name` of `top`, after its own directories were moved beside it.
fn empty_child(top: &OwnedFd, name: &OsStr, moved: &mut u64) -> anyhow::Result<()> {
    let child = file::open_child(top, name)?;
    for _ in 0..PASSES_MAX {
        let names = file::names(&child, BATCH)?;
        if names.is_empty() {
            return Ok(rustix::fs::unlinkat(top, name, AtFlags::REMOVEDIR)?);
        }
        for inner in names {
            if !unlink(&child, &inner)? {
                move_up(&child, &inner, top, moved)?;
            }
        }
    }
    bail!("the directory fills up while it is emptied")
}

fn move_up(from: &OwnedFd, name: &OsStr, top: &OwnedFd, moved: &mut u64) -> anyhow::Result<()> {
    loop {
        *moved += 1;
        let free = OsString::from(format!(".removed-{moved}"));
        match rustix::fs::renameat_with(from, name, top, &free, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            other => return other.with_context(|| format!("move {} up", name.display())),
        }
    }
}

/// Removes a file, a link or an empty directory; false when it is a directory with entries.
fn unlink(directory: impl AsFd, name: &OsStr) -> Result<bool, Errno> {
    match rustix::fs::unlinkat(&directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    match rustix::fs::unlinkat(&directory, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        // Not a directory: the first refusal, such as an immutable file's, is the true one.
        Err(Errno::NOTDIR) => Err(Errno::PERM),
        Err(error) => Err(error),
    }
}
