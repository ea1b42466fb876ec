//! Word from keepers that a jail has ended: its exit record, and an empty file of the jail's name
//! in `exits/`.
//!
//! Owns that directory. The empty file is a doorbell; the exit record itself is in the jail's own
//! directory, and a pass that finds the jail dead without any file does the same.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::jail::JailName;
use crate::live::Exit;

/// How a jail has ended, with the instance it belongs to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExitRecord {
    pub instance: String,
    pub exit: Exit,
}

/// Where a jail's exit record is.
pub fn record(run: &Path, name: &JailName) -> PathBuf {
    run.join("jails").join(name.as_str()).join("exit.json")
}

/// Where the bells are, below the run directory.
pub fn directory(run: &Path) -> PathBuf {
    run.join("exits")
}

/// The bell of one jail: it has ended since the daemon last looked.
pub fn bell(run: &Path, name: &JailName) -> PathBuf {
    directory(run).join(name.as_str())
}

/// For the keeper, after its exit record is written. Made by rename, since the daemon listens for
/// that alone. Works without a daemon: the next one takes it away.
pub fn leave(run: &Path, name: &JailName) -> io::Result<()> {
    let directory = directory(run);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
    let unfinished = directory.join(format!(".{name}"));
    fs::write(&unfinished, b"")?;
    fs::rename(unfinished, bell(run, name))
}

/// Takes all files away and gives their names, sorted. A directory that cannot be read is an
/// empty one: the pass that follows looks at the jails themselves.
pub fn take(run: &Path) -> Vec<JailName> {
    let Ok(entries) = fs::read_dir(directory(run)) else { return Vec::new() };
    let mut names: Vec<JailName> = entries
        .flatten()
        .filter_map(|entry| JailName::new(entry.file_name().to_str()?).ok())
        .filter(|name| fs::remove_file(directory(run).join(name.as_str())).is_ok())
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_taken_once() {
        let run = tempfile::tempdir().unwrap();
        assert_eq!(take(run.path()), []);
        let names = ["db", "web"].map(|name| JailName::new(name).unwrap());
        for name in [&names[1], &names[0], &names[1]] {
            leave(run.path(), name).unwrap();
        }
        // A keeper that was killed before its rename.
        fs::write(directory(run.path()).join(".mail"), "").unwrap();
        assert_eq!(take(run.path()), names);
        assert_eq!(take(run.path()), []);
    }
}
