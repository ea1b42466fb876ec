//! The whole program in one function: read, resolve, look, plan, and unless only asked for the
//! plan, act. `apply` calls it once, the daemon once per wake-up.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::desired::{Desired, Paths};
use crate::diagnostic::Diagnostic;
use crate::execute::{self, Host, Outcome, Progress};
use crate::jail::JailName;
use crate::journal::lock;
use crate::live::Live;
use crate::plan::{self, Plan};
use crate::{probe, source};

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
}

pub fn pass(paths: &Paths, options: &PassOptions<'_>) -> Result<Passed> {
    let (desired, diagnostics) = source::load(paths);
    let host = Host::open(desired.host.clone())?;
    let _lock = if options.apply { Some(lock::all(&host.journal.paths, options.waiting)?) } else { None };
    let mut live = probe::probe(&host.journal, &host.config, &host.hierarchies)?;
    execute::account(&host.journal, &desired, &mut live, options.apply)?;
    let chosen = plan::Options { only: options.only.clone(), no_restart: options.no_restart };
    let plan = plan::plan(&desired, &live, &chosen);
    let mut failures = BTreeMap::new();
    if options.apply {
        (options.planned)(&plan);
        failures = execute::execute(&host, &desired, &plan, options.progress);
    }
    Ok(Passed { diagnostics, desired, live, plan, failures })
}

impl Passed {
    fn done(&self, wanted: impl Fn(&crate::plan::Action) -> bool) -> usize {
        let well = |name: &JailName| !self.failures.contains_key(name);
        self.plan.actions.iter().filter(|action| well(&action.name) && wanted(action)).count()
    }

    /// Jails that this pass brought up which were not up before.
    pub fn started(&self) -> usize {
        self.done(|action| action.has_start() && !self.was_up(&action.name))
    }

    /// Jails that this pass took down for good.
    pub fn stopped(&self) -> usize {
        self.done(|action| !action.has_start() && self.was_up(&action.name))
    }

    fn was_up(&self, name: &JailName) -> bool {
        use crate::live::JailState::{Frozen, Up};
        self.live.jails.get(name).is_some_and(|jail| matches!(jail.state, Up | Frozen))
    }
}
