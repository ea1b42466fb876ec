//! When the loop wakes by itself. Pure: the clock is handed in.

use std::time::{Duration, Instant};

use super::Event;

/// The first and the longest pause after a pass with failures.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_mins(1);

/// A plan that asks for an earlier pass than this gets it then, so that a mistake there cannot
/// keep the loop spinning.
const WAKE_SOONEST: Duration = Duration::from_millis(100);

pub(super) struct Timers {
    every: Duration,
    rescan_at: Instant,
    retry_at: Option<Instant>,
    /// The pause after the next failure.
    pause: Duration,
}

impl Timers {
    pub(super) fn new(every: Duration, now: Instant) -> Self {
        Self { every, rescan_at: now + every, retry_at: None, pause: RETRY_FIRST }
    }

    /// Something has changed, so the next failure may be a new one.
    pub(super) fn forget_failures(&mut self) {
        self.pause = RETRY_FIRST;
    }

    /// `wake` is how long the plan wants to wait for its next pass.
    pub(super) fn after_pass(&mut self, now: Instant, failed: bool, wake: Option<Duration>) {
        self.rescan_at = now + self.every;
        let failure = failed.then_some(self.pause);
        self.pause = if failed { (self.pause * 2).min(RETRY_MAX) } else { RETRY_FIRST };
        let wake = wake.map(|wait| wait.clamp(WAKE_SOONEST, self.every));
        self.retry_at = [failure, wake].into_iter().flatten().min().map(|wait| now + wait);
    }

    /// The event whose time has come.
    pub(super) fn due(&self, now: Instant) -> Option<Event> {
        if now >= self.rescan_at {
            Some(Event::Rescan)
        } else if self.retry_at.is_some_and(|at| now >= at) {
            Some(Event::Retry)
        } else {
            None
        }
    }

    /// When [`Timers::due`] will next give something.
    pub(super) fn next(&self) -> Instant {
        self.retry_at.map_or(self.rescan_at, |at| at.min(self.rescan_at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_mins(1);

    #[test]
    fn failures_back_off_and_success_resets() {
        let now = Instant::now();
        let mut timers = Timers::new(EVERY, now);
        for (failed, expect) in [
            (true, 1),
            (true, 2),
            (true, 4),
            (true, 8),
            (true, 16),
            (true, 32),
            (true, 60),
            (false, 60),
            (true, 1),
        ] {
            timers.after_pass(now, failed, None);
            assert_eq!(timers.next() - now, Duration::from_secs(expect));
        }
        timers.after_pass(now, true, None);
        timers.forget_failures();
        timers.after_pass(now, true, None);
        assert_eq!(timers.next() - now, RETRY_FIRST);
    }

    #[test]
    fn the_plan_wakes_within_bounds() {
        let now = Instant::now();
        let mut timers = Timers::new(EVERY, now);
        for (failed, wake_ms, expect_ms) in [
            (false, Some(5_000), 5_000),
            (false, Some(0), 100),
            (false, Some(300_000), 60_000),
            (false, None, 60_000),
            (true, Some(5_000), 1_000),
            (true, Some(500), 500),
        ] {
            timers.after_pass(now, failed, wake_ms.map(Duration::from_millis));
            assert_eq!(timers.next() - now, Duration::from_millis(expect_ms), "{failed} {wake_ms:?}");
        }
    }

    #[test]
    fn each_event_comes_in_its_time() {
        let now = Instant::now();
        let mut timers = Timers::new(EVERY, now);
        timers.after_pass(now, true, None);
        for (after, expect) in [(0, None), (1, Some(Event::Retry)), (60, Some(Event::Rescan))] {
            assert_eq!(timers.due(now + Duration::from_secs(after)), expect);
        }
    }
}
