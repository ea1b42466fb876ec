//! Processes: clone3(2), pidfds, signals, and names for processes that cannot be re-used.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitOptions, WaitStatus};

use crate::live::Process;

/// libc's constant of this name is too narrow for its value, linux/sched.h.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// 52 numbers of at most 20 digits, and a name of at most 64 bytes.
const STAT_BYTES_MAX: usize = 2048;
/// linux/sched.h: it has begun to end.
const PF_EXITING: u64 = 0x4;

/// What [`clone3`] returns on each side.
pub enum Cloned {
    Child,
    Parent { pid: i32, pidfd: OwnedFd },
}

/// clone3(2) with a pidfd and without a shared stack: a fork into new namespaces. `cgroup` is a
/// cgroup v2 directory for CLONE_INTO_CGROUP.
///
/// # Safety
/// The caller must have one thread only, as after fork(2): the child goes on with a copy of
/// whatever locks other threads held.
pub unsafe fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    let mut pidfd: i32 = -1;
    // SAFETY: clone_args is plain integers, for which all zero bits are valid.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = flags | libc::CLONE_PIDFD as u64;
    arguments.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    if let Some(directory) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = u64::try_from(directory.as_raw_fd()).expect("a descriptor is not negative");
    }
    // SAFETY: the arguments live across the call, their size is given, and no stack is passed, so
    // the child returns here on a copy of this one.
    let returned =
        unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>()) };
    match returned {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Cloned::Child),
        pid => Ok(Cloned::Parent {
            pid: i32::try_from(pid).expect("a pid fits"),
            // SAFETY: the kernel stored a fresh descriptor there that nobody else owns.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        }),
    }
}

/// The name ps(1) and top(1) show, at most 15 bytes; a program executed by descriptor is named
/// by that descriptor's number otherwise.
pub fn name(name: &std::ffi::CStr) {
    // PR_SET_NAME reads memory of ours and has no other way to fail.
    let _ = rustix::thread::set_name(name);
}

/// fork(3), the C library's own: its allocator is whole in the child even where other threads
/// were allocating, as they do in tests.
pub fn fork() -> io::Result<Cloned> {
    // SAFETY: the child of a process with one thread may do anything. Ours have one, but in tests,
    // where the children allocate, write and end, which the C library's fork allows for.
    let pid = match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        0 => return Ok(Cloned::Child),
        pid => pid,
    };
    let number = Pid::from_raw(pid).expect("a child has a number");
    match rustix::process::pidfd_open(number, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Cloned::Parent { pid, pidfd }),
        Err(error) => {
            // Nobody would wait for it otherwise.
            signal_child(pid, libc::SIGKILL);
            let _ = rustix::process::waitpid(Some(number), WaitOptions::empty());
            Err(error.into())
        }
    }
}

/// Ends this process at once, without running exit handlers.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit(2) takes any status and does not return.
    unsafe { libc::_exit(status) }
}

/// A pidfd for `process`, if that very process still runs.
pub fn open(process: Process) -> Option<OwnedFd> {
    let pid = Pid::from_raw(process.pid)?;
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?;
    // Checked after the open: from here on the number cannot be given to another process.
    (start_time(process.pid).ok()? == process.start_time).then_some(pidfd)
}

/// A pidfd for that very process and what is to be told of it, if it still runs.
pub fn hold(process: Process) -> Option<(OwnedFd, Stat)> {
    let pidfd = rustix::process::pidfd_open(Pid::from_raw(process.pid)?, PidfdFlags::empty()).ok()?;
    // Looked at after the open: from here on the number cannot be given to another process.
    look(process).map(|found| (pidfd, found))
}

/// Whether that very process still runs (a zombie counts as gone).
pub fn alive(process: Process) -> bool {
    look(process).is_some()
}

/// What is to be told of that very process, if it still runs.
pub fn look(process: Process) -> Option<Stat> {
    let found = stat(process.pid).ok()?;
    let same = found.start_time == process.start_time && !matches!(found.state, b'Z' | b'X');
    same.then_some(found)
}

/// `pid` with its start time, so that it can be told from a later process of the same number.
pub fn identify(pid: i32) -> Result<Process> {
    Ok(Process { pid, start_time: start_time(pid)? })
}

fn start_time(pid: i32) -> Result<u64> {
    stat(pid).map(|found| found.start_time)
}

/// Fields 3, 4, 9 and 22 of proc_pid_stat(5).
#[derive(Debug, PartialEq, Eq)]
pub struct Stat {
    state: u8,
    /// 0 when it cannot be seen from here. Who loses its parent, zombie or not, gets another one.
    pub parent: i32,
    /// Its root and its namespaces may be gone already.
    pub ends: bool,
    start_time: u64,
}

fn stat(pid: i32) -> Result<Stat> {
    let path = format!("/proc/{pid}/stat");
    let mut text = [0; STAT_BYTES_MAX];
    let mut open = File::open(&path).with_context(|| format!("open {path}"))?;
    // All of it comes with one read, or the process has ended.
    let length = open.read(&mut text).with_context(|| format!("read {path}"))?;
    parse_stat(&text[..length]).ok_or_else(|| anyhow!("read {path}: not the format of proc_pid_stat(5)"))
}

