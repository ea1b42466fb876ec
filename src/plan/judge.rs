//! One jail looked at alone: what should happen to it, were there no other. What follows from
//! the jails it depends on is `depend`'s.

use std::fmt;

use super::{Action, ActionKind, Change, Options, Postponed, before, compare, volume};
use crate::desired::{Desired, DesiredJail, HostConfig};
use crate::jail::{JailName, RestartPolicy};
use crate::keys::Cost;
use crate::live::{Exit, JailState, Live, LiveJail, Record};

/// What was found for one jail.
#[derive(Clone, Debug, Default)]
pub struct Judgement {
    pub action: Option<Action>,
    pub refused: Option<String>,
    pub note: Option<String>,
    pub wake_ms: Option<u64>,
    pub postponed: Option<Postponed>,
    /// Somebody wants it down, or something that it depends on: what depends on it stops with it.
    /// Not so for a jail that failed: its dependants have lived through that already.
    pub kept_down: bool,
    /// The template that has to be built before the jail starts.
    pub unbuilt: Option<String>,
}

/// What is wanted of a jail now, from its definition, its holder and its history.
enum Wish {
    Up,
    /// After its back-off: milliseconds since the epoch.
    Later(u64),
    Down(Reason),
}

#[derive(Clone, Copy, PartialEq)]
enum Reason {
    Disabled,
    Held,
    CrashLoop,
    Ended,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::Disabled => "disabled",
            Reason::Held => "by hand",
            Reason::CrashLoop => "crash-loop",
            Reason::Ended => "ended by itself",
        })
    }
}

pub fn judge(name: &JailName, desired: &Desired, live: &Live, options: &Options) -> Judgement {
    let unseen = LiveJail::default();
    let seen = live.jails.get(name).unwrap_or(&unseen);
    if let Some(reason) = &seen.unreadable {
        return refuse(reason.clone());
    }
    if seen.busy {
        return refuse("another command works on it".to_owned());
    }
    if let Some(reason) = desired.broken.get(name) {
        return judge_broken((name, reason), (seen, live), &desired.host, options);
    }
    let thrown_away = seen.record.as_ref().is_some_and(Record::is_throw_away);
    match desired.jails.get(name) {
        Some(_) if thrown_away && seen.state != JailState::Down => {
            refuse("a jail of `stockade run` has this name".to_owned())
        }
        Some(wanted) => judge_wanted((name, wanted), (seen, live), &desired.host, options),
        None if desired.complete && (seen.record.is_some() || runs(&seen.state)) && !thrown_away => {
            remove(name)
        }
        None => Judgement::default(),
    }
}

fn refuse(reason: String) -> Judgement {
    Judgement { refused: Some(reason), ..Judgement::default() }
}

fn remove(name: &JailName) -> Judgement {
    act(Action::new(name, ActionKind::Remove))
}

fn act(action: Action) -> Judgement {
    Judgement { action: Some(action), ..Judgement::default() }
}

/// What runs goes on, and is left as it is; what was stopped by hand stops by the definition that it
/// was started with; and by that one, the last that was good, what has ended starts again.
fn judge_broken(
    (name, why): (&JailName, &str),
    (seen, live): (&LiveJail, &Live),
    host: &HostConfig,
    options: &Options,
) -> Judgement {
    let thrown_away = seen.record.as_ref().is_some_and(Record::is_throw_away);
    if seen.held && !thrown_away && seen.state != JailState::Down {
        return keep_down(name, seen, Reason::Held);
    }
    let Some(wanted) = before::last_good(seen, live) else {
        return Judgement { kept_down: seen.held && !thrown_away, ..refuse(why.to_owned()) };
    };
    if let Some(reason) = unenforceable(&wanted, live) {
        return refuse(reason);
    }
    before::by_last_good(by_wish((name, &wanted), (seen, live), host, Vec::new(), options), why)
}

fn judge_wanted(
    (name, wanted): (&JailName, &DesiredJail),
    (seen, live): (&LiveJail, &Live),
    host: &HostConfig,
    options: &Options,
) -> Judgement {
    if wanted.jail.enabled
        && !seen.held
        && let Some(reason) = unenforceable(wanted, live)
    {
        return refuse(reason);
    }
    if before::waits_for_layers(wanted, seen, live, options) {
        let judgement = by_wish((name, wanted), (seen, live), host, Vec::new(), options);
        return before::by_old_layers(judgement, wanted, live);
    }
    let mut changes: Vec<Change> =
        seen.record.iter().flat_map(|record| compare::changes(record, wanted)).collect();
    volume::weigh(&mut changes, wanted, seen, live);
    let judgement = by_wish((name, wanted), (seen, live), host, changes, options);
    match &seen.record {
        Some(record) if runs(&seen.state) && compare::gave_up(record, wanted) => {
            let changes = compare::differences(record, wanted);
            let reason = "it did not come up with this, and runs as before".to_owned();
            let late = Postponed { name: name.clone(), changes, drift: Vec::new(), reason };
            Judgement { postponed: Some(late), ..judgement }
        }
        _ => judgement,
    }
}

