//! A fresh tree that is filled from somewhere: every path is resolved inside its root, and what
//! it may cost is bounded.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::sys::file;

/// Entries of one layer.
pub const ENTRIES_MAX: u64 = 2_000_000;
/// Bytes of one layer, zeros of sparse files counted.
pub const BYTES_MAX: u64 = 64 << 30;
/// Components of one path.
pub const DEPTH_MAX: usize = 128;
/// Bytes of one path or link target, PATH_MAX without its end.
pub const PATH_BYTES_MAX: usize = 4095;
/// Bytes of one component, NAME_MAX.
pub const NAME_BYTES_MAX: usize = 255;
/// How long one layer may take to build.
pub const BUILD_TIME_MAX: Duration = Duration::from_mins(30);
/// The largest owner; a jail's range of ids ends there.
pub const ID_MAX: u64 = 65_535;
/// Bytes copied between two looks at the clock.
const CHUNK: u64 = 4 << 20;

/// What one layer may still use up.
#[derive(Debug)]
pub struct Budget {
    pub entries: u64,
    pub bytes: u64,
    pub deadline: Instant,
}

impl Default for Budget {
    fn default() -> Self {
        Self { entries: ENTRIES_MAX, bytes: BYTES_MAX, deadline: Instant::now() + BUILD_TIME_MAX }
    }
}

impl Budget {
    pub fn entry(&mut self) -> anyhow::Result<()> {
        ensure!(self.entries > 0, "more than {ENTRIES_MAX} entries");
        self.entries -= 1;
        self.in_time()
    }

    pub fn bytes(&mut self, count: u64) -> anyhow::Result<()> {
        ensure!(count <= self.bytes, "more than {BYTES_MAX} bytes");
        self.bytes -= count;
        self.in_time()
    }

    fn in_time(&self) -> anyhow::Result<()> {
        ensure!(Instant::now() < self.deadline, "takes more than {} s", BUILD_TIME_MAX.as_secs());
        Ok(())
    }
}

/// Owner, mode and time of an entry; ids are those inside a jail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    /// Seconds and nanoseconds since the epoch.
    pub mtime: (i64, u32),
}

pub struct Tree {
    root: OwnedFd,
    pub budget: Budget,
    /// The directory of the last entry, for the next is mostly beside it.
    last: Option<(PathBuf, OwnedFd)>,
    /// Directories get their times last, for each entry made in them changes these.
    directories: Vec<(PathBuf, (i64, u32))>,
}

impl Tree {
    /// `root` is an empty directory that nobody else writes to.
    pub fn new(root: OwnedFd) -> Self {
        Self { root, budget: Budget::default(), last: None, directories: Vec::new() }
    }

    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Makes a directory, or gives the one that is there its owner and mode.
    pub fn directory(&mut self, path: &Path, metadata: Metadata) -> anyhow::Result<()> {
        self.budget.entry()?;
        let path = inside(path)?;
        if path.as_os_str().is_empty() {
            own(&self.root, metadata)?;
        } else {
            let (parent, name) = self.place(&path)?;
            if !is_directory(parent, &name)? {
                self.make_way(&path)?;
                let (parent, name) = self.place(&path)?;
                rustix::fs::mkdirat(parent, &name, Mode::from(0o700)).context("make directory")?;
            }
            let (parent, name) = self.place(&path)?;
            own(&file::open_child(parent, &name)?, metadata)?;
        }
        self.directories.push((path, metadata.mtime));
        Ok(())
    }

    /// Makes a regular file of `size` bytes from `contents`.
    pub fn file(
        &mut self,
        path: &Path,
        metadata: Metadata,
        size: u64,
        contents: &mut dyn Read,
    ) -> anyhow::Result<File> {
        ensure!(size <= self.budget.bytes, "more than {BYTES_MAX} bytes");
        let file = self.create(path)?;
        let mut left = size;
        while left > 0 {
            let part = left.min(CHUNK);
            let copied = self.part(contents, &file, part)?;
            ensure!(copied == part, "ends after {} of {size} bytes", size - left + copied);
            left -= part;
        }
        finish(&file, metadata)?;
        Ok(file)
    }

    /// Makes a regular file with the contents of an open one, sharing blocks where that is possible.
    pub fn copy(&mut self, path: &Path, metadata: Metadata, source: &File) -> anyhow::Result<File> {
        let file = self.create(path)?;
        if file::clone_blocks(source, &file) {
            self.budget.bytes(file.metadata().context("stat")?.len())?;
        } else {
            let mut rest = source;
            while self.part(&mut rest, &file, CHUNK)? == CHUNK {}
        }
        finish(&file, metadata)?;
        Ok(file)
    }

    /// Copies up to `most` bytes and says how many there were.
    fn part(&mut self, from: &mut dyn Read, to: &File, most: u64) -> anyhow::Result<u64> {
        self.budget.bytes(0)?;
        let copied = io::copy(&mut from.take(most), &mut &*to).context("write")?;
        self.budget.bytes(copied)?;
        Ok(copied)
    }

