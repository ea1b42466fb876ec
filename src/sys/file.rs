//! Files below a root that is given by a descriptor: every path is resolved inside that root.
//!
//! Thin: openat2(2), flock(2), setfsuid(2), FICLONE and directory listing, each with its own name.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::{CWD, Dir, FlockOperation, Mode, OFlags, ResolveFlags};
use rustix::thread::CapabilitiesSecureBits;

/// openat2(2) asks for another try when a rename raced with `..`; more than this is an attack.
const AGAIN_MAX: u32 = 64;

/// How paths below a root are resolved: absolute links and `..` end at the root, and the links of
/// /proc that lead to other places are refused.
pub const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// The same, and no mount below the root is entered.
pub const INSIDE_ONE: ResolveFlags = INSIDE.union(ResolveFlags::NO_XDEV);

/// Runs `make` in this thread with `id` as the owner of what it makes, and all rights as before.
pub fn as_owner<T>(id: u32, make: impl FnOnce() -> T) -> rustix::io::Result<T> {
    let before = rustix::thread::capabilities_secure_bits()?;
    // Else the rights to files would go with the user.
    rustix::thread::set_capabilities_secure_bits(before | CapabilitiesSecureBits::NO_SETUID_FIXUP)?;
    let user = nix::unistd::setfsuid(id.into());
    let group = nix::unistd::setfsgid(id.into());
    let result = make();
    nix::unistd::setfsgid(group);
    nix::unistd::setfsuid(user);
    rustix::thread::set_capabilities_secure_bits(before)?;
    Ok(result)
}

/// Opens the directory at a path of the host; a link in its last place is refused.
pub fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
}

/// Opens `name`, one component, in `directory` as a directory; a link is refused.
pub fn open_child(directory: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(directory, name, flags, Mode::empty())?)
}

/// Opens `path` below `root`. An absolute path begins at the root too.
pub fn open_inside(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    resolve: ResolveFlags,
) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    for _ in 0..AGAIN_MAX {
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
    Err(rustix::io::Errno::AGAIN.into())
}

/// The names in a directory, without `.` and `..`, at most `limit` of them, in no order.
pub fn names(directory: impl AsFd, limit: usize) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    let mut listing = Dir::read_from(directory)?;
    while let Some(entry) = listing.read() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name.to_vec()));
        }
        if names.len() >= limit {
            break;
        }
    }
    Ok(names)
}

/// Takes the whole file's lock, if nobody else has it.
pub fn try_lock(file: impl AsFd) -> io::Result<bool> {
    let take = || rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
    match rustix::io::retry_on_intr(take) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Shares the blocks of `from` with `to` where the file system can; false where it cannot.
pub fn clone_blocks(from: &File, to: &File) -> bool {
    rustix::fs::ioctl_ficlone(to, from).is_ok()
}

/// The extended attributes of an open file whose names begin with `prefix`.
pub fn attributes(file: &File, prefix: &str) -> io::Result<Vec<(OsString, Vec<u8>)>> {
    let mut list = vec![0; rustix::fs::flistxattr_query(file)?];
    let length = if list.is_empty() { 0 } else { rustix::fs::flistxattr(file, list.as_mut_slice())? };
    let mut found = Vec::new();
    for name in list[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty() && name.starts_with(prefix.as_bytes()))
    {
        let c_name = CString::new(name)?;
        let mut value = vec![0; rustix::fs::fgetxattr_query(file, &c_name)?];
        if !value.is_empty() {
            let length = rustix::fs::fgetxattr(file, &c_name, value.as_mut_slice())?;
            value.truncate(length);
        }
        found.push((OsStr::from_bytes(name).to_owned(), value));
    }
    Ok(found)
}

/// Every extended attribute of an open file or directory.
pub fn all_attributes(file: BorrowedFd<'_>) -> io::Result<Vec<(OsString, Vec<u8>)>> {
    every(|list| rustix::fs::flistxattr(file, list), |name, value| rustix::fs::fgetxattr(file, name, value))
}

/// Every extended attribute of what is at `path`.
pub fn attributes_by_path(path: &str) -> io::Result<Vec<(OsString, Vec<u8>)>> {
    every(|list| rustix::fs::listxattr(path, list), |name, value| rustix::fs::getxattr(path, name, value))
}

/// What a list of names, and one value, can be at most; linux/limits.h.
const ATTRIBUTE_BYTES_MAX: usize = 65_536;

fn every(
    list: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
    get: impl Fn(&std::ffi::CStr, &mut [u8]) -> rustix::io::Result<usize>,
) -> io::Result<Vec<(OsString, Vec<u8>)>> {
    // Not asked for its length first: Linux 6.18 leaves ACLs out of that.
    let names = match grown(list) {
        Err(rustix::io::Errno::NOTSUP) => return Ok(Vec::new()),
        other => other?,
    };
    let mut found = Vec::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let c_name = CString::new(name)?;
        found.push((OsStr::from_bytes(name).to_owned(), grown(|value| get(&c_name, value))?));
    }
    Ok(found)
}

/// What `fill` writes, into a buffer that is mostly large enough and else the largest.
fn grown(fill: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0; 512];
    let length = loop {
        match fill(&mut buffer) {
            Err(rustix::io::Errno::RANGE) if buffer.len() < ATTRIBUTE_BYTES_MAX => {
                buffer.resize(ATTRIBUTE_BYTES_MAX, 0);
            }
            other => break other?,
        }
    };
    buffer.truncate(length);
    Ok(buffer)
}