fn by_wish(
    (name, wanted): (&JailName, &DesiredJail),
    (seen, live): (&LiveJail, &Live),
    host: &HostConfig,
    changes: Vec<Change>,
    options: &Options,
) -> Judgement {
    match wish(wanted, seen, !changes.is_empty(), live.now_ms) {
        Wish::Up => bring_up((name, wanted), (seen, live), host, changes, options),
        Wish::Later(at_ms) => wait(name, seen, at_ms, live.now_ms),
        Wish::Down(reason) => keep_down(name, seen, reason),
    }
}

/// The first key that the host cannot enforce: such a jail is neither started nor touched.
pub fn unenforceable(wanted: &DesiredJail, live: &Live) -> Option<String> {
    let mut refused = live.refused.iter();
    refused
        .find(|(key, _)| wanted.settings.contains_key(*key))
        .map(|(key, reason)| format!("{key}: {reason}"))
        .or_else(|| volume::refusal(wanted, live))
}

/// Runs, under a keeper or without one.
pub fn runs(state: &JailState) -> bool {
    matches!(state, JailState::Up | JailState::Frozen | JailState::Orphaned)
}

fn wish(wanted: &DesiredJail, seen: &LiveJail, changed: bool, now_ms: u64) -> Wish {
    if !wanted.jail.enabled {
        return Wish::Down(Reason::Disabled);
    }
    if seen.held {
        return Wish::Down(Reason::Held);
    }
    // A changed definition is tried anew whatever became of the old one.
    if changed || runs(&seen.state) {
        return Wish::Up;
    }
    let exit = last_exit(seen);
    if exit.is_some_and(|exit| exit.reboot) {
        return Wish::Up;
    }
    if seen.restarts.crash_loop {
        return Wish::Down(Reason::CrashLoop);
    }
    if exit.is_some_and(|exit| !applies(wanted.jail.restart.policy, exit)) {
        return Wish::Down(Reason::Ended);
    }
    seen.restarts.wait_ms(now_ms).map_or(Wish::Up, |wait_ms| Wish::Later(now_ms + wait_ms))
}

fn last_exit(seen: &LiveJail) -> Option<&Exit> {
    match &seen.state {
        JailState::Exited(exit) => Some(exit),
        _ => seen.exit.as_ref(),
    }
}

/// Whether the policy restarts a jail that ended like this.
pub fn applies(policy: RestartPolicy, exit: &Exit) -> bool {
    match policy {
        RestartPolicy::No => exit.reboot,
        RestartPolicy::OnFailure => exit.reboot || exit.failed(),
        RestartPolicy::Always => true,
    }
}

fn wait(name: &JailName, seen: &LiveJail, at_ms: u64, now_ms: u64) -> Judgement {
    let seconds = at_ms.saturating_sub(now_ms).div_ceil(1_000);
    // What was cut off is cleared away at once; a jail that ended keeps its place until then.
    let cut_off = seen.state == JailState::Partial;
    Judgement {
        action: cut_off.then(|| stop(name, seen)),
        note: Some(format!("starts again in {seconds} s")),
        wake_ms: Some(at_ms),
        ..Judgement::default()
    }
}

fn keep_down(name: &JailName, seen: &LiveJail, reason: Reason) -> Judgement {
    let note = match reason {
        Reason::Held => Some(format!("stopped by hand: `stockade start {name}` starts it")),
        Reason::CrashLoop => Some(format!("crash-loop: change it, or `stockade start {name}`")),
        // Asked for in the file: nobody needs to be told.
        Reason::Disabled | Reason::Ended => None,
    };
    let stop = || Action { reason: Some(reason.to_string()), ..stop(name, seen) };
    let action = (seen.state != JailState::Down).then(stop);
    let kept_down = matches!(reason, Reason::Disabled | Reason::Held);
    Judgement { action, note, kept_down, ..Judgement::default() }
}

