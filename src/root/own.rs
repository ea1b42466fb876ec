//! The directories of one jail's own writes, `jails/NAME/{upper,work}`.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{Gid, Mode, RenameFlags, Uid};
use rustix::io::Errno;

use super::removal;
use super::volume::{self, jail_directory};
use crate::jail::JailName;
use crate::sys::file;

/// Where one jail's writes go; both lie on the same file system, as overlayfs wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnWrites {
    pub upper: PathBuf,
    pub work: PathBuf,
}

/// Where the jail's writes are, made or not.
pub fn own_writes(state: &Path, name: &JailName) -> OwnWrites {
    let jail = jail_directory(state, name);
    OwnWrites { upper: jail.join("upper"), work: jail.join("work") }
}

/// Makes what is missing: `upper`, owned by the jail's root as seen from the host (`first_id`),
/// and `work`, the host's own. What is there stays as it is. With `counts` all that is made is
/// counted by the jail's project quota.
pub fn prepare(state: &Path, name: &JailName, first_id: u32, counts: bool) -> anyhow::Result<OwnWrites> {
    let own = own_writes(state, name);
    let jails = state.join("jails");
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&jails)
        .with_context(|| format!("make directory {}", jails.display()))?;
    let own_directory = jail_directory(state, name);
    make(&own_directory)?;
    if counts && first_id > 0 {
        volume::count(&own_directory, first_id)?;
    }
    make(&own.work)?;
    match file::open_directory(&own.upper) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => make_upper(&own_directory, first_id)?,
        // A link here would send the jail's writes elsewhere.
        other => drop(other.with_context(|| format!("open {}", own.upper.display()))?),
    }
    Ok(own)
}

/// Makes a directory of the host's own, unless it is there.
fn make(path: &Path) -> anyhow::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => file::open_directory(path).map(drop),
        other => other,
    }
    .with_context(|| format!("make directory {}", path.display()))
}

/// It has its name once it is the jail's: one that a start was cut off over would keep the jail
/// out of its own root for ever.
fn make_upper(jail: &Path, first_id: u32) -> anyhow::Result<()> {
    let directory = file::open_directory(jail).with_context(|| format!("open {}", jail.display()))?;
    removal::remove(&directory, "upper.new".as_ref())?;
    make_directory(directory.as_fd(), "upper.new", 0o755, first_id)?;
    rustix::fs::renameat_with(&directory, "upper.new", &directory, "upper", RenameFlags::NOREPLACE)
        .context("rename upper.new")
}

/// Makes `upper` and `work` in an open directory, unless they are there.
pub fn make_in(directory: BorrowedFd<'_>, first_id: u32) -> anyhow::Result<()> {
    make_directory(directory, "work", 0o700, 0)?;
    make_directory(directory, "upper", 0o755, first_id)
}

pub fn make_directory(directory: BorrowedFd<'_>, name: &str, mode: u32, owner: u32) -> anyhow::Result<()> {
    match rustix::fs::mkdirat(directory, name, Mode::RWXU) {
        Ok(()) => {}
        Err(Errno::EXIST) => return file::open_child(directory, name.as_ref()).map(drop).context("open it"),
        Err(error) => return Err(error).with_context(|| format!("make directory {name}")),
    }
    let directory = file::open_child(directory, name.as_ref()).with_context(|| format!("open {name}"))?;
    rustix::fs::fchown(&directory, Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner)))
        .with_context(|| format!("chown {name} to {owner}"))?;
    rustix::fs::fchmod(&directory, mode.into()).with_context(|| format!("chmod {name}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use rustix::fs::OFlags;

    use super::*;
    use crate::root::{discard, is_root};

    /// Deeper than a path can be long, and than a process has descriptors.
    const DEPTH: usize = 5_000;

    #[test]
    fn own_writes_are_made_once_and_discarded() {
        if !is_root("own_writes_are_made_once_and_discarded") {
            return;
        }
        let temporary = tempfile::tempdir().expect("a directory");
        let (state, name) = (temporary.path().join("state"), JailName::new("web").expect("a name"));
        discard(&state, &name).expect("nothing is there yet");
        let own = prepare(&state, &name, 1_000_000, false).expect("made");
        let upper = fs::metadata(&own.upper).expect("a directory");
        assert_eq!((upper.uid(), upper.gid(), upper.mode() & 0o7777), (1_000_000, 1_000_000, 0o755));
        let work = fs::metadata(&own.work).expect("a directory");
        assert_eq!((work.uid(), work.mode() & 0o7777), (0, 0o700));
        fs::write(own.upper.join("kept"), "x").expect("a file");
        assert_eq!(prepare(&state, &name, 1_000_000, false).expect("again"), own);
        assert!(own.upper.join("kept").exists());
        fs::remove_dir_all(&own.upper).expect("removed");
        fs::create_dir_all(state.join("jails/web/upper.new/cut")).expect("what was left");
        prepare(&state, &name, 1_000_000, false).expect("finished");
        let upper = fs::metadata(&own.upper).expect("a directory");
        assert_eq!((upper.uid(), upper.mode() & 0o7777), (1_000_000, 0o755));
        assert!(!own.upper.join("cut").exists());
        fs::write(state.join("jails/web/range"), "x").expect("a file");
        discard(&state, &name).expect("discarded");
        let left: Vec<_> = fs::read_dir(state.join("jails/web")).expect("a directory").collect();
        assert_eq!(left.len(), 1);
    }

    #[test]
    fn hostile_trees_are_removed_and_links_are_not_followed() {
        if !is_root("hostile_trees_are_removed_and_links_are_not_followed") {
            return;
        }
        let temporary = tempfile::tempdir().expect("a directory");
        let (state, name) = (temporary.path().join("state"), JailName::new("web").expect("a name"));
        let own = prepare(&state, &name, 1_000_000, false).expect("made");
        let outside = temporary.path().join("outside");
        fs::create_dir(&outside).expect("a directory");
        fs::write(outside.join("canary"), "alive").expect("a file");
        let mut at = file::open_directory(&own.upper).expect("open");
        for depth in 0..DEPTH {
            rustix::fs::mkdirat(&at, "d", Mode::from(0o000)).expect("a directory");
            rustix::fs::symlinkat(&outside, &at, "l").expect("a link");
            if depth < 8 {
                let flags = OFlags::CREATE | OFlags::WRONLY;
                drop(rustix::fs::openat(&at, ".removed-1", flags, Mode::from(0)).expect("a file"));
                rustix::fs::mkdirat(&at, ".removed-2", Mode::from(0)).expect("a directory");
            }
            at = file::open_child(&at, "d".as_ref()).expect("open");
        }
        symlink(&outside, own.work.join("work")).expect("a link");
        discard(&state, &name).expect("discarded");
        assert!(!own.upper.exists() && !own.work.exists());
        assert_eq!(fs::read(outside.join("canary")).expect("a file"), b"alive");
    }

    #[test]
    fn a_link_in_place_of_upper_is_refused() {
        let temporary = tempfile::tempdir().expect("a directory");
        let (state, name) = (temporary.path().to_owned(), JailName::new("web").expect("a name"));
        fs::create_dir_all(state.join("jails/web")).expect("a directory");
        symlink("/tmp", state.join("jails/web/upper")).expect("a link");
        let error = format!("{:#}", prepare(&state, &name, 1_000_000, false).expect_err("a link"));
        assert!(error.contains("upper"), "{error}");
    }
}
