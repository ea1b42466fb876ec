//! Carries a plan out. Nothing is decided here, except to skip what depends on a failure.

mod build;
mod etc;
mod fallback;
pub mod hook;
mod inside;
mod keeper;
mod leftovers;
pub mod schedule;
pub mod scheduled;
pub mod snapshot;
mod start;
mod stop;
mod update;
mod volume;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result, anyhow, ensure};

use crate::desired::{Desired, DesiredJail, HostConfig, IdPool};
use crate::jail::{Jail, JailName};
use crate::journal::{Journal, ids, lock};
use crate::limits::Hierarchies;
use crate::live::{BACK_OFF_MAX_MS, JailState, Live, Record, Restarts};
use crate::plan::{self, Action, ActionKind, Plan};
use crate::storage::Ground;
use crate::sys::{mount, process};
use crate::{network, root};

pub use build::{BuildLayer, layers_of, needs_layers};
pub use etc::files as etc_files;
pub use leftovers::clear as clear_leftovers;
pub use schedule::Outcome;
pub use start::{instance, refused, spec_of_stopped, start};
pub use stop::{cgroup, remove_cgroup, stop};
pub use volume::in_memory;

/// What every step needs of the machine.
pub struct Host {
    pub journal: Journal,
    pub config: HostConfig,
    pub hierarchies: Hierarchies,
    program: OnceLock<OwnedFd>,
    bridges: Mutex<BTreeSet<String>>,
    ground: OnceLock<Ground>,
}

impl Host {
    /// To act on what the host's file says; refused when it cannot be believed.
    pub fn open(config: HostConfig) -> Result<Self> {
        match config.broken {
            Some(why) => Err(anyhow!(why)),
            None => Self::look(config),
        }
    }

    /// To look only.
    pub fn look(config: HostConfig) -> Result<Self> {
        Ok(Self {
            journal: Journal::open(&config.paths)?,
            hierarchies: Hierarchies::detect()?,
            program: OnceLock::new(),
            bridges: Mutex::new(BTreeSet::new()),
            ground: OnceLock::new(),
            config,
        })
    }

    /// What volumes can be here; looked at when the first jail asks.
    pub fn ground(&self) -> &Ground {
        self.ground.get_or_init(|| root::volume::ground(&self.journal.paths.state))
    }

    /// This program, on a detached read-only mount, so that a jail's pid 1 leads back to nothing
    /// that can be written (CVE-2019-5736). Made when it is first asked for: who only looks does
    /// not wait for the kernel to take a mount away again.
    pub fn program(&self) -> Result<&OwnedFd> {
        if self.program.get().is_none() {
            // Another thread's may come first, and is as good.
            let _ = self.program.set(own_program()?);
        }
        self.program.get().context("open this program")
    }

    /// Makes the bridge once a pass.
    fn ensure_bridge(&self, name: &str) -> Result<()> {
        let mut done = self.bridges.lock().unwrap_or_else(PoisonError::into_inner);
        if done.contains(name) {
            return Ok(());
        }
        let wanted = self.config.bridges.get(name).cloned().unwrap_or_default();
        network::ensure_bridge(name, &wanted)?;
        done.insert(name.to_owned());
        Ok(())
    }
}

fn own_program() -> Result<OwnedFd> {
    let copy = mount::clone_tree(rustix::fs::CWD, Path::new("/proc/self/exe"), false)
        .context("open this program")?;
    mount::set_attributes(copy.as_fd(), mount::READ_ONLY, 0, None, false)
        .context("make this program's mount read only")?;
    Ok(copy)
}

/// What stands for a root where there is none: with nothing there, `$STOCKADE_ROOT/etc` would be
/// the host's.
const NO_ROOT: &str = "/dev/null";

/// What a hook is told. The number of an init that has ended may be another process's by now.
pub fn facts<'a>(jail: &'a Jail, record: &'a Record) -> hook::Facts<'a> {
    let init = record.init.filter(|init| process::alive(*init));
    let root = match (&jail.path, init) {
        (Some(path), _) => path.display().to_string(),
        (None, Some(init)) => format!("/proc/{}/root", init.pid),
        (None, None) => NO_ROOT.to_owned(),
    };
    hook::Facts { jail, instance: &record.instance, root, pid: init.map(|init| init.pid) }
}

/// Half of the machine's memory, the kernel's own default size of a tmpfs.
pub fn half_of_memory() -> Result<u64> {
    let info = rustix::system::sysinfo();
    let total = info.totalram.saturating_mul(u64::from(info.mem_unit));
    if total == 0 { Err(anyhow!("read the machine's memory size")) } else { Ok(total / 2) }
}

