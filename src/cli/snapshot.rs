//! `snapshot`, `rollback`, `clone`: a jail's own writes at one moment, and back to it.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use clap_complete::ArgValueCandidates;
use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::{DONE, INVALID, Options, USAGE, complete, definition, jails, named, output};
use crate::desired::{Desired, DesiredJail};
use crate::execute::snapshot::{self, Asked};
use crate::execute::{self, Host};
use crate::jail::JailName;
use crate::journal::lock;
use crate::live::{JailState, Live};
use crate::root::changes;
use crate::root::copy::Copied;
use crate::root::snapshot::{self as books, BEFORE_ROLLBACK, How, Snapshot};
use crate::sys::process;
use crate::{diagnostic, probe, source, status};

/// How long a copy is made in silence.
const SILENCE: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub struct TakeArgs {
    #[arg(required_unless_present = "list", add = ArgValueCandidates::new(complete::jails))]
    pub name: Option<String>,
    /// What it is called; without one, the time (UTC)
    pub label: Option<String>,
    /// List the snapshots there are, of one jail or of all
    #[arg(short, long, conflicts_with = "label")]
    pub list: bool,
    /// Remove a snapshot instead
    #[arg(long, value_name = "LABEL", conflicts_with_all = ["label", "list"])]
    pub rm: Vec<String>,
}

#[derive(Debug, Args)]
pub struct RollbackArgs {
    /// The jail
    #[arg(add = ArgValueCandidates::new(complete::jails))]
    pub name: String,
    /// The snapshot; without one, the last
    pub label: Option<String>,
    /// Do not keep what the jail has now as a snapshot `before-rollback`
    #[arg(long)]
    pub discard: bool,
    /// Without asking
    #[arg(long)]
    pub yes: bool,
}

#[derive(Debug, Args)]
pub struct CloneArgs {
    /// The jail
    #[arg(add = ArgValueCandidates::new(complete::jails))]
    pub name: String,
    /// The new jail
    pub new: String,
    /// A snapshot instead of what the jail has now
    #[arg(long, value_name = "LABEL")]
    pub from: Option<String>,
    /// The new jail's addresses, instead of its model's
    #[arg(long, value_name = "ADDRESS/PREFIX")]
    pub address: Vec<String>,
    /// A key of the new definition, `limits.memory="64M"`
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

pub fn snapshot(options: &Options, asked: &TakeArgs) -> Result<i32> {
    if asked.list {
        return list(options, asked.name.as_deref());
    }
    let name = asked.name.as_deref().ok_or_else(|| anyhow!("no jail is named"))?;
    if !asked.rm.is_empty() {
        return remove(options, name, &asked.rm);
    }
    let (desired, host) = named::open(options)?;
    let wanted = named::jail(&desired, name)?;
    let label = asked.label.clone().unwrap_or_else(|| books::time_label(crate::journal::now_ms()));
    books::check_label(&label)?;
    crate::interrupt::catch()?;
    let bar = bar(options.json, name);
    let progress = |copied: &Copied| show(&bar, copied);
    let taken =
        snapshot::take(&host, wanted, &Asked { label: Some(&label), schedule: None, progress: &progress });
    bar.finish_and_clear();
    let taken = taken.with_context(|| format!("take a snapshot of {name}"))?;
    report(options, name, &taken);
    Ok(DONE)
}

fn bar(json: bool, name: &str) -> ProgressBar {
    if json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::no_length().with_message(name.to_owned());
    bar.set_style(
        ProgressStyle::with_template("{msg}: {bytes} copied, {elapsed}").expect("a template that is right"),
    );
    bar
}

fn show(bar: &ProgressBar, copied: &Copied) {
    if bar.elapsed() > SILENCE {
        bar.set_position(copied.bytes);
    }
}

fn how(snapshot: &Snapshot) -> &'static str {
    match snapshot.how {
        How::Moved => "set aside",
        How::Subvolume => "snapshot of the subvolume",
        How::Shared => "copied, blocks shared",
        How::Copied => "copied",
        How::Changed => "copied what has changed",
        How::Unchanged => "nothing new",
    }
}

fn report(options: &Options, name: &str, taken: &Snapshot) {
    if options.json {
        return output::json_text(&output::envelope("snapshots", json!([item(name, taken, None, &[])])));
    }
    let pause = taken.pause_ms.map(|pause| format!(", paused {pause:.1} ms")).unwrap_or_default();
    output::text(&format!(
        "{name}: snapshot {} ({}{pause}, flush {:.1} ms)",
        taken.label,
        how(taken),
        taken.flush_ms
    ));
}

fn item(name: &str, snapshot: &Snapshot, size: Option<u64>, users: &[String]) -> Value {
    json!({
        "name": name,
        "label": snapshot.label,
        "time_ms": snapshot.at_ms,
        "how": snapshot.how,
        "pause_ms": snapshot.pause_ms,
        "flush_ms": snapshot.flush_ms,
        "size": size,
        "schedule": snapshot.schedule,
        "layers": snapshot.layers,
        "used_by": users,
    })
}

