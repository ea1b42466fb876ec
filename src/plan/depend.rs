//! What the jails mean to each other: a restart takes running dependants along, what is put down
//! on purpose stops them first, and nothing is started while something that it depends on stays
//! down.

use std::collections::{BTreeMap, BTreeSet};

use super::judge::{Judgement, judge, runs, stop};
use super::order::{self, Depends};
use super::{Action, ActionKind, Options, layers};
use crate::desired::Desired;
use crate::jail::JailName;
use crate::live::{JailState, Live};

type Judgements<'a> = BTreeMap<&'a JailName, Judgement>;

/// The jails that `--only` leaves: those named, and what of their dependencies does not run.
/// `None` for all.
pub fn chosen<'a>(
    depends: &'a Depends<'_>,
    live: &Live,
    options: &'a Options,
) -> Option<BTreeSet<&'a JailName>> {
    if options.only.is_empty() {
        return None;
    }
    let mut chosen: BTreeSet<&JailName> = BTreeSet::new();
    let mut open: Vec<&JailName> = options.only.iter().collect();
    while let Some(name) = open.pop() {
        if chosen.insert(name) {
            open.extend(below(depends, name).iter().filter(|other| !runs(state(live, other))));
        }
    }
    Some(chosen)
}

fn below<'a>(depends: &'a Depends<'_>, name: &JailName) -> &'a [JailName] {
    depends.get(name).map_or(&[], |below| below)
}

fn state<'a>(live: &'a Live, name: &JailName) -> &'a JailState {
    live.jails.get(name).map_or(&JailState::Down, |seen| &seen.state)
}

/// Walks from what depends on nothing to what depends on much, so that each jail sees the final
/// word on those below it.
pub fn settle<'a>(
    mut judgements: Judgements<'a>,
    depends: &'a Depends<'_>,
    desired: &Desired,
    live: &Live,
    options: &Options,
) -> Judgements<'a> {
    let starts = |judgement: &Judgement| judgement.action.as_ref().is_some_and(Action::starts);
    for name in order::start_order(depends) {
        // What runs by a file with errors is left as it is, whatever becomes of the others.
        if desired.broken.contains_key(name) && !judgements.get(name).is_some_and(starts) {
            continue;
        }
        let taken_down = going_down(name, &judgements, depends, live);
        if !taken_down.is_empty() {
            let judgement = judgements.remove(name).unwrap_or_else(|| judge(name, desired, live, options));
            judgements.insert(name, take_along(judgement, name, &taken_down, live));
        }
        if let Some(below) = kept_down(name, &judgements, depends) {
            follow_down(name, below, &mut judgements, desired, live, options);
        }
        let missing = below(depends, name).iter().find(|other| !up_after(other, &judgements, live));
        let missing = missing.map(|missing| format!("depends on {missing}, which is down"));
        if judgements.get(name).is_some_and(starts)
            && let Some(judgement) = judgements.remove(name)
        {
            let judgement = layers::weigh(judgement, name, desired, live, options);
            let judgement = match missing {
                Some(reason) => judgement.hold_back(name, reason, live),
                None => judgement,
            };
            judgements.insert(name, judgement);
        }
    }
    judgements
}

/// The dependencies of `name` that run now and will be restarted.
fn going_down<'a>(
    name: &JailName,
    judgements: &Judgements,
    depends: &'a Depends<'_>,
    live: &Live,
) -> Vec<&'a JailName> {
    if !matches!(state(live, name), JailState::Up | JailState::Frozen) {
        return Vec::new();
    }
    // One that ended by itself is not among them: its dependants have lived through that already.
    let restarts = |other: &&JailName| {
        let action = judgements.get(*other).and_then(|judgement| judgement.action.as_ref());
        runs(state(live, other)) && action.is_some_and(|action| action.has_stop() && action.has_start())
    };
    below(depends, name).iter().filter(restarts).collect()
}

fn take_along(mut judgement: Judgement, name: &JailName, below: &[&JailName], live: &Live) -> Judgement {
    if judgement.refused.is_some() || !matches!(state(live, name), JailState::Up | JailState::Frozen) {
        return judgement;
    }
    let names: Vec<&str> = below.iter().map(|name| name.as_str()).collect();
    let verb = if names.len() == 1 { "restarts" } else { "restart" };
    let reason = Some(format!("depend {} {verb}", names.join(", ")));
    let restart = |action: Action| Action { kind: ActionKind::Restart, reason, ..action };
    judgement.action = match judgement.action.take() {
        None => Some(restart(Action::new(name, ActionKind::Restart))),
        Some(action) if action.kind == ActionKind::Update => Some(restart(action)),
        other => other,
    };
    judgement
}

/// A dependency of `name` that is put down on purpose.
fn kept_down<'a>(name: &JailName, judgements: &Judgements, depends: &'a Depends<'_>) -> Option<&'a JailName> {
    let is_kept = |other: &&JailName| judgements.get(*other).is_some_and(|judgement| judgement.kept_down);
    below(depends, name).iter().find(is_kept)
}

/// As jail(8) does: what runs on a jail that is taken down is stopped before it.
fn follow_down<'a>(
    name: &'a JailName,
    below: &JailName,
    judgements: &mut Judgements<'a>,
    desired: &Desired,
    live: &Live,
    options: &Options,
) {
    let seen = live.jails.get(name).filter(|seen| runs(&seen.state));
    if seen.is_none() && !judgements.contains_key(name) {
        return;
    }
    let judgement = judgements.remove(name).unwrap_or_else(|| judge(name, desired, live, options));
    let follows = judgement.refused.is_none();
    let judgement = match seen {
        // It goes down for a reason of its own already.
        Some(seen) if follows && !judgement.kept_down => {
            let reason = format!("depends on {below}, which is down");
            let action = Action { reason: Some(reason), ..stop(name, seen) };
            Judgement { action: Some(action), ..Judgement::default() }
        }
        _ => judgement,
    };
    judgements.insert(name, Judgement { kept_down: follows, ..judgement });
}

/// Whether `name` runs once the plan is carried out.
fn up_after(name: &JailName, judgements: &Judgements, live: &Live) -> bool {
    match judgements.get(name).and_then(|judgement| judgement.action.as_ref()) {
        Some(action) => action.has_start(),
        None => runs(state(live, name)),
    }
}
