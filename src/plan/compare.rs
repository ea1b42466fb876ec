//! What differs for one jail: its definition against the record of its start, and the record
//! against what the kernel shows. Finds differences and names their cost; decides nothing.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::Change;
use crate::desired::{DesiredJail, DesiredRoot, HostConfig, OnChange};
use crate::jail::Settings;
use crate::keys::{self, Cost};
use crate::live::{LiveJail, Record};
use crate::network::{self, DEFAULT_BRIDGE};
use crate::root::files::digest;
use crate::template::hex;

/// Told apart because setting them back costs less than changing them.
const BRIDGE: &str = "network.bridge";
const SET_BACK_LIVE: &[&str] = &["network.mac", "network.mtu"];
/// Told apart because its default is the bridge's own addresses.
pub const ROUTES: &str = "network.gateway";
/// How much of a digest is shown.
const SHORT_DIGITS: usize = 8;

/// What the definition changed since the record was written: keys by name, then the root's
/// layers under the key `template`, then files by path.
///
/// Nothing, where just this was tried and did not come up.
pub fn changes(record: &Record, wanted: &DesiredJail) -> Vec<Change> {
    if gave_up(record, wanted) { Vec::new() } else { differences(record, wanted) }
}

/// Whether the jail runs as it did before since this very attempt has failed.
pub fn gave_up(record: &Record, wanted: &DesiredJail) -> bool {
    record.instead_of.as_ref().is_some_and(|tried| *tried == attempt(wanted))
}

/// All that a start goes by, as one digest.
pub fn attempt(wanted: &DesiredJail) -> String {
    let mut digest = Sha256::new();
    for (key, value) in &wanted.settings {
        digest.update(format!("{key} {value}\n"));
    }
    for layer in &wanted.root.layers {
        digest.update(format!("layer {}\n", layer.id));
    }
    for file in &wanted.root.files {
        digest.update(format!("file {} {}\n", file.target.display(), self::digest(file)));
    }
    hex(&digest.finalize())
}

/// As [`changes`], whatever was tried.
pub fn differences(record: &Record, wanted: &DesiredJail) -> Vec<Change> {
    let mut changes = settings(&record.settings, &wanted.settings);
    add_layers(record, &wanted.root, &mut changes);
    add_files(record, &wanted.root, &mut changes);
    changes
}

fn settings(old: &Settings, new: &Settings) -> Vec<Change> {
    if old == new {
        return Vec::new();
    }
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let differing = keys.into_iter().filter(|key| old.get(*key) != new.get(*key));
    differing
        .map(|key| Change {
            key: key.clone(),
            from: old.get(key).map(|value| keys::show(key, value)),
            to: new.get(key).map(|value| keys::show(key, value)),
            cost: keys::cost(key),
        })
        .collect()
}

fn add_layers(record: &Record, root: &DesiredRoot, changes: &mut Vec<Change>) {
    let same = record.host_usr == root.host_usr
        && record.layers.len() == root.layers.len()
        && record.layers.iter().zip(&root.layers).all(|(old, new)| *old == new.id);
    if same {
        return;
    }
    // A template of another name already has its line; the layers only raise what it costs.
    if let Some(change) = changes.iter_mut().find(|change| change.key == "template") {
        change.cost = change.cost.max(Cost::Restart);
        return;
    }
    let old: Vec<&str> = record.layers.iter().map(String::as_str).collect();
    let new: Vec<&str> = root.layers.iter().map(|layer| layer.id.as_str()).collect();
    let at = (0..old.len().max(new.len())).find(|&at| old.get(at) != new.get(at));
    let show = |ids: &[&str], host_usr: bool| match at {
        Some(at) => ids.get(at).map(|id| short(id)),
        None => host_usr.then(|| "host /usr".to_owned()),
    };
    changes.push(Change {
        key: "template".to_owned(),
        from: show(&old, record.host_usr),
        to: show(&new, root.host_usr),
        cost: Cost::Restart,
    });
}

fn add_files(record: &Record, root: &DesiredRoot, changes: &mut Vec<Change>) {
    for file in &root.files {
        let old = record.files.get(&file.target).map(|stamp| stamp.digest.as_str());
        let new = digest(file);
        if old != Some(new.as_str()) {
            let cost = file_cost(&file.on_change);
            changes.push(file_change(&file.target, old.map(short), Some(short(&new)), cost));
        }
    }
    if record.files.is_empty() {
        return;
    }
    let wanted: BTreeSet<&Path> = root.files.iter().map(|file| file.target.as_path()).collect();
    for (target, stamp) in &record.files {
        if !wanted.contains(target.as_path()) {
            // What should follow went with the file's entry; restart is that key's default.
            changes.push(file_change(target, Some(short(&stamp.digest)), None, Cost::Restart));
        }
    }
}

