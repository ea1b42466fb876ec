//! Locks by flock(2): they end with the process that holds them, however it ends.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::FlockOperation;

use crate::desired::Paths;
use crate::jail::JailName;

/// Held as long as this lives.
pub struct Lock {
    _file: File,
}

/// The lock of one jail: whoever changes it holds it.
pub fn jail(paths: &Paths, name: &JailName) -> Result<Lock> {
    wait(&paths.run.join("locks").join(name.as_str()), &|_| ())
}

/// The lock of all changes by plan: two `apply` at once go one after the other. `waiting` is told
/// who holds it, once, before the wait.
pub fn all(paths: &Paths, waiting: &dyn Fn(&str)) -> Result<Lock> {
    wait(&paths.run.join("apply.lock"), waiting)
}

fn wait(path: &Path, waiting: &dyn Fn(&str)) -> Result<Lock> {
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(|| format!("open {}", path.display()))?;
    if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut holder = String::new();
        // Only for the message: an unreadable name still leaves the wait.
        let _ = file.read_to_string(&mut holder);
        waiting(holder.trim());
        rustix::io::retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::LockExclusive))
            .with_context(|| format!("lock {}", path.display()))?;
    }
    let me = format!("process {}\n", std::process::id());
    // The name of the holder is a courtesy; the lock itself is what counts.
    let _ = file.rewind().and_then(|()| file.set_len(0)).and_then(|()| file.write_all(me.as_bytes()));
    Ok(Lock { _file: file })
}
