//! Sinks changes into those right below them, entry by entry. Each step leaves what the two show
//! together as it was, so that it may be cut off anywhere and be made again.
//!
//! Both are what jails have written: no link is followed, and only the current two directories
//! are open. Nobody may have them mounted meanwhile.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use rustix::fs::{AtFlags, FileType, OFlags, Stat};
use rustix::io::Errno;

use crate::root::copy::{self, Owners};
use crate::root::{marks, removal};
use crate::sys::file;

/// Entries of one directory.
const NAMES_MAX: usize = 10_000_000;
/// Directories within each other.
const DEPTH_MAX: usize = 100_000;
/// What overlayfs has noted for itself.
const OVERLAY: &[u8] = b"trusted.overlay.";

/// The same directory of both, on the way down.
struct Pair {
    upper: OwnedFd,
    lower: OwnedFd,
}

struct Level {
    /// What is still to be sunk.
    names: Vec<OsString>,
    name: OsString,
    /// Of the upper one, before anything was moved out of it.
    stat: Stat,
    upper: (u64, u64),
    lower: (u64, u64),
}

/// Moves all that `upper` has into `lower`, and gives that its attributes.
pub fn sink(upper: &OwnedFd, lower: &OwnedFd) -> Result<()> {
    let mut at = Pair { upper: again(upper)?, lower: again(lower)? };
    let mut levels = vec![level(&at, OsString::new())?];
    while let Some(here) = levels.last_mut() {
        if let Some(name) = here.names.pop() {
            let shown = || format!("sink {}", name.display());
            if let Some(below) = entry(&at, &name).with_context(shown)? {
                ensure!(levels.len() < DEPTH_MAX, "more than {DEPTH_MAX} directories deep");
                at = below;
                levels.push(level(&at, name)?);
            }
            continue;
        }
        become_alike(&at, &here.stat).context("sink a directory")?;
        let done = levels.pop().expect("there is the one that was looked at");
        if let Some(above) = levels.last() {
            at = Pair { upper: copy::up(&at.upper, above.upper)?, lower: copy::up(&at.lower, above.lower)? };
            rustix::fs::unlinkat(&at.upper, &done.name, AtFlags::REMOVEDIR).context("remove a directory")?;
        }
    }
    Ok(())
}

fn again(directory: &OwnedFd) -> Result<OwnedFd> {
    file::open_child(directory, ".".as_ref()).context("open the changes")
}

fn level(at: &Pair, name: OsString) -> Result<Level> {
    let stat = rustix::fs::fstat(&at.upper).context("stat")?;
    let names = file::names(&at.upper, NAMES_MAX).context("list a directory")?;
    Ok(Level { names, name, stat, upper: copy::identity(&at.upper)?, lower: copy::identity(&at.lower)? })
}

/// Moves one entry down; or gives the directory that both have, which has to be sunk by itself.
fn entry(at: &Pair, name: &OsStr) -> Result<Option<Pair>> {
    let Some(ours) = kind(&at.upper, name)? else { return Ok(None) };
    let theirs = kind(&at.lower, name)?;
    if ours.is_dir() {
        let upper = child(&at.upper, name)?;
        match theirs {
            Some(theirs) if theirs.is_dir() && !marks::is_opaque(upper.as_fd())? => {
                return Ok(Some(Pair { upper, lower: child(&at.lower, name)? }));
            }
            // It goes on hiding what is further below, which that has hidden until now.
            Some(theirs) if !theirs.is_dir() => {
                marks::hide_below(upper.as_fd())?;
                removal::remove(&at.lower, name)?;
            }
            Some(_) => removal::remove(&at.lower, name)?,
            None => {}
        }
    } else if theirs.is_some_and(FileType::is_dir) {
        removal::remove(&at.lower, name)?;
    }
    rustix::fs::renameat(&at.upper, name, &at.lower, name).context("move down")?;
    Ok(None)
}

fn kind(directory: &OwnedFd, name: &OsStr) -> Result<Option<FileType>> {
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error).context("stat"),
    }
}

fn child(directory: &OwnedFd, name: &OsStr) -> Result<OwnedFd> {
    file::open_inside(directory.as_fd(), name.as_ref(), OFlags::DIRECTORY | OFlags::NOFOLLOW, copy::CHILD)
        .context("open")
}

/// The lower directory gets the owner, mode, times and attributes of the upper one, but for what
/// overlayfs has noted in it.
fn become_alike(at: &Pair, stat: &Stat) -> Result<()> {
    let kept = file::all_attributes(at.upper.as_fd()).context("read attributes")?;
    for (name, _) in file::all_attributes(at.lower.as_fd()).context("read attributes")? {
        let is_overlays = name.as_encoded_bytes().starts_with(OVERLAY);
        if !is_overlays && !kept.iter().any(|(other, _)| *other == name) {
            rustix::fs::fremovexattr(&at.lower, &name)
                .with_context(|| format!("remove attribute {}", name.display()))?;
        }
    }
    copy::like(at.upper.as_fd(), at.lower.as_fd(), stat, Owners::Same)
}

#[cfg(test)]
mod tests;
