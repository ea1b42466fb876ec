//! What an entry has besides its contents, and setting it.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use rustix::fs::{AtFlags, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags};

use crate::root::copy::Owners;

/// The largest owner; a jail's range of ids ends there.
const ID_MAX: u64 = 65_535;

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

/// Name and value of an extended attribute.
pub type Attribute = (String, Vec<u8>);

/// Ids that no jail has are refused.
pub fn ids(metadata: Metadata) -> anyhow::Result<(Uid, Gid)> {
    let id = |id: u64| {
        ensure!(id <= ID_MAX, "its owner {id} is outside of a jail's ids, 0 to {ID_MAX}");
        u32::try_from(id).context("an id")
    };
    Ok((Uid::from_raw(id(metadata.uid)?), Gid::from_raw(id(metadata.gid)?)))
}

/// Gives an entry its owner and mode, as far as it has them not yet, and says what it was. The
/// owner first: changing it takes setuid and setgid away.
pub fn own(entry: impl AsFd, metadata: Metadata) -> anyhow::Result<Stat> {
    let (uid, gid) = ids(metadata)?;
    let stat = rustix::fs::fstat(&entry).context("stat")?;
    let is_anothers = (stat.st_uid, stat.st_gid) != (uid.as_raw(), gid.as_raw());
    if is_anothers {
        rustix::fs::fchown(&entry, Some(uid), Some(gid)).context("chown")?;
    }
    let mode = metadata.mode & 0o7777;
    if is_anothers || stat.st_mode & 0o7777 != mode {
        rustix::fs::fchmod(&entry, Mode::from(mode)).context("chmod")?;
    }
    Ok(stat)
}

/// A directory's default access list, which is set when all is in it.
const DEFAULT_LIST: &str = "system.posix_acl_default";

/// The ids in them are checked as owners are.
pub fn set_attributes(entry: impl AsFd, attributes: &[Attribute]) -> anyhow::Result<()> {
    let now = attributes.iter().filter(|(name, _)| name != DEFAULT_LIST);
    now.into_iter().try_for_each(|attribute| set_attribute(&entry, attribute))
}

pub fn set_attribute(entry: impl AsFd, (name, value): &Attribute) -> anyhow::Result<()> {
    let value = Owners::Shifted { from: 0, to: 0 }.attribute(OsStr::new(name), value.clone())?;
    rustix::fs::fsetxattr(&entry, name, &value, XattrFlags::empty())
        .with_context(|| format!("set the attribute {name}"))
}

/// The default access list that a directory is to get, with its path.
pub fn default_list(path: &Path, attributes: &[Attribute]) -> Option<(PathBuf, Attribute)> {
    let list = attributes.iter().find(|(name, _)| name == DEFAULT_LIST)?;
    Some((path.to_owned(), list.clone()))
}

pub fn chown_link(parent: BorrowedFd<'_>, name: &OsStr, metadata: Metadata) -> anyhow::Result<()> {
    let (uid, gid) = ids(metadata)?;
    rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).context("chown")
}

pub fn finish_link(parent: BorrowedFd<'_>, name: &OsStr, metadata: Metadata) -> anyhow::Result<()> {
    chown_link(parent, name, metadata)?;
    let times = times(metadata.mtime);
    rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW).context("set times")
}

pub fn times((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}
