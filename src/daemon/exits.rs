//! Word from keepers that a jail has ended: an empty file of the jail's name in `exits/`.
//!
//! Owns that directory. The file is a doorbell; the exit record itself is in the jail's own
//! directory, and a pass that finds the jail dead without any file does the same.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::jail::JailName;

/// Where the files are, below the run directory.
pub fn directory(run: &Path) -> PathBuf {
    run.join("exits")
}

/// For the keeper, after its exit record is written. Made by rename, since the daemon listens for
/// that alone. Works without a daemon: the next one takes it away.
pub fn leave(run: &Path, name: &JailName) -> io::Result<()> {
    let directory = directory(run);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
    let unfinished = directory.join(format!(".{name}"));
    fs::write(&unfinished, b"")?;
    fs::rename(unfinished, directory.join(name.as_str()))
}

/// Takes all files away and gives their names, sorted. A directory that cannot be read is an
/// empty one: the pass that follows looks at the jails themselves.
pub(super) fn take(run: &Path) -> Vec<JailName> {
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
