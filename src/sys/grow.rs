//! Growing a mounted file system to the length of its device, each by its own call.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::checked;

const EXT4_IOC_RESIZE_FS: libc::Ioctl = 0x4008_6610;
const XFS_IOC_FSGEOMETRY: libc::Ioctl = 0x8100_587e_u32 as libc::Ioctl;
const XFS_IOC_FSGROWFSDATA: libc::Ioctl = 0x4010_586e;

/// The first members of xfs/xfs_fs.h's `xfs_fsop_geom`.
#[repr(C)]
struct Geometry {
    block_size: u32,
    before: [u32; 6],
    inode_percent_max: u32,
    rest: [u64; 28],
}

#[repr(C)]
struct Growth {
    blocks: u64,
    inode_percent_max: u32,
    padding: u32,
}

/// Grows the ext4 that `file` is on; wants CAP_SYS_RESOURCE.
pub fn ext4(file: BorrowedFd<'_>, bytes: u64) -> io::Result<()> {
    let block = u64::try_from(rustix::fs::fstatfs(file)?.f_bsize).unwrap_or(4096).max(1);
    let blocks = bytes / block;
    // SAFETY: the kernel reads one number.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), EXT4_IOC_RESIZE_FS, &raw const blocks) }).map(drop)
}

/// Grows the xfs that `file` is on.
pub fn xfs(file: BorrowedFd<'_>, bytes: u64) -> io::Result<()> {
    let mut geometry = Geometry { block_size: 0, before: [0; 6], inode_percent_max: 0, rest: [0; 28] };
    // SAFETY: the kernel writes one `xfs_fsop_geom` of 256 bytes to the valid place it is given.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), XFS_IOC_FSGEOMETRY, &raw mut geometry) })?;
    let blocks = bytes / u64::from(geometry.block_size.max(1));
    let growth = Growth { blocks, inode_percent_max: geometry.inode_percent_max, padding: 0 };
    // SAFETY: the kernel reads one valid `xfs_growfs_data`.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), XFS_IOC_FSGROWFSDATA, &raw const growth) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_are_as_long_as_the_kernels() {
        assert_eq!((size_of::<Geometry>(), size_of::<Growth>()), (256, 16));
    }
}
