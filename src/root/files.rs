//! The files stockade owns inside a jail's root: writes them whole, and sees when they were changed.
//!
//! The root is given by descriptor: the jail's merged root, `/proc/PID/root`. No path leaves it or
//! enters another mount, and no link is followed at a file's own name. Files are not synced: each
//! start writes them anew.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use crate::desired::RootFile;
use crate::live::FileStamp;
use crate::sys::file::{self, as_owner};
use crate::template::hex;

/// Names tried for the new file beside the old one; a jail may have taken some to annoy us.
const NAMES_TRIED_MAX: u32 = 16;
/// Ids of one jail.
const IDS: u32 = 65_536;

/// Names a file's contents, mode and owner.
pub fn digest(file: &RootFile) -> String {
    digest_of(&file.contents, file.mode, file.uid, file.gid)
}

fn digest_of(contents: &[u8], mode: u32, uid: u32, gid: u32) -> String {
    let mut digest = Sha256::new();
    digest.update(format!("{:o} {uid} {gid}\n", mode & 0o7777));
    digest.update(contents);
    format!("sha256-{}", hex(&digest.finalize()))
}

/// Writes `files` below `root`, the merged root of a jail whose ids begin at `first_id`. Each
/// replaces at once what had its name, unless that is a directory; missing directories above it
/// are made. Gives the stamp of each by target.
pub fn write(
    root: BorrowedFd<'_>,
    files: &[RootFile],
    first_id: u32,
) -> anyhow::Result<BTreeMap<PathBuf, FileStamp>> {
    let mut stamps = BTreeMap::new();
    for file in files {
        let stamp = write_as_needed(root, file, first_id)
            .with_context(|| format!("write {}", file.target.display()))?;
        stamps.insert(file.target.clone(), stamp);
    }
    Ok(stamps)
}

/// In a root whose ids are mapped, that of a jail without an overlay, the host's root is nobody and
/// can make nothing: there it is made as the jail's.
fn write_as_needed(root: BorrowedFd<'_>, file: &RootFile, first_id: u32) -> anyhow::Result<FileStamp> {
    let written = write_one(root, file, first_id);
    let is_nobody = |error: &anyhow::Error| error.root_cause().downcast_ref() == Some(&Errno::OVERFLOW);
    if written.as_ref().err().is_some_and(is_nobody) {
        return as_owner(first_id, || write_one(root, file, first_id))?;
    }
    written
}

fn write_one(root: BorrowedFd<'_>, file: &RootFile, first_id: u32) -> anyhow::Result<FileStamp> {
    ensure!(file.uid < IDS && file.gid < IDS, "its owner is outside of the jail's {IDS} ids");
    let name = file.target.file_name().context("it has no name")?;
    let directory = parent(root, file.target.parent().unwrap_or(Path::new("/")), first_id)?;
    let (mut new, new_name) = create_beside(&directory, name)?;
    let stamp = fill(&mut new, file, first_id).and_then(|()| {
        rustix::fs::renameat(&directory, &new_name, &directory, name).context("rename into place")?;
        stamp(&new, file)
    });
    if stamp.is_err() {
        // The first error is the one to tell; the name is gone already if the rename was done.
        let _ = rustix::fs::unlinkat(&directory, &new_name, AtFlags::empty());
    }
    stamp
}

/// Makes an empty file for the host's root alone, with a name that `name` cannot have guessed.
pub(super) fn create_beside(directory: impl AsFd, name: &OsStr) -> anyhow::Result<(File, OsString)> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let create = |free: &OsStr| rustix::fs::openat(&directory, free, flags, Mode::from(0o600));
    let (file, free) = beside(name, create).context("create")?;
    Ok((File::from(file), free))
}

/// Makes something with a name that nobody has and nobody could have guessed, and gives that name.
pub(super) fn beside<T>(
    name: &OsStr,
    make: impl Fn(&OsStr) -> Result<T, Errno>,
) -> anyhow::Result<(T, OsString)> {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    for attempt in 0..NAMES_TRIED_MAX {
        let mut digest = Sha256::new();
        digest.update(name.as_bytes());
        digest.update(format!("{}.{} {attempt}", now.tv_sec, now.tv_nsec));
        let free = OsString::from(format!(".stockade-{}", &hex(&digest.finalize())[..16]));
        match make(&free) {
            Err(Errno::EXIST) => {}
            other => return Ok((other?, free)),
        }
    }
    anyhow::bail!("{NAMES_TRIED_MAX} names beside it are taken")
}

