//! Takes snapshots of jails, and puts jails back to them.
//!
//! A stopped jail's writes are set aside as they are: its upper becomes a lower of its own, at
//! once and whatever its size; a subvolume or a thick root is what the next start begins a new one
//! as. Of a running jail's subvolume a snapshot is made by one call. Any other running jail is
//! frozen, flushed and copied, with shared blocks where the file system can; what takes long is
//! copied before the freeze.

mod copied;
mod fewer;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{Mode, RenameFlags};

use super::Host;
use crate::desired::DesiredJail;
use crate::jail::JailName;
use crate::journal::{ids, lock};
use crate::live::{JailState, LiveJail};
use crate::probe;
use crate::root::changes::{self, Origin};
use crate::root::copy::{self, Copied, Owners};
use crate::root::snapshot::{self as books, How, Pending, SCHEMA, Snapshot};
use crate::root::volume::{self, Kind, Volume};
use crate::root::{export, removal};
use crate::sys::{btrfs, file};

/// The place of changes until they are whole.
const PARTIAL: &str = "upper.partial";

/// Told how far a copy is.
pub type Progress<'p> = &'p dyn Fn(&Copied);

/// What is to come of the changes that are set aside.
pub struct Asked<'a> {
    pub label: Option<&'a str>,
    /// See [`Snapshot::schedule`].
    pub schedule: Option<&'a str>,
    pub progress: Progress<'a>,
}

/// A jail whose lock is held, and what is known about it.
struct Held<'a> {
    host: &'a Host,
    name: &'a JailName,
    state: &'a Path,
    live: LiveJail,
    volume: Option<Volume>,
    /// What need not be copied of it, should it be.
    earlier: Option<copied::Earlier>,
    _lock: lock::Lock,
}

