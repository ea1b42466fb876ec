//! What a long copy shows on a terminal: nothing for a second, then how far it is.

use std::cell::Cell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Options;

/// How long a thing is done in silence.
const SILENCE: Duration = Duration::from_secs(1);
/// Redraws a second, at most.
const HERTZ: u8 = 10;

/// Counts bytes; with a known total there is a bar.
pub struct Progress {
    bar: ProgressBar,
    begun: Instant,
    /// There is somebody to look, and it is not shown yet.
    waits: Cell<bool>,
}

impl Progress {
    pub fn new(options: &Options, what: &str, total: Option<u64>) -> Result<Self> {
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::hidden());
        bar.set_style(ProgressStyle::with_template(match total {
            Some(_) => "{prefix}: {bar:30} {bytes} of {total_bytes}, {bytes_per_sec} {wide_msg}",
            None => "{spinner} {prefix}: {bytes}, {bytes_per_sec}, {elapsed} {wide_msg}",
        })?);
        bar.set_prefix(what.to_owned());
        let looked_at = std::io::stderr().is_terminal() && !options.json;
        Ok(Self { bar, begun: Instant::now(), waits: Cell::new(looked_at) })
    }

    pub fn add(&self, bytes: u64) {
        if self.waits.get() && self.begun.elapsed() > SILENCE {
            self.bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(HERTZ));
            self.waits.set(false);
        }
        self.bar.inc(bytes);
    }

    pub fn bytes(&self) -> u64 {
        self.bar.position()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
