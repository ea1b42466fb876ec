//! One jail's stop: the STOP table, from wherever an earlier stop was cut off.

use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Host, hook};
use crate::jail::{Jail, JailName, OnStop};
use crate::journal::lock;
use crate::limits::Cgroup;
use crate::live::{Process, Record};
use crate::step::{Phase, STOP};
use crate::sys::process;

/// How long a keeper may take to write the exit record after its jail is dead.
const KEEPER_LIMIT: Duration = Duration::from_secs(20);
/// How long killed processes may take to go; only uninterruptible sleep is slower.
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// Stops the jail of `record`; what is done already is passed over. Afterwards nothing of it is
/// left but its data and its record.
pub fn stop(host: &Host, mut record: Record) -> Result<()> {
    let jail = Jail::from_settings(&record.name, &record.settings).map_err(anyhow::Error::msg)?;
    // A start that was cut off is only cleared away, as its own undo would have done.
    let came_up = (Phase::Up..=Phase::Terminate).contains(&record.phase);
    let ran = came_up && record.init.is_some_and(process::alive);
    for phase in STOP {
        if skip(*phase, &record, &jail, ran) {
            continue;
        }
        let again = record.hooks_done.contains(phase);
        record.phase = *phase;
        record.stopping = true;
        if phase.hook().is_some() || *phase == Phase::Terminate {
            record.hooks_done.insert(*phase);
        }
        crate::supervisor::progress();
        host.journal.write_record(&record)?;
        act(host, *phase, &jail, &record, again)?;
    }
    Ok(())
}

/// A hook runs once; those that speak to the jail only while it runs; and the ones that answer a
/// start hook only when that has run.
fn skip(phase: Phase, record: &Record, jail: &Jail, ran: bool) -> bool {
    let done = record.hooks_done.contains(&phase);
    let empty = hook::lines(jail, phase).is_empty();
    match phase {
        Phase::Prestop | Phase::Stop => done || !ran || empty,
        Phase::Terminate => !ran,
        Phase::Poststop => done || empty || !record.hooks_done.contains(&Phase::Prestart),
        _ => false,
    }
}

fn act(host: &Host, phase: Phase, jail: &Jail, record: &Record, again: bool) -> Result<()> {
    match phase {
        Phase::Prestop | Phase::Poststop => hook::run(phase, &super::facts(jail, record)),
        Phase::Stop => {
            // A frozen jail would keep its lines waiting, as it would the polite signal.
            cgroup(host, &jail.name)?.thaw()?;
            super::inside::run_lines(host, jail, record)
        }
        Phase::Terminate => terminate(host, jail, record),
        Phase::Remove => remove(host, jail, record),
        Phase::Release => {
            if record.hooks_done.contains(&Phase::Prepare) && !again {
                hook::run(phase, &super::facts(jail, record))?;
            }
            if jail.root.on_stop == OnStop::Discard {
                crate::root::discard(&host.journal.paths.state, &jail.name)?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The polite signal, and the wait.
fn terminate(host: &Host, jail: &Jail, record: &Record) -> Result<()> {
    let Some(pidfd) = record.init.and_then(process::open) else { return Ok(()) };
    if jail.exec.stop_timeout == 0 {
        return Ok(());
    }
    // A frozen jail can hear nothing.
    cgroup(host, &jail.name)?.thaw()?;
    let number = stop_signal(jail, record)?;
    match process::signal(pidfd.as_fd(), number) {
        Err(e) if e.raw_os_error() != Some(libc::ESRCH) => return Err(e).context("signal the jail's init"),
        _ => {}
    }
    process::wait_gone(pidfd.as_fd(), Duration::from_millis(jail.exec.stop_timeout))?;
    Ok(())
}

/// TERM for a program; for a whole system what its init takes as «power off».
fn stop_signal(jail: &Jail, record: &Record) -> Result<i32> {
    if let Some(name) = &jail.exec.stop_signal {
        return process::signal_number(name).with_context(|| format!("`{name}` is not a signal"));
    }
    if jail.exec.boot.is_none() {
        return Ok(libc::SIGTERM);
    }
    let pid = record.init.map_or(0, |init| init.pid);
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(if name.starts_with("systemd") {
        libc::SIGRTMIN() + 4
    } else if name.starts_with("busybox") {
        libc::SIGUSR2
    } else {
        libc::SIGPWR
    })
}

/// Kills what is left inside, waits for the keeper's last word, and clears the cgroup.
fn remove(host: &Host, jail: &Jail, record: &Record) -> Result<()> {
    if let Some(pidfd) = record.init.and_then(process::open) {
        // Gone in the meantime is as good.
        let _ = process::signal(pidfd.as_fd(), libc::SIGKILL);
        if !process::wait_gone(pidfd.as_fd(), KILL_LIMIT)? {
            bail!("kill the jail's init: it does not die");
        }
    }
    if let Some(keeper) = record.keeper {
        wait_keeper(keeper)?;
    }
    // A start that was cut off may have left a keeper that no record names, and that still clears
    // up after itself.
    drop(lock::instance(&host.journal.paths, &jail.name)?);
    remove_cgroup(host, &jail.name)
}

/// Waits until a keeper whose jail is dead has written everything and ended.
pub fn wait_keeper(keeper: Process) -> Result<()> {
    let Some(pidfd) = process::open(keeper) else { return Ok(()) };
    if process::wait_gone(pidfd.as_fd(), KEEPER_LIMIT)? {
        return Ok(());
    }
    process::signal(pidfd.as_fd(), libc::SIGKILL).context("kill the keeper")?;
    Ok(())
}

/// A jail's cgroup, wherever its starter has made it.
pub fn cgroup(host: &Host, name: &JailName) -> Result<Cgroup> {
    let mut hierarchies = host.hierarchies.clone();
    if hierarchies.two()
        && let Some(record) = host.journal.record(name)?
    {
        hierarchies = hierarchies.at(&record.cgroup_base)?;
    }
    Cgroup::open(&hierarchies, &host.config.cgroup, name.as_str())
}

/// Empties and removes a jail's cgroup; one that is gone is as good.
pub fn remove_cgroup(host: &Host, name: &JailName) -> Result<()> {
    let cgroup = cgroup(host, name)?;
    if !cgroup.exists() {
        return Ok(());
    }
    cgroup.kill_all()?;
    cgroup.wait_empty(KILL_LIMIT)?;
    cgroup.remove()
}
