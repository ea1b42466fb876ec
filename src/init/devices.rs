//! The jail's /dev: a fresh tmpfs with the host's harmless nodes bound in, its own devpts, shm
//! and mqueue. Everything is made relative to the descriptor of that tmpfs (CVE-2026-41579).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};

use crate::init::mounts;
use crate::security;
use crate::spec::Spec;
use crate::sys::mount;

const PTS: &[(&str, &str)] = &[("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")];
const SHM: &[(&str, &str)] = &[("mode", "1777"), ("size", "64m")];

pub fn dev(root: BorrowedFd<'_>, nodes: &[(String, OwnedFd)], spec: &Spec) -> Result<()> {
    let options = [("mode", "0755"), ("size", "64k"), ("nr_inodes", "1024")];
    let dev = mount::create("tmpfs", &options, mount::NO_SUID | mount::NO_EXEC)?;
    mounts::attach_at(root, "dev", dev.as_fd(), true)?;
    for (name, node) in nodes {
        bind_node(dev.as_fd(), name, node.as_fd())?;
    }
    for (name, target) in security::paths::DEVICE_LINKS {
        rustix::fs::symlinkat(*target, &dev, *name).with_context(|| format!("link /dev/{name}"))?;
    }
    if spec.stdio.is_console() {
        empty_file(dev.as_fd(), "console")?;
    }
    below(dev.as_fd(), "pts", &mount::create("devpts", PTS, mount::NO_SUID | mount::NO_EXEC)?)?;
    below(
        dev.as_fd(),
        "shm",
        &mount::create("tmpfs", SHM, mount::NO_SUID | mount::NO_DEVICES | mount::NO_EXEC)?,
    )?;
    let mqueue = mount::NO_SUID | mount::NO_DEVICES | mount::NO_EXEC;
    below(dev.as_fd(), "mqueue", &mount::create("mqueue", &[], mqueue)?)
}

/// Binds one of the host's nodes; it was opened and checked there.
fn bind_node(dev: BorrowedFd<'_>, name: &str, node: BorrowedFd<'_>) -> Result<()> {
    if let Some((directory, _)) = name.rsplit_once('/') {
        make_directories(dev, directory)?;
    }
    let place = empty_file(dev, name)?;
    mount::attach(node, place.as_fd()).with_context(|| format!("attach /dev/{name}"))
}

fn make_directories(dev: BorrowedFd<'_>, path: &str) -> Result<()> {
    let mut made = String::new();
    for part in path.split('/') {
        made.push_str(part);
        match rustix::fs::mkdirat(dev, made.as_str(), Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => made.push('/'),
            Err(e) => return Err(e).with_context(|| format!("make /dev/{made}")),
        }
    }
    Ok(())
}

fn empty_file(dev: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
    rustix::fs::openat(dev, name, flags, Mode::from_raw_mode(0o666))
        .with_context(|| format!("create /dev/{name}"))
}

fn below(dev: BorrowedFd<'_>, name: &str, mounted: &OwnedFd) -> Result<()> {
    rustix::fs::mkdirat(dev, name, Mode::from_raw_mode(0o755))
        .with_context(|| format!("make /dev/{name}"))?;
    let place = mount::resolve(dev, Path::new(name), true).with_context(|| format!("open /dev/{name}"))?;
    mount::attach(mounted.as_fd(), place.as_fd()).with_context(|| format!("attach /dev/{name}"))
}
