//! `logs`: what a jail has printed, from the oldest rotation to what comes now.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, IsTerminal, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use clap_complete::ArgValueCandidates;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use serde_json::json;

use super::{DONE, Options, complete, named, output};
use crate::definition;
use crate::desired::Paths;
use crate::jail::JailName;
use crate::keeper::{ROTATIONS, rotated};
use crate::{log, source};

/// How a moment is written before each line, `2026-11-23T22:30:00.123456Z`: its length.
const STAMP_BYTES: usize = 27;
/// Attempts at opening the files as they were listed.
const LOOKS_MAX: usize = 10;
/// Room for the events of one read; a name is at most 255 bytes.
const EVENTS_BYTES: usize = 8 * 1024;

#[derive(Debug, Args)]
pub struct Logs {
    /// The jail
    #[arg(add = ArgValueCandidates::new(complete::jails))]
    pub name: String,
    /// Go on as more comes
    #[arg(short, long)]
    pub follow: bool,
    /// Since a moment (2026-11-23T10:00:00Z) or a while ago (10m)
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// The last lines only
    #[arg(short = 'n', long, value_name = "COUNT")]
    pub lines: Option<usize>,
    /// Without the time of each line
    #[arg(long)]
    pub no_time: bool,
}

pub fn logs(options: &Options, asked: &Logs) -> Result<i32> {
    let name = JailName::new(&asked.name).map_err(|e| anyhow!(e))?;
    let paths = source::host(&options.paths()).paths;
    let path = paths.log.join(format!("{name}.log"));
    if !path.exists() {
        must_be_known(options, &paths, &name)?;
    }
    let since = asked.since.as_deref().map(|text| moment(text, jiff::Timestamp::now())).transpose()?;
    let mut sink = Sink::new(Form::of(options, asked), since);
    // Watched before the first look, so that nothing falls between the two.
    let watch = asked.follow.then(|| Watch::on(&paths.log)).transpose()?;
    let mut reader = Reader::new(path);
    let mut last = Tail::new(asked.lines);
    reader.read_all(&mut |line| last.take(line, &mut sink))?;
    last.finish(&mut sink);
    sink.flush();
    let Some(mut watch) = watch else { return Ok(DONE) };
    loop {
        watch.wait(reader.current())?;
        reader.read_all(&mut |line| sink.line(line))?;
        sink.flush();
    }
}

/// A jail that has printed nothing yet is none the less one.
fn must_be_known(options: &Options, paths: &Paths, name: &JailName) -> Result<()> {
    let desired = named::load(options);
    let mut known: Vec<String> =
        desired.jails.keys().chain(desired.broken.keys()).map(ToString::to_string).collect();
    known.extend(logged(&paths.log));
    let has_state = paths.state.join("jails").join(name.as_str()).exists();
    if has_state || known.iter().any(|other| other == name.as_str()) {
        return Ok(());
    }
    bail!("{}", named::no_jail(name.as_str(), known.iter().map(String::as_str)))
}

fn logged(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let name = |entry: fs::DirEntry| Some(entry.file_name().to_str()?.strip_suffix(".log")?.to_owned());
    entries.filter_map(|entry| name(entry.ok()?)).collect()
}

/// The earliest stamp wanted: a moment, or that long before `now`.
pub(crate) fn moment(text: &str, now: jiff::Timestamp) -> Result<String> {
    let at = if let Ok(at) = text.parse::<jiff::Timestamp>() {
        at
    } else {
        let ms = definition::duration(text).map_err(|_| {
            anyhow!("--since {text}: neither a moment such as 2026-11-23T10:00:00Z nor a while such as 10m")
        })?;
        let back = jiff::SignedDuration::from_millis(i64::try_from(ms).unwrap_or(i64::MAX));
        now.checked_sub(back).with_context(|| format!("--since {text}"))?
    };
    Ok(format!("{at:.6}"))
}

/// The last lines only, or every one at once.
struct Tail {
    lines: VecDeque<Vec<u8>>,
    most: Option<usize>,
}

impl Tail {
    fn new(most: Option<usize>) -> Self {
        Self { lines: VecDeque::new(), most }
    }

    fn take(&mut self, line: &[u8], sink: &mut Sink) {
        let Some(most) = self.most else { return sink.line(line) };
        if !sink.wants(line) || most == 0 {
            return;
        }
        if self.lines.len() == most {
            self.lines.pop_front();
        }
        self.lines.push_back(line.to_owned());
    }

    fn finish(self, sink: &mut Sink) {
        self.lines.iter().for_each(|line| sink.line(line));
    }
}