/// The mode goes last, for changing the owner takes setuid away.
fn fill(new: &mut File, file: &RootFile, first_id: u32) -> anyhow::Result<()> {
    new.write_all(&file.contents).context("write the contents")?;
    let (uid, gid) = (Uid::from_raw(first_id + file.uid), Gid::from_raw(first_id + file.gid));
    rustix::fs::fchown(&*new, Some(uid), Some(gid)).context("chown")?;
    rustix::fs::fchmod(&*new, Mode::from(file.mode & 0o7777)).context("chmod")
}

fn stamp(new: &File, file: &RootFile) -> anyhow::Result<FileStamp> {
    let stat = rustix::fs::fstat(new).context("stat")?;
    Ok(FileStamp { digest: digest(file), ..seen(&stat) })
}

/// What a stamp holds beside the digest.
fn seen(stat: &Stat) -> FileStamp {
    FileStamp {
        digest: String::new(),
        inode: stat.st_ino,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        ctime_ns: i128::from(stat.st_ctime) * 1_000_000_000 + i128::from(stat.st_ctime_nsec),
    }
}

/// Opens a directory of the merged root; what is missing of it is made for the jail's root user.
fn parent(root: BorrowedFd<'_>, directory: &Path, first_id: u32) -> anyhow::Result<OwnedFd> {
    match file::open_inside(root, directory, OFlags::DIRECTORY, file::INSIDE_ONE) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other.with_context(|| format!("open {}", directory.display())),
    }
    let name = directory.file_name().context("the root is not there")?;
    let above = parent(root, directory.parent().unwrap_or(Path::new("/")), first_id)?;
    make_directory(&above, name, 0o755, first_id, first_id)
        .with_context(|| format!("make directory {}", directory.display()))
}

/// Makes the directory `name` with its mode and owner, which are those of the host.
pub(super) fn make_directory(
    above: impl AsFd,
    name: &OsStr,
    mode: u32,
    uid: u32,
    gid: u32,
) -> anyhow::Result<OwnedFd> {
    rustix::fs::mkdirat(&above, name, Mode::from(0o700)).context("mkdir")?;
    let directory = file::open_child(&above, name).context("open")?;
    rustix::fs::fchown(&directory, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).context("chown")?;
    rustix::fs::fchmod(&directory, Mode::from(mode & 0o7777)).context("chmod")?;
    Ok(directory)
}

/// The targets that are no longer as they were written: one openat2(2) each, and the contents are
/// read only where inode, size or ctime differ. `first_id` as in [`write`].
pub fn changed(
    root: BorrowedFd<'_>,
    stamps: &BTreeMap<PathBuf, FileStamp>,
    first_id: u32,
) -> BTreeSet<PathBuf> {
    let differs =
        |target: &Path, stamp: &FileStamp| !is_as_written(root, target, stamp, first_id).unwrap_or(false);
    stamps.iter().filter(|(target, stamp)| differs(target, stamp)).map(|(target, _)| target.clone()).collect()
}

/// An error means that it cannot be looked at, so it is not as it was written.
fn is_as_written(
    root: BorrowedFd<'_>,
    target: &Path,
    stamp: &FileStamp,
    first_id: u32,
) -> anyhow::Result<bool> {
    let found = file::open_inside(root, target, OFlags::PATH | OFlags::NOFOLLOW, file::INSIDE_ONE)?;
    let stat = rustix::fs::fstat(&found)?;
    let now = seen(&stat);
    if (now.inode, now.size, now.ctime_ns) == (stamp.inode, stamp.size, stamp.ctime_ns) {
        return Ok(true);
    }
    if !FileType::from_raw_mode(stat.st_mode).is_file() || now.size != stamp.size {
        return Ok(false);
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = File::from(file::open_inside(root, target, flags, file::INSIDE_ONE)?);
    let stat = rustix::fs::fstat(&opened)?;
    ensure!(FileType::from_raw_mode(stat.st_mode).is_file(), "it was swapped while it was looked at");
    let mut contents = Vec::new();
    opened.take(stamp.size + 1).read_to_end(&mut contents)?;
    let (Some(uid), Some(gid)) = (stat.st_uid.checked_sub(first_id), stat.st_gid.checked_sub(first_id))
    else {
        return Ok(false);
    };
    Ok(digest_of(&contents, stat.st_mode, uid, gid) == stamp.digest)
}

#[cfg(test)]
mod tests;
