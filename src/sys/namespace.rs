//! Namespaces: joining them, leaving them, id maps and clock offsets.

use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};

/// Ids in one jail's range; also what user_namespaces(7) maps from 0.
pub const IDS: u32 = 65_536;

/// Everything a jail has of its own but the cgroup and time namespaces, which are made apart:
/// the first needs the cgroup joined before, the second its offsets set before.
pub const JAIL: u64 =
    (libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS) as u64;
pub const USER: u64 = libc::CLONE_NEWUSER as u64;
pub const NET: u64 = libc::CLONE_NEWNET as u64;

/// unshare(2).
pub fn unshare(flags: i32) -> std::io::Result<()> {
    // SAFETY: plain integer; no memory is shared or unmapped by the namespace flags.
    if unsafe { libc::unshare(flags) } == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// setns(2) with a pidfd (several kinds at once, Linux 5.8) or a namespace file.
pub fn setns(descriptor: BorrowedFd<'_>, flags: i32) -> std::io::Result<()> {
    // SAFETY: a descriptor and an integer.
    if unsafe { libc::setns(descriptor.as_raw_fd(), flags) } == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// Maps ids 0 to 65,535 of the user namespace of `pid` to `first` and up.
pub fn map_ids(pid: i32, first: u32) -> Result<()> {
    for file in ["uid_map", "gid_map"] {
        let path = format!("/proc/{pid}/{file}");
        // One write(2) only: the kernel takes the whole map at once, user_namespaces(7).
        std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut map| map.write_all(format!("0 {first} {IDS}\n").as_bytes()))
            .with_context(|| format!("write {path}"))?;
    }
    Ok(())
}

/// `/proc/PID/ns/KIND`.
pub fn open(pid: i32, kind: &str) -> Result<OwnedFd> {
    let path = format!("/proc/{pid}/ns/{kind}");
    rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("open {path}"))
}

/// Makes the time namespace of this process's future children, with both clocks starting at
/// zero now; time_namespaces(7). Must run before the children exist. False where the kernel has none.
pub fn unshare_time() -> Result<bool> {
    if unshare(libc::CLONE_NEWTIME).is_err() {
        return Ok(false);
    }
    let monotonic = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let boottime = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let offsets = format!("monotonic -{} 0\nboottime -{} 0\n", monotonic.tv_sec, boottime.tv_sec);
    std::fs::write("/proc/self/timens_offsets", offsets).context("write /proc/self/timens_offsets")?;
    Ok(true)
}
