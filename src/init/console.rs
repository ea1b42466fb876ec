//! A pseudo-terminal from the jail's own devpts.
//!
//! Opened by descriptor and checked (CVE-2025-52565): a path below /dev/pts could have been
//! replaced, a descriptor from TIOCGPTPEER cannot.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::pty::OpenptFlags;

use crate::spec::Stdio;
use crate::sys::mount;

/// The type number of devpts, linux/magic.h.
const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;
/// Major number of Unix98 pseudo-terminals, devices.txt.
const PTY_MAJOR: u32 = 136;

pub struct Console {
    pub master: OwnedFd,
    pub slave: OwnedFd,
}

/// Opens a pseudo-terminal in the jail and shows it as /dev/console; `None` when none is wanted.
pub fn open(stdio: Stdio, root: BorrowedFd<'_>) -> Result<Option<Console>> {
    if !stdio.is_console() {
        return Ok(None);
    }
    let console = allocate(root)?;
    let place = mount::resolve(root, Path::new("dev/console"), true).context("open /dev/console")?;
    let shown =
        mount::clone_tree(console.slave.as_fd(), Path::new(""), false).context("copy the console's mount")?;
    mount::attach(shown.as_fd(), place.as_fd()).context("attach /dev/console")?;
    Ok(Some(console))
}

/// A new pair from the devpts at `dev/pts` below `root`.
pub fn allocate(root: BorrowedFd<'_>) -> Result<Console> {
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master =
        rustix::fs::openat2(root, "dev/pts/ptmx", flags, Mode::empty(), how).context("open /dev/pts/ptmx")?;
    if mount::file_system_type(master.as_fd())? != DEVPTS_SUPER_MAGIC {
        bail!("open /dev/pts/ptmx: not on a devpts");
    }
    rustix::pty::unlockpt(&master).context("unlock a pseudo-terminal")?;
    let slave = rustix::pty::ioctl_tiocgptpeer(
        &master,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )
    .context("open a pseudo-terminal's peer")?;
    let status = rustix::fs::fstat(&slave).context("look at a pseudo-terminal")?;
    if rustix::fs::major(status.st_rdev) != PTY_MAJOR {
        bail!("open a pseudo-terminal's peer: not a pseudo-terminal");
    }
    Ok(Console { master, slave })
}

impl Console {
    /// The slave as standard input, output and error; this side's master is closed.
    pub fn into_streams(self) -> Result<[OwnedFd; 3]> {
        let input = self.slave.try_clone().context("copy the console")?;
        let output = self.slave.try_clone().context("copy the console")?;
        Ok([input, output, self.slave])
    }
}
