//! The whole program in one function: read, resolve, look, plan, and unless only asked for the
//! plan, act. `apply` calls it once, the daemon once per wake-up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::desired::{Desired, Layer, Paths};
use crate::diagnostic::Diagnostic;
use crate::execute::{self, BuildLayer, Host, Outcome, Progress, scheduled};
use crate::jail::JailName;
use crate::journal::{ids, lock, now_ms};
use crate::live::Live;
use crate::plan::{self, Action, ActionKind, Plan};
use crate::probe;
use crate::source::{self, Known};

/// Looks at files that change each time before what they ask for is done.
const TRIES_MAX: usize = 5;

/// How soon a jail is looked at again that somebody else works on.
const BUSY_MS: u64 = 1_000;

/// Editors and git take a file away before they put the new one in its place: a definition that is
/// gone is looked for once more, this much later, before its jail is.
const AWAY: Duration = Duration::from_millis(150);

/// What a caller asks of one pass.
pub struct PassOptions<'a> {
    /// Just these and what they need; empty: all.
    pub only: Vec<JailName>,
    pub no_restart: bool,
    /// Act; without it the plan is only made.
    pub apply: bool,
    pub progress: Progress<'a>,
    /// Told who holds the lock, before a wait for it.
    pub waiting: &'a dyn Fn(&str),
    /// Shown the plan before anything is done.
    pub planned: &'a dyn Fn(&Plan),
    /// Makes what layers are missing. Without it they are left to others, as are jails that others
    /// work on: nothing that may last is waited for.
    pub build: Option<BuildLayer<'a>>,
}

/// What came of it.
pub struct Passed {
    pub diagnostics: Vec<Diagnostic>,
    pub desired: Desired,
    pub live: Live,
    pub plan: Plan,
    /// Jails that failed or were skipped, with the reason.
    pub failures: BTreeMap<JailName, Outcome>,
    /// The plan was carried out.
    pub applied: bool,
}

pub fn pass(paths: &Paths, options: &PassOptions<'_>) -> Result<Passed> {
    planned(paths, options, None, false)
}

/// A pass that does not read again the definitions that are known and have not changed.
pub fn pass_again(paths: &Paths, options: &PassOptions<'_>, known: &mut Known) -> Result<Passed> {
    planned(paths, options, Some(known), false)
}

/// Stops what runs of the chosen jails and starts all of them, in one plan: one that is cut off is
/// made good by the next.
pub fn again(paths: &Paths, options: &PassOptions<'_>) -> Result<Passed> {
    planned(paths, options, None, true)
}

fn planned(
    paths: &Paths,
    options: &PassOptions<'_>,
    known: Option<&mut Known>,
    again: bool,
) -> Result<Passed> {
    let waits_for_layers = options.build.is_none();
    let chosen =
        plan::Options { only: options.only.clone(), no_restart: options.no_restart, again, waits_for_layers };
    carry_out(paths, options, known, &|desired, live| plan::plan(desired, live, &chosen))
}

/// Stops every jail in order, whatever is wanted of it, and holds none down.
pub fn all_down(paths: &Paths, options: &PassOptions<'_>) -> Result<Passed> {
    carry_out(paths, options, None, &plan::all_down)
}

fn carry_out(
    paths: &Paths,
    options: &PassOptions<'_>,
    mut known: Option<&mut Known>,
    planner: &dyn Fn(&Desired, &Live) -> Plan,
) -> Result<Passed> {
    let mut before = Before::default();
    for _ in 0..TRIES_MAX {
        let host = Host::look(source::host(paths))?;
        let apply = options.apply && host.config.broken.is_none();
        let lock = if apply { Some(lock::all(&host.journal.paths, options.waiting)?) } else { None };
        if apply {
            ids::check_pool(&host.journal.paths.state, host.config.ids)?;
            execute::snapshot::settle_all(&host);
            execute::clear_killed(&host).context("clear what killed builds left")?;
        }
        // Read under the lock: what was read before another pass had its turn is of the past.
        let (loaded, live) = look(paths, known.as_deref_mut(), &host)?;
        if loaded.0.host != host.config {
            continue;
        }
        let passed = act(&host, paths, loaded, live, options, apply, planner, &mut before)?;
        let Some(build) = options.build.filter(|_| apply && !passed.applied) else { return Ok(passed) };
        // Without the lock, for a build may take its time and others need not wait; what is wanted
        // after it is read anew.
        drop(lock);
        before.unbuilt.extend(execute::layers_of(&host, &passed.desired, &passed.plan, build));
        ensure!(!execute::interrupted(), "interrupted while layers were built");
    }
    bail!("read the definitions: they change all the time")
}

