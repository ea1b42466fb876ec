//! Shares what is the same in several layers and thick roots: files of one size are digested, and
//! the kernel itself compares those of one digest before it lets them share their blocks. So it
//! does not matter who writes to a root meanwhile.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use sha2::{Digest, Sha256};

use super::layers::tree::DEPTH_MAX;
use crate::sys::{extents, file};

/// Smaller files are kept in their directory's own blocks, or cost more to look at than they take.
const BYTES_MIN: u64 = 4096;
const NAMES_MAX: usize = 10_000_000;
const CHUNK: usize = 1 << 18;
/// A file of a tree is opened as it was found: neither through a link nor on another mount.
const FOUND: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_XDEV);

/// What was found, and what became of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shared {
    /// Files looked at.
    pub files: u64,
    /// Of these, the ones that now share the blocks of another.
    pub shared: u64,
    /// Bytes that these no longer take.
    pub saved: u64,
}

/// Whether the file system of `directory` can share blocks between files.
pub fn is_possible(directory: &Path) -> Result<bool> {
    let make = || -> rustix::io::Result<File> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(CWD, directory, flags, Mode::from(0o600))?.into())
    };
    let (one, other) = (make().context("make a file")?, make().context("make a file")?);
    rustix::io::write(&one, &[1; 4096]).context("write a file")?;
    Ok(file::clone_blocks(&one, &other))
}

struct Known {
    tree: usize,
    path: PathBuf,
    inode: u64,
}

/// Shares what is the same in `trees`, all on one file system; with `dry` only says what that
/// would be. `told` hears of bytes that have been read.
pub fn share(trees: &[PathBuf], dry: bool, told: &dyn Fn(u64)) -> Result<Shared> {
    let open =
        |path: &PathBuf| file::open_directory(path).with_context(|| format!("open {}", path.display()));
    let opened = trees.iter().map(open).collect::<Result<Vec<_>>>()?;
    let mut sizes: BTreeMap<(u64, u64), Vec<Known>> = BTreeMap::new();
    let mut done = Shared::default();
    for (tree, directory) in opened.iter().enumerate() {
        let device = rustix::fs::fstat(directory).context("stat")?.st_dev;
        let mut found = |size: u64, known: Known| {
            done.files += 1;
            sizes.entry((device, size)).or_default().push(known);
        };
        walk(directory, tree, Path::new(""), device, &mut found)
            .with_context(|| format!("look at {}", trees[tree].display()))?;
    }
    for ((_, size), mut known) in sizes {
        known.sort_by_key(|one| one.inode);
        known.dedup_by_key(|one| one.inode);
        if known.len() > 1 {
            of_one_size(&opened, size, &known, dry, told, &mut done)?;
        }
    }
    Ok(done)
}

/// The recursion is bounded by `DEPTH_MAX`.
fn walk(
    directory: &OwnedFd,
    tree: usize,
    path: &Path,
    device: u64,
    found: &mut dyn FnMut(u64, Known),
) -> Result<()> {
    ensure!(path.components().count() <= DEPTH_MAX, "{} is too deep", path.display());
    ensure!(!crate::interrupt::asked(), "interrupted");
    for name in file::names(directory, NAMES_MAX)? {
        let Ok(stat) = rustix::fs::statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        let (inner, size) = (path.join(&name), u64::try_from(stat.st_size).unwrap_or(0));
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind.is_dir() && stat.st_dev == device {
            let child = file::open_child(directory, &name)?;
            walk(&child, tree, &inner, device, found)?;
        } else if kind.is_file() && size >= BYTES_MIN && stat.st_dev == device {
            found(size, Known { tree, path: inner, inode: stat.st_ino });
        }
    }
    Ok(())
}

fn of_one_size(
    trees: &[OwnedFd],
    size: u64,
    known: &[Known],
    dry: bool,
    told: &dyn Fn(u64),
    done: &mut Shared,
) -> Result<()> {
    let mut firsts: HashMap<[u8; 32], usize> = HashMap::new();
    for (index, one) in known.iter().enumerate() {
        // What has gone, or is no file any more, is left alone.
        let Ok(opened) = reopen(trees, one) else { continue };
        let Ok(digest) = digest(&opened, told) else { continue };
        let first = *firsts.entry(digest).or_insert(index);
        if first == index {
            continue;
        }
        let Ok(source) = reopen(trees, &known[first]) else { continue };
        if extents::is_shared(&source, &opened) {
            continue;
        }
        let same = dry
            || extents::share(&source, &opened, size)
                .with_context(|| format!("share the blocks of {}", one.path.display()))?;
        if same {
            done.shared += 1;
            done.saved += size;
        }
    }
    Ok(())
}

fn reopen(trees: &[OwnedFd], known: &Known) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = file::open_inside(trees[known.tree].as_fd(), &known.path, flags, FOUND)?;
    ensure!(FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode).is_file(), "not a file any more");
    Ok(file.into())
}

fn digest(mut file: &File, told: &dyn Fn(u64)) -> Result<[u8; 32]> {
    let (mut digest, mut chunk) = (Sha256::new(), vec![0; CHUNK]);
    loop {
        ensure!(!crate::interrupt::asked(), "interrupted");
        match file.read(&mut chunk)? {
            0 => return Ok(digest.finalize().into()),
            count => {
                digest.update(&chunk[..count]);
                told(count as u64);
            }
        }
    }
}
