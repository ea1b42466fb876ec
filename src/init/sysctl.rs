//! The jail's own kernel parameters, written through a procfs that was mounted a moment ago and
//! is held by descriptor: nothing in the root can redirect them (CVE-2025-52881).

use std::os::fd::BorrowedFd;

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::jail::NetworkMode;
use crate::spec::Spec;

/// Parameters of a private network namespace. A file that is absent (no IPv6) is passed over.
const NETWORK: &[(&str, &str)] = &[
    ("sys/net/ipv4/ip_unprivileged_port_start", "0"),
    ("sys/net/ipv4/ping_group_range", "0 65535"),
    ("sys/net/ipv6/conf/default/accept_ra", "0"),
    ("sys/net/ipv6/conf/all/accept_ra", "0"),
];

/// Only a vnet jail has anything to gain from these; one without a link stays as the kernel made it.
pub fn apply(spec: &Spec, proc: BorrowedFd<'_>) -> Result<()> {
    if spec.jail.network.mode != NetworkMode::Vnet {
        return Ok(());
    }
    NETWORK.iter().try_for_each(|(name, value)| write(proc, name, value))
}

fn write(proc: BorrowedFd<'_>, name: &str, value: &str) -> Result<()> {
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    match rustix::fs::openat2(proc, name, flags, Mode::empty(), how) {
        Ok(file) => {
            rustix::io::write(&file, value.as_bytes()).with_context(|| format!("write {value} to /proc/{name}"))?;
            Ok(())
        }
        Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(e) => Err(e).with_context(|| format!("open /proc/{name}")),
    }
}
