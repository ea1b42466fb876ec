//! The connection to a syslog server that may be restarted at any moment.
//!
//! The syslog crate connects once and never again, so the connection is made anew here when a
//! send fails. Lines wait in a ring meanwhile; they are sent in their order, or counted as lost.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use syslog::{Facility, Formatter3164, Logger, LoggerBackend};

use super::Level;

/// How many lines wait for a server that is away; then the oldest are lost.
pub(super) const WAITING_LINES_MAX: usize = 1_000;

/// The first and the longest pause between two attempts to reach a server that is away.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// How long one send may wait for a server that does not read.
const SEND_TIMEOUT: Duration = Duration::from_millis(200);

/// A line that waited longer than this says so, for the server stamps it when it arrives.
const DELAY_SAID: Duration = Duration::from_secs(1);

/// A connection, or the wish for one.
pub(super) struct Connection {
    path: PathBuf,
    logger: Option<Logger<LoggerBackend, Formatter3164>>,
    waiting: VecDeque<Line>,
    /// Lines dropped from the full ring since the last good send.
    lost: u64,
    /// No attempt before this.
    not_before: Instant,
    pause: Duration,
}

struct Line {
    level: Level,
    text: String,
    at: Instant,
}

impl Connection {
    pub(super) fn new(path: PathBuf, now: Instant) -> Self {
        let waiting = VecDeque::new();
        Self { path, logger: None, waiting, lost: 0, not_before: now, pause: PAUSE_FIRST }
    }

    pub(super) fn line(&mut self, level: Level, text: String, now: Instant) {
        if self.waiting.len() == WAITING_LINES_MAX {
            self.waiting.pop_front();
            self.lost += 1;
        }
        self.waiting.push_back(Line { level, text, at: now });
        self.flush(now);
    }

    /// Sends what waits, as far as the server takes it.
    pub(super) fn flush(&mut self, now: Instant) {
        if self.waiting.is_empty() || now < self.not_before {
            return;
        }
        // A connection that was good until now means a server that was restarted: it is
        // probably there again, so the first new attempt follows at once. A full queue is not that.
        let outcome = self.drain(now).or_else(|e| if is_full(&e) { Err(e) } else { self.drain(now) });
        if outcome.is_err() {
            self.not_before = now + self.pause;
            self.pause = (self.pause * 2).min(PAUSE_MAX);
        }
    }

    /// Sends from the front of the ring until it is empty. An error leaves the line that met it in
    /// the ring and no connection.
    fn drain(&mut self, now: Instant) -> syslog::Result<()> {
        let mut logger = match self.logger.take() {
            Some(logger) => logger,
            None => connect(&self.path)?,
        };
        if self.lost > 0 {
            logger.warning(format!("{} lines were lost while syslog was away", self.lost))?;
            self.lost = 0;
        }
        while let Some(line) = self.waiting.front() {
            send(&mut logger, line, now)?;
            self.waiting.pop_front();
            self.pause = PAUSE_FIRST;
        }
        self.logger = Some(logger);
        Ok(())
    }
}

/// The server is there but has not read for [`SEND_TIMEOUT`].
fn is_full(error: &syslog::Error) -> bool {
    matches!(error, syslog::Error::Write(e) | syslog::Error::Io(e) if e.kind() == ErrorKind::WouldBlock)
}

fn connect(path: &PathBuf) -> syslog::Result<Logger<LoggerBackend, Formatter3164>> {
    let formatter = Formatter3164 {
        facility: Facility::LOG_DAEMON,
        hostname: None,
        process: env!("CARGO_PKG_NAME").to_owned(),
        pid: std::process::id(),
    };
    let logger = syslog::unix_custom(formatter, path)?;
    match &logger.backend {
        LoggerBackend::Unix(socket) => socket.set_write_timeout(Some(SEND_TIMEOUT))?,
        LoggerBackend::UnixStream(stream) => stream.get_ref().set_write_timeout(Some(SEND_TIMEOUT))?,
        LoggerBackend::Udp(..) | LoggerBackend::Tcp(_) => {}
    }
    Ok(logger)
}

