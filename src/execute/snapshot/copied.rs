//! A jail's writes taken as they are, while it goes on with them: it stands still for as long as
//! that cannot be done before.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use anyhow::{Context, Result, anyhow};

use super::{Asked, Held, PARTIAL, flush, make, milliseconds, origin, sync, tell, thaw, whole};
use crate::desired::DesiredJail;
use crate::live::JailState;
use crate::root::copy::{self, Copied, Index};
use crate::root::snapshot::{self as books, How, Pending, SCHEMA, Snapshot};
use crate::root::volume::{self, Kind, Volume};
use crate::root::{changes, export, removal};
use crate::sys::{btrfs, file};

/// Of files that were copied before the jail stood still.
const AHEAD: &str = "ahead";

/// How many changes may lie below what is copied next, before it is everything anew: each makes
/// files a little slower to find where a jail is put back to it.
const LONG: usize = 24;

/// The last snapshot of a running jail, of which the next need only be what has changed since.
pub(super) struct Earlier {
    /// Of the snapshot, topmost first.
    pub chain: Vec<String>,
    index: Index,
}

/// What came of a running jail's writes.
struct Taken {
    how: How,
    pause_ms: Option<f64>,
    flush_ms: f64,
}

impl Held<'_> {
    /// None unless it is of the same run of the jail: between two runs its writes may be emptied, or
    /// come to lie over something else, and what is gone from them is not gone from what it shows.
    pub(super) fn earlier(&self) -> Result<Option<Earlier>> {
        let Some(instance) = self.instance().filter(|_| self.grows()) else { return Ok(None) };
        let last = books::list(self.state, self.name)?.pop();
        let is_of_it = |last: &Snapshot| last.instance.as_deref() == Some(instance);
        let Some(last) = last.filter(|last| is_of_it(last) && last.chain.len() < LONG) else {
            return Ok(None);
        };
        let index = last.chain.first().and_then(|top| changes::index(self.state, top));
        Ok(index.map(|index| Earlier { chain: last.chain, index }))
    }

    /// What lies below the jail stays what it is, running or not.
    pub(super) fn copy(
        &self,
        id: Option<String>,
        wanted: &DesiredJail,
        asked: &Asked<'_>,
    ) -> Result<Snapshot> {
        let volume = self.volume.as_ref().ok_or_else(|| anyhow!("it keeps nothing that it writes"))?;
        let id = id.ok_or_else(|| anyhow!("it keeps nothing that it writes"))?;
        let mut snapshot = self.new_snapshot(Some(&id), wanted, asked, How::Copied)?;
        let mut pending = Pending {
            schema: SCHEMA,
            change: Some(id.clone()),
            snapshot: None,
            base: None,
            froze: self.runs() && self.live.state != JailState::Frozen,
            clear: false,
            definition: None,
        };
        books::begin(self.state, self.name, &pending)?;
        match self.copied(&id, volume, pending.froze, asked) {
            Ok(copied) => {
                (snapshot.how, snapshot.pause_ms, snapshot.flush_ms) =
                    (copied.how, copied.pause_ms, copied.flush_ms);
            }
            Err(error) => {
                // The first error is the one to tell. A jail that still stands still is settled by
                // the next pass.
                if !pending.froze || thaw(self.host, self.name).is_ok() {
                    let _ = books::undo(self.state, self.name);
                }
                return Err(error);
            }
        }
        let before = self.earlier.as_ref().filter(|_| asked.label.is_some());
        if let Some(before) = before.filter(|_| snapshot.how == How::Unchanged) {
            snapshot.chain.clone_from(&before.chain);
        }
        pending.snapshot = asked.label.map(|_| snapshot.clone());
        books::finish(self.state, self.name, &pending)?;
        match (before, snapshot.how) {
            (_, How::Unchanged) => changes::sweep(self.state)?,
            (Some(before), _) => changes::forget_index(self.state, &before.chain[0])?,
            (None, _) => {}
        }
        Ok(snapshot)
    }

    fn copied(&self, id: &str, volume: &Volume, freeze: bool, asked: &Asked<'_>) -> Result<Taken> {
        let place = changes::begin(self.state, id, &origin(self.host, self.name)?)?;
        let part = export::part(volume.kind());
        let from = file::open_child(volume.directory(), part.as_ref()).context("open the jail's writes")?;
        let whole = if volume.kind() == Kind::Btrfs { volume.directory() } else { from.as_fd() };
        if btrfs::is_subvolume(whole) {
            // Most of the flush is over before the jail has to stand still for the rest.
            flush(volume)?;
            return self.snapshotted((whole, volume::part(volume.kind())), &place, freeze);
        }
        self.copied_by_file((&from, part), &place, volume, (freeze, asked))
    }

    /// The call writes the whole file system to the disk, the subvolume's own data first.
    fn snapshotted(
        &self,
        (subvolume, part): (BorrowedFd<'_>, &str),
        place: &OwnedFd,
        freeze: bool,
    ) -> Result<Taken> {
        let cut = || {
            let start = Instant::now();
            btrfs::snapshot(subvolume, place.as_fd(), part.as_ref(), true).map(|()| milliseconds(start))
        };
        let (taken, pause_ms) = self.still(freeze, cut)?;
        let flush_ms = taken.context("make a snapshot of the jail's subvolume")?;
        Ok(Taken { how: How::Subvolume, pause_ms, flush_ms })
    }

    fn copied_by_file(
        &self,
        (from, part): (&OwnedFd, &str),
        place: &OwnedFd,
        volume: &Volume,
        (freeze, asked): (bool, &Asked<'_>),
    ) -> Result<Taken> {
        let (to, ahead) = (make(place, PARTIAL)?, make(place, AHEAD)?);
        let progress = |copied: &Copied| tell(asked, copied);
        let earlier = self.earlier.as_ref().map(|earlier| &earlier.index);
        let ready = copy::ahead(from.as_fd(), ahead.as_fd(), earlier, &progress)?;
        let before = ready.copied;
        // What was copied ahead too: no later write of the jail, nor its freezing, waits for it.
        // The copy itself reads what is in memory only as well as what is on the disk.
        if volume.kind() == Kind::Image {
            flush(volume)?;
        }
        sync(place)?;
        let copy = || copy::tree_after(from.as_fd(), to.as_fd(), ready, earlier, &progress);
        let (copied, pause_ms) = self.still(freeze, copy)?;
        let (mut copied, index) = copied.context("copy the jail's writes")?;
        copied.bytes += before.bytes;
        copied.shared += before.shared;
        removal::remove(place, AHEAD.as_ref())?;
        if earlier.is_some() && asked.label.is_some() && file::names(&to, 1)?.is_empty() {
            return Ok(Taken { how: How::Unchanged, pause_ms, flush_ms: 0.0 });
        }
        if let Some(index) = index.filter(|_| asked.label.is_some() && self.grows()) {
            changes::write_index(place, &index)?;
        }
        let how = match earlier {
            Some(_) => How::Changed,
            None if copied.shared == copied.bytes => How::Shared,
            None => How::Copied,
        };
        Ok(Taken { how, pause_ms, flush_ms: whole(place, &to, part)? })
    }

    /// Does the work while the jail stands still, and says for how long that was.
    fn still<T>(&self, freeze: bool, work: impl FnOnce() -> T) -> Result<(T, Option<f64>)> {
        if !freeze {
            return Ok((work(), None));
        }
        let cgroup = crate::execute::cgroup(self.host, self.name)?;
        let start = Instant::now();
        cgroup.freeze()?;
        let done = work();
        cgroup.thaw()?;
        Ok((done, Some(milliseconds(start))))
    }
}
