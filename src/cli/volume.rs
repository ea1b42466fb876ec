//! What `show` and `ls` say of a jail's volume.

use std::os::fd::AsFd;

use serde_json::{Value, json};

use crate::jail::JailName;
use crate::live::{LiveJail, Record};
use crate::root::volume::{self, Used};
use crate::storage::{Held, Kind};
use crate::{keys, probe, status};

/// A jail's volume and what it takes, as far as it is counted.
pub struct Shown {
    held: Held,
    used: Option<Used>,
    /// In force.
    limits: [Value; 2],
}

/// None for a jail that has no volume, or none yet.
pub fn shown(state: &std::path::Path, name: &JailName, seen: &LiveJail) -> Option<Shown> {
    let held = now(seen)?;
    let limit = |key: &str| seen.observed.get(key).cloned().unwrap_or_default();
    let limits = [limit("limits.disk"), limit("limits.inodes")];
    Some(Shown { used: used(state, name, seen, &held), held, limits })
}

/// What the jail writes to, or would.
fn now(seen: &LiveJail) -> Option<Held> {
    let setting = |record: &Record, key: &str| record.settings.get(key).cloned();
    if let Some(record) = &seen.record {
        if setting(record, "path").is_some() {
            return None;
        }
        if setting(record, "root.storage").is_some_and(|storage| storage == "tmpfs") {
            return Some(Held { kind: Kind::Tmpfs, why: "asked for".to_owned(), ..Held::overlay() });
        }
    }
    seen.volume.clone()
}

fn used(state: &std::path::Path, name: &JailName, seen: &LiveJail, held: &Held) -> Option<Used> {
    let record = seen.record.as_ref();
    let root = record.and_then(|record| probe::root_of(record.init?).ok());
    let first_id = record.map_or(0, |record| record.first_id);
    volume::used(state, name, first_id, held, root.as_ref().map(AsFd::as_fd))
}

/// Bytes, for `ls`.
pub fn bytes(state: &std::path::Path, name: &JailName, seen: &LiveJail) -> Option<u64> {
    used(state, name, seen, &now(seen)?).map(|used| used.bytes)
}

impl Shown {
    /// `image ext4, 18K of 64M, 14 files (auto, for …)`.
    pub fn text(&self) -> String {
        let mut text = self.held.kind.to_string();
        if let Some(file_system) = self.held.file_system {
            text.push_str(&format!(" {}", file_system.as_str()));
        }
        if let Some(used) = self.used {
            text.push_str(&format!(", {}", status::size(used.bytes)));
            if !self.limits[0].is_null() {
                text.push_str(&format!(" of {}", keys::show("limits.disk", &self.limits[0])));
            }
            if let Some(inodes) = used.inodes {
                text.push_str(&format!(", {inodes} files"));
            }
        }
        if self.held.why.is_empty() { text } else { format!("{text} ({})", self.held.why) }
    }

    pub fn json(&self) -> Value {
        json!({
            "kind": self.held.kind,
            "file_system": self.held.file_system,
            "why": self.held.why,
            "used": self.used.map(|used| used.bytes),
            "used_inodes": self.used.and_then(|used| used.inodes),
            "limit": self.limits[0],
            "limit_inodes": self.limits[1],
        })
    }
}
