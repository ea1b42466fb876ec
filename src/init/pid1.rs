//! The jail's pid 1 where the jail brings none: starts the program, reaps, forwards signals, and
//! ends the jail. It holds no right the jail does not have, except to change user for its children.

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::sys::signalfd::SignalFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::init::program::{self, Launch, Start};
use crate::init::{Report, tell};
use crate::security::capability::known;
use crate::security::seccomp::Instruction;
use crate::spec::Spec;
use crate::sys::confine;
use crate::sys::process::{self, Ended};

/// How long children may take to end when a persistent jail is asked to.
const LAST_WAIT_MS: i64 = 8_000;

/// Runs the jail until its end; never returns.
pub fn serve(spec: &Spec, channel: BorrowedFd<'_>, streams: [OwnedFd; 3]) -> Result<Infallible> {
    if let Some(path) = &spec.jail.exec.boot {
        return boot(spec, path, streams);
    }
    let signals = process::signal_descriptor()?;
    program::take_streams(&streams)?;
    let [input, output, error] = streams.each_ref().map(AsFd::as_fd);
    // Nothing of the host stays open in the jail's first process (CVE-2016-9962), its keeper's
    // socket and lock least of all.
    confine::close_all_but(&[channel, signals.as_fd(), input, output, error])?;
    let program = spec.profile.program();
    shrink(spec)?;
    let mut init = Init { spec, signals: &signals, streams: &streams, program: program.as_deref() };
    init.start_lines()?;
    let main = init.main()?;
    tell(channel, &Report::Started, &[])?;
    if !spec.stdio.is_callers() {
        process::forget_touched_code();
    }
    let ended = init.until_end(main)?;
    // The keeper reads the report even when the namespace dies right after.
    let _ = tell(channel, &Report::Ended { code: ended.code, signal: ended.signal }, &[]);
    process::exit_now(ended.status())
}

/// A whole system: its init takes this very process.
fn boot(spec: &Spec, path: &str, streams: [OwnedFd; 3]) -> Result<Infallible> {
    let launch = Launch::boot(spec, path)?;
    let program = spec.profile.program();
    let start = Start {
        launch: &launch,
        profile: &spec.profile,
        program: program.as_deref(),
        dies_with_parent: false,
    };
    if spec.stdio.is_console() {
        rustix::process::ioctl_tiocsctty(&streams[0]).context("take the console")?;
    }
    // The channel closes on execve(2), which is how the keeper learns that it went well.
    Err(program::become_program(&start, streams))
}

/// What pid 1 keeps: the jail's own capabilities, and those it needs to start its children as
/// other users with less.
fn shrink(spec: &Spec) -> Result<()> {
    let needed = known("KILL") | known("SETUID") | known("SETGID") | known("SETPCAP");
    confine::drop_bounding(spec.profile.capabilities)?;
    confine::clear_ambient()?;
    confine::set_capabilities(spec.profile.capabilities | needed)?;
    confine::set_dumpable(false)
}

struct Init<'a> {
    spec: &'a Spec,
    signals: &'a SignalFd,
    streams: &'a [OwnedFd; 3],
    program: Option<&'a [Instruction]>,
}

impl Init<'_> {
    /// `exec.start`, line by line; each must exit 0 within `exec.timeout`.
    fn start_lines(&mut self) -> Result<()> {
        for line in &self.spec.jail.exec.start {
            let launch = Launch::shell(self.spec, line)?;
            let child = self.launch(&launch)?;
            let ended = self.wait_for(child, Some(self.spec.jail.exec.timeout))?;
            match ended {
                Some(Ended { code: Some(0), .. }) => {}
                Some(ended) => bail!("exec.start `{line}`: exit status {}", ended.status()),
                None => bail!("exec.start `{line}`: not done after {} ms", self.spec.jail.exec.timeout),
            }
        }
        Ok(())
    }

    /// The main process; none in a persistent jail without a command.
    fn main(&mut self) -> Result<Option<i32>> {
        if self.spec.jail.exec.command.is_empty() {
            return Ok(None);
        }
        let launch = Launch::main(self.spec)?;
        self.launch(&launch).map(Some)
    }

    fn launch(&self, launch: &Launch) -> Result<i32> {
        let copies =
            [self.streams[0].try_clone()?, self.streams[1].try_clone()?, self.streams[2].try_clone()?];
        let terminal = self.spec.stdio.is_console();
        let start =
            Start { launch, profile: &self.spec.profile, program: self.program, dies_with_parent: false };
        program::spawn(&start, copies, terminal)
    }

    /// Waits for one child, reaping all others; `None` when the time is over.
    fn wait_for(&mut self, child: i32, limit_ms: Option<u64>) -> Result<Option<Ended>> {
        let start = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        loop {
            while let Some((pid, ended)) = process::reap_any()? {
                if pid == child {
                    return Ok(Some(ended));
                }
            }
            let left = limit_ms.map(|limit| i64::try_from(limit).unwrap_or(i64::MAX) - elapsed_ms(start));
            if left.is_some_and(|left| left <= 0) {
                return Ok(None);
            }
            self.wait(left)?;
        }
    }

    /// Until the main process ends, or a persistent jail is asked to end.
    fn until_end(&mut self, main: Option<i32>) -> Result<Ended> {
        loop {
            while let Some((pid, ended)) = process::reap_any()? {
                if Some(pid) == main {
                    return Ok(ended);
                }
            }
            match (self.wait(None)?, main) {
                (Some(signal), Some(main)) if signal != libc::SIGCHLD => process::signal_child(main, signal),
                (Some(libc::SIGTERM | libc::SIGINT | libc::SIGPWR), None) => return self.end_all(),
                _ => {}
            }
        }
    }

    /// A persistent jail's end: everyone is asked, and waited for.
    fn end_all(&mut self) -> Result<Ended> {
        process::signal_all(libc::SIGTERM);
        let start = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        while elapsed_ms(start) < LAST_WAIT_MS && process::has_children() {
            while process::reap_any()?.is_some() {}
            if process::has_children() {
                self.wait(Some(LAST_WAIT_MS - elapsed_ms(start)))?;
            }
        }
        Ok(Ended { code: Some(0), signal: None })
    }

    /// The next signal, or `None` when `limit_ms` passed.
    fn wait(&self, limit_ms: Option<i64>) -> Result<Option<i32>> {
        let limit = limit_ms.map(|ms| Timespec { tv_sec: ms / 1000, tv_nsec: (ms % 1000) * 1_000_000 });
        let mut fds = [PollFd::new(self.signals, PollFlags::IN)];
        match poll(&mut fds, limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e).context("poll for signals"),
        }
        let signal = self.signals.read_signal().context("read a signal")?;
        Ok(signal.map(|s| s.ssi_signo.cast_signed()))
    }
}

fn elapsed_ms(start: Timespec) -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    (now.tv_sec - start.tv_sec) * 1000 + (now.tv_nsec - start.tv_nsec) / 1_000_000
}
