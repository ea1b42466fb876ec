//! Keys of one jail that contradict or need one another.
//!
//! A default that does not fit what the jail itself says is dropped without a word; what the jail
//! or `[enforce]` says and does not fit is an error.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::definition::Origin;
use crate::desired::HostConfig;
use crate::diagnostic::{Diagnostic, did_you_mean};
use crate::jail::{Network, Settings};

use super::Draft;

/// A key that does not fit when `misfit` holds.
struct Rule {
    key: &'static str,
    /// The key it has to fit. While that one has an error of its own, nothing is known.
    with: &'static str,
    misfit: fn(&Settings) -> bool,
    message: &'static str,
    help: &'static str,
}

const fn rule(
    key: &'static str,
    with: &'static str,
    misfit: fn(&Settings) -> bool,
    message: &'static str,
    help: &'static str,
) -> Rule {
    Rule { key, with, misfit, message, help }
}

const ADD_VNET: &str = "add `mode = \"vnet\"` to [network]";

#[rustfmt::skip]
const RULES: &[Rule] = &[
    rule("path", "template", |s| has(s, "template"), "`path` and `template` contradict each other", "keep the one the root is to come from"),
    rule("exec.command", "exec.boot", |s| has(s, "exec.boot"), "`exec.command` and `exec.boot` contradict each other", "keep the one that is to be the main process"),
    rule("exec.user", "exec.boot", |s| has(s, "exec.boot"), "`exec.user` and `exec.boot` contradict each other", "a whole system's init runs as root inside"),
    rule("exec.workdir", "exec.boot", |s| has(s, "exec.boot"), "`exec.workdir` and `exec.boot` contradict each other", "a whole system's init starts in /"),
    rule("persist", "exec.command", |s| is(s, "persist") && (has(s, "exec.command") || has(s, "exec.boot")),
        "`persist` is for a jail without a process of its own", "remove it, or `exec.command` and `exec.boot`"),
    rule("network.address", "network.mode", not_vnet, "`network.address` needs `network.mode = \"vnet\"`", ADD_VNET),
    rule("network.bridge", "network.mode", not_vnet, "`network.bridge` needs `network.mode = \"vnet\"`", ADD_VNET),
    rule("network.gateway", "network.mode", not_vnet, "`network.gateway` needs `network.mode = \"vnet\"`", ADD_VNET),
    rule("network.mac", "network.mode", not_vnet, "`network.mac` needs `network.mode = \"vnet\"`", ADD_VNET),
    rule("network.mtu", "network.mode", not_vnet, "`network.mtu` needs `network.mode = \"vnet\"`", ADD_VNET),
    rule("network.publish", "network.mode", not_vnet, "`network.publish` needs `network.mode = \"vnet\"`", ADD_VNET),
    rule("network.nameserver", "network.mode", no_network, "`network.nameserver` is of no use without a network", ADD_VNET),
    rule("network.search", "network.mode", no_network, "`network.search` is of no use without a network", ADD_VNET),
    rule("network.mode", "allow.host_network", |s| mode(s) == "inherit" && !is(s, "allow.host_network"),
        "`network.mode = \"inherit\"` shares the host's whole network and is not permitted", "add `host_network = true` to [allow]"),
    rule("network.mtu", "network.address", |s| number(s, "network.mtu").is_some_and(|mtu| mtu < 1280) && addresses(s).iter().any(|a| a.address.is_ipv6()),
        "IPv6 needs an MTU of at least 1280", "raise it, or remove the IPv6 address"),
    rule("limits.swap", "limits.memory", |s| !has(s, "limits.memory"), "`limits.swap` needs `limits.memory`", "the kernel counts swap beside memory"),
    rule("limits.memory_high", "limits.memory", |s| number(s, "limits.memory").zip(number(s, "limits.memory_high")).is_some_and(|(hard, soft)| soft > hard),
        "`limits.memory_high` is above `limits.memory`", "the soft limit would never be reached"),
    rule("security.userns", "security.unsafe", |s| no(s, "security.userns") && !lists(s, "security.unsafe", "host-root"),
        "`security.userns = false` makes the jail's root the host's root", "add `unsafe = [\"host-root\"]` to [security] to say that this is wanted"),
    rule("security.unsafe", "security.userns", |s| lists(s, "security.unsafe", "host-root") && !no(s, "security.userns"),
        "`host-root` needs `security.userns = false`", "remove one of the two"),
    rule("root.storage", "path", |s| has(s, "path"), "`root.storage` and `path` contradict each other", "a `path` is used as it is, without layers"),
    rule("root.on_stop", "path", |s| has(s, "path") && text(s, "root.on_stop") == Some("discard"),
        "`root.on_stop = \"discard\"` would delete the directory that `path` names", "remove it: a `path` is never deleted"),
    rule("root.on_stop", "root.storage", |s| text(s, "root.storage") == Some("tmpfs") && text(s, "root.on_stop") == Some("keep"),
        "a root on tmpfs cannot be kept", "write on_stop = \"discard\", or another storage"),
];