fn bring_up(
    (name, wanted): (&JailName, &DesiredJail),
    (seen, live): (&LiveJail, &Live),
    host: &HostConfig,
    changes: Vec<Change>,
    options: &Options,
) -> Judgement {
    let rebuild = worst(&changes) == Cost::Rebuild;
    if seen.state == JailState::Down && !rebuild {
        let reason = volume::moves(wanted, seen, live);
        return act(Action { reason, ..Action::new(name, ActionKind::Create) });
    }
    let mut drift = history(seen);
    if let (JailState::Up | JailState::Frozen, Some(record)) = (&seen.state, &seen.record) {
        drift.extend(compare::drift(seen, record, (wanted, host), &changes));
    }
    let steady = matches!(seen.state, JailState::Up | JailState::Frozen);
    let asked = options.again && runs(&seen.state) && options.only.contains(name);
    let least = if asked { Cost::Restart } else { Cost::None };
    let Some(kind) = kind_of(least.max(worst(&changes)).max(worst(&drift)), steady, &changes, &drift) else {
        return Judgement::default();
    };
    let discards = kind == ActionKind::Rebuild && seen.has_data;
    let reason = match kind {
        ActionKind::Rebuild => discards.then(|| "its own files are thrown away".to_owned()),
        ActionKind::Restart => volume::moves(wanted, seen, live),
        _ => None,
    };
    let judgement = act(Action { changes, drift, reason, ..Action::new(name, kind) });
    let interrupts = !matches!(kind, ActionKind::Update) && runs(&seen.state);
    if options.no_restart && interrupts { judgement.reduce("--no-restart") } else { judgement }
}

fn worst(changes: &[Change]) -> Cost {
    changes.iter().map(|change| change.cost).max().unwrap_or(Cost::None)
}

fn kind_of(cost: Cost, steady: bool, changes: &[Change], drift: &[Change]) -> Option<ActionKind> {
    match cost {
        Cost::Rebuild => Some(ActionKind::Rebuild),
        Cost::Restart => Some(ActionKind::Restart),
        _ if !steady => Some(ActionKind::Restart),
        _ if changes.is_empty() && drift.is_empty() => None,
        _ => Some(ActionKind::Update),
    }
}

/// Stops the jail, or finishes its stop, and no more.
pub fn stop(name: &JailName, seen: &LiveJail) -> Action {
    let drift = history(seen).into_iter().map(|change| Change { cost: Cost::None, ..change }).collect();
    Action { drift, ..Action::new(name, ActionKind::Stop) }
}

/// What became of the jail as a whole, as one line of drift.
fn history(seen: &LiveJail) -> Vec<Change> {
    let stopping = seen.record.as_ref().is_some_and(|record| record.stopping);
    let (key, from, to) = match &seen.state {
        JailState::Down => return Vec::new(),
        JailState::Up | JailState::Frozen if seen.record.is_some() => return Vec::new(),
        JailState::Up | JailState::Frozen => ("record", "kept", "gone".to_owned()),
        JailState::Orphaned => ("keeper", "running", "gone".to_owned()),
        JailState::Partial if stopping => ("state", "stopping", "cut off".to_owned()),
        JailState::Partial => ("state", "starting", "cut off".to_owned()),
        JailState::Exited(exit) => ("state", "running", exit.to_string()),
    };
    vec![Change { key: key.to_owned(), from: Some(from.to_owned()), to: Some(to), cost: Cost::Restart }]
}

impl Judgement {
    /// Leaves out what would take a running jail down, and lists it as postponed.
    pub fn reduce(mut self, reason: &str) -> Self {
        let Some(mut action) = self.action.take() else {
            return self;
        };
        let (changes, late_changes) = split(action.changes);
        let (drift, late_drift) = split(action.drift);
        self.postponed = Some(Postponed {
            name: action.name.clone(),
            changes: late_changes,
            drift: late_drift,
            reason: reason.to_owned(),
        });
        if !changes.is_empty() || !drift.is_empty() {
            action = Action { kind: ActionKind::Update, changes, drift, reason: None, ..action };
            self.action = Some(action);
        }
        self
    }

    /// Keeps `name` from starting: what runs goes on running, what was cut off or has ended is cleared
    /// away.
    pub fn hold_back(self, name: &JailName, reason: String, live: &Live) -> Self {
        if !self.action.as_ref().is_some_and(Action::starts) {
            return self;
        }
        let Some(seen) = live.jails.get(name).filter(|seen| seen.state != JailState::Down) else {
            return Self { action: None, note: Some(reason), ..self };
        };
        if runs(&seen.state) {
            return self.reduce(&reason);
        }
        let action = Action { reason: Some(reason.clone()), ..stop(name, seen) };
        Self { action: Some(action), note: Some(reason), ..self }
    }
}

fn split(changes: Vec<Change>) -> (Vec<Change>, Vec<Change>) {
    changes.into_iter().partition(|change| change.cost <= Cost::Reload)
}
