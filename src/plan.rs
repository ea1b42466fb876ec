//! Desired against live: the plan. Pure and total; the same code serves `plan`, `apply` and the
//! daemon, and nothing is left to decide while acting but to skip what depends on a failure.
//!
//! `judge` looks at one jail alone, with the differences that `compare` finds; `depend` then lets
//! the jails see each other; `order` says what waits for what. `effect` is the model of what the
//! actions do, with which the tests show that a plan carried out leaves nothing to plan.

use std::collections::{BTreeMap, BTreeSet};

use crate::desired::{Desired, DesiredJail};
use crate::jail::JailName;
use crate::keys::Cost;
use crate::live::{JailState, Live, Record};

mod before;
mod compare;
mod depend;
mod effect;
mod judge;
mod layers;
mod order;
#[cfg(test)]
mod properties;
mod text;
mod volume;

pub use before::{restart_of, started};
pub use compare::{attempt, gave_up};
pub use effect::{Half, simulate};
pub use judge::{applies, runs, unenforceable};
pub use layers::{build_failure, is_being_built, unbuilt};

/// What the caller narrows the plan to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// Just these jails, what they need to start, and what a restart of them takes along.
    /// Empty: all.
    pub only: Vec<JailName>,
    /// Leave out what would interrupt a running jail; it is listed in [`Plan::postponed`].
    pub no_restart: bool,
    /// Those of `only` that run are stopped and started, whatever else is to be done.
    pub again: bool,
    /// Layers are built beside the passes: no jail starts that would have to wait for one.
    pub waits_for_layers: bool,
}

/// Everything that will be done, in the order of names.
///
/// An action has up to two halves ([`Action::has_stop`], [`Action::has_start`]). To carry a plan
/// out:
///
/// 1. Run all stop halves. One may begin when the stop halves of all jails in its `stop_after`
///    have ended well; those without such a wait run side by side.
/// 2. When every stop half has ended, run all start halves, `Update` among them. One may begin
///    when the start halves of all jails in its `start_after` have ended well. Starts wait for
///    all stops, since an address or a port may pass from one jail to another.
/// 3. A half that failed takes along only those that wait for it: they are skipped, by name, and
///    so is the start half of a jail whose own stop half failed or was skipped.
///
/// Both waits form no circle, whatever the definitions say. After an `Update`, the record takes
/// over the new value (or file digest) of exactly the keys in `changes` and `drift`, so that what
/// was postponed shows again next time; after a start the record is all new; after a `Remove`
/// there is none; after a `Stop` it stays, with its last phase begun `Release`, and takes over that
/// the jail is disabled. A start as before ([`Action::as_before`]) that fails leaves the record as
/// it was.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub actions: Vec<Action>,
    /// Jails that must not be touched, with the reason (`config-error`, refused by this host).
    pub refused: Vec<(JailName, String)>,
    /// Changes that wait for a later plan, since they would interrupt a running jail.
    pub postponed: Vec<Postponed>,
    /// Jails that are wanted and yet not started, with the reason.
    pub notes: Vec<(JailName, String)>,
    /// When the next jail's back-off ends, milliseconds since the epoch: plan again then.
    pub wake_ms: Option<u64>,
    /// Templates with layers to be built before the jails that start on them, or that wait for it.
    pub builds: BTreeSet<String>,
}

/// What happens to one jail.
#[derive(Clone, Debug, PartialEq)]
pub struct Action {
    pub name: JailName,
    pub kind: ActionKind,
    /// What the definition changed.
    pub changes: Vec<Change>,
    /// What was changed outside stockade: `from` as it was set, `to` as it was found.
    pub drift: Vec<Change>,
    /// Why, in a phrase, where no change says it.
    pub reason: Option<String>,
    /// It starts by its last start's keys and layers, not by what is wanted.
    pub as_before: bool,
    /// Jails whose start half must have ended well before this one's begins.
    pub start_after: Vec<JailName>,
    /// Jails whose stop half must have ended well before this one's begins.
    pub stop_after: Vec<JailName>,
}

