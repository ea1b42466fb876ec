//! From a specification to a jail in which nothing runs yet: the host's half of the work.
//!
//! Sources are opened before the jail exists, by descriptor and checked; the rest needs the
//! jail's user namespace and follows right after the clone.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{CWD, FileType};

use crate::init::{self, Inherited, Order, Report};
use crate::jail::{Allow, Mount};
use crate::keeper::root;
use crate::limits::Cgroup;
use crate::spec::Spec;
use crate::sys::process::{self, Cloned};
use crate::sys::{mount, namespace, socket};
use crate::{network, security};

/// A jail that exists and waits for the word to start.
pub struct Created {
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// To its init.
    pub channel: OwnedFd,
    /// The console's master side, when it has one.
    pub master: Option<OwnedFd>,
}

/// A bind's source, or the index of an optional one that is not there.
struct Sources {
    mounts: Vec<(OwnedFd, bool)>,
    missing: Vec<usize>,
}

/// Makes the jail. On an error everything of it is gone again. With `at_once` the order to start
/// the program is given along with the first one.
pub fn create(spec: &Spec, cgroup: &Cgroup, streams: Option<[OwnedFd; 3]>, at_once: bool) -> Result<Created> {
    let sources = open_sources(&spec.jail.mount)?;
    let devices = open_devices(&spec.jail.allow)?;
    let (ours, theirs) = socket::pair()?;
    let join = cgroup.join_files()?;
    let unified = cgroup.unified_dir()?;
    namespace::unshare_time()?;

    // SAFETY: keeper and `run` are single-threaded from their first instruction.
    match unsafe { process::clone3(flags(spec), unified.as_ref().map(AsFd::as_fd)) }
        .context("clone the jail")?
    {
        Cloned::Child => {
            drop(ours);
            init::enter(spec, theirs.as_fd(), Inherited { join, devices, streams })
        }
        Cloned::Parent { pid, pidfd } => {
            drop((theirs, devices, join, streams));
            let created = Created { pid, pidfd, channel: ours, master: None };
            finish(spec, created, sources, at_once)
        }
    }
}

fn flags(spec: &Spec) -> u64 {
    let mut flags = namespace::JAIL;
    if spec.jail.security.userns {
        flags |= namespace::USER;
    }
    // One that nothing is put into is made by the init, beside what follows here.
    if spec.network.is_some() {
        flags |= namespace::NET;
    }
    flags
}

/// The part that needs the jail's process; kills it again when it fails.
fn finish(spec: &Spec, mut created: Created, sources: Sources, at_once: bool) -> Result<Created> {
    match furnish(spec, &created, sources, at_once).and_then(|()| hear_created(created.channel.as_fd())) {
        Ok(master) => {
            created.master = master;
            Ok(created)
        }
        Err(error) => {
            // The init's own word, if it has said one, is nearer to the cause than ours.
            let told = pending_report(created.channel.as_fd());
            end(&created);
            Err(told.unwrap_or(error))
        }
    }
}

/// Kills the jail's init, and with it everything inside, and reaps it.
pub fn end(created: &Created) {
    // Already gone is as good.
    let _ = process::signal(created.pidfd.as_fd(), libc::SIGKILL);
    let _ = process::reap(created.pidfd.as_fd());
}

fn furnish(spec: &Spec, created: &Created, sources: Sources, at_once: bool) -> Result<()> {
    process::be_ordinary_to_oom(created.pid.cast_unsigned());
    let userns = if spec.jail.security.userns {
        namespace::map_ids(created.pid, spec.first_id)?;
        Some(namespace::open(created.pid, "user")?)
    } else {
        None
    };
    let idmap = userns.as_ref().map(AsFd::as_fd);
    let mut mounts = root::assemble(spec, Some(created.pidfd.as_fd()), idmap)?;
    for (source, shift) in sources.mounts {
        if let (true, Some(idmap)) = (shift, idmap) {
            mount::set_attributes(source.as_fd(), 0, 0, Some(idmap), false)
                .context("shift the ids of a mount (`noidmap` turns it off)")?;
        }
        mounts.push(source);
    }
    if let Some(link) = &spec.network {
        network::connect(link, namespace::open(created.pid, "net")?.as_fd())?;
    }
    let descriptors: Vec<BorrowedFd<'_>> = mounts.iter().map(AsFd::as_fd).collect();
    order(created.channel.as_fd(), &Order::Ready { missing: sources.missing }, &descriptors)?;
    if at_once { order(created.channel.as_fd(), &Order::Go, &[]) } else { Ok(()) }
}

