//! Runs a command under ptrace(2), counts every system call that stockade's own processes make,
//! and lets one of them fail, be late, or be the last.
//!
//! strace(1) injects too, but its counter is each process's own: the third openat(2) would fail in
//! the starter, the keeper and the init at once, and the first of them hides the others.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc::user_regs_struct;
use nix::sys::ptrace::{self, Event, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::{calls, places};

/// How late a delayed call is.
const DELAY: Duration = Duration::from_millis(150);
/// Between two looks while a call is held back.
const LOOK: Duration = Duration::from_millis(1);
/// linux/ptrace.h: a stop that is neither a signal's nor a call's.
const EVENT_STOP: i32 = 128;
/// For a step that follows the command's end.
const LINGER: Duration = Duration::from_secs(1);
const SYSCALL_ENTRY: u8 = 1;
const SYSCALL_EXIT: u8 = 2;

/// One call: whose, which, and the how manieth of these.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Step {
    pub process: String,
    pub call: i64,
    pub number: usize,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} of {}", calls::name(self.call), self.number, self.process)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process is killed before the call.
    Kill,
    /// The call is not made and fails.
    Error(Errno),
    /// The call is made later, while all others go on.
    Delay,
}

/// What came of a command.
pub struct Traced {
    /// None: it was killed.
    pub status: Option<i32>,
    /// It took too long, and was killed for that.
    pub hung: bool,
    /// The fault was met.
    pub fired: bool,
    /// Each call of each process, in order, by its place; without places where a fault was to be met.
    pub calls: BTreeMap<(String, i64), Vec<String>>,
}

pub struct Order<'a> {
    pub words: &'a [String],
    /// The machine's directory.
    pub own: &'a Path,
    /// Processes of ours that run already, with a name for each.
    pub running: Vec<(i32, String)>,
    pub stdout: std::fs::File,
    pub stderr: std::fs::File,
    pub fault: Option<(Step, Fault)>,
    pub limit: Duration,
}

/// Runs to the end of the command itself; what it has left running goes on untraced.
pub fn run(order: Order<'_>) -> Traced {
    // In a thread of its own, for what ptrace(2) attaches to is a thread, and all is let go when
    // that ends.
    std::thread::scope(|scope| scope.spawn(|| trace(order)).join().expect("tracing does not panic"))
}

#[allow(clippy::zombie_processes)] // The tracer waits for it.
fn trace(order: Order<'_>) -> Traced {
    let mut command = Command::new("sh");
    command.args(["-c", "read go; exec \"$@\" < /dev/null", "sh"]).args(order.words);
    command.stdin(Stdio::piped()).stdout(order.stdout).stderr(order.stderr).env("NO_COLOR", "1");
    let mut child = command.spawn().expect("sh starts");
    let main = Pid::from_raw(child.id().cast_signed());
    let mut tracer = Tracer::new(main, order.own, order.fault);
    tracer.seize(main, "command");
    for (pid, name) in order.running {
        tracer.seize(Pid::from_raw(pid), &name);
        tracer.processes.get_mut(&pid).expect("it was just seized").ours = true;
    }
    let hung = AtomicBool::new(false);
    let (hangs, limit) = (&hung, order.limit);
    let (done, end) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if end.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                hangs.store(true, Ordering::Relaxed);
                // Nobody reaps it before the tracer has seen this.
                let _ = kill(main, Signal::SIGKILL);
            }
        });
        drop(child.stdin.take());
        tracer.serve();
        drop(done);
    });
    Traced {
        status: tracer.status,
        hung: hung.into_inner(),
        fired: tracer.fired,
        calls: tracer
            .processes
            .into_values()
            .flat_map(|process| {
                let name = process.name;
                process.calls.into_iter().map(move |(call, places)| ((name.clone(), call), places))
            })
            .collect(),
    }
}

struct Process {
    name: String,
    /// It runs stockade, not a hook's shell or a jail's program.
    ours: bool,
    children: u32,
    calls: HashMap<i64, Vec<String>>,
}

