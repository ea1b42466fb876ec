//! What filling a tree may cost.

use std::time::{Duration, Instant};

use anyhow::ensure;

/// Entries of one layer.
pub const ENTRIES_MAX: u64 = 2_000_000;
/// Bytes of one layer, zeros of sparse files counted.
pub const BYTES_MAX: u64 = 64 << 30;
/// How long one layer may take to build.
pub const BUILD_TIME_MAX: Duration = Duration::from_mins(30);
/// More than anybody waits for.
const BOUNDLESS_TIME: Duration = Duration::from_hours(24 * 365);

/// What one layer may still use up.
#[derive(Debug)]
pub struct Budget {
    pub entries: u64,
    pub bytes: u64,
    pub deadline: Instant,
}

impl Default for Budget {
    fn default() -> Self {
        Self { entries: ENTRIES_MAX, bytes: BYTES_MAX, deadline: Instant::now() + BUILD_TIME_MAX }
    }
}

impl Budget {
    pub fn entry(&mut self) -> anyhow::Result<()> {
        ensure!(self.entries > 0, "more than {ENTRIES_MAX} entries");
        self.entries -= 1;
        self.in_time()
    }

    pub fn bytes(&mut self, count: u64) -> anyhow::Result<()> {
        ensure!(count <= self.bytes, "more than {BYTES_MAX} bytes");
        self.bytes -= count;
        self.in_time()
    }

    /// For what a person copies and looks on: it ends when they say so.
    pub fn boundless() -> Self {
        Self { entries: u64::MAX, bytes: u64::MAX, deadline: Instant::now() + BOUNDLESS_TIME }
    }

    fn in_time(&self) -> anyhow::Result<()> {
        ensure!(!crate::interrupt::asked(), "interrupted");
        ensure!(Instant::now() < self.deadline, "takes more than {} s", BUILD_TIME_MAX.as_secs());
        Ok(())
    }
}
