//! Limits and life of a jail's cgroup, on cgroup v1 per controller and on v2.
//!
//! Owns the directories `<parent>/<jail>` in every hierarchy a jail uses, what is written to them,
//! and what is read back. It decides nothing: a limit that this host cannot hold is named by
//! [`Hierarchies::refused`] for the plan, and a write that does not stick is an error.

mod cgroup;
mod change;
mod devices;
mod hierarchies;
pub(crate) mod mounts;
mod observe;
mod parents;
mod processes;
mod setting;
pub(crate) mod value;

pub use cgroup::{Cgroup, Needs};
pub use change::Pending;
pub use devices::check as check_device;
pub use hierarchies::Hierarchies;
pub use mounts::{Controller, Mounts, parse};
pub use observe::Usage;
pub use setting::PROCESSES_DEFAULT;

#[cfg(test)]
mod kernel_tests;