/// Jails that stand on the first of a snapshot's changes.
fn users(host: &Host, snapshot: &Snapshot) -> Result<Vec<String>> {
    let Some(top) = snapshot.chain.first() else { return Ok(Vec::new()) };
    let mut users = Vec::new();
    for name in host.journal.names()? {
        if books::base(&host.journal.paths.state, &name)?.contains(top) {
            users.push(name.to_string());
        }
    }
    Ok(users)
}

fn list(options: &Options, name: Option<&str>) -> Result<i32> {
    let (desired, host) = named::open(options)?;
    let names = match name {
        Some(name) => vec![named::jail(&desired, name)?.jail.name.clone()],
        None => host.journal.names()?,
    };
    let state = &host.journal.paths.state;
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["NAME", "LABEL", "TIME", "SIZE", "PAUSE", "USED BY"]);
    let mut items = Vec::new();
    for name in names {
        for snapshot in books::list(state, &name)? {
            // Its own part; what it shares with an earlier one is shown there.
            let own = snapshot.chain.first().filter(|_| snapshot.how != How::Unchanged);
            let size = own.map(|id| changes::disk_bytes(state, id)).transpose()?;
            let users = users(&host, &snapshot)?;
            items.push(item(name.as_str(), &snapshot, size, &users));
            let pause = snapshot.pause_ms.map_or("-".to_owned(), |pause| format!("{pause:.1} ms"));
            let used = if users.is_empty() { "-".to_owned() } else { users.join(",") };
            let size = size.map_or("-".to_owned(), status::size);
            table.add_row([
                name.to_string(),
                snapshot.label.clone(),
                time(snapshot.at_ms),
                size,
                pause,
                used,
            ]);
        }
    }
    if options.json {
        output::json_text(&output::envelope("snapshots", items.into()));
    } else {
        output::text(&output::plain(&mut table));
    }
    Ok(DONE)
}

fn time(at_ms: u64) -> String {
    let time = i64::try_from(at_ms).ok().and_then(|at| jiff::Timestamp::from_second(at / 1000).ok());
    time.map_or("-".to_owned(), |time| time.to_string())
}

fn remove(options: &Options, name: &str, labels: &[String]) -> Result<i32> {
    let host = Host::open(named::host(options))?;
    let name = JailName::new(name).map_err(|e| anyhow!(e))?;
    let state = &host.journal.paths.state;
    let lock = lock::jail(&host.journal.paths, &name)?;
    snapshot::settle(&host, &name)?;
    for label in labels {
        find(&host, &name, label)?;
        books::remove(state, &name, label)?;
    }
    drop(lock);
    changes::sweep(state)?;
    let items: Vec<Value> =
        labels.iter().map(|label| json!({ "name": name, "label": label, "removed": true })).collect();
    if options.json {
        output::json_text(&output::envelope("snapshots", items.into()));
    }
    Ok(DONE)
}

pub fn find(host: &Host, name: &JailName, label: &str) -> Result<Snapshot> {
    let state = &host.journal.paths.state;
    if let Some(snapshot) = books::find(state, name, label)? {
        return Ok(snapshot);
    }
    let all: Vec<String> = books::list(state, name)?.into_iter().map(|snapshot| snapshot.label).collect();
    let hint = diagnostic::did_you_mean(label, all.iter().map(String::as_str));
    bail!("{name} has no snapshot `{label}`{}", hint.map(|hint| format!(" ({hint})")).unwrap_or_default())
}

pub fn rollback(options: &Options, asked: &RollbackArgs) -> Result<i32> {
    let (desired, host) = named::open(options)?;
    let wanted = named::jail(&desired, &asked.name)?;
    let name = &wanted.jail.name;
    snapshot::refuse(wanted).with_context(|| name.to_string())?;
    let target = match &asked.label {
        Some(label) => find(&host, name, label)?,
        None => last(&host, name)?,
    };
    let now =
        if asked.discard { "what it has now is lost" } else { "what it has now stays as `before-rollback`" };
    if !asked.yes && !consent(name, &format!("Put {name} back to {} ({now})?", target.label))? {
        return Ok(USAGE);
    }
    let again = {
        let waiting = |holder: &str| eprintln!("stockade: waiting for another apply ({holder})");
        let _lock = lock::all(&host.journal.paths, &waiting)?;
        let live = probe::probe(&host.journal, &host.config, &host.hierarchies)?;
        let again = stop(&host, &desired, &live, name)?;
        snapshot::roll_back(&host, wanted, &target, !asked.discard)
            .with_context(|| format!("roll {name} back"))?;
        again
    };
    drop(host);
    if !options.json {
        eprintln!("{name}: is as in {}", target.label);
    }
    if again.is_empty() {
        if options.json {
            output::json_text(&output::envelope("plan", json!([])));
        }
        return Ok(DONE);
    }
    jails::bring_up(options, again)
}