/// How a line is shown.
#[derive(Clone, Copy)]
enum Form {
    /// As it is in the file, for another program.
    Raw {
        time: bool,
    },
    /// For a terminal, to which a jail must not speak.
    Escaped {
        time: bool,
    },
    Json,
}

impl Form {
    fn of(options: &Options, asked: &Logs) -> Self {
        let time = !asked.no_time;
        match (options.json, std::io::stdout().is_terminal()) {
            (true, _) => Self::Json,
            (false, true) => Self::Escaped { time },
            (false, false) => Self::Raw { time },
        }
    }

    fn show(self, line: &[u8]) -> Vec<u8> {
        let (stamp, text) = split(line);
        let with_time = |time: bool, text: &[u8]| {
            let stamp = if time && !stamp.is_empty() { [stamp, b" "].concat() } else { Vec::new() };
            [stamp.as_slice(), text, b"\n"].concat()
        };
        match self {
            Self::Raw { time } => with_time(time, text),
            Self::Escaped { time } => with_time(time, escaped(&String::from_utf8_lossy(text)).as_bytes()),
            Self::Json => {
                let text = String::from_utf8_lossy(text);
                let time = (!stamp.is_empty()).then(|| String::from_utf8_lossy(stamp));
                format!("{}\n", json!({ "time": time, "text": text })).into_bytes()
            }
        }
    }
}

/// The stamp and the text; a line without a stamp is all text.
fn split(line: &[u8]) -> (&[u8], &[u8]) {
    match line.get(..STAMP_BYTES) {
        Some(stamp) if stamp[10] == b'T' && stamp.ends_with(b"Z") && line.get(STAMP_BYTES) == Some(&b' ') => {
            (stamp, &line[STAMP_BYTES + 1..])
        }
        _ => (b"", line),
    }
}

/// Escape sequences spelled out; a tab does no harm.
fn escaped(text: &str) -> String {
    text.split('\t').map(log::escape).collect::<Vec<_>>().join("\t")
}

struct Sink {
    form: Form,
    since: Option<String>,
    out: std::io::BufWriter<std::io::Stdout>,
    error: Option<std::io::Error>,
}

impl Sink {
    fn new(form: Form, since: Option<String>) -> Self {
        Self { form, since, out: std::io::BufWriter::new(std::io::stdout()), error: None }
    }

    /// Stamps are all of one length, so that they sort as text.
    fn wants(&self, line: &[u8]) -> bool {
        self.since.as_ref().is_none_or(|since| split(line).0 >= since.as_bytes())
    }

    fn line(&mut self, line: &[u8]) {
        if self.error.is_none() && self.wants(line) {
            self.error = self.out.write_all(&self.form.show(line)).err();
        }
    }

    fn flush(&mut self) {
        if let Some(error) = self.error.take().or_else(|| self.out.flush().err()) {
            output::unwritten(&error);
        }
    }
}

/// Where the reading stands: in which file, by its inode, and how far.
struct Reader {
    path: PathBuf,
    file: Option<BufReader<File>>,
    inode: u64,
    /// A line whose end is not written yet.
    begun: Vec<u8>,
}

impl Reader {
    fn new(path: PathBuf) -> Self {
        Self { path, file: None, inode: 0, begun: Vec::new() }
    }

    /// The file that is read now, if there is one.
    fn current(&self) -> Option<&Path> {
        self.file.is_some().then_some(self.path.as_path())
    }

    /// Everything that was not read before, also in files that were set aside meanwhile.
    fn read_all(&mut self, take: &mut dyn FnMut(&[u8])) -> Result<()> {
        self.read_rest(take)?;
        for _ in 0..LOOKS_MAX {
            if self.read_newer(take)? {
                return Ok(());
            }
        }
        bail!("read the log: it is set aside faster than it can be read")
    }

    /// False when files were set aside between the listing and the opening.
    fn read_newer(&mut self, take: &mut dyn FnMut(&[u8])) -> Result<bool> {
        for (path, inode) in self.newer()? {
            let file = match File::open(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
                other => other.with_context(|| format!("open {}", path.display()))?,
            };
            if file.metadata().with_context(|| format!("stat {}", path.display()))?.ino() != inode {
                return Ok(false);
            }
            (self.inode, self.file) = (inode, Some(BufReader::new(file)));
            self.read_rest(take)?;
        }
        Ok(true)
    }

