//! overlayfs's marks, by which one directory hides what another below it has.
//!
//! Linux, Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories".

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result};
use rustix::fs::{FileType, Mode, XattrFlags};
use rustix::io::Errno;

const OPAQUE: &str = "trusted.overlay.opaque";

/// Whether a directory hides all that is below it.
pub fn is_opaque(directory: BorrowedFd<'_>) -> Result<bool> {
    match rustix::fs::fgetxattr(directory, OPAQUE, &mut [0_u8; 1]) {
        Ok(_) => Ok(true),
        // Or where a file system has no attributes, and thus no marks.
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(false),
        Err(error) => Err(error).context("read attributes"),
    }
}

pub fn hide_below(directory: BorrowedFd<'_>) -> Result<()> {
    rustix::fs::fsetxattr(directory, OPAQUE, b"y", XattrFlags::empty()).context("hide what is below")
}

pub fn show_below(directory: BorrowedFd<'_>) -> Result<()> {
    match rustix::fs::fremovexattr(directory, OPAQUE) {
        Ok(()) | Err(Errno::NODATA | Errno::NOTSUP) => Ok(()),
        Err(error) => Err(error).context("show what is below"),
    }
}

/// Takes away what is below under a name; where something has the name already, nothing changes.
pub fn white_out(directory: impl AsFd, name: &OsStr) -> Result<()> {
    match rustix::fs::mknodat(directory, name, FileType::CharacterDevice, Mode::empty(), 0) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("white out {}", name.display())),
    }
}
