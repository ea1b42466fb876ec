//! What a jail has changed: its own writes decoded against its template.
//!
//! Only what the jail has written is looked at, and each entry of it is compared as the template
//! shows it and as the jail does; what is the same in both is no change. Every path is resolved
//! below a descriptor and no link is followed.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::{FileType, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::sides::Sides;
use crate::sys::file;

/// Changes told at most, and directories looked at.
const CHANGES_MAX: usize = 10_000_000;
/// Bytes compared at a time.
const CHUNK: usize = 1 << 16;
pub(super) const OPAQUE: &str = "trusted.overlay.opaque";
const INSIDE: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_XDEV);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Added,
    /// Its contents, or what it is.
    Modified,
    /// Its owner, mode, times or attributes alone.
    Metadata,
    Deleted,
}

/// One changed path, absolute as the jail sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub path: PathBuf,
    pub kind: Kind,
    /// What is there now; of what is deleted, what was there.
    pub file_type: FileType,
}

/// All changes, sorted by path.
pub fn diff(sides: &Sides) -> Result<Vec<Change>> {
    let mut walk = Walk { sides, changes: Vec::new(), pending: vec![PathBuf::new()] };
    while let Some(directory) = walk.pending.pop() {
        walk.directory(&directory).with_context(|| format!("look at /{}", directory.display()))?;
    }
    let mut changes = walk.changes;
    changes.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(changes)
}

struct Walk<'v> {
    sides: &'v Sides,
    changes: Vec<Change>,
    /// Directories that both sides have, and in which the jail has written.
    pending: Vec<PathBuf>,
}

impl Walk<'_> {
    fn directory(&mut self, directory: &Path) -> Result<()> {
        for name in self.names(directory)? {
            let path = directory.join(name);
            let before = look(self.sides.base.as_fd(), &path)?;
            let after = look(self.sides.full.as_fd(), &path)?;
            match (before, after) {
                (None, None) => {}
                (None, Some(after)) => self.added(&path, &after)?,
                (Some(before), None) => self.tell(&path, Kind::Deleted, &before)?,
                (Some(before), Some(after)) => self.both(path, &before, &after)?,
            }
        }
        Ok(())
    }

    /// What the jail itself has at a directory, and, where it hides what is below, that too.
    fn names(&self, directory: &Path) -> Result<BTreeSet<OsString>> {
        let mut names = BTreeSet::new();
        for own in &self.sides.own {
            match open(own.as_fd(), directory) {
                Ok(opened) => {
                    names.extend(list(&opened)?);
                    if is_opaque(&opened) {
                        names.extend(self.hidden(directory)?);
                        return Ok(names);
                    }
                }
                Err(Errno::NOENT) => {}
                // A file or a whiteout there hides what lies below it.
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    names.extend(self.hidden(directory)?);
                    return Ok(names);
                }
                Err(error) => return Err(error).context("open"),
            }
        }
        Ok(names)
    }

    fn hidden(&self, directory: &Path) -> Result<Vec<OsString>> {
        match open(self.sides.base.as_fd(), directory) {
            Ok(opened) => list(&opened),
            Err(_) => Ok(Vec::new()),
        }
    }

    fn both(&mut self, path: PathBuf, before: &Stat, after: &Stat) -> Result<()> {
        let (old, new) = (kind(before), kind(after));
        if old.is_dir() && new.is_dir() {
            if !same_owner(before, after) {
                self.tell(&path, Kind::Metadata, after)?;
            }
            self.pending.push(path);
            return Ok(());
        }
        if old != new || !self.same_contents(&path, before, after)? {
            self.tell(&path, Kind::Modified, after)?;
            return if new.is_dir() { self.below(&path) } else { Ok(()) };
        }
        let times = |stat: &Stat| (stat.st_mtime, stat.st_mtime_nsec);
        if !same_owner(before, after) || times(before) != times(after) || !self.same_attributes(&path)? {
            self.tell(&path, Kind::Metadata, after)?;
        }
        Ok(())
    }

    fn added(&mut self, path: &Path, stat: &Stat) -> Result<()> {
        self.tell(path, Kind::Added, stat)?;
        if kind(stat).is_dir() { self.below(path) } else { Ok(()) }
    }

    /// All below a directory that the template does not have.
    fn below(&mut self, top: &Path) -> Result<()> {
        let mut pending = vec![top.to_owned()];
        while let Some(directory) = pending.pop() {
            let opened = open(self.sides.full.as_fd(), &directory)
                .with_context(|| format!("open /{}", directory.display()))?;
            for name in list(&opened)? {
                let path = directory.join(name);
                let Some(stat) = look(self.sides.full.as_fd(), &path)? else { continue };
                self.tell(&path, Kind::Added, &stat)?;
                if kind(&stat).is_dir() {
                    pending.push(path);
                }
            }
        }
        Ok(())
    }

    fn tell(&mut self, path: &Path, kind: Kind, stat: &Stat) -> Result<()> {
        ensure!(self.changes.len() < CHANGES_MAX, "more than {CHANGES_MAX} changes");
        let file_type = FileType::from_raw_mode(stat.st_mode);
        self.changes.push(Change { path: Path::new("/").join(path), kind, file_type });
        Ok(())
    }

    fn same_contents(&self, path: &Path, before: &Stat, after: &Stat) -> Result<bool> {
        let read = |root: &OwnedFd| -> Result<File> {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
            Ok(file::open_inside(root.as_fd(), path, flags, INSIDE)?.into())
        };
        match kind(after) {
            FileType::RegularFile if before.st_size != after.st_size => Ok(false),
            FileType::RegularFile => equal(read(&self.sides.base)?, read(&self.sides.full)?),
            FileType::Symlink => Ok(target(&self.sides.base, path)? == target(&self.sides.full, path)?),
            _ => Ok(before.st_rdev == after.st_rdev),
        }
    }

    /// Those of the jail's own making: the overlay keeps its own to itself.
    fn same_attributes(&self, path: &Path) -> Result<bool> {
        let read = |root: &OwnedFd| -> Result<Vec<(OsString, Vec<u8>)>> {
            let entry = file::open_inside(root.as_fd(), path, OFlags::PATH | OFlags::NOFOLLOW, INSIDE)?;
            let name = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&entry));
            let mut all = file::attributes_by_path(&name)?;
            all.retain(|(name, _)| !name.to_string_lossy().starts_with("trusted.overlay."));
            all.sort();
            Ok(all)
        };
        Ok(read(&self.sides.base)? == read(&self.sides.full)?)
    }
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn same_owner(one: &Stat, two: &Stat) -> bool {
    (one.st_mode, one.st_uid, one.st_gid) == (two.st_mode, two.st_uid, two.st_gid)
}

