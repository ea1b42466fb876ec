//! What an earlier copy of a tree has found in it, by which the next one takes only what has changed
//! since: that lies above the earlier one as overlayfs lays one directory over another.
//!
//! A file is what it was if its inode and the time of its last change are. That time cannot be set; it
//! is believed only where all of the change was on the disk by then, for a page that is clean tells of
//! its next change also when it is mapped into memory.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::fs::{AtFlags, Stat, StatxFlags};
use serde::{Deserialize, Serialize};

const SCHEMA: u32 = 1;
/// Entries of a tree that are remembered; of a larger one none are.
const ENTRIES_MAX: usize = if cfg!(test) { 300 } else { 1_000_000 };

/// A file that was changed so lately may change again without its time showing it, for the
/// kernel's clock of files ticks that slowly at most.
pub(super) const SETTLED: Duration = Duration::from_millis(50);

/// Every entry of a tree, by the inode of its directory and its name there.
#[derive(Debug, Serialize, Deserialize)]
pub struct Index {
    schema: u32,
    top: Born,
    folders: BTreeMap<u64, BTreeMap<OsString, Seen>>,
    #[serde(skip)]
    count: usize,
}

/// Which directory it is, also where the inode of one that is gone was given to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Born {
    inode: u64,
    at: (i64, u32),
}

/// An entry as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seen {
    inode: u64,
    /// None: so lately that the next change may bear the same time.
    changed: Option<(i64, i64)>,
    /// Of a directory, whether it hides what is below it.
    hides: Option<bool>,
}

impl Seen {
    /// What was changed before `synced` is on the disk.
    pub(super) fn new(stat: &Stat, synced: Duration, hides: Option<bool>) -> Self {
        let is_settled = changed_at(stat) + SETTLED < synced;
        Self { inode: stat.st_ino, changed: is_settled.then(|| changed(stat)), hides }
    }

    /// Nothing about it has changed; of a directory that is not what lies in it.
    fn is_unchanged(self, now: Self) -> bool {
        self.changed.is_some() && self == now
    }

    /// It is what it was, whatever is in it now.
    fn is_same(self, now: Self) -> bool {
        (self.inode, self.hides) == (now.inode, now.hides)
    }
}

impl Index {
    /// Of a tree in which nothing was found yet; none where the file system does not know when a
    /// directory was made.
    pub(super) fn new(top: BorrowedFd<'_>) -> Result<Option<Self>> {
        let top = born(top)?;
        Ok(top.map(|top| Self { schema: SCHEMA, top, folders: BTreeMap::new(), count: 0 }))
    }

    pub(super) fn is_of(&self, top: BorrowedFd<'_>) -> Result<bool> {
        Ok(born(top)? == Some(self.top))
    }

    /// False when it is too much to remember.
    pub(super) fn note(&mut self, directory: u64, name: &OsStr, seen: Seen) -> bool {
        self.folders.entry(directory).or_default().insert(name.to_owned(), seen);
        self.count += 1;
        self.count <= ENTRIES_MAX
    }

    pub(super) fn find(&self, directory: u64, name: &OsStr) -> Option<Seen> {
        self.folders.get(&directory)?.get(name).copied()
    }

    pub(super) fn find_at_top(&self, name: &OsStr) -> Option<Seen> {
        self.find(self.top.inode, name)
    }

    /// What the directory has had and has no more.
    pub(super) fn gone(&self, directory: u64, names: &[OsString]) -> Vec<OsString> {
        let Some(had) = self.folders.get(&directory) else { return Vec::new() };
        let now: std::collections::BTreeSet<&OsString> = names.iter().collect();
        had.keys().filter(|name| !now.contains(name)).cloned().collect()
    }

    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        postcard::to_stdvec(self).context("write down what was copied")
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let index: Self = postcard::from_bytes(bytes).context("read what was copied")?;
        ensure!(index.schema == SCHEMA, "it is of another version");
        Ok(index)
    }
}

/// What the earlier copy has under the name of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    /// Nothing that counts.
    Nothing,
    /// The same file or directory; `as_it_is` when nothing about it has changed.
    Same { as_it_is: bool },
    /// Something else, which a directory has to hide.
    Other,
}

impl Before {
    /// Of the entry that is `now` under a name in a directory, to which something is `above`.
    pub(super) fn of(
        above: Self,
        earlier: Option<&Index>,
        (directory, name): (u64, &OsStr),
        now: Seen,
    ) -> Self {
        let Some(earlier) = earlier.filter(|_| above.is_same()) else { return Self::Nothing };
        match earlier.find(directory, name) {
            None => Self::Nothing,
            Some(had) if had.is_same(now) => Self::Same { as_it_is: had.is_unchanged(now) },
            Some(_) => Self::Other,
        }
    }

    /// Of the directory that is copied: that of another would say nothing about it.
    pub(super) fn of_top(earlier: Option<&Index>, top: BorrowedFd<'_>) -> Result<Self> {
        let Some(earlier) = earlier else { return Ok(Self::Nothing) };
        ensure!(earlier.is_of(top)?, "it is not the directory that was copied before");
        Ok(Self::Same { as_it_is: false })
    }

    pub(super) fn is_same(self) -> bool {
        matches!(self, Self::Same { .. })
    }

    pub(super) fn is_as_it_is(self) -> bool {
        self == Self::Same { as_it_is: true }
    }
}

pub(super) fn changed_at(stat: &Stat) -> Duration {
    let (seconds, nanoseconds) = changed(stat);
    Duration::new(u64::try_from(seconds).unwrap_or(0), u32::try_from(nanoseconds).unwrap_or(0))
}

pub(super) fn changed(stat: &Stat) -> (i64, i64) {
    (stat.st_ctime, i64::try_from(stat.st_ctime_nsec).unwrap_or(0))
}

fn born(directory: BorrowedFd<'_>) -> Result<Option<Born>> {
    let wanted = StatxFlags::INO | StatxFlags::BTIME;
    let found = rustix::fs::statx(directory, "", AtFlags::EMPTY_PATH, wanted).context("stat")?;
    let has_time = found.stx_mask & StatxFlags::BTIME.bits() != 0;
    let at = (found.stx_btime.tv_sec, found.stx_btime.tv_nsec);
    Ok(has_time.then_some(Born { inode: found.stx_ino, at }))
}

#[cfg(test)]
mod tests;