fn send(logger: &mut Logger<LoggerBackend, Formatter3164>, line: &Line, now: Instant) -> syslog::Result<()> {
    let late = now.saturating_duration_since(line.at);
    let text = if late < DELAY_SAID {
        line.text.clone()
    } else {
        format!("{} (delayed by {} s)", line.text, late.as_secs())
    };
    match line.level {
        Level::Error => logger.err(text),
        Level::Warning => logger.warning(text),
        Level::Info => logger.info(text),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::path::Path;

    use super::*;

    /// Everything the server has been sent, without priority, time and process.
    fn received(server: &UnixDatagram) -> Vec<String> {
        server.set_nonblocking(true).unwrap();
        let mut buffer = [0; 16 * 1024];
        let mut lines = Vec::new();
        while let Ok(count) = server.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
            lines.push(text.split_once("]: ").expect("a syslog line names its process").1.to_owned());
        }
        lines
    }

    fn serve(path: &Path) -> UnixDatagram {
        UnixDatagram::bind(path).unwrap()
    }

    #[test]
    fn a_line_has_its_priority() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let server = serve(&path);
        let now = Instant::now();
        let mut connection = Connection::new(path, now);
        connection.line(Level::Error, "web: down".into(), now);
        let mut buffer = [0; 1024];
        let count = server.recv(&mut buffer).unwrap();
        let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
        // Facility 3 (daemon) times 8, and severity 3.
        assert!(text.starts_with("<27>") && text.ends_with(&format!("[{}]: web: down", std::process::id())));
    }

    #[test]
    fn a_restarted_server_gets_every_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let now = Instant::now();
        let mut connection = Connection::new(path.clone(), now);

        let first = serve(&path);
        connection.line(Level::Info, "1".into(), now);
        assert_eq!(received(&first), ["1"]);

        drop(first);
        std::fs::remove_file(&path).unwrap();
        connection.line(Level::Info, "2".into(), now);
        connection.line(Level::Info, "3".into(), now + PAUSE_FIRST);

        let second = serve(&path);
        // Within the pause the server is left alone; after it everything comes, in order.
        connection.line(Level::Info, "4".into(), now + PAUSE_FIRST);
        assert_eq!(received(&second), Vec::<String>::new());
        connection.line(Level::Info, "5".into(), now + PAUSE_MAX);
        assert_eq!(
            received(&second),
            ["2 (delayed by 5 s)", "3 (delayed by 4 s)", "4 (delayed by 4 s)", "5"]
        );

        // Restarted between two lines: no pause at all.
        drop(second);
        std::fs::remove_file(&path).unwrap();
        let third = serve(&path);
        connection.line(Level::Info, "6".into(), now + PAUSE_MAX);
        assert_eq!(received(&third), ["6"]);
    }

    #[test]
    fn what_the_ring_cannot_hold_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let now = Instant::now();
        let mut connection = Connection::new(path.clone(), now);
        for number in 0..WAITING_LINES_MAX + 7 {
            connection.line(Level::Info, number.to_string(), now);
        }
        let server = serve(&path);
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 1024];
            let mut lines = Vec::new();
            while lines.len() < WAITING_LINES_MAX + 1 {
                let count = server.recv(&mut buffer).unwrap();
                let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
                lines.push(text.split_once("]: ").unwrap().1.to_owned());
            }
            lines
        });
        // The server's queue is shorter than the ring, and the reader may be slow.
        let mut later = now + PAUSE_MAX;
        while !connection.waiting.is_empty() {
            connection.flush(later);
            later += PAUSE_MAX;
        }
        let lines = reader.join().unwrap();
        assert_eq!(lines[0], "7 lines were lost while syslog was away");
        assert!(lines[1].starts_with("7 (") && lines[WAITING_LINES_MAX].starts_with("1006 ("));
    }

    #[test]
    fn a_server_that_does_not_read_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let server = serve(&path);
        let now = Instant::now();
        let mut connection = Connection::new(path, now);
        // More than the receive queue holds (net.unix.max_dgram_qlen): this would hang without
        // the timeout.
        let queue = std::fs::read_to_string("/proc/sys/net/unix/max_dgram_qlen").unwrap();
        let count = (queue.trim().parse::<usize>().unwrap() + 2).min(WAITING_LINES_MAX);
        for number in 0..count {
            connection.line(Level::Info, number.to_string(), now);
        }
        assert!(!connection.waiting.is_empty(), "the queue took everything, so nothing was tested");
        let mut seen = received(&server);
        while !connection.waiting.is_empty() {
            connection.flush(connection.not_before);
            seen.extend(received(&server));
        }
        let numbers: Vec<usize> =
            seen.iter().map(|l| l.split(' ').next().unwrap().parse().unwrap()).collect();
        assert_eq!(numbers, (0..count).collect::<Vec<_>>());
    }
}
