//! The starter's side of the talk with a keeper.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::keeper::{Answer, Hello, KEEPER_NAME, Word};
use crate::sys::socket;

/// Longest silence of a keeper: a jail's slowest allowed hook inside, and then some.
const ANSWER_LIMIT: Duration = Duration::from_hours(1);
/// How often an interrupt is looked for while a keeper works.
const LOOK_MS: i64 = 100;

/// Starts a keeper and hands it its specification, with the lock that it holds as long as it lives.
pub fn spawn(program: &OwnedFd, hello: &Hello, instance: &OwnedFd) -> Result<OwnedFd> {
    let (ours, theirs) = socket::pair()?;
    let mut child = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
        .arg0(format!("{KEEPER_NAME}{}", hello.spec.jail.name))
        .env_clear()
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        .spawn()
        .context("start the keeper")?;
    let message = serde_json::to_vec(hello).context("write the specification")?;
    socket::send(ours.as_fd(), &message, &[instance.as_fd()])?;
    // It leaves us at once: the keeper proper is not our child.
    child.wait().context("wait for the keeper to leave")?;
    Ok(ours)
}

/// The keeper's next answer.
pub fn answer(socket: BorrowedFd<'_>) -> Result<Answer> {
    let end = Instant::now() + ANSWER_LIMIT;
    while !socket::readable_within(socket, LOOK_MS)? {
        crate::supervisor::progress();
        if crate::interrupt::asked() {
            bail!("start: interrupted");
        }
        if Instant::now() > end {
            bail!("the keeper does not answer");
        }
    }
    let (message, _) = socket::receive(socket)?.ok_or_else(|| anyhow!("the keeper is gone"))?;
    serde_json::from_slice(&message).context("read the keeper's answer")
}

/// A keeper that has ended by now is no error here: it has left its reason, or its answer and the
/// exit record are missing.
pub fn tell(socket: BorrowedFd<'_>, word: Word) -> Result<()> {
    let message = serde_json::to_vec(&word).context("write to the keeper")?;
    match socket::send(socket, &message, &[]) {
        Err(error) if socket::open(socket) => Err(error),
        _ => Ok(()),
    }
}
