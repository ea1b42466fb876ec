//! Keeps what lies below a jail short: each snapshot of it while it is down puts one more there.

use anyhow::Result;

use super::Held;
use crate::journal::lock;
use crate::root::changes;
use crate::root::snapshot as books;

/// How many changes may lie below a jail before those that no snapshot ends with are merged: each
/// makes its files a little slower to find.
const LONG: usize = 24;
/// How many may before a snapshot of the stopped jail is a copy, which puts nothing below it.
const LONGEST: usize = 150;

impl Held<'_> {
    /// Merges what expired snapshots have left below the stopped jail; false where there is too
    /// much all the same. What cannot be merged now is left as it is.
    pub(super) fn shorten(&self) -> Result<bool> {
        let base = books::base(self.state, self.name)?;
        if base.len() < LONG {
            return Ok(true);
        }
        let mut others = Vec::new();
        let merged = changes::merge(self.state, &base, &mut |id| {
            crate::supervisor::progress();
            self.is_still(id, &mut others)
        });
        let gone = merged.unwrap_or_else(|error| {
            crate::log::error(Some(self.name), &format!("merge what snapshots have left: {error:#}"));
            0
        });
        if gone > 0 {
            changes::sweep(self.state)?;
        }
        Ok(base.len() - gone < LONGEST)
    }

    /// Whether every other jail that stands on these changes is down, and stays so while `others`,
    /// their locks, are held.
    fn is_still(&self, id: &str, others: &mut Vec<(crate::jail::JailName, lock::Lock)>) -> Result<bool> {
        let paths = &self.host.journal.paths;
        for name in books::users(self.state, id)? {
            if name == *self.name || others.iter().any(|(other, _)| *other == name) {
                continue;
            }
            // No wait: its holder may be waiting for this one.
            let Some(lock) = lock::try_jail(paths, &name)? else { return Ok(false) };
            let is_up = lock::is_up(paths, &name)?
                || crate::execute::cgroup(self.host, &name)?.populated()?
                || books::pending(self.state, &name)?.is_some();
            if is_up {
                return Ok(false);
            }
            others.push((name, lock));
        }
        Ok(true)
    }
}
