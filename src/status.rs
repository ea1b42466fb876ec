//! What `ls` shows of every jail: from what is desired, what is, and what it uses. Pure; reads
//! no file and no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use crate::desired::{Desired, DesiredJail};
use crate::jail::{JailName, Settings};
use crate::live::{Exit, JailState, Live, LiveJail};
use crate::plan;

/// One jail's line.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub name: JailName,
    pub state: State,
    /// The jail's first process as the host sees it.
    pub pid: Option<i32>,
    /// Without prefix lengths.
    pub address: Vec<String>,
    pub usage: Usage,
    /// Seconds.
    pub uptime: Option<u64>,
    /// How it ended the last time, if by itself.
    pub exit: Option<Exit>,
    /// In a row since the last good run.
    pub restarts: u64,
    /// Why it is in this state, where that needs a word.
    pub reason: Option<String>,
}

/// What a jail uses now, read from its cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes.
    pub memory: Option<u64>,
    /// Milliseconds of CPU time since its start.
    pub cpu_ms: Option<u64>,
    /// Bytes of its volume, where they are counted.
    pub disk: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Stopped,
    Starting,
    Running,
    Stopping,
    Frozen,
    /// Checkpointed to disk.
    Suspended,
    /// Down, after it ended badly or did not start.
    Failed,
    CrashLoop,
    Orphaned,
    /// Down, and its file has errors or asks for what this host cannot enforce.
    ConfigError,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            State::Stopped => "stopped",
            State::Starting => "starting",
            State::Running => "running",
            State::Stopping => "stopping",
            State::Frozen => "frozen",
            State::Suspended => "suspended",
            State::Failed => "failed",
            State::CrashLoop => "crash-loop",
            State::Orphaned => "orphaned",
            State::ConfigError => "config-error",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// All jails that are defined, run, have run since boot or keep data, by name.
pub fn rows(desired: &Desired, live: &Live, usage: &BTreeMap<JailName, Usage>) -> Vec<Row> {
    let defined = desired.jails.keys().chain(desired.broken.keys());
    let names: BTreeSet<&JailName> = defined.chain(live.jails.keys()).collect();
    names.into_iter().map(|name| row(name, desired, live, usage.get(name).copied())).collect()
}

fn row(name: &JailName, desired: &Desired, live: &Live, usage: Option<Usage>) -> Row {
    let unseen = LiveJail::default();
    let seen = live.jails.get(name).unwrap_or(&unseen);
    let (state, reason) = state(name, seen, desired, live);
    let runs = matches!(seen.state, JailState::Up | JailState::Frozen | JailState::Orphaned);
    let record = seen.record.as_ref().filter(|_| runs);
    Row {
        name: name.clone(),
        state,
        pid: record.and_then(|record| record.init).map(|init| init.pid),
        address: addresses(name, seen, desired),
        usage: usage.filter(|_| runs).unwrap_or_default(),
        uptime: record.map(|record| live.now_ms.saturating_sub(record.started_ms) / 1_000),
        exit: last_exit(seen).cloned(),
        restarts: seen.restarts.count,
        reason,
    }
}

fn last_exit(seen: &LiveJail) -> Option<&Exit> {
    match &seen.state {
        JailState::Exited(exit) => Some(exit),
        _ => seen.exit.as_ref(),
    }
}

fn state(name: &JailName, seen: &LiveJail, desired: &Desired, live: &Live) -> (State, Option<String>) {
    let fault = fault(name, desired, live);
    let stopping = seen.record.as_ref().is_some_and(|record| record.stopping);
    if let Some(reason) = &seen.unreadable {
        return (State::Failed, Some(reason.clone()));
    }
    let new_layers = || unmade(desired.jails.get(name)?, live);
    match &seen.state {
        // What runs is shown as running: a broken file has changed nothing about it.
        JailState::Up => (State::Running, fault.or_else(new_layers)),
        JailState::Frozen => (State::Frozen, fault.or_else(new_layers)),
        JailState::Orphaned => (State::Orphaned, Some("its keeper is gone".to_owned())),
        JailState::Partial if stopping => (State::Stopping, None),
        JailState::Partial => (State::Starting, None),
        JailState::Down | JailState::Exited(_) if fault.is_some() => {
            let by_last_good = desired.broken.contains_key(name) && seen.record.is_some() && !seen.held;
            let wait = |why| if by_last_good { with_wait(why, seen, live) } else { why };
            (State::ConfigError, fault.map(wait))
        }
        JailState::Down | JailState::Exited(_) => down(name, seen, desired, live),
    }
}

fn fault(name: &JailName, desired: &Desired, live: &Live) -> Option<String> {
    let broken = desired.broken.get(name).cloned();
    let wanted = desired.jails.get(name).filter(|wanted| wanted.jail.enabled);
    broken.or_else(|| plan::unenforceable(wanted?, live))
}

fn unmade(wanted: &DesiredJail, live: &Live) -> Option<String> {
    let (template, why) = plan::build_failure(wanted, live)?;
    Some(format!("its template `{template}` could not be built: {why}"))
}

