//! Puts a jail's root together: layers with shifted ids under an overlay, made by the host's root.
//!
//! The layers are shifted before they are merged (an overlay itself cannot be), the upper is not:
//! its owner is the jail's root already. The overlay is made while standing in the jail's own
//! mount namespace, so that kernels before 6.15, which only stack attached mounts, take it too,
//! and nothing of it is ever seen on the host.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{CWD, Mode};

use crate::root::changes::OwnLower;
use crate::root::volume::{self, image};
use crate::spec::{RootSpec, Spec, Writes};
use crate::sys::mount::{self, NO_DEVICES, NO_SUID, READ_ONLY};
use crate::sys::namespace;

/// The longest value that fsconfig(2) takes, without its end.
const OPTION_BYTES_MAX: usize = 255;

/// The root's mount and, with `host_usr`, the one for /usr; both attached nowhere. Made in the
/// mount namespace of the jail behind `pidfd`, or without one in this process's own, which
/// nobody else is in.
pub fn assemble(
    spec: &Spec,
    pidfd: Option<BorrowedFd<'_>>,
    idmap: Option<BorrowedFd<'_>>,
) -> Result<Vec<OwnedFd>> {
    match &spec.root {
        RootSpec::Directory { path, host_usr } => {
            let root = mount::clone_plain_tree(path, false)?;
            mount::set_attributes(root.as_fd(), NO_DEVICES, 0, idmap, false)
                .with_context(|| format!("shift the ids of {}", path.display()))?;
            let usr = host_usr.then(|| usr(idmap)).transpose()?;
            Ok([root].into_iter().chain(usr).collect())
        }
        RootSpec::Overlay { own, lower, writes, host_usr } => {
            let own = own.iter().map(|lower| own_layer(lower, spec.first_id));
            let shared = lower.iter().map(|path| layer(path, idmap));
            let layers = own.chain(shared).collect::<Result<Vec<_>>>()?;
            let own = own_file_system(writes)?;
            let mut mounts = vec![inside(pidfd, || overlay(spec, &layers, writes, own.as_ref()))?];
            if *host_usr {
                mounts.push(usr(idmap)?);
            }
            Ok(mounts)
        }
    }
}

fn layer(path: &Path, idmap: Option<BorrowedFd<'_>>) -> Result<OwnedFd> {
    let copy =
        mount::clone_tree(CWD, path, false).with_context(|| format!("open layer {}", path.display()))?;
    mount::set_attributes(copy.as_fd(), READ_ONLY, 0, idmap, false)
        .with_context(|| format!("shift the ids of layer {}", path.display()))?;
    Ok(copy)
}

/// What this jail has written has its ids already; what another has gets them by its mount.
fn own_layer(lower: &OwnLower, first_id: u32) -> Result<OwnedFd> {
    if lower.first_id == first_id {
        return layer(&lower.path, None);
    }
    let shift = namespace::users(lower.first_id, first_id)?;
    layer(&lower.path, Some(shift.as_fd()))
}

/// The host's own /usr, read only.
fn usr(idmap: Option<BorrowedFd<'_>>) -> Result<OwnedFd> {
    let copy = mount::clone_tree(CWD, Path::new("/usr"), false).context("open /usr")?;
    mount::set_attributes(copy.as_fd(), READ_ONLY | NO_SUID | NO_DEVICES, 0, idmap, false)
        .context("shift the ids of /usr")?;
    Ok(copy)
}

/// Runs `work` in the jail's mount namespace and comes back.
fn inside<T>(pidfd: Option<BorrowedFd<'_>>, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let Some(pidfd) = pidfd else { return work() };
    let own = rustix::fs::open(
        "/proc/self/ns/mnt",
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
        Mode::empty(),
    )
    .context("open this mount namespace")?;
    namespace::setns(pidfd, libc::CLONE_NEWNS).context("enter the jail's mount namespace")?;
    let result = work();
    namespace::setns(own.as_fd(), libc::CLONE_NEWNS).context("leave the jail's mount namespace")?;
    result
}

fn overlay(spec: &Spec, layers: &[OwnedFd], writes: &Writes, own: Option<&OwnedFd>) -> Result<OwnedFd> {
    let place = mount::open_path(&spec.paths.state).context("find a place for the layers")?;
    // Before the layers cover the place below which they lie.
    let (upper, work) = writable(spec, writes, own, place.as_fd())?;
    for layer in layers {
        mount::attach(layer.as_fd(), place.as_fd()).context("attach a layer")?;
    }
    let lowers: Vec<String> = layers.iter().map(|layer| by_descriptor(layer.as_fd())).collect();
    let joined = lowers.join(":");
    let (upper, work) = (by_descriptor(upper.as_fd()), by_descriptor(work.as_fd()));
    let mut options = vec![("source", "stockade")];
    if joined.len() <= OPTION_BYTES_MAX {
        options.push(("lowerdir", &joined));
    } else {
        // One by one, which Linux has since 6.5.
        options.extend(lowers.iter().map(|lower| ("lowerdir+", lower.as_str())));
    }
    options.extend([
        ("upperdir", upper.as_str()),
        ("workdir", work.as_str()),
        ("metacopy", "off"),
        ("redirect_dir", "nofollow"),
        ("index", "off"),
        ("xino", "off"),
    ]);
    mount::create("overlay", &options, NO_DEVICES)
}

/// A descriptor as a path, which needs no escaping and cannot be renamed away.
fn by_descriptor(descriptor: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd())
}

/// The file system that is the jail's alone, mounted nowhere yet, where its writes have one.
fn own_file_system(writes: &Writes) -> Result<Option<OwnedFd>> {
    match writes {
        Writes::Kept { .. } => Ok(None),
        Writes::Image { file, file_system } => image::mount(file, *file_system).map(Some),
        Writes::Discarded { bytes, inodes } => {
            let (size, inodes) = (bytes.to_string(), inodes.map(|inodes| inodes.to_string()));
            let mut options = vec![("mode", "0700"), ("size", size.as_str())];
            options.extend(inodes.as_deref().map(|inodes| ("nr_inodes", inodes)));
            mount::create("tmpfs", &options, NO_DEVICES).map(Some)
        }
    }
}

/// Upper and work directories; the upper's top belongs to the jail's root.
fn writable(
    spec: &Spec,
    writes: &Writes,
    own: Option<&OwnedFd>,
    place: BorrowedFd<'_>,
) -> Result<(OwnedFd, OwnedFd)> {
    if let Writes::Kept { upper, work } = writes {
        return Ok((mount::open_path(upper)?, mount::open_path(work)?));
    }
    let own = own.context("the jail's own file system is not mounted")?;
    mount::attach(own.as_fd(), place).context("attach the jail's own file system")?;
    volume::make_writable(own.as_fd(), spec.first_id)?;
    let find = |name: &str| mount::resolve(own.as_fd(), Path::new(name), true);
    Ok((find("upper")?, find("work")?))
}
