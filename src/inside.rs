//! A visit to a running jail: joins all its namespaces and its cgroup, takes on the full profile,
//! and runs one program. Serves `exec`, `shell`, `exec.stop` lines and `on_change` commands.
//!
//! Everything it relies on comes from the host's side, never from inside (CVE-2019-12589). The
//! jail is named by a pidfd of its init, checked against the start time in the record, so that it
//! cannot turn into another one on the way.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use crate::init::console;
use crate::init::program::{self, Launch, Start};
use crate::init::{self, Report};
use crate::jail::{Jail, NetworkMode};
use crate::limits::{Cgroup, Hierarchies};
use crate::live::{Process, Record};
use crate::security::seccomp::Instruction;
use crate::security::{self, Profile};
use crate::sys::process::{self, Cloned};
use crate::sys::{confine, namespace, socket};
use crate::terminal;

/// argv[0] by which the program knows that it is to pay a visit; the visit is on standard input.
pub const INSIDE_NAME: &str = "stockade-inside";

/// Who is visited and what is to run there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Visit {
    pub init: Process,
    pub cgroup_base: String,
    pub cgroup_parent: String,
    pub name: String,
    /// The jail's init rules over cgroups of its own.
    pub boot: bool,
    pub userns: bool,
    pub own_network: bool,
    pub profile: Profile,
    pub argv: Vec<String>,
    pub user: Option<String>,
    pub env: BTreeMap<String, String>,
    pub workdir: Option<PathBuf>,
}

impl Visit {
    /// A visit to the jail of `record` as its definition in force says.
    pub fn new(record: &Record, cgroup_parent: &str, argv: Vec<String>) -> Result<Self> {
        let jail = Jail::from_settings(&record.name, &record.settings).map_err(anyhow::Error::msg)?;
        let init = record.init.filter(|init| process::alive(*init));
        let init = init.ok_or_else(|| anyhow!("{}: it is not running", record.name))?;
        Ok(Self {
            init,
            cgroup_base: record.cgroup_base.clone(),
            cgroup_parent: cgroup_parent.to_owned(),
            name: record.name.to_string(),
            boot: jail.exec.boot.is_some(),
            userns: jail.security.userns,
            own_network: jail.network.mode != NetworkMode::Inherit,
            profile: security::profile(&jail).map_err(|r| crate::execute::refused(&r))?,
            argv,
            user: None,
            env: jail.exec.env.clone(),
            workdir: None,
        })
    }
}

/// The program's main when it was started as [`INSIDE_NAME`].
pub fn main() -> i32 {
    let visit: Visit = match serde_json::from_reader(std::io::stdin().lock()) {
        Ok(visit) => visit,
        Err(error) => return complain(&anyhow::Error::new(error).context("read a visit")),
    };
    let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty());
    let streams = null.context("open /dev/null").and_then(|null| {
        let error = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 3).context("copy a stream")?;
        Ok([null, error.try_clone().context("copy a stream")?, error])
    });
    match streams.and_then(|streams| run(&visit, Some(streams))) {
        Ok(status) => status,
        Err(error) => complain(&error),
    }
}

fn complain(error: &anyhow::Error) -> i32 {
    eprintln!("stockade: {}", program::reason(error));
    program::exit_status(error)
}

/// Joins and runs; returns the program's own status. For a process with one thread. Without
/// `streams` the program gets a pseudo-terminal of the jail's that is relayed to this terminal.
///
/// This process stays outside and keeps its streams; only the child enters. The child is cloned
/// straight into the jail's cgroup and pid namespace, while it still may, and is not dumpable
/// from its first instruction: what it holds of the host is out of the jail's reach (CVE-2016-9962).
pub fn run(visit: &Visit, streams: Option<[OwnedFd; 3]>) -> Result<i32> {
    let pidfd = process::open(visit.init).ok_or_else(|| anyhow!("{}: it is not running", visit.name))?;
    let hierarchies = Hierarchies::detect()?.at(&visit.cgroup_base)?;
    let cgroup = Cgroup::open(&hierarchies, &visit.cgroup_parent, &visit.name)?;
    if cgroup.frozen()? {
        bail!("{0}: it is frozen, `stockade thaw {0}` lets it go on", visit.name);
    }
    let entry = Entry { pidfd, join: cgroup.join_files()?, program: visit.profile.program(), streams };
    let unified = if visit.boot { cgroup.visitors_dir()? } else { cgroup.unified_dir()? };
    let (ours, theirs) = socket::pair()?;
    confine::set_dumpable(false)?;
    namespace::setns(entry.pidfd.as_fd(), libc::CLONE_NEWPID).context("join the jail's pid namespace")?;
    // SAFETY: `exec` and visits are single-threaded from their first instruction.
    match unsafe { process::clone3(0, unified.as_ref().map(AsFd::as_fd)) }.context("fork into the jail")? {
        Cloned::Child => {
            drop(ours);
            let error = entry.enter(visit, theirs.as_fd());
            let report =
                Report::Failed { reason: program::reason(&error), status: program::exit_status(&error) };
            // The status tells it too.
            let _ = init::tell(theirs.as_fd(), &report, &[]);
            process::exit_now(program::exit_status(&error))
        }
        Cloned::Parent { pidfd: child, .. } => {
            drop((entry, theirs));
            accompany(child.as_fd(), ours.as_fd())
        }
    }
}

