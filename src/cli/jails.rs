//! `start`, `stop`, `restart`, `kill`, `freeze`, `thaw`: up and down by hand.

use std::collections::BTreeSet;

use anyhow::{Context, Result, anyhow, bail};

use super::{DONE, FAILED, Options, named, output, progress};
use crate::desired::{Desired, Layer, Paths};
use crate::execute::{self, Host};
use crate::jail::JailName;
use crate::journal::lock;
use crate::live::{JailState, Restarts};
use crate::pass::{self, PassOptions, Passed};
use crate::probe;
use crate::sys::process;

/// Clears what keeps the jails down, and those they depend on, and lets the plan start them.
pub fn start(options: &Options, names: &[String]) -> Result<i32> {
    let names = parse(names)?;
    crate::interrupt::catch()?;
    let_start(options, &names)?;
    reconcile(options, names, true)
}

/// Takes away what would keep the jails and all that they need down.
fn let_start(options: &Options, names: &[JailName]) -> Result<()> {
    let (desired, host) = named::open(options)?;
    for name in with_depends(&desired, names)? {
        host.journal.release_hold(&name)?;
        host.journal.write_restarts(&name, &Restarts::default())?;
        forget_end(&host, &name)?;
    }
    Ok(())
}

/// The jails and all that they need, each of which can be started.
fn with_depends(desired: &Desired, names: &[JailName]) -> Result<BTreeSet<JailName>> {
    let mut all = BTreeSet::new();
    let mut open: Vec<JailName> = names.to_vec();
    while let Some(name) = open.pop() {
        let wanted = desired.jails.get(&name).ok_or_else(|| not_startable(desired, &name))?;
        if !wanted.jail.enabled {
            bail!("{name}: it is disabled: take `enabled = false` out of {}", wanted.file.display());
        }
        if all.insert(name) {
            open.extend(wanted.jail.depend.iter().cloned());
        }
    }
    Ok(all)
}

fn not_startable(desired: &Desired, name: &JailName) -> anyhow::Error {
    match desired.broken.get(name) {
        Some(reason) => named::broken(name, reason),
        None => anyhow!(named::no_jail(name.as_str(), desired.jails.keys().map(JailName::as_str))),
    }
}

/// A jail whose end the restart policy leaves alone is started by hand as if it were new.
fn forget_end(host: &Host, name: &JailName) -> Result<()> {
    let _lock = lock::jail(&host.journal.paths, name)?;
    let jail = probe::one(&host.journal, &host.config, &host.hierarchies, name)?;
    match (jail.state, jail.record) {
        (JailState::Exited(_), Some(record)) => {
            execute::stop(host, record)?;
            host.journal.forget(name)
        }
        (JailState::Down, Some(_)) => host.journal.forget(name),
        _ => Ok(()),
    }
}

/// Holds the jails down, and lets the plan stop them and what depends on them.
pub fn stop(options: &Options, names: &[String]) -> Result<i32> {
    let names = parse(names)?;
    let (desired, host) = named::open(options)?;
    let known = named::known(&desired, &host.journal)?;
    for name in &names {
        if !known.contains(name) {
            bail!("{}", named::no_jail(name.as_str(), known.iter().map(JailName::as_str)));
        }
    }
    crate::interrupt::catch()?;
    names.iter().try_for_each(|name| host.journal.hold(name))?;
    drop(host);
    reconcile(options, names, false)
}

/// Every jail there is, as [`stop`] does it.
pub fn stop_all(options: &Options) -> Result<i32> {
    let (desired, host) = named::open(options)?;
    let names: Vec<String> = named::known(&desired, &host.journal)?.iter().map(ToString::to_string).collect();
    drop(host);
    stop(options, &names)
}

/// Every jail that runs, held by nothing: for the host's shutdown.
pub fn all_down(options: &Options) -> Result<i32> {
    crate::interrupt::catch()?;
    carry_out(options, Vec::new(), false, &pass::all_down)
}

/// What runs on the jails is restarted with them.
pub fn restart(options: &Options, names: &[String]) -> Result<i32> {
    let names = parse(names)?;
    crate::interrupt::catch()?;
    let_start(options, &names)?;
    carry_out(options, names, true, &pass::again)
}

