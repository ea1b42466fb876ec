//! Promises that only a real kernel can break: real jails, on a host of the test's own.
//!
//! Every test makes a [`machine::Machine`] and leaves it; what is left behind fails it. Without
//! root a test says aloud that it is skipped, and with `STOCKADE_TEST_MUST_RUN=1` it fails.

mod apply;
mod builds;
mod cp;
mod crash;
mod daemon;
mod dedup;
mod export;
mod faults;
mod hooks;
mod images;
mod leak;
mod leaks;
mod life;
mod limits;
mod machine;
mod network;
mod quickstart;
mod recover;
mod run;
mod sandbox;
mod security;
mod snapshot;
mod snapshot_kinds;
mod soak;
mod storage;
mod templates;
mod upgrade;
mod work;
