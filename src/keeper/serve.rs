//! The keeper's loop: one poll(2) over the starter, the init, the streams and whoever looks at
//! the console. Without any of them moving it sleeps.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::pty::OpenptFlags;

use crate::init::{Order, Report};
use crate::journal::exits;
use crate::keeper::create::{self, Created};
use crate::keeper::log::Log;
use crate::keeper::{Answer, PROTOCOL, Word, console_socket, say};
use crate::limits::Cgroup;
use crate::live::Exit;
use crate::spec::Spec;
use crate::sys::process::{self, Ended};
use crate::sys::socket;

/// Viewers of one console at a time.
const VIEWERS_MAX: usize = 16;
/// One read from the jail's output.
const CHUNK: usize = 4096;

/// How far the starter and the init have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The jail exists; the starter runs `exec.created`.
    Created,
    /// The init was told to go.
    Starting,
    /// The program runs; the starter runs `exec.poststart`.
    Up,
    /// On its own.
    Kept,
}

struct Keeper<'a> {
    spec: &'a Spec,
    cgroup: &'a Cgroup,
    jail: Created,
    stage: Stage,
    starter: Option<BorrowedFd<'a>>,
    /// The starter has gone before it said to keep the jail.
    abandoned: bool,
    /// The jail's output: a pipe's end or the console's master.
    output: Option<OwnedFd>,
    /// The console's other side, see [`hold_open`].
    _peer: Option<OwnedFd>,
    log: Log,
    listener: Option<OwnedFd>,
    viewers: Vec<OwnedFd>,
    reported: Option<Ended>,
    init_open: bool,
}

/// Which descriptor of the loop is ready.
#[derive(Clone, Copy)]
enum Source {
    Starter,
    Init,
    Pid,
    Output,
    Listener,
    Viewer(usize),
}

/// Serves until the jail has ended and its end is recorded.
pub fn serve(
    spec: &Spec,
    cgroup: &Cgroup,
    mut jail: Created,
    output: Option<OwnedFd>,
    starter: &OwnedFd,
) -> Result<()> {
    let answer = Answer::Created {
        protocol: PROTOCOL,
        keeper: process::identify(std::process::id().cast_signed())?,
        init: process::identify(jail.pid)?,
    };
    let log = Log::open(&spec.paths.log.join(format!("{}.log", spec.name())))
        .inspect_err(|_| create::end(&jail))?;
    let peer =
        jail.master.as_ref().map(|m| hold_open(m.as_fd())).transpose().inspect_err(|_| create::end(&jail))?;
    let output = jail.master.take().or(output);
    let listener =
        if spec.stdio.is_console() { Some(listen(spec).inspect_err(|_| create::end(&jail))?) } else { None };
    let starter = Some(starter.as_fd());
    let (stage, viewers, reported) = (Stage::Created, Vec::new(), None);
    let mut keeper = Keeper {
        spec,
        cgroup,
        jail,
        stage,
        starter,
        abandoned: false,
        output,
        _peer: peer,
        log,
        listener,
        viewers,
        reported,
        init_open: true,
    };
    keeper.tell_starter(&answer);
    keeper.until_end()?;
    keeper.record()
}

/// Opens the peer of a console's master. As long as we have it open, the master is no dead end when
/// everybody inside has closed theirs, as a whole system's init does at once and opens it anew.
fn hold_open(master: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    rustix::pty::ioctl_tiocgptpeer(master, flags).context("open the console's peer")
}

fn listen(spec: &Spec) -> Result<OwnedFd> {
    let path = console_socket(&spec.paths.run, spec.name());
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("remove {}", path.display()));
        }
        _ => {}
    }
    socket::listen(&path)
}

