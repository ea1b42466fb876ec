//! One loop that keeps the machine as the files want it, for as long as nobody stops it.
//!
//! Owns when a pass runs and what is said about it. It decides nothing about jails and keeps
//! nothing about them between passes: events carry no facts, and each pass looks anew. Stopping or
//! killing the daemon stops no jail; the next one adopts what runs.

mod lock;
mod said;
mod timers;
mod work;

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::desired::Paths;
use crate::jail::JailName;
use crate::journal::exits;
use crate::log::{self, Destination};
use crate::supervisor;
use crate::sys::signal::Signals;
use crate::watch::{Doorbell, Places, Ring};
use said::Said;
use timers::Timers;
use work::Work;
pub use work::{CommandOf, Job, Jobs, Wanted};

/// Everything is looked at this often even when nothing was heard: network file systems tell
/// nothing, and drift inside the kernel rings no bell.
pub const RESCAN: Duration = Duration::from_mins(1);

/// Events that may wait while a pass runs. More are dropped: the waiting ones already cause a
/// pass that sees everything.
const EVENTS_MAX: usize = 64;

/// Exit status when a second signal asks to stop before the pass has ended.
const EXIT_FORCED: i32 = 1;

/// Why the loop wakes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// From the doorbell: a definition or template may have changed.
    Changed,
    /// From the doorbell: a keeper has left word in the directory of exits.
    JailExited,
    /// A job beside the passes has ended.
    Worked,
    /// SIGHUP.
    Reload,
    /// SIGTERM or SIGINT.
    Stop,
    /// Of the loop's own clock: a failure's back-off, or the moment the plan asked for.
    Retry,
    /// Of the loop's own clock: [`RESCAN`] has gone by.
    Rescan,
}

/// What a pass leaves for the daemon to say and to wait for.
#[derive(Clone, Debug, Default)]
pub struct PassReport {
    /// One line each, `file:line:column: error: …`.
    pub diagnostics: Vec<String>,
    /// Jails whose part of the plan failed, with the reason in one line.
    pub failures: Vec<(JailName, String)>,
    /// How many jails are up now.
    pub up: usize,
    /// When the plan wants to be made again, milliseconds since the epoch.
    pub wake_ms: Option<u64>,
    /// What is to be done beside the passes.
    pub jobs: Jobs,
    /// How many of such are under way; filled in by the loop.
    pub working: usize,
}

/// What the daemon asks of one pass over everything.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Turns true when the daemon is asked to stop: no new step should begin then.
    pub stop: &'a AtomicBool,
    /// Take nothing for unchanged that was read before.
    pub anew: bool,
}

pub type Pass<'a> = dyn FnMut(Asked<'_>) -> anyhow::Result<PassReport> + 'a;

/// How the daemon runs; the default is right outside tests.
#[derive(Clone, Debug)]
pub struct Options {
    pub log: Destination,
    pub rescan: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { log: Destination::detect(), rescan: RESCAN }
    }
}

/// Whether a daemon serves these directories.
pub fn is_running(run: &Path) -> bool {
    lock::is_held(run)
}

/// Runs in the foreground until SIGTERM or SIGINT. What a pass wants done beside it is done by the
/// commands of `command`.
pub fn run(
    paths: &Paths,
    options: Options,
    command: CommandOf<'_>,
    pass: &mut Pass<'_>,
) -> anyhow::Result<()> {
    log::start(options.log);
    make_directory(&paths.run, 0o711)?;
    let _lock = lock::hold(&paths.run)?;
    let places = Places { config: paths.config.clone(), exits: exits::directory(&paths.run) };
    make_directory(&places.exits, 0o700)?;
    exits::take(&paths.run);
    let (events, inbox) = sync_channel(EVENTS_MAX);
    let stop = Arc::new(AtomicBool::new(false));
    catch_signals(events.clone(), Arc::clone(&stop))?;
    let bells = events.clone();
    let bell = move || -> work::Bell {
        let events = bells.clone();
        Box::new(move || tell(&events, Event::Worked))
    };
    let doorbell = Doorbell::hang(places, move |ring| tell(&events, event_of(ring)))?;
    log::info(None, &format!("daemon started, definitions in {}", paths.config.display()));
    let now = Instant::now();
    let timers = Timers::new(options.rescan, now);
    let (run, said, work) = (paths.run.clone(), Said::default(), Work::new(command, bell));
    let mut daemon = Loop { run, inbox, stop, doorbell, timers, said, work };
    daemon.serve(pass);
    Ok(())
}

fn make_directory(path: &Path, mode: u32) -> anyhow::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(mode).create(path).with_context(|| format!("make {}", path.display()))
}

fn event_of(ring: Ring) -> Event {
    match ring {
        Ring::Changed => Event::Changed,
        Ring::Exited => Event::JailExited,
    }
}

fn tell(events: &SyncSender<Event>, event: Event) {
    // Full: see EVENTS_MAX. Closed: the loop has ended, and with it the interest.
    let _ = events.try_send(event);
}

