//! What a change of a jail's storage or its limits costs, which depends on what its volume is.

use super::Change;
use crate::desired::DesiredJail;
use crate::keys::Cost;
use crate::live::{Live, LiveJail};
use crate::storage::{self, Choice, FileSystem, Held, Kind, Quota};

/// Gives the changes that concern the volume their true cost.
pub fn weigh(changes: &mut [Change], wanted: &DesiredJail, seen: &LiveJail, live: &Live) {
    let concerned = |change: &&mut Change| concerns(&change.key);
    if !changes.iter().any(|change| concerns(&change.key)) {
        return;
    }
    let Some(choice) = choice(wanted, seen, live) else { return };
    for change in changes.iter_mut().filter(concerned) {
        change.cost = match now(seen) {
            // Nothing can be kept in memory.
            Some(kind) if kind != choice.kind && choice.kind == Kind::Tmpfs => Cost::Rebuild,
            Some(kind) if kind != choice.kind => Cost::Restart,
            _ if change.key == "root.storage" => Cost::None,
            _ => limit(&choice, wanted, seen.volume.as_ref(), live.ground.grows_ext4),
        };
    }
}

fn concerns(key: &str) -> bool {
    matches!(key, "root.storage" | "limits.disk" | "limits.inodes")
}

/// What stands against the jail's volume here.
pub fn refusal(wanted: &DesiredJail, live: &Live) -> Option<String> {
    let held = live.jails.get(&wanted.jail.name).and_then(|seen| seen.volume.as_ref());
    let refusal = storage::choose(&wanted.jail, &live.ground, held).err()?;
    Some(format!("{}: {}", refusal.key, refusal.reason))
}

/// Said of a start that moves the jail's files first.
pub fn moves(wanted: &DesiredJail, seen: &LiveJail, live: &Live) -> Option<String> {
    let (held, choice) = (seen.volume.as_ref()?, choice(wanted, seen, live)?);
    let moves = held.kind != choice.kind && choice.kind != Kind::Tmpfs;
    moves.then(|| format!("its own files move from {} to {}", held.kind, choice.kind))
}

fn choice(wanted: &DesiredJail, seen: &LiveJail, live: &Live) -> Option<Choice> {
    storage::choose(&wanted.jail, &live.ground, seen.volume.as_ref()).ok().flatten()
}

/// What the running jail writes to.
fn now(seen: &LiveJail) -> Option<Kind> {
    let record = seen.record.as_ref()?;
    let in_memory = record.settings.get("root.storage").is_some_and(|storage| storage == "tmpfs");
    let on_disk = seen.volume.as_ref().map_or(Kind::Overlay, |held| held.kind);
    Some(if in_memory { Kind::Tmpfs } else { on_disk })
}

fn limit(choice: &Choice, wanted: &DesiredJail, held: Option<&Held>, grows_ext4: bool) -> Cost {
    match (choice.kind, choice.quota) {
        // Its size is given to it when it is made, and nobody outside has hold of it afterwards.
        (Kind::Tmpfs, _) => Cost::Restart,
        // What was written before there was a quota has to be counted once.
        (_, Quota::Project) if held.is_some_and(|held| !held.counted) => Cost::Restart,
        (Kind::Image, _) => resize(held, wanted.jail.limits.disk, grows_ext4),
        _ => Cost::Live,
    }
}

fn resize(held: Option<&Held>, wanted: Option<u64>, grows_ext4: bool) -> Cost {
    let Some((held, now, wanted)) = held.and_then(|held| Some((held, held.bytes?, wanted?))) else {
        return Cost::Live;
    };
    let needs_stop =
        held.file_system == Some(FileSystem::Ext4) && (wanted < now || (wanted > now && !grows_ext4));
    if needs_stop { Cost::Restart } else { Cost::Live }
}
