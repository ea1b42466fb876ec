//! What two jails cannot both have. Jails that are not enabled claim nothing.
//!
//! Both jails of a clash are in error: to choose one by its name would move an address from the
//! jail that runs to one that came later.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::definition::parse_publish;
use crate::desired::HostConfig;
use crate::diagnostic::Diagnostic;
use crate::jail::Network;

use super::Draft;

/// Who claims something, and where it is written.
struct Claim {
    draft: usize,
    key: &'static str,
    item: usize,
}

/// Reports every clash at each of its places.
pub fn check(drafts: &mut [Draft], host: &HostConfig, found: &mut Vec<Diagnostic>) {
    let mut claims: BTreeMap<String, Vec<Claim>> = BTreeMap::new();
    for (index, draft) in drafts.iter().enumerate().filter(|(_, draft)| draft.is_enabled()) {
        for (what, key, item) in claimed(draft) {
            claims.entry(what).or_default().push(Claim { draft: index, key, item });
        }
    }
    let mut wrong = Vec::new();
    for (what, claims) in &claims {
        for claim in claims {
            if let Some(message) = clash(what, claim, claims, drafts) {
                wrong.push((claim.draft, drafts[claim.draft].error_in(claim.key, claim.item, message)));
            }
        }
    }
    bridges(drafts, host, &mut wrong);
    for (index, error) in wrong {
        drafts[index].fault(error, found);
    }
}

/// Everything a jail has for itself alone: how it is named in an error, key and item.
fn claimed(draft: &Draft) -> Vec<(String, &'static str, usize)> {
    let mut all = Vec::new();
    for (item, network) in addresses(draft).iter().enumerate() {
        all.push((format!("the address {}", network.address), "network.address", item));
    }
    for (key, noun) in [("network.mac", "the MAC address"), ("host.machine_id", "the machine id")] {
        if let Some(text) = draft.settings.get(key).and_then(Value::as_str) {
            all.push((format!("{noun} {text}"), key, 0));
        }
    }
    for (item, text) in strings(draft, "network.publish").enumerate() {
        if let Ok(publish) = parse_publish(text) {
            // Every address of a port is one claim: 0.0.0.0:80 and 10.0.0.1:80 cannot both be had.
            let what = format!("the host's port {}/{}", publish.listen.port(), publish.protocol);
            all.push((what, "network.publish", item));
        }
    }
    let read_only = draft.settings.get("root.read_only") == Some(&Value::Bool(true));
    if let Some(path) = draft.settings.get("path").and_then(Value::as_str).filter(|_| !read_only) {
        all.push((format!("the root {path}"), "path", 0));
    }
    all
}

/// The message at one place of a clash: who else has it, and where.
fn clash(what: &str, claim: &Claim, claims: &[Claim], drafts: &[Draft]) -> Option<String> {
    let other = claims.iter().find(|other| other.draft != claim.draft && collides(claim, other, drafts))?;
    let draft = &drafts[other.draft];
    let place = draft.error_in(other.key, other.item, "").place();
    Some(format!("{what} is also the jail `{}`'s ({place})", draft.name))
}

/// Two published ports collide only when one's address covers the other's.
fn collides(a: &Claim, b: &Claim, drafts: &[Draft]) -> bool {
    if a.key != "network.publish" {
        return true;
    }
    let listen = |claim: &Claim| {
        let text = strings(&drafts[claim.draft], "network.publish").nth(claim.item)?;
        parse_publish(text).ok().map(|publish| publish.listen.ip())
    };
    let (Some(a), Some(b)) = (listen(a), listen(b)) else { return false };
    a == b || a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified())
}

/// A jail cannot have the host's own address on a bridge.
fn bridges(drafts: &[Draft], host: &HostConfig, wrong: &mut Vec<(usize, Diagnostic)>) {
    for (index, draft) in drafts.iter().enumerate().filter(|(_, draft)| draft.is_enabled()) {
        for (item, network) in addresses(draft).iter().enumerate() {
            let owner = host
                .bridges
                .iter()
                .find(|(_, bridge)| bridge.address.iter().any(|own| own.address == network.address));
            if let Some((name, _)) = owner {
                let message =
                    format!("the address {} is the host's own on the bridge `{name}`", network.address);
                wrong.push((index, draft.error_in("network.address", item, message)));
            }
        }
    }
}

fn strings<'d>(draft: &'d Draft, key: &str) -> impl Iterator<Item = &'d str> {
    draft.settings.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

fn addresses(draft: &Draft) -> Vec<Network> {
    // Read already, unless another of its keys has an error.
    if let Some(jail) = &draft.jail {
        return jail.network.address.clone();
    }
    strings(draft, "network.address").filter_map(|text| Network::try_from(text.to_owned()).ok()).collect()
}
