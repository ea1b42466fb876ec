//! One program inside a jail: who it runs as, what it may do, and execve(2). Serves the main
//! process, `exec.start` lines, and `exec` into a running jail alike.

use std::ffi::{CString, OsStr};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::root::layers::architecture;
use crate::security::Profile;
use crate::security::passwd::{self, Identity};
use crate::security::seccomp::Instruction;
use crate::spec::Spec;
use crate::sys::confine;
use crate::sys::process::{self, Cloned};

/// `exec` and `run` pass these on, as env(1) and podman do.
pub const NOT_EXECUTABLE: i32 = 126;
pub const NOT_FOUND: i32 = 127;
/// stockade itself failed.
pub const FAULT: i32 = 125;
/// The longest passwd(5) that is read from a jail; one byte more tells that it is longer.
const PASSWD_BYTES_MAX: u64 = passwd::TEXT_BYTES_MAX as u64;
const SHELL: &str = "/bin/sh";

/// What to start, resolved inside the jail.
pub struct Launch {
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    pub user: Identity,
    pub workdir: PathBuf,
}

impl Launch {
    pub fn main(spec: &Spec) -> Result<Self> {
        Self::new(spec.jail.exec.command.clone(), spec.jail.exec.user.as_deref(), spec)
    }

    pub fn shell(spec: &Spec, line: &str) -> Result<Self> {
        Self::new(vec![SHELL.into(), "-c".into(), line.into()], None, spec)
    }

    pub fn boot(spec: &Spec, path: &str) -> Result<Self> {
        Self::new(vec![path.into()], None, spec)
    }

    fn new(argv: Vec<String>, user: Option<&str>, spec: &Spec) -> Result<Self> {
        let exec = &spec.jail.exec;
        Self::resolve(argv, user, &exec.env, exec.workdir.as_deref(), &spec.profile)
    }

    /// Looks the user up in the jail that this process is in already.
    pub fn resolve(
        argv: Vec<String>,
        user: Option<&str>,
        env: &std::collections::BTreeMap<String, String>,
        workdir: Option<&Path>,
        profile: &Profile,
    ) -> Result<Self> {
        let user = match user {
            Some(user) => look_up(user)?,
            // Nobody was named, so nothing in there can make it somebody else: what spoils its own
            // passwd does not keep its keeper out.
            None => look_up("0").unwrap_or_else(|_| Identity::root()),
        };
        let mut all: std::collections::BTreeMap<String, String> =
            profile.env.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        all.insert("HOME".into(), user.home.clone());
        all.extend(env.iter().map(|(k, v)| (k.clone(), v.clone())));
        let workdir = workdir.unwrap_or(Path::new("/")).to_owned();
        Ok(Self { argv, env: all.into_iter().collect(), user, workdir })
    }
}

fn look_up(user: &str) -> Result<Identity> {
    let passwd = read_inside("etc/passwd")?;
    let group = read_inside("etc/group")?;
    passwd::identity(user, &passwd, &group).map_err(|e| anyhow!("look up user `{user}`: {e}"))
}

/// A regular file of the jail, of bounded size; empty when there is none (CVE-2024-9676: a passwd
/// that is a link, a FIFO or huge).
fn read_inside(path: &str) -> Result<String> {
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).context("open /")?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = match rustix::fs::openat2(&root, path, flags, Mode::empty(), how) {
        Err(rustix::io::Errno::NOENT) => return Ok(String::new()),
        other => other.with_context(|| format!("open /{path}"))?,
    };
    let status = rustix::fs::fstat(&file)?;
    if !rustix::fs::FileType::from_raw_mode(status.st_mode).is_file() {
        bail!("read /{path}: not a regular file");
    }
    let mut text = String::new();
    std::fs::File::from(file)
        .take(PASSWD_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .with_context(|| format!("read /{path}"))?;
    Ok(text)
}

/// What a child becomes.
pub struct Start<'a> {
    pub launch: &'a Launch,
    pub profile: &'a Profile,
    /// The profile's filter, compiled beforehand.
    pub program: Option<&'a [Instruction]>,
    /// A visitor does not outlive the command outside that brought it.
    pub dies_with_parent: bool,
}

/// Forks, and returns the child's number once its program runs, or the reason why it does not.
pub fn spawn(start: &Start<'_>, streams: [OwnedFd; 3], terminal: bool) -> Result<i32> {
    let (ours, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context("make a pipe")?;
    match process::fork().context("fork")? {
        Cloned::Child => {
            drop(ours);
            let session = if terminal { take_terminal(&streams[0]) } else { new_session() };
            let error = match session {
                Ok(()) => become_program(start, streams),
                Err(error) => error,
            };
            // The parent also learns it from the exit status.
            let _ = rustix::io::write(&theirs, reason(&error).as_bytes());
            process::exit_now(exit_status(&error))
        }
        Cloned::Parent { pid, pidfd } => {
            drop((theirs, streams));
            let mut reason = String::new();
            std::fs::File::from(ours).read_to_string(&mut reason).context("read from a starting program")?;
            if reason.is_empty() {
                return Ok(pid);
            }
            let status = process::reap(pidfd.as_fd())?.status();
            Err(failed(status, reason))
        }
    }
}

pub fn new_session() -> Result<()> {
    rustix::process::setsid().context("setsid").map(|_| ())
}

/// A new session whose controlling terminal this is.
pub fn take_terminal(terminal: &OwnedFd) -> Result<()> {
    new_session()?;
    rustix::process::ioctl_tiocsctty(terminal).context("take the terminal")
}

/// 127 for a program that is not there, 126 for one that cannot be run, 125 for our own fault.
pub fn exit_status(error: &anyhow::Error) -> i32 {
    error.downcast_ref::<NotStarted>().map_or(FAULT, |why| why.status())
}

/// The error in one line, without the mark that only carries the exit status.
pub fn reason(error: &anyhow::Error) -> String {
    match error.downcast_ref::<NotStarted>() {
        Some(_) => error.to_string(),
        None => format!("{error:#}"),
    }
}

/// An init's report as an error that keeps the exit status.
pub fn failed(status: i32, reason: String) -> anyhow::Error {
    anyhow::Error::new(NotStarted::from_status(status)).context(reason)
}

/// Why a program does not run, for the exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotStarted {
    Missing,
    Refused,
    Fault,
}