/// Deletes a stopped jail's data and gives its id range back.
pub fn destroy_data(journal: &Journal, pool: IdPool, name: &JailName) -> Result<()> {
    let own = journal.state_dir(name);
    let number = ids::recorded(&own)?;
    root::discard(&journal.paths.state, name)?;
    // What snapshots have set aside goes too, unless a clone is made of it.
    root::snapshot::destroy(&journal.paths.state, name)?;
    root::changes::sweep(&journal.paths.state)?;
    if own.exists() {
        std::fs::remove_dir_all(&own).with_context(|| format!("remove {}", own.display()))?;
    }
    if let Some(number) = number {
        root::volume::forget(&journal.paths.state, ids::first(pool, number));
    }
    // Last: no file of the jail is left that could become another's.
    let Some(number) = number else { return Ok(()) };
    if root::changes::inherit_range(&journal.paths.state, number)? {
        return Ok(());
    }
    ids::release(&journal.paths.state, name, number)
}

/// Accounts for jails that have ended by themselves since the last look: one more restart in a
/// row, and not before its back-off. Written down with `write`, else only shown.
pub fn account(journal: &Journal, desired: &Desired, live: &mut Live, write: bool) -> Result<()> {
    for (name, jail) in &mut live.jails {
        if write && let Some(record) = &mut jail.record {
            note_disabled(journal, desired, &jail.state, record)?;
        }
        let (JailState::Exited(exit), Some(record)) = (&jail.state, &jail.record) else { continue };
        if jail.restarts.instance == record.instance {
            continue;
        }
        let Some(restart) = plan::restart_of(name, record, desired) else { continue };
        jail.restarts = jail.restarts.after(&record.instance, record.started_ms, exit, &restart);
        if write {
            journal.write_restarts(name, &jail.restarts)?;
        }
    }
    Ok(())
}

/// Once the file of a jail that is down has errors, its record alone tells that it is to stay so.
fn note_disabled(journal: &Journal, desired: &Desired, state: &JailState, record: &mut Record) -> Result<()> {
    let is_disabled = desired.jails.get(&record.name).is_some_and(|wanted| !wanted.jail.enabled);
    let is_noted = record.settings.get("enabled") == Some(&false.into());
    if *state == JailState::Down && is_disabled && !is_noted {
        record.settings.insert("enabled".to_owned(), false.into());
        journal.write_record(record)?;
    }
    Ok(())
}

/// Told about each jail as it is done: name, and what has become of it.
pub type Progress<'a> = &'a (dyn Fn(&JailName, &str) + Sync);

/// Runs all stop halves, then all start halves. What failed is returned by jail, as is what was
/// skipped because of it.
pub fn execute(
    host: &Host,
    desired: &Desired,
    plan: &Plan,
    progress: Progress<'_>,
) -> BTreeMap<JailName, Outcome> {
    let actions: BTreeMap<&JailName, &Action> =
        plan.actions.iter().map(|action| (&action.name, action)).collect();
    // They run, so nothing that waits for them is skipped, and yet not all is well.
    let fell_back: Mutex<BTreeMap<JailName, String>> = Mutex::default();
    let done = |name: &JailName, half: Half| -> Result<()> {
        let action = actions.get(name).ok_or_else(|| anyhow!("{name}: not in the plan"))?;
        ensure!(!crate::interrupt::asked(), "interrupted");
        let _lock = lock::jail(&host.journal.paths, name)?;
        let ran = run_half(host, desired, action, half);
        // What an interrupt undoes has not failed.
        if half == Half::Start && action.starts() && !crate::interrupt::asked() {
            // Where it cannot be written down, the failure itself is told all the same.
            let _ = remember(&host.journal, name, ran.as_ref().err());
        }
        if let Some(why) = ran? {
            fell_back.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), why);
        } else if let Some(text) = said(action, half) {
            progress(name, &text);
        }
        Ok(())
    };
    let stops = tasks(plan, |action| action.has_stop().then_some(&action.stop_after));
    let mut ended = schedule::run(stops, &|name| done(name, Half::Stop));
    wait_for_links(&actions);
    let failed: BTreeMap<JailName, Outcome> = ended
        .iter()
        .filter(|(_, outcome)| **outcome != Outcome::Done)
        .map(|(n, o)| (n.clone(), o.clone()))
        .collect();
    let starts = tasks(plan, |action| {
        (action.has_start() && !failed.contains_key(&action.name)).then_some(&action.start_after)
    });
    ended.extend(schedule::run(starts, &|name| done(name, Half::Start)));
    ended.extend(failed);
    ended.retain(|_, outcome| *outcome != Outcome::Done);
    let fell_back = fell_back.into_inner().unwrap_or_else(PoisonError::into_inner);
    ended.extend(fell_back.into_iter().map(|(name, why)| (name, Outcome::Failed(why))));
    ended
}

#[derive(Clone, Copy, PartialEq)]
enum Half {
    Stop,
    Start,
}

fn tasks<'a>(
    plan: &'a Plan,
    wanted: impl Fn(&'a Action) -> Option<&'a Vec<JailName>>,
) -> Vec<schedule::Task> {
    let task = |action: &'a Action| {
        Some(schedule::Task { name: action.name.clone(), after: wanted(action)?.clone() })
    };
    plan.actions.iter().filter_map(task).collect()
}