struct Tracer {
    main: Pid,
    own: PathBuf,
    status: Option<i32>,
    program: (u64, u64),
    fault: Option<(Step, Fault)>,
    fired: bool,
    /// By thread-group leader, also of those that have ended.
    processes: HashMap<i32, Process>,
    /// Of each thread: its leader.
    threads: HashMap<i32, i32>,
    /// The last call of each thread, while steps are counted.
    last: HashMap<i32, i64>,
    /// Children that have stopped before their parents have told of them.
    early: Vec<Pid>,
    /// The error that a thread's call is to return.
    failing: HashMap<i32, Errno>,
    held: Vec<(Instant, Pid)>,
    ended: Option<Instant>,
}

impl Tracer {
    fn new(main: Pid, own: &Path, fault: Option<(Step, Fault)>) -> Self {
        let program = std::fs::metadata(env!("CARGO_BIN_EXE_stockade")).expect("stockade was built");
        Self {
            main,
            own: own.to_owned(),
            status: None,
            program: (program.dev(), program.ino()),
            fault,
            fired: false,
            processes: HashMap::new(),
            threads: HashMap::new(),
            last: HashMap::new(),
            early: Vec::new(),
            failing: HashMap::new(),
            held: Vec::new(),
            ended: None,
        }
    }

    fn seize(&mut self, pid: Pid, name: &str) {
        let options = Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEEXEC;
        ptrace::seize(pid, options).unwrap_or_else(|error| panic!("trace {name}: {error}"));
        ptrace::interrupt(pid).expect("what was just seized can be stopped");
        self.add(pid.as_raw(), pid.as_raw(), name.to_owned(), false);
    }

    fn add(&mut self, thread: i32, leader: i32, name: String, ours: bool) {
        self.threads.insert(thread, leader);
        let new = || Process { name, ours, children: 0, calls: HashMap::new() };
        self.processes.entry(leader).or_insert_with(new);
    }

    /// Until the command has ended; a step of what it has left running may be a little later.
    fn serve(&mut self) {
        while self.ended.is_none_or(|at| self.lacks_fault() && at.elapsed() < LINGER) {
            let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
            let look = !self.held.is_empty() || self.ended.is_some();
            let flags = if look { flags | WaitPidFlag::WNOHANG } else { flags };
            match waitpid(None, Some(flags)) {
                Ok(WaitStatus::StillAlive) => std::thread::sleep(LOOK),
                Ok(status) => self.event(status),
                Err(Errno::EINTR) => {}
                Err(Errno::ECHILD) => break,
                Err(error) => panic!("wait for the traced: {error}"),
            }
            let now = Instant::now();
            let due = |(at, _): &mut (Instant, Pid)| *at <= now;
            let due: Vec<_> = self.held.extract_if(.., due).collect();
            for (_, pid) in due {
                self.go_on(pid, None);
            }
        }
    }

    fn lacks_fault(&self) -> bool {
        self.fault.is_some() && !self.fired
    }

    fn event(&mut self, status: WaitStatus) {
        match status {
            WaitStatus::Exited(pid, code) => self.gone(pid, Some(code)),
            WaitStatus::Signaled(pid, _, _) => self.gone(pid, None),
            WaitStatus::PtraceSyscall(pid) => self.call(pid),
            WaitStatus::PtraceEvent(pid, _, EVENT_STOP) if !self.threads.contains_key(&pid.as_raw()) => {
                self.early.push(pid);
            }
            WaitStatus::PtraceEvent(pid, _, event) => {
                match event {
                    _ if event == Event::PTRACE_EVENT_EXEC as i32 => self.executed(pid),
                    EVENT_STOP => {}
                    _ => self.born(pid),
                }
                self.go_on(pid, None);
            }
            WaitStatus::Stopped(pid, signal) => self.go_on(pid, Some(signal)),
            _ => {}
        }
    }

    fn gone(&mut self, pid: Pid, code: Option<i32>) {
        self.threads.remove(&pid.as_raw());
        self.held.retain(|(_, held)| *held != pid);
        if pid == self.main {
            (self.status, self.ended) = (code, Some(Instant::now()));
        }
    }

