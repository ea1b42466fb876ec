//! Locks by flock(2): they end with the process that holds them, however it ends.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::desired::Paths;
use crate::jail::JailName;
use crate::sys::file;

/// Attempts at a lock whose file is removed each time while it is waited for.
const TRIES_MAX: usize = 1_000;

/// The end of the name of an instance's lock.
pub const UP: &str = ".up";

/// Held as long as this lives.
pub struct Lock {
    file: File,
}

/// The lock of one jail: whoever changes it holds it.
pub fn jail(paths: &Paths, name: &JailName) -> Result<Lock> {
    wait(&paths.run.join("locks").join(name.as_str()), &|_| ())
}

/// The same, if nobody holds it.
pub fn try_jail(paths: &Paths, name: &JailName) -> Result<Option<Lock>> {
    let path = paths.run.join("locks").join(name.as_str());
    let file = open(&path)?;
    Ok(if try_lock(&file, &path)? { Some(Lock { file }) } else { None })
}

/// How long a start or stop waits for the last instance to be gone, keeper and all.
const INSTANCE_LIMIT: Duration = Duration::from_secs(30);
/// Between two looks at a lock that another holds.
const LOOK: Duration = Duration::from_millis(20);

/// Held by the keeper of a jail, and by whoever is about to start one: there are never two
/// instances of a jail, whatever the records say.
pub fn instance(paths: &Paths, name: &JailName) -> Result<OwnedFd> {
    let end = Instant::now() + INSTANCE_LIMIT;
    loop {
        if let Some(lock) = alone(paths, name)? {
            return Ok(lock);
        }
        if Instant::now() > end {
            bail!("lock {}: an earlier run of the jail has not ended", up(paths, name).display());
        }
        crate::supervisor::progress();
        std::thread::sleep(LOOK);
    }
}

/// As [`instance`], without a wait: `None` when another holds it.
pub fn alone(paths: &Paths, name: &JailName) -> Result<Option<OwnedFd>> {
    let path = up(paths, name);
    for _ in 0..TRIES_MAX {
        let file = open(&path)?;
        if !try_lock(&file, &path)? {
            return Ok(None);
        }
        if is_named(&file, &path)? {
            return Ok(Some(file.into()));
        }
    }
    bail!("lock {}: it is removed again and again", path.display())
}

/// Whether somebody holds the lock of an instance.
pub fn is_up(paths: &Paths, name: &JailName) -> Result<bool> {
    let path = up(paths, name);
    match File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("open {}", path.display())),
        Ok(file) => Ok(!try_lock(&file, &path)?),
    }
}

/// Whose instances have a lock, held or not.
pub fn instances(paths: &Paths) -> Result<Vec<JailName>> {
    let directory = paths.run.join("locks");
    let entries = std::fs::read_dir(&directory).with_context(|| format!("list {}", directory.display()))?;
    let named = |entry: std::io::Result<std::fs::DirEntry>| -> Option<JailName> {
        JailName::new(entry.ok()?.file_name().to_str()?.strip_suffix(UP)?).ok()
    };
    Ok(entries.filter_map(named).collect())
}

/// Removes the file of a lock together with the lock.
pub fn give_up(lock: OwnedFd, paths: &Paths, name: &JailName) -> Result<()> {
    super::remove(&up(paths, name))?;
    drop(lock);
    Ok(())
}

fn up(paths: &Paths, name: &JailName) -> PathBuf {
    paths.run.join("locks").join(format!("{name}{UP}"))
}

/// The lock of all changes by plan: two `apply` at once go one after the other. `waiting` is told
/// who holds it, once, before the wait.
pub fn all(paths: &Paths, waiting: &dyn Fn(&str)) -> Result<Lock> {
    super::make_directory(&paths.run, 0o711)?;
    wait(&paths.run.join("apply.lock"), waiting)
}

