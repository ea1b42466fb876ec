//! A tree that is to lie on others, as overlayfs lays them: what it hides of them, and directories
//! that it knows only by what is in them.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{ENTRIES_MAX, Metadata, Tree, inside, own};
use crate::root::layers::copied;
use crate::root::marks;
use crate::sys::file;

/// Bytes of all names of one layer's whiteouts, which are kept in memory.
const WHITEOUT_BYTES_MAX: usize = 64 << 20;

#[derive(Default)]
pub struct Below {
    /// Directories that no entry spoke of, only of what is in them.
    pub implied: Vec<PathBuf>,
    /// Paths that hide what layers below have there, made when all the others are.
    whiteouts: Vec<PathBuf>,
    whiteout_bytes: usize,
    /// Nothing of the layers below is to be seen.
    hides_all: bool,
}

impl Tree {
    /// What layers below have at `path` is not to be seen.
    pub fn whiteout(&mut self, path: &Path) -> anyhow::Result<()> {
        self.budget.entry()?;
        let path = inside(path)?;
        self.below.whiteout_bytes += path.as_os_str().len();
        ensure!(self.below.whiteout_bytes <= WHITEOUT_BYTES_MAX, "too many whiteouts");
        self.below.whiteouts.push(path);
        Ok(())
    }

    /// Of the directory at `path` nothing that layers below have in it is to be seen.
    pub fn opaque(&mut self, path: &Path) -> anyhow::Result<()> {
        self.budget.entry()?;
        let path = inside(path)?;
        if path.as_os_str().is_empty() {
            self.below.hides_all = true;
            return Ok(());
        }
        marks::hide_below(self.open_or_make(&path)?.as_fd())
    }

    /// Makes the whiteouts, and gives directories that were only implied what the layers `below`,
    /// topmost first, say of them.
    pub fn lie_on(&mut self, layers: &[OwnedFd]) -> anyhow::Result<()> {
        for layer in if self.below.hides_all { layers } else { &[] } {
            let most = usize::try_from(ENTRIES_MAX).unwrap_or(usize::MAX);
            let names = file::names(layer, most).context("list a layer below")?;
            self.below.whiteouts.extend(names.into_iter().map(PathBuf::from));
        }
        for path in std::mem::take(&mut self.below.whiteouts) {
            self.make_whiteout(&path).with_context(|| format!("whiteout of {}", path.display()))?;
        }
        let said: HashSet<PathBuf> = self.directories.iter().map(|(path, _)| path.clone()).collect();
        for path in std::mem::take(&mut self.below.implied) {
            if !said.contains(&path)
                && let Some(metadata) = seen(layers, &path)
                && let Ok(directory) = file::open_inside(self.root(), &path, OFlags::DIRECTORY, file::INSIDE)
            {
                own(&directory, metadata)?;
                self.directories.push((path, metadata.mtime));
            }
        }
        Ok(())
    }

    /// What the layer itself has there stays, but nothing from below shows through.
    fn make_whiteout(&mut self, path: &Path) -> anyhow::Result<()> {
        let (parent, name) = self.place(path)?;
        match rustix::fs::statat(parent, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() => {
                marks::hide_below(file::open_child(parent, &name)?.as_fd())
            }
            Ok(_) => Ok(()),
            Err(Errno::NOENT) => {
                rustix::fs::mknodat(parent, &name, FileType::CharacterDevice, Mode::empty(), 0)
                    .context("make a whiteout")
            }
            Err(error) => Err(error).context("stat"),
        }
    }
}

/// The directory at `path` as the topmost of the layers shows it that has anything there.
fn seen(layers: &[OwnedFd], path: &Path) -> Option<Metadata> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::PATH | OFlags::NOFOLLOW;
    let found =
        layers.iter().find_map(|layer| file::open_inside(layer.as_fd(), path, flags, resolve).ok())?;
    let stat = rustix::fs::fstat(&found).ok()?;
    FileType::from_raw_mode(stat.st_mode).is_dir().then(|| copied::metadata(&stat))
}
