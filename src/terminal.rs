//! Relays a jail's pseudo-terminal to the terminal this command runs on: raw mode, window size,
//! and back to normal however it ends.

use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{OptionalActions, Termios};

const CHUNK: usize = 4096;
/// What is still in the jail's terminal after its program ended is read for at most this long.
const DRAIN_MS: i64 = 50;

/// Puts the terminal back when dropped.
struct Raw(Option<Termios>);

impl Raw {
    fn start(relayed: bool) -> Result<Self> {
        let input = rustix::stdio::stdin();
        if !relayed || !rustix::termios::isatty(input) {
            return Ok(Self(None));
        }
        let before = rustix::termios::tcgetattr(input).context("read the terminal's mode")?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(input, OptionalActions::Flush, &raw).context("set the terminal's mode")?;
        Ok(Self(Some(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // Nothing more can be done for a terminal that is gone.
            let _ = rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Flush, before);
        }
    }
}

/// Gives the jail's terminal the size of this one.
pub fn copy_size(master: BorrowedFd<'_>) {
    if let Ok(size) = rustix::termios::tcgetwinsize(rustix::stdio::stdin()) {
        // A terminal without a size keeps its own.
        let _ = rustix::termios::tcsetwinsize(master, size);
    }
}

/// Until the process behind `pidfd` ends: with a `master`, its output goes to standard output and
/// standard input goes to it; signals that would end this command are passed to `forward`.
pub fn relay(master: Option<BorrowedFd<'_>>, pidfd: BorrowedFd<'_>, forward: &dyn Fn(i32)) -> Result<()> {
    let _raw = Raw::start(master.is_some())?;
    let signals = catch()?;
    let mut input = master.is_some();
    loop {
        let mut fds = vec![PollFd::new(&pidfd, PollFlags::IN), PollFd::new(&signals, PollFlags::IN)];
        let stdin = rustix::stdio::stdin();
        if let Some(master) = &master {
            fds.push(PollFd::new(master, PollFlags::IN));
            if input {
                fds.push(PollFd::from_borrowed_fd(stdin, PollFlags::IN));
            }
        }
        rustix::io::retry_on_intr(|| poll(&mut fds, None)).context("poll")?;
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready[1] {
            while let Ok(Some(signal)) = signals.read_signal() {
                pass_on(signal.ssi_signo.cast_signed(), master, forward);
            }
        }
        if let Some(master) = master {
            if ready[2] {
                copy(master, rustix::stdio::stdout());
            }
            if ready.get(3) == Some(&true) && !copy(stdin, master) {
                input = false;
            }
        }
        if ready[0] {
            master.inspect(|master| drain(*master));
            return Ok(());
        }
    }
}

/// The key that leaves a console: ctrl-].
const LEAVE: u8 = 0x1d;

/// Relays a keeper's console until ctrl-] is typed or the other side closes.
pub fn attach(socket: BorrowedFd<'_>) -> Result<()> {
    let _raw = Raw::start(true)?;
    let stdin = rustix::stdio::stdin();
    let mut chunk = [0_u8; CHUNK];
    loop {
        let mut fds = [PollFd::new(&socket, PollFlags::IN), PollFd::from_borrowed_fd(stdin, PollFlags::IN)];
        rustix::io::retry_on_intr(|| poll(&mut fds, None)).context("poll")?;
        if !fds[0].revents().is_empty() {
            match crate::sys::socket::receive(socket)? {
                Some((bytes, _)) if write_all(rustix::stdio::stdout(), &bytes) => {}
                _ => return Ok(()),
            }
        }
        if !fds[1].revents().is_empty() {
            let length = rustix::io::read(stdin, &mut chunk).unwrap_or(0);
            if length == 0 || chunk[..length].contains(&LEAVE) {
                return Ok(());
            }
            crate::sys::socket::send(socket, &chunk[..length], &[])?;
        }
    }
}

fn pass_on(signal: i32, master: Option<BorrowedFd<'_>>, forward: &dyn Fn(i32)) {
    match (signal, master) {
        (libc::SIGWINCH, Some(master)) => copy_size(master),
        (libc::SIGWINCH | libc::SIGCHLD, _) => {}
        _ => forward(signal),
    }
}

/// The signals a command on a terminal gets.
fn signals() -> SigSet {
    let mut set = SigSet::empty();
    for signal in [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGWINCH,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
    ] {
        set.add(signal);
    }
    set
}

/// Keeps those signals for [`relay`], which passes on what has come since.
pub fn hold_signals() -> Result<()> {
    signals().thread_block().context("block signals")
}

/// Those signals as a descriptor.
fn catch() -> Result<SignalFd> {
    hold_signals()?;
    SignalFd::with_flags(&signals(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("open a signal descriptor")
}

/// One chunk from one side to the other; false at the end.
fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> bool {
    let mut chunk = [0_u8; CHUNK];
    match rustix::io::read(from, &mut chunk) {
        Ok(0) => false,
        Ok(length) => write_all(to, &chunk[..length]),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => true,
        Err(_) => false,
    }
}

fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => {
                let mut fds = [PollFd::from_borrowed_fd(to, PollFlags::OUT)];
                if poll(&mut fds, None).is_err() {
                    return false;
                }
            }
            Err(_) => return false,
        }
    }
    true
}

fn drain(master: BorrowedFd<'_>) {
    let limit = Timespec { tv_sec: 0, tv_nsec: DRAIN_MS * 1_000_000 };
    loop {
        let mut fds = [PollFd::new(&master, PollFlags::IN)];
        if !matches!(poll(&mut fds, Some(&limit)), Ok(1)) || !fds[0].revents().contains(PollFlags::IN) {
            return;
        }
        if !copy(master, rustix::stdio::stdout().as_fd()) {
            return;
        }
    }
}
