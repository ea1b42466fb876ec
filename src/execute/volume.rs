//! A jail's volume on its way to a start, and its limits on a running one.

use std::path::PathBuf;

use anyhow::{Result, anyhow, ensure};

use super::Host;
use crate::desired::DesiredJail;
use crate::jail::{Jail, Limits};
use crate::root;
use crate::root::volume::{self, IMAGE, Place, SUBVOLUME, THICK};
use crate::spec::{RootSpec, Writes};
use crate::storage::{self, Choice, Kind};

/// The root over the layers `lower`, its volume made, moved or put in order.
pub fn root(host: &Host, wanted: &DesiredJail, first_id: u32, lower: Vec<PathBuf>) -> Result<RootSpec> {
    let (jail, host_usr) = (&wanted.jail, wanted.root.host_usr);
    let state = &host.journal.paths.state;
    let held = volume::held(state, &jail.name)?;
    let counts = volume::has_projects(state);
    // Where files are counted a limit of the last run may have to be lifted.
    let as_it_is = held.as_ref().is_none_or(|held| !counts && *held == storage::Held::overlay());
    if is_plain(jail) && as_it_is {
        let own = root::prepare(state, &jail.name, first_id, counts)?;
        let writes = Writes::Kept { upper: own.upper, work: own.work };
        return Ok(RootSpec::Overlay { own: Vec::new(), lower, writes, host_usr });
    }
    let choice = chosen(host, jail, held.as_ref())?;
    let place = Place {
        state,
        name: &jail.name,
        first_id,
        layers: &lower,
        limits: &jail.limits,
        ground: host.ground(),
        progress: &|_| {
            crate::supervisor::progress();
            ensure!(!super::interrupted(), "start: interrupted");
            Ok(())
        },
    };
    volume::settle(&place, &choice)?;
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
