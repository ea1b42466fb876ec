//! `cp`: files into a jail, out of it, between jails, or from and to a tar stream.
//!
//! Everything goes through one stream. The jail's side of it is a process of its own that has
//! become the jail's root user (see [`View`]); this one is the host's side, or only passes on.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use rustix::pipe::PipeFlags;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::progress::Progress;
use super::{DONE, Options, named, output};
use crate::desired::{Desired, DesiredJail};
use crate::execute::{self, Host};
use crate::jail::{JailName, OnStop};
use crate::journal::lock;
use crate::live::{JailState, Record};
use crate::probe;
use crate::root::carry;
use crate::root::view::View;
use crate::sys::process::{self, Cloned};

/// Bytes that are gathered before they go into the stream.
const CHUNK: usize = 256 << 10;

#[derive(Debug, Args)]
pub struct Cp {
    /// Sources and last the destination: a path, NAME:PATH in a jail, or - for a tar stream
    #[arg(required = true, num_args = 2.., value_name = "PATH")]
    pub paths: Vec<OsString>,
    /// Keep owners, set-id bits, attributes and access lists
    #[arg(short, long)]
    pub archive: bool,
}

/// What a side says whose reader has gone.
const CLOSED: &str = "the other side has closed the stream";

/// One side of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Side {
    Host,
    Stream,
    Jail(JailName),
}

/// What a jail's side tells at its end.
#[derive(Default, Serialize, Deserialize)]
struct Told {
    left_out: Vec<PathBuf>,
    error: Option<String>,
}

/// A process on the side of a jail, and what it tells.
struct Helper {
    pidfd: OwnedFd,
    told: File,
}

pub fn cp(options: &Options, asked: &Cp) -> Result<i32> {
    let (from, sources) = sources(&asked.paths[..asked.paths.len() - 1])?;
    let (to, target) = side(&asked.paths[asked.paths.len() - 1])?;
    check(&from, &to, asked.archive)?;
    let (desired, host) = named::open(options)?;
    // From here on something is to be cleared away: ctrl-C ends the copy, not this process.
    crate::interrupt::catch()?;
    process::ignore_pipe_signal();
    let copy = Copy { host: &host, desired: &desired, owners: asked.archive };
    let progress = Progress::new(options, "cp", None)?;
    let many =
        from == Side::Stream || sources.len() > 1 || sources.iter().any(|path| carry::means_contents(path));
    let left_out = copy.run((&from, &sources), (&to, &target, many), &progress)?;
    let bytes = progress.bytes();
    drop(progress);
    for path in left_out.iter().filter(|_| !options.json) {
        eprintln!("stockade: left out: {}: no file, directory or link", path.display());
    }
    if options.json {
        let left_out: Vec<_> = left_out.iter().map(|path| path.display().to_string()).collect();
        output::json_text(&output::envelope("copied", json!([{ "bytes": bytes, "left_out": left_out }])));
    }
    Ok(DONE)
}

/// `-`, NAME:PATH, or a path of the host; one with a colon in it begins with `./`.
fn side(text: &OsString) -> Result<(Side, PathBuf)> {
    if text == "-" {
        return Ok((Side::Stream, PathBuf::from(".")));
    }
    let bytes = text.as_bytes();
    let Some(colon) = bytes.iter().position(|byte| matches!(byte, b':' | b'/')) else {
        return Ok((Side::Host, text.into()));
    };
    if bytes[colon] == b'/' {
        return Ok((Side::Host, text.into()));
    }
    let name = std::str::from_utf8(&bytes[..colon]).context("the name of a jail")?;
    let name = JailName::new(name).map_err(|e| anyhow!(e))?;
    let path = Path::new(std::ffi::OsStr::from_bytes(&bytes[colon + 1..]));
    ensure!(!path.as_os_str().is_empty(), "{name}: a path in the jail is missing behind the colon");
    Ok((Side::Jail(name), Path::new("/").join(path)))
}

/// Where all sources are, and the paths there.
fn sources(texts: &[OsString]) -> Result<(Side, Vec<PathBuf>)> {
    let mut all = texts.iter().map(side).collect::<Result<Vec<_>>>()?.into_iter();
    let (first, path) = all.next().context("cp: a source is missing")?;
    let mut paths = vec![path];
    for (other, path) in all {
        ensure!(other == first && first != Side::Stream, "cp: all sources are on the host or in one jail");
        paths.push(path);
    }
    Ok((first, paths))
}

