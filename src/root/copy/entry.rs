//! One entry of a copied tree: its data, and everything that is known about it beside the data.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use anyhow::{Context, ensure};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::Owners;
use crate::sys::file;

/// Bytes copied between two words of progress.
const CHUNK: u64 = 8 << 20;

/// An entry of the tree and the place of its copy: a directory and a name in it, for each.
#[derive(Clone, Copy)]
pub struct Pair<'p> {
    pub from: &'p OwnedFd,
    pub name: &'p OsStr,
    pub to: &'p OwnedFd,
    pub to_name: &'p OsStr,
}

/// Opens a regular file of the tree and an empty one for its copy.
pub fn open_both(Pair { from, name, to, to_name }: Pair<'_>) -> anyhow::Result<(File, File, Stat)> {
    // What took its place since is not waited for.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOATIME;
    let source = rustix::fs::openat(from, name, flags | OFlags::CLOEXEC, Mode::empty()).context("open")?;
    let stat = rustix::fs::fstat(&source).context("stat")?;
    ensure!(FileType::from_raw_mode(stat.st_mode).is_file(), "it changed while it was copied");
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = rustix::fs::openat(to, to_name, flags, Mode::RUSR | Mode::WUSR).context("create")?;
    Ok((File::from(source), File::from(target), stat))
}

/// Copies the data and leaves the holes; `progress` hears of each piece.
pub fn data(
    from: &File,
    to: &File,
    size: u64,
    progress: &mut dyn FnMut(u64) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole is left.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error).context("find data"),
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(start)).context("find a hole")?.min(size);
        piece(from, to, start, end, progress)?;
        at = end;
    }
    to.set_len(size).context("set the size")
}

fn piece(
    from: &File,
    to: &File,
    start: u64,
    end: u64,
    progress: &mut dyn FnMut(u64) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    rustix::fs::seek(from, SeekFrom::Start(start)).context("seek")?;
    rustix::fs::seek(to, SeekFrom::Start(start)).context("seek")?;
    let mut left = end - start;
    while left > 0 {
        let part = left.min(CHUNK);
        // copy_file_range(2) where it works: the kernel copies, and some file systems share.
        let copied = io::copy(&mut io::Read::take(from, part), &mut &*to).context("write")?;
        ensure!(copied == part, "it became shorter while it was copied");
        progress(copied)?;
        left -= part;
    }
    Ok(())
}

pub fn link(pair: Pair<'_>, stat: &Stat, owners: Owners) -> anyhow::Result<()> {
    let target = rustix::fs::readlinkat(pair.from, pair.name, Vec::new()).context("read link")?;
    rustix::fs::symlinkat(OsString::from_vec(target.into_bytes()), pair.to, pair.to_name)
        .context("make link")?;
    like_by_path(pair, stat, owners)
}

/// Device nodes, whiteouts, FIFOs and sockets.
pub fn node(pair: Pair<'_>, stat: &Stat, owners: Owners) -> anyhow::Result<()> {
    let kind = FileType::from_raw_mode(stat.st_mode);
    rustix::fs::mknodat(pair.to, pair.to_name, kind, Mode::empty(), stat.st_rdev).context("make node")?;
    like_by_path(pair, stat, owners)
}

/// Owner, attributes, mode and times, in this order: a new owner takes set-id bits and
/// capabilities away.
pub fn like(from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Stat, owners: Owners) -> anyhow::Result<()> {
    let (uid, gid) = owners.of(stat)?;
    rustix::fs::fchown(to, Some(uid), Some(gid)).context("chown")?;
    let is_plain = owners == Owners::Plain;
    let attributes =
        if is_plain { Vec::new() } else { file::all_attributes(from).context("read attributes")? };
    for (name, value) in attributes {
        let value = owners.attribute(&name, value)?;
        rustix::fs::fsetxattr(to, &name, &value, XattrFlags::empty())
            .with_context(|| format!("set attribute {}", name.display()))?;
    }
    let bits = if is_plain { 0o777 } else { 0o7777 };
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & bits)).context("chmod")?;
    rustix::fs::futimens(to, &times(stat)).context("set times")
}

/// The same for what cannot be opened, or would act when it is.
fn like_by_path(pair: Pair<'_>, stat: &Stat, owners: Owners) -> anyhow::Result<()> {
    let Pair { from, name, to, to_name } = pair;
    let (uid, gid) = owners.of(stat)?;
    rustix::fs::chownat(to, to_name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).context("chown")?;
    let source = open_path(from, name)?;
    let attributes = file::attributes_by_path(&by_number(&source)).context("read attributes")?;
    let target = open_path(to, to_name)?;
    for (name, value) in attributes {
        let value = owners.attribute(&name, value)?;
        rustix::fs::setxattr(by_number(&target), &name, &value, XattrFlags::empty())
            .with_context(|| format!("set attribute {}", name.display()))?;
    }
    if !FileType::from_raw_mode(stat.st_mode).is_symlink() {
        rustix::fs::chmod(by_number(&target), Mode::from_raw_mode(stat.st_mode & 0o7777)).context("chmod")?;
    }
    rustix::fs::utimensat(to, to_name, &times(stat), AtFlags::SYMLINK_NOFOLLOW).context("set times")
}

fn open_path(directory: &OwnedFd, name: &OsStr) -> anyhow::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::empty()).context("open")
}

/// The very entry that an O_PATH descriptor stands for, also a link, for calls that want a path.
fn by_number(entry: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", entry.as_fd().as_raw_fd())
}

pub fn times(stat: &Stat) -> Timestamps {
    let time = |seconds, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}
