//! Which blocks a file is in, and sharing them with another: FIEMAP and FIDEDUPERANGE, which the
//! libraries here do not have.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// _IOWR(0x94, 54, struct file_dedupe_range), linux/fs.h.
const FIDEDUPERANGE: libc::Ioctl = 0xC018_9436_u32 as libc::Ioctl;
/// _IOWR('f', 11, struct fiemap), linux/fs.h.
const FS_IOC_FIEMAP: libc::Ioctl = 0xC020_660B_u32 as libc::Ioctl;
/// The most that btrfs takes at a time.
const RANGE_MAX: u64 = 16 << 20;
/// Extents that are looked at; more of them are taken for not the same.
const EXTENTS_MAX: usize = 64;
/// What FIDEDUPERANGE says of contents that differ.
const DIFFERS: i32 = 1;

#[repr(C)]
struct Range {
    source_offset: u64,
    length: u64,
    count: u16,
    reserved: u16,
    reserved_too: u32,
    target: i64,
    target_offset: u64,
    done: u64,
    status: i32,
    reserved_three: u32,
}

/// Has the kernel share the blocks of `source` with `target`, both of `size` bytes, if their
/// contents are the same: it compares them itself while nobody can write. False where they differ.
pub fn share(source: &File, target: &File, size: u64) -> io::Result<bool> {
    let mut offset = 0;
    while offset < size {
        let mut range = Range {
            source_offset: offset,
            length: (size - offset).min(RANGE_MAX),
            count: 1,
            reserved: 0,
            reserved_too: 0,
            target: target.as_raw_fd().into(),
            target_offset: offset,
            done: 0,
            status: 0,
            reserved_three: 0,
        };
        // SAFETY: the structure is the kernel's, with room for the one answer that is asked for.
        if unsafe { libc::ioctl(source.as_raw_fd(), FIDEDUPERANGE, &raw mut range) } != 0 {
            return Err(io::Error::last_os_error());
        }
        match range.status {
            0 if range.done > 0 => offset += range.done,
            0 | DIFFERS => return Ok(false),
            error => return Err(io::Error::from_raw_os_error(-error)),
        }
    }
    Ok(true)
}

#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    reserved_too: [u32; 3],
}

#[repr(C)]
struct Map {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [Extent; EXTENTS_MAX],
}

/// Where on the disk the file begins, piece by piece; none if that cannot be told.
fn places(file: &File) -> Option<Vec<(u64, u64, u64)>> {
    let mut map = Map {
        start: 0,
        length: u64::MAX,
        flags: 0,
        mapped: 0,
        count: u32::try_from(EXTENTS_MAX).expect("a small number"),
        reserved: 0,
        extents: [Extent::default(); EXTENTS_MAX],
    };
    // SAFETY: the structure is the kernel's, with as many extents as it says.
    let answered = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut map) } == 0;
    let mapped = usize::try_from(map.mapped).unwrap_or(0);
    if !answered || mapped == 0 || mapped >= EXTENTS_MAX {
        return None;
    }
    Some(map.extents[..mapped].iter().map(|one| (one.logical, one.physical, one.length)).collect())
}

/// Whether two files are in the same blocks already.
pub fn is_shared(one: &File, other: &File) -> bool {
    places(one).is_some_and(|places| Some(places) == self::places(other))
}
