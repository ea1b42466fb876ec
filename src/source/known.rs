//! What was read of each definition last time, so that a daemon with a thousand of them does not
//! read all again for the one that changed.
//!
//! A file is taken for unchanged when device, inode, size, owner, mode and both times, that of the
//! last change of all to the nanosecond, are what they were. A clock that stood still between the
//! reading and a second writing would defeat that, so what was read counts only if those were seen
//! [`SETTLED`] before it was: whatever is written later has another time. What the kernel gives no
//! new time for, such as writes through a mapping, is found when the daemon forgets all this, as it
//! does once a minute.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{Metadata, symlink_metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::definition::RawDefinition;
use crate::diagnostic::Diagnostic;

/// The coarsest clock of a file system, FAT's.
const SETTLED: Duration = Duration::from_secs(2);

/// A definition, as far as it was understood, and what is wrong with it.
pub type Parsed = (Option<RawDefinition>, Vec<Diagnostic>);

/// What changes with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    /// A link in the place of a file shows here.
    owner_and_mode: (u32, u32),
}

impl Stamp {
    pub fn of(found: &Metadata) -> Self {
        Self {
            file: (found.dev(), found.ino()),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
            owner_and_mode: (found.uid(), found.mode()),
        }
    }
}

/// Definitions by their path, as bytes: taking paths apart to compare them costs more than all else.
#[derive(Debug, Default)]
pub struct Known(BTreeMap<OsString, File>);

#[derive(Debug)]
struct File {
    stamp: Stamp,
    /// When this stamp was first seen.
    since: Instant,
    /// When the file was read.
    read: Instant,
    parsed: Parsed,
}

impl Known {
    /// What the file holds, if it is certain to be what it was.
    pub fn get(&self, path: &Path) -> Option<&Parsed> {
        let known = self.0.get(path.as_os_str())?;
        let settled = known.read.duration_since(known.since) >= SETTLED;
        (settled && Stamp::of(&symlink_metadata(path).ok()?) == known.stamp).then_some(&known.parsed)
    }

    /// Takes note of a file whose stamp was `stamp` before it was read at `read`.
    pub fn insert(&mut self, path: &Path, stamp: Stamp, read: Instant, parsed: Parsed) {
        let same = self.0.get(path.as_os_str()).filter(|known| known.stamp == stamp);
        let since = same.map_or(read, |known| known.since);
        self.0.insert(path.as_os_str().to_owned(), File { stamp, since, read, parsed });
    }

    /// Leaves out what is no longer there.
    pub fn retain(&mut self, is_there: impl Fn(&OsStr) -> bool) {
        self.0.retain(|path, _| is_there(path));
    }

    /// All will be read again. When each was first seen still holds.
    pub fn doubt(&mut self) {
        for known in self.0.values_mut() {
            known.read = known.since;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use super::*;
    use crate::definition;

    /// A file that is known and settled, in a directory of its own.
    fn settled() -> (tempfile::TempDir, PathBuf, Known) {
        let directory = tempfile::tempdir().expect("there is room for a small directory");
        let path = directory.path().join("web.toml");
        fs::write(&path, "persist = true\n").expect("the directory is ours");
        let mut known = Known::default();
        let first = Instant::now();
        note(&mut known, &path, first);
        assert!(known.get(&path).is_none(), "one that was just written may be written again");
        note(&mut known, &path, first + SETTLED);
        assert!(known.get(&path).is_some());
        (directory, path, known)
    }

    fn note(known: &mut Known, path: &Path, read: Instant) {
        let stamp = Stamp::of(&symlink_metadata(path).expect("the file is there"));
        let text = fs::read_to_string(path).expect("the file is ours");
        known.insert(path, stamp, read, definition::parse(path, &text));
    }

    /// A clock tick of the kernel, which times of files are taken from.
    fn tick() {
        std::thread::sleep(Duration::from_millis(20));
    }

    fn modified(path: &Path) -> std::time::SystemTime {
        fs::metadata(path).expect("the file is there").modified().expect("Linux has it")
    }

    type Change = fn(&Path);

    #[test]
    fn every_way_to_change_a_file_is_seen() {
        let ways: &[(&str, Change)] = &[
            ("same size", |path| fs::write(path, "persist = fals\n").unwrap()),
            ("same size, time set back", |path| {
                let before = modified(path);
                fs::write(path, "persist = fals\n").unwrap();
                let file = fs::File::options().write(true).open(path).unwrap();
                file.set_modified(before).unwrap();
            }),
            ("renamed over, same size and time", |path| {
                let new = path.with_extension("new");
                fs::write(&new, "persist = fals\n").unwrap();
                fs::File::options().write(true).open(&new).unwrap().set_modified(modified(path)).unwrap();
                fs::rename(new, path).unwrap();
            }),
            ("an older file renamed over", |path| {
                fs::rename(path.with_file_name("older"), path).unwrap();
            }),
            ("a link in its place", |path| {
                fs::rename(path, path.with_file_name("real")).unwrap();
                symlink("real", path).unwrap();
            }),
            ("given to somebody's group", |path| {
                use std::os::unix::fs::PermissionsExt;
                fs::set_permissions(path, fs::Permissions::from_mode(0o664)).unwrap();
            }),
            ("removed", |path| fs::remove_file(path).unwrap()),
        ];
        for (way, change) in ways {
            let (directory, path, known) = settled();
            fs::write(directory.path().join("older"), "persist = fals\n").unwrap();
            tick();
            change(&path);
            assert!(known.get(&path).is_none(), "{way}");
        }
    }

    #[test]
    fn a_directory_behind_a_link_is_seen_to_be_another() {
        let (directory, path, _) = settled();
        let (one, two) = (directory.path().join("one"), directory.path().join("two"));
        for place in [&one, &two] {
            fs::create_dir(place).unwrap();
            fs::copy(&path, place.join("web.toml")).unwrap();
        }
        let link = directory.path().join("jails.d");
        symlink("one", &link).unwrap();
        let mut known = Known::default();
        let first = Instant::now();
        note(&mut known, &link.join("web.toml"), first);
        note(&mut known, &link.join("web.toml"), first + SETTLED);
        assert!(known.get(&link.join("web.toml")).is_some());
        fs::remove_file(&link).unwrap();
        symlink("two", &link).unwrap();
        assert!(known.get(&link.join("web.toml")).is_none());
    }

    #[test]
    fn what_is_doubted_is_read_once_more() {
        let (_directory, path, mut known) = settled();
        known.doubt();
        assert!(known.get(&path).is_none());
        note(&mut known, &path, Instant::now() + SETTLED);
        assert!(known.get(&path).is_some(), "it was settled before");
        known.retain(|_| false);
        assert!(known.get(&path).is_none());
    }
}