    /// The files younger than the one that was read last, oldest first, with their inodes.
    fn newer(&self) -> Result<Vec<(PathBuf, u64)>> {
        let rotations = (1..=ROTATIONS).rev().map(|number| rotated(&self.path, number));
        let mut files = Vec::new();
        for path in rotations.chain([self.path.clone()]) {
            match fs::symlink_metadata(&path) {
                Ok(found) if found.is_file() && found.ino() == self.inode => files.clear(),
                Ok(found) if found.is_file() => files.push((path, found.ino())),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error).with_context(|| format!("stat {}", path.display())),
            }
        }
        Ok(files)
    }

    fn read_rest(&mut self, take: &mut dyn FnMut(&[u8])) -> Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        loop {
            let length = file.read_until(b'\n', &mut self.begun).context("read the log")?;
            if length == 0 || !self.begun.ends_with(b"\n") {
                return Ok(());
            }
            self.begun.pop();
            take(&self.begun);
            self.begun.clear();
        }
    }
}

/// The kernel's word that there is more: of the directory for new files, of the file for lines.
struct Watch {
    inotify: File,
    watched: u64,
}

impl Watch {
    fn on(directory: &Path) -> Result<Self> {
        let inotify: OwnedFd = inotify::init(CreateFlags::CLOEXEC).context("open inotify")?;
        inotify::add_watch(
            &inotify,
            directory,
            WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR,
        )
        .with_context(|| format!("watch {}", directory.display()))?;
        Ok(Self { inotify: File::from(inotify), watched: 0 })
    }

    /// Returns when something may have come. A file that is watched for the first time is looked at
    /// once more before any wait: lines may have come before the watch.
    fn wait(&mut self, file: Option<&Path>) -> Result<()> {
        if let Some(path) = file
            && let Ok(found) = fs::metadata(path)
            && found.ino() != self.watched
        {
            inotify::add_watch(&self.inotify, path, WatchFlags::MODIFY)
                .with_context(|| format!("watch {}", path.display()))?;
            self.watched = found.ino();
            return Ok(());
        }
        // What happened does not matter: the files themselves are looked at.
        let mut events = [0; EVENTS_BYTES];
        self.inotify.read(&mut events).map(drop).context("read inotify")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &[u8] = b"2026-11-23T22:30:00.123456Z one\tt\x1b[2J";

    #[test]
    fn lines_are_shown_as_asked() {
        for (form, expect) in [
            (Form::Raw { time: true }, &b"2026-11-23T22:30:00.123456Z one\tt\x1b[2J\n"[..]),
            (Form::Raw { time: false }, b"one\tt\x1b[2J\n"),
            (Form::Escaped { time: true }, b"2026-11-23T22:30:00.123456Z one\tt\\u{1b}[2J\n"),
            (Form::Json, b"{\"text\":\"one\\tt\\u001b[2J\",\"time\":\"2026-11-23T22:30:00.123456Z\"}\n"),
        ] {
            assert_eq!(form.show(LINE).escape_ascii().to_string(), expect.escape_ascii().to_string());
        }
        assert_eq!(Form::Raw { time: true }.show(b"no stamp"), b"no stamp\n");
    }

    #[test]
    fn moments_are_absolute_or_back_from_now() {
        let now: jiff::Timestamp = "2026-11-23T22:30:00Z".parse().unwrap();
        for (text, expect) in [
            ("10m", "2026-11-23T22:20:00.000000Z"),
            ("1d", "2026-11-22T22:30:00.000000Z"),
            ("2026-01-02T03:04:05+01:00", "2026-01-02T02:04:05.000000Z"),
        ] {
            assert_eq!(moment(text, now).unwrap(), expect);
            assert_eq!(expect.len(), STAMP_BYTES);
        }
        for text in ["", "10", "yesterday", "99999999999d"] {
            assert!(moment(text, now).is_err(), "{text}");
        }
    }

    fn read(reader: &mut Reader) -> Vec<String> {
        let mut lines = Vec::new();
        reader.read_all(&mut |line| lines.push(String::from_utf8_lossy(line).into_owned())).unwrap();
        lines
    }

    #[test]
    fn reading_goes_on_over_rotations() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web.log");
        let mut reader = Reader::new(path.clone());
        assert!(read(&mut reader).is_empty() && reader.current().is_none());
        fs::write(rotated(&path, 1), "one\n").unwrap();
        fs::write(&path, "two\nthr").unwrap();
        assert_eq!(read(&mut reader), ["one", "two"]);
        File::options().append(true).open(&path).unwrap().write_all(b"ee\n").unwrap();
        // Set aside twice before the next look.
        fs::rename(&path, rotated(&path, 2)).unwrap();
        fs::write(rotated(&path, 1), "four\n").unwrap();
        fs::write(&path, "five\n").unwrap();
        assert_eq!(read(&mut reader), ["three", "four", "five"]);
        assert!(read(&mut reader).is_empty());
    }
}
