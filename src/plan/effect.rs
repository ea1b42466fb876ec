//! The model of what carrying out a plan does, and in which order one after the other.
//!
//! It is no executor: it knows what each half of an action leaves behind when it ends well, so
//! that tests can plan again from there, also after a cut in the middle.

use std::collections::{BTreeMap, BTreeSet};

use super::compare::ROUTES;
use super::{Action, ActionKind, Plan};
use crate::desired::{Desired, DesiredJail};
use crate::jail::{JailName, Settings};
use crate::live::{FileStamp, JailState, Live, LiveJail, RECORD_SCHEMA, Record};
use crate::root::files::digest;
use crate::step::Phase;

/// The two halves of an action, see [`Plan`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    Stop,
    Start,
}

impl Plan {
    /// All halves in one order that keeps every wait, as a single worker would take them.
    pub fn halves(&self) -> Vec<(&Action, Half)> {
        let stops = self.actions.iter().filter(|action| action.has_stop()).collect();
        let starts = self.actions.iter().filter(|action| action.has_start()).collect();
        let stops = in_turn(stops, |action| &action.stop_after).into_iter().map(|a| (a, Half::Stop));
        let starts = in_turn(starts, |action| &action.start_after).into_iter().map(|a| (a, Half::Start));
        stops.chain(starts).collect()
    }
}

fn in_turn(mut left: Vec<&Action>, after: fn(&Action) -> &Vec<JailName>) -> Vec<&Action> {
    let mut done: BTreeSet<&JailName> = BTreeSet::new();
    let mut turn = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let (ready, rest): (Vec<&Action>, Vec<&Action>) =
            left.iter().partition(|action| after(action).iter().all(|name| done.contains(name)));
        // Waits form no circle, so each round takes some; if one did, better out of turn than
        // for ever.
        let (ready, rest) = if ready.is_empty() { (rest, Vec::new()) } else { (ready, rest) };
        done.extend(ready.iter().map(|action| &action.name));
        turn.extend(ready);
        left = rest;
    }
    turn
}

/// What is live when all of `plan` has ended well.
pub fn simulate(plan: &Plan, live: &Live, desired: &Desired) -> Live {
    simulate_halves(&plan.halves(), live, desired)
}

/// What is live when just these halves have ended well.
pub(crate) fn simulate_halves(halves: &[(&Action, Half)], live: &Live, desired: &Desired) -> Live {
    let mut live = live.clone();
    for (action, half) in halves {
        match (half, action.kind, desired.jails.get(&action.name)) {
            (Half::Stop, ActionKind::Remove, _) => remove(&mut live, &action.name),
            (Half::Stop, kind, wanted) => {
                stop(&mut live, &action.name);
                if kind == ActionKind::Stop && wanted.is_some_and(|wanted| !wanted.jail.enabled) {
                    disable(&mut live, &action.name);
                }
            }
            (Half::Start, ActionKind::Update, Some(wanted)) => update(&mut live, action, wanted),
            (Half::Start, ..) if action.as_before => start_again(&mut live, &action.name),
            (Half::Start, _, Some(wanted)) => start(&mut live, &action.name, wanted),
            (Half::Start, _, None) => {}
        }
    }
    live
}

fn remove(live: &mut Live, name: &JailName) {
    let kept = live.jails.remove(name).is_some_and(|seen| seen.has_data);
    if kept {
        live.jails.insert(name.clone(), LiveJail { has_data: true, ..LiveJail::default() });
    }
}

fn stop(live: &mut Live, name: &JailName) {
    let seen = live.jails.entry(name.clone()).or_default();
    if let JailState::Exited(exit) = std::mem::take(&mut seen.state) {
        seen.exit = Some(exit);
    }
    seen.observed.clear();
    seen.default_routes = None;
    seen.changed_files.clear();
    if let Some(record) = &mut seen.record {
        (record.stopping, record.phase) = (true, Phase::Release);
    }
}

fn disable(live: &mut Live, name: &JailName) {
    if let Some(record) = live.jails.get_mut(name).and_then(|seen| seen.record.as_mut()) {
        record.settings.insert("enabled".to_owned(), false.into());
    }
}

fn start(live: &mut Live, name: &JailName, wanted: &DesiredJail) {
    live.layers.extend(wanted.root.layers.iter().map(|layer| layer.id.clone()));
    let record = record(name, wanted, live.now_ms);
    let seen = live.jails.entry(name.clone()).or_default();
    let (held, restarts) = (seen.held, std::mem::take(&mut seen.restarts));
    let (record, state) = (Some(record), JailState::Up);
    *seen = LiveJail { state, record, held, restarts, has_data: true, ..LiveJail::default() };
}

fn start_again(live: &mut Live, name: &JailName) {
    let Some(LiveJail { record: Some(record), held, restarts, .. }) = live.jails.remove(name) else { return };
    let record = Record { phase: Phase::Up, stopping: false, started_ms: live.now_ms, ..record };
    let (state, record) = (JailState::Up, Some(record));
    let seen = LiveJail { state, record, held, restarts, has_data: true, ..LiveJail::default() };
    live.jails.insert(name.clone(), seen);
}

fn record(name: &JailName, wanted: &DesiredJail, now_ms: u64) -> Record {
    Record {
        schema: RECORD_SCHEMA,
        boot_id: String::new(),
        name: name.clone(),
        instance: String::new(),
        file: wanted.file.clone(),
        phase: Phase::Up,
        stopping: false,
        settings: wanted.settings.clone(),
        layers: wanted.root.layers.iter().map(|layer| layer.id.clone()).collect(),
        host_usr: wanted.root.host_usr,
        etc: wanted.root.etc.clone(),
        files: wanted
            .root
            .files
            .iter()
            .map(|file| (file.target.clone(), FileStamp { digest: digest(file), ..FileStamp::default() }))
            .collect(),
        keeper: None,
        init: None,
        first_id: 0,
        cgroup_base: String::new(),
        started_ms: now_ms,
        hooks_done: BTreeSet::new(),
        instead_of: None,
    }
}

/// Only what the action names takes its new value: the rest was postponed.
fn update(live: &mut Live, action: &Action, wanted: &DesiredJail) {
    let Some(seen) = live.jails.get_mut(&action.name) else {
        return;
    };
    let Some(record) = &mut seen.record else {
        return;
    };
    let files: BTreeMap<_, _> =
        wanted.root.files.iter().map(|file| (file.target.display().to_string(), file)).collect();
    for change in action.changes.iter().chain(&action.drift) {
        if let Some(file) = files.get(&change.key) {
            let stamp = FileStamp { digest: digest(file), ..FileStamp::default() };
            record.files.insert(file.target.clone(), stamp);
            seen.changed_files.remove(&file.target);
            continue;
        }
        if change.key == ROUTES {
            seen.default_routes = None;
        }
        set(&mut record.settings, &change.key, wanted);
        if seen.observed.contains_key(&change.key) {
            set(&mut seen.observed, &change.key, wanted);
        }
    }
}

fn set(settings: &mut Settings, key: &str, wanted: &DesiredJail) {
    match wanted.settings.get(key) {
        Some(value) => settings.insert(key.to_owned(), value.clone()),
        None => settings.remove(key),
    };
}