fn down(name: &JailName, seen: &LiveJail, desired: &Desired, live: &Live) -> (State, Option<String>) {
    let Some(wanted) = desired.jails.get(name) else {
        return (State::Stopped, Some("it has no definition".to_owned()));
    };
    if !wanted.jail.enabled {
        return (State::Stopped, Some("disabled".to_owned()));
    }
    if seen.held {
        return (State::Stopped, Some("stopped by hand".to_owned()));
    }
    let end = last_exit(seen).map(ToString::to_string);
    if seen.restarts.crash_loop {
        return (State::CrashLoop, end);
    }
    let unbuilt = plan::unbuilt(wanted, live);
    if let Some(template) = unbuilt.filter(|_| plan::is_being_built(wanted, live)) {
        return (State::Starting, Some(format!("its template `{template}` is being built")));
    }
    if let Some(why) = unmade(wanted, live) {
        return (State::Failed, Some(why));
    }
    let failure = seen.restarts.failure.as_ref().map(|why| format!("it did not start: {why}"));
    let failed = failure.is_some() || last_exit(seen).map_or(seen.restarts.count > 0, Exit::failed);
    if !failed {
        let unbuilt = unbuilt.map(|template| format!("its template `{template}` is not built yet"));
        return (State::Stopped, unbuilt.or(end));
    }
    let reason = failure.or(end).unwrap_or_else(|| "it did not start".to_owned());
    (State::Failed, Some(with_wait(reason, seen, live)))
}

fn with_wait(reason: String, seen: &LiveJail, live: &Live) -> String {
    match seen.restarts.wait_ms(live.now_ms) {
        Some(wait_ms) => format!("{reason}; starts again in {} s", wait_ms.div_ceil(1_000)),
        None => reason,
    }
}

/// As found in the jail, else as it was started with, else as defined.
fn addresses(name: &JailName, seen: &LiveJail, desired: &Desired) -> Vec<String> {
    let recorded = seen.record.as_ref().map(|record| &record.settings);
    let wanted = desired.jails.get(name).map(|wanted| &wanted.settings);
    let of = |settings: &Settings| settings.get("network.address").cloned();
    let found = of(&seen.observed).or_else(|| of(recorded?)).or_else(|| of(wanted?));
    let list = found.as_ref().and_then(Value::as_array).into_iter().flatten();
    let address = |text: &str| text.split_once('/').map_or(text, |(address, _)| address).to_owned();
    list.filter_map(Value::as_str).map(address).collect()
}

/// The table, ending with a new line.
pub fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["NAME", "STATE", "PID", "ADDRESS", "MEMORY", "CPU", "UPTIME"]);
    for row in rows {
        table.add_row(cells(row));
    }
    for (at, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if matches!(at, 2 | 4 | 5 | 6) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt() + "\n"
}

fn cells(row: &Row) -> [String; 7] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let addresses = (!row.address.is_empty()).then(|| row.address.join(","));
    [
        row.name.to_string(),
        row.state.to_string(),
        or_dash(row.pid.map(|pid| pid.to_string())),
        or_dash(addresses),
        or_dash(row.usage.memory.map(size)),
        or_dash(row.usage.cpu_ms.map(cpu_time)),
        or_dash(row.uptime.map(duration)),
    ]
}

/// The rows for a program: sizes in bytes, times in seconds.
pub fn json(rows: &[Row]) -> Value {
    json!({ "schema": 1, "kind": "jails", "items": rows.iter().map(item).collect::<Vec<_>>() })
}

/// One jail of [`json`].
pub fn item(row: &Row) -> Value {
    #[allow(clippy::cast_precision_loss)] // Exact for the first 285,000 years of CPU time.
    let cpu = row.usage.cpu_ms.map(|ms| ms as f64 / 1_000.0);
    json!({
        "name": row.name,
        "state": row.state.as_str(),
        "pid": row.pid,
        "address": row.address,
        "memory": row.usage.memory,
        "cpu": cpu,
        "disk": row.usage.disk,
        "uptime": row.uptime,
        "exit": row.exit,
        "restarts": row.restarts,
        "reason": row.reason,
    })
}

/// Bytes for a person: `0B`, `512K`, `1.5G`.
pub fn size(bytes: u64) -> String {
    const UNITS: [char; 6] = ['K', 'M', 'G', 'T', 'P', 'E'];
    if bytes < 1 << 10 {
        return format!("{bytes}B");
    }
    let at = (bytes.ilog2() / 10 - 1) as usize;
    let unit = 1u64 << (10 * (at + 1));
    // In tenths, cut off rather than rounded: 1023.9M is not yet 1G.
    let tenths = u128::from(bytes) * 10 / u128::from(unit);
    match tenths % 10 {
        0 => format!("{}{}", tenths / 10, UNITS[at]),
        _ if tenths >= 1_000 => format!("{}{}", tenths / 10, UNITS[at]),
        part => format!("{}.{part}{}", tenths / 10, UNITS[at]),
    }
}

/// Seconds for a person, the two largest parts: `42s`, `5m12s`, `3h7m`, `12d4h`.
fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{}s", seconds % 60),
        (0, _, _) => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

fn cpu_time(ms: u64) -> String {
    if ms < 10_000 { format!("{}.{:02}s", ms / 1_000, ms % 1_000 / 10) } else { duration(ms / 1_000) }
}

#[cfg(test)]
mod tests;