fn last(host: &Host, name: &JailName) -> Result<Snapshot> {
    let all = books::list(&host.journal.paths.state, name)?;
    all.into_iter()
        .rfind(|snapshot| snapshot.label != BEFORE_ROLLBACK)
        .ok_or_else(|| anyhow!("{name} has no snapshot"))
}

fn consent(name: &JailName, question: &str) -> Result<bool> {
    let Some(yes) = output::ask(question).context("read the answer")? else {
        eprintln!("stockade: rollback {name}: there is no terminal to ask on, give --yes");
        return Ok(false);
    };
    if !yes {
        eprintln!("stockade: {name} is as it was");
    }
    Ok(yes)
}

/// Stops the jail and what runs on it, the last first; gives those that are to run again.
fn stop(host: &Host, desired: &Desired, live: &Live, name: &JailName) -> Result<Vec<JailName>> {
    let runs = |name: &JailName| {
        let record = live.jails.get(name).and_then(|jail| jail.record.as_ref());
        record.is_some_and(|record| record.init.is_some_and(process::alive))
    };
    let mut stopped = Vec::new();
    if runs(name) {
        stopped = jails::dependants(desired, std::slice::from_ref(name))
            .into_iter()
            .filter(|name| runs(name))
            .collect();
        stopped.push(name.clone());
    }
    let unfinished = live.jails.get(name).is_some_and(|jail| jail.state != JailState::Down);
    let all: Vec<&JailName> =
        stopped.iter().chain((unfinished && stopped.is_empty()).then_some(name)).collect();
    for name in all {
        let _lock = lock::jail(&host.journal.paths, name)?;
        if let Some(record) = host.journal.record(name)? {
            execute::stop(host, record).with_context(|| format!("stop {name}"))?;
        }
    }
    Ok(stopped)
}

pub fn clone(options: &Options, asked: &CloneArgs) -> Result<i32> {
    let (desired, host) = named::open(options)?;
    let wanted = named::jail(&desired, &asked.name)?;
    let new = JailName::new(&asked.new).map_err(|e| anyhow!(e))?;
    let taken = desired.jails.contains_key(&new) || desired.broken.contains_key(&new);
    if taken || host.journal.names()?.contains(&new) {
        bail!("a jail named {new} exists");
    }
    let from = asked.from.as_ref().map(|label| find(&host, &wanted.jail.name, label)).transpose()?;
    let file = wanted.file.with_file_name(format!("{new}.toml"));
    let text = new_definition(wanted, &file, asked)?;
    if !valid(options, &file, &text, &new) {
        eprintln!("stockade: clone {}: give what must differ with --address or --set", asked.name);
        return Ok(INVALID);
    }
    crate::interrupt::catch()?;
    let bar = bar(options.json, &asked.name);
    let progress = |copied: &Copied| show(&bar, copied);
    let made = snapshot::clone_jail(&host, wanted, &new, from.as_ref(), (&file, &text), &progress);
    bar.finish_and_clear();
    let made = made.with_context(|| format!("clone {}", asked.name))?;
    if options.json {
        let pause = made.as_ref().and_then(|made| made.pause_ms);
        let item =
            json!({ "name": new, "from": asked.name, "label": asked.from, "file": file, "pause_ms": pause });
        output::json_text(&output::envelope("clones", json!([item])));
    } else {
        let pause = made
            .and_then(|made| made.pause_ms)
            .map(|pause| format!(" (paused {pause:.1} ms)"))
            .unwrap_or_default();
        output::text(&format!("{new}: cloned from {}{pause}, defined in {}", asked.name, file.display()));
    }
    Ok(DONE)
}

fn new_definition(wanted: &DesiredJail, file: &Path, asked: &CloneArgs) -> Result<String> {
    if file.exists() {
        bail!("{} exists", file.display());
    }
    let text =
        std::fs::read_to_string(&wanted.file).with_context(|| format!("read {}", wanted.file.display()))?;
    let mut set: BTreeMap<&str, String> = BTreeMap::new();
    if !asked.address.is_empty() {
        set.insert("network.address", json!(asked.address).to_string());
    }
    for pair in &asked.set {
        let (key, value) = pair.split_once('=').ok_or_else(|| anyhow!("--set {pair}: not KEY=VALUE"))?;
        set.insert(key, super::run::as_toml(value));
    }
    definition::derive(&text, &set).with_context(|| format!("edit {}", wanted.file.display()))
}

/// Whether the definition is right beside all others; says what is wrong.
fn valid(options: &Options, file: &Path, text: &str, new: &JailName) -> bool {
    let (desired, mut found) = source::load_beside(&options.paths(), file, text);
    found.retain(|diagnostic| diagnostic.file == file);
    output::diagnostics(options, &found);
    desired.jails.contains_key(new)
}
