//! Jails that have neither a definition nor a record: those of `run` and of builds. Each holds the
//! lock of its instance from before its cgroup is made until that is gone again, so what has no
//! holder is what one that was killed could not clear away.

use anyhow::Result;

use super::{Host, remove_cgroup};
use crate::desired::Desired;
use crate::jail::JailName;
use crate::journal::lock;
use crate::live::Live;

/// Clears what killed ones have left.
pub fn clear_dead(host: &Host, desired: &Desired, live: &Live) {
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
        if let Err(error) = clear(host, name) {
            crate::log::error(Some(name), &format!("clear a throw-away jail that was killed: {error:#}"));
        }
    }
}

fn clear(host: &Host, name: &JailName) -> Result<()> {
    let Some(held) = lock::alone(&host.journal.paths, name)? else { return Ok(()) };
    remove_cgroup(host, name)?;
    lock::give_up(held, &host.journal.paths, name)
}
