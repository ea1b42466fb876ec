//! A jail's root file system on disk: shared layers, the jail's own writes, the files stockade owns.
//!
//! Shell. Nothing here decides what a root is made of; `template` has done that. Every path below
//! a root is resolved inside it by descriptor, and nothing is ever chowned recursively.

pub mod carry;
pub mod changes;
pub mod copy;
pub mod dedup;
pub mod diff;
pub mod export;
pub mod files;
pub mod import;
pub mod layers;
pub mod manifest;
pub mod marks;
pub mod own;
pub mod pack;
pub mod removal;
#[cfg(test)]
mod shown;
pub mod sides;
pub mod snapshot;
pub mod view;
pub mod volume;

pub use own::prepare;
pub use volume::{Volume, discard};

/// Tests that make files for other owners need root: without it they are skipped aloud, or fail
/// where the environment says that all must run.
#[cfg(test)]
fn is_root(test: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("STOCKADE_TEST_MUST_RUN").is_none_or(|v| v != "1"), "{test} needs root");
    eprintln!("{test}: skipped, needs root");
    false
}
