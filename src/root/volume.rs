//! A jail's volume: the place that holds its own writes, whatever it is made of.
//!
//! On disk below `jails/NAME`: `volume.json` (the kind and why; absent for an overlay that was
//! never anything else), and by kind `upper` and `work`, `volume/`, `image` or `root/`. What is
//! made anew has `.new` behind its name until it is whole; what the note does not name is left
//! from a move that was cut off, and is removed by the next.

mod ground;
pub mod image;
mod limit;
mod merged;
mod moving;
mod settle;
pub mod subvolume;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::removal;
use crate::jail::JailName;
use crate::storage::Held;
use crate::sys::file;

pub use crate::storage::Kind;
pub use ground::{ground, has_projects, is_on_btrfs};
pub use limit::{Used, count, forget, observe, set_limits, used};
pub use settle::{Place, make_writable, settle};

const NOTE: &str = "volume.json";
const NOTE_SCHEMA: u32 = 1;
/// Where a subvolume, an image and a thick root are, below the jail's directory.
pub const SUBVOLUME: &str = "volume";
pub const IMAGE: &str = "image";
pub const THICK: &str = "root";

/// The note of what a jail's volume is.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    schema: u32,
    volume: Held,
}

/// An open volume. It stays usable while this lives, and nothing of it is seen on the host.
#[derive(Debug)]
pub struct Volume {
    kind: Kind,
    directory: OwnedFd,
}

impl Volume {
    /// The jail's volume; none when it has not written anything that is kept.
    pub fn open(state: &Path, name: &JailName) -> Result<Option<Self>> {
        match held(state, name)? {
            Some(held) if is_made(state, name, held.kind) => {
                Self::open_as(&jail_directory(state, name), &held).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn open_as(place: &Path, held: &Held) -> Result<Self> {
        let directory =
            |path: &Path| file::open_directory(path).with_context(|| format!("open {}", path.display()));
        let directory = match held.kind {
            Kind::Image => image::mount(&place.join(IMAGE), held.file_system.unwrap_or(image::USUAL))?,
            Kind::Btrfs => directory(&place.join(SUBVOLUME))?,
            Kind::Overlay | Kind::Directory | Kind::Tmpfs => directory(place)?,
        };
        Ok(Self { kind: held.kind, directory })
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

/// What the jail's volume is; none when there is none yet.
pub fn held(state: &Path, name: &JailName) -> Result<Option<Held>> {
    let place = jail_directory(state, name);
    let path = place.join(NOTE);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(place.join("upper").exists().then(Held::overlay));
        }
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let note: Note = serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))?;
    anyhow::ensure!(note.schema == NOTE_SCHEMA, "read {}: of another version", path.display());
    let mut held = note.volume;
    if held.kind == Kind::Image {
        held.bytes = std::fs::metadata(place.join(IMAGE)).ok().map(|found| found.len());
    }
    Ok(Some(held))
}

/// Whether the one part that a snapshot of the stopped jail sets aside is there; the next start
/// makes another.
pub fn is_made(state: &Path, name: &JailName, kind: Kind) -> bool {
    let may_be_aside = matches!(kind, Kind::Btrfs | Kind::Directory);
    !may_be_aside || jail_directory(state, name).join(part(kind)).exists()
}

/// The name of a volume's one part, which is made beside and renamed.
pub fn part(kind: Kind) -> &'static str {
    match kind {
        Kind::Btrfs => SUBVOLUME,
        Kind::Image => IMAGE,
        Kind::Directory => THICK,
        Kind::Overlay | Kind::Tmpfs => "upper",
    }
}

/// Whether a project quota counts all of it.
pub fn counted(state: &Path, name: &JailName) -> bool {
    limit::counted(&jail_directory(state, name))
}

fn write_note(place: &Path, held: &Held) -> Result<()> {
    let note = Note { schema: NOTE_SCHEMA, volume: held.clone() };
    let text = serde_json::to_vec(&note).context("write a volume's note")?;
    crate::journal::replace_synced(&place.join(NOTE), &text)
}

/// Notes that a directory which is to be a jail's holds a thick root.
pub fn note_thick(place: &Path) -> Result<()> {
    let why = "as it was exported".to_owned();
    write_note(place, &Held { kind: Kind::Directory, why, ..Held::overlay() })
}

/// Removes all that the jail has written; its other files below `jails/NAME` stay.
pub fn discard(state: &Path, name: &JailName) -> Result<()> {
    let place = jail_directory(state, name);
    let directory = match file::open_directory(&place) {
        Ok(directory) => directory,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("open {}", place.display())),
    };
    remove_parts(directory.as_fd(), &place, Kind::Overlay)?;
    if !has(&directory, NOTE) {
        return remove_others(directory.as_fd(), &place, Kind::Overlay);
    }
    for kind in Kind::ALL {
        remove_parts(directory.as_fd(), &place, kind)?;
    }
    // Last: until here it says what to remove.
    crate::journal::remove(&place.join(NOTE))
}

fn has(directory: &OwnedFd, name: &str) -> bool {
    rustix::fs::statat(directory, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

/// What a move that was cut off has left of other kinds.
fn remove_others(directory: BorrowedFd<'_>, place: &Path, kept: Kind) -> Result<()> {
    Kind::ALL
        .into_iter()
        .filter(|kind| *kind != kept)
        .try_for_each(|kind| remove_parts(directory, place, kind))
}

fn remove_parts(directory: BorrowedFd<'_>, place: &Path, kind: Kind) -> Result<()> {
    for part in parts(kind) {
        let shown = || format!("remove {}", place.join(part).display());
        match kind {
            Kind::Btrfs | Kind::Directory => {
                subvolume::remove(directory, part.as_ref()).with_context(shown)?;
            }
            _ => removal::remove(directory, part.as_ref()).with_context(shown)?,
        }
    }
    Ok(())
}

fn parts(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Overlay => &["upper", "work", "upper.new"],
        Kind::Btrfs => &["volume", "volume.new"],
        Kind::Image => &["image", "image.new", "image.size"],
        Kind::Directory => &["root", "root.new"],
        Kind::Tmpfs => &[],
    }
}

#[cfg(test)]
mod tests;