/// Removes the lock's file together with the lock: of the jail nothing is left.
pub fn remove(lock: Lock, paths: &Paths, name: &JailName) -> Result<()> {
    // Still held: who waits for this file finds, once it is its turn, that the name is gone.
    super::remove(&up(paths, name))?;
    super::remove(&paths.run.join("locks").join(name.as_str()))?;
    drop(lock);
    Ok(())
}

fn wait(path: &Path, waiting: &dyn Fn(&str)) -> Result<Lock> {
    for _ in 0..TRIES_MAX {
        let lock = wait_once(path, waiting)?;
        if is_named(&lock.file, path)? {
            return Ok(lock);
        }
    }
    bail!("lock {}: it is removed again and again", path.display())
}

/// Whether the file still has its name: a lock on one that was removed keeps nobody out.
fn is_named(file: &File, path: &Path) -> Result<bool> {
    let own = file.metadata().with_context(|| format!("stat {}", path.display()))?.ino();
    Ok(std::fs::symlink_metadata(path).is_ok_and(|found| found.ino() == own))
}

fn wait_once(path: &Path, waiting: &dyn Fn(&str)) -> Result<Lock> {
    let mut file = open(path)?;
    if !try_lock(&file, path)? {
        let mut holder = String::new();
        // Only for the message: an unreadable name still leaves the wait.
        let _ = file.read_to_string(&mut holder);
        waiting(holder.trim());
        // Looked at in turns, for the daemon must tell that it waits and does not hang.
        while !try_lock(&file, path)? {
            crate::supervisor::progress();
            std::thread::sleep(LOOK);
        }
    }
    let me = format!("process {}\n", std::process::id());
    // The name of the holder is a courtesy; the lock itself is what counts.
    let _ = file.rewind().and_then(|()| file.set_len(0)).and_then(|()| file.write_all(me.as_bytes()));
    Ok(Lock { file })
}

/// Whoever may open it may hold it, by flock(2), and keep everybody else waiting.
fn open(path: &Path) -> Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.open(path).with_context(|| format!("open {}", path.display()))
}

fn try_lock(file: &File, path: &Path) -> Result<bool> {
    file::try_lock(file).with_context(|| format!("lock {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_of_an_instance_lives_in_every_copy_of_it() {
        let run = tempfile::tempdir().unwrap();
        std::fs::create_dir(run.path().join("locks")).unwrap();
        let paths = Paths { run: run.path().into(), ..Paths::default() };
        let first = instance(&paths, &JailName::new("web").unwrap()).unwrap();
        let keepers = first.try_clone().unwrap();
        drop(first);
        let path = run.path().join("locks/web.up");
        let file = open(&path).unwrap();
        assert!(!try_lock(&file, &path).unwrap());
        drop(keepers);
        assert!(try_lock(&file, &path).unwrap());
    }

    #[test]
    fn nobody_else_can_open_a_lock_and_hold_it() {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths { run: directory.path().join("run"), ..Paths::default() };
        drop(all(&paths, &|_| ()).unwrap());
        let modes: Vec<u32> = std::fs::read_dir(&paths.run)
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap())
            .filter(std::fs::Metadata::is_file)
            .map(|found| found.mode() & 0o077)
            .collect();
        assert_eq!(modes, [0]);
    }

    #[test]
    fn a_lock_whose_file_was_removed_is_taken_anew() {
        let directory = tempfile::tempdir().unwrap();
        let run = directory.path().to_owned();
        std::fs::create_dir(run.join("locks")).unwrap();
        let paths = Paths { run, ..Paths::default() };
        let name = JailName::new("web").unwrap();
        let first = jail(&paths, &name).unwrap();
        let second = std::thread::scope(|scope| {
            let waiter = scope.spawn(|| jail(&paths, &name).unwrap());
            remove(first, &paths, &name).unwrap();
            waiter.join().unwrap()
        });
        let file = File::open(paths.run.join("locks/web")).expect("the name is there again");
        assert_eq!(file.metadata().unwrap().ino(), second.file.metadata().unwrap().ino());
        assert!(!try_lock(&file, directory.path()).unwrap(), "it is held");
    }
}