/// Every jail that depends on one of these, each before those that it depends on.
pub fn dependants(desired: &Desired, names: &[JailName]) -> Vec<JailName> {
    let depends = |name: &JailName, on: &[JailName]| {
        desired
            .jails
            .get(name)
            .is_some_and(|wanted| wanted.jail.depend.iter().any(|other| on.contains(other)))
    };
    let mut below: Vec<JailName> = names.to_vec();
    loop {
        let is_new = |name: &&JailName| !below.contains(name) && depends(name, &below);
        let more: Vec<JailName> = desired.jails.keys().filter(is_new).cloned().collect();
        if more.is_empty() {
            break;
        }
        below.extend(more);
    }
    let mut left: Vec<JailName> = below.into_iter().filter(|name| !names.contains(name)).collect();
    let mut ordered = Vec::new();
    while !left.is_empty() {
        let free = |name: &JailName| !left.iter().any(|other| depends(other, std::slice::from_ref(name)));
        // There is no circle: such definitions are refused.
        let (next, rest): (Vec<JailName>, Vec<JailName>) = left.iter().cloned().partition(free);
        if next.is_empty() {
            ordered.extend(rest);
            break;
        }
        ordered.extend(next);
        left = rest;
    }
    ordered
}

/// Brings jails up that a verb has stopped.
pub fn bring_up(options: &Options, names: Vec<JailName>) -> Result<i32> {
    reconcile(options, names, true)
}

fn parse(names: &[String]) -> Result<Vec<JailName>> {
    names.iter().map(|name| JailName::new(name).map_err(|e| anyhow!(e))).collect()
}

/// With `up`, the jails have to run afterwards, and a reason why one does not is a failure.
fn reconcile(options: &Options, only: Vec<JailName>, up: bool) -> Result<i32> {
    carry_out(options, only, up, &pass::pass)
}

fn carry_out(
    options: &Options,
    only: Vec<JailName>,
    up: bool,
    pass: &dyn Fn(&Paths, &PassOptions<'_>) -> Result<Passed>,
) -> Result<i32> {
    crate::interrupt::catch()?;
    let quiet = options.json;
    let progress = |name: &JailName, what: &str| {
        if !quiet {
            eprintln!("{name}: {what}");
        }
    };
    let waiting = |holder: &str| eprintln!("stockade: waiting for another apply ({holder})");
    let unseen = |_: &crate::plan::Plan| ();
    let build =
        |host: &Host, template: &str, layer: &Layer| progress::build(options, false, host, template, layer);
    let asked = PassOptions {
        only,
        no_restart: false,
        apply: true,
        progress: &progress,
        waiting: &waiting,
        planned: &unseen,
        build: Some(&build),
    };
    let passed = pass(&options.paths(), &asked)?;
    for (name, reason) in &passed.plan.refused {
        eprintln!("stockade: {name}: {reason}");
    }
    for (name, outcome) in &passed.failures {
        match outcome {
            execute::Outcome::Failed(reason) => eprintln!("stockade: {name}: {reason}"),
            execute::Outcome::Skipped(after) => {
                eprintln!("stockade: {name}: skipped, for {after} did not end well");
            }
            execute::Outcome::Done => {}
        }
    }
    let waits: Vec<_> =
        passed.plan.notes.iter().filter(|(name, _)| up && asked.only.contains(name)).collect();
    for (name, reason) in &waits {
        eprintln!("stockade: {name}: not started: {reason}");
    }
    if options.json {
        output::json_text(&passed.plan.json());
    }
    let well = passed.failures.is_empty() && passed.plan.refused.is_empty() && waits.is_empty();
    Ok(if well { DONE } else { FAILED })
}

/// Straight to the main process's init, which passes it on.
pub fn kill(options: &Options, name: &str, number: i32) -> Result<i32> {
    let host = Host::open(named::host(options))?;
    let name = JailName::new(name).map_err(|e| anyhow!(e))?;
    let record = host.journal.record(&name)?.ok_or_else(|| named::not_running(options, &name))?;
    if number == libc::SIGKILL {
        execute::cgroup(&host, &name)?.kill_all()?;
        return Ok(DONE);
    }
    let pidfd = record.init.and_then(process::open).ok_or_else(|| named::not_running(options, &name))?;
    process::signal(std::os::fd::AsFd::as_fd(&pidfd), number).context("send the signal")?;
    Ok(DONE)
}

pub fn freeze(options: &Options, names: &[String], freeze: bool) -> Result<i32> {
    let host = Host::open(named::host(options))?;
    for name in parse(names)? {
        // Its lock would leave a file of a jail that there is not.
        if host.journal.record(&name)?.is_none() {
            return Err(named::not_running(options, &name));
        }
        let _lock = lock::jail(&host.journal.paths, &name)?;
        let state = probe::one(&host.journal, &host.config, &host.hierarchies, &name)?.state;
        let cgroup = execute::cgroup(&host, &name)?;
        match (state, freeze) {
            (JailState::Up, true) => cgroup.freeze()?,
            (JailState::Frozen, false) => cgroup.thaw()?,
            (JailState::Up | JailState::Frozen, _) => {}
            _ => return Err(named::not_running(options, &name)),
        }
    }
    Ok(DONE)
}
