//! The host's own file, stockade.toml.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::desired::{Bridge, IdPool};
use crate::diagnostic::{Diagnostic, did_you_mean};
use crate::jail::Network;
use crate::keys::{HOST_KEYS, Key};

use super::raw::{self, Member, Raw, RawValue, Text};
use super::value::{self, Report};
use super::word;
use super::wrong::Wrong;
use super::{Entries, Origin, add_unless_syntax, walk};

/// Ids one jail has.
const RANGE_IDS: u64 = 65_536;

/// The range of ids that systemd's list of ranges leaves to nobody, up to its foreign ids:
/// no distribution's users, subordinate ids or containers are in it.
const FIRST_ID: u32 = 1_879_048_192;
const RANGES: u32 = 4_094;

/// stockade.toml as far as it could be understood.
#[derive(Debug)]
pub struct RawHost {
    pub state: Option<PathBuf>,
    pub run: Option<PathBuf>,
    pub log: Option<PathBuf>,
    pub cgroup: Option<String>,
    pub ids: IdPool,
    pub bridges: BTreeMap<String, Bridge>,
    pub defaults: Entries,
    pub enforce: Entries,
    /// The first error: no jail is touched then, since what binds them all is not known.
    pub broken: Option<String>,
}

impl Default for RawHost {
    fn default() -> Self {
        Self {
            state: None,
            run: None,
            log: None,
            cgroup: None,
            ids: IdPool { first: FIRST_ID, ranges: RANGES },
            bridges: BTreeMap::new(),
            defaults: Entries::new(),
            enforce: Entries::new(),
            broken: None,
        }
    }
}

/// Reads stockade.toml.
pub fn parse_host(file: &Path, text: &str) -> (RawHost, Vec<Diagnostic>) {
    let source = Text::new(file, text);
    let (members, mut diagnostics) = raw::read(&source);
    let mut host = RawHost::default();
    let mut report = Report::new(&source);
    for member in &members {
        let jail_keys = match member.name.as_str() {
            "defaults" => Some((Origin::Defaults, &mut host.defaults)),
            "enforce" => Some((Origin::Enforce, &mut host.enforce)),
            _ => None,
        };
        match (jail_keys, &member.raw.value) {
            (Some((origin, slot)), RawValue::Table(inner)) => {
                let (entries, found) = walk::entries(inner.clone(), &source, origin);
                *slot = entries;
                report.found.extend(found);
            }
            (Some(_), _) => {
                let wrong = value::wrong_type(&member.name, "a table of jail keys", &member.raw);
                report.wrong(&member.raw, wrong);
            }
            (None, _) => top(member, &mut host, &mut report),
        }
    }
    add_unless_syntax(&mut diagnostics, report.found);
    crate::diagnostic::sort(&mut diagnostics);
    host.broken = diagnostics.iter().find(|found| found.is_error()).map(Diagnostic::summary);
    (host, diagnostics)
}

fn row(name: &str) -> &'static Key {
    HOST_KEYS.iter().find(|key| key.name == name).expect("the rows named in this file are in the table")
}

fn top(member: &Member, host: &mut RawHost, report: &mut Report<'_>) {
    match member.name.as_str() {
        name @ ("state_dir" | "run_dir" | "log_dir") => {
            let path = text(name, &member.raw, report).map(PathBuf::from);
            match name {
                "state_dir" => host.state = path,
                "run_dir" => host.run = path,
                _ => host.log = path,
            }
        }
        "cgroup" => host.cgroup = text("cgroup", &member.raw, report),
        "ids" => {
            if let Some(members) = table("ids", &member.raw, report) {
                ids(member, members, host, report);
            }
        }
        "bridge" => {
            for member in table("bridge", &member.raw, report).unwrap_or_default() {
                bridge(member, host, report);
            }
        }
        name => {
            let tops = HOST_KEYS.iter().map(|key| key.name.split('.').next().unwrap_or(key.name));
            let known: BTreeSet<&str> = tops.collect();
            let jail_key = crate::keys::find(name).is_some() || crate::keys::is_table(name);
            let help = did_you_mean(name, known).or_else(|| {
                jail_key
                    .then(|| format!("`{name}` is of a jail: write [defaults.{name}] or [enforce.{name}]"))
            });
            report.at(&member.span, Wrong { message: format!("unknown key `{name}`"), help });
        }
    }
}

