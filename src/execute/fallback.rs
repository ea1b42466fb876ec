//! A restart onto other layers that goes wrong is taken back: the jail runs again as it did
//! before, and the plan leaves it so until what is wanted of it changes once more. So does a jail
//! that has ended while its new layers are not built, or its file has errors.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Host, start, stop};
use crate::desired::{DesiredJail, DesiredRoot, RootFile};
use crate::jail::JailName;
use crate::live::{FileStamp, Record};
use crate::plan;
use crate::root::files::digest;
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

/// Starts it as it was, for what is wanted cannot be yet: nothing is, where its file has errors. One
/// that does not come up keeps its record, by which the next pass tries again.
pub fn again(host: &Host, name: &JailName, wanted: Option<&DesiredJail>) -> Result<()> {
    let before = start::record(host, name)?;
    let kept = host.journal.files(name)?;
    let old = match wanted {
        Some(wanted) => old(wanted, &before)?,
        None => last_good(&before, &kept)?,
    };
    let keep = || host.journal.write_record(&before).and_then(|()| host.journal.write_files(name, &kept));
    start::start_as(host, &old, before.instead_of.clone()).map_err(|error| match keep() {
        Ok(()) => error,
        Err(lost) => error.context(format!("and then, keeping its record: {lost:#}")),
    })
}

fn instead(host: &Host, wanted: &DesiredJail, before: &Record) -> Result<()> {
    start::start_as(host, &old(wanted, before)?, Some(plan::attempt(wanted)))
}

/// By the keys and on the layers of its last start.
fn old(wanted: &DesiredJail, before: &Record) -> Result<DesiredJail> {
    let started = plan::started(before).map_err(anyhow::Error::msg)?;
    let (files, etc) = (wanted.root.files.clone(), wanted.root.etc.clone());
    Ok(DesiredJail { root: DesiredRoot { files, etc, ..started.root }, ..started })
}

/// With the files of its last start too.
fn last_good(before: &Record, kept: &[RootFile]) -> Result<DesiredJail> {
    let started = plan::started(before).map_err(anyhow::Error::msg)?;
    let file = |(target, stamp): (&PathBuf, &FileStamp)| {
        let is_it = |file: &&RootFile| file.target == *target && digest(file) == stamp.digest;
        kept.iter().find(is_it).cloned().with_context(|| format!("its {} is not kept", target.display()))
    };
    let files: Vec<RootFile> = before.files.iter().map(file).collect::<Result<_>>()?;
    Ok(DesiredJail { root: DesiredRoot { files, ..started.root }, ..started })
}
