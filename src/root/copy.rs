//! Copies a tree as it is: owners, modes, times, every extended attribute (overlayfs's own and
//! ACLs among them), hard links, holes, device nodes and whiteouts; blocks are shared where the
//! file system can.
//!
//! The tree may be hostile, as a jail's own writes are: no link is followed, no path is joined,
//! no mount below it is entered, and a path may be longer than the kernel takes in one word, for
//! only the current directory is open. It must not change while it is copied: the caller has
//! stopped or frozen who writes to it, or else the copy fails where it notices.

mod ahead;
mod entry;
mod owners;
mod since;

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::{marks, removal};
use crate::sys::file;
pub use ahead::{Ahead, ahead};
use entry::Pair;
pub(super) use entry::like;
pub use owners::Owners;
pub use since::Index;
use since::{Before, Seen};

/// Entries of one tree.
const ENTRIES_MAX: u64 = 50_000_000;
/// Directories within each other.
const DEPTH_MAX: usize = 100_000;
/// How a directory of the tree is entered: neither through a link nor onto another mount.
pub(super) const CHILD: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_XDEV);

/// What has been copied so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    pub entries: u64,
    /// Bytes of data, holes left out.
    pub bytes: u64,
    /// Of these, the bytes whose blocks are shared and were not written again.
    pub shared: u64,
    /// Links, device nodes, FIFOs and sockets that [`Owners::Plain`] has left out.
    pub left_out: u64,
}

/// Told now and then how far the copy is; an error of its own ends the copy.
pub type Progress<'p> = &'p dyn Fn(&Copied) -> anyhow::Result<()>;

/// Copies what is in `from` into the empty directory `to`, which becomes like `from` itself.
/// Nothing is on the disk for sure until the caller has synced it, and what a copy that failed
/// has left is the caller's to remove.
pub fn tree(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    owners: Owners,
    progress: Progress<'_>,
) -> anyhow::Result<Copied> {
    let mut copy = Copy::new(reopen(to)?, owners, progress);
    copy.whole(from, to)?;
    copy.finish()
}

/// The same, by the same owners, of what was copied ahead, which has to be on the file system of
/// `to`. What `earlier` has already is left out: together with that it is all of `from`, to
/// overlayfs. Gives what the next copy can tell by what has changed since this one.
pub fn tree_after(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    ahead: Ahead,
    earlier: Option<&Index>,
    progress: Progress<'_>,
) -> anyhow::Result<(Copied, Option<Index>)> {
    let mut copy = Copy::new(reopen(to)?, Owners::Same, progress);
    copy.synced = ahead.synced;
    copy.ahead = Some(ahead);
    copy.earlier = earlier;
    copy.index = Index::new(from)?;
    copy.whole(from, to)?;
    let index = copy.index.take();
    Ok((copy.finish()?, index))
}