/// What is known of an earlier round of the same pass.
#[derive(Default)]
struct Before {
    /// Jails whose layers could not be made, with the reason.
    unbuilt: BTreeMap<JailName, String>,
    shown: Vec<Action>,
}

impl Before {
    /// Shows a plan that has more to it than the one that was shown.
    fn show(&mut self, plan: &Plan, options: &PassOptions<'_>) {
        let same = |one: &Action, other: &Action| {
            (&one.name, one.kind, &one.changes) == (&other.name, other.kind, &other.changes)
        };
        let is_known = |action: &Action| self.shown.iter().any(|shown| same(shown, action));
        if self.shown.is_empty() || !plan.actions.iter().all(is_known) {
            (options.planned)(plan);
            self.shown.clone_from(&plan.actions);
        }
    }
}

/// One round of a pass; one that has to be made again once layers are built has applied nothing.
#[allow(clippy::too_many_arguments)] // All that a pass is about, once.
fn act(
    host: &Host,
    paths: &Paths,
    (mut desired, mut diagnostics): (Desired, Vec<Diagnostic>),
    mut live: Live,
    options: &PassOptions<'_>,
    apply: bool,
    planner: &dyn Fn(&Desired, &Live) -> Plan,
    before: &mut Before,
) -> Result<Passed> {
    leave_alone(&mut desired, &before.unbuilt);
    execute::account(&host.journal, &desired, &mut live, apply)?;
    let mut plan = planner(&desired, &live);
    if apply && plan.actions.iter().any(|action| action.kind == ActionKind::Remove) {
        std::thread::sleep(AWAY);
        ((desired, diagnostics), live) = look(paths, None, host)?;
        leave_alone(&mut desired, &before.unbuilt);
        ensure!(desired.host == host.config, "read stockade.toml: it changes just now");
        execute::account(&host.journal, &desired, &mut live, apply)?;
        plan = planner(&desired, &live);
    }
    let mut failures = BTreeMap::new();
    if !apply {
        return Ok(Passed { diagnostics, desired, live, plan, failures, applied: false });
    }
    if options.build.is_none() {
        plan = in_passing(host, &mut desired, &live, plan, planner, &mut before.unbuilt)?;
    }
    before.show(&plan, options);
    if options.build.is_some() && execute::needs_layers(&desired, &live, &plan) {
        return Ok(Passed { diagnostics, desired, live, plan, failures, applied: false });
    }
    execute::clear_unrecorded(&host.journal, &desired, &live);
    execute::clear_dead(host, &desired, &live);
    failures.extend(execute::execute(host, &desired, &plan, options.progress));
    let unbuilt = std::mem::take(&mut before.unbuilt);
    failures.extend(unbuilt.into_iter().map(|(name, why)| (name, Outcome::Failed(why))));
    Ok(Passed { diagnostics, desired, live, plan, failures, applied: true })
}