    /// A fork, or a new thread of a process that is known.
    fn born(&mut self, parent: Pid) {
        let Ok(child) = ptrace::getevent(parent) else { return };
        let child = i32::try_from(child).expect("a pid fits");
        let of = self.threads[&parent.as_raw()];
        let leader = status_number(child, "Tgid:").unwrap_or(child);
        let above = self.processes.get_mut(&of).expect("a thread's leader is known");
        if leader == of {
            self.threads.insert(child, of);
        } else {
            above.children += 1;
            let (name, ours) = (format!("{}.{}", above.name, above.children), above.ours);
            self.add(child, leader, name, ours);
        }
        let early = |pid: &mut Pid| pid.as_raw() == child;
        let early: Vec<Pid> = self.early.extract_if(.., early).collect();
        for pid in early {
            self.go_on(pid, None);
        }
    }

    fn executed(&mut self, pid: Pid) {
        let program = std::fs::metadata(format!("/proc/{pid}/exe")).map(|file| (file.dev(), file.ino()));
        let leader = self.threads[&pid.as_raw()];
        let process = self.processes.get_mut(&leader).expect("a thread's leader is known");
        process.ours = program.is_ok_and(|program| program == self.program);
    }

    fn call(&mut self, pid: Pid) {
        // A process that was killed meanwhile cannot be asked any more; its end follows.
        let Ok(info) = ptrace::syscall_info(pid) else { return self.go_on(pid, None) };
        match info.op {
            SYSCALL_ENTRY => self.entered(pid),
            SYSCALL_EXIT => {
                if let Some(error) = self.failing.remove(&pid.as_raw()) {
                    set(pid, |regs| regs.rax = i64::from(-(error as i32)).cast_unsigned());
                }
                self.go_on(pid, None);
            }
            _ => self.go_on(pid, None),
        }
    }

    fn entered(&mut self, pid: Pid) {
        let Ok(regs) = ptrace::getregs(pid) else { return self.go_on(pid, None) };
        let call = regs.orig_rax.cast_signed();
        let leader = self.threads[&pid.as_raw()];
        let process = self.processes.get_mut(&leader).expect("a thread's leader is known");
        if !process.ours || calls::is_no_step(call, regs.rdi) {
            return self.go_on(pid, None);
        }
        let place =
            if self.fault.is_none() { place(&mut self.last, pid, &regs, &self.own) } else { String::new() };
        let made = process.calls.entry(call).or_default();
        made.push(place);
        let number = made.len();
        let here = |step: &Step| step.call == call && step.number == number && step.process == process.name;
        match &self.fault {
            Some((step, fault)) if !self.fired && here(step) => {
                let fault = *fault;
                self.fired = true;
                self.inject(pid, leader, fault);
            }
            _ => self.go_on(pid, None),
        }
    }

    fn inject(&mut self, pid: Pid, leader: i32, fault: Fault) {
        match fault {
            Fault::Kill => {
                // It has not been reaped, so the number is its own.
                let _ = kill(Pid::from_raw(leader), Signal::SIGKILL);
            }
            Fault::Error(error) => {
                set(pid, |regs| regs.orig_rax = u64::MAX);
                self.failing.insert(pid.as_raw(), error);
                self.go_on(pid, None);
            }
            Fault::Delay => self.held.push((Instant::now() + DELAY, pid)),
        }
    }

    /// To the next call that is of interest: once the fault has been met there is none but the failing
    /// call's end. A thread that is killed meanwhile needs nothing.
    fn go_on(&self, pid: Pid, signal: Option<Signal>) {
        let is_over = self.fired && !self.failing.contains_key(&pid.as_raw());
        let _ = if is_over { ptrace::cont(pid, signal) } else { ptrace::syscall(pid, signal) };
    }
}

/// What a thread calls, and what it has called before.
fn place(last: &mut HashMap<i32, i64>, thread: Pid, regs: &user_regs_struct, own: &Path) -> String {
    let this = places::of(thread.as_raw(), regs, own);
    let before = last.insert(thread.as_raw(), regs.orig_rax.cast_signed());
    format!("{this} after {}", before.map_or_else(String::new, calls::name))
}

fn set(pid: Pid, change: impl FnOnce(&mut user_regs_struct)) {
    if let Ok(mut regs) = ptrace::getregs(pid) {
        change(&mut regs);
        // As above.
        let _ = ptrace::setregs(pid, regs);
    }
}

fn status_number(pid: i32, key: &str) -> Option<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key))?.trim().parse().ok()
}
