//! The whole program in one function: read, resolve, look, plan, and unless only asked for the
//! plan, act. `apply` calls it once, the daemon once per wake-up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::desired::{Desired, Paths};
use crate::diagnostic::Diagnostic;
use crate::execute::{self, Host, Outcome, Progress, scheduled};
use crate::jail::JailName;
use crate::journal::{ids, lock};
use crate::live::Live;
use crate::plan::{self, Action, ActionKind, Plan};
use crate::probe;
use crate::source::{self, Known};

/// Looks at a host's file that is written each time between its reading and that of the others.
const TRIES_MAX: usize = 5;

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
    let chosen = plan::Options { only: options.only.clone(), no_restart: options.no_restart, again };
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
    for _ in 0..TRIES_MAX {
        let host = Host::look(source::host(paths))?;
        let apply = options.apply && host.config.broken.is_none();
        let _lock = if apply { Some(lock::all(&host.journal.paths, options.waiting)?) } else { None };
        if apply {
            ids::check_pool(&host.journal.paths.state, host.config.ids)?;
            execute::snapshot::settle_all(&host);
        }
        // Read under the lock: what was read before another pass had its turn is of the past.
        let (loaded, live) = look(paths, known.as_deref_mut(), &host)?;
        if loaded.0.host == host.config {
            return act(&host, paths, loaded, live, options, apply, planner);
        }
    }
    bail!("read stockade.toml: it changes all the time")
}

fn act(
    host: &Host,
    paths: &Paths,
    (mut desired, mut diagnostics): (Desired, Vec<Diagnostic>),
    mut live: Live,
    options: &PassOptions<'_>,
    apply: bool,
    planner: &dyn Fn(&Desired, &Live) -> Plan,
) -> Result<Passed> {
    execute::account(&host.journal, &desired, &mut live, apply)?;
    let mut plan = planner(&desired, &live);
    if apply && plan.actions.iter().any(|action| action.kind == ActionKind::Remove) {
        std::thread::sleep(AWAY);
        ((desired, diagnostics), live) = look(paths, None, host)?;
        ensure!(desired.host == host.config, "read stockade.toml: it changes just now");
        execute::account(&host.journal, &desired, &mut live, apply)?;
        plan = planner(&desired, &live);
    }
    let mut failures = BTreeMap::new();
    if apply {
        (options.planned)(&plan);
        execute::clear_unrecorded(&host.journal, &desired, &live);
        execute::clear_dead(host, &desired, &live);
        let unbuilt = execute::layers_of(host, &desired, &plan);
        if !unbuilt.is_empty() {
            leave_alone(&mut desired, &unbuilt);
            plan = planner(&desired, &live);
        }
        failures = execute::execute(host, &desired, &plan, options.progress);
        failures.extend(unbuilt.into_iter().map(|(name, why)| (name, Outcome::Failed(why))));
    }
    Ok(Passed { diagnostics, desired, live, plan, failures, applied: apply })
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