/// No link on the way, or at the end, is followed.
fn look(root: BorrowedFd<'_>, path: &Path) -> Result<Option<Stat>> {
    match file::open_inside(root, path, OFlags::PATH | OFlags::NOFOLLOW, INSIDE) {
        Ok(entry) => Ok(Some(rustix::fs::fstat(&entry).context("stat")?)),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            _ => Err(error).with_context(|| format!("open /{}", path.display())),
        },
    }
}

fn open(root: BorrowedFd<'_>, directory: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW;
    file::open_inside(root, directory, flags, INSIDE)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

fn list(directory: &OwnedFd) -> Result<Vec<OsString>> {
    file::names(directory, CHANGES_MAX).context("list")
}

pub(super) fn is_opaque(directory: &OwnedFd) -> bool {
    let mut value = [0_u8; 8];
    matches!(rustix::fs::fgetxattr(directory, OPAQUE, &mut value[..]), Ok(1) if value[0] == b'y')
}

fn target(root: &OwnedFd, path: &Path) -> Result<Vec<u8>> {
    let link = file::open_inside(root.as_fd(), path, OFlags::PATH | OFlags::NOFOLLOW, INSIDE)?;
    Ok(rustix::fs::readlinkat(&link, OsStr::new(""), Vec::new()).context("read link")?.into_bytes())
}

fn equal(mut one: File, mut two: File) -> Result<bool> {
    let (mut a, mut b) = (vec![0; CHUNK], vec![0; CHUNK]);
    loop {
        let length = one.read(&mut a).context("read")?;
        if length == 0 {
            return Ok(two.read(&mut b).context("read")? == 0);
        }
        match two.read_exact(&mut b[..length]) {
            Ok(()) if a[..length] == b[..length] => {}
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error).context("read"),
        }
    }
}