/// One entry of `from_directory` to a new name in `to_directory`, with all that is below it.
pub fn one(
    (from_directory, from_name): (BorrowedFd<'_>, &OsStr),
    (to_directory, to_name): (BorrowedFd<'_>, &OsStr),
    owners: Owners,
    progress: Progress<'_>,
) -> anyhow::Result<Copied> {
    let mut stat =
        rustix::fs::statat(from_directory, from_name, AtFlags::SYMLINK_NOFOLLOW).context("stat")?;
    if FileType::from_raw_mode(stat.st_mode).is_dir() {
        rustix::fs::mkdirat(to_directory, to_name, Mode::RWXU).context("make directory")?;
        let (from, to) =
            (file::open_child(from_directory, from_name)?, file::open_child(to_directory, to_name)?);
        return tree(from.as_fd(), to.as_fd(), owners, progress);
    }
    let mut copy = Copy::new(reopen(to_directory)?, owners, progress);
    // Its other names are not part of the copy.
    stat.st_nlink = 1;
    let (from, to) = (reopen(from_directory)?, reopen(to_directory)?);
    copy.entry(Pair { from: &from, name: from_name, to: &to, to_name }, &stat)?;
    Ok(copy.copied)
}

struct Copy<'p> {
    /// The top of the copy, in which `links` is made when it is needed.
    top: OwnedFd,
    /// A directory that holds one name of each file that has several and of which more may come.
    links: OsString,
    /// How many names of such a file are still to come, by device and inode.
    linked: HashMap<(u64, u64), u64>,
    /// What only has to be moved into place.
    ahead: Option<Ahead>,
    /// What need not be copied again.
    earlier: Option<&'p Index>,
    /// All that is found; none where nobody is to know.
    index: Option<Index>,
    /// What was changed before this is on the disk.
    synced: Duration,
    owners: Owners,
    copied: Copied,
    progress: Progress<'p>,
}

/// A directory on the way down, which is not open.
struct Level {
    name: OsString,
    /// What is still to be copied of it.
    names: Vec<OsString>,
    from: (u64, u64),
    to: (u64, u64),
    before: Before,
}

impl<'p> Copy<'p> {
    fn new(top: OwnedFd, owners: Owners, progress: Progress<'p>) -> Self {
        Self {
            top,
            links: OsString::new(),
            linked: HashMap::new(),
            ahead: None,
            earlier: None,
            index: None,
            synced: Duration::ZERO,
            owners,
            copied: Copied::default(),
            progress,
        }
    }

    fn whole(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> anyhow::Result<()> {
        let (from, to) = (reopen(from)?, reopen(to)?);
        let names = names(&from)?;
        let before = Before::of_top(self.earlier, from.as_fd())?;
        self.links = free_name(|name| {
            let had = self.earlier.and_then(|earlier| earlier.find_at_top(name));
            had.is_none() && !names.iter().any(|other| other == name)
        });
        let top = self.level(&from, &to, OsString::new(), names, before)?;
        self.walk(from, to, top)
    }

    fn walk(&mut self, mut from: OwnedFd, mut to: OwnedFd, top: Level) -> anyhow::Result<()> {
        let mut levels = vec![top];
        while let Some(here) = levels.last_mut() {
            let Some(name) = here.names.pop() else {
                self.leave(&from, &to, here.before)?;
                let done = levels.pop().expect("there is the one that was looked at");
                if let Some(above) = levels.last() {
                    from = up(&from, above.from).context("leave a directory")?;
                    to = up(&to, above.to).context("leave a directory of the copy")?;
                    leave_out(&to, &done)?;
                }
                continue;
            };
            let shown = name.display();
            self.count()?;
            let stat = rustix::fs::statat(&from, &name, AtFlags::SYMLINK_NOFOLLOW)
                .with_context(|| format!("stat {shown}"))?;
            if !FileType::from_raw_mode(stat.st_mode).is_dir() {
                if !self.meet(here, &name, Seen::new(&stat, self.synced, None)).is_as_it_is() {
                    let pair = Pair { from: &from, name: &name, to: &to, to_name: &name };
                    self.entry(pair, &stat).with_context(|| format!("copy {shown}"))?;
                }
                continue;
            }
            let entered = self.enter(here, (&mut from, &mut to), &name);
            if let Some(level) = entered.with_context(|| format!("copy {shown}"))? {
                ensure!(levels.len() < DEPTH_MAX, "copy {shown}: more than {DEPTH_MAX} directories deep");
                levels.push(level);
            }
        }
        Ok(())
    }

    /// Makes the directory and steps into both; a mount point is made and stays empty.
    fn enter(
        &mut self,
        here: &Level,
        (from, to): (&mut OwnedFd, &mut OwnedFd),
        name: &OsStr,
    ) -> anyhow::Result<Option<Level>> {
        rustix::fs::mkdirat(&*to, name, Mode::RWXU).context("make directory")?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NOATIME;
        let child = match file::open_inside(from.as_fd(), name.as_ref(), flags, CHILD) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::XDEV) => return Ok(None),
            other => other.context("open")?,
        };
        let made = file::open_child(&*to, name).context("open the copy")?;
        // Also where there was too much to remember: what the earlier copy has counts all the same.
        let before = if self.index.is_none() && self.earlier.is_none() {
            Before::Nothing
        } else {
            let stat = rustix::fs::fstat(&child).context("stat")?;
            let hides = marks::is_opaque(child.as_fd())?;
            self.meet(here, name, Seen::new(&stat, self.synced, Some(hides)))
        };
        let names = names(&child)?;
        (*from, *to) = (child, made);
        self.level(from, to, name.to_owned(), names, before).map(Some)
    }

    /// What a directory has no more is taken away from what the earlier copy shows.
    fn level(
        &self,
        from: &OwnedFd,
        to: &OwnedFd,
        name: OsString,
        names: Vec<OsString>,
        before: Before,
    ) -> anyhow::Result<Level> {
        let (from, to_identity) = (identity(from)?, identity(to)?);
        if let Some(earlier) = self.earlier.filter(|_| before.is_same()) {
            for gone in earlier.gone(from.1, &names) {
                marks::white_out(to, &gone)?;
            }
        }
        Ok(Level { name, names, from, to: to_identity, before })
    }

    /// Remembers an entry of a directory, and looks whether the earlier copy has it.
    fn meet(&mut self, here: &Level, name: &OsStr, seen: Seen) -> Before {
        let directory = here.from.1;
        if self.index.as_mut().is_some_and(|index| !index.note(directory, name, seen)) {
            self.index = None;
        }
        Before::of(here.before, self.earlier, (directory, name), seen)
    }

    /// Times and the default ACL of a directory come last: what is made in it changes the first
    /// and inherits the second.
    fn leave(&mut self, from: &OwnedFd, to: &OwnedFd, before: Before) -> anyhow::Result<()> {
        let stat = rustix::fs::fstat(from).context("stat")?;
        entry::like(from.as_fd(), to.as_fd(), &stat, self.owners)?;
        match before {
            Before::Nothing => Ok(()),
            // What it hides the earlier one hides.
            Before::Same { .. } => marks::show_below(to.as_fd()),
            Before::Other => marks::hide_below(to.as_fd()),
        }
    }

    fn count(&mut self) -> anyhow::Result<()> {
        self.copied.entries += 1;
        ensure!(self.copied.entries <= ENTRIES_MAX, "more than {ENTRIES_MAX} entries");
        if self.copied.entries.is_multiple_of(64) { (self.progress)(&self.copied) } else { Ok(()) }
    }

    /// Copies anything but a directory, or gives the copy that is there another name.
    fn entry(&mut self, pair: Pair<'_>, stat: &Stat) -> anyhow::Result<()> {
        let Pair { to, to_name, .. } = pair;
        let key = (stat.st_dev, stat.st_ino);
        #[allow(clippy::useless_conversion)]
        let links = u64::from(stat.st_nlink);
        if links > 1 && self.link(key, to, to_name)? {
            return Ok(());
        }
        if self.owners == Owners::Plain && !FileType::from_raw_mode(stat.st_mode).is_file() {
            self.copied.left_out += 1;
            return Ok(());
        }
        let is_there = match &mut self.ahead {
            Some(ahead) => ahead.place(stat, to, to_name)?,
            None => false,
        };
        match FileType::from_raw_mode(stat.st_mode) {
            _ if is_there => {}
            FileType::RegularFile => self.file(pair)?,
            FileType::Symlink => entry::link(pair, stat, self.owners)?,
            _ => entry::node(pair, stat, self.owners)?,
        }
        if links > 1 { self.remember(key, links - 1, to, to_name) } else { Ok(()) }
    }

    /// Names an earlier copy of the same file; false when there is none.
    fn link(&mut self, key: (u64, u64), to: &OwnedFd, name: &OsStr) -> anyhow::Result<bool> {
        let Some(left) = self.linked.get_mut(&key) else { return Ok(false) };
        *left = left.saturating_sub(1);
        let is_last = *left == 0;
        let links = file::open_child(&self.top, &self.links).context("open the directory of links")?;
        let kept = kept_name(key);
        if is_last {
            // Its name there becomes the last one here, so that no limit on names is passed.
            self.linked.remove(&key);
            rustix::fs::renameat(&links, &kept, to, name).context("name the copy again")?;
        } else {
            rustix::fs::linkat(&links, &kept, to, name, AtFlags::empty()).context("link the copy")?;
        }
        Ok(true)
    }

    fn remember(&mut self, key: (u64, u64), left: u64, to: &OwnedFd, name: &OsStr) -> anyhow::Result<()> {
        match rustix::fs::mkdirat(&self.top, &self.links, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).context("make the directory of links"),
        }
        let links = file::open_child(&self.top, &self.links).context("open the directory of links")?;
        rustix::fs::linkat(to, name, &links, kept_name(key), AtFlags::empty()).context("keep a link")?;
        self.linked.insert(key, left);
        Ok(())
    }

    fn file(&mut self, pair: Pair<'_>) -> anyhow::Result<()> {
        let (source, target, stat) = entry::open_both(pair)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if size > 0 && file::clone_blocks(&source, &target) {
            let data = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
            self.copied.bytes += data.min(size);
            self.copied.shared += data.min(size);
        } else if size > 0 {
            let (copied, progress) = (&mut self.copied, self.progress);
            entry::data(&source, &target, size, &mut |bytes| {
                copied.bytes += bytes;
                progress(copied)
            })?;
        }
        entry::like(source.as_fd(), target.as_fd(), &stat, self.owners)
    }

    /// Names that never came: they lie outside of the tree, or the tree has changed.
    fn finish(self) -> anyhow::Result<Copied> {
        if !self.links.is_empty() {
            let times = entry::times(&rustix::fs::fstat(&self.top).context("stat the copy")?);
            removal::remove(&self.top, &self.links).context("remove the directory of links")?;
            rustix::fs::futimens(&self.top, &times).context("set times")?;
        }
        (self.progress)(&self.copied)?;
        Ok(self.copied)
    }
}

