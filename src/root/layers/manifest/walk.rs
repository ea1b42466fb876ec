//! What is in a directory, a line for each entry. Walkers share what there is: whoever comes to a
//! directory while another has nothing to do leaves it to that one.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::fs::{AtFlags, FileType, Stat};

use super::{Lines, is_kept};
use crate::root::layers::copied;
use crate::root::layers::tree::{DEPTH_MAX, Digests, ENTRIES_MAX, Written};
use crate::sys::file;

/// Most of a walk waits for the disk, or for the kernel.
const WALKERS_MAX: usize = 4;
const CHUNK: usize = 256 << 10;

/// What is in the directory now.
pub fn lines(root: &OwnedFd) -> Result<Lines> {
    lines_with(root, &Digests::new())
}

/// The same of a directory of which some files are known.
pub fn lines_with(root: &OwnedFd, known: &Digests) -> Result<Lines> {
    let stat = rustix::fs::fstat(root).context("stat")?;
    let attributes = attributes(root)?;
    // A default access list would have been handed down to everything in it.
    let nothing = Digests::new();
    let known = if attributes == "-" { known } else { &nothing };
    let top =
        Directory { open: root.try_clone().context("copy a descriptor")?, path: String::new(), depth: 0 };
    let walk = Walk {
        known,
        shared: Mutex::new(Shared { offered: Some(top), idle: 0, walkers: 1 }),
        changed: Condvar::new(),
    };
    let mut found = vec![(String::new(), line(&stat, "-", &attributes))];
    thread::scope(|scope| {
        let more = thread::available_parallelism().map_or(1, usize::from).min(WALKERS_MAX) - 1;
        let others: Vec<_> = (0..more).map_while(|_| walk.join(scope)).collect();
        found.extend(walk.all()?);
        for other in others {
            found.extend(other.join().map_err(|_| anyhow!("a walking thread died"))??);
        }
        Ok(found.into_iter().collect())
    })
}

type Found = Vec<(String, String)>;

struct Directory {
    open: OwnedFd,
    path: String,
    depth: usize,
}

struct Walk<'k> {
    known: &'k Digests,
    shared: Mutex<Shared>,
    changed: Condvar,
}

struct Shared {
    /// For the next that has nothing to do.
    offered: Option<Directory>,
    idle: usize,
    walkers: usize,
}

