//! Verbs about single jails: what they are, and up and down by hand.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};

use super::{DONE, FAILED, Options, exec, output, progress, volume};
use crate::desired::{Desired, Layer, Paths};
use crate::diagnostic;
use crate::execute::{self, Host};
use crate::jail::JailName;
use crate::journal::{Journal, lock};
use crate::live::{JailState, Live, LiveJail, Restarts};
use crate::pass::{self, PassOptions, Passed};
use crate::status::{self, Row, Usage};
use crate::sys::process;
use crate::{cores, keys, probe, source};

/// Everything there is to see, for the verbs that only look.
struct View {
    desired: Desired,
    live: Live,
    rows: Vec<Row>,
    host: Host,
}

fn view(options: &Options) -> Result<View> {
    let (desired, _) = source::load(&options.paths());
    let host = Host::open(desired.host.clone())?;
    let mut live = probe::probe(&host.journal, &host.config, &host.hierarchies)?;
    execute::account(&host.journal, &desired, &mut live, false)?;
    let usage = usage(&host, &live)?;
    let rows = status::rows(&desired, &live, &usage);
    Ok(View { desired, live, rows, host })
}

/// Of each jail that may run, on all cores: it is half of a look at many.
fn usage(host: &Host, live: &Live) -> Result<BTreeMap<JailName, Usage>> {
    let is_up = |jail: &LiveJail| !matches!(jail.state, JailState::Down | JailState::Exited(_));
    let up: Vec<(&JailName, &LiveJail)> = live.jails.iter().filter(|(_, jail)| is_up(jail)).collect();
    let each = cores::map(&up, |(name, jail)| -> Result<_> {
        Ok(usage_of(host, name, jail)?.map(|usage| ((*name).clone(), usage)))
    });
    each.into_iter().filter_map(Result::transpose).collect()
}

fn usage_of(host: &Host, name: &JailName, jail: &LiveJail) -> Result<Option<Usage>> {
    // A jail that ends while it is looked at simply has no figures.
    let Ok(used) = execute::cgroup(host, name)?.usage() else { return Ok(None) };
    let disk = volume::bytes(&host.journal.paths.state, name, jail);
    Ok(Some(Usage { memory: Some(used.memory), cpu_ms: Some(used.cpu_usec / 1000), disk }))
}

pub fn ls(options: &Options, names: &[String]) -> Result<i32> {
    let view = view(options)?;
    let wanted = |row: &&Row| names.is_empty() || names.iter().any(|name| name == row.name.as_str());
    let rows: Vec<Row> = view.rows.iter().filter(wanted).cloned().collect();
    if let Some(missing) = names.iter().find(|name| !rows.iter().any(|row| row.name.as_str() == *name)) {
        bail!("{}", unknown(missing, &view));
    }
    if options.json {
        output::json_text(&status::json(&rows));
    } else {
        output::text(&status::table(&rows));
    }
    Ok(DONE)
}

fn unknown(name: &str, view: &View) -> String {
    no_jail(name, view.rows.iter().map(|row| row.name.as_str()))
}

pub fn no_jail<'k>(name: &str, known: impl IntoIterator<Item = &'k str>) -> String {
    let hint = diagnostic::did_you_mean(name, known).map(|hint| format!(" ({hint})")).unwrap_or_default();
    format!("no jail is named `{name}`{hint}")
}

/// Every jail that is defined, or of which there is something on the machine.
pub fn known(desired: &Desired, journal: &Journal) -> Result<BTreeSet<JailName>> {
    let mut known: BTreeSet<JailName> = journal.names()?.into_iter().collect();
    known.extend(desired.jails.keys().chain(desired.broken.keys()).cloned());
    Ok(known)
}

/// Why nothing can be done inside: the jail is down, or there is none of that name.
pub fn not_running(options: &Options, name: &JailName) -> anyhow::Error {
    let (desired, _) = source::load(&options.paths());
    let known = Journal::open(&desired.host.paths).and_then(|journal| known(&desired, &journal));
    match known {
        Ok(known) if !known.contains(name) => {
            anyhow!(no_jail(name.as_str(), known.iter().map(JailName::as_str)))
        }
        _ => anyhow!("{name}: it is not running"),
    }
}

/// Its row, and every key as it is wanted, in force and found.
pub fn show(options: &Options, name: &str) -> Result<i32> {
    let view = view(options)?;
    let row = view
        .rows
        .iter()
        .find(|row| row.name.as_str() == name)
        .ok_or_else(|| anyhow!(unknown(name, &view)))?;
    let wanted = view.desired.jails.get(&row.name);
    let seen = view.live.jails.get(&row.name);
    let record = seen.and_then(|jail| jail.record.as_ref());
    let settings = wanted.map(|w| &w.settings).or(record.map(|r| &r.settings)).cloned().unwrap_or_default();
    let found = seen.map(|jail| jail.observed.clone()).unwrap_or_default();
    let storage = seen.and_then(|seen| volume::shown(&view.host.journal.paths.state, &row.name, seen));
    if options.json {
        let mut item = status::item(row);
        item["file"] = json!(wanted.map(|w| &w.file));
        item["settings"] = json!(settings);
        item["observed"] = json!(found);
        item["storage"] = json!(storage.map(|storage| storage.json()));
        item["first_id"] = json!(record.map(|r| r.first_id));
        item["layers"] = json!(record.map(|r| &r.layers));
        item["files"] = json!(record.map(|r| r.files.keys().collect::<Vec<_>>()));
        output::json_text(&output::envelope("jail", json!([item])));
        return Ok(DONE);
    }
    let mut text = status::table(std::slice::from_ref(row));
    if let Some(reason) = &row.reason {
        text.push_str(&format!("\n{reason}\n"));
    }
    text.push('\n');
    for (key, value) in &settings {
        let shown = keys::show(key, value);
        let other =
            found.get(key).filter(|f| *f != value).map(|f| format!("   (found {})", keys::show(key, f)));
        text.push_str(&format!("{key:<24} {shown}{}\n", other.unwrap_or_default()));
    }
    if let Some(storage) = storage {
        text.push_str(&format!("\nstorage                  {}\n", storage.text()));
    }
    if let Some(record) = record {
        let last = record.first_id.saturating_add(crate::sys::namespace::IDS - 1);
        text.push_str(&format!("\nids                      {} to {last}\n", record.first_id));
        for layer in &record.layers {
            text.push_str(&format!("layer                    {layer}\n"));
        }
        for file in record.files.keys() {
            text.push_str(&format!("file                     {}\n", file.display()));
        }
    }
    output::text(&text);
    Ok(DONE)
}

