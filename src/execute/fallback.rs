//! A restart onto other layers that goes wrong is taken back: the jail runs again as it did
//! before, and the plan leaves it so until what is wanted of it changes once more.

use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Host, start, stop};
use crate::desired::{DesiredJail, DesiredRoot, Layer, LayerSource};
use crate::jail::Jail;
use crate::live::Record;
use crate::plan;
use crate::root::layers;
use crate::sys::process;

/// A program that the new layers do not suit ends at once: it is not found, or its libraries are
/// not, or it does not like its files.
const WATCH: Duration = Duration::from_millis(500);

/// Starts a jail that has just been stopped. What it tells is why it did not come up as it is
/// wanted, and runs as it did before.
pub fn restart(host: &Host, wanted: &DesiredJail) -> Result<Option<String>> {
    let before = host.journal.record(&wanted.jail.name)?;
    match before {
        Some(before) if plan::gave_up(&before, wanted) => instead(host, wanted, &before).map(|()| None),
        Some(before) if has_moved(host, &before, wanted) => try_new(host, wanted, &before),
        _ => start::start(host, wanted).map(|()| None),
    }
}

/// Whether it ran on other layers before, which are all there still.
fn has_moved(host: &Host, before: &Record, wanted: &DesiredJail) -> bool {
    let new = wanted.root.layers.iter().map(|layer| &layer.id);
    let ran = before.init.is_some() && !before.layers.is_empty();
    let built = |id: &String| layers::is_built(&host.journal.paths.state, id);
    ran && !before.layers.iter().eq(new) && before.layers.iter().all(built)
}

fn try_new(host: &Host, wanted: &DesiredJail, before: &Record) -> Result<Option<String>> {
    let came_up = start::start(host, wanted).and_then(|()| stays_up(host, wanted));
    let Err(error) = came_up else { return Ok(None) };
    if crate::interrupt::asked() {
        return Err(error);
    }
    instead(host, wanted, before).with_context(|| format!("{error:#}; and on the old base"))?;
    Ok(Some(format!("did not come up on the new base, runs again on the old one: {error:#}")))
}

/// An error when the jail has failed within a moment; it is down then.
fn stays_up(host: &Host, wanted: &DesiredJail) -> Result<()> {
    let record = start::record(host, &wanted.jail.name)?;
    let Some(pidfd) = record.init.and_then(process::open) else { return judge(host, record) };
    if process::wait_gone(pidfd.as_fd(), WATCH)? {
        return judge(host, record);
    }
    Ok(())
}

fn judge(host: &Host, record: Record) -> Result<()> {
    if let Some(keeper) = record.keeper {
        stop::wait_keeper(keeper)?;
    }
    let Some(exit) = host.journal.exit(&record)?.filter(crate::live::Exit::failed) else { return Ok(()) };
    stop::stop(host, record)?;
    bail!("it {exit} at once")
}

/// Starts it as it was, for what is wanted cannot be yet.
pub fn again(host: &Host, wanted: &DesiredJail) -> Result<()> {
    let before = start::record(host, &wanted.jail.name)?;
    start::start_as(host, &old(wanted, &before)?, before.instead_of)
}

fn instead(host: &Host, wanted: &DesiredJail, before: &Record) -> Result<()> {
    start::start_as(host, &old(wanted, before)?, Some(plan::attempt(wanted)))
}

/// By the keys and on the layers of its last start.
fn old(wanted: &DesiredJail, before: &Record) -> Result<DesiredJail> {
    let jail = Jail::from_settings(&before.name, &before.settings).map_err(anyhow::Error::msg)?;
    let layer = |id: &String| Layer { id: id.clone(), source: LayerSource::Built };
    let root = DesiredRoot {
        layers: before.layers.iter().map(layer).collect(),
        host_usr: before.host_usr,
        files: wanted.root.files.clone(),
        etc: wanted.root.etc.clone(),
    };
    Ok(DesiredJail { file: wanted.file.clone(), settings: before.settings.clone(), jail, root })
}
