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
use crate::root;
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
    planner: Planner<'_>,
) -> Result<Passed> {
    let mut rounds = Rounds { paths, options, planner, unbuilt: BTreeMap::new(), shown: Vec::new() };
    for _ in 0..TRIES_MAX {
        let host = Host::look(source::host(paths))?;
        let apply = options.apply && host.config.broken.is_none();
        let lock = if apply { Some(lock::all(&host.journal.paths, options.waiting)?) } else { None };
        if apply {
            settle(&host)?;
        }
        // Read under the lock: what was read before another pass had its turn is of the past.
        let found = look(paths, known.as_deref_mut(), &host)?;
        if found.0.0.host != host.config {
            continue;
        }
        let passed = rounds.one(&host, found, apply)?;
        let Some(build) = options.build.filter(|_| apply && !passed.applied) else { return Ok(passed) };
        // Without the lock, for a build may take its time and others need not wait; what is wanted
        // after it is read anew.
        drop(lock);
        rounds.unbuilt.extend(execute::layers_of(&host, &passed.desired, &passed.plan, build));
        ensure!(!crate::interrupt::asked(), "interrupted while layers were built");
    }
    bail!("read the definitions: they change all the time")
}

/// Finishes or undoes what others were cut off over.
fn settle(host: &Host) -> Result<()> {
    ids::check_pool(&host.journal.paths.state, host.config.ids)?;
    execute::snapshot::settle_all(host);
    root::layers::remove_half_built(&host.journal.paths.state).context("clear what killed builds left")
}

/// Compares what is wanted with what is.
type Planner<'p> = &'p dyn Fn(&Desired, &Live) -> Plan;

/// One pass: more than one round where layers have to be built in between.
struct Rounds<'r> {
    paths: &'r Paths,
    options: &'r PassOptions<'r>,
    planner: Planner<'r>,
    /// Jails whose layers could not be made, with the reason.
    unbuilt: BTreeMap<JailName, String>,
    shown: Vec<Action>,
}

impl Rounds<'_> {
    /// One that has to be made again once layers are built has applied nothing.
    fn one(&mut self, host: &Host, found: Found, apply: bool) -> Result<Passed> {
        let mut passed = self.compare(host, found, apply)?;
        if !apply {
            return Ok(passed);
        }
        if passed.plan.actions.iter().any(|action| action.kind == ActionKind::Remove) {
            std::thread::sleep(AWAY);
            let found = look(self.paths, None, host)?;
            ensure!(found.0.0.host == host.config, "read stockade.toml: it changes just now");
            passed = self.compare(host, found, apply)?;
        }
        execute::clear_leftovers(host, &passed.desired, &passed.live);
        if self.options.build.is_none() {
            self.leave_what_lasts(host, &mut passed)?;
        }
        self.show(&passed.plan);
        if self.options.build.is_some() && execute::needs_layers(&passed.desired, &passed.live, &passed.plan)
        {
            return Ok(passed);
        }
        passed.failures = execute::execute(host, &passed.desired, &passed.plan, self.options.progress);
        let unbuilt = std::mem::take(&mut self.unbuilt).into_iter();
        passed.failures.extend(unbuilt.map(|(name, why)| (name, Outcome::Failed(why))));
        passed.applied = true;
        Ok(passed)
    }

    fn compare(
        &self,
        host: &Host,
        ((mut desired, diagnostics), mut live): Found,
        apply: bool,
    ) -> Result<Passed> {
        leave_alone(&mut desired, &self.unbuilt);
        execute::account(&host.journal, &desired, &mut live, apply)?;
        let plan = (self.planner)(&desired, &live);
        Ok(Passed { diagnostics, desired, live, plan, failures: BTreeMap::new(), applied: false })
    }

    /// Takes out of the plan what may last: the jails that others work on, and those whose layers
    /// are not there and take time to make.
    fn leave_what_lasts(&mut self, host: &Host, passed: &mut Passed) -> Result<()> {
        let busy = busy(host, &passed.plan)?;
        if !busy.is_empty() {
            for name in busy {
                passed.live.jails.entry(name).or_default().busy = true;
            }
            self.plan_again(passed);
            passed.plan.wake_ms = passed.plan.wake_ms.into_iter().chain([now_ms() + BUSY_MS]).min();
        }
        let build = |host: &Host, _: &str, layer: &Layer| {
            host.layers(std::slice::from_ref(layer), &|_| crate::supervisor::progress()).map(drop)
        };
        self.unbuilt.extend(execute::layers_of(host, &passed.desired, &passed.plan, &build));
        if !self.unbuilt.is_empty() {
            leave_alone(&mut passed.desired, &self.unbuilt);
            self.plan_again(passed);
        }
        Ok(())
    }

    /// What was to be looked at again is so all the same.
    fn plan_again(&self, passed: &mut Passed) {
        let wake_ms = passed.plan.wake_ms;
        passed.plan = (self.planner)(&passed.desired, &passed.live);
        passed.plan.wake_ms = passed.plan.wake_ms.into_iter().chain(wake_ms).min();
    }

    /// Shows a plan that has more to it than the one that was shown.
    fn show(&mut self, plan: &Plan) {
        let same = |one: &Action, other: &Action| {
            (&one.name, one.kind, &one.changes) == (&other.name, other.kind, &other.changes)
        };
        let is_known = |action: &Action| self.shown.iter().any(|shown| same(shown, action));
        if self.shown.is_empty() || !plan.actions.iter().all(is_known) {
            (self.options.planned)(plan);
            self.shown.clone_from(&plan.actions);
        }
    }
}

/// The jails of a plan that a snapshot or another verb has locked.
fn busy(host: &Host, plan: &Plan) -> Result<Vec<JailName>> {
    let mut busy = Vec::new();
    for action in &plan.actions {
        if lock::try_jail(&host.journal.paths, &action.name)?.is_none() {
            busy.push(action.name.clone());
        }
    }
    Ok(busy)
}

/// What is wanted, with what is wrong in the files, and what is.
pub type Found = ((Desired, Vec<Diagnostic>), Live);

/// Found side by side: neither alone keeps all cores busy.
pub fn look(paths: &Paths, known: Option<&mut Known>, host: &Host) -> Result<Found> {
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
