//! The snapshots that definitions ask for again and again: what is due is taken, what there is too
//! much of is removed. None of it touches whether a jail runs.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::snapshot::{self, Asked};
use super::{Host, Progress};
use crate::desired::{Desired, DesiredJail};
use crate::jail::{JailName, Schedule};
use crate::journal::{lock, now_ms};
use crate::root::changes;
use crate::root::snapshot::{self as books, Snapshot};

/// How soon one that failed is tried again, where it is not taken more often anyway.
const AGAIN_MS: u64 = 60_000;

/// What came of it.
#[derive(Debug, Default)]
pub struct Report {
    pub failures: Vec<(JailName, String)>,
    /// When the next is due, milliseconds since the epoch.
    pub wake_ms: Option<u64>,
}

/// Which snapshots are due.
#[derive(Debug, Default)]
pub struct Due {
    /// Jails with one to take, and how soon it makes sense to try again, milliseconds.
    pub jails: BTreeMap<JailName, u64>,
    /// When the next is due of the others, milliseconds since the epoch.
    pub wake_ms: Option<u64>,
}

/// Looks only. What cannot be looked at is due, and its trouble is that of taking it.
pub fn due(host: &Host, desired: &Desired) -> Due {
    let mut due = Due::default();
    for (name, wanted) in &desired.jails {
        for schedule in &wanted.jail.snapshot {
            match next(host, name, schedule).unwrap_or(Some(0)) {
                Some(at) if at <= now_ms() => {
                    let again = due.jails.entry(name.clone()).or_insert(AGAIN_MS);
                    *again = schedule.every.min(*again);
                }
                later => due.wake_ms = due.wake_ms.into_iter().chain(later).min(),
            }
        }
    }
    due
}

/// Takes what is due of the `only` ones, or of all.
pub fn take_due(host: &Host, desired: &Desired, only: &[JailName], progress: Progress<'_>) -> Report {
    let mut report = Report::default();
    for (name, wanted) in &desired.jails {
        if !only.is_empty() && !only.contains(name) {
            continue;
        }
        for schedule in &wanted.jail.snapshot {
            let next = one(host, wanted, schedule, progress).unwrap_or_else(|error| {
                report.failures.push((name.clone(), format!("snapshot {}: {error:#}", schedule.label)));
                Some(now_ms() + schedule.every.min(AGAIN_MS))
            });
            report.wake_ms = report.wake_ms.into_iter().chain(next).min();
        }
    }
    report
}

/// When the next is to be taken; never for a jail that has not written anything yet.
fn next(host: &Host, name: &JailName, schedule: &Schedule) -> Result<Option<u64>> {
    if crate::interrupt::asked() || !host.journal.state_dir(name).exists() {
        return Ok(None);
    }
    let last = of(host, name, schedule)?.last().map(|last| last.at_ms);
    // A clock that was set back must not put the next one off for years.
    let last = last.filter(|at| *at <= now_ms());
    Ok(Some(last.map_or(0, |at| at + schedule.every)))
}

/// Takes one that is due, and gives when the next is.
fn one(
    host: &Host,
    wanted: &DesiredJail,
    schedule: &Schedule,
    progress: Progress<'_>,
) -> Result<Option<u64>> {
    let name = &wanted.jail.name;
    let now = now_ms();
    let next = next(host, name, schedule)?;
    if next.is_none_or(|next| next > now) {
        return Ok(next);
    }
    let label = format!("{}-{}", schedule.label, books::time_label(now));
    let asked = Asked { label: Some(&label), schedule: Some(&schedule.label), progress: &|_| () };
    if snapshot::take_if_new(host, wanted, &asked)?.is_some() {
        progress(name, &format!("snapshot {label}"));
    }
    expire(host, name, schedule).context("remove old ones")?;
    Ok(Some(now + schedule.every))
}

/// Those of one schedule, oldest first.
fn of(host: &Host, name: &JailName, schedule: &Schedule) -> Result<Vec<Snapshot>> {
    let mut all = books::list(&host.journal.paths.state, name)?;
    all.retain(|snapshot| snapshot.schedule.as_ref() == Some(&schedule.label));
    Ok(all)
}

fn expire(host: &Host, name: &JailName, schedule: &Schedule) -> Result<()> {
    let state = &host.journal.paths.state;
    let all = of(host, name, schedule)?;
    let keep = usize::try_from(schedule.keep).unwrap_or(usize::MAX);
    let Some(count) = all.len().checked_sub(keep).filter(|count| *count > 0) else { return Ok(()) };
    let lock = lock::jail(&host.journal.paths, name)?;
    for old in &all[..count] {
        books::remove(state, name, &old.label)?;
    }
    drop(lock);
    changes::sweep(state)
}
