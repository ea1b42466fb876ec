//! What a jail sees of its layers and its own writes, put together by the kernel for a moment and
//! seen by nobody: what a thick root is copied from.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Kind, Volume};
use crate::root::copy::{self, Owners, Progress};
use crate::sys::mount::{self, READ_ONLY};
use crate::sys::{file, namespace};

/// Copies into `to` what the layers show, with the writes of `volume` above them: its owners are a
/// jail's, whose first id is `first_id`; the copy's are the ids inside, as the layers' are.
pub fn copy(
    volume: Option<&Volume>,
    layers: &[PathBuf],
    (to, first_id): (BorrowedFd<'_>, u32),
    (state, progress): (&Path, Progress<'_>),
) -> Result<()> {
    let upper = match volume {
        Some(volume) => Some(file::open_child(volume.directory(), "upper".as_ref()).context("open upper")?),
        None => None,
    };
    let opened = layers
        .iter()
        .map(|layer| file::open_directory(layer).with_context(|| format!("open {}", layer.display())))
        .collect::<Result<Vec<_>>>()?;
    let lower: Vec<BorrowedFd<'_>> = upper.iter().chain(&opened).map(AsFd::as_fd).collect();
    let merged;
    let from = match (lower.as_slice(), volume.filter(|volume| volume.kind() == Kind::Image)) {
        ([], _) => return Ok(()),
        ([one], _) => *one,
        (_, None) => {
            merged = merge(&lower)?;
            merged.as_fd()
        }
        (_, Some(image)) => {
            let apart = || merge_apart(state, image.directory(), lower[0], &opened);
            merged =
                std::thread::scope(|scope| scope.spawn(apart).join().expect("a panic ends the program"))?;
            merged.as_fd()
        }
    };
    copy::tree(from, to, Owners::Inner(first_id), progress).map(drop)
}

/// In a thread that leaves the host's mount namespace: kernels before 6.15 merge only what is
/// attached somewhere, and an image's file system is attached nowhere.
fn merge_apart(
    state: &Path,
    image: BorrowedFd<'_>,
    upper: BorrowedFd<'_>,
    layers: &[OwnedFd],
) -> Result<OwnedFd> {
    // First, while it is still the host's namespace that the copies are made from.
    let copies = layers
        .iter()
        .map(|layer| {
            let copy = mount::clone_tree(layer.as_fd(), Path::new(""), false)?;
            // Private too: the next one is attached on top of it.
            mount::set_attributes(copy.as_fd(), READ_ONLY, 0, None, false)?;
            Ok(copy)
        })
        .collect::<std::io::Result<Vec<_>>>()
        .context("copy a mount")?;
    namespace::unshare(libc::CLONE_NEWNS).context("leave the mount namespace")?;
    mount::make_all_private().context("make mounts private")?;
    let place = mount::open_path(state)?;
    for mount in copies.iter().map(AsFd::as_fd).chain([image]) {
        mount::attach(mount, place.as_fd()).context("attach a layer")?;
    }
    let lower: Vec<BorrowedFd<'_>> = [upper].into_iter().chain(copies.iter().map(AsFd::as_fd)).collect();
    merge(&lower)
}

fn merge(lower: &[BorrowedFd<'_>]) -> Result<OwnedFd> {
    let names: Vec<String> = lower.iter().map(|one| format!("/proc/self/fd/{}", one.as_raw_fd())).collect();
    let lowerdir = names.join(":");
    let options = [
        ("source", "stockade"),
        ("lowerdir", lowerdir.as_str()),
        ("metacopy", "off"),
        ("redirect_dir", "nofollow"),
        ("index", "off"),
        ("xino", "off"),
    ];
    mount::create("overlay", &options, READ_ONLY)
}
