//! What systemd is told, by sd_notify(3); without systemd all of it does nothing.
//!
//! The watchdog is fed by the loop while it waits, and during a pass by [`progress`] alone. There
//! is no feeding thread: it would keep alive a daemon whose pass hangs, which is the one failure a
//! watchdog is for.

use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// The watchdog of this process, if systemd has set one for it.
static WATCHDOG: OnceLock<Option<Watchdog>> = OnceLock::new();

struct Watchdog {
    /// After this long without a word systemd kills the daemon.
    period: Duration,
    fed: Mutex<Option<Instant>>,
}

fn watchdog() -> Option<&'static Watchdog> {
    let from_environment =
        || sd_notify::watchdog_enabled().map(|period| Watchdog { period, fed: Mutex::new(None) });
    WATCHDOG.get_or_init(from_environment).as_ref()
}

/// How often the waiting loop must call [`progress`]: half the period, as sd_watchdog_enabled(3) asks.
pub fn feed_every() -> Option<Duration> {
    watchdog().map(|watchdog| watchdog.period / 2)
}

/// Says that the pass gets on. To be called after each step of a jail, for each entry of a long
/// copy, and in each turn of a wait that has an end of its own (a hook's timeout): anything that
/// may last but cannot last for ever. Cheap, from any thread, and nothing outside systemd.
pub fn progress() {
    let Some(watchdog) = watchdog() else { return };
    // Held by another thread: that one is feeding.
    let Ok(mut fed) = watchdog.fed.try_lock() else { return };
    if fed.is_none_or(|at| at.elapsed() >= watchdog.period / 4) {
        // Before the daemon is ready and after it was asked to stop there is no watchdog but a
        // timeout, which is put off by the same period.
        let period = u32::try_from(watchdog.period.as_micros()).unwrap_or(u32::MAX);
        tell(&[NotifyState::Watchdog, NotifyState::ExtendTimeoutUsec(period)]);
        *fed = Some(Instant::now());
    }
}

pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

pub fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// `MONOTONIC_USEC` lets `Type=notify-reload` tell this reload from an earlier one.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(states: &[NotifyState<'_>]) {
    // When systemd does not listen there is nobody who could be told.
    let _ = sd_notify::notify(states);
}
