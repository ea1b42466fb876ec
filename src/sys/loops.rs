//! Loop devices: a file as a block device, loop(4). Each is bound with autoclear, so that it goes
//! with the last mount or descriptor of it, whoever dies.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use anyhow::{Context, Result, bail};

use super::checked;

const LOOP_GET_STATUS64: libc::Ioctl = 0x4C05;
const LOOP_SET_CAPACITY: libc::Ioctl = 0x4C07;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;
/// What every file system of an image can live with, also on a disk of larger sectors.
const SECTOR_BYTES: u32 = 512;
/// Others may take the free device first; more than this is no accident.
const AGAIN_MAX: u32 = 64;

/// linux/loop.h's `loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// linux/loop.h's `loop_config`.
#[repr(C)]
struct Config {
    descriptor: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

const EMPTY: Info = Info {
    device: 0,
    inode: 0,
    rdevice: 0,
    offset: 0,
    size_limit: 0,
    number: 0,
    encrypt_type: 0,
    encrypt_key_size: 0,
    flags: 0,
    file_name: [0; 64],
    crypt_name: [0; 64],
    encrypt_key: [0; 32],
    init: [0; 2],
};

/// A bound device. It stays bound while this lives or something of it is mounted.
#[derive(Debug)]
pub struct Loop {
    device: File,
    number: u32,
}

impl Loop {
    /// The device that `image` is bound to already, else a free one: two devices of one file would
    /// be two file systems that know nothing of each other.
    pub fn of(image: &File) -> Result<Self> {
        if let Some(bound) = Self::find(image)? {
            return Ok(bound);
        }
        let control = open("/dev/loop-control")?;
        for _ in 0..AGAIN_MAX {
            // SAFETY: the call takes no argument and returns a number.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
            let number = u32::try_from(checked(number).context("find a free loop device")?)?;
            let device = open(&path(number))?;
            match configure(&device, image) {
                Ok(()) => return Ok(Self { device, number }),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(error).with_context(|| format!("bind {}", path(number))),
            }
        }
        bail!("bind a loop device: each one that was free is taken")
    }

    /// The device that `image` is bound to now.
    pub fn find(image: &File) -> Result<Option<Self>> {
        let wanted = image.metadata().context("stat the image")?;
        let Ok(entries) = std::fs::read_dir("/sys/block") else { return Ok(None) };
        for entry in entries.filter_map(Result::ok) {
            let name = entry.file_name();
            let Some(number) = name.to_str().and_then(|name| name.strip_prefix("loop")?.parse().ok()) else {
                continue;
            };
            if !entry.path().join("loop/backing_file").exists() {
                continue;
            }
            // One that is being given up meanwhile is as good as none.
            let Ok(device) = open(&path(number)) else { continue };
            if status(&device).is_ok_and(|info| info.device == wanted.dev() && info.inode == wanted.ino()) {
                return Ok(Some(Self { device, number }));
            }
        }
        Ok(None)
    }

    /// Where the device's node is.
    pub fn path(&self) -> String {
        path(self.number)
    }

    /// Makes the device as long as its file is now.
    pub fn follow_size(&self) -> io::Result<()> {
        // SAFETY: the call takes no argument.
        checked(unsafe { libc::ioctl(self.device.as_raw_fd(), LOOP_SET_CAPACITY) }).map(drop)
    }
}

fn path(number: u32) -> String {
    format!("/dev/loop{number}")
}

fn open(path: &str) -> Result<File> {
    let file = File::options().read(true).write(true).open(path).with_context(|| format!("open {path}"))?;
    let kind = file.metadata().with_context(|| format!("stat {path}"))?.file_type();
    if !kind.is_block_device() && !kind.is_char_device() {
        bail!("open {path}: not a device");
    }
    Ok(file)
}

fn status(device: &File) -> io::Result<Info> {
    let mut info = EMPTY;
    // SAFETY: the kernel writes one `loop_info64` to the valid place it is given.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) })?;
    Ok(info)
}

fn configure(device: &File, image: &File) -> io::Result<()> {
    let flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO;
    let config = Config {
        descriptor: u32::try_from(image.as_raw_fd()).expect("a descriptor is not negative"),
        block_size: SECTOR_BYTES,
        info: Info { flags, ..EMPTY },
        reserved: [0; 8],
    };
    // SAFETY: the kernel reads one valid `loop_config`.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_are_as_long_as_the_kernels() {
        assert_eq!((size_of::<Info>(), size_of::<Config>()), (232, 304));
    }
}
