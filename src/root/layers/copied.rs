//! Layers that are copies: of a directory, and of a template's `files/`.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, XattrFlags};

use super::Progress;
use super::tree::{DEPTH_MAX, ENTRIES_MAX, Metadata, Tree};
use crate::desired::{CopiedFile, CopiedKind};
use crate::sys::file;

/// Attributes of overlayfs in their unprivileged spelling, which mean nothing in a copy.
const OVERLAY_ATTRIBUTES: &str = "user.overlay.";

/// Copies the directory at `path` with owners, modes, times, links and `user.*` attributes.
/// Device nodes, FIFOs and sockets are left out; other file systems mounted below are not entered.
pub fn directory(path: &Path, tree: &mut Tree, progress: Progress<'_>) -> anyhow::Result<()> {
    let top = file::open_directory(path).with_context(|| format!("open {}", path.display()))?;
    let device = rustix::fs::fstat(&top).context("stat")?.st_dev;
    let mut walk = Walk { tree, device, names: HashMap::new(), left_out: 0 };
    walk.directory(&top, Path::new(""), 0).with_context(|| format!("copy {}", path.display()))?;
    if walk.left_out > 0 {
        let count = walk.left_out;
        progress(&format!("{}: {count} device nodes, FIFOs and sockets are left out", path.display()));
    }
    Ok(())
}

struct Walk<'t> {
    tree: &'t mut Tree,
    device: u64,
    /// The first name of each file that has several, by inode.
    names: HashMap<u64, PathBuf>,
    left_out: u64,
}

impl Walk<'_> {
    /// The recursion is bounded by `DEPTH_MAX`.
    fn directory(&mut self, from: &OwnedFd, path: &Path, depth: usize) -> anyhow::Result<()> {
        ensure!(depth <= DEPTH_MAX, "{} is more than {DEPTH_MAX} directories deep", path.display());
        let stat = rustix::fs::fstat(from).context("stat")?;
        self.tree.directory(path, metadata(&stat)).with_context(|| path.display().to_string())?;
        if stat.st_dev != self.device {
            return Ok(());
        }
        let most = usize::try_from(ENTRIES_MAX).unwrap_or(usize::MAX);
        for name in file::names(from, most).with_context(|| format!("list {}", path.display()))? {
            let inner = path.join(&name);
            let stat = rustix::fs::statat(from, &name, AtFlags::SYMLINK_NOFOLLOW)
                .with_context(|| format!("stat {}", inner.display()))?;
            if FileType::from_raw_mode(stat.st_mode).is_dir() {
                let child =
                    file::open_child(from, &name).with_context(|| format!("open {}", inner.display()))?;
                self.directory(&child, &inner, depth + 1)?;
            } else {
                self.entry(from, &name, &inner, &stat).with_context(|| inner.display().to_string())?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, from: &OwnedFd, name: &OsString, path: &Path, stat: &Stat) -> anyhow::Result<()> {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(from, name, Vec::new()).context("read link")?;
                let target = OsString::from_vec(target.into_bytes());
                self.tree.link(path, Path::new(&target), metadata(stat))
            }
            FileType::RegularFile if stat.st_nlink > 1 && self.names.contains_key(&stat.st_ino) => {
                self.tree.hard_link(path, &self.names[&stat.st_ino])
            }
            FileType::RegularFile => {
                if stat.st_nlink > 1 {
                    self.names.insert(stat.st_ino, path.to_owned());
                }
                self.file(from, name, path)
            }
            _ => {
                self.left_out += 1;
                self.tree.budget.entry()
            }
        }
    }

    fn file(&mut self, from: &OwnedFd, name: &OsString, path: &Path) -> anyhow::Result<()> {
        let source = open_regular(from, name)?;
        let stat = rustix::fs::fstat(&source).context("stat")?;
        let made = self.tree.copy(path, metadata(&stat), &source)?;
        for (name, value) in file::attributes(&source, "user.").context("read attributes")? {
            if !name.to_string_lossy().starts_with(OVERLAY_ATTRIBUTES) {
                rustix::fs::fsetxattr(&made, &name, &value, XattrFlags::empty())
                    .context("set an attribute")?;
            }
        }
        Ok(())
    }
}

/// Opens a regular file and nothing else; what took its place since is not waited for.
pub fn open_regular(directory: impl AsFd, name: impl AsRef<Path>) -> anyhow::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, name.as_ref(), flags, Mode::empty()).context("open")?;
    let stat = rustix::fs::fstat(&file).context("stat")?;
    ensure!(FileType::from_raw_mode(stat.st_mode).is_file(), "not a regular file");
    Ok(File::from(file))
}

pub fn metadata(stat: &Stat) -> Metadata {
    Metadata {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid.into(),
        gid: stat.st_gid.into(),
        mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
    }
}

/// Lays a template's copied files, all owned by root inside the jail.
pub fn files(files: &[CopiedFile], tree: &mut Tree) -> anyhow::Result<()> {
    for file in files {
        one(file, tree).with_context(|| format!("copy {}", file.source.display()))?;
    }
    Ok(())
}

fn one(copied: &CopiedFile, tree: &mut Tree) -> anyhow::Result<()> {
    let mut metadata = Metadata { mode: copied.mode, ..Metadata::default() };
    match &copied.kind {
        CopiedKind::Directory => tree.directory(&copied.target, metadata),
        CopiedKind::Link(target) => tree.link(&copied.target, target, metadata),
        CopiedKind::File => {
            let source = open_regular(rustix::fs::CWD, &copied.source)?;
            let stat = rustix::fs::fstat(&source).context("stat")?;
            metadata.mtime = self::metadata(&stat).mtime;
            tree.copy(&copied.target, metadata, &source).map(drop)
        }
    }
}
