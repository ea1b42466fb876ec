//! Subvolumes of btrfs and how much each may take, btrfs(5), by the calls of linux/btrfs.h.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use super::checked;

const RESIZE: libc::Ioctl = 0x5000_9403;
const SUBVOL_CREATE: libc::Ioctl = 0x5000_940e;
const SNAP_DESTROY: libc::Ioctl = 0x5000_940f;
const TREE_SEARCH: libc::Ioctl = 0xd000_9411_u32 as libc::Ioctl;
const INO_LOOKUP: libc::Ioctl = 0xd000_9412_u32 as libc::Ioctl;
const QGROUP_CREATE: libc::Ioctl = 0x4010_942a;
const QGROUP_LIMIT: libc::Ioctl = 0x8030_942b_u32 as libc::Ioctl;

const NAME_BYTES: usize = 4088;
const FOUND_BYTES: usize = 3992;
/// The inode of a subvolume's top.
const TOP_INODE: u64 = 256;
const QUOTA_TREE: u64 = 8;
const QGROUP_STATUS: u32 = 240;
const QGROUP_INFO: u32 = 242;
const QGROUP_LIMITS: u32 = 244;
const STATUS_ON: u64 = 1;
const STATUS_INCONSISTENT: u64 = 4;
const STATUS_SIMPLE: u64 = 8;
const LIMIT_REFERENCED: u64 = 1;

#[repr(C)]
struct Named {
    descriptor: i64,
    name: [u8; NAME_BYTES],
}

#[repr(C)]
struct Lookup {
    tree: u64,
    inode: u64,
    name: [u8; 4080],
}

#[repr(C)]
struct Search {
    tree: u64,
    objects: [u64; 2],
    offsets: [u64; 2],
    transactions: [u64; 2],
    kinds: [u32; 2],
    items: u32,
    unused: u32,
    unused_more: [u64; 4],
    found: [u8; FOUND_BYTES],
}

#[repr(C)]
struct Create {
    create: u64,
    group: u64,
}

#[repr(C)]
struct Limit {
    group: u64,
    flags: u64,
    referenced_max: u64,
    exclusive_max: u64,
    reserved: [u64; 2],
}

/// How a file system counts what its subvolumes use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counting {
    Off,
    /// Simple quotas: by who wrote it first.
    Simple,
    /// Quota groups: by who refers to it.
    Groups,
    /// On, and not right until a rescan has ended.
    Inconsistent,
}

/// Makes the subvolume `name` in an open directory.
pub fn create(directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let arguments = named(name)?;
    // SAFETY: the kernel reads one valid `btrfs_ioctl_vol_args`.
    checked(unsafe { libc::ioctl(directory.as_raw_fd(), SUBVOL_CREATE, &raw const *arguments) }).map(drop)
}

/// Deletes the subvolume `name` of an open directory, whatever is in it.
pub fn destroy(directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let arguments = named(name)?;
    // SAFETY: the kernel reads one valid `btrfs_ioctl_vol_args`.
    checked(unsafe { libc::ioctl(directory.as_raw_fd(), SNAP_DESTROY, &raw const *arguments) }).map(drop)
}

/// Makes the whole file system of an open file, on its one device, this large.
pub fn resize(file: BorrowedFd<'_>, bytes: u64) -> io::Result<()> {
    let arguments = named(OsStr::new(&format!("1:{bytes}")))?;
    // SAFETY: the kernel reads one valid `btrfs_ioctl_vol_args`.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), RESIZE, &raw const *arguments) }).map(drop)
}

