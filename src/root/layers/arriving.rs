//! Layers that come as they are from another host, in an archive that may be hostile.
//!
//! Such a layer is named after what is found in it here, never after what it is said to be made
//! from: no template of this host builds under that name, and whoever brings other contents gets
//! another name. So nobody can put anything below a jail that does not ask for just that.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::Mode;

use super::manifest::{self, Contents, Lines};
use super::{BUILDING, Lock, is_built, open_layers};
use crate::root::removal;
use crate::sys::file;

/// Whether a layer of that name is here and is named after its contents: one that was made here
/// from something else is nobody's to ask for.
pub fn is_here(state: &Path, content: &str) -> bool {
    is_built(state, content)
        && manifest::recorded(state, content)
            .is_ok_and(|lines| lines.is_some_and(|lines| Contents::new(&lines).name == content))
}

/// A directory that is being filled. When its process dies, it is half a layer like any other.
pub struct Arriving {
    state: PathBuf,
    layers: OwnedFd,
    name: OsString,
    lock: Lock,
    /// What was found in it.
    lines: Lines,
}

impl Arriving {
    /// Makes a place for the layer of this number, of this process, and opens it.
    pub fn make(state: &Path, number: usize) -> Result<(Self, OwnedFd)> {
        let layers = open_layers(state)?;
        let own = format!("import-{}-{number}", std::process::id());
        let lock = Lock::take(&state.join("layers"), &own, &|_| ())?;
        let name = OsString::from(format!("{BUILDING}{own}"));
        // Of a process that had our number.
        removal::remove(&layers, &name)?;
        rustix::fs::mkdirat(&layers, &name, Mode::from(0o755)).context("make directory")?;
        let arriving = Self { state: state.to_owned(), layers, name, lock, lines: Lines::new() };
        let root = file::open_child(&arriving.layers, &arriving.name).context("open the new layer")?;
        Ok((arriving, root))
    }

    /// Puts all of it on the disk, and makes sure that its name is `content`.
    pub fn verify(&mut self, content: &str) -> Result<()> {
        let root = file::open_child(&self.layers, &self.name).context("open the new layer")?;
        rustix::fs::syncfs(&root).context("sync the file system")?;
        let lines = manifest::lines(&root)?;
        let found = Contents::new(&lines).name;
        ensure!(found == content, "its contents have the name {found}, and should have {content}");
        self.lines = lines;
        Ok(())
    }

    /// Gives it the name, when it has been verified.
    pub fn settle(self, content: &str) -> Result<()> {
        let lock = Lock::take(&self.state.join("layers"), content, &|_| ())?;
        let named = if is_here(&self.state, content) { Ok(()) } else { self.rename(&self.lines, content) };
        lock.release();
        self.remove().and(named)
    }

    fn rename(&self, lines: &Lines, content: &str) -> Result<()> {
        manifest::put(&self.state, content, lines)?;
        rustix::fs::renameat(&self.layers, &self.name, &self.layers, content).context("rename into place")?;
        rustix::fs::fsync(&self.layers).context("sync the directory of layers")
    }

    /// Removes what has not got its name.
    pub fn remove(self) -> Result<()> {
        removal::remove(&self.layers, &self.name)?;
        self.lock.release();
        Ok(())
    }
}