/// A count of each state, and every jail that is not as it should be.
pub fn status(options: &Options) -> Result<i32> {
    let view = view(options)?;
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for row in &view.rows {
        *counts.entry(row.state.as_str()).or_default() += 1;
    }
    let wrong = view.rows.iter().filter(|row| row.reason.is_some());
    if options.json {
        let wrong: Vec<Value> = wrong.map(status::item).collect();
        let daemon = crate::daemon::is_running(&view.host.config.paths.run);
        output::json_text(&output::envelope(
            "status",
            json!([{ "counts": counts, "daemon": daemon, "wrong": wrong }]),
        ));
        return Ok(DONE);
    }
    let counts: Vec<String> = counts.iter().map(|(state, count)| format!("{count} {state}")).collect();
    let mut text = if counts.is_empty() { "no jails".to_owned() } else { counts.join(", ") };
    let daemon = crate::daemon::is_running(&view.host.config.paths.run);
    text.push_str(if daemon { "\nthe daemon runs\n" } else { "\nno daemon runs\n" });
    for row in wrong {
        text.push_str(&format!(
            "{}: {}: {}\n",
            row.name,
            row.state.as_str(),
            row.reason.as_deref().unwrap_or_default()
        ));
    }
    output::text(&text);
    Ok(DONE)
}

/// Clears what keeps the jails down, and those they depend on, and lets the plan start them.
pub fn start(options: &Options, names: &[String]) -> Result<i32> {
    let names = parse(names)?;
    crate::interrupt::catch()?;
    let_start(options, &names)?;
    reconcile(options, names, true)
}

/// Takes away what would keep the jails and all that they need down.
fn let_start(options: &Options, names: &[JailName]) -> Result<()> {
    let (desired, _) = source::load(&options.paths());
    let host = Host::open(desired.host.clone())?;
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
        let Some(wanted) = desired.jails.get(&name) else { bail!("{}", not_startable(desired, &name)) };
        if !wanted.jail.enabled {
            bail!("{name}: it is disabled: take `enabled = false` out of {}", wanted.file.display());
        }
        if all.insert(name) {
            open.extend(wanted.jail.depend.iter().cloned());
        }
    }
    Ok(all)
}

fn not_startable(desired: &Desired, name: &JailName) -> String {
    match desired.broken.get(name) {
        Some(reason) => format!("{name}: {reason}"),
        None => no_jail(name.as_str(), desired.jails.keys().map(JailName::as_str)),
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
    let (desired, _) = source::load(&options.paths());
    let host = Host::open(desired.host.clone())?;
    let known = known(&desired, &host.journal)?;
    for name in &names {
        if !known.contains(name) {
            bail!("{}", no_jail(name.as_str(), known.iter().map(JailName::as_str)));
        }
    }
    crate::interrupt::catch()?;
    names.iter().try_for_each(|name| host.journal.hold(name))?;
    drop(host);
    reconcile(options, names, false)
}

/// Every jail there is, as [`stop`] does it.
pub fn stop_all(options: &Options) -> Result<i32> {
    let view = view(options)?;
    let names: Vec<String> = view.rows.iter().map(|row| row.name.to_string()).collect();
    drop(view);
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
    let host = Host::open(exec::host(options))?;
    let name = JailName::new(name).map_err(|e| anyhow!(e))?;
    let record = host.journal.record(&name)?.ok_or_else(|| not_running(options, &name))?;
    if number == libc::SIGKILL {
        execute::cgroup(&host, &name)?.kill_all()?;
        return Ok(DONE);
    }
    let pidfd = record.init.and_then(process::open).ok_or_else(|| not_running(options, &name))?;
    process::signal(std::os::fd::AsFd::as_fd(&pidfd), number).context("send the signal")?;
    Ok(DONE)
}

pub fn freeze(options: &Options, names: &[String], freeze: bool) -> Result<i32> {
    let host = Host::open(exec::host(options))?;
    for name in parse(names)? {
        // Its lock would leave a file of a jail that there is not.
        if host.journal.record(&name)?.is_none() {
            return Err(not_running(options, &name));
        }
        let _lock = lock::jail(&host.journal.paths, &name)?;
        let state = probe::one(&host.journal, &host.config, &host.hierarchies, &name)?.state;
        let cgroup = execute::cgroup(&host, &name)?;
        match (state, freeze) {
            (JailState::Up, true) => cgroup.freeze()?,
            (JailState::Frozen, false) => cgroup.thaw()?,
            (JailState::Up | JailState::Frozen, _) => {}
            _ => return Err(not_running(options, &name)),
        }
    }
    Ok(DONE)
}