/// The part outside: the terminal, signals, and the end.
fn accompany(child: BorrowedFd<'_>, channel: BorrowedFd<'_>) -> Result<i32> {
    let mut master = None;
    loop {
        // The program's execve(2) closes the channel.
        let Some((message, mut descriptors)) = socket::receive(channel)? else { break };
        match serde_json::from_slice(&message).context("read a report")? {
            Report::Failed { reason, status } => {
                process::reap(child)?;
                return Err(program::failed(status, reason));
            }
            _ => master = descriptors.pop(),
        }
    }
    terminal::relay(master.as_ref().map(AsFd::as_fd), child, &|number| {
        // A program that has ended needs no signal.
        let _ = process::signal(child, number);
    })?;
    Ok(process::reap(child)?.status())
}

/// What the child needs to go in.
struct Entry {
    pidfd: OwnedFd,
    join: Vec<OwnedFd>,
    program: Option<Vec<Instruction>>,
    streams: Option<[OwnedFd; 3]>,
}

impl Entry {
    /// Returns only the reason why the program does not run.
    fn enter(self, visit: &Visit, channel: BorrowedFd<'_>) -> anyhow::Error {
        match self.go_in(visit, channel) {
            Ok((launch, streams, program)) => {
                let start = Start {
                    launch: &launch,
                    profile: &visit.profile,
                    program: program.as_deref(),
                    dies_with_parent: true,
                };
                program::become_program(&start, streams)
            }
            Err(error) => error,
        }
    }

    fn go_in(
        self,
        visit: &Visit,
        channel: BorrowedFd<'_>,
    ) -> Result<(Launch, [OwnedFd; 3], Option<Vec<Instruction>>)> {
        for tasks in &self.join {
            rustix::io::write(tasks, b"0").context("join the cgroup")?;
        }
        confine::join_session_keyring()?;
        join_namespaces(visit, self.pidfd.as_fd())?;
        if socket::readable(self.pidfd.as_fd()) {
            bail!("{}: it has ended", visit.name);
        }
        init::become_root()?;
        let streams = match self.streams {
            Some(streams) => {
                program::new_session()?;
                streams
            }
            None => open_console(channel)?,
        };
        let workdir = visit.workdir.as_deref();
        let launch =
            Launch::resolve(visit.argv.clone(), visit.user.as_deref(), &visit.env, workdir, &visit.profile)?;
        Ok((launch, streams, self.program))
    }
}

/// All other namespaces in one call; the user namespace first, as the kernel orders it itself.
fn join_namespaces(visit: &Visit, pidfd: BorrowedFd<'_>) -> Result<()> {
    let mut flags = libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWCGROUP;
    if visit.userns {
        flags |= libc::CLONE_NEWUSER;
    }
    if visit.own_network {
        flags |= libc::CLONE_NEWNET;
    }
    if std::path::Path::new("/proc/self/ns/time").exists() {
        flags |= libc::CLONE_NEWTIME;
    }
    namespace::setns(pidfd, flags).context("join the jail's namespaces")
}

/// A terminal of the jail's; its master goes out to the one who relays it.
fn open_console(channel: BorrowedFd<'_>) -> Result<[OwnedFd; 3]> {
    let root = crate::sys::mount::open_path(std::path::Path::new("/"))?;
    let console = console::allocate(root.as_fd())?;
    terminal::copy_size(console.master.as_fd());
    init::tell(channel, &Report::Created, &[console.master.as_fd()])?;
    program::take_terminal(&console.slave)?;
    console.into_streams()
}

/// Pays a visit from a process with threads, by a process of its own; its status must be 0.
pub fn send(program: &OwnedFd, visit: &Visit, limit: Duration) -> Result<()> {
    let mut child = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
        .arg0(INSIDE_NAME)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()
        .context("start a visit")?;
    // Before it has read whom to visit, so that nothing inside is spared what the daemon is.
    process::be_ordinary_to_oom(child.id());
    let input = child.stdin.take().ok_or_else(|| anyhow!("start a visit: it has no input"))?;
    serde_json::to_writer(input, visit).context("write a visit")?;
    let shown = visit.argv.join(" ");
    match crate::execute::hook::wait(&mut child, limit, &|| false).with_context(|| format!("`{shown}`"))? {
        Some(status) if status.success() => Ok(()),
        Some(status) => bail!("`{shown}` in the jail: {status}"),
        None => bail!("`{shown}` in the jail: not done after {} ms", limit.as_millis()),
    }
}
