//! What commands that were killed have left, and no jail of a definition will clear.

use anyhow::Result;

use super::{Host, remove_cgroup};
use crate::desired::Desired;
use crate::jail::JailName;
use crate::journal::{Journal, lock};
use crate::live::{Live, Restarts};

pub fn clear(host: &Host, desired: &Desired, live: &Live) {
    unrecorded(&host.journal, desired, live);
    throw_away(host, desired, live);
}

/// A start that was cut before its first record has left an empty directory, which only a jail
/// that has a definition would use again.
fn unrecorded(journal: &Journal, desired: &Desired, live: &Live) {
    let known = |name: &JailName| desired.jails.contains_key(name) || desired.broken.contains_key(name);
    for (name, jail) in &live.jails {
        if jail.record.is_none() && jail.unreadable.is_none() && !known(name) {
            // There is none, as a rule; and what is not empty is not ours to judge.
            let _ = std::fs::remove_dir(journal.run_dir(name));
            // What cannot be forgotten now is so by the next pass, or by `gc`.
            let _ = journal.write_restarts(name, &Restarts::default());
        }
    }
}

/// Jails that have neither a definition nor a record: those of `run` and of builds. Each holds the
/// lock of its instance from before its cgroup is made until that is gone again, so what has no
/// holder is what one that was killed could not clear away.
fn throw_away(host: &Host, desired: &Desired, live: &Live) {
    let (journal, paths) = (&host.journal, &host.journal.paths);
    let is_another = |name: &JailName| {
        let is_defined = desired.jails.contains_key(name) || desired.broken.contains_key(name);
        let is_live =
            live.jails.get(name).is_some_and(|jail| jail.record.is_some() || jail.unreadable.is_some());
        is_defined || is_live || journal.state_dir(name).exists()
    };
    let names = match lock::instances(paths) {
        Ok(names) => names,
        Err(error) => return crate::log::error(None, &format!("look for throw-away jails: {error:#}")),
    };
    for name in names.iter().filter(|name| !is_another(name)) {
        if let Err(error) = give_up(host, name) {
            crate::log::error(Some(name), &format!("clear a throw-away jail that was killed: {error:#}"));
        }
    }
}

fn give_up(host: &Host, name: &JailName) -> Result<()> {
    let Some(held) = lock::alone(&host.journal.paths, name)? else { return Ok(()) };
    remove_cgroup(host, name)?;
    lock::give_up(held, &host.journal.paths, name)
}
