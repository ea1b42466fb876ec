//! Trials in a child process: what it changes of its own namespaces dies with it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};

use crate::sys::process;

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