impl NotStarted {
    fn status(self) -> i32 {
        match self {
            Self::Missing => NOT_FOUND,
            Self::Refused => NOT_EXECUTABLE,
            Self::Fault => FAULT,
        }
    }

    fn from_status(status: i32) -> Self {
        match status {
            NOT_FOUND => Self::Missing,
            NOT_EXECUTABLE => Self::Refused,
            _ => Self::Fault,
        }
    }
}

impl std::fmt::Display for NotStarted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Missing => "it is not in the jail",
            Self::Refused => "it cannot be executed",
            Self::Fault => "the jail refused it",
        })
    }
}

impl std::error::Error for NotStarted {}

/// Turns this process into the program; returns only the reason why it could not.
pub fn become_program(start: &Start<'_>, streams: [OwnedFd; 3]) -> anyhow::Error {
    match prepare(start, streams).and_then(|()| execute(start)) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

/// Puts the streams where a program looks for them.
pub fn take_streams(streams: &[OwnedFd; 3]) -> Result<()> {
    rustix::stdio::dup2_stdin(&streams[0]).context("set standard input")?;
    rustix::stdio::dup2_stdout(&streams[1]).context("set standard output")?;
    rustix::stdio::dup2_stderr(&streams[2]).context("set standard error")
}

fn prepare(start: &Start<'_>, streams: [OwnedFd; 3]) -> Result<()> {
    take_streams(&streams)?;
    drop(streams);
    confine::umask(start.profile.umask);
    confine::limit(&start.profile.rlimits)?;
    confine::reset_personality()?;
    confine::reset_affinity()?;
    enter_workdir(&start.launch.workdir)
}

/// chdir, and proof that it ended up inside: an absolute path that the kernel can reach from our
/// root (CVE-2024-21626).
fn enter_workdir(path: &Path) -> Result<()> {
    rustix::process::chdir(path).with_context(|| format!("enter {}", path.display()))?;
    let seen = rustix::process::getcwd(Vec::new()).context("getcwd")?;
    if seen.as_bytes().first() == Some(&b'/') {
        return Ok(());
    }
    bail!("enter {}: it lies outside the root", path.display())
}

/// Tries each directory of PATH, as execvp(3) does.
///
/// All text is made before the filter falls: what comes after it is system calls only.
fn execute(start: &Start<'_>) -> Result<std::convert::Infallible> {
    let launch = start.launch;
    let name = launch.argv.first().ok_or_else(|| anyhow!("no program is given"))?;
    let text = |s: &str| CString::new(s).with_context(|| format!("`{s}` holds a NUL byte"));
    let argv = launch.argv.iter().map(|a| text(a)).collect::<Result<Vec<_>>>()?;
    let env = launch.env.iter().map(|(k, v)| text(&format!("{k}={v}"))).collect::<Result<Vec<_>>>()?;
    let path = launch.env.iter().find(|(k, _)| k == "PATH").map_or("", |(_, v)| v.as_str());
    let candidates = candidates(name, path).iter().map(|c| text(c)).collect::<Result<Vec<_>>>()?;
    confine::become_user(start.profile, &launch.user)?;
    if start.dies_with_parent {
        // Only now: the kernel forgets it whenever credentials change, prctl(2).
        process::set_parent_death_signal(Some(rustix::process::Signal::KILL))?;
    }
    process::reset_signals();
    confine::close_range_at_exec_from(3)?;
    confine::seal(start.profile, launch.user.uid, start.program)?;
    let mut verdict = NotStarted::Missing;
    let mut cause = std::io::Error::from_raw_os_error(libc::ENOENT).to_string();
    for candidate in candidates {
        let error = process::execve(&candidate, &argv, &env);
        if !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) {
            verdict = NotStarted::Refused;
            let program = Path::new(OsStr::from_bytes(candidate.as_bytes()));
            let why = if error.raw_os_error() == Some(libc::ENOEXEC) { foreign(program) } else { None };
            cause = why.unwrap_or_else(|| error.to_string());
        }
    }
    Err(anyhow::Error::new(verdict).context(format!("execute {name}: {cause}")))
}

/// Why the kernel does not know a program's kind: it, or what its first line names, is of another
/// architecture. It is the jail's, and may be anything.
fn foreign(program: &Path) -> Option<String> {
    let head = |path: &Path| {
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        architecture::head(std::fs::File::options().read(true).custom_flags(flags).open(path).ok()?)
    };
    let mut found = head(program)?;
    if let Some(line) = found.strip_prefix(b"#!") {
        let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        found = head(Path::new(OsStr::from_bytes(words.next()?)))?;
    }
    architecture::check(architecture::of_program(&found)?).err()
}

fn candidates(name: &str, path: &str) -> Vec<String> {
    if name.contains('/') {
        return vec![name.to_owned()];
    }
    path.split(':').filter(|d| !d.is_empty()).map(|directory| format!("{directory}/{name}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_search() {
        assert_eq!(candidates("sh", "/usr/bin:/bin"), ["/usr/bin/sh", "/bin/sh"]);
        assert_eq!(candidates("./sh", "/bin"), ["./sh"]);
        assert!(candidates("sh", "").is_empty());
    }
}