/// The command's name may hold blanks, brackets and any other byte, so the fields are counted from
/// its last bracket.
pub(crate) fn parse_stat(text: &[u8]) -> Option<Stat> {
    let after = text.iter().rposition(|byte| *byte == b')')? + 1;
    let mut fields = std::str::from_utf8(&text[after..]).ok()?.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    let parent = fields.next()?.parse().ok()?;
    let flags: u64 = fields.nth(4)?.parse().ok()?;
    let ends = flags & PF_EXITING != 0;
    Some(Stat { state, parent, ends, start_time: fields.nth(12)?.parse().ok()? })
}

/// Takes from a child what a service manager gave to the daemon alone: that the kernel's killer
/// looks elsewhere first. Written from outside, with the right to, so that a jail cannot take it
/// back, proc_pid_oom_score_adj(5). A value that is no privilege stays.
pub fn be_ordinary_to_oom(pid: u32) {
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    if own.trim().parse::<i32>().is_ok_and(|score| score < 0) {
        // A child that has ended already needs nothing.
        let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), "0");
    }
}

/// Gives memory that was freed back to the kernel; the allocator would keep what a pass has used.
pub fn trim_memory() {
    // SAFETY: takes a count of bytes to keep and touches nothing but the allocator's own lists.
    unsafe { libc::malloc_trim(0) };
}

pub fn signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: only descriptors and integers; a null siginfo asks for the default one.
    let returned = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<u8>(), 0)
    };
    if returned == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Waits until the process behind `pidfd` has ended; false when `timeout` passed first.
pub fn wait_gone(pidfd: BorrowedFd<'_>, timeout: Duration) -> Result<bool> {
    /// In between the daemon tells that it waits and does not hang.
    const TURN: Duration = Duration::from_secs(1);
    let end = Instant::now() + timeout;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        let limit = Timespec::try_from(left.min(TURN)).expect("a timeout fits");
        match poll(&mut fds, Some(&limit)) {
            Ok(0) if left > TURN => crate::supervisor::progress(),
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e).context("poll a process descriptor"),
        }
    }
}

/// How a child ended, and reaps it.
pub fn reap(pidfd: BorrowedFd<'_>) -> Result<Ended> {
    loop {
        match rustix::process::waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED) {
            Ok(Some(status)) => {
                return Ok(Ended { code: status.exit_status(), signal: status.terminating_signal() });
            }
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e).context("wait for a child"),
        }
    }
}

/// Exit code or signal, whichever it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    pub code: Option<i32>,
    pub signal: Option<i32>,
}

impl Ended {
    /// As a shell shows it: the code, or 128 plus the signal.
    pub fn status(self) -> i32 {
        self.code.unwrap_or_else(|| 128 + self.signal.unwrap_or(0))
    }
}

/// Reaps any child that has ended; `None` when none has.
pub fn reap_any() -> Result<Option<(i32, Ended)>> {
    match rustix::process::wait(WaitOptions::NOHANG) {
        Ok(Some((pid, status))) => Ok(Some((pid.as_raw_nonzero().get(), ended(status)))),
        Ok(None) | Err(rustix::io::Errno::CHILD) => Ok(None),
        Err(e) => Err(e).context("wait for children"),
    }
}

/// Whether this process has children left, running or not reaped.
pub fn has_children() -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    rustix::process::waitid(WaitId::All, options).is_ok()
}

fn ended(status: WaitStatus) -> Ended {
    Ended { code: status.exit_status(), signal: status.terminating_signal() }
}

/// The signal that is sent to this process when its parent ends, prctl(2) PR_SET_PDEATHSIG.
pub fn set_parent_death_signal(signal: Option<Signal>) -> Result<()> {
    rustix::process::set_parent_process_death_signal(signal).context("set the parent death signal")
}

/// Blocks every signal for this thread.
pub fn block_all_signals() {
    set_signal_mask(nix::sys::signal::SigSet::all());
}

