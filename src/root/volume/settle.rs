//! Makes a jail's volume what it is to be, before a start: made, moved, or only put in order.
//! Whatever is cut off here is begun anew by the next start; until the note says otherwise the data
//! is where it was.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::Mode;

use super::{Kind, image, jail_directory, limit, merged, moving, part, subvolume};
use crate::jail::{JailName, Limits};
use crate::root::copy::Progress;
use crate::root::own;
use crate::storage::{Choice, Ground, Held};
use crate::sys::file;

/// Whose volume it is, and what is below its writes.
pub struct Place<'a> {
    pub state: &'a Path,
    pub name: &'a JailName,
    pub first_id: u32,
    /// Topmost first.
    pub layers: &'a [PathBuf],
    /// What was set aside, and the volume is to begin as: a subvolume or a thick root.
    pub like: Option<PathBuf>,
    pub limits: &'a Limits,
    pub ground: &'a Ground,
    pub progress: Progress<'a>,
}

impl Place<'_> {
    pub fn path(&self) -> PathBuf {
        jail_directory(self.state, self.name)
    }
}

/// Afterwards the volume is of the chosen kind, has its data, and keeps its limits.
pub fn settle(place: &Place<'_>, choice: &Choice) -> Result<()> {
    if choice.kind == Kind::Tmpfs {
        // What is on disk, if anything, is not asked for now, and yet nobody's to throw away here.
        return Ok(());
    }
    let path = place.path();
    crate::journal::make_directory(&path, 0o700)?;
    match super::held(place.state, place.name)? {
        Some(held) if !super::is_made(place.state, place.name, held.kind) => {
            make(place, choice).with_context(|| format!("make the jail's {} anew", choice.kind))?;
        }
        Some(held) if held.kind == choice.kind => put_in_order(place, &held, choice)?,
        Some(held) => moving::move_to(place, &held, choice)
            .with_context(|| format!("move the jail's files from {} to {}", held.kind, choice.kind))?,
        None => make(place, choice).with_context(|| format!("make the jail's {}", choice.kind))?,
    }
    super::set_limits(
        place.state,
        place.name,
        place.first_id,
        (choice, place.limits),
        place.ground.grows_ext4,
    )
}

fn put_in_order(place: &Place<'_>, held: &Held, choice: &Choice) -> Result<()> {
    let path = place.path();
    let open = file::open_directory(&path)?;
    super::remove_others(open.as_fd(), &path, held.kind)?;
    if held.kind == Kind::Overlay {
        own::prepare(place.state, place.name, place.first_id, false)?;
    }
    let by_project = choice.quota == crate::storage::Quota::Project;
    if by_project && !limit::counted(&path) { moving::count_all(place) } else { Ok(()) }
}

fn make(place: &Place<'_>, choice: &Choice) -> Result<()> {
    let path = place.path();
    let open = file::open_directory(&path)?;
    for kind in Kind::ALL {
        super::remove_parts(open.as_fd(), &path, kind)?;
    }
    begin_count(place)?;
    match choice.kind {
        Kind::Overlay => {
            own::prepare(place.state, place.name, place.first_id, false)?;
            // What a jail never had anything else than needs no note.
            return if super::has(&open, super::NOTE) {
                super::write_note(&path, &held(choice))
            } else {
                Ok(())
            };
        }
        Kind::Tmpfs => return Ok(()),
        Kind::Btrfs | Kind::Directory if begin_alike(place, &open, choice.kind)? => {}
        Kind::Btrfs => drop(new_subvolume(&open, place.first_id)?),
        Kind::Image => drop(new_image(place, choice)?),
        Kind::Directory => {
            let root = new_root(place, &open)?;
            let layers = place.like.as_ref().map_or(place.layers, std::slice::from_ref);
            merged::copy(None, layers, (root.as_fd(), place.first_id), (place.state, place.progress))?;
            rustix::fs::syncfs(&root).context("write the root")?;
        }
    }
    rename_new(&open, choice.kind)?;
    super::write_note(&path, &held(choice))
}

/// Makes the new part of a subvolume that was set aside; false where there is none.
fn begin_alike(place: &Place<'_>, directory: &OwnedFd, kind: Kind) -> Result<bool> {
    let Some(like) = place.like.as_ref().and_then(|like| subvolume::open(like)) else { return Ok(false) };
    subvolume::snapshot(&like, directory.as_fd(), &format!("{}.new", part(kind)), false)?;
    Ok(true)
}

/// What is made from now on is counted, where the host can: a limit then needs no restart.
pub fn begin_count(place: &Place<'_>) -> Result<()> {
    if place.ground.project.is_ok() && place.first_id > 0 {
        return limit::count(&place.path(), place.first_id);
    }
    Ok(())
}

pub fn held(choice: &Choice) -> Held {
    let (kind, file_system, why) = (choice.kind, choice.file_system, choice.why.clone());
    Held { kind, file_system, why, bytes: None, counted: false }
}

pub fn rename_new(directory: &OwnedFd, kind: Kind) -> Result<()> {
    let name = part(kind);
    rustix::fs::renameat(directory, format!("{name}.new"), directory, name)
        .with_context(|| format!("rename {name}.new"))?;
    rustix::fs::fsync(directory).context("write the jail's directory")
}

pub fn new_subvolume(directory: &OwnedFd, first_id: u32) -> Result<OwnedFd> {
    let name = OsStr::new("volume.new");
    subvolume::create(directory.as_fd(), name)?;
    let top = file::open_child(directory, name)?;
    make_writable(top.as_fd(), first_id)?;
    Ok(top)
}

pub fn new_image(place: &Place<'_>, choice: &Choice) -> Result<PathBuf> {
    let path = place.path().join("image.new");
    let file_system = choice.file_system.unwrap_or(image::USUAL);
    image::create(&path, file_system, limit::image_bytes(place.limits))?;
    Ok(path)
}

/// As a subvolume where it can be one: that is copied at once, whatever is in it.
pub fn new_root(place: &Place<'_>, directory: &OwnedFd) -> Result<OwnedFd> {
    let name = OsStr::new("root.new");
    if place.ground.file_system == "btrfs" {
        subvolume::create(directory.as_fd(), name)?;
    } else {
        rustix::fs::mkdirat(directory, name, Mode::RWXU).context("make directory root.new")?;
    }
    Ok(file::open_child(directory, name)?)
}

/// Makes `upper` and `work` in a file system of the jail's own, unless they are there.
pub fn make_writable(top: BorrowedFd<'_>, first_id: u32) -> Result<()> {
    own::make_in(top, first_id)
}