fn check(from: &Side, to: &Side, owners: bool) -> Result<()> {
    let jail = |side: &Side| matches!(side, Side::Jail(_));
    ensure!(jail(from) || jail(to), "cp: one side is a jail's, NAME:PATH");
    ensure!(from != to, "cp: both sides are the same jail: exec a cp in it");
    ensure!(
        *to != Side::Host || !owners,
        "cp: --archive keeps owners in a jail or a tar stream; on the host all is root's"
    );
    if *to == Side::Stream && io::stdout().is_terminal() {
        bail!("cp: a tar stream does not go to a terminal");
    }
    Ok(())
}

struct Copy<'c> {
    host: &'c Host,
    desired: &'c Desired,
    owners: bool,
}

impl Copy<'_> {
    fn run(
        &self,
        (from, sources): (&Side, &[PathBuf]),
        (to, target, many): (&Side, &Path, bool),
        progress: &Progress,
    ) -> Result<Vec<PathBuf>> {
        let told = |bytes| progress.add(bytes);
        let packs = if let Side::Jail(name) = from { Some(self.pack_in(name, sources)?) } else { None };
        let lays = if let Side::Jail(name) = to { Some(self.lay_in(name, target, many)?) } else { None };
        let (reader, packer) = packs.unzip();
        let (writer, layer) = lays.unzip();
        let mut left_out = Vec::new();
        let host_side = match (reader, writer) {
            (Some(reader), None) if *to == Side::Host => {
                let stream = Counted { inner: reader, told: &told };
                carry::lay(None, target, many, self.owners, Box::new(stream)).map(|left| left_out = left)
            }
            (Some(reader), None) => pass_on(reader, io::stdout().lock(), &told),
            (Some(reader), Some(writer)) => pass_on(reader, writer, &told),
            (None, Some(writer)) if *from == Side::Host => {
                let out = BufWriter::with_capacity(CHUNK, writer);
                carry::pack(None, sources, self.owners, out, &told).map(|left| left_out = left)
            }
            (None, Some(writer)) => pass_on(io::stdin().lock(), writer, &told),
            (None, None) => Ok(()),
        };
        // In the order of the stream: who fails makes the next one fail too, and the one before
        // it only by closing the stream.
        let mut error = None;
        for end in [packer.map(Helper::end), Some(host_side.map(|()| Vec::new())), layer.map(Helper::end)] {
            match end.unwrap_or_else(|| Ok(Vec::new())) {
                Ok(left) => left_out.extend(left),
                Err(next) if error.as_ref().is_none_or(is_closed) => error = Some(next),
                Err(_) => {}
            }
        }
        error.map_or(Ok(left_out), Err)
    }

    fn pack_in(&self, name: &JailName, sources: &[PathBuf]) -> Result<(File, Helper)> {
        let place = self.place(name, false)?;
        helper(Direction::Out, |stream| {
            let root = place.view(self.host)?.enter()?;
            let out = BufWriter::with_capacity(CHUNK, stream);
            carry::pack(Some(root.as_fd()), sources, self.owners, out, &|_| ())
        })
    }

    fn lay_in(&self, name: &JailName, target: &Path, many: bool) -> Result<(File, Helper)> {
        let place = self.place(name, true)?;
        helper(Direction::In, |stream| {
            let root = place.view(self.host)?.enter()?;
            carry::lay(Some(root.as_fd()), target, many, self.owners, Box::new(stream))
        })
    }

    /// How the jail's root is come by now. A jail that is down is kept so.
    fn place(&self, name: &JailName, to_write: bool) -> Result<Place<'_>> {
        let lock = lock::jail(&self.host.journal.paths, name)?;
        let jail = probe::one(&self.host.journal, &self.host.config, &self.host.hierarchies, name)?;
        match (jail.state, jail.record) {
            (JailState::Up | JailState::Frozen | JailState::Orphaned, Some(record)) => {
                return Ok(Place::Running(Box::new(record)));
            }
            (JailState::Partial, _) => bail!("{name}: its start or stop was cut off: apply first"),
            _ => {}
        }
        let wanted = named::jail(self.desired, name.as_str())?;
        let keeps = wanted.jail.root.storage != "tmpfs" && wanted.jail.root.on_stop == OnStop::Keep;
        ensure!(
            !to_write || keeps,
            "{name}: it is down, and its next start begins with an empty root of its own"
        );
        let instance = lock::instance(&self.host.journal.paths, name)?;
        Ok(Place::Stopped { wanted, _locks: (lock, instance) })
    }
}

