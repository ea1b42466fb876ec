//! One process a jail that stays outside it: the parent of the jail's init. It holds the streams,
//! writes the log and the exit record, and decides nothing.
//!
//! Its starter talks to it over the socket it got as standard input, one JSON message a time; the
//! jail lives on its own only after `Keep`, so a starter that dies half-way takes the jail along.

pub mod build;
pub mod create;
mod log;
pub mod root;
mod serve;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use crate::jail::JailName;
use crate::limits::{Cgroup, Hierarchies};
use crate::live::Process;
use crate::spec::{Spec, Stdio};
use crate::sys::{confine, process, socket};

pub use log::{LOG_BYTES_MAX, ROTATIONS, rotated};

/// How argv[0] begins by which the program knows that it is to be a keeper, and by which ps(1) shows
/// whose: the jail's name follows. The jail's init has it as well.
pub const KEEPER_NAME: &str = "stockade: jail ";
/// Of the messages below; a keeper of another version is left alone and said to be so.
pub const PROTOCOL: u32 = 1;

/// From the starter to the keeper, after the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Word {
    /// `exec.created` is done: start the program.
    Go,
    /// Everything is done: the jail is on its own now.
    Keep,
}

/// From the keeper to the starter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    Created { protocol: u32, keeper: Process, init: Process },
    Up,
    Failed { reason: String, status: i32 },
}

/// The first message: who is to be made.
#[derive(Debug, Serialize, Deserialize)]
pub struct Hello {
    pub protocol: u32,
    pub spec: Spec,
}

/// The keeper's main: standard input is the socket to the starter.
pub fn main() -> i32 {
    // What the starter itself inherited is none of the jail's business.
    if confine::close_all_but(&[]).is_err() {
        return 125;
    }
    let Ok(socket) = std::io::stdin().as_fd().try_clone_to_owned() else { return 125 };
    match leave_starter().and_then(|parent| if parent { Ok(0) } else { keep(&socket) }) {
        Ok(status) => status,
        Err(error) => {
            let answer = Answer::Failed {
                reason: crate::init::program::reason(&error),
                status: crate::init::program::exit_status(&error),
            };
            // A starter that is gone needs no answer.
            let _ = say(socket.as_fd(), &answer);
            125
        }
    }
}

/// The keeper must not be its starter's child: a daemon would have to reap it.
fn leave_starter() -> Result<bool> {
    match process::fork().context("fork the keeper")? {
        process::Cloned::Parent { .. } => Ok(true),
        process::Cloned::Child => {
            rustix::process::setsid().context("setsid")?;
            Ok(false)
        }
    }
}

fn keep(socket: &OwnedFd) -> Result<i32> {
    process::name(c"stockade-keeper");
    confine::set_dumpable(false)?;
    process::block_all_signals();
    // The descriptor is the lock of this instance: it is held by being open until the end.
    let (message, _instance) =
        socket::receive(socket.as_fd())?.ok_or_else(|| anyhow!("no specification came"))?;
    let hello: Hello = serde_json::from_slice(&message).context("read the specification")?;
    if hello.protocol != PROTOCOL {
        bail!("the specification is of protocol {}, this keeper speaks {PROTOCOL}", hello.protocol);
    }
    let spec = hello.spec;
    let streams = Streams::open(spec.stdio)?;
    let hierarchies = Hierarchies::detect()?.at(&spec.cgroup_base)?;
    let cgroup = Cgroup::open(&hierarchies, &spec.cgroup_parent, spec.name().as_str())?;
    let created = create::create(&spec, &cgroup, streams.inside, false)?;
    serve::serve(&spec, &cgroup, created, streams.outside, socket)?;
    Ok(0)
}

/// The jail's standard streams as pipes: what goes inside, and the end the keeper reads.
struct Streams {
    inside: Option<[OwnedFd; 3]>,
    outside: Option<OwnedFd>,
}

impl Streams {
    fn open(stdio: Stdio) -> Result<Self> {
        if stdio.is_console() {
            return Ok(Self { inside: None, outside: None });
        }
        let (ours, theirs) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context("make a pipe")?;
        rustix::io::ioctl_fionbio(&ours, true).context("make a pipe non-blocking")?;
        let null = rustix::fs::open(
            "/dev/null",
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .context("open /dev/null")?;
        let copy = theirs.try_clone().context("copy a pipe")?;
        Ok(Self { inside: Some([null, copy, theirs]), outside: Some(ours) })
    }
}

/// Sends an answer to the starter.
fn say(socket: BorrowedFd<'_>, answer: &Answer) -> Result<()> {
    socket::send(socket, &serde_json::to_vec(answer).context("write an answer")?, &[])
}

pub fn console_socket(run: &Path, name: &JailName) -> std::path::PathBuf {
    run.join("jails").join(name.as_str()).join("console.sock")
}
