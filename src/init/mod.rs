//! What runs inside the new namespaces: from the first instruction after clone3(2) to the jail's
//! program. One thread, no way back to the host; any failure is reported to the keeper and fatal.
//!
//! The order is that of the security profile: cgroup, keyring, private mounts by descriptor,
//! masks, pivot_root, sysctls, names, and for each program user, capabilities, no_new_privs and
//! the filter as the last act before execve(2).

pub mod console;
mod devices;
mod mounts;
mod pid1;
pub mod program;
mod sysctl;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use crate::jail::NetworkMode;
use crate::spec::{Spec, Stdio};
use crate::sys::{confine, mount, namespace, process, socket};
use crate::{network, root};

pub use mounts::attributes as mount_attributes;

/// Exit status of an init that could not do its work; the report says why.
const INIT_FAILED: i32 = 125;

/// What the keeper opened on the host before the jail existed; inherited over the clone.
pub struct Inherited {
    /// cgroup v1 `tasks` files to join by writing "0".
    pub join: Vec<OwnedFd>,
    /// Detached mounts of device nodes, each with its name below /dev.
    pub devices: Vec<(String, OwnedFd)>,
    /// The program's standard streams, unless the console replaces them.
    pub streams: Option<[OwnedFd; 3]>,
}

/// From the keeper to the init.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    /// Ids are mapped and the link is there. Descriptors: the root's mount, the host's /usr when
    /// `host_usr`, then one mount for each `[[mount]]` that binds, in order; `missing` says which
    /// optional ones have none.
    Ready { missing: Vec<usize> },
    /// Start the program.
    Go,
}

/// From the init to the keeper.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    /// The jail exists; with a console, its descriptor comes along.
    Created,
    Started,
    /// One line: verb, object, cause; and the status a caller passes on (125 to 127).
    Failed {
        reason: String,
        status: i32,
    },
    /// The main process has ended, or a persistent jail was asked to.
    Ended {
        code: Option<i32>,
        signal: Option<i32>,
    },
}

/// Entered by the child of clone3(2); never returns.
///
/// `channel` is the socket to the keeper, and stays open here whatever is closed further down.
pub fn enter(spec: &Spec, channel: BorrowedFd<'_>, inherited: Inherited) -> ! {
    let error = match run(spec, channel, inherited) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    let report = Report::Failed { reason: program::reason(&error), status: program::exit_status(&error) };
    // When the keeper is gone too there is nobody left to tell.
    let _ = tell(channel, &report, &[]);
    process::exit_now(INIT_FAILED)
}

fn run(spec: &Spec, channel: BorrowedFd<'_>, inherited: Inherited) -> Result<std::convert::Infallible> {
    process::set_parent_death_signal(Some(rustix::process::Signal::KILL))?;
    process::name(c"stockade-init");
    confine::set_dumpable(false)?;
    process::block_all_signals();
    // First, for it takes the longest: meanwhile the keeper puts the root together.
    if spec.network.is_none() && spec.jail.network.mode != NetworkMode::Inherit {
        namespace::unshare(libc::CLONE_NEWNET).context("unshare the network namespace")?;
    }
    for tasks in &inherited.join {
        rustix::io::write(tasks, b"0").context("join the cgroup")?;
    }
    drop(inherited.join);
    namespace::unshare(libc::CLONE_NEWCGROUP).context("unshare the cgroup namespace")?;
    rustix::process::setsid().context("setsid")?;
    confine::join_session_keyring()?;

    let (order, descriptors) = receive(channel)?;
    let Order::Ready { missing } = order else { bail!("the keeper sent {order:?} before the mounts") };
    become_root()?;
    // Again: the kernel forgets it whenever credentials change, prctl(2).
    process::set_parent_death_signal(Some(rustix::process::Signal::KILL))?;
    confine::umask(spec.profile.umask);
    let root = build_root(spec, &inherited.devices, descriptors, &missing)?;
    drop(inherited.devices);
    names(spec)?;
    let console = console::open(spec.stdio, root.as_fd())?;
    mount::pivot(root.as_fd())?;
    drop(root);

    let attached: Vec<BorrowedFd<'_>> = console.iter().map(|c| c.master.as_fd()).collect();
    tell(channel, &Report::Created, &attached)?;
    let (order, _) = receive(channel)?;
    let Order::Go = order else { bail!("the keeper sent {order:?} instead of go") };
    if spec.jail.root.read_only {
        mounts::make_root_read_only()?;
    }
    let streams = match (console, inherited.streams) {
        (Some(console), _) => console.into_streams()?,
        (None, Some(streams)) => streams,
        (None, None) => bail!("no standard streams were given"),
    };
    // `run` is its jail's keeper and reaps it; a jail that is defined outlives a killed keeper.
    if !spec.stdio.is_callers() {
        process::set_parent_death_signal(None)?;
    }
    pid1::serve(spec, channel, streams)
}

