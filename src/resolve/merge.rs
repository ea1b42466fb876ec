//! The host's defaults below a jail's own keys, and its enforced keys above them.
//!
//! Keys are merged one by one; tables of the user's own names (`exec.env`, `security.rlimits`,
//! `vars`) member by member.

use std::sync::Arc;

use crate::definition::{Entries, RawDefinition, RawHost};

/// Pairs of which a jail has one: its own choice sets a default for the other aside.
const RIVALS: &[(&str, &str)] = &[("template", "path"), ("exec.command", "exec.boot")];

pub fn merge(definition: &RawDefinition, host: &RawHost) -> Arc<Entries> {
    if host.defaults.is_empty() && host.enforce.is_empty() {
        return Arc::clone(&definition.entries);
    }
    let mut merged = definition.entries.as_ref().clone();
    for (name, entry) in &host.defaults {
        if !has_rival(&definition.entries, name.0) {
            merged.entry(name.clone()).or_insert_with(|| Arc::clone(entry));
        }
    }
    for (name, entry) in &host.enforce {
        merged.insert(name.clone(), Arc::clone(entry));
    }
    Arc::new(merged)
}

fn has_rival(entries: &Entries, key: &str) -> bool {
    RIVALS.iter().any(|&(a, b)| {
        let rival = if key == a { b } else { a };
        (key == a || key == b) && entries.contains_key(&(rival, String::new()))
    })
}
