//! Subvolumes of btrfs and how much each may take, btrfs(5), by the calls of linux/btrfs.h.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use super::checked;

const RESIZE: libc::Ioctl = 0x5000_9403;
const SUBVOL_CREATE: libc::Ioctl = 0x5000_940e;
const SNAP_DESTROY: libc::Ioctl = 0x5000_940f;
const SNAP_CREATE: libc::Ioctl = 0x5000_9417;
const SUBVOL_SETFLAGS: libc::Ioctl = 0x4008_941a;
const TREE_SEARCH: libc::Ioctl = 0xd000_9411_u32 as libc::Ioctl;
const INO_LOOKUP: libc::Ioctl = 0xd000_9412_u32 as libc::Ioctl;
const QGROUP_ASSIGN: libc::Ioctl = 0x4018_9429;
const QGROUP_CREATE: libc::Ioctl = 0x4010_942a;
const QGROUP_LIMIT: libc::Ioctl = 0x8030_942b_u32 as libc::Ioctl;

const NAME_BYTES: usize = 4088;
const SNAPSHOT_NAME_BYTES: usize = 4040;
const READ_ONLY: u64 = 2;
const FOUND_BYTES: usize = 3992;
/// The inode of a subvolume's top.
const TOP_INODE: u64 = 256;
const QUOTA_TREE: u64 = 8;
const QGROUP_STATUS: u32 = 240;
const QGROUP_INFO: u32 = 242;
const QGROUP_LIMITS: u32 = 244;
const QGROUP_RELATION: u32 = 246;
/// Members of one group that are found in one look.
const MEMBERS_MAX: u32 = 100;
/// Of a quota group's number: how far it is above those of subvolumes.
const LEVEL_SHIFT: u32 = 48;
/// Bytes before each item that a search has found.
const HEADER: usize = 32;
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
struct Source {
    descriptor: i64,
    transaction: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; SNAPSHOT_NAME_BYTES],
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
struct Assign {
    counts: u64,
    member: u64,
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

/// Whether an open directory is the top of a subvolume.
pub fn is_subvolume(directory: BorrowedFd<'_>) -> bool {
    let is_top = rustix::fs::fstat(directory).is_ok_and(|stat| stat.st_ino == TOP_INODE);
    is_top && number(directory).is_ok()
}

/// Makes the subvolume `name` in an open directory, which has all that `source` has at this moment.
/// What was written to that is on the disk when this returns, and so is the new one.
pub fn snapshot(
    source: BorrowedFd<'_>,
    directory: BorrowedFd<'_>,
    name: &OsStr,
    read_only: bool,
) -> io::Result<()> {
    let mut arguments = Box::new(Source {
        descriptor: source.as_raw_fd().into(),
        transaction: 0,
        flags: if read_only { READ_ONLY } else { 0 },
        unused: [0; 4],
        name: [0; SNAPSHOT_NAME_BYTES],
    });
    put_name(&mut arguments.name, name)?;
    // SAFETY: the kernel reads one valid `btrfs_ioctl_vol_args_v2`, whose union without
    // BTRFS_SUBVOL_QGROUP_INHERIT holds no pointer.
    checked(unsafe { libc::ioctl(directory.as_raw_fd(), SNAP_CREATE, &raw const *arguments) }).map(drop)
}

/// Nothing can be written to the subvolume from now on; it can be deleted.
pub fn close(subvolume: BorrowedFd<'_>) -> io::Result<()> {
    let flags = READ_ONLY;
    // SAFETY: the kernel reads one u64.
    checked(unsafe { libc::ioctl(subvolume.as_raw_fd(), SUBVOL_SETFLAGS, &raw const flags) }).map(drop)
}

/// Makes the whole file system of an open file, on its one device, this large.
pub fn resize(file: BorrowedFd<'_>, bytes: u64) -> io::Result<()> {
    let arguments = named(OsStr::new(&format!("1:{bytes}")))?;
    // SAFETY: the kernel reads one valid `btrfs_ioctl_vol_args`.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), RESIZE, &raw const *arguments) }).map(drop)
}

fn named(name: &OsStr) -> io::Result<Box<Named>> {
    let mut arguments = Box::new(Named { descriptor: 0, name: [0; NAME_BYTES] });
    put_name(&mut arguments.name, name)?;
    Ok(arguments)
}

/// With at least one zero behind it.
fn put_name(place: &mut [u8], name: &OsStr) -> io::Result<()> {
    let bytes = name.as_bytes();
    if bytes.len() >= place.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    place[..bytes.len()].copy_from_slice(bytes);
    Ok(())
}

/// The number of the subvolume that an open file is in; its quota group has the same.
pub fn number(file: BorrowedFd<'_>) -> io::Result<u64> {
    let mut arguments = Box::new(Lookup { tree: 0, inode: TOP_INODE, name: [0; 4080] });
    // SAFETY: the kernel reads and writes one valid `btrfs_ioctl_ino_lookup_args`.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), INO_LOOKUP, &raw mut *arguments) })?;
    Ok(arguments.tree)
}

/// The number of a quota group above those of subvolumes.
pub fn group_above(level: u16, number: u32) -> u64 {
    u64::from(level) << LEVEL_SHIFT | u64::from(number)
}

/// Makes the group, unless it is there, and has it count what `member` does.
pub fn assign(file: BorrowedFd<'_>, member: u64, group: u64) -> io::Result<()> {
    let create = Create { create: 1, group };
    // SAFETY: the kernel reads one valid `btrfs_ioctl_qgroup_create_args`.
    let made = checked(unsafe { libc::ioctl(file.as_raw_fd(), QGROUP_CREATE, &raw const create) });
    if_new(made)?;
    if_new(set_member(file, &Assign { counts: 1, member, group }))
}

/// What is there already is as good.
fn if_new(made: io::Result<i32>) -> io::Result<()> {
    match made {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other.map(drop),
    }
}

fn set_member(file: BorrowedFd<'_>, assign: &Assign) -> io::Result<i32> {
    // SAFETY: the kernel reads one valid `btrfs_ioctl_qgroup_assign_args`.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), QGROUP_ASSIGN, &raw const *assign) })
}

/// Removes a group from above its members, if it is there.
pub fn forget_above(file: BorrowedFd<'_>, group: u64) -> io::Result<()> {
    loop {
        let members = members(file, group)?;
        if members.is_empty() {
            break;
        }
        for member in members {
            set_member(file, &Assign { counts: 0, member, group })?;
        }
    }
    match forget(file, group) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// Limits what a quota group may refer to; a subvolume's has the subvolume's number.
pub fn limit(file: BorrowedFd<'_>, group: u64, bytes: Option<u64>) -> io::Result<()> {
    // All ones take a limit away.
    let referenced_max = bytes.unwrap_or(u64::MAX);
    let limit = Limit { group, flags: LIMIT_REFERENCED, referenced_max, exclusive_max: 0, reserved: [0; 2] };
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

/// Bytes that a quota group refers to, as of the last commit.
pub fn referenced(file: BorrowedFd<'_>, group: u64) -> io::Result<Option<u64>> {
    Ok(search(file, QGROUP_INFO, group)?.and_then(|item| word(&item, 1)))
}

/// The limit on what a quota group refers to.
pub fn limit_of(file: BorrowedFd<'_>, group: u64) -> io::Result<Option<u64>> {
    let Some(item) = search(file, QGROUP_LIMITS, group)? else { return Ok(None) };
    let set = word(&item, 0).is_some_and(|flags| flags & LIMIT_REFERENCED != 0);
    Ok(word(&item, 1).filter(|_| set))
}

/// Some of the groups that a group counts together.
fn members(file: BorrowedFd<'_>, group: u64) -> io::Result<Vec<u64>> {
    let search = look(file, QGROUP_RELATION, ([group; 2], [0, u64::MAX]), MEMBERS_MAX)?;
    let found = usize::try_from(search.items).unwrap_or(0);
    // Their numbers are in the keys, and there is nothing behind those.
    let member = |header: &[u8]| word(header, 2).expect("a header has three words");
    Ok(search.found.chunks_exact(HEADER).take(found).map(member).collect())
}

/// The one item of this kind in the tree of quotas.
fn search(file: BorrowedFd<'_>, kind: u32, group: u64) -> io::Result<Option<Vec<u8>>> {
    let search = look(file, kind, ([0; 2], [group; 2]), 1)?;
    let length = u32::from_ne_bytes(search.found[HEADER - 4..HEADER].try_into().expect("four bytes"));
    let item = usize::try_from(length).ok().and_then(|length| search.found.get(HEADER..HEADER + length));
    Ok(item.filter(|_| search.items == 1).map(<[u8]>::to_vec))
}

fn look(
    file: BorrowedFd<'_>,
    kind: u32,
    (objects, offsets): ([u64; 2], [u64; 2]),
    items: u32,
) -> io::Result<Box<Search>> {
    let mut search = Box::new(Search {
        tree: QUOTA_TREE,
        objects,
        offsets,
        transactions: [0, u64::MAX],
        kinds: [kind; 2],
        items,
        unused: 0,
        unused_more: [0; 4],
        found: [0; FOUND_BYTES],
    });
    // SAFETY: the kernel reads and writes one valid `btrfs_ioctl_search_args`.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), TREE_SEARCH, &raw mut *search) })?;
    Ok(search)
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
        assert_eq!((size_of::<Source>(), size_of::<Assign>()), (4096, 24));
    }
}