fn file_change(target: &Path, from: Option<String>, to: Option<String>, cost: Cost) -> Change {
    Change { key: target.display().to_string(), from, to, cost }
}

/// What was changed outside stockade, keys first, then files. What the definition asks for by
/// now is no drift, nor is a file or key that the definition changes anyway without a value to
/// go back to. Setting back never throws a root away, so nothing here costs more than a restart.
pub fn drift(
    seen: &LiveJail,
    record: &Record,
    (wanted, host): (&DesiredJail, &HostConfig),
    changes: &[Change],
) -> Vec<Change> {
    let mut drift: Vec<Change> = bridge_drift(seen, record, changes).into_iter().collect();
    drift.extend(route_drift(seen, wanted, host, changes));
    for (key, found) in seen.observed.iter().filter(|(key, _)| *key != BRIDGE) {
        let (Some(set), Some(want)) = (record.settings.get(key), wanted.settings.get(key)) else {
            continue;
        };
        if found == set || found == want {
            continue;
        }
        let live = SET_BACK_LIVE.contains(&key.as_str());
        let cost = keys::cost(key).min(if live { Cost::Live } else { Cost::Restart });
        // A key that touches nothing running has nothing in the kernel to set back.
        if cost > Cost::None {
            let (from, to) = (Some(keys::show(key, set)), Some(keys::show(key, found)));
            drift.push(Change { key: key.clone(), from, to, cost });
        }
    }
    drift.extend(file_drift(seen, record, wanted, changes));
    drift
}

/// Another bridge in the definition needs another link, but the link that is there goes back to
/// its bridge at once. The jail has one even if its definition leaves it to the default.
fn bridge_drift(seen: &LiveJail, record: &Record, changes: &[Change]) -> Option<Change> {
    let found = seen.observed.get(BRIDGE)?.as_str()?;
    let set = record.settings.get(BRIDGE).and_then(|value| value.as_str()).unwrap_or(DEFAULT_BRIDGE);
    if found == set || changes.iter().any(|change| change.key == BRIDGE) {
        return None;
    }
    let to = (!found.is_empty()).then(|| found.to_owned());
    Some(Change { key: BRIDGE.to_owned(), from: Some(set.to_owned()), to, cost: Cost::Live })
}

/// A default route that is gone, or leads elsewhere. With the network about to change it is not
/// this definition's yet.
fn route_drift(
    seen: &LiveJail,
    wanted: &DesiredJail,
    host: &HostConfig,
    changes: &[Change],
) -> Option<Change> {
    let found = seen.default_routes.as_ref()?;
    let routes = network::default_routes(&wanted.jail, host);
    let changing = changes.iter().any(|change| change.key.starts_with("network."));
    if changing || routes.iter().all(|route| found.contains(route)) {
        return None;
    }
    let show = |routes: &[IpAddr]| keys::show(ROUTES, &serde_json::json!(routes));
    let to = (!found.is_empty()).then(|| show(found));
    Some(Change { key: ROUTES.to_owned(), from: Some(show(&routes)), to, cost: Cost::Live })
}

fn file_drift(
    seen: &LiveJail,
    record: &Record,
    wanted: &DesiredJail,
    changes: &[Change],
) -> impl Iterator<Item = Change> {
    wanted.root.files.iter().filter(|file| seen.changed_files.contains(&file.target)).filter_map(|file| {
        let stamp = record.files.get(&file.target)?;
        let cost = file_cost(&file.on_change);
        let change = file_change(&file.target, Some(short(&stamp.digest)), Some("edited".to_owned()), cost);
        changes.iter().all(|other| other.key != change.key).then_some(change)
    })
}

fn file_cost(on_change: &OnChange) -> Cost {
    match on_change {
        OnChange::Restart => Cost::Restart,
        OnChange::Reload(_) => Cost::Reload,
        OnChange::None => Cost::None,
    }
}

fn short(digest: &str) -> String {
    let digits = digest.strip_prefix("sha256-").unwrap_or(digest);
    digits.chars().take(SHORT_DIGITS).collect()
}
