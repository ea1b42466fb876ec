//! The process beside a build jail: it makes the jail, waits for its end, and passes on how that
//! was. It dies with its starter, and the jail with it.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, anyhow, bail};

use super::create;
use crate::init::Report;
use crate::init::program;
use crate::limits::{Cgroup, Hierarchies};
use crate::spec::Spec;
use crate::sys::{confine, process, socket};

/// argv[0] by which the program knows that it is to keep a build jail.
pub const BUILDER_NAME: &str = "stockade-builder";

/// The builder's main: standard input is the socket to the starter, the others are what the lines
/// write to.
pub fn main() -> i32 {
    match confine::close_all_but(&[]).and_then(|()| keep()) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("stockade: {}", program::reason(&error));
            program::exit_status(&error)
        }
    }
}

fn keep() -> Result<i32> {
    process::name(c"stockade-build");
    process::set_parent_death_signal(Some(rustix::process::Signal::KILL))?;
    confine::set_dumpable(false)?;
    let starter = std::io::stdin().as_fd().try_clone_to_owned().context("copy a descriptor")?;
    // A starter that was gone before the line above has closed its end.
    let (message, _) = socket::receive(starter.as_fd())?.ok_or_else(|| anyhow!("no specification came"))?;
    let spec: Spec = serde_json::from_slice(&message).context("read the specification")?;
    let hierarchies = Hierarchies::detect()?.at(&spec.cgroup_base)?;
    let cgroup = Cgroup::open(&hierarchies, &spec.cgroup_parent, spec.name().as_str())?;
    let created = create::create(&spec, &cgroup, Some(streams()?), true)?;
    let ended = wait(&created);
    if ended.is_err() {
        create::end(&created);
    }
    ended
}

/// Nothing to read; both outputs go where this process's own go.
fn streams() -> Result<[OwnedFd; 3]> {
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    let null = rustix::fs::open("/dev/null", flags, rustix::fs::Mode::empty()).context("open /dev/null")?;
    let copy =
        |fd: std::os::fd::BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, 3).context("copy a stream");
    Ok([null, copy(std::io::stdout().as_fd())?, copy(std::io::stderr().as_fd())?])
}

fn wait(created: &create::Created) -> Result<i32> {
    match create::hear(created.channel.as_fd())? {
        Some((Report::Started, _)) => {}
        Some((Report::Failed { reason, status }, _)) => return Err(program::failed(status, reason)),
        _ => bail!("the init died while it started the lines"),
    }
    let ended = process::reap(created.pidfd.as_fd()).context("wait for the build jail")?;
    match create::hear(created.channel.as_fd()) {
        Ok(Some((Report::Ended { code, signal }, _))) => Ok(process::Ended { code, signal }.status()),
        // It could not watch over the lines any more.
        Ok(Some((Report::Failed { reason, status }, _))) => Err(program::failed(status, reason)),
        _ => Ok(ended.status()),
    }
}
