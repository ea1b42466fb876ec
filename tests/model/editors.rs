//! The ways in which programs put a new text into a file or a directory.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, RenameFlags, renameat_with};

#[derive(Clone, Copy, Debug)]
pub enum Style {
    /// nano, a shell's `>`.
    InPlace,
    /// In place, and slowly: the first half can be seen alone.
    Halves,
    /// A new file renamed over the old one: most programs.
    Rename,
    /// vim: the old file becomes a backup, the text is written anew, the backup goes.
    Backup,
    /// sed -i: a file of another name in the same directory, renamed.
    Sed,
    /// git: the old file is unlinked, and a new one made.
    Unlink,
    /// tar, rsync -t: a new file with a time of years ago.
    Old,
    /// One from a machine whose clock is ahead.
    Ahead,
    /// In place, and the old file's time is put back.
    Timeless,
}

impl Style {
    /// A pass that falls in between reads an empty file, or half of the text.
    pub fn shows_halves(self) -> bool {
        matches!(self, Self::InPlace | Self::Halves | Self::Timeless)
    }
}

pub const STYLES: [Style; 9] = [
    Style::InPlace,
    Style::Halves,
    Style::Rename,
    Style::Backup,
    Style::Sed,
    Style::Unlink,
    Style::Old,
    Style::Ahead,
    Style::Timeless,
];

/// Ten years.
const LONG: Duration = Duration::from_hours(10 * 365 * 24);
/// Between two writes of a slow editor; far below the daemon's patience.
const SLOW: Duration = Duration::from_millis(20);

pub fn edit(path: &Path, text: &str, style: Style) {
    let beside = |name: String| path.with_file_name(name);
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    match style {
        Style::InPlace => fs::write(path, text).unwrap(),
        Style::Halves => {
            let mut file = File::create(path).unwrap();
            let (first, second) = text.split_at(text.len() / 2);
            file.write_all(first.as_bytes()).unwrap();
            std::thread::sleep(SLOW);
            file.write_all(second.as_bytes()).unwrap();
        }
        Style::Rename => over(&beside(format!(".{name}.new")), path, text),
        Style::Sed => over(&beside(format!("{name}.bak")), path, text),
        Style::Backup => {
            let backup = beside(format!("{name}~"));
            let had = fs::rename(path, &backup).is_ok();
            fs::write(path, text).unwrap();
            if had {
                fs::remove_file(backup).unwrap();
            }
        }
        Style::Unlink => {
            remove(path);
            fs::write(path, text).unwrap();
        }
        Style::Old => dated(&beside(format!(".{name}.new")), path, text, SystemTime::now() - LONG),
        Style::Ahead => dated(&beside(format!(".{name}.new")), path, text, SystemTime::now() + LONG),
        Style::Timeless => {
            let before = fs::metadata(path).and_then(|found| found.modified());
            fs::write(path, text).unwrap();
            File::open(path).unwrap().set_modified(before.unwrap_or(SystemTime::UNIX_EPOCH)).unwrap();
        }
    }
}

fn dated(new: &Path, path: &Path, text: &str, modified: SystemTime) {
    fs::write(new, text).unwrap();
    File::open(new).unwrap().set_modified(modified).unwrap();
    fs::rename(new, path).unwrap();
}

fn over(new: &Path, path: &Path, text: &str) {
    fs::write(new, text).unwrap();
    fs::rename(new, path).unwrap();
}

/// What is not there is as good.
pub fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "remove {}: {error}", path.display());
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Swap {
    /// The old directory is renamed away, the new one put in its place.
    Aside,
    /// Both at once, by RENAME_EXCHANGE.
    Exchange,
    /// The name is a link to a directory, and becomes a link to another one.
    Link,
}

pub const SWAPS: [Swap; 3] = [Swap::Aside, Swap::Exchange, Swap::Link];

/// Replaces a whole directory of files by one with these changes; no text is a file removed.
pub fn swap(directory: &Path, store: &Path, changes: &[(String, Option<String>)], how: Swap, number: usize) {
    let new = store.join(format!("set-{number}"));
    fs::create_dir_all(&new).unwrap();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), new.join(entry.file_name())).unwrap();
    }
    for (name, text) in changes {
        match text {
            Some(text) => fs::write(new.join(name), text).unwrap(),
            None => remove(&new.join(name)),
        }
    }
    let old = store.join(format!("old-{number}"));
    match how {
        Swap::Aside => aside(directory, &old, &new),
        Swap::Exchange => renameat_with(CWD, &new, CWD, directory, RenameFlags::EXCHANGE).unwrap(),
        Swap::Link => link(directory, &old, &new),
    }
}

fn aside(directory: &Path, old: &Path, new: &Path) {
    fs::rename(directory, old).unwrap();
    fs::rename(new, directory).unwrap();
}

fn link(directory: &Path, old: &Path, new: &PathBuf) {
    let made = old.with_extension("link");
    symlink(new, &made).unwrap();
    if directory.is_symlink() {
        fs::rename(made, directory).unwrap();
    } else {
        aside(directory, old, &made);
    }
}

/// What is in a directory.
pub fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
