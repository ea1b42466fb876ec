//! Finds and makes directories in the upper directory of an overlay that is not mounted, as they
//! would be found and made in the merged root.
//!
//! A directory made blindly in the upper would hide a link of the layers (`/var/run -> /run`) and
//! the mode of a directory there (`/root` is 0700, `/tmp` is sticky). So each component is looked
//! up from the top down as overlayfs does, with its whiteouts and opaque directories.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail, ensure};
use rustix::fs::{AtFlags, FileType, OFlags, ResolveFlags, Stat, XattrFlags};
use rustix::io::Errno;

use super::files::make_directory;
use crate::sys::file;

/// Links followed in one path, as the kernel does.
const LINKS_MAX: usize = 40;
/// Components of one path, all its links followed.
const PARTS_MAX: usize = 1024;
/// The mark of a directory that shows nothing of the layers below it, in both its spellings.
const OPAQUE: [&str; 2] = ["trusted.overlay.opaque", "user.overlay.opaque"];

/// An upper directory and the layers below it.
pub struct Merged<'u> {
    upper: BorrowedFd<'u>,
    layers: Vec<OwnedFd>,
    first_id: u32,
}

enum Found {
    Directory,
    Link(PathBuf),
    Missing,
}

impl<'u> Merged<'u> {
    /// `layers` are topmost first, owned by ids inside a jail; `first_id` is the jail's first.
    pub fn open(upper: BorrowedFd<'u>, layers: &[PathBuf], first_id: u32) -> anyhow::Result<Self> {
        let open =
            |path: &PathBuf| file::open_directory(path).with_context(|| format!("open {}", path.display()));
        Ok(Self { upper, layers: layers.iter().map(open).collect::<anyhow::Result<_>>()?, first_id })
    }

    /// Opens in the upper what `path` leads to in the merged root; makes what is missing of it.
    pub fn directory(&self, path: &Path) -> anyhow::Result<OwnedFd> {
        let resolved = self.resolve(path).with_context(|| format!("resolve {}", path.display()))?;
        let mut at = file::open_inside(self.upper, Path::new("."), OFlags::DIRECTORY, file::INSIDE_ONE)?;
        let mut so_far = PathBuf::new();
        for name in &resolved {
            so_far.push(name);
            at = match file::open_child(&at, name) {
                Ok(child) => child,
                Err(_) => self
                    .make(&at, name, &so_far)
                    .with_context(|| format!("make directory {}", so_far.display()))?,
            };
        }
        Ok(at)
    }

    /// The path without links, as components below the root.
    fn resolve(&self, path: &Path) -> anyhow::Result<Vec<OsString>> {
        let mut pending: VecDeque<OsString> = parts(path).collect();
        let mut resolved: Vec<OsString> = Vec::new();
        let mut links = 0;
        while let Some(part) = pending.pop_front() {
            if part == ".." {
                resolved.pop();
                continue;
            }
            resolved.push(part);
            if let Found::Link(target) = self.look(&resolved.iter().collect::<PathBuf>())? {
                links += 1;
                ensure!(links <= LINKS_MAX, "more than {LINKS_MAX} links");
                resolved.pop();
                if target.is_absolute() {
                    resolved.clear();
                }
                parts(&target)
                    .collect::<Vec<_>>()
                    .into_iter()
                    .rev()
                    .for_each(|part| pending.push_front(part));
            }
            ensure!(resolved.len() + pending.len() <= PARTS_MAX, "more than {PARTS_MAX} directories");
        }
        Ok(resolved)
    }

    /// What the merged root shows at a path whose directories are no links.
    fn look(&self, path: &Path) -> anyhow::Result<Found> {
        for source in self.sources() {
            let Some((entry, stat)) = lookup(source, path)? else {
                if hides(source, path)? {
                    return Ok(Found::Missing);
                }
                continue;
            };
            return match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => Ok(Found::Directory),
                FileType::Symlink => {
                    let target = rustix::fs::readlinkat(&entry, "", Vec::new()).context("read link")?;
                    Ok(Found::Link(PathBuf::from(OsString::from_vec(target.into_bytes()))))
                }
                FileType::CharacterDevice if stat.st_rdev == 0 => Ok(Found::Missing),
                _ => bail!("{} is not a directory", path.display()),
            };
        }
        Ok(Found::Missing)
    }

    fn sources(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.upper).chain(self.layers.iter().map(AsFd::as_fd))
    }

    /// Makes one directory of the upper, like the one of the layers that it is merged with.
    fn make(&self, above: &OwnedFd, name: &OsStr, path: &Path) -> anyhow::Result<OwnedFd> {
        let below = if hides(self.upper, path)? { None } else { self.below(path)? };
        let was_removed = match rustix::fs::unlinkat(above, name, AtFlags::empty()) {
            Ok(()) => true,
            Err(Errno::NOENT) => false,
            Err(error) => return Err(error).context("remove the whiteout"),
        };
        let (mode, uid, gid) = match below {
            Some(stat) if !was_removed => (stat.st_mode, stat.st_uid, stat.st_gid),
            _ => (0o755, 0, 0),
        };
        let directory = make_directory(above, name, mode, self.first_id + uid, self.first_id + gid)?;
        if was_removed {
            mark_opaque(&directory)?;
        }
        Ok(directory)
    }

    /// The directory that the layers show at `path`.
    fn below(&self, path: &Path) -> anyhow::Result<Option<Stat>> {
        for layer in &self.layers {
            match lookup(layer.as_fd(), path)? {
                Some((_, stat)) => return Ok(FileType::from_raw_mode(stat.st_mode).is_dir().then_some(stat)),
                None if hides(layer.as_fd(), path)? => return Ok(None),
                None => {}
            }
        }
        Ok(None)
    }
}

fn parts(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    })
}

/// The entry at `path` of one directory tree, no link followed; nothing where there is none.
fn lookup(source: BorrowedFd<'_>, path: &Path) -> anyhow::Result<Option<(OwnedFd, Stat)>> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    match file::open_inside(source, path, OFlags::PATH | OFlags::NOFOLLOW, resolve) {
        Ok(entry) => {
            let stat = rustix::fs::fstat(&entry).context("stat")?;
            Ok(Some((entry, stat)))
        }
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            _ => Err(error).with_context(|| format!("open {}", path.display())),
        },
    }
}

/// Whether this tree hides what the trees below it have at `path`: by something that is no
/// directory on the way, or by an opaque directory.
fn hides(source: BorrowedFd<'_>, path: &Path) -> anyhow::Result<bool> {
    let mut above = PathBuf::new();
    let Some(parent) = path.parent() else { return Ok(false) };
    for part in parent.components() {
        above.push(part);
        let Some((_, stat)) = lookup(source, &above)? else { return Ok(false) };
        if !FileType::from_raw_mode(stat.st_mode).is_dir() {
            return Ok(true);
        }
        let directory = file::open_inside(source, &above, OFlags::DIRECTORY, file::INSIDE_ONE)?;
        if OPAQUE.iter().any(|name| rustix::fs::fgetxattr(&directory, *name, &mut [0_u8; 8][..]).is_ok()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Which of the two spellings counts depends on how the overlay is mounted.
fn mark_opaque(directory: &OwnedFd) -> anyhow::Result<()> {
    for name in OPAQUE {
        rustix::fs::fsetxattr(directory, name, b"y", XattrFlags::empty())
            .with_context(|| format!("set {name}"))?;
    }
    Ok(())
}
