//! The directories of one jail's own writes, `jails/NAME/{upper,work}`.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::removal;
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

fn jail_directory(state: &Path, name: &JailName) -> PathBuf {
    state.join("jails").join(name.as_str())
}

/// Makes what is missing: `upper`, owned by the jail's root as seen from the host (`first_id`),
/// and `work`, the host's own. What is there stays as it is, but for the owner of `upper`.
pub fn prepare(state: &Path, name: &JailName, first_id: u32) -> anyhow::Result<OwnWrites> {
    let own = own_writes(state, name);
    make(state, 0o700)?;
    make(&state.join("jails"), 0o700)?;
    make(&jail_directory(state, name), 0o700)?;
    make(&own.work, 0o700)?;
    if make(&own.upper, 0o755)? {
        std::os::unix::fs::chown(&own.upper, Some(first_id), Some(first_id))
            .with_context(|| format!("chown {} to {first_id}", own.upper.display()))?;
    }
    Ok(own)
}

/// True when the directory was made now; its mode does not depend on the umask.
fn make(path: &Path, mode: u32) -> anyhow::Result<bool> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            // A link here would send the jail's writes elsewhere.
            file::open_directory(path).with_context(|| format!("open {}", path.display()))?;
            return Ok(false);
        }
        Err(error) => return Err(error).with_context(|| format!("make directory {}", path.display())),
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("chmod {}", path.display()))?;
    Ok(true)
}

/// Removes all that the jail has written; its other files below `jails/NAME` stay.
pub fn discard(state: &Path, name: &JailName) -> anyhow::Result<()> {
    let directory = jail_directory(state, name);
    let parent = match file::open_directory(&directory) {
        Ok(parent) => parent,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("open {}", directory.display())),
    };
    for part in ["upper", "work"] {
        removal::remove(&parent, part.as_ref())
            .with_context(|| format!("remove {}", directory.join(part).display()))?;
    }
    Ok(())
}