/// Ids 0 of the jail's own range, and no group of the host's.
pub fn become_root() -> Result<()> {
    confine::setgroups(&[])?;
    confine::setresgid(0)?;
    confine::setresuid(0)?;
    confine::set_dumpable(false)
}

/// Everything below the jail's /, in the order in which it must be mounted.
fn build_root(
    spec: &Spec,
    devices: &[(String, OwnedFd)],
    descriptors: Vec<OwnedFd>,
    missing: &[usize],
) -> Result<OwnedFd> {
    mount::make_all_private().context("make every mount private")?;
    let mut descriptors = descriptors.into_iter();
    let root = descriptors.next().ok_or_else(|| anyhow!("the keeper sent no root"))?;
    let here = mount::open_path(std::path::Path::new("/"))?;
    mount::attach(root.as_fd(), here.as_fd()).context("attach the root")?;
    drop(here);
    // While nothing of the host's is mounted below it, so that nothing of the host's is hit.
    root::files::write(root.as_fd(), &spec.etc, 0).context("tell the jail who it is")?;
    if spec.root.host_usr() {
        let usr = descriptors.next().ok_or_else(|| anyhow!("the keeper sent no /usr"))?;
        mounts::attach_at(root.as_fd(), "usr", usr.as_fd(), true)?;
    }
    let proc = mounts::proc(root.as_fd())?;
    // Through the jail's own procfs: the host's looks up network parameters of all jails in one list.
    let own_proc = format!("/proc/self/fd/{}", proc.as_raw_fd());
    // The host's own network is not a jail's to change, were it only its loopback.
    if spec.jail.network.mode != NetworkMode::Inherit {
        network::configure(spec.network.as_ref(), std::path::Path::new(&own_proc))?;
    }
    sysctl::apply(spec, proc.as_fd())?;
    devices::dev(root.as_fd(), devices, spec)?;
    mounts::sys(root.as_fd(), spec)?;
    mounts::scratch(root.as_fd(), spec)?;
    mounts::from_definition(root.as_fd(), spec, descriptors, missing)?;
    mounts::mask(root.as_fd(), &spec.profile)?;
    Ok(root)
}

/// Host name, domain name.
fn names(spec: &Spec) -> Result<()> {
    rustix::system::sethostname(spec.jail.hostname().as_bytes()).context("set the host name")?;
    if let Some(domain) = &spec.jail.host.domainname {
        rustix::system::setdomainname(domain.as_bytes()).context("set the domain name")?;
    }
    Ok(())
}

/// Sends a report with descriptors.
pub fn tell(channel: BorrowedFd<'_>, report: &Report, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
    let message = serde_json::to_vec(report).context("write a report")?;
    socket::send(channel, &message, descriptors)
}

fn receive(channel: BorrowedFd<'_>) -> Result<(Order, Vec<OwnedFd>)> {
    let (message, descriptors) = socket::receive(channel)?.ok_or_else(|| anyhow!("the keeper is gone"))?;
    Ok((serde_json::from_slice(&message).context("read an order")?, descriptors))
}

impl Stdio {
    /// Whether the jail lives for the command that runs it, and must not outlive it.
    pub fn is_callers(self) -> bool {
        matches!(self, Stdio::Inherit | Stdio::Relay)
    }

    /// Whether the main process gets a pseudo-terminal of the jail's own.
    pub fn is_console(self) -> bool {
        matches!(self, Stdio::Console | Stdio::Relay)
    }
}
