//! The only raw system calls and the only `unsafe`. Thin: each function is named after its call,
//! decides nothing, and its error says call and object.

pub mod btrfs;
pub mod cgroup;
pub mod confine;
pub mod extents;
pub mod file;
pub mod grow;
pub mod loops;
pub mod mount;
pub mod namespace;
pub mod netlink;
pub mod process;
pub mod quota;
pub mod socket;
