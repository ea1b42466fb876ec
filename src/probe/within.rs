//! What is to be seen from within a jail's namespaces alone: its default routes, its end of the
//! link, its names. Threads go in, from one jail to the next, and end there; the caller's own
//! never leave their namespaces.

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{has_link, wants_link};
use crate::cores;
use crate::jail::{JailName, Settings};
use crate::live::{JailState, LiveJail, Process};
use crate::network::{self, Inside};
use crate::sys::{namespace, process};

const HOSTNAME: &str = "host.hostname";
const DOMAINNAME: &str = "host.domainname";
const MTU: &str = "network.mtu";
const MAC: &str = "network.mac";

/// What one jail is looked at for, and what was found.
struct Visit<'a> {
    name: &'a JailName,
    init: Process,
    settings: &'a Settings,
}

#[derive(Default)]
struct Found {
    routes: Option<Vec<std::net::IpAddr>>,
    observed: Settings,
}

/// Fills in what `jails` have inside, for those that run and have keys to be seen there.
pub fn look(jails: &mut BTreeMap<JailName, LiveJail>) -> Result<()> {
    let visits: Vec<Visit<'_>> = jails.iter().filter_map(|(name, jail)| visit(name, jail)).collect();
    if visits.is_empty() {
        return Ok(());
    }
    let enter = || cores::map(&visits, |visit| Some((visit.name.clone(), found(visit)?)));
    let all = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, enter).context("start a thread")?;
        anyhow::Ok(thread.join().expect("a panic ends the program"))
    })?;
    for (name, found) in all.into_iter().flatten() {
        if let Some(jail) = jails.get_mut(&name) {
            jail.default_routes = found.routes;
            jail.observed.extend(found.observed);
        }
    }
    Ok(())
}

fn visit<'a>(name: &'a JailName, jail: &'a LiveJail) -> Option<Visit<'a>> {
    let running = matches!(jail.state, JailState::Up | JailState::Frozen);
    let record = jail.record.as_ref().filter(|_| running)?;
    let settings = &record.settings;
    let wanted = has_link(jail) || has_name(settings);
    wanted.then_some(Visit { name, init: record.init?, settings })
}

fn has_name(settings: &Settings) -> bool {
    settings.contains_key(HOSTNAME) || settings.contains_key(DOMAINNAME)
}

/// Nothing for a jail that ends meanwhile: the next look tells how.
fn found(visit: &Visit<'_>) -> Option<Found> {
    let mut found = Found::default();
    if wants_link(visit.settings) {
        let netns = namespace::open(visit.init.pid, "net").ok()?;
        let at_link = [MAC, MTU].iter().any(|key| visit.settings.contains_key(*key));
        let inside = network::look_inside(netns.as_fd(), at_link).ok()?;
        see_link(&mut found.observed, visit.settings, &inside);
        found.routes = Some(inside.routes);
    }
    if has_name(visit.settings) {
        let uts = namespace::open(visit.init.pid, "uts").ok()?;
        see_names(&mut found.observed, visit.settings, namespace::names_in(uts.as_fd()).ok()?);
    }
    // Checked after the namespaces are open, so that they cannot have been another process's.
    process::alive(visit.init).then_some(found)
}

fn see_link(observed: &mut Settings, settings: &Settings, inside: &Inside) {
    if let Some(wanted) = settings.get(MAC) {
        let same = wanted.as_str().and_then(network::parse_mac) == inside.mac;
        let shown = inside.mac.map(network::show_mac).unwrap_or_default();
        observed.insert(MAC.into(), if same { wanted.clone() } else { shown.into() });
    }
    if settings.contains_key(MTU) {
        observed.insert(MTU.into(), inside.mtu.map_or(Value::Null, Value::from));
    }
}

/// A name that was never set is told by the kernel as `(none)`.
fn see_names(observed: &mut Settings, settings: &Settings, [host, domain]: [String; 2]) {
    for (key, name) in [(HOSTNAME, host), (DOMAINNAME, domain)] {
        if settings.contains_key(key) {
            observed.insert(key.into(), name.into());
        }
    }
}
