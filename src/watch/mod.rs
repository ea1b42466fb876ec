//! A doorbell on the definition and template trees: it says that something may have changed, never what.
//!
//! Owns the inotify watches (by notify), what they are put on as directories come and go, and the
//! wait until an editor is done. It reads no definition and carries no facts: whoever hears it ring
//! looks for himself. What it cannot hear (network file systems, a parent renamed) is why the
//! daemon also looks once a minute, and calls [`Doorbell::check`] then.

mod layout;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::Context;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};

use crate::log;
use layout::Layout;

/// It rings when nothing has happened for this long, ...
pub const QUIET: Duration = Duration::from_millis(150);
/// ... and after this long at the latest when it never gets quiet.
pub const LATEST: Duration = Duration::from_secs(1);

/// How often the watches are put up anew when directories change while that is done.
const ARM_TRIES_MAX: usize = 5;

/// Why it rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// A definition or template may have changed.
    Changed,
    /// A keeper has left word that its jail ended. Not delayed.
    Exited,
}

/// What to watch.
#[derive(Clone, Debug)]
pub struct Places {
    /// The configuration directory, with `jails.d` and `templates` (recursive) below it.
    pub config: PathBuf,
    /// Where keepers put a file, by rename, when their jail has ended.
    pub exits: PathBuf,
}

/// Rings until it is dropped.
pub struct Doorbell {
    heard: Arc<Heard>,
}

impl Doorbell {
    /// Puts up the watches and starts the thread that calls `ring`. Every change after the return
    /// is heard. Watches that cannot be put up are logged and tried again at each
    /// [`Doorbell::check`]; only a thread that cannot start is an error.
    pub fn hang(places: Places, ring: impl FnMut(Ring) + Send + 'static) -> anyhow::Result<Self> {
        // One token is enough: it means "look at the bits".
        let (wake, woken) = sync_channel(1);
        let heard = Arc::new(Heard { bits: AtomicU8::new(0), wake });
        let mut listener = Listener {
            places,
            heard: Arc::clone(&heard),
            woken,
            ring: Box::new(ring),
            watches: None,
            complaint: String::new(),
        };
        listener.arm();
        let thread = std::thread::Builder::new().name("doorbell".into());
        thread.spawn(move || listener.listen()).context("start the doorbell's thread")?;
        Ok(Self { heard })
    }

    /// Compares the watched directories with those that are there now, and rings if one has been
    /// replaced unheard.
    pub fn check(&self) {
        self.heard.note(CHECK);
    }
}

impl Drop for Doorbell {
    fn drop(&mut self) {
        self.heard.note(END);
    }
}

/// A definition or template may have changed.
const CHANGED: u8 = 1;
/// A jail ended.
const EXITED: u8 = 2;
/// A watched directory is gone or events were lost: the watches must be put up anew.
const LOST: u8 = 4;
/// Somebody asks whether the watches are still right.
const CHECK: u8 = 8;
/// The doorbell is dropped.
const END: u8 = 16;

/// What has been heard since the listener last looked. Bits and not a queue, so that the thread
/// that reads inotify never blocks and no flood of events takes memory.
struct Heard {
    bits: AtomicU8,
    wake: SyncSender<()>,
}

impl Heard {
    fn note(&self, bits: u8) {
        if bits != 0 {
            self.bits.fetch_or(bits, Ordering::SeqCst);
            // A full channel holds a token that has not been taken yet, and who takes it sees
            // the bits set above. A closed one has no listener any more.
            let _ = self.wake.try_send(());
        }
    }

    fn take(&self) -> u8 {
        self.bits.swap(0, Ordering::SeqCst)
    }
}

/// Watches as they were put up: dropping them ends them.
struct Watches {
    layout: Layout,
    /// False when one of them could not be put up.
    whole: bool,
    _watcher: RecommendedWatcher,
}

struct Listener {
    places: Places,
    heard: Arc<Heard>,
    woken: Receiver<()>,
    ring: Box<dyn FnMut(Ring) + Send>,
    watches: Option<Watches>,
    /// The last complaint that was logged, so that it is not repeated each minute.
    complaint: String,
}

