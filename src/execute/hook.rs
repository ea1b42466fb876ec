//! jail(8)'s hooks on the host: `sh` lines with the jail's facts in their environment, each with
//! a limit of time, each of which must exit 0.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::jail::Jail;
use crate::step::{Phase, STOP};

/// What a hook's environment tells of its jail; jail(8) has JID, JNAME and JPATH.
pub struct Facts<'a> {
    pub jail: &'a Jail,
    pub instance: &'a str,
    /// Where the host finds the root while the jail runs.
    pub root: String,
    /// The init's pid, from `created` on.
    pub pid: Option<i32>,
}

/// How often a running hook is looked at.
const LOOK: Duration = Duration::from_millis(2);

/// The lines of one phase.
pub fn lines(jail: &Jail, phase: Phase) -> &[String] {
    let exec = &jail.exec;
    match phase {
        Phase::Prepare => &exec.prepare,
        Phase::Prestart => &exec.prestart,
        Phase::Created => &exec.created,
        Phase::Poststart => &exec.poststart,
        Phase::Prestop => &exec.prestop,
        Phase::Stop => &exec.stop,
        Phase::Poststop => &exec.poststop,
        Phase::Release => &exec.release,
        _ => &[],
    }
}

/// Runs every line of `phase` on the host, in order; the first that fails ends it.
pub fn run(phase: Phase, facts: &Facts<'_>) -> Result<()> {
    lines(facts.jail, phase).iter().try_for_each(|line| run_line(phase, line, facts))
}

fn run_line(phase: Phase, line: &str, facts: &Facts<'_>) -> Result<()> {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", line]).env_clear().stdin(Stdio::null());
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.env("HOME", "/").env("LANG", "C.UTF-8");
    command.env("STOCKADE_NAME", facts.jail.name.as_str());
    command.env("STOCKADE_ID", facts.instance);
    command.env("STOCKADE_ROOT", &facts.root);
    if let Some(pid) = facts.pid {
        command.env("STOCKADE_PID", pid.to_string());
    }
    // What a hook prints belongs to whoever runs stockade, as in jail(8), but not on stdout:
    // that may be JSON.
    command.stdout(std::io::stderr());
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let what = || format!("exec.{phase} `{line}`");
    let mut child = command.spawn().with_context(what)?;
    crate::sys::process::be_ordinary_to_oom(child.id());
    // What stops or undoes is not cut short by the interrupt that it may answer.
    let cut = || !STOP.contains(&phase) && crate::interrupt::asked();
    match wait(&mut child, Duration::from_millis(facts.jail.exec.timeout), &cut).with_context(what)? {
        Some(status) if status.success() => Ok(()),
        Some(status) => bail!("{}: {status}", what()),
        None if cut() => bail!("{}: interrupted", what()),
        None => bail!("{}: not done after {} ms", what(), facts.jail.exec.timeout),
    }
}

/// Waits, and kills the hook with everything it started in its process group when time is up, or
/// when it is cut short.
pub fn wait(
    child: &mut Child,
    limit: Duration,
    cut: &dyn Fn() -> bool,
) -> Result<Option<std::process::ExitStatus>> {
    let end = Instant::now() + limit;
    let mut pause = Duration::from_micros(200);
    loop {
        if let Some(status) = child.try_wait().context("wait")? {
            return Ok(Some(status));
        }
        if Instant::now() >= end || cut() {
            crate::sys::process::signal_group(child.id().cast_signed(), libc::SIGKILL);
            child.wait().context("wait")?;
            return Ok(None);
        }
        crate::supervisor::progress();
        std::thread::sleep(pause);
        pause = (pause * 2).min(LOOK);
    }
}
