//! One daemon for each run directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, bail};

/// Takes the lock for as long as the file is open; the kernel gives it back when the process dies,
/// however it dies. The file says who holds it.
pub(super) fn hold(run: &Path) -> anyhow::Result<File> {
    let path = run.join("daemon.lock");
    let open =
        || OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let mut file = open().with_context(|| format!("open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => bail!("{}", held(&mut file, &path)),
        Err(TryLockError::Error(e)) => return Err(e).with_context(|| format!("lock {}", path.display())),
    }
    write_pid(&mut file).with_context(|| format!("write {}", path.display()))?;
    Ok(file)
}

/// Whether a daemon holds the lock now.
pub(super) fn is_held(run: &Path) -> bool {
    let Ok(file) = File::open(run.join("daemon.lock")) else { return false };
    // Shared, so that two who only look do not see each other.
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

fn write_pid(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

fn held(file: &mut File, path: &Path) -> String {
    /// More than any pid has digits.
    const PID_BYTES_MAX: u64 = 16;
    let mut text = String::new();
    // Its number is a courtesy: the lock is held all the same.
    let _ = file.take(PID_BYTES_MAX).read_to_string(&mut text);
    match text.trim().parse::<u32>() {
        Ok(pid) => format!("a daemon is running already: process {pid} holds {}", path.display()),
        Err(_) => format!("a daemon is running already: it holds {}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_about_the_first() {
        let run = tempfile::tempdir().unwrap();
        let path = run.path().join("daemon.lock");
        std::fs::write(&path, "99999999999 an older and longer text\n").unwrap();
        let first = hold(run.path()).unwrap();
        let message = format!("{:#}", hold(run.path()).unwrap_err());
        let pid = std::process::id();
        assert_eq!(message, format!("a daemon is running already: process {pid} holds {}", path.display()));
        drop(first);
        hold(run.path()).unwrap();
    }
}
