//! `exec`, `shell`, `console`: getting into a running jail.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use clap_complete::ArgValueCandidates;

use super::{DONE, Options, complete, named};
use crate::inside::{self, Visit};
use crate::jail::JailName;
use crate::journal::Journal;
use crate::terminal;

/// The shells `shell` tries, best first, when the user's own is not there.
const SHELLS: &str =
    "for s in \"$SHELL\" /bin/bash /bin/sh; do [ -x \"$s\" ] && exec \"$s\" -l; done; exec sh";

#[derive(Debug, Args)]
pub struct Exec {
    /// The jail
    #[arg(add = ArgValueCandidates::new(complete::jails))]
    pub name: String,
    /// Directory in the jail
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<PathBuf>,
    #[command(flatten)]
    pub program: Program,
}

/// What `exec` and `run` start, and how.
#[derive(Debug, Args)]
pub struct Program {
    /// User in the jail, by name or number
    #[arg(short, long)]
    pub user: Option<String>,
    /// Additional environment
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Keep this command's own streams even on a terminal
    #[arg(short = 'T', long)]
    pub no_terminal: bool,
    #[arg(last = true, required = true, value_name = "CMD")]
    pub argv: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Shell {
    /// The jail
    #[arg(add = ArgValueCandidates::new(complete::jails))]
    pub name: String,
    /// User in the jail, by name or number
    #[arg(short, long)]
    pub user: Option<String>,
}

pub fn exec(options: &Options, asked: &Exec) -> Result<i32> {
    let program = &asked.program;
    let mut visit = visit(options, &asked.name, program.argv.clone())?;
    visit.user.clone_from(&program.user);
    visit.workdir.clone_from(&asked.workdir);
    visit.env.extend(environment(&program.env)?);
    pay(&mut visit, !program.no_terminal)
}

pub fn shell(options: &Options, asked: &Shell) -> Result<i32> {
    let argv = vec!["/bin/sh".to_owned(), "-c".to_owned(), SHELLS.to_owned()];
    let mut visit = visit(options, &asked.name, argv)?;
    visit.user.clone_from(&asked.user);
    pay(&mut visit, true)
}

fn visit(options: &Options, name: &str, argv: Vec<String>) -> Result<Visit> {
    let host = named::host(options);
    let name = JailName::new(name).map_err(|e| anyhow!(e))?;
    let journal = Journal::open(&host.paths)?;
    let record = journal.record(&name)?.ok_or_else(|| named::not_running(options, &name))?;
    Visit::new(&record, &host.cgroup, argv)
}

/// On a terminal the program gets one of the jail's own; else this command's streams as they are.
fn pay(visit: &mut Visit, may_have_terminal: bool) -> Result<i32> {
    if may_have_terminal && on_terminal() {
        if let Ok(kind) = std::env::var("TERM") {
            visit.env.entry("TERM".into()).or_insert(kind);
        }
        return inside::run(visit, None);
    }
    let streams = own_streams()?;
    inside::run(visit, Some(streams))
}

pub fn on_terminal() -> bool {
    std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
}

pub fn own_streams() -> Result<[OwnedFd; 3]> {
    let copy =
        |fd: std::os::fd::BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, 3).context("copy a stream");
    Ok([copy(std::io::stdin().as_fd())?, copy(std::io::stdout().as_fd())?, copy(std::io::stderr().as_fd())?])
}

pub fn environment(pairs: &[String]) -> Result<BTreeMap<String, String>> {
    pairs
        .iter()
        .map(|pair| {
            let (name, value) =
                pair.split_once('=').ok_or_else(|| anyhow!("--env {pair}: not NAME=VALUE"))?;
            if name.is_empty() {
                bail!("--env {pair}: the name is empty");
            }
            Ok((name.to_owned(), value.to_owned()))
        })
        .collect()
}

/// Relays the console until ctrl-] or the jail's end.
pub fn console(options: &Options, name: &str) -> Result<i32> {
    let host = named::host(options);
    let name = JailName::new(name).map_err(|e| anyhow!(e))?;
    let path = crate::keeper::console_socket(&host.paths.run, &name);
    let journal = Journal::open(&host.paths)?;
    if !path.exists() && journal.record(&name)?.is_none() {
        return Err(named::not_running(options, &name));
    }
    if !path.exists() {
        bail!("{name}: it has no console (exec.console, or exec.boot, gives it one), or is not running");
    }
    let socket = crate::sys::socket::connect(&path)?;
    eprintln!("stockade: console of {name}; leave with ctrl-]");
    terminal::attach(socket.as_fd())?;
    Ok(DONE)
}
