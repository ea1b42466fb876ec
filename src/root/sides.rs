//! A jail's root as it is seen inside, and as its template alone would be, for who looks at it
//! from outside: read-only mounts that nobody else sees, with the ids that the jail sees.
//!
//! The kernel merges, so that whiteouts, opaque directories and what the layers hold mean here
//! exactly what they mean in the jail.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::CWD;

use super::changes::OwnLower;
use crate::sys::mount::{self, NO_DEVICES, NO_EXEC, NO_SUID, READ_ONLY};
use crate::sys::namespace;

/// Also the longest value that fsconfig(2) takes, without its end.
const OPTION_BYTES_MAX: usize = 255;

/// The mounts; they are gone when this is.
pub struct Sides {
    /// What the template shows.
    pub base: OwnedFd,
    /// What the jail shows.
    pub full: OwnedFd,
    /// What is the jail's own, topmost first, with its whiteouts.
    pub own: Vec<OwnedFd>,
}

impl Sides {
    /// Leaves the mount namespace of the process, for good: whatever else is needed of the
    /// host's mounts is opened before. `place` is a directory of no further use.
    pub fn open(layers: &[PathBuf], own: &[OwnLower], place: &Path) -> Result<Self> {
        ensure!(!layers.is_empty(), "it has no layers");
        namespace::unshare(libc::CLONE_NEWNS).context("leave the mount namespace")?;
        mount::make_all_private().context("make mounts private")?;
        let place = mount::open_path(place)?;
        let own = own.iter().map(own_layer).collect::<Result<Vec<_>>>()?;
        let layers = layers.iter().map(|path| copy(path)).collect::<Result<Vec<_>>>()?;
        // Kernels before 6.15 merge only what is attached somewhere.
        for layer in own.iter().chain(&layers) {
            mount::attach(layer.as_fd(), place.as_fd()).context("attach a layer")?;
        }
        let all: Vec<BorrowedFd<'_>> = own.iter().chain(&layers).map(AsFd::as_fd).collect();
        Ok(Self { base: merge(&all[own.len()..])?, full: merge(&all)?, own })
    }
}

fn copy(path: &Path) -> Result<OwnedFd> {
    let copy = mount::clone_tree(CWD, path, false).with_context(|| format!("open {}", path.display()))?;
    mount::set_attributes(copy.as_fd(), READ_ONLY, 0, None, false).context("make a layer read only")?;
    Ok(copy)
}

fn own_layer(lower: &OwnLower) -> Result<OwnedFd> {
    let copy = copy(&lower.path)?;
    if lower.first_id != 0 {
        let shift = namespace::users(lower.first_id, 0)?;
        mount::set_attributes(copy.as_fd(), 0, 0, Some(shift.as_fd()), false)
            .with_context(|| format!("shift the ids of {}", lower.path.display()))?;
    }
    Ok(copy)
}

fn merge(layers: &[BorrowedFd<'_>]) -> Result<OwnedFd> {
    let attributes = READ_ONLY | NO_SUID | NO_DEVICES | NO_EXEC;
    if let [only] = layers {
        // There is nothing to merge, and the kernel wants two.
        let copy = mount::clone_tree(*only, Path::new(""), false).context("copy a mount")?;
        mount::set_attributes(copy.as_fd(), attributes, 0, None, false).context("make a layer read only")?;
        return Ok(copy);
    }
    let names: Vec<String> = layers.iter().map(|one| format!("/proc/self/fd/{}", one.as_raw_fd())).collect();
    let joined = names.join(":");
    let mut options = vec![("source", "stockade")];
    if joined.len() <= OPTION_BYTES_MAX {
        options.push(("lowerdir", &joined));
    } else {
        options.extend(names.iter().map(|name| ("lowerdir+", name.as_str())));
    }
    options.extend([("metacopy", "off"), ("redirect_dir", "nofollow"), ("index", "off"), ("xino", "off")]);
    mount::create("overlay", &options, attributes)
}