/// Changes of one jail that are left for later.
#[derive(Clone, Debug, PartialEq)]
pub struct Postponed {
    pub name: JailName,
    pub changes: Vec<Change>,
    pub drift: Vec<Change>,
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActionKind {
    /// It has never been, or is down and should be up.
    Create,
    /// Live changes only.
    Update,
    /// Stop, or finish a stop, and start.
    Restart,
    /// Stop, throw its root away, start.
    Rebuild,
    /// It should be down: stop, or finish a stop.
    Stop,
    /// The definition is gone: stop, keep the data.
    Remove,
}

/// One key's change.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The dotted key, or the path of a rendered file, which begins with a slash.
    pub key: String,
    /// As a person writes it, `512M`; absent when the key was. Files show their digest's head.
    pub from: Option<String>,
    pub to: Option<String>,
    pub cost: Cost,
}

impl Plan {
    /// Nothing to do; exit status 4 of `plan` is for the others.
    pub fn is_empty(&self) -> bool {
        self.actions.is_empty()
    }
}

impl Action {
    pub(crate) fn new(name: &JailName, kind: ActionKind) -> Self {
        let (changes, drift) = (Vec::new(), Vec::new());
        let (start_after, stop_after) = (Vec::new(), Vec::new());
        let (reason, as_before) = (None, false);
        Self { name: name.clone(), kind, changes, drift, reason, as_before, start_after, stop_after }
    }

    /// Something of the jail is taken down first.
    pub fn has_stop(&self) -> bool {
        !matches!(self.kind, ActionKind::Create | ActionKind::Update)
    }

    /// Something is started or changed afterwards.
    pub fn has_start(&self) -> bool {
        !matches!(self.kind, ActionKind::Stop | ActionKind::Remove)
    }

    /// The jail comes up anew, so what it depends on must be up before.
    pub(crate) fn starts(&self) -> bool {
        self.has_start() && self.kind != ActionKind::Update
    }
}

/// Whether the definition differs from what the record was started with.
pub fn changed(record: &Record, wanted: &DesiredJail) -> bool {
    !compare::changes(record, wanted).is_empty()
}

/// Every jail that runs is stopped, in order, whatever its definition says and with nothing held:
/// for the host's shutdown.
pub fn all_down(desired: &Desired, live: &Live) -> Plan {
    let stops = live.jails.iter().filter(|(_, seen)| seen.state != JailState::Down);
    let mut plan =
        Plan { actions: stops.map(|(name, seen)| judge::stop(name, seen)).collect(), ..Plan::default() };
    order::connect(&mut plan.actions, &order::depends(desired, live), desired, live);
    plan
}

/// Compares what is desired with what is.
pub fn plan(desired: &Desired, live: &Live, options: &Options) -> Plan {
    let names: BTreeSet<&JailName> =
        desired.jails.keys().chain(desired.broken.keys()).chain(live.jails.keys()).collect();
    let depends = order::depends(desired, live);
    let chosen = depend::chosen(&depends, live, options);
    let judgements: BTreeMap<&JailName, judge::Judgement> = names
        .into_iter()
        .filter(|name| chosen.as_ref().is_none_or(|chosen| chosen.contains(name)))
        .map(|name| (name, judge::judge(name, desired, live, options)))
        .collect();
    let judgements = depend::settle(judgements, &depends, desired, live, options);
    let mut plan = collect(judgements);
    order::connect(&mut plan.actions, &depends, desired, live);
    plan
}

fn collect(judgements: BTreeMap<&JailName, judge::Judgement>) -> Plan {
    let mut plan = Plan::default();
    for (name, judgement) in judgements {
        plan.actions.extend(judgement.action);
        plan.postponed.extend(judgement.postponed);
        plan.refused.extend(judgement.refused.map(|reason| (name.clone(), reason)));
        plan.notes.extend(judgement.note.map(|note| (name.clone(), note)));
        plan.wake_ms = plan.wake_ms.into_iter().chain(judgement.wake_ms).min();
        plan.builds.extend(judgement.unbuilt);
    }
    plan
}