fn named(name: &OsStr) -> io::Result<Box<Named>> {
    let bytes = name.as_bytes();
    if bytes.len() >= NAME_BYTES {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    let mut arguments = Box::new(Named { descriptor: 0, name: [0; NAME_BYTES] });
    arguments.name[..bytes.len()].copy_from_slice(bytes);
    Ok(arguments)
}

/// The number of the subvolume that an open file is in; its quota group has the same.
pub fn number(file: BorrowedFd<'_>) -> io::Result<u64> {
    let mut arguments = Box::new(Lookup { tree: 0, inode: TOP_INODE, name: [0; 4080] });
    // SAFETY: the kernel reads and writes one valid `btrfs_ioctl_ino_lookup_args`.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), INO_LOOKUP, &raw mut *arguments) })?;
    Ok(arguments.tree)
}

/// Limits what a subvolume may refer to.
pub fn limit(file: BorrowedFd<'_>, subvolume: u64, bytes: Option<u64>) -> io::Result<()> {
    // All ones take a limit away.
    let referenced_max = bytes.unwrap_or(u64::MAX);
    let limit = Limit {
        group: subvolume,
        flags: LIMIT_REFERENCED,
        referenced_max,
        exclusive_max: 0,
        reserved: [0; 2],
    };
    // SAFETY: the kernel reads one valid `btrfs_ioctl_qgroup_limit_args`.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), QGROUP_LIMIT, &raw const limit) }).map(drop)
}

/// Removes the quota group that a deleted subvolume has left.
pub fn forget(file: BorrowedFd<'_>, subvolume: u64) -> io::Result<()> {
    let arguments = Create { create: 0, group: subvolume };
    // SAFETY: the kernel reads one valid `btrfs_ioctl_qgroup_create_args`.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), QGROUP_CREATE, &raw const arguments) }).map(drop)
}

/// Whether, and how, the file system of an open file counts.
pub fn counting(file: BorrowedFd<'_>) -> io::Result<Counting> {
    let status = match search(file, QGROUP_STATUS, 0) {
        // Without quotas there is no tree of them.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Counting::Off),
        other => other?,
    };
    let flags = status.and_then(|item| word(&item, 2)).unwrap_or(0);
    Ok(match flags {
        flags if flags & STATUS_ON == 0 => Counting::Off,
        flags if flags & STATUS_SIMPLE != 0 => Counting::Simple,
        flags if flags & STATUS_INCONSISTENT != 0 => Counting::Inconsistent,
        _ => Counting::Groups,
    })
}

/// Bytes that a subvolume refers to, as of the last commit.
pub fn referenced(file: BorrowedFd<'_>, subvolume: u64) -> io::Result<Option<u64>> {
    Ok(search(file, QGROUP_INFO, subvolume)?.and_then(|item| word(&item, 1)))
}

/// The limit on what a subvolume refers to.
pub fn limit_of(file: BorrowedFd<'_>, subvolume: u64) -> io::Result<Option<u64>> {
    let Some(item) = search(file, QGROUP_LIMITS, subvolume)? else { return Ok(None) };
    let set = word(&item, 0).is_some_and(|flags| flags & LIMIT_REFERENCED != 0);
    Ok(word(&item, 1).filter(|_| set))
}

/// The one item of this kind in the tree of quotas.
fn search(file: BorrowedFd<'_>, kind: u32, group: u64) -> io::Result<Option<Vec<u8>>> {
    let mut search = Box::new(Search {
        tree: QUOTA_TREE,
        objects: [0; 2],
        offsets: [group; 2],
        transactions: [0, u64::MAX],
        kinds: [kind; 2],
        items: 1,
        unused: 0,
        unused_more: [0; 4],
        found: [0; FOUND_BYTES],
    });
    // SAFETY: the kernel reads and writes one valid `btrfs_ioctl_search_args`.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), TREE_SEARCH, &raw mut *search) })?;
    // A header of 32 bytes, the last four of which are the item's length.
    let length = u32::from_ne_bytes(search.found[28..32].try_into().expect("four bytes")) as usize;
    let item = search.found.get(32..32 + length).filter(|_| search.items == 1);
    Ok(item.map(<[u8]>::to_vec))
}

fn word(item: &[u8], index: usize) -> Option<u64> {
    let bytes = item.get(index * 8..index * 8 + 8)?;
    Some(u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_are_as_long_as_the_kernels() {
        assert_eq!((size_of::<Named>(), size_of::<Lookup>(), size_of::<Search>()), (4096, 4096, 4096));
        assert_eq!((size_of::<Create>(), size_of::<Limit>()), (16, 48));
    }
}
