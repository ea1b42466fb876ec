//! Trials in a child process: what it changes of its own namespaces dies with it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};

use crate::sys::{namespace, process};

/// The longest answer of a child.
const ANSWER_BYTES_MAX: u64 = 4096;

/// Runs `work` in a fork of this process; an error comes back as its text.
pub fn in_child(work: impl FnOnce() -> Result<()>) -> Result<(), String> {
    let text = |error: anyhow::Error| format!("{error:#}");
    let (ours, theirs) = pipe().map_err(text)?;
    match process::fork().context("fork").map_err(text)? {
        process::Cloned::Child => {
            let status = match work() {
                Ok(()) => 0,
                Err(error) => {
                    // Without the text the status still says that it went wrong.
                    let _ = File::from(theirs).write_all(format!("{error:#}").as_bytes());
                    1
                }
            };
            process::exit_now(status)
        }
        process::Cloned::Parent { pidfd, .. } => {
            drop(theirs);
            let mut answer = String::new();
            let read = File::from(ours).take(ANSWER_BYTES_MAX).read_to_string(&mut answer);
            let ended = process::reap(pidfd.as_fd()).map_err(text)?;
            match (ended.status(), read) {
                (0, _) => Ok(()),
                (_, Ok(_)) if !answer.is_empty() => Err(answer),
                (status, _) => Err(format!("the trial ended with {status}")),
            }
        }
    }
}

/// Runs `work` with a new user namespace in which 0 to 65,535 are `first` and up.
pub fn with_user_namespace(first: u32, work: impl FnOnce(BorrowedFd<'_>) -> Result<()>) -> Result<()> {
    let (ready, tell_ready) = pipe()?;
    let (end, tell_end) = pipe()?;
    match process::fork().context("fork")? {
        process::Cloned::Child => {
            drop(tell_end);
            let made = namespace::unshare(libc::CLONE_NEWUSER).is_ok();
            if made && File::from(tell_ready).write_all(b"1").is_ok() {
                // Ends when the parent does, or has what it wants.
                let _ = File::from(end).read(&mut [0]);
            }
            process::exit_now(0)
        }
        process::Cloned::Parent { pid, pidfd } => {
            drop(tell_ready);
            let done = mapped(pid, first, ready).and_then(|namespace| work(namespace.as_fd()));
            drop(tell_end);
            process::reap(pidfd.as_fd())?;
            done
        }
    }
}

fn mapped(pid: i32, first: u32, ready: OwnedFd) -> Result<OwnedFd> {
    File::from(ready).read_exact(&mut [0]).context("make a user namespace")?;
    namespace::map_ids(pid, first)?;
    namespace::open(pid, "user")
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context("make a pipe")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_tells_how_it_went() {
        assert_eq!(in_child(|| Ok(())), Ok(()));
        assert_eq!(in_child(|| anyhow::bail!("no such thing")), Err("no such thing".to_owned()));
        assert_eq!(in_child(|| process::exit_now(7)), Err("the trial ended with 7".to_owned()));
    }
}