/// Checks one jail's keys against each other and against the host's bridges. Defaults that do not
/// fit are taken out of the draft's settings.
pub fn check(draft: &mut Draft, host: &HostConfig) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    // Most jails have a few keys, of which fewer have a rule.
    let keys: Vec<&str> = draft.settings.keys().map(String::as_str).collect();
    let near: Vec<&Rule> = RULES.iter().filter(|rule| keys.contains(&rule.key)).collect();
    for rule in near {
        if !has(&draft.settings, rule.key) || !(rule.misfit)(&draft.settings) {
            continue;
        }
        if draft.entry(rule.with).is_some() && !has(&draft.settings, rule.with) {
            continue;
        }
        if draft.entry(rule.key).is_some_and(|entry| entry.origin == Origin::Defaults) {
            draft.settings.remove(rule.key);
        } else {
            found.push(draft.error(rule.key, rule.message).help(rule.help));
        }
    }
    missing(draft, &mut found);
    owned_apart(draft, host, &mut found);
    bridge(draft, host, &mut found);
    gateways(draft, &mut found);
    mount_targets(draft, &mut found);
    snapshot_labels(draft, &mut found);
    if no(&draft.settings, "security.userns") && lists(&draft.settings, "security.unsafe", "host-root") {
        let message = "this jail's root is the host's root: it is no boundary against hostile code";
        found.push(draft.error("security.userns", message).warning());
    }
    found
}

/// What no jail can be without. A file with errors may well have it where it was not understood.
fn missing(draft: &Draft, found: &mut Vec<Diagnostic>) {
    if draft.broken.is_some() {
        return;
    }
    let written = |key: &'static str| draft.entry(key).is_some();
    if !written("template") && !written("path") {
        let error = draft.error("template", "this jail has neither `template` nor `path`");
        found.push(error.help("such as template = \"host\""));
    }
    let stays = written("persist") && !no(&draft.settings, "persist");
    let runs = written("exec.command") || written("exec.boot") || has(&draft.settings, "exec.command");
    if !runs && !stays && !draft.template_unknown {
        let error = draft.error("exec.command", "this jail has nothing to run");
        found.push(error.help("set `exec.command` or `exec.boot`, or `persist = true`"));
    }
}

/// Root in the jail owns all that is below its `path`, and below what is mounted with its ids to
/// be written: never what stockade itself goes by.
fn owned_apart(draft: &Draft, host: &HostConfig, found: &mut Vec<Diagnostic>) {
    let path = text(&draft.settings, "path").map(|path| ("path", 0, path));
    let mounts = draft.settings.get("mount").and_then(Value::as_array).into_iter().flatten();
    let owned = mounts.enumerate().filter_map(|(index, mount)| {
        let options = mount["options"].as_array().map_or(&[][..], Vec::as_slice);
        let is_owned = options.iter().any(|o| o == "idmap") && !options.iter().any(|o| o == "ro");
        Some(("mount", index, mount["source"].as_str().filter(|_| is_owned)?))
    });
    let paths = &host.paths;
    for (key, index, path) in path.into_iter().chain(owned) {
        let meets =
            |own: &&PathBuf| own.is_absolute() && (own.starts_with(path) || Path::new(path).starts_with(own));
        let mut own = [&paths.state, &paths.config, &paths.run, &paths.log].into_iter();
        if let Some(own) = own.find(meets) {
            let message =
                format!("root in the jail would own what is in {}, which stockade goes by", own.display());
            found.push(draft.error_in(key, index, message));
        }
    }
}

fn bridge(draft: &Draft, host: &HostConfig, found: &mut Vec<Diagnostic>) {
    let Some(name) = text(&draft.settings, "network.bridge") else { return };
    if !host.bridges.contains_key(name) {
        let known = did_you_mean(name, host.bridges.keys().map(String::as_str));
        let help = known.unwrap_or_else(|| format!("add [bridge.{name}] to stockade.toml"));
        found.push(
            draft.error_in("network.bridge", 0, format!("there is no bridge `{name}` defined")).help(help),
        );
    }
}

