//! Opening of files that say what root will do: only those that root alone can change.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Bits that let others than the owner write.
const OTHERS_WRITE: u32 = 0o022;

/// Why a file is not taken.
#[derive(Debug)]
pub enum Refusal {
    /// It is not there (any more).
    Absent,
    /// The sentence, without the file's name.
    Because(String),
}

impl Refusal {
    fn because(text: impl Into<String>) -> Self {
        Self::Because(text.into())
    }
}

/// Who may own what is read.
#[derive(Clone, Copy, Debug)]
pub struct Guard {
    /// The effective user, who is trusted beside root.
    user: u32,
    /// False for files that someone only wants checked.
    strict: bool,
}

impl Guard {
    pub fn strict() -> Self {
        Self { user: rustix::process::geteuid().as_raw(), strict: true }
    }

    pub fn lenient() -> Self {
        Self { strict: false, ..Self::strict() }
    }

    /// Why what `found` describes could have been written by somebody else.
    pub fn objection(self, found: &Metadata) -> Option<String> {
        if !self.strict {
            return None;
        }
        if found.uid() != 0 && found.uid() != self.user {
            return Some(format!("it belongs to user {}, not to root", found.uid()));
        }
        // The mode of a link means nothing.
        if !found.is_symlink() && found.mode() & OTHERS_WRITE != 0 {
            let mode = found.mode() & 0o7777;
            return Some(format!("others than root can write it (mode {mode:04o})"));
        }
        None
    }
}

/// The text of a regular file of at most `limit` bytes. Links are not followed, nothing that
/// could block or act when opened is read, and the checks are of the open descriptor.
pub fn read_text(path: &Path, limit: u64, guard: Guard) -> Result<String, Refusal> {
    read_seen(path, limit, guard).map(|(text, _)| text)
}

/// The same, and what the open descriptor showed before it was read.
pub fn read_seen(path: &Path, limit: u64, guard: Guard) -> Result<(String, Metadata), Refusal> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = opened.map_err(|error| open_refusal(&error))?;
    let found = file.metadata().map_err(|error| Refusal::because(format!("stat: {error}")))?;
    if !found.is_file() {
        return Err(Refusal::because(kind(&found)));
    }
    if let Some(why) = guard.objection(&found) {
        return Err(Refusal::Because(why));
    }
    contents(file, found.len(), limit).map(|text| (text, found))
}

fn open_refusal(error: &io::Error) -> Refusal {
    match error.raw_os_error() {
        Some(libc::ENOENT) => Refusal::Absent,
        Some(libc::ELOOP) => Refusal::because("it is a symbolic link"),
        // What opening a socket, or a FIFO or device without its other end, gives.
        Some(libc::ENXIO) => Refusal::because("it is not a regular file"),
        _ => Refusal::because(format!("open: {error}")),
    }
}

fn contents(file: File, size: u64, limit: u64) -> Result<String, Refusal> {
    let too_large = || Refusal::because(format!("it is larger than {limit} bytes"));
    if size > limit {
        return Err(too_large());
    }
    let failed = |error: io::Error| Refusal::because(format!("read: {error}"));
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1);
    // Mostly all of it comes at once, with room left for a byte more.
    rustix::io::retry_on_intr(|| rustix::io::read(&file, rustix::buffer::spare_capacity(&mut bytes)))
        .map_err(|error| failed(error.into()))?;
    let length = bytes.len() as u64;
    if length != size {
        // It may have grown since; one byte more than the limit tells.
        file.take((limit + 1).saturating_sub(length)).read_to_end(&mut bytes).map_err(failed)?;
    }
    if bytes.len() as u64 > limit {
        return Err(too_large());
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..at].split(|byte| *byte == b'\n').count();
        Refusal::because(format!("it is not UTF-8 from line {line} on"))
    })
}

/// What something is that is no regular file.
pub fn kind(found: &Metadata) -> String {
    let kind = found.file_type();
    let noun = match () {
        () if kind.is_dir() => "a directory",
        () if kind.is_symlink() => "a symbolic link",
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () => "a device",
    };
    format!("it is {noun}")
}