/// Of a directory that is what it was, and of which nothing was copied.
fn leave_out(above: &OwnedFd, done: &Level) -> anyhow::Result<()> {
    if !done.before.is_as_it_is() {
        return Ok(());
    }
    match rustix::fs::unlinkat(above, &done.name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOTEMPTY) => Ok(()),
        Err(error) => Err(error).context("leave a directory out"),
    }
}

pub(super) fn identity(directory: &OwnedFd) -> anyhow::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(directory).context("stat")?;
    Ok((stat.st_dev, stat.st_ino))
}

/// The directory above, if it is the one that was come from.
pub(super) fn up(directory: &OwnedFd, expected: (u64, u64)) -> anyhow::Result<OwnedFd> {
    let above = file::open_child(directory, "..".as_ref())?;
    ensure!(identity(&above)? == expected, "it was moved while it was copied");
    Ok(above)
}

fn names(directory: &OwnedFd) -> anyhow::Result<Vec<OsString>> {
    let most = usize::try_from(ENTRIES_MAX).unwrap_or(usize::MAX);
    file::names(directory, most).context("list the directory")
}

/// A descriptor of its own for the directory, readable also where the given one is O_PATH.
fn reopen(directory: BorrowedFd<'_>) -> anyhow::Result<OwnedFd> {
    file::open_child(directory, ".".as_ref()).context("open the directory")
}

fn free_name(is_free: impl Fn(&OsStr) -> bool) -> OsString {
    let mut names = (0_u64..).map(|number| OsString::from(format!(".links-{number}")));
    names.find(|name| is_free(name)).expect("there are fewer names in a directory")
}

fn kept_name((device, inode): (u64, u64)) -> String {
    format!("{device:x}-{inode:x}")
}

#[cfg(test)]
mod tests;