/// An empty mask and default dispositions, as a program expects them.
pub fn reset_signals() {
    for number in 1..=libc::SIGRTMAX() {
        if number == libc::SIGKILL || number == libc::SIGSTOP {
            continue;
        }
        // SAFETY: SIG_DFL installs no code of ours; numbers libc keeps for itself are refused
        // with EINVAL, which is fine.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    set_signal_mask(nix::sys::signal::SigSet::empty());
}

fn set_signal_mask(mask: nix::sys::signal::SigSet) {
    mask.thread_set_mask().expect("SIG_SETMASK with a valid set cannot fail");
}

unsafe extern "C" {
    /// Where the linker has put this program, and the end of its code; ld(1), end(3).
    static __executable_start: u8;
    static etext: u8;
}

/// Gives back the pages of the program's own code that getting here has touched. They are clean
/// and come back from the page cache when they are run again; a process that from now on mostly
/// sleeps needs few.
pub fn forget_touched_code() {
    // A multiple of every page size there is.
    let page = 65_536;
    let first = (&raw const __executable_start).addr().next_multiple_of(page);
    let last = (&raw const etext).addr() / page * page;
    if last > first {
        // SAFETY: the range holds nothing but the program's read-only and executable segments,
        // private mappings of a file that nobody has written to: what is dropped is read again.
        unsafe { libc::madvise(std::ptr::without_provenance_mut(first), last - first, libc::MADV_DONTNEED) };
    }
}

/// Ends this process by SIGPIPE, as it ends other programs whose reader has gone. Until then the
/// signal is ignored, as Rust leaves it: a message that nobody reads must not end what acts.
pub fn end_by_pipe_signal() {
    // SAFETY: SIG_DFL installs no code of ours, and raise(3) takes a plain integer.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::raise(libc::SIGPIPE);
    }
}

/// Lets this process open as many files as its hard limit says.
pub fn raise_descriptor_limit() -> std::io::Result<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, rustix::process::Rlimit { current: limit.maximum, ..limit })?)
}

/// Writing to a reader that has gone is an error like others, for those who have more to say then.
pub fn ignore_pipe_signal() {
    // SAFETY: SIG_IGN installs no code of ours, and SIGPIPE may be ignored.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// A signalfd(2) for every signal; they must be blocked.
pub fn signal_descriptor() -> Result<nix::sys::signalfd::SignalFd> {
    use nix::sys::signalfd::{SfdFlags, SignalFd};
    let all = nix::sys::signal::SigSet::all();
    SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("open a signal descriptor")
}

/// Sends `signal` to every process this one may signal, except itself and pid 1; kill(2) with -1.
pub fn signal_all(signal: i32) {
    // SAFETY: plain integers. ESRCH means there was nobody, which is as good.
    unsafe { libc::kill(-1, signal) };
}

/// Sends `signal` to a child of this process that has not been reaped.
pub fn signal_child(pid: i32, signal: i32) {
    // SAFETY: plain integers; an unreaped child's number cannot have been given to another.
    unsafe { libc::kill(pid, signal) };
}

/// Sends `signal` to a process group whose leader this process has started and not reaped.
pub fn signal_group(leader: i32, signal: i32) {
    // SAFETY: plain integers. ESRCH means that it has ended already.
    unsafe { libc::kill(-leader, signal) };
}

/// The number of a signal by its name without `SIG`, as kill(1) takes it; also `RTMIN+3`.
pub fn signal_number(name: &str) -> Option<i32> {
    let name = name.strip_prefix("SIG").unwrap_or(name);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        let offset: i32 = if offset.is_empty() { 0 } else { offset.strip_prefix('+')?.parse().ok()? };
        let number = libc::SIGRTMIN() + offset;
        return (0..=30).contains(&offset).then_some(number);
    }
    if let Ok(number) = name.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    format!("SIG{name}").parse::<nix::sys::signal::Signal>().ok().map(|s| s as i32)
}

/// execve(2): only returns when it failed.
pub fn execve(
    path: &std::ffi::CStr,
    arguments: &[std::ffi::CString],
    environment: &[std::ffi::CString],
) -> io::Error {
    match nix::unistd::execve(path, arguments, environment) {
        Ok(never) => match never {},
        Err(errno) => io::Error::from_raw_os_error(errno as i32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_survives_any_name() {
        for (flags, ends) in [("4194560", false), ("4194564", true)] {
            let tail = format!("S 1 1 1 0 -1 {flags} 1 2 3 4 5 6 7 8 20 0 1 0 4242 1 2 3");
            let expect = Some(Stat { state: b'S', parent: 1, ends, start_time: 4242 });
            for name in [&b"x"[..], b"a b", b"a) R 1", b"((", b")", b"\xff"] {
                let text = [b"7 (", name, b") ", tail.as_bytes()].concat();
                assert_eq!(parse_stat(&text), expect, "{}", name.escape_ascii());
            }
        }
        assert_eq!(parse_stat(b"7 (x"), None);
    }

    #[test]
    fn a_process_is_itself_only() {
        let me = identify(std::process::id().cast_signed()).expect("this process runs");
        assert!(alive(me) && open(me).is_some());
        let other = Process { start_time: me.start_time + 1, ..me };
        assert!(!alive(other) && open(other).is_none());
        assert_eq!(
            look(me).map(|found| found.parent),
            Some(std::os::unix::process::parent_id().cast_signed())
        );
    }

    #[test]
    fn signals_by_name() {
        for (name, number) in [("TERM", 15), ("SIGHUP", 1), ("9", 9), ("RTMIN+3", libc::SIGRTMIN() + 3)] {
            assert_eq!(signal_number(name), Some(number), "{name}");
        }
        for name in ["", "FOO", "0", "65", "RTMIN+99", "-1"] {
            assert_eq!(signal_number(name), None, "{name}");
        }
    }
}
