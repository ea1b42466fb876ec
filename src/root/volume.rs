//! A jail's volume: the place that holds its own writes, whatever it is made of.
//!
//! On disk below `jails/NAME`: `volume.json` (the kind, absent for an overlay), and by kind
//! `upper` and `work`, `volume/`, `image` or `root/`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::jail::JailName;
use crate::sys::file;

pub use crate::storage::Kind;

/// An open volume. It stays usable while this lives, and nothing of it is seen on the host.
#[derive(Debug)]
pub struct Volume {
    kind: Kind,
    directory: OwnedFd,
}

impl Volume {
    /// The jail's volume; none when it has not written anything that is kept.
    pub fn open(state: &Path, name: &JailName) -> Result<Option<Self>> {
        let place = jail_directory(state, name);
        if !place.join("upper").exists() {
            return Ok(None);
        }
        let directory = file::open_directory(&place).with_context(|| format!("open {}", place.display()))?;
        Ok(Some(Self { kind: Kind::Overlay, directory }))
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The directory that contains `upper` and `work`, or with [`Kind::Directory`] `root`.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// All that is kept of a jail.
pub fn jail_directory(state: &Path, name: &JailName) -> PathBuf {
    state.join("jails").join(name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::{is_root, prepare};

    #[test]
    fn a_volume_is_there_once_it_is_prepared() {
        if !is_root("a_volume_is_there_once_it_is_prepared") {
            return;
        }
        let temporary = tempfile::tempdir().expect("a directory");
        let (state, name) = (temporary.path(), JailName::new("web").expect("a name"));
        assert!(Volume::open(state, &name).expect("looked").is_none());
        prepare(state, &name, 1_000_000).expect("made");
        let volume = Volume::open(state, &name).expect("looked").expect("it is there");
        assert_eq!(volume.kind(), Kind::Overlay);
        file::open_child(volume.directory(), "upper".as_ref()).expect("an upper directory");
    }
}
