//! Project quotas, quotactl(2) and ioctl_xfs_fsgetxattr(2): how much all files of one project
//! number may take, on ext4 and xfs alike.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::checked;

const PRJQUOTA: u32 = 2;
const Q_GETQUOTA: u32 = 0x80_0007;
const Q_SETQUOTA: u32 = 0x80_0008;
const Q_XGETQSTATV: u32 = 0x5808;
const QIF_LIMITS: u32 = 5;
/// `qs_flags` of linux/dqblk_xfs.h.
const PROJECT_ACCOUNTED: u16 = 1 << 4;
const PROJECT_ENFORCED: u16 = 1 << 5;
/// The unit of a limit on blocks.
const BLOCK: u64 = 1024;

const FS_IOC_FSGETXATTR: libc::Ioctl = 0x801c_581f_u32 as libc::Ioctl;
const FS_IOC_FSSETXATTR: libc::Ioctl = 0x401c_5820;
const FS_XFLAG_PROJINHERIT: u32 = 0x200;

/// linux/fs.h's `fsxattr`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    padding: [u8; 8],
}

/// linux/dqblk_xfs.h's `fs_quota_statv`, of which only the flags are of interest.
#[repr(C)]
struct State {
    version: i8,
    padding: u8,
    flags: u16,
    rest: [u32; 39],
}

/// What a project may use and uses; no limit is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    pub bytes_max: Option<u64>,
    pub inodes_max: Option<u64>,
    pub bytes: u64,
    pub inodes: u64,
}

/// Whether the file system of `file` counts by project and keeps to the limits.
pub fn enforced(file: BorrowedFd<'_>) -> io::Result<bool> {
    // Version 1, without which the kernel refuses.
    let mut state = State { version: 1, padding: 0, flags: 0, rest: [0; 39] };
    quotactl(file, Q_XGETQSTATV, 0, (&raw mut state).cast())?;
    let all = PROJECT_ACCOUNTED | PROJECT_ENFORCED;
    Ok(state.flags & all == all)
}

pub fn get(file: BorrowedFd<'_>, project: u32) -> io::Result<Quota> {
    let mut block = empty();
    quotactl(file, Q_GETQUOTA, project, (&raw mut block).cast())?;
    let limit = |value: u64| (value > 0).then_some(value);
    Ok(Quota {
        bytes_max: limit(block.dqb_bhardlimit.saturating_mul(BLOCK)),
        inodes_max: limit(block.dqb_ihardlimit),
        bytes: block.dqb_curspace,
        inodes: block.dqb_curinodes,
    })
}

/// Sets both limits, hard; a size is rounded down to what the kernel can say.
pub fn set(file: BorrowedFd<'_>, project: u32, bytes: Option<u64>, inodes: Option<u64>) -> io::Result<()> {
    let mut block = empty();
    block.dqb_bhardlimit = bytes.map_or(0, |bytes| (bytes / BLOCK).max(1));
    block.dqb_ihardlimit = inodes.map_or(0, |inodes| inodes.max(1));
    block.dqb_valid = QIF_LIMITS;
    quotactl(file, Q_SETQUOTA, project, (&raw mut block).cast())
}

fn empty() -> libc::dqblk {
    // SAFETY: plain integers, for which all zero bits are valid.
    unsafe { std::mem::zeroed() }
}

fn quotactl(file: BorrowedFd<'_>, command: u32, id: u32, address: *mut libc::c_void) -> io::Result<()> {
    let command = (command << 8) | PRJQUOTA;
    // SAFETY: each caller hands over the structure that its command reads or writes.
    let returned = unsafe { libc::syscall(libc::SYS_quotactl_fd, file.as_raw_fd(), command, id, address) };
    if returned == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The project of an open file or directory, and whether what is made in it belongs to it too.
pub fn project(file: BorrowedFd<'_>) -> io::Result<(u32, bool)> {
    let found = attributes(file)?;
    Ok((found.project, found.flags & FS_XFLAG_PROJINHERIT != 0))
}

/// Gives an open file or directory to a project; what is made in a directory later inherits it.
pub fn give(file: BorrowedFd<'_>, project: u32, inherit: bool) -> io::Result<()> {
    let mut wanted = attributes(file)?;
    wanted.project = project;
    if inherit {
        wanted.flags |= FS_XFLAG_PROJINHERIT;
    }
    // SAFETY: the kernel reads one valid `fsxattr`.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FSSETXATTR, &raw const wanted) }).map(drop)
}

fn attributes(file: BorrowedFd<'_>) -> io::Result<Attributes> {
    let mut found = Attributes::default();
    // SAFETY: the kernel writes one `fsxattr` to the valid place it is given.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FSGETXATTR, &raw mut found) })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_are_as_long_as_the_kernels() {
        assert_eq!((size_of::<Attributes>(), size_of::<State>()), (28, 160));
    }
}