/// The string of a host key. The host's own keys know no expressions: there is no jail to speak of.
fn text(name: &str, raw: &Raw, report: &mut Report<'_>) -> Option<String> {
    match checked(row(name), raw, report)? {
        Value::String(text) => Some(text),
        _ => None,
    }
}

fn checked(key: &Key, raw: &Raw, report: &mut Report<'_>) -> Option<Value> {
    if raw.has_expression() {
        report.wrong(raw, Wrong::new(format!("`{}` cannot hold an expression", key.name)));
        return None;
    }
    value::normalise(key, raw, report)
}

fn table<'r>(name: &str, raw: &'r Raw, report: &mut Report<'_>) -> Option<&'r [Member]> {
    if let RawValue::Table(members) = &raw.value {
        return Some(members);
    }
    report.wrong(raw, value::wrong_type(name, "a table", raw));
    None
}

/// The rows of `table` that are written, as (leaf, value); unknown ones are errors.
fn rows(table: &str, members: &[Member], report: &mut Report<'_>) -> BTreeMap<&'static str, Value> {
    let known: Vec<&Key> = HOST_KEYS.iter().filter(|key| key.table() == table).collect();
    let mut found = BTreeMap::new();
    for member in members {
        if let Some(key) = known.iter().find(|key| key.leaf() == member.name) {
            if let Some(value) = checked(key, &member.raw, report) {
                found.insert(key.leaf(), value);
            }
            continue;
        }
        let help = did_you_mean(&member.name, known.iter().map(|key| key.leaf()));
        let message = format!("unknown key `{}.{}`", table.trim_end_matches(".*"), member.name);
        report.at(&member.span, Wrong { message, help });
    }
    found
}

fn ids(at: &Member, members: &[Member], host: &mut RawHost, report: &mut Report<'_>) {
    let found = rows("ids", members, report);
    let number = |leaf: &str, default: u32| found.get(leaf).and_then(Value::as_u64).unwrap_or(default.into());
    let (first, ranges) = (number("first", FIRST_ID), number("ranges", RANGES));
    if first % RANGE_IDS != 0 {
        report
            .at(&at.span, Wrong::new(format!("`ids.first` is {first}, which is no multiple of {RANGE_IDS}")));
    }
    // The last range stays free: its last id means "no id" to the kernel.
    if first + ranges * RANGE_IDS > u64::from(u32::MAX) + 1 - RANGE_IDS {
        let message = format!("{ranges} ranges from {first} on do not fit below 2^32");
        report.at(&at.span, Wrong::new(message));
        return;
    }
    let narrow = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    host.ids = IdPool { first: narrow(first), ranges: narrow(ranges) };
}

fn bridge(member: &Member, host: &mut RawHost, report: &mut Report<'_>) {
    if let Err(wrong) = word::interface(&member.name) {
        report.at(&member.span, wrong);
        return;
    }
    let name = format!("bridge.{}", member.name);
    let Some(members) = table(&name, &member.raw, report) else { return };
    let found = rows("bridge.*", members, report);
    let address: Vec<Network> =
        found.get("address").and_then(|value| serde_json::from_value(value.clone()).ok()).unwrap_or_default();
    let families: BTreeSet<bool> = address.iter().map(|network| network.address.is_ipv4()).collect();
    if families.len() < address.len() {
        report.at(&member.span, Wrong::new(format!("`{name}` has two addresses of one family")));
    }
    let mtu = found.get("mtu").and_then(Value::as_u64).and_then(|mtu| u32::try_from(mtu).ok());
    host.bridges.insert(member.name.clone(), Bridge { address, mtu });
}
