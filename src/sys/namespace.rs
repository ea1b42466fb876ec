//! Namespaces: joining them, leaving them, id maps and clock offsets.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};

use super::process::{self, Cloned};

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
    map(pid, 0, first)
}

/// Maps 65,536 ids of the user namespace of `pid`, from `inside`, to those from `outside`.
fn map(pid: i32, inside: u32, outside: u32) -> Result<()> {
    for file in ["uid_map", "gid_map"] {
        let path = format!("/proc/{pid}/{file}");
        // One write(2) only: the kernel takes the whole map at once, user_namespaces(7).
        std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut map| map.write_all(format!("{inside} {outside} {IDS}\n").as_bytes()))
            .with_context(|| format!("write {path}"))?;
    }
    Ok(())
}

/// A user namespace with nobody in it, in which the 65,536 ids from `inside` are those from
/// `outside` here: for the mounts and processes that are to have its view of ids.
pub fn users(inside: u32, outside: u32) -> Result<OwnedFd> {
    let (ready, tell_ready) = pipe()?;
    let (end, tell_end) = pipe()?;
    match process::fork().context("fork")? {
        Cloned::Child => {
            drop(tell_end);
            let made = unshare(libc::CLONE_NEWUSER).is_ok()
                // A pipe alone does not tell: another child may hold its other end.
                && process::set_parent_death_signal(Some(rustix::process::Signal::KILL)).is_ok();
            if made && File::from(tell_ready).write_all(b"1").is_ok() {
                // Ends when the parent does, or has what it wants.
                let _ = File::from(end).read(&mut [0]);
            }
            process::exit_now(0)
        }
        Cloned::Parent { pid, pidfd } => {
            drop(tell_ready);
            let mapped = || {
                File::from(ready).read_exact(&mut [0]).context("make a user namespace")?;
                map(pid, inside, outside)?;
                open(pid, "user")
            };
            let namespace = mapped();
            drop(tell_end);
            process::reap(pidfd.as_fd())?;
            namespace
        }
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context("make a pipe")
}

/// `/proc/PID/ns/KIND`.
pub fn open(pid: i32, kind: &str) -> Result<OwnedFd> {
    let path = format!("/proc/{pid}/ns/{kind}");
    rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("open {path}"))
}

/// The host and domain name in the calling thread's UTS namespace.
pub fn names() -> [String; 2] {
    let names = rustix::system::uname();
    [names.nodename(), names.domainname()].map(|name| name.to_string_lossy().into_owned())
}

/// Makes the time namespace of this process's future children, with both clocks starting at
/// zero now; time_namespaces(7). Must run before the children exist. False where the kernel has none.
pub fn unshare_time() -> Result<bool> {
    match unshare(libc::CLONE_NEWTIME) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(false),
        other => other.context("make a time namespace")?,
    }
    let monotonic = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let boottime = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let offsets = format!("monotonic -{} 0\nboottime -{} 0\n", monotonic.tv_sec, boottime.tv_sec);
    std::fs::write("/proc/self/timens_offsets", offsets).context("write /proc/self/timens_offsets")?;
    Ok(true)
}
