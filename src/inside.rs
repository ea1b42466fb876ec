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

use crate::init::console::{self, Console};
use crate::init::program::{self, Launch};
use crate::jail::{Jail, NetworkMode};
use crate::limits::{Cgroup, Hierarchies};
use crate::live::{Process, Record};
use crate::security::{self, Profile};
use crate::sys::process;
use crate::sys::{confine, namespace, socket};
use crate::terminal;

/// argv[0] by which the program knows that it is to pay a visit; the visit is on standard input.
pub const INSIDE_NAME: &str = "stockade-inside";

/// Who is visited and what is to run there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Visit {
    pub init: Process,
    pub cgroup_parent: String,
    pub name: String,
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
            cgroup_parent: cgroup_parent.to_owned(),
            name: record.name.to_string(),
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
    eprintln!("stockade: {error:#}");
    program::exit_status(error)
}

/// Joins and runs; returns the program's own status. For a process with one thread. Without
/// `streams` the program gets a pseudo-terminal of the jail's that is relayed to this terminal.
pub fn run(visit: &Visit, streams: Option<[OwnedFd; 3]>) -> Result<i32> {
    let pidfd = process::open(visit.init).ok_or_else(|| anyhow!("{}: it is not running", visit.name))?;
    let cgroup = Cgroup::open(&Hierarchies::detect()?, &visit.cgroup_parent, &visit.name)?;
    let join = cgroup.join_files()?;
    let unified = cgroup.unified_dir()?;
    confine::set_dumpable(false)?;
    let program = visit.profile.program();
    enter(visit, pidfd.as_fd())?;
    if socket::readable(pidfd.as_fd()) {
        bail!("{}: it has ended", visit.name);
    }
    confine::setgroups(&[])?;
    confine::setresgid(0)?;
    confine::setresuid(0)?;
    confine::set_dumpable(false)?;
    let console = if streams.is_none() { Some(open_console()?) } else { None };
    let launch = Launch::resolve(
        visit.argv.clone(),
        visit.user.as_deref(),
        &visit.env,
        visit.workdir.as_deref(),
        &visit.profile,
    )?;
    let (master, streams, terminal) = match (console, streams) {
        (Some(console), _) => (Some(console.master.try_clone()?), console.into_streams()?, true),
        (None, Some(streams)) => (None, streams, false),
        (None, None) => bail!("no standard streams were given"),
    };
    let start = program::Start { launch: &launch, profile: &visit.profile, program: program.as_deref(), terminal };
    let child = program::spawn_joining(&start, streams, &join, unified.as_ref().map(AsFd::as_fd))?;
    drop(join);
    terminal::relay(master.as_ref().map(AsFd::as_fd), child.pidfd.as_fd(), &|number| {
        // A program that has ended needs no signal.
        let _ = process::signal(child.pidfd.as_fd(), number);
    })?;
    Ok(process::reap(child.pidfd.as_fd())?.status())
}

/// All namespaces in one call; the user namespace first, as the kernel orders it itself.
fn enter(visit: &Visit, pidfd: BorrowedFd<'_>) -> Result<()> {
    let mut flags = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    flags |= libc::CLONE_NEWCGROUP;
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

fn open_console() -> Result<Console> {
    let root = crate::sys::mount::open_path(std::path::Path::new("/"))?;
    let console = console::allocate(root.as_fd())?;
    terminal::copy_size(console.master.as_fd());
    Ok(console)
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
    let input = child.stdin.take().ok_or_else(|| anyhow!("start a visit: it has no input"))?;
    serde_json::to_writer(input, visit).context("write a visit")?;
    let shown = visit.argv.join(" ");
    match crate::execute::hook::wait(&mut child, limit).with_context(|| format!("`{shown}`"))? {
        Some(status) if status.success() => Ok(()),
        Some(status) => bail!("`{shown}` in the jail: {status}"),
        None => bail!("`{shown}` in the jail: not done after {} ms", limit.as_millis()),
    }
}

