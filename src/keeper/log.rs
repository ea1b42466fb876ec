//! The console log of one jail: a line an entry, stamped, rotated by size.
//!
//! A line is `2026-11-23T22:30:00.123456Z text`. Control characters stay as they are, for a
//! terminal's own colours; whoever prints them elsewhere escapes them.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A log is set aside as `.1` when it grows over this.
pub const LOG_BYTES_MAX: u64 = 10 * 1024 * 1024;
/// How many set-aside logs are kept.
pub const ROTATIONS: u32 = 3;
/// A line longer than this is cut into several.
const LINE_BYTES_MAX: usize = 16 * 1024;

pub struct Log {
    path: PathBuf,
    file: File,
    size: u64,
    /// The begun line of each stream.
    pending: Vec<u8>,
    /// Said once on the jail's behalf, then silent until a write succeeds again.
    broken: bool,
}

impl Log {
    pub fn open(path: &Path) -> Result<Self> {
        let file = open(path).with_context(|| format!("open {}", path.display()))?;
        let size = file.metadata().with_context(|| format!("look at {}", path.display()))?.len();
        Ok(Self { path: path.to_owned(), file, size, pending: Vec::new(), broken: false })
    }

    /// Takes what the jail has written; whole lines go to the file at once. A full disk loses
    /// lines, never the jail.
    pub fn write(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
        let mut out = Vec::with_capacity(bytes.len() + 64);
        let mut rest = self.pending.as_slice();
        while let Some(end) = line_end(rest) {
            stamp(&mut out);
            out.extend_from_slice(rest[..end].trim_ascii_end());
            out.push(b'\n');
            rest = rest.get(end + usize::from(rest.get(end) == Some(&b'\n'))..).unwrap_or(&[]);
        }
        self.pending = rest.to_vec();
        self.append(&out);
    }

    /// Writes a last line that had no end.
    pub fn finish(&mut self) {
        if !self.pending.is_empty() {
            self.write(b"\n");
        }
    }

    fn append(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if self.size + bytes.len() as u64 > LOG_BYTES_MAX && self.rotate().is_err() {
            self.broken = true;
        }
        self.broken = self.file.write_all(bytes).is_err();
        if !self.broken {
            self.size += bytes.len() as u64;
        }
    }

    fn rotate(&mut self) -> std::io::Result<()> {
        for number in (1..ROTATIONS).rev() {
            match std::fs::rename(rotated(&self.path, number), rotated(&self.path, number + 1)) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        std::fs::rename(&self.path, rotated(&self.path, 1))?;
        self.file = open(&self.path)?;
        self.size = 0;
        Ok(())
    }
}

fn line_end(bytes: &[u8]) -> Option<usize> {
    match bytes.iter().position(|b| *b == b'\n') {
        Some(end) if end <= LINE_BYTES_MAX => Some(end),
        _ => (bytes.len() > LINE_BYTES_MAX).then_some(LINE_BYTES_MAX),
    }
}

fn stamp(out: &mut Vec<u8>) {
    let now = jiff::Timestamp::now();
    // Writing to memory cannot fail.
    let _ = write!(out, "{now:.6} ");
}

/// `NAME.log.1`, the newest set aside, and up.
pub fn rotated(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(libc::O_NOFOLLOW).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|l| l.split_once(' ').expect("a stamp").1.to_owned()).collect()
    }

    #[test]
    fn lines_are_stamped_once_however_they_come() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web.log");
        let mut log = Log::open(&path).unwrap();
        for piece in ["on", "e\ntw", "o\r\n", "three"] {
            log.write(piece.as_bytes());
        }
        assert_eq!(lines(&path), ["one", "two"]);
        log.finish();
        assert_eq!(lines(&path), ["one", "two", "three"]);
    }

    #[test]
    fn a_long_line_is_cut_and_a_long_log_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web.log");
        let mut log = Log::open(&path).unwrap();
        log.write(&vec![b'x'; LINE_BYTES_MAX + 10]);
        assert_eq!(lines(&path).len(), 1);
        log.size = LOG_BYTES_MAX;
        log.write(b"\nnext\n");
        assert!(rotated(&path, 1).exists());
        assert_eq!(lines(&path).last().map(String::as_str), Some("next"));
    }
}