/// The plan of a pass that waits for nothing that may last: without the jails that others work on,
/// and with only such layers made as take no time.
fn in_passing(
    host: &Host,
    desired: &mut Desired,
    live: &Live,
    mut plan: Plan,
    planner: &dyn Fn(&Desired, &Live) -> Plan,
    unbuilt: &mut BTreeMap<JailName, String>,
) -> Result<Plan> {
    let busy = busy(host, &plan)?;
    if !busy.is_empty() {
        leave_alone(desired, &busy);
        plan = planner(desired, live);
        plan.wake_ms = plan.wake_ms.into_iter().chain([now_ms() + BUSY_MS]).min();
    }
    let build = |host: &Host, _: &str, layer: &Layer| {
        host.layers(std::slice::from_ref(layer), &|_| crate::supervisor::progress()).map(drop)
    };
    unbuilt.extend(execute::layers_of(host, desired, &plan, &build));
    if !unbuilt.is_empty() {
        leave_alone(desired, unbuilt);
        let wake_ms = plan.wake_ms;
        plan = planner(desired, live);
        plan.wake_ms = plan.wake_ms.into_iter().chain(wake_ms).min();
    }
    Ok(plan)
}

/// The jails of a plan that a snapshot or another verb has locked.
fn busy(host: &Host, plan: &Plan) -> Result<BTreeMap<JailName, String>> {
    let mut busy = BTreeMap::new();
    for action in &plan.actions {
        if lock::try_jail(&host.journal.paths, &action.name)?.is_none() {
            busy.insert(action.name.clone(), "another command works on it".to_owned());
        }
    }
    Ok(busy)
}

/// What is wanted and what is, found side by side: neither alone keeps all cores busy.
fn look(paths: &Paths, known: Option<&mut Known>, host: &Host) -> Result<((Desired, Vec<Diagnostic>), Live)> {
    let probe = || probe::probe(&host.journal, &host.config, &host.hierarchies);
    std::thread::scope(|scope| {
        let beside = std::thread::Builder::new().spawn_scoped(scope, probe);
        let loaded = match known {
            Some(known) => source::load_again(paths, known),
            None => source::load(paths),
        };
        // Without a thread it is done afterwards.
        let live = beside.map_or_else(|_| probe(), |thread| thread.join().expect("a panic ends the program"));
        Ok((loaded, live?))
    })
}

/// After a pass: takes the snapshots that are due. No lock but the jail's own is held for it, for
/// a copy may take its time and others need not wait.
pub fn take_due(passed: &Passed, only: &[JailName], progress: Progress<'_>) -> Result<scheduled::Report> {
    let any = passed.desired.jails.values().any(|wanted| !wanted.jail.snapshot.is_empty());
    if !passed.applied || !any {
        return Ok(scheduled::Report::default());
    }
    let host = Host::open(passed.desired.host.clone())?;
    Ok(scheduled::take_due(&host, &passed.desired, only, progress))
}

/// After a pass: which snapshots are due, for those who have them taken elsewhere.
pub fn due(passed: &Passed) -> Result<scheduled::Due> {
    let any = passed.desired.jails.values().any(|wanted| !wanted.jail.snapshot.is_empty());
    if !passed.applied || !any {
        return Ok(scheduled::Due::default());
    }
    let host = Host::open(passed.desired.host.clone())?;
    Ok(scheduled::due(&host, &passed.desired))
}

/// A jail whose layers cannot be made is not taken down for them: it is treated as one whose file
/// has errors.
fn leave_alone(desired: &mut Desired, unbuilt: &BTreeMap<JailName, String>) {
    desired.jails.retain(|name, _| !unbuilt.contains_key(name));
    desired.broken.extend(unbuilt.iter().map(|(name, why)| (name.clone(), why.clone())));
}

impl Passed {
    /// How many jails are up now.
    pub fn up(&self) -> usize {
        let was = |name: &&JailName| self.live.jails.get(*name).is_some_and(|jail| plan::runs(&jail.state));
        let mut up: BTreeSet<&JailName> = self.live.jails.keys().filter(was).collect();
        let changes_it = |action: &&Action| self.applied && action.kind != ActionKind::Update;
        for action in self.plan.actions.iter().filter(changes_it) {
            // Of one that failed nothing is left.
            if action.has_start() && !self.failures.contains_key(&action.name) {
                up.insert(&action.name);
            } else {
                up.remove(&action.name);
            }
        }
        up.len()
    }
}