/// What was done and why, as the log has it: `updated: limits.memory`, `repaired: /etc/motd`,
/// `restarted: state killed by signal 9`.
fn said(action: &Action, half: Half) -> Option<String> {
    let verb = match (action.kind, half) {
        (ActionKind::Create, Half::Start) => "started",
        (ActionKind::Update, Half::Start) if action.changes.is_empty() => "repaired",
        (ActionKind::Update, Half::Start) => "updated",
        (ActionKind::Restart | ActionKind::Rebuild, Half::Start) => "restarted",
        (ActionKind::Stop, Half::Stop) => "stopped",
        (ActionKind::Remove, Half::Stop) => "removed (data kept)",
        _ => return None,
    };
    let whole = |key: &str| matches!(key, "state" | "keeper" | "record");
    let changes = action.changes.iter().chain(&action.drift).map(|change| match &change.to {
        Some(to) if whole(&change.key) => format!("{} {to}", change.key),
        _ => change.key.clone(),
    });
    let why: Vec<String> = changes.chain(action.reason.clone()).collect();
    Some(if why.is_empty() { verb.to_owned() } else { format!("{verb}: {}", why.join(", ")) })
}

/// Keeps why a jail did not start, for those who look at it later, until it does.
fn remember(journal: &Journal, name: &JailName, failure: Option<&anyhow::Error>) -> Result<()> {
    let before = journal.restarts(name)?;
    let failure = failure.map(|error| format!("{error:#}"));
    if before.failure == failure {
        return Ok(());
    }
    journal.write_restarts(name, &Restarts { failure, ..before })
}

/// Tells why, when the jail runs and not as it is wanted.
fn run_half(host: &Host, desired: &Desired, action: &Action, half: Half) -> Result<Option<String>> {
    let name = &action.name;
    if half == Half::Stop {
        return stop_half(host, desired, action).map(|()| None);
    }
    if action.as_before {
        return fallback::again(host, name, desired.jails.get(name)).map(|()| None);
    }
    let wanted = desired.jails.get(name).ok_or_else(|| anyhow!("it is not defined"))?;
    if action.kind != ActionKind::Update {
        forgive_if_changed(host, wanted)?;
        return match action.kind {
            ActionKind::Restart => fallback::restart(host, wanted),
            _ => start(host, wanted).map(|()| None),
        };
    }
    let record = start::record(host, name)?;
    update::update(host, wanted, action, record).map(|()| None)
}

/// What became of another definition is not held against this one.
fn forgive_if_changed(host: &Host, wanted: &DesiredJail) -> Result<()> {
    let name = &wanted.jail.name;
    match host.journal.record(name)? {
        Some(record) if plan::changed(&record, wanted) => {
            host.journal.write_restarts(name, &Restarts::default())
        }
        _ => Ok(()),
    }
}

fn stop_half(host: &Host, desired: &Desired, action: &Action) -> Result<()> {
    let name = &action.name;
    if let Some(mut record) = host.journal.record(name)? {
        // Once its file has errors, the record alone tells that it is to stay down.
        if action.kind == ActionKind::Stop && desired.jails.get(name).is_some_and(|it| !it.jail.enabled) {
            record.settings.insert("enabled".to_owned(), false.into());
        }
        stop(host, record)?;
    } else {
        remove_cgroup(host, name)?;
    }
    match action.kind {
        ActionKind::Rebuild => {
            root::discard(&host.journal.paths.state, name)?;
            root::snapshot::forget_base(&host.journal.paths.state, name)
        }
        ActionKind::Remove => {
            host.journal.write_restarts(name, &Restarts::default())?;
            host.journal.forget(name)
        }
        _ => Ok(()),
    }
}

/// The kernel lets go of a stopped jail's link a little later than of its processes.
fn wait_for_links(actions: &BTreeMap<&JailName, &Action>) {
    let links: BTreeSet<String> = actions
        .values()
        .filter(|action| action.has_stop())
        .map(|action| network::host_link(&action.name))
        .collect();
    if !links.is_empty() {
        // A start that needs the name says so itself.
        let _ = network::disconnect(&links);
    }
}

impl Restarts {
    /// After one more end: doubled back-off from `restart.delay` up to five minutes; a good run
    /// of ten minutes starts the count anew.
    #[must_use]
    pub fn after(
        &self,
        instance: &str,
        started_ms: u64,
        exit: &crate::live::Exit,
        restart: &crate::jail::Restart,
    ) -> Self {
        let ended_ms = if exit.at_ms == 0 { crate::journal::now_ms() } else { exit.at_ms };
        let good_run = ended_ms.saturating_sub(started_ms) >= GOOD_RUN_MS;
        let before = if good_run { 0 } else { self.count };
        if exit.reboot {
            return Self { instance: instance.to_owned(), ..Self::default() };
        }
        let doubled = restart.delay.saturating_mul(1 << before.min(20));
        Self {
            instance: instance.to_owned(),
            count: before + 1,
            not_before_ms: ended_ms + doubled.min(BACK_OFF_MAX_MS),
            crash_loop: before >= restart.max,
            failure: None,
        }
    }
}

/// A run this long clears the count.
pub const GOOD_RUN_MS: u64 = 600_000;
