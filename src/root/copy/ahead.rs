//! Copies made ahead, while the tree is still in use: when it stands still, what has not changed
//! since is only moved into place.
//!
//! Best effort: whatever cannot be read, vanishes or changes meanwhile is left to the copy itself.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};

use super::entry::Pair;
use super::since::{Before, SETTLED, Seen, changed, changed_at};
use super::{CHILD, Copied, Copy, Index, Owners, Progress, kept_name, names, reopen, up};
use crate::root::marks;
use crate::sys::file;

/// Files copied ahead into a directory, by device and inode.
pub struct Ahead {
    pub(super) directory: OwnedFd,
    /// The time of the last change, as it was before each was copied.
    pub(super) ready: HashMap<(u64, u64), (i64, i64)>,
    /// What was changed before this was on the disk by then.
    pub(super) synced: Duration,
    /// What it came to.
    pub copied: Copied,
}

/// Copies what lies quietly in `from`, and is not in `earlier`, into the empty directory `into`.
pub fn ahead(
    from: BorrowedFd<'_>,
    into: BorrowedFd<'_>,
    earlier: Option<&Index>,
    progress: Progress<'_>,
) -> Result<Ahead> {
    let from = reopen(from)?;
    // At once, and not file by file, of which each would wait for the disk.
    let synced = now();
    rustix::fs::syncfs(&from).context("sync the file system")?;
    let copy = Copy::new(reopen(into)?, Owners::Same, progress);
    let mut walk = Walk { copy, into: reopen(into)?, ready: HashMap::new(), earlier, synced };
    let names = names(&from)?;
    // An error is a tree in motion, or the word of no, which is given again.
    drop(walk.directory(from, names));
    progress(&walk.copy.copied)?;
    Ok(Ahead { directory: walk.into, ready: walk.ready, synced, copied: walk.copy.copied })
}

struct Walk<'p> {
    copy: Copy<'p>,
    into: OwnedFd,
    ready: HashMap<(u64, u64), (i64, i64)>,
    earlier: Option<&'p Index>,
    synced: Duration,
}

struct Level {
    names: Vec<OsString>,
    identity: (u64, u64),
    before: Before,
}

impl Walk<'_> {
    /// An error, such as a directory that was moved away below the walk, ends it.
    fn directory(&mut self, mut at: OwnedFd, top: Vec<OsString>) -> Result<()> {
        let before = Before::of_top(self.earlier, at.as_fd())?;
        let mut levels = vec![Level { names: top, identity: super::identity(&at)?, before }];
        while let Some(here) = levels.last_mut() {
            let Some(name) = here.names.pop() else {
                levels.pop();
                if let Some(above) = levels.last() {
                    at = up(&at, above.identity)?;
                }
                continue;
            };
            self.copy.count()?;
            let Ok(stat) = rustix::fs::statat(&at, &name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            if FileType::from_raw_mode(stat.st_mode).is_dir() {
                let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NOATIME;
                let Ok(child) = file::open_inside(at.as_fd(), name.as_ref(), flags, CHILD) else { continue };
                let hides = marks::is_opaque(child.as_fd())?;
                let before = self.before(here, &name, &stat, Some(hides));
                levels.push(Level {
                    names: super::names(&child)?,
                    identity: super::identity(&child)?,
                    before,
                });
                at = child;
            } else if !self.before(here, &name, &stat, None).is_as_it_is() {
                self.file(&at, &name, stat)?;
            }
        }
        Ok(())
    }

    fn before(&self, here: &Level, name: &OsStr, stat: &Stat, hides: Option<bool>) -> Before {
        let seen = Seen::new(stat, self.synced, hides);
        Before::of(here.before, self.earlier, (here.identity.1, name), seen)
    }

    fn file(&mut self, at: &OwnedFd, name: &OsStr, stat: Stat) -> Result<()> {
        let key = (stat.st_dev, stat.st_ino);
        if self.ready.contains_key(&key) || !is_settled(&stat) {
            return Ok(());
        }
        if changed_at(&stat) + SETTLED >= self.synced && !write_out(at, name, &stat) {
            return Ok(());
        }
        let kept = kept_name(key);
        let kept = OsStr::new(&kept);
        let mut alone = stat;
        alone.st_nlink = 1;
        let copied = self.copy.entry(Pair { from: at, name, to: &self.into, to_name: kept }, &alone);
        let same = rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|now| changed(&now) == changed(&stat) && (now.st_dev, now.st_ino) == key);
        if copied.is_ok() && same {
            self.ready.insert(key, changed(&stat));
        } else {
            // One that is not there is as good.
            let _ = rustix::fs::unlinkat(&self.into, kept, AtFlags::empty());
            (self.copy.progress)(&self.copy.copied)?;
        }
        Ok(())
    }
}

/// What is in memory only goes to the disk first: a page that is clean tells of its next change.
fn write_out(at: &OwnedFd, name: &OsStr, stat: &Stat) -> bool {
    if !FileType::from_raw_mode(stat.st_mode).is_file() {
        return true;
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOATIME;
    let opened = rustix::fs::openat(at, name, flags | OFlags::CLOEXEC, Mode::empty());
    opened.is_ok_and(|file| rustix::fs::fdatasync(&file).is_ok())
}

/// Times that are in doubt: of the future, or of just now.
fn is_settled(stat: &Stat) -> bool {
    changed_at(stat) + SETTLED < now()
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl Ahead {
    /// Moves the copy of an unchanged file into place; false where there is none.
    pub(super) fn place(&mut self, stat: &Stat, to: &OwnedFd, name: &OsStr) -> Result<bool> {
        let key = (stat.st_dev, stat.st_ino);
        if self.ready.get(&key) != Some(&changed(stat)) {
            return Ok(false);
        }
        self.ready.remove(&key);
        rustix::fs::renameat(&self.directory, kept_name(key), to, name)?;
        Ok(true)
    }
}