/// Sends an order to the init.
pub fn order(channel: BorrowedFd<'_>, order: &Order, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
    let message = serde_json::to_vec(order).context("write an order")?;
    socket::send(channel, &message, descriptors)
}

/// The init's next report; `None` when it has closed the channel.
pub fn hear(channel: BorrowedFd<'_>) -> Result<Option<(Report, Vec<OwnedFd>)>> {
    let Some((message, descriptors)) = socket::receive(channel)? else { return Ok(None) };
    Ok(Some((serde_json::from_slice(&message).context("read a report")?, descriptors)))
}

fn hear_created(channel: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
    match hear(channel)? {
        Some((Report::Created, mut descriptors)) => Ok(descriptors.pop()),
        Some((Report::Failed { reason, .. }, _)) => Err(anyhow!(reason)),
        Some((other, _)) => bail!("the init reported {other:?} before it was created"),
        None => bail!("the init died while it was set up"),
    }
}

fn pending_report(channel: BorrowedFd<'_>) -> Option<anyhow::Error> {
    if !socket::readable(channel) {
        return None;
    }
    match hear(channel) {
        Ok(Some((Report::Failed { reason, .. }, _))) => Some(anyhow!(reason)),
        _ => None,
    }
}

/// Opens every bind's source on the host as a detached mount with its attributes.
fn open_sources(wanted: &[Mount]) -> Result<Sources> {
    let mut sources = Sources { mounts: Vec::new(), missing: Vec::new() };
    for (index, entry) in wanted.iter().enumerate() {
        if entry.kind.as_deref().is_some_and(|kind| kind != "bind") {
            continue;
        }
        let has = |name: &str| entry.options.iter().any(|o| o == name);
        let recursive = has("rbind");
        if has("optional") && !entry.source.exists() {
            sources.missing.push(index);
            continue;
        }
        let copy = mount::clone_plain_tree(&entry.source, recursive)?;
        mount::set_attributes(copy.as_fd(), init::mount_attributes(&entry.options), 0, None, recursive)
            .with_context(|| format!("set the options of mount {}", entry.source.display()))?;
        sources.mounts.push((copy, !has("noidmap")));
    }
    Ok(sources)
}

/// The default nodes and the allowed ones; each must be the device it claims to be
/// (CVE-2025-31133: a /dev/null that is something else).
fn open_devices(allow: &Allow) -> Result<Vec<(String, OwnedFd)>> {
    let mut nodes = Vec::new();
    for device in security::devices(allow) {
        let node = open_node(&Path::new("/dev").join(device.name))?;
        let status = rustix::fs::fstat(&node)?;
        let (major, minor) = (rustix::fs::major(status.st_rdev), rustix::fs::minor(status.st_rdev));
        if (major, minor) != (device.major, device.minor) {
            bail!("open /dev/{}: it is device {major}:{minor}", device.name);
        }
        nodes.push((device.name.to_owned(), node));
    }
    for path in &allow.devices {
        let name =
            path.strip_prefix("/dev/").ok_or_else(|| anyhow!("allow.devices {path}: not below /dev"))?;
        nodes.push((name.to_owned(), open_node(Path::new(path))?));
    }
    Ok(nodes)
}

fn open_node(path: &Path) -> Result<OwnedFd> {
    let node = mount::clone_tree(CWD, path, false).with_context(|| format!("open {}", path.display()))?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&node)?.st_mode);
    if !kind.is_char_device() && !kind.is_block_device() {
        bail!("open {}: not a device", path.display());
    }
    mount::set_attributes(node.as_fd(), mount::NO_SUID | mount::NO_EXEC, 0, None, false)
        .with_context(|| format!("set the options of {}", path.display()))?;
    Ok(node)
}
