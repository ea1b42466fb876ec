//! A program that fills a layer: what it says is progress while it runs, and the reason when it
//! fails.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Progress;
use super::tree::BUILD_TIME_MAX;
use crate::sys::process;

/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Lines kept for the error, and the bytes of one.
const TAIL: usize = 12;
const LINE_BYTES_MAX: u64 = 4096;
/// Lines on their way.
const LINES: usize = 256;

pub struct Program {
    child: Child,
    name: &'static str,
    lines: Receiver<String>,
    tail: VecDeque<String>,
    deadline: Instant,
}

impl Program {
    /// Starts it in a process group of its own, with nothing to read.
    pub fn start(mut command: Command, name: &'static str) -> Result<(Self, ChildStdout)> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().with_context(|| format!("start {name}"))?;
        let said = child.stderr.take().expect("it is piped");
        let output = child.stdout.take().expect("it is piped");
        Ok((Self::over(child, name, said, Instant::now() + BUILD_TIME_MAX), output))
    }

    /// As above, where all that it writes is what it says.
    pub fn start_talking(mut command: Command, name: &'static str, deadline: Instant) -> Result<Self> {
        let (said, to) = std::io::pipe().context("make a pipe")?;
        command.stdout(to.try_clone().context("copy a pipe")?).stderr(to).process_group(0);
        let child = command.spawn().with_context(|| format!("start {name}"))?;
        // With its ends of the pipe, which would never be seen to end.
        drop(command);
        Ok(Self::over(child, name, said, deadline))
    }

    /// One that was started, the leader of its process group; `said` ends when it does.
    fn over(child: Child, name: &'static str, said: impl Read + Send + 'static, deadline: Instant) -> Self {
        process::be_ordinary_to_oom(child.id());
        let (sender, lines) = sync_channel(LINES);
        std::thread::spawn(move || listen(BufReader::new(said), &sender));
        Self { child, name, lines, tail: VecDeque::new(), deadline }
    }

    /// Waits until it writes, or ends.
    pub fn wait_for_output(&mut self, output: &ChildStdout, progress: Progress<'_>) -> Result<()> {
        let pause = Timespec::try_from(LOOK).expect("a tenth of a second fits");
        loop {
            let mut ready = [PollFd::from_borrowed_fd(output.as_fd(), PollFlags::IN)];
            match poll(&mut ready, Some(&pause)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => self.go_on(progress)?,
                Ok(_) => return Ok(()),
                Err(error) => return Err(error).context("poll"),
            }
        }
    }

    /// Waits for its end, which must be a good one.
    pub fn finish(mut self, progress: Progress<'_>) -> Result<()> {
        loop {
            match self.lines.recv_timeout(LOOK) {
                Ok(line) => self.hear(line, progress),
                Err(RecvTimeoutError::Timeout) => self.go_on(progress)?,
                // Its standard error is closed, so it has ended, or is about to.
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        loop {
            if let Some(status) = self.child.try_wait().context("wait")? {
                return self.judge(status);
            }
            self.go_on(progress)?;
            std::thread::sleep(LOOK);
        }
    }

    fn judge(&self, status: ExitStatus) -> Result<()> {
        if status.success() {
            return Ok(());
        }
        let said: Vec<&str> = self.tail.iter().map(String::as_str).collect();
        bail!("{}: {status}: {}", self.name, said.join("\n  "))
    }

    fn hear(&mut self, line: String, progress: Progress<'_>) {
        progress(&format!("{}: {line}", self.name));
        self.tail.push_back(line);
        if self.tail.len() > TAIL {
            self.tail.pop_front();
        }
    }

    fn go_on(&mut self, progress: Progress<'_>) -> Result<()> {
        while let Ok(line) = self.lines.try_recv() {
            self.hear(line, progress);
        }
        crate::supervisor::progress();
        if crate::interrupt::asked() {
            bail!("{}: interrupted", self.name);
        }
        if Instant::now() > self.deadline {
            bail!("{}: it takes too long", self.name);
        }
        Ok(())
    }
}

impl Drop for Program {
    /// Whatever it still does is for nothing.
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            process::signal_group(self.child.id().cast_signed(), libc::SIGKILL);
            // Killed, it ends.
            let _ = self.child.wait();
        }
    }
}

fn listen(mut from: impl BufRead, to: &SyncSender<String>) {
    while let Some(line) = next_line(&mut from) {
        if to.send(line).is_err() {
            return;
        }
    }
}

/// The next line that says something, also one that ends in a carriage return; nothing at the end.
pub fn next_line(from: &mut impl BufRead) -> Option<String> {
    loop {
        let mut line = Vec::new();
        match from.take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return None,
            Ok(_) => {
                let text = String::from_utf8_lossy(&line);
                let last = text.trim_end().rsplit('\r').next().unwrap_or_default();
                let plain: String = last.chars().filter(|c| !c.is_control()).collect();
                if !plain.is_empty() {
                    return Some(plain);
                }
            }
        }
    }
}