    fn create(&mut self, path: &Path) -> anyhow::Result<File> {
        self.budget.entry()?;
        let path = inside(path)?;
        self.make_way(&path)?;
        let (parent, name) = self.place(&path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::openat(parent, &name, flags, Mode::from(0o600)).context("create")?))
    }

    pub fn link(&mut self, path: &Path, target: &Path, metadata: Metadata) -> anyhow::Result<()> {
        self.budget.entry()?;
        let length = target.as_os_str().len();
        ensure!(length > 0 && length <= PATH_BYTES_MAX, "a link target has 1 to {PATH_BYTES_MAX} bytes");
        let path = inside(path)?;
        self.make_way(&path)?;
        let (parent, name) = self.place(&path)?;
        rustix::fs::symlinkat(target, parent, &name).context("make link")?;
        let (uid, gid) = ids(metadata)?;
        rustix::fs::chownat(parent, &name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .context("chown")?;
        let times = times(metadata.mtime);
        Ok(rustix::fs::utimensat(parent, &name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Gives the entry at `target`, which is in the tree already, a second name.
    pub fn hard_link(&mut self, path: &Path, target: &Path) -> anyhow::Result<()> {
        self.budget.entry()?;
        let (path, target) = (inside(path)?, inside(target)?);
        let (directory, name) = split(&target)?;
        let directory =
            file::open_inside(self.root(), directory, OFlags::PATH | OFlags::DIRECTORY, file::INSIDE)
                .context("hard link to what is not there")?;
        if path == target {
            return Ok(());
        }
        self.make_way(&path)?;
        let (parent, own_name) = self.place(&path)?;
        rustix::fs::linkat(&directory, name, parent, &own_name, AtFlags::empty())
            .with_context(|| format!("hard link to {}", target.display()))
    }

    /// Gives directories their times, and puts all on the disk.
    pub fn finish(mut self) -> anyhow::Result<OwnedFd> {
        while let Some((path, mtime)) = self.directories.pop() {
            let directory = file::open_inside(self.root(), &path, OFlags::DIRECTORY, file::INSIDE);
            let Ok(directory) = directory else { continue };
            rustix::fs::futimens(&directory, &times(mtime)).context("set times")?;
        }
        rustix::fs::syncfs(&self.root).context("sync the file system")?;
        Ok(self.root)
    }

    /// The open parent of `path` and its last component; missing parents are made.
    fn place(&mut self, path: &Path) -> anyhow::Result<(BorrowedFd<'_>, OsString)> {
        let (directory, name) = split(path)?;
        let known = self.last.as_ref().is_some_and(|(last, _)| last == directory);
        if !known {
            let opened = self.open_or_make(directory)?;
            self.last = Some((directory.to_owned(), opened));
        }
        let (_, parent) = self.last.as_ref().expect("it was set just now");
        Ok((parent.as_fd(), name.to_owned()))
    }

    fn open_or_make(&mut self, directory: &Path) -> anyhow::Result<OwnedFd> {
        let open = |root| file::open_inside(root, directory, OFlags::DIRECTORY, file::INSIDE);
        match open(self.root()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other.with_context(|| format!("open {}", directory.display())),
        }
        // The depth of a path is bounded, and so is this recursion.
        let (above, name) = split(directory)?;
        let above = self.open_or_make(above)?;
        rustix::fs::mkdirat(&above, name, Mode::from(0o755))
            .with_context(|| format!("make directory {}", directory.display()))?;
        let made = file::open_child(&above, name)?;
        own(&made, Metadata { mode: 0o755, ..Metadata::default() })?;
        Ok(made)
    }

    /// Removes what stands in the place of a new entry, as a later entry of an archive wins.
    fn make_way(&mut self, path: &Path) -> anyhow::Result<()> {
        let (parent, name) = self.place(path)?;
        match rustix::fs::unlinkat(parent, &name, AtFlags::empty()) {
            // A link may have been part of the way to the directory that is kept open.
            Ok(()) => self.last = None,
            Err(Errno::NOENT) => {}
            Err(Errno::ISDIR) => bail!("takes the place of a directory"),
            Err(error) => return Err(error).context("remove what was there"),
        }
        Ok(())
    }
}

/// `path` relative to the root, without `.`; `..` and absurd lengths are refused.
pub fn inside(path: &Path) -> anyhow::Result<PathBuf> {
    ensure!(path.as_os_str().len() <= PATH_BYTES_MAX, "the path has more than {PATH_BYTES_MAX} bytes");
    let mut clean = PathBuf::new();
    let mut depth = 0;
    for part in path.components() {
        match part {
            Component::ParentDir => bail!("the path goes through `..`"),
            Component::Normal(name) => {
                ensure!(name.len() <= NAME_BYTES_MAX, "a name has more than {NAME_BYTES_MAX} bytes");
                depth += 1;
                clean.push(name);
            }
            _ => {}
        }
    }
    ensure!(depth <= DEPTH_MAX, "the path is more than {DEPTH_MAX} directories deep");
    Ok(clean)
}

fn split(path: &Path) -> anyhow::Result<(&Path, &OsStr)> {
    let name = path.file_name().context("the path is the root itself")?;
    Ok((path.parent().unwrap_or(Path::new("")), name))
}

fn is_directory(parent: BorrowedFd<'_>, name: &OsStr) -> anyhow::Result<bool> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir()),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error).context("stat"),
    }
}

fn ids(metadata: Metadata) -> anyhow::Result<(Uid, Gid)> {
    let id = |id: u64| {
        ensure!(id <= ID_MAX, "its owner {id} is outside of a jail's ids, 0 to {ID_MAX}");
        u32::try_from(id).context("an id")
    };
    Ok((Uid::from_raw(id(metadata.uid)?), Gid::from_raw(id(metadata.gid)?)))
}

/// The owner first: changing it takes setuid and setgid away.
fn own(entry: impl AsFd, metadata: Metadata) -> anyhow::Result<()> {
    let (uid, gid) = ids(metadata)?;
    rustix::fs::fchown(&entry, Some(uid), Some(gid)).context("chown")?;
    rustix::fs::fchmod(&entry, Mode::from(metadata.mode & 0o7777)).context("chmod")
}

fn finish(file: &File, metadata: Metadata) -> anyhow::Result<()> {
    own(file, metadata)?;
    rustix::fs::futimens(file, &times(metadata.mtime)).context("set times")
}

fn times((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}
