//! Moves a jail's data from one kind of volume to another, while the jail is down: the new one is
//! made beside the old, filled, put on the disk and renamed; the note decides which one counts.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, FileType, Mode};

use super::settle::{Place, begin_count, held, new_image, new_root, new_subvolume, rename_new};
use super::{Kind, THICK, Volume, image, limit, merged};
use crate::root::copy::{self, Owners};
use crate::root::{marks, own};
use crate::storage::{Choice, Held};
use crate::sys::file;

/// Names in the top directory of a root.
const NAMES_MAX: usize = 1_000_000;

pub fn move_to(place: &Place<'_>, from: &Held, choice: &Choice) -> Result<()> {
    let path = place.path();
    let open = file::open_directory(&path)?;
    super::remove_others(open.as_fd(), &path, from.kind)?;
    begin_count(place)?;
    let volume = Volume::open_as(&path, from)?;
    fill(place, &volume, choice, &open)?;
    drop(volume);
    rename_new(&open, choice.kind)?;
    super::write_note(&path, &held(choice))?;
    super::remove_parts(open.as_fd(), &path, from.kind)
}

fn fill(place: &Place<'_>, from: &Volume, choice: &Choice, directory: &OwnedFd) -> Result<()> {
    match choice.kind {
        Kind::Directory => {
            let root = new_root(place, directory)?;
            let to = (root.as_fd(), place.first_id);
            merged::copy(Some(from), place.layers, to, (place.state, place.progress))?;
            sync(&root)
        }
        Kind::Overlay => {
            rustix::fs::mkdirat(directory, "upper.new", Mode::RWXU).context("make upper.new")?;
            own::make_directory(directory.as_fd(), "work", 0o700, 0)?;
            let upper = file::open_child(directory, "upper.new".as_ref())?;
            fill_upper(place, from, &upper)
        }
        Kind::Btrfs => {
            let top = new_subvolume(directory, place.first_id)?;
            fill_upper(place, from, &file::open_child(&top, "upper".as_ref())?)
        }
        Kind::Image => {
            let path = new_image(place, choice)?;
            let top = image::mount(&path, choice.file_system.unwrap_or(image::USUAL))?;
            super::settle::make_writable(top.as_fd(), place.first_id)?;
            fill_upper(place, from, &file::open_child(&top, "upper".as_ref())?)
        }
        Kind::Tmpfs => Ok(()),
    }
}

fn fill_upper(place: &Place<'_>, from: &Volume, upper: &OwnedFd) -> Result<()> {
    if from.kind() == Kind::Directory {
        let root = file::open_child(from.directory(), THICK.as_ref())?;
        let owners = Owners::Shifted { from: 0, to: place.first_id };
        copy::tree(root.as_fd(), upper.as_fd(), owners, place.progress)?;
        hide_layers(place, upper)?;
    } else {
        let old = file::open_child(from.directory(), "upper".as_ref())?;
        copy::tree(old.as_fd(), upper.as_fd(), Owners::Same, place.progress)?;
    }
    sync(upper)
}

fn sync(directory: &OwnedFd) -> Result<()> {
    rustix::fs::syncfs(directory).context("put the copy on the disk")
}

/// A thick root shows nothing of the layers: each of its directories hides theirs, and what it has
/// no more is whited out.
fn hide_layers(place: &Place<'_>, upper: &OwnedFd) -> Result<()> {
    let own: std::collections::BTreeSet<OsString> = file::names(upper, NAMES_MAX)?.into_iter().collect();
    for name in &own {
        let stat = rustix::fs::statat(upper, name, AtFlags::SYMLINK_NOFOLLOW).context("stat")?;
        if FileType::from_raw_mode(stat.st_mode).is_dir() {
            let directory = file::open_child(upper, name)?;
            marks::hide_below(directory.as_fd()).with_context(|| format!("mark {}", name.display()))?;
        }
    }
    for layer in place.layers {
        let layer = file::open_directory(layer).with_context(|| format!("open {}", layer.display()))?;
        for name in file::names(&layer, NAMES_MAX)?.iter().filter(|name| !own.contains(*name)) {
            marks::white_out(upper, name)?;
        }
    }
    Ok(())
}

/// Gives all that the jail has to its project: once, for a jail that is older than the quota. The
/// jail's own directory last, for that one says that all of it is counted.
pub fn count_all(place: &Place<'_>) -> Result<()> {
    let path = place.path();
    let open = file::open_directory(&path)?;
    for name in ["upper", "work", THICK] {
        if let Ok(directory) = file::open_child(&open, name.as_ref()) {
            give_below(&directory, limit::project(place.first_id))
                .with_context(|| format!("count {}", Path::new(name).display()))?;
        }
    }
    limit::count(&path, place.first_id)
}

/// Directories on the way are not kept open: there may be more of them than descriptors.
fn give_below(top: &OwnedFd, project: u32) -> Result<()> {
    let mut pending = vec![std::path::PathBuf::new()];
    while let Some(path) = pending.pop() {
        let directory = open_below(top.as_fd(), &path)?;
        crate::sys::quota::give(directory.as_fd(), project, true).context("set the project")?;
        for name in file::names(&directory, NAMES_MAX)? {
            let stat = rustix::fs::statat(&directory, &name, AtFlags::SYMLINK_NOFOLLOW).context("stat")?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => pending.push(path.join(&name)),
                FileType::RegularFile => {
                    let flags = rustix::fs::OFlags::RDONLY
                        | rustix::fs::OFlags::NOFOLLOW
                        | rustix::fs::OFlags::NONBLOCK
                        | rustix::fs::OFlags::CLOEXEC;
                    let file = rustix::fs::openat(&directory, &name, flags, Mode::empty())
                        .with_context(|| format!("open {}", name.display()))?;
                    crate::sys::quota::give(file.as_fd(), project, false).context("set the project")?;
                }
                // Links and nodes hold no data, and cannot be opened to be given.
                _ => {}
            }
        }
    }
    Ok(())
}

fn open_below(top: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    let resolve = rustix::fs::ResolveFlags::BENEATH | rustix::fs::ResolveFlags::NO_SYMLINKS;
    file::open_inside(top, path, rustix::fs::OFlags::DIRECTORY, resolve)
        .with_context(|| format!("open {}", path.display()))
}