/// Where a jail's root is to be had.
enum Place<'p> {
    Running(Box<Record>),
    Stopped { wanted: &'p DesiredJail, _locks: (lock::Lock, OwnedFd) },
}

impl Place<'_> {
    fn view(&self, host: &Host) -> Result<View> {
        match self {
            Self::Running(record) => View::running(record),
            Self::Stopped { wanted, .. } => View::stopped(&execute::spec_of_stopped(host, wanted)?),
        }
    }
}

/// The reader of the stream has gone, and knows why.
fn is_closed(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
            || cause.to_string() == CLOSED
    })
}

/// Whether the stream comes from the jail or goes to it.
#[derive(Clone, Copy, PartialEq)]
enum Direction {
    In,
    Out,
}

/// Runs `work` on its end of a stream in a fork of this process; gives ours.
fn helper(direction: Direction, work: impl FnOnce(File) -> Result<Vec<PathBuf>>) -> Result<(File, Helper)> {
    let (told, tell) = pipe()?;
    let (read, write) = pipe()?;
    let (ours, theirs) = if direction == Direction::In { (write, read) } else { (read, write) };
    match process::fork().context("fork")? {
        Cloned::Child => {
            drop((told, ours));
            let answer = match process::set_parent_death_signal(Some(Signal::TERM))
                .and_then(|()| work(theirs))
            {
                Ok(left_out) => Told { left_out, error: None },
                Err(error) if is_closed(&error) => Told { error: Some(CLOSED.to_owned()), ..Told::default() },
                Err(error) => Told { error: Some(format!("{error:#}")), ..Told::default() },
            };
            let sent = serde_json::to_writer(tell, &answer);
            process::exit_now(i32::from(sent.is_err() || answer.error.is_some()))
        }
        Cloned::Parent { pidfd, .. } => Ok((ours, Helper { pidfd, told })),
    }
}

impl Helper {
    fn end(mut self) -> Result<Vec<PathBuf>> {
        let mut text = Vec::new();
        self.told.read_to_end(&mut text).context("hear of the other side")?;
        let ended = process::reap(self.pidfd.as_fd())?;
        let told: Told = serde_json::from_slice(&text)
            .with_context(|| format!("the other side ended with {}", ended.status()))?;
        match told.error {
            Some(error) => bail!("{error}"),
            None => Ok(told.left_out),
        }
    }
}

fn pipe() -> Result<(File, File)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context("make a pipe")?;
    Ok((read.into(), write.into()))
}

/// Copies to the end, and closes.
fn pass_on(reader: impl Read, mut writer: impl Write, told: &dyn Fn(u64)) -> Result<()> {
    let mut reader = Counted { inner: reader, told };
    io::copy(&mut reader, &mut writer).and_then(|_| writer.flush()).context("pass on the stream")
}

struct Counted<'c, R> {
    inner: R,
    told: &'c dyn Fn(u64),
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if crate::interrupt::asked() {
            return Err(io::Error::other("interrupted"));
        }
        let count = self.inner.read(buffer)?;
        (self.told)(count as u64);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_makes_a_jail_and_a_slash_before_it_does_not() {
        let check = |text: &str| side(&text.into()).ok();
        let jail = |name: &str| Side::Jail(JailName::new(name).unwrap());
        assert_eq!(check("-"), Some((Side::Stream, ".".into())));
        assert_eq!(check("./a:b"), Some((Side::Host, "./a:b".into())));
        assert_eq!(check("/a"), Some((Side::Host, "/a".into())));
        assert_eq!(check("a"), Some((Side::Host, "a".into())));
        assert_eq!(check("web:etc/motd"), Some((jail("web"), "/etc/motd".into())));
        assert_eq!(check("web:/a:b"), Some((jail("web"), "/a:b".into())));
        assert_eq!(check("web:"), None);
        assert_eq!(check("No:/a"), None);
    }

    #[test]
    fn sources_are_in_one_place() {
        let check = |texts: &[&str]| sources(&texts.iter().map(OsString::from).collect::<Vec<_>>());
        assert_eq!(check(&["a", "b"]).unwrap(), (Side::Host, vec!["a".into(), "b".into()]));
        assert!(check(&["a", "web:/b"]).is_err());
        assert!(check(&["web:/a", "db:/b"]).is_err());
        assert!(check(&["-", "-"]).is_err());
    }
}