impl Listener {
    fn listen(mut self) {
        while self.woken.recv().is_ok() {
            let mut bits = self.look();
            if bits & (CHANGED | LOST) != 0 {
                bits |= self.settle();
            }
            if bits & END != 0 {
                return;
            }
            if bits & LOST != 0 || self.is_elsewhere() {
                self.arm();
                bits |= CHANGED;
            } else if bits & CHECK != 0 && self.watches.as_ref().is_some_and(|w| !w.whole) {
                self.arm();
            }
            if bits & CHANGED != 0 {
                (self.ring)(Ring::Changed);
            }
        }
    }

    /// Takes what was heard, and passes an exit on at once.
    fn look(&mut self) -> u8 {
        let bits = self.heard.take();
        if bits & EXITED != 0 {
            (self.ring)(Ring::Exited);
        }
        bits
    }

    /// Waits until it has been quiet for [`QUIET`], at most [`LATEST`]; gives what was heard meanwhile.
    fn settle(&mut self) -> u8 {
        let latest = Instant::now() + LATEST;
        let mut quiet = Instant::now() + QUIET;
        let mut heard = 0;
        loop {
            let until = quiet.min(latest);
            match self.woken.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(()) => {
                    let bits = self.look();
                    heard |= bits;
                    if bits & END != 0 {
                        return heard;
                    }
                    if bits & (CHANGED | LOST) != 0 {
                        quiet = Instant::now() + QUIET;
                    }
                }
                Err(RecvTimeoutError::Timeout) => return heard,
                Err(RecvTimeoutError::Disconnected) => return heard | END,
            }
            if Instant::now() >= latest {
                return heard;
            }
        }
    }

    /// The watches are not, or no longer, where they should be.
    fn is_elsewhere(&self) -> bool {
        self.watches.as_ref().is_none_or(|w| w.layout != Layout::of(&self.places))
    }

    /// Puts up all watches anew, and only then takes the old ones down. A fresh inotify instance
    /// instead of single changes: a watch on a directory that was renamed or removed leaves
    /// traces in notify that the next directory of that name would inherit.
    fn arm(&mut self) {
        for _ in 0..ARM_TRIES_MAX {
            let layout = Layout::of(&self.places);
            match watch(&layout, handler(layout.clone(), Arc::clone(&self.heard))) {
                Ok((watcher, failure)) => {
                    self.complain(failure.clone().unwrap_or_default());
                    self.watches = Some(Watches { layout, whole: failure.is_none(), _watcher: watcher });
                }
                Err(e) => self.complain(format!("{e:#}")),
            }
            // Something replaced before its watch was up is seen here, later by the watch.
            if self.watches.is_none() || !self.is_elsewhere() {
                return;
            }
        }
    }

    fn complain(&mut self, complaint: String) {
        if !complaint.is_empty() && complaint != self.complaint {
            log::warn(None, &format!("{complaint}; changes are seen once a minute only"));
        }
        self.complaint = complaint;
    }
}

/// Puts up the watches of a layout; the second part says what could not be.
fn watch(
    layout: &Layout,
    handler: impl FnMut(notify::Result<notify::Event>) + Send + 'static,
) -> anyhow::Result<(RecommendedWatcher, Option<String>)> {
    // Links are followed by the layout, one by one; notify would follow them out of the tree.
    let config = notify::Config::default().with_follow_symlinks(false);
    let mut watcher = RecommendedWatcher::new(handler, config).context("watch for changes")?;
    let mut failure = None;
    // The recursive ones last: a plain watch on a directory takes its recursion away.
    let mut directories: Vec<(PathBuf, bool)> = layout.directories().collect();
    directories.sort_by_key(|(_, recursive)| *recursive);
    for (path, recursive) in directories {
        let mode = if recursive { RecursiveMode::Recursive } else { RecursiveMode::NonRecursive };
        if let Err(e) = watcher.watch(&path, mode)
            && path.exists()
        {
            failure = Some(complaint(&path, &e));
        }
    }
    Ok((watcher, failure))
}

fn complaint(path: &Path, error: &notify::Error) -> String {
    match error.kind {
        notify::ErrorKind::MaxFilesWatch => {
            format!("watch {}: too many watches, see sysctl fs.inotify.max_user_watches", path.display())
        }
        _ => format!("watch {}: {error}", path.display()),
    }
}

/// What runs in notify's thread.
fn handler(layout: Layout, heard: Arc<Heard>) -> impl FnMut(notify::Result<notify::Event>) + Send + 'static {
    move |event| heard.note(layout.weigh(&event))
}

#[cfg(test)]
mod tests;
