//! The daemon's own log, a line at a time: the journal, syslog or stderr, whichever is there.
//!
//! Owns the choice of the destination and the form of a line. It never blocks the daemon for
//! longer than one bounded send, and must never fail: whoever logs has nobody else to tell.

mod connection;

use std::io::{IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::jail::JailName;
use connection::Connection;

/// Where syslogd listens, syslog(3).
pub const SYSLOG_SOCKET: &str = "/dev/log";

/// The longest line that is passed on, in bytes: rsyslogd's own default. A datagram larger than the
/// receiver's buffer would be refused for ever.
const LINE_BYTES_MAX: usize = 8 * 1024;

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Stderr is the journal's stream: sd-daemon(3) priorities before each line.
    Journal,
    /// The socket of a syslog server.
    Syslog(PathBuf),
    Stderr,
}

impl Destination {
    /// Chooses by where this process runs. A person at a terminal reads stderr; else the journal
    /// when systemd has connected stderr to it, else syslog when its socket exists.
    pub fn detect() -> Self {
        let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
        let stderr = std::fs::metadata("/proc/self/fd/2").map(|m| (m.dev(), m.ino())).ok();
        Self::choose(&stream, stderr, std::io::stderr().is_terminal(), Path::new(SYSLOG_SOCKET))
    }

    /// `stream` is `$JOURNAL_STREAM`, device and inode as `8:1234` (systemd.exec(5)). It is
    /// inherited by everything below the service, so it counts only if it still names stderr.
    fn choose(stream: &str, stderr: Option<(u64, u64)>, terminal: bool, socket: &Path) -> Self {
        if terminal {
            return Destination::Stderr;
        }
        if stderr.is_some_and(|(device, inode)| stream == format!("{device}:{inode}")) {
            return Destination::Journal;
        }
        if socket.exists() { Destination::Syslog(socket.to_owned()) } else { Destination::Stderr }
    }
}

/// Writes to standard error, all in one piece and whatever comes of it: there is nobody else to
/// tell.
pub fn tell(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// How grave a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Error,
    Warning,
    Info,
}

impl Level {
    /// The syslog priority, syslog(3), which sd-daemon(3) shares.
    fn priority(self) -> u8 {
        match self {
            Level::Error => 3,
            Level::Warning => 4,
            Level::Info => 6,
        }
    }

    /// The word a person reads before the line.
    fn word(self) -> &'static str {
        match self {
            Level::Error => "error: ",
            Level::Warning => "warning: ",
            Level::Info => "",
        }
    }
}

enum Sink {
    Journal,
    Syslog(Connection),
    Stderr,
}

/// One process has one log, and every thread of a pass writes to it.
static SINK: Mutex<Sink> = Mutex::new(Sink::Stderr);

fn sink() -> MutexGuard<'static, Sink> {
    SINK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends every later line to `destination`; before the first call they go to stderr.
pub fn start(destination: Destination) {
    *sink() = match destination {
        Destination::Journal => Sink::Journal,
        Destination::Syslog(path) => Sink::Syslog(Connection::new(path, Instant::now())),
        Destination::Stderr => Sink::Stderr,
    };
}

/// Logs something that went as it should.
pub fn info(jail: Option<&JailName>, text: &str) {
    write(Level::Info, jail, text);
}

/// Logs something a person should look at some time.
pub fn warn(jail: Option<&JailName>, text: &str) {
    write(Level::Warning, jail, text);
}

/// Logs a failure.
pub fn error(jail: Option<&JailName>, text: &str) {
    write(Level::Error, jail, text);
}

/// Passes on what a syslog server that was away has missed. Costs nothing when nothing waits.
pub fn flush() {
    if let Sink::Syslog(connection) = &mut *sink() {
        connection.flush(Instant::now());
    }
}

fn write(level: Level, jail: Option<&JailName>, text: &str) {
    let line = compose(jail, text);
    match &mut *sink() {
        Sink::Journal => stderr(&format!("<{}>{line}\n", level.priority())),
        Sink::Stderr => stderr(&format!("{}{line}\n", level.word())),
        Sink::Syslog(connection) => connection.line(level, line, Instant::now()),
    }
}

/// One write(2), so that lines of several threads and processes do not mix.
fn stderr(line: &str) {
    // A closed stderr leaves nobody to be told about it.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

fn compose(jail: Option<&JailName>, text: &str) -> String {
    let text = escape(text);
    let mut line = jail.map_or(text.clone(), |name| format!("{name}: {text}"));
    if line.len() > LINE_BYTES_MAX {
        line.truncate(line.floor_char_boundary(LINE_BYTES_MAX));
        line.push('…');
    }
    line
}

/// Makes text safe to show: a jail must not be able to forge a line or to speak to a terminal.
pub fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.trim_end_matches('\n').chars() {
        if c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_cannot_be_forged() {
        for (text, expect) in [
            ("plain, with ümlaut and \"quotes\"", "plain, with ümlaut and \"quotes\""),
            ("ends\n", "ends"),
            ("a\nroot: b", "a\\nroot: b"),
            ("\u{1b}[2Jgone", "\\u{1b}[2Jgone"),
            ("del \u{7f} c1 \u{9b}31m", "del \\u{7f} c1 \\u{9b}31m"),
            ("tab\tnul\0", "tab\\tnul\\u{0}"),
            ("bidi \u{202e}txt", "bidi \\u{202e}txt"),
        ] {
            assert_eq!(escape(text), expect);
        }
    }

    #[test]
    fn long_lines_are_cut_between_characters() {
        let line = compose(Some(&JailName::new("web").unwrap()), &"ä".repeat(LINE_BYTES_MAX));
        assert!(line.starts_with("web: ää") && line.ends_with("ä…"), "{line}");
        assert!(line.len() <= LINE_BYTES_MAX + '…'.len_utf8());
    }

    #[test]
    fn the_destination_follows_the_place() {
        let here = Path::new("/proc/self/exe");
        let nowhere = Path::new("/proc/self/no-such-socket");
        let syslog = Destination::Syslog(here.to_owned());
        for (stream, stderr, terminal, socket, expect) in [
            ("8:12", Some((8, 12)), false, here, Destination::Journal),
            ("8:12", Some((8, 13)), false, here, syslog.clone()),
            ("8:12", Some((8, 13)), false, nowhere, Destination::Stderr),
            ("8:12", Some((8, 12)), true, here, Destination::Stderr),
            ("", Some((8, 12)), false, here, syslog.clone()),
            ("8:12", None, false, here, syslog),
        ] {
            assert_eq!(Destination::choose(stream, stderr, terminal, socket), expect, "{stream} {stderr:?}");
        }
    }
}