impl Walk<'_> {
    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One walker more, if there can be one: without it, the walk is only slower.
    fn join<'s>(
        &'s self,
        scope: &'s thread::Scope<'s, '_>,
    ) -> Option<thread::ScopedJoinHandle<'s, Result<Found>>> {
        self.shared().walkers += 1;
        let started = thread::Builder::new().spawn_scoped(scope, || self.all());
        if started.is_err() {
            self.shared().walkers -= 1;
        }
        started.ok()
    }

    fn all(&self) -> Result<Found> {
        let mut found = Found::new();
        while let Some(next) = self.next() {
            let walked = self.directory(&next, &mut found);
            if walked.is_err() {
                // Nobody is to wait for this one.
                self.shared().walkers -= 1;
                self.changed.notify_all();
            }
            walked?;
        }
        Ok(found)
    }

    /// Waits for a directory; none comes any more when all wait.
    fn next(&self) -> Option<Directory> {
        let mut shared = self.shared();
        shared.idle += 1;
        loop {
            if let Some(next) = shared.offered.take() {
                shared.idle -= 1;
                return Some(next);
            }
            if shared.idle >= shared.walkers {
                self.changed.notify_all();
                return None;
            }
            shared = self.changed.wait(shared).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Leaves the directory to another walker, or does it here. The recursion is bounded by
    /// `DEPTH_MAX`.
    fn descend(&self, directory: Directory, found: &mut Found) -> Result<()> {
        let mut shared = self.shared();
        if shared.idle > 0 && shared.offered.is_none() {
            shared.offered = Some(directory);
            self.changed.notify_one();
            return Ok(());
        }
        drop(shared);
        self.directory(&directory, found)
    }

    fn directory(&self, directory: &Directory, found: &mut Found) -> Result<()> {
        let Directory { open, path: above, depth } = directory;
        ensure!(*depth <= DEPTH_MAX, "{above} is more than {DEPTH_MAX} directories deep");
        let most = usize::try_from(ENTRIES_MAX).unwrap_or(usize::MAX);
        for name in file::names(open, most).with_context(|| format!("list {above}"))? {
            let path = below(above, name.as_bytes());
            let said = self.entry(directory, &name, &path, found).with_context(|| path.clone())?;
            found.push((path, said));
        }
        Ok(())
    }

    fn entry(&self, above: &Directory, name: &OsStr, path: &str, found: &mut Found) -> Result<String> {
        let stat = rustix::fs::statat(&above.open, name, AtFlags::SYMLINK_NOFOLLOW).context("stat")?;
        Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let open = file::open_child(&above.open, name).context("open")?;
                let said = line(&stat, "-", &attributes(&open)?);
                self.descend(Directory { open, path: path.to_owned(), depth: above.depth + 1 }, found)?;
                said
            }
            FileType::RegularFile => {
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                let written = self.known.get(&stat.st_ino).filter(|written| written.size == size);
                let digested = written.map(|written| written.digest.to_hex().to_string());
                if let (Some(digested), Some(Written { is_bare: true, .. })) = (&digested, written) {
                    return Ok(line(&stat, digested, "-"));
                }
                let file = copied::open_regular(&above.open, name)?;
                let digest = digested.map_or_else(|| digest(&file), Ok)?;
                line(&stat, &digest, &attributes(&OwnedFd::from(file))?)
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&above.open, name, Vec::new()).context("read link")?;
                line(&stat, &target.as_bytes().escape_ascii().to_string(), "-")
            }
            _ => line(&stat, &stat.st_rdev.to_string(), "-"),
        })
    }
}

fn below(above: &str, name: &[u8]) -> String {
    // Most names have nothing to escape, and are taken as they are.
    match str::from_utf8(name) {
        Ok(plain) if name.iter().all(|byte| byte.escape_ascii().len() == 1) => [above, "/", plain].concat(),
        _ => format!("{above}/{}", name.escape_ascii()),
    }
}

/// In the order of [`super::WORDS`]; a directory has no size of its own.
fn line(stat: &Stat, contents: &str, attributes: &str) -> String {
    let kind = FileType::from_raw_mode(stat.st_mode);
    let size = if kind.is_dir() { 0 } else { stat.st_size };
    let (mode, seconds, nanoseconds) = (stat.st_mode & 0o7777, stat.st_mtime, stat.st_mtime_nsec);
    let kind = format!("{kind:?}").to_lowercase();
    let time = format!("{seconds}.{nanoseconds:09}");
    format!("{kind}\t{mode:04o}\t{}\t{}\t{size}\t{time}\t{contents}\t{attributes}", stat.st_uid, stat.st_gid)
}

fn digest(mut file: &File) -> Result<String> {
    let mut digest = blake3::Hasher::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(digest.finalize().to_hex().to_string()),
            Ok(count) => drop(digest.update(&buffer[..count])),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("read"),
        }
    }
}

/// One digest of all of them, so that a line stays a line.
fn attributes(entry: &OwnedFd) -> Result<String> {
    let mut all = file::all_attributes(entry.as_fd()).context("read attributes")?;
    all.retain(|(name, _)| name.to_str().is_some_and(is_kept));
    if all.is_empty() {
        return Ok("-".to_owned());
    }
    all.sort();
    let mut digest = blake3::Hasher::new();
    for (name, value) in all {
        digest.update(format!("{} {} ", name.len(), value.len()).as_bytes());
        digest.update(name.as_bytes());
        digest.update(&value);
    }
    Ok(digest.finalize().to_hex().to_string())
}
