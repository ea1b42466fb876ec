//! A jail's volume on its way to a start, and its limits on a running one.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail, ensure};

use super::Host;
use crate::desired::DesiredJail;
use crate::jail::{Jail, JailName, Limits};
use crate::root::volume::{self, IMAGE, Place, SUBVOLUME, THICK};
use crate::root::{self, changes, snapshot};
use crate::spec::{RootSpec, Writes};
use crate::storage::{self, Choice, Kind};

/// The root over the layers `lower`, its volume made, moved or put in order.
pub fn root(host: &Host, wanted: &DesiredJail, first_id: u32, lower: Vec<PathBuf>) -> Result<RootSpec> {
    let (jail, host_usr) = (&wanted.jail, wanted.root.host_usr);
    let state = &host.journal.paths.state;
    let held = volume::held(state, &jail.name)?;
    let counts = volume::has_projects(state);
    // Where files are counted a limit of the last run may have to be lifted.
    let as_it_is = match &held {
        None => jail.root.storage == "overlay" || !volume::is_on_btrfs(state),
        Some(held) => !counts && *held == storage::Held::overlay(),
    };
    if is_plain(jail) && as_it_is {
        beginning(state, &jail.name, held.as_ref(), (Kind::Overlay, first_id))?;
        let own = root::prepare(state, &jail.name, first_id, counts)?;
        let writes = Writes::Kept { upper: own.upper, work: own.work };
        return Ok(RootSpec::Overlay { own: Vec::new(), lower, writes, host_usr });
    }
    let choice = chosen(host, jail, held.as_ref())?;
    let like = beginning(state, &jail.name, held.as_ref(), (choice.kind, first_id))?;
    let place = Place {
        state,
        name: &jail.name,
        first_id,
        layers: &lower,
        like,
        limits: &jail.limits,
        ground: host.ground(),
        progress: &|_| {
            crate::supervisor::progress();
            ensure!(!crate::interrupt::asked(), "start: interrupted");
            Ok(())
        },
    };
    volume::settle(&place, &choice)?;
    if place.like.is_some() {
        snapshot::forget_top(state, &jail.name)?;
    }
    let directory = place.path();
    let kept =
        |directory: PathBuf| Writes::Kept { upper: directory.join("upper"), work: directory.join("work") };
    let writes = match choice.kind {
        Kind::Directory => return Ok(RootSpec::Directory { path: directory.join(THICK), host_usr }),
        Kind::Overlay => kept(directory),
        Kind::Btrfs => kept(directory.join(SUBVOLUME)),
        Kind::Tmpfs => in_memory(&jail.limits)?,
        Kind::Image => Writes::Image {
            file: directory.join(IMAGE),
            file_system: choice.file_system.unwrap_or(volume::image::USUAL),
        },
    };
    Ok(RootSpec::Overlay { own: Vec::new(), lower, writes, host_usr })
}

/// What was set aside, and the volume is to begin as; none when it is there already. Says no
/// before anything is made.
fn beginning(
    state: &Path,
    name: &JailName,
    held: Option<&storage::Held>,
    (kind, first_id): (Kind, u32),
) -> Result<Option<PathBuf>> {
    let base = snapshot::base(state, name)?;
    if base.is_empty() {
        return Ok(None);
    }
    let is_thick = kind == Kind::Directory;
    if !is_thick {
        changes::own_lowers(state, &base)?;
    }
    let is_same = held.is_none_or(|held| held.kind == kind);
    // A thick root that is there has begun as what is still noted below it.
    let may_begin = is_same && (is_thick || !volume::is_made(state, name, kind));
    let like = if may_begin { snapshot::like(state, name, kind, first_id)? } else { None };
    if is_thick && like.is_none() {
        bail!("root.storage: what a snapshot has set aside cannot be moved to a `directory`");
    }
    Ok(like)
}

/// Nothing is asked for that a plain overlay has not: such a start looks no further.
fn is_plain(jail: &Jail) -> bool {
    let limits = &jail.limits;
    matches!(jail.root.storage.as_str(), "auto" | "overlay")
        && limits.disk.is_none()
        && limits.inodes.is_none()
}

fn chosen(host: &Host, jail: &Jail, held: Option<&storage::Held>) -> Result<Choice> {
    let choice = storage::choose(jail, host.ground(), held);
    let choice = choice.map_err(|refusal| anyhow!("{}: {}", refusal.key, refusal.reason))?;
    choice.ok_or_else(|| anyhow!("the jail has no volume"))
}

/// Writes that die with the jail.
pub fn in_memory(limits: &Limits) -> Result<Writes> {
    let bytes = limits.disk.map_or_else(super::half_of_memory, Ok)?;
    Ok(Writes::Discarded { bytes, inodes: limits.inodes })
}

/// Puts `limits.disk` and `limits.inodes` in force on a running jail.
pub fn set_limits(host: &Host, after: &Jail, first_id: u32) -> Result<()> {
    let state = &host.journal.paths.state;
    let held = volume::held(state, &after.name)?;
    let choice = chosen(host, after, held.as_ref())?;
    volume::set_limits(state, &after.name, first_id, (&choice, &after.limits), host.ground().grows_ext4)
}