/// Default routes: one of each family, each reachable from an address of the jail.
fn gateways(draft: &Draft, found: &mut Vec<Diagnostic>) {
    let list: Vec<IpAddr> = read(&draft.settings, "network.gateway");
    if list.is_empty() {
        return;
    }
    let addresses = addresses(&draft.settings);
    let mut families = BTreeSet::new();
    for (index, gateway) in list.iter().enumerate() {
        let link_local = matches!(gateway, IpAddr::V6(ip) if ip.is_unicast_link_local());
        if !families.insert(gateway.is_ipv4()) {
            let message = format!("`{gateway}` is a second default route of its family");
            found.push(draft.error_in("network.gateway", index, message));
        } else if !link_local && !addresses.iter().any(|network| holds(network, *gateway)) {
            let message = format!("`{gateway}` is in none of the jail's networks");
            found.push(draft.error_in("network.gateway", index, message));
        }
    }
}

/// Whether `address` is in `network`.
fn holds(network: &Network, address: IpAddr) -> bool {
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => (u128::from(u32::from(ip)) << 96, true),
        IpAddr::V6(ip) => (u128::from(ip), false),
    };
    let ((a, a4), (b, b4)) = (bits(network.address), bits(address));
    let shift = 128 - u32::from(network.prefix);
    a4 == b4 && (shift >= 128 || (a >> shift) == (b >> shift))
}

fn mount_targets(draft: &Draft, found: &mut Vec<Diagnostic>) {
    let Some(Value::Array(mounts)) = draft.settings.get("mount") else { return };
    let mut seen = BTreeSet::new();
    for (index, mount) in mounts.iter().enumerate() {
        let Some(target) = mount["target"].as_str() else { continue };
        if !seen.insert(target) {
            let message = format!("`{target}` is the target of two mounts");
            found.push(draft.error_in("mount", index, message));
        }
    }
}

fn snapshot_labels(draft: &Draft, found: &mut Vec<Diagnostic>) {
    let Some(Value::Array(snapshots)) = draft.settings.get("snapshot") else { return };
    let mut seen = BTreeSet::new();
    for (index, snapshot) in snapshots.iter().enumerate() {
        let label = snapshot["label"].as_str().unwrap_or("auto");
        if !seen.insert(label) {
            let message = format!("two of `snapshot` have the label `{label}`");
            found.push(draft.error_in("snapshot", index, message));
        }
    }
    let nothing_kept = draft.settings.contains_key("path")
        || draft.settings.get("root.storage").is_some_and(|kind| kind == "tmpfs");
    if !seen.is_empty() && nothing_kept {
        let message =
            "stockade keeps nothing that this jail writes, so there is nothing to take a snapshot of";
        found.push(draft.error_in("snapshot", 0, message.to_owned()));
    }
}

fn has(settings: &Settings, key: &str) -> bool {
    settings.contains_key(key)
}

fn is(settings: &Settings, key: &str) -> bool {
    settings.get(key) == Some(&Value::Bool(true))
}

fn no(settings: &Settings, key: &str) -> bool {
    settings.get(key) == Some(&Value::Bool(false))
}

fn text<'s>(settings: &'s Settings, key: &str) -> Option<&'s str> {
    settings.get(key).and_then(Value::as_str)
}

fn number(settings: &Settings, key: &str) -> Option<u64> {
    settings.get(key).and_then(Value::as_u64)
}

fn lists(settings: &Settings, key: &str, word: &str) -> bool {
    settings.get(key).and_then(Value::as_array).is_some_and(|list| list.iter().any(|item| item == word))
}

fn mode(settings: &Settings) -> &str {
    text(settings, "network.mode").unwrap_or("none")
}

fn not_vnet(settings: &Settings) -> bool {
    mode(settings) != "vnet"
}

fn no_network(settings: &Settings) -> bool {
    mode(settings) == "none"
}

fn addresses(settings: &Settings) -> Vec<Network> {
    read(settings, "network.address")
}

/// A key whose normal form these types read; empty when it is absent.
fn read<T: serde::de::DeserializeOwned + Default>(settings: &Settings, key: &str) -> T {
    settings.get(key).and_then(|value| serde_json::from_value(value.clone()).ok()).unwrap_or_default()
}
