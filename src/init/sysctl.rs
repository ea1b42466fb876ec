//! The jail's own kernel parameters, written through a procfs that was mounted a moment ago and
//! is held by descriptor: nothing in the root can redirect them (CVE-2025-52881).

use std::os::fd::BorrowedFd;

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::spec::Spec;

/// The profile's parameters; a file that is absent (no IPv6) is passed over.
pub fn apply(spec: &Spec, proc: BorrowedFd<'_>) -> Result<()> {
    spec.profile.sysctls.iter().try_for_each(|(name, value)| write(proc, &format!("sys/{name}"), value))
}

fn write(proc: BorrowedFd<'_>, name: &str, value: &str) -> Result<()> {
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    match rustix::fs::openat2(proc, name, flags, Mode::empty(), how) {
        Ok(file) => {
            rustix::io::write(&file, value.as_bytes())
                .with_context(|| format!("write {value} to /proc/{name}"))?;
            Ok(())
        }
        Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(e) => Err(e).with_context(|| format!("open /proc/{name}")),
    }
}