/// Turns signals into events. SIGCHLD is left alone: keepers are no children of the daemon.
fn catch_signals(events: SyncSender<Event>, stop: Arc<AtomicBool>) -> anyhow::Result<()> {
    let signals = Signals::catch(&[SIGHUP, SIGINT, SIGTERM]).context("catch signals")?;
    let thread = std::thread::Builder::new().name("signals".into());
    let forward = move || {
        loop {
            if signals.wait() == SIGHUP {
                tell(&events, Event::Reload);
            } else if stop.swap(true, Ordering::SeqCst) {
                // A pass may be cut at any point: the next one finds it in the journal.
                log::warn(None, "daemon stopped by a second signal, amid a pass");
                std::process::exit(EXIT_FORCED);
            } else {
                tell(&events, Event::Stop);
            }
        }
    };
    thread.spawn(forward).context("start the thread for signals")?;
    Ok(())
}

struct Loop<'c> {
    run: PathBuf,
    inbox: Receiver<Event>,
    stop: Arc<AtomicBool>,
    doorbell: Doorbell,
    timers: Timers,
    said: Said,
    work: Work<'c>,
}

impl Loop<'_> {
    fn serve(&mut self, pass: &mut Pass<'_>) {
        let status = self.round(Event::Rescan, pass);
        supervisor::ready(&status);
        while let Some(event) = self.wait() {
            if event == Event::Reload {
                supervisor::reloading();
                log::info(None, "reload");
            }
            let status = self.round(event, pass);
            if event == Event::Reload {
                supervisor::ready(&status);
            } else {
                supervisor::status(&status);
            }
        }
        supervisor::stopping();
        self.work.end();
        log::info(None, "daemon stopped, jails stay as they are");
        log::flush();
    }

    /// Sleeps until there is a reason for a pass; nothing when the daemon is to stop.
    fn wait(&mut self) -> Option<Event> {
        loop {
            supervisor::progress();
            if self.stop.load(Ordering::SeqCst) {
                return None;
            }
            let now = Instant::now();
            if let Some(event) = self.timers.due(now) {
                return Some(event);
            }
            let mut until = self.timers.next();
            if let Some(every) = supervisor::feed_every() {
                until = until.min(now + every);
            }
            match self.inbox.recv_timeout(until.saturating_duration_since(now)) {
                Ok(event) => return self.most_urgent(event),
                Err(RecvTimeoutError::Timeout) => {}
                // The senders live in threads that end with the process only.
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// One pass serves everything that waits.
    fn most_urgent(&self, first: Event) -> Option<Event> {
        let waiting: Vec<Event> = std::iter::once(first).chain(self.inbox.try_iter()).collect();
        [Event::Stop, Event::Reload, Event::Changed]
            .into_iter()
            .find(|event| waiting.contains(event))
            .or(Some(first))
            .filter(|event| *event != Event::Stop)
    }

    /// One pass, with what goes before and after it; gives the status line.
    fn round(&mut self, event: Event, pass: &mut Pass<'_>) -> String {
        match event {
            Event::Changed | Event::Reload => {
                self.timers.forget_failures();
                self.work.forget_troubles();
            }
            Event::JailExited | Event::Worked | Event::Stop | Event::Retry | Event::Rescan => {}
        }
        let anew = matches!(event, Event::Rescan | Event::Reload);
        if anew {
            self.doorbell.check();
        }
        // Taken before the pass looks: an exit that comes later rings again.
        for name in exits::take(&self.run) {
            log::info(Some(&name), "main process ended");
        }
        self.work.hear(Instant::now());
        let mut outcome = pass(Asked { stop: &self.stop, anew });
        let now = Instant::now();
        let failed = outcome.as_ref().map_or(true, |report| !report.failures.is_empty());
        let wake = outcome.as_ref().ok().and_then(|report| report.wake_ms).map(from_now);
        let rest = outcome.as_mut().ok().and_then(|report| self.beside(report, now));
        self.timers.after_pass(now, failed, wake.into_iter().chain(rest).min());
        self.say(&outcome, now);
        crate::sys::process::trim_memory();
        status_line(&outcome)
    }

    /// Sees to what is to be done beside the passes; gives when the next of it may begin.
    fn beside(&mut self, report: &mut PassReport, now: Instant) -> Option<Duration> {
        let rest = self.work.want(&report.jobs, now);
        report.failures.extend(self.work.failures(&report.jobs));
        report.working = self.work.running();
        rest
    }

    fn say(&mut self, outcome: &anyhow::Result<PassReport>, now: Instant) {
        let lines = match outcome {
            Ok(report) => self.said.report(report, now),
            Err(e) => self.said.failed(&format!("{e:#}"), now),
        };
        for line in lines {
            line.log();
        }
        log::flush();
    }
}

/// How long until a moment of the wall clock, which may have been set back or forth since.
fn from_now(at_ms: u64) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Duration::from_millis(at_ms).saturating_sub(now)
}

/// What `systemctl status` shows: `12 jails up, 1 failed`.
fn status_line(outcome: &anyhow::Result<PassReport>) -> String {
    let report = match outcome {
        Ok(report) => report,
        Err(e) => return log::escape(&format!("{e:#}")),
    };
    let failed = report.failures.len();
    let mut parts = vec![format!("{} up", counted(report.up, "jail"))];
    parts.extend((failed > 0).then(|| format!("{failed} failed")));
    parts.extend((report.working > 0).then(|| format!("{} under way", counted(report.working, "job"))));
    let diagnostics = report.diagnostics.len();
    parts.extend((diagnostics > 0).then(|| counted(diagnostics, "diagnostic")));
    parts.join(", ")
}

fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests;