/// Finishes or undoes what was cut off, for every jail of which nobody is at it just now.
pub fn settle_all(host: &Host) {
    let state = &host.journal.paths.state;
    if let Err(error) = books::clear_unwritten(state) {
        crate::log::error(None, &format!("clear a snapshot that was cut off: {error:#}"));
    }
    for name in books::pending_names(state).unwrap_or_default() {
        let settled = match lock::try_jail(&host.journal.paths, &name) {
            Ok(Some(lock)) => settle(host, &name).and_then(|()| host.journal.unlock(lock, &name)),
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = settled {
            crate::log::error(Some(&name), &format!("settle a snapshot that was cut off: {error:#}"));
        }
    }
}

/// The same for one jail whose lock is held.
pub fn settle(host: &Host, name: &JailName) -> Result<()> {
    let state = &host.journal.paths.state;
    if let Some(pending) = books::pending(state, name)?.filter(|pending| pending.clear)
        && pending.change.is_some_and(|id| changes::is_whole(state, &id))
        && let Some(volume) = Volume::open(state, name)?
    {
        clear_upper(&volume)?;
    }
    books::settle(state, name, &|| thaw(host, name))?;
    let own = host.journal.state_dir(name);
    // The new upper that takes the place of one that was set aside.
    if own.join("work").exists() && !own.join("upper").exists() {
        let counts = crate::root::volume::has_projects(state);
        crate::root::prepare(state, name, origin(host, name)?.first_id, counts)?;
    }
    Ok(())
}

fn thaw(host: &Host, name: &JailName) -> Result<()> {
    let cgroup = super::cgroup(host, name)?;
    if cgroup.exists() { cgroup.thaw() } else { Ok(()) }
}

/// Whose ids the jail's files have.
pub fn origin(host: &Host, name: &JailName) -> Result<Origin> {
    let range = ids::recorded(&host.journal.state_dir(name))?;
    let recorded = host.journal.record(name).ok().flatten().map(|record| record.first_id);
    let first_id = recorded.or(range.map(|range| ids::first(host.config.ids, range))).unwrap_or(0);
    Ok(Origin { schema: SCHEMA, jail: name.clone(), first_id, range: range.filter(|_| first_id > 0) })
}

fn hold<'a>(host: &'a Host, name: &'a JailName) -> Result<Held<'a>> {
    let lock = lock::jail(&host.journal.paths, name)?;
    settle(host, name)?;
    let live = probe::one(&host.journal, &host.config, &host.hierarchies, name)?;
    let state = &host.journal.paths.state;
    let volume = Volume::open(state, name)?;
    let mut held = Held { host, name, state, live, volume, earlier: None, _lock: lock };
    held.earlier = held.earlier()?;
    Ok(held)
}

/// Why a jail's writes cannot be set aside.
pub fn refuse(wanted: &DesiredJail) -> Result<()> {
    if let Some(path) = &wanted.jail.path {
        bail!("its root is {}, of which stockade keeps nothing", path.display());
    }
    let storage = wanted.jail.root.storage.as_str();
    ensure!(storage != "tmpfs", "what it writes is in memory and not kept (root.storage = \"tmpfs\")");
    Ok(())
}

/// Takes a snapshot under `label`.
pub fn take(host: &Host, wanted: &DesiredJail, asked: &Asked<'_>) -> Result<Snapshot> {
    refuse(wanted)?;
    let name = &wanted.jail.name;
    let held = hold(host, name)?;
    if let Some(label) = asked.label
        && books::find(held.state, name, label)?.is_some()
    {
        bail!("it has a snapshot `{label}` already");
    }
    let (snapshot, _) = held.take(wanted, asked)?;
    Ok(snapshot)
}

/// The same, unless the jail is down and has written nothing since the last snapshot of any kind.
pub fn take_if_new(host: &Host, wanted: &DesiredJail, asked: &Asked<'_>) -> Result<Option<Snapshot>> {
    refuse(wanted)?;
    let name = &wanted.jail.name;
    let held = hold(host, name)?;
    let base = books::base(held.state, name)?;
    let is_known = || -> Result<bool> {
        Ok(books::list(held.state, name)?.iter().any(|snapshot| snapshot.chain == base))
    };
    if held.next_id(false)?.is_none() && is_known()? {
        return Ok(None);
    }
    Ok(Some(held.take(wanted, asked)?.0))
}

/// Puts a stopped jail back to `target`. What it has now is kept under
/// [`books::BEFORE_ROLLBACK`], if `keep`.
pub fn roll_back(host: &Host, wanted: &DesiredJail, target: &Snapshot, keep: bool) -> Result<()> {
    refuse(wanted)?;
    let held = hold(host, &wanted.jail.name)?;
    ensure!(!held.runs(), "it runs");
    held.fits(target)?;
    let label = keep.then_some(books::BEFORE_ROLLBACK);
    let asked = Asked { label, schedule: None, progress: &|_| () };
    held.aside(held.next_id(true)?.as_deref(), wanted, &asked, Some(target.chain.clone()))?;
    changes::sweep(held.state)
}

/// A new jail's first state: that of `source` now, or one of its snapshots. `definition` is
/// written when all the rest is true.
pub fn clone_jail(
    host: &Host,
    source: &DesiredJail,
    new: &JailName,
    from: Option<&Snapshot>,
    definition: (&Path, &str),
    progress: Progress<'_>,
) -> Result<Option<Snapshot>> {
    refuse(source)?;
    let taken = match from {
        Some(_) => None,
        None => Some(clone_source(host, source, new, definition, progress)?),
    };
    let Some(chain) = from.map(|snapshot| snapshot.chain.clone()) else { return Ok(taken) };
    let _lock = lock::jail(&host.journal.paths, new)?;
    let pending = new_jail(None, chain, definition);
    books::begin(&host.journal.paths.state, new, &pending)?;
    books::finish(&host.journal.paths.state, new, &pending)?;
    Ok(None)
}

fn new_jail(change: Option<String>, chain: Vec<String>, definition: (&Path, &str)) -> Pending {
    Pending {
        schema: SCHEMA,
        change,
        snapshot: None,
        base: Some(chain),
        froze: false,
        clear: false,
        definition: Some((definition.0.to_owned(), definition.1.to_owned())),
    }
}

/// From the jail as it is now: what is set aside for it is the new jail's from the start.
fn clone_source(
    host: &Host,
    source: &DesiredJail,
    new: &JailName,
    definition: (&Path, &str),
    progress: Progress<'_>,
) -> Result<Snapshot> {
    let held = hold(host, &source.jail.name)?;
    let lock = lock::jail(&host.journal.paths, new)?;
    let taken = clone_held(&held, source, new, definition, progress);
    if taken.is_err() {
        // The first error is the one to tell.
        let _ = host.journal.unlock(lock, new);
    }
    taken
}

fn clone_held(
    held: &Held<'_>,
    source: &DesiredJail,
    new: &JailName,
    definition: (&Path, &str),
    progress: Progress<'_>,
) -> Result<Snapshot> {
    let asked = Asked { label: None, schedule: None, progress };
    let id = held.next_id(false)?;
    let chain = held.chain(id.as_deref())?;
    let pending = new_jail(id.clone(), chain, definition);
    books::begin(held.state, new, &pending)?;
    let taken = held.take_as(id, source, &asked);
    match &taken {
        Ok(_) => books::finish(held.state, new, &pending)?,
        // The first error is the one to tell; what is left is settled by the next pass.
        Err(_) => drop(books::undo(held.state, new)),
    }
    taken
}

/// What cannot be listed is not empty for that.
fn is_written(volume: &Volume) -> io::Result<bool> {
    match file::open_child(volume.directory(), export::part(volume.kind()).as_ref()) {
        Ok(own) => Ok(!file::names(&own, 1)?.is_empty()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

impl Held<'_> {
    fn runs(&self) -> bool {
        matches!(self.live.state, JailState::Up | JailState::Frozen | JailState::Orphaned)
    }

    /// The one that runs.
    fn instance(&self) -> Option<&str> {
        self.live.record.as_ref().filter(|_| self.runs()).map(|record| record.instance.as_str())
    }

    /// Whether what the snapshot kept can be what the jail stands on, or its root.
    fn fits(&self, target: &Snapshot) -> Result<()> {
        let Some(top) = target.chain.first() else { return Ok(()) };
        let is_root = changes::part(self.state, top, volume::THICK).is_some();
        let kind = volume::held(self.state, self.name)?.map_or(Kind::Overlay, |held| held.kind);
        match (is_root, kind == Kind::Directory) {
            (true, false) => {
                bail!("{} is of a whole root, and it is {kind} now (root.storage)", target.label)
            }
            (false, true) => bail!("{} is not of a whole root, as it is now (root.storage)", target.label),
            _ => Ok(()),
        }
    }

    /// Of the changes to be made; none when nothing was written since the last ones. With `way` it
    /// is in the way, written to or not, where the volume is made anew.
    fn next_id(&self, way: bool) -> Result<Option<String>> {
        let Some(volume) = &self.volume else { return Ok(None) };
        let in_way = way && volume.kind() == Kind::Btrfs;
        let is_needed = self.runs() || in_way || is_written(volume).context("look at what it has written")?;
        Ok(is_needed.then(|| super::instance(self.name)))
    }

    fn chain(&self, id: Option<&str>) -> Result<Vec<String>> {
        let mut chain: Vec<String> = id.map(ToOwned::to_owned).into_iter().collect();
        match &self.earlier {
            Some(earlier) => chain.extend_from_slice(&earlier.chain),
            None => chain.extend(books::base(self.state, self.name)?),
        }
        Ok(chain)
    }

    fn take(&self, wanted: &DesiredJail, asked: &Asked<'_>) -> Result<(Snapshot, Vec<String>)> {
        let snapshot = self.take_as(self.next_id(false)?, wanted, asked)?;
        let chain = snapshot.chain.clone();
        Ok((snapshot, chain))
    }

    fn take_as(&self, id: Option<String>, wanted: &DesiredJail, asked: &Asked<'_>) -> Result<Snapshot> {
        let state = &self.live.state;
        ensure!(*state != JailState::Partial, "a start or stop of it was cut off: apply first");
        if self.runs() || (id.is_some() && self.grows() && !self.shorten()?) {
            self.copy(id, wanted, asked)
        } else {
            self.aside(id.as_deref(), wanted, asked, None)
        }
    }

    fn new_snapshot(
        &self,
        id: Option<&str>,
        wanted: &DesiredJail,
        asked: &Asked<'_>,
        how: How,
    ) -> Result<Snapshot> {
        let record = self.live.record.as_ref();
        let wanted_layers = || wanted.root.layers.iter().map(|layer| layer.id.clone()).collect();
        Ok(Snapshot {
            schema: SCHEMA,
            label: asked.label.unwrap_or_default().to_owned(),
            at_ms: crate::journal::now_ms(),
            chain: self.chain(id)?,
            layers: record.map_or_else(wanted_layers, |record| record.layers.clone()),
            how,
            pause_ms: None,
            flush_ms: 0.0,
            schedule: asked.schedule.map(ToOwned::to_owned),
            instance: self.instance().map(ToOwned::to_owned),
        })
    }

    /// The stopped jail's upper is moved, and what was asked for lies below the next one.
    fn aside(
        &self,
        id: Option<&str>,
        wanted: &DesiredJail,
        asked: &Asked<'_>,
        base: Option<Vec<String>>,
    ) -> Result<Snapshot> {
        let how = if id.is_some() { How::Moved } else { How::Unchanged };
        let mut snapshot = self.new_snapshot(id, wanted, asked, how)?;
        if let Some(volume) = &self.volume {
            snapshot.flush_ms = flush(volume)?;
        }
        let pending = Pending {
            schema: SCHEMA,
            change: id.map(ToOwned::to_owned),
            snapshot: asked.label.map(|_| snapshot.clone()),
            base: Some(base.unwrap_or_else(|| snapshot.chain.clone())),
            froze: false,
            clear: id.is_some() && !self.is_movable(),
            definition: None,
        };
        books::begin(self.state, self.name, &pending)?;
        if let (Some(id), Some(volume)) = (id, &self.volume) {
            self.set_upper_aside(id, volume, asked)?;
            if pending.clear {
                clear_upper(volume)?;
            }
        }
        books::finish(self.state, self.name, &pending)?;
        settle(self.host, self.name)?;
        Ok(snapshot)
    }

    /// Whether what is set aside stays below it for good.
    fn grows(&self) -> bool {
        self.volume.as_ref().is_some_and(|volume| matches!(volume.kind(), Kind::Overlay | Kind::Image))
    }

    /// Whether what it writes lies on the file system on which changes do.
    fn is_movable(&self) -> bool {
        self.volume.as_ref().is_none_or(|volume| volume.kind() != Kind::Image)
    }

    fn set_upper_aside(&self, id: &str, volume: &Volume, asked: &Asked<'_>) -> Result<()> {
        let place = changes::begin(self.state, id, &origin(self.host, self.name)?)?;
        if self.is_movable() {
            let part = volume::part(volume.kind());
            let own = file::open_directory(&volume::jail_directory(self.state, self.name))?;
            rustix::fs::renameat_with(&own, part, &place, part, RenameFlags::NOREPLACE)
                .context("set the jail's writes aside")?;
            if volume.kind() == Kind::Btrfs {
                close(&place, part).context("make the changes read only")?;
            }
            return rustix::fs::fsync(&place).context("sync the changes");
        }
        let (from, to) = (upper(volume)?, make(&place, PARTIAL)?);
        let progress = |copied: &Copied| tell(asked, copied);
        copy::tree(from.as_fd(), to.as_fd(), Owners::Same, &progress).context("copy the jail's writes")?;
        whole(&place, &to, "upper").map(drop)
    }
}

/// Not a whole root: within that the jail may have made subvolumes, which could not go with it.
fn close(place: &OwnedFd, part: &str) -> Result<()> {
    let open = file::open_child(place, part.as_ref())?;
    if btrfs::is_subvolume(open.as_fd()) {
        btrfs::close(open.as_fd())?;
    }
    Ok(())
}

fn tell(asked: &Asked<'_>, copied: &Copied) -> Result<()> {
    ensure!(!crate::interrupt::asked(), "interrupted");
    crate::supervisor::progress();
    (asked.progress)(copied);
    Ok(())
}

fn upper(volume: &Volume) -> Result<OwnedFd> {
    file::open_child(volume.directory(), "upper".as_ref()).context("open the jail's writes")
}

/// Empties an upper whose copy is whole; it stays what it is, with its owner.
fn clear_upper(volume: &Volume) -> Result<()> {
    removal::clear(&upper(volume)?).context("empty the jail's writes")
}

/// Puts the copy on the disk and gives it its name; says how long the flush took.
fn whole(place: &OwnedFd, copy: &OwnedFd, part: &str) -> Result<f64> {
    let flushed = sync(copy)?;
    rustix::fs::renameat(place, PARTIAL, place, part).context("rename into place")?;
    rustix::fs::fsync(place).context("sync the changes")?;
    Ok(flushed)
}

fn make(place: &OwnedFd, name: &str) -> Result<OwnedFd> {
    rustix::fs::mkdirat(place, name, Mode::RWXU).context("make directory")?;
    Ok(file::open_child(place, name.as_ref())?)
}

/// Puts the volume's file system on the disk, and says how long it took.
fn flush(volume: &Volume) -> Result<f64> {
    sync(&file::open_child(volume.directory(), ".".as_ref())?)
}

fn sync(directory: &OwnedFd) -> Result<f64> {
    let start = Instant::now();
    // Not O_PATH: that is no file system's to sync.
    rustix::fs::syncfs(directory).context("sync the file system")?;
    Ok(milliseconds(start))
}

fn milliseconds(since: Instant) -> f64 {
    (since.elapsed().as_secs_f64() * 1e6).round() / 1e3
}