impl Keeper<'_> {
    fn until_end(&mut self) -> Result<()> {
        loop {
            let ready = self.wait()?;
            let mut gone = false;
            for source in ready {
                match source {
                    Source::Starter => self.starter_spoke()?,
                    Source::Init => self.init_spoke(),
                    Source::Output => self.read_output(),
                    Source::Listener => self.new_viewer(),
                    Source::Viewer(index) => self.viewer_typed(index),
                    Source::Pid => gone = true,
                }
            }
            self.viewers.retain(|viewer| socket::open(viewer.as_fd()));
            if gone {
                return Ok(());
            }
        }
    }

    fn wait(&self) -> Result<Vec<Source>> {
        let mut sources: Vec<(Source, BorrowedFd<'_>)> = vec![(Source::Pid, self.jail.pidfd.as_fd())];
        if self.init_open {
            sources.insert(0, (Source::Init, self.jail.channel.as_fd()));
        }
        sources.extend(self.starter.map(|fd| (Source::Starter, fd)));
        sources.extend(self.output.as_ref().map(|fd| (Source::Output, fd.as_fd())));
        sources.extend(self.listener.as_ref().map(|fd| (Source::Listener, fd.as_fd())));
        sources.extend(self.viewers.iter().enumerate().map(|(i, fd)| (Source::Viewer(i), fd.as_fd())));
        let mut fds: Vec<PollFd<'_>> = sources.iter().map(|(_, fd)| PollFd::new(fd, PollFlags::IN)).collect();
        rustix::io::retry_on_intr(|| poll(&mut fds, None)).context("poll")?;
        let ready = sources.iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready.map(|((source, _), _)| *source).collect())
    }

    /// The end of the starter before `Keep` is the end of the jail.
    fn starter_spoke(&mut self) -> Result<()> {
        let Some(starter) = self.starter else { return Ok(()) };
        // What could not be received is still there; without it a jail that is up would end.
        let heard = socket::receive(starter).or_else(|_| socket::receive(starter));
        let word = match heard {
            Ok(Some((message, _))) => serde_json::from_slice(&message).ok(),
            _ => None,
        };
        match (word, self.stage) {
            (Some(Word::Go), Stage::Created) => {
                self.stage = Stage::Starting;
                create::order(self.jail.channel.as_fd(), &Order::Go, &[])?;
            }
            (Some(Word::Keep), Stage::Up) => {
                self.stage = Stage::Kept;
                process::forget_touched_code();
                self.starter = None;
            }
            _ => self.abandon(),
        }
        Ok(())
    }

    fn init_spoke(&mut self) {
        match create::hear(self.jail.channel.as_fd()) {
            Ok(Some((Report::Started, _))) => {
                self.stage = Stage::Up;
                self.tell_starter(&Answer::Up);
            }
            Ok(Some((Report::Failed { reason, status }, _))) => {
                self.tell_starter(&Answer::Failed { reason, status });
                self.starter = None;
            }
            Ok(Some((Report::Ended { code, signal }, _))) => self.reported = Some(Ended { code, signal }),
            Ok(Some((Report::Created, _))) => {}
            Ok(None) => self.init_closed(),
            Err(error) => self.init_unheard(&error),
        }
    }

    /// A whole system's init closes the channel by executing its program; otherwise it is the end,
    /// which the pidfd tells too.
    fn init_closed(&mut self) {
        self.init_open = false;
        let alive = !socket::readable(self.jail.pidfd.as_fd());
        if alive && self.stage == Stage::Starting && self.spec.jail.exec.boot.is_some() {
            self.stage = Stage::Up;
            self.tell_starter(&Answer::Up);
        }
    }

    /// Without a word from the init nobody would ever know how the start went.
    fn init_unheard(&mut self, error: &anyhow::Error) {
        self.init_open = false;
        if matches!(self.stage, Stage::Created | Stage::Starting) {
            self.tell_starter(&Answer::Failed {
                reason: format!("hear from the init: {error:#}"),
                status: 125,
            });
            self.abandon();
        }
    }

    /// Ends a jail that will never be on its own.
    fn abandon(&mut self) {
        self.starter = None;
        self.abandoned = true;
        // Already dead is as good.
        let _ = process::signal(self.jail.pidfd.as_fd(), libc::SIGKILL);
    }

    fn reap(&self) -> Result<Ended> {
        process::reap(self.jail.pidfd.as_fd())
    }

    fn tell_starter(&mut self, answer: &Answer) {
        if let Some(starter) = self.starter
            && say(starter, answer).is_err()
        {
            // It is gone, or would wait for this word for ever.
            socket::shut(starter);
            self.abandon();
        }
    }

    fn read_output(&mut self) {
        let Some(output) = &self.output else { return };
        let mut chunk = [0_u8; CHUNK];
        match rustix::io::read(output, &mut chunk) {
            Ok(0) => self.output = None,
            Ok(length) => {
                self.log.write(&chunk[..length]);
                for viewer in &self.viewers {
                    // A viewer that does not read loses output, not the jail.
                    let _ = socket::send_now(viewer.as_fd(), &chunk[..length]);
                }
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(_) => self.output = None,
        }
    }

    fn new_viewer(&mut self) {
        let Some(listener) = &self.listener else { return };
        if let Ok(viewer) = socket::accept(listener.as_fd())
            && self.viewers.len() < VIEWERS_MAX
        {
            self.viewers.push(viewer);
        }
    }

    fn viewer_typed(&mut self, index: usize) {
        let (Some(viewer), Some(output)) = (self.viewers.get(index), &self.output) else { return };
        match socket::receive(viewer.as_fd()) {
            // What does not fit into the terminal's queue is lost, as on a serial line.
            Ok(Some((bytes, _))) => drop(rustix::io::write(output, &bytes)),
            _ => socket::shut(viewer.as_fd()),
        }
    }

    /// Everything the jail said, how it ended, and that it is gone.
    fn record(&mut self) -> Result<()> {
        while self.output.is_some() && self.output.as_ref().is_some_and(|o| socket::readable(o.as_fd())) {
            self.read_output();
        }
        self.log.finish();
        let reported = self.reported.take();
        let ended = match reported {
            Some(ended) => {
                // Reaps what the report has told already; it may have been reaped above.
                let _ = self.reap();
                ended
            }
            None => self.reap()?,
        };
        let exit = self.exit(ended);
        // What is left is found by the next pass.
        let removed = self.cgroup.kill_all().and_then(|()| self.cgroup.remove());
        if matches!(self.stage, Stage::Created | Stage::Starting) {
            let reason = format!("the init ended while it was set up (status {})", ended.status());
            self.tell_starter(&Answer::Failed { reason, status: 125 });
            return removed;
        }
        // It was us who ended an abandoned one: that is no end for the restart policy to judge.
        if !self.abandoned {
            write_record(self.spec, &exit)?;
        }
        removed
    }

    /// reboot(2) inside shows as SIGHUP (restart) or SIGINT (halt) of the init, pid_namespaces(7).
    fn exit(&self, ended: Ended) -> Exit {
        let boot = self.spec.jail.exec.boot.is_some();
        let reboot = boot && ended.signal == Some(libc::SIGHUP);
        let halt = boot && ended.signal == Some(libc::SIGINT);
        Exit {
            code: if halt { Some(0) } else { ended.code },
            signal: if halt || reboot { None } else { ended.signal },
            oom: self.cgroup.oom_kills().is_ok_and(|kills| kills > 0),
            reboot,
            at_ms: crate::journal::now_ms(),
        }
    }
}

fn write_record(spec: &Spec, exit: &Exit) -> Result<()> {
    let record = exits::ExitRecord { instance: spec.instance.clone(), exit: exit.clone() };
    let text = serde_json::to_vec(&record).context("write the exit record")?;
    crate::journal::replace(&exits::record(&spec.paths.run, spec.name()), &text)?;
    exits::leave(&spec.paths.run, spec.name()).context("leave word of the end")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_outlives_those_who_close_it() {
        let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let held = hold_open(master.as_fd()).unwrap();
        let inside = hold_open(master.as_fd()).unwrap();
        rustix::io::write(&inside, b"up").unwrap();
        drop(inside);
        let mut chunk = [0; 8];
        assert_eq!(rustix::io::read(&master, &mut chunk).unwrap(), 2);
        assert!(!socket::readable(master.as_fd()));
        drop(held);
        assert!(socket::readable(master.as_fd()));
        assert_eq!(rustix::io::read(&master, &mut chunk), Err(rustix::io::Errno::IO));
    }
}
