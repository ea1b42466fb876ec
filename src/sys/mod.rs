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
pub mod signal;
pub mod socket;

/// What a call of the C library gave, or the error that errno holds.
fn checked(returned: i32) -> std::io::Result<i32> {
    if returned < 0 { Err(std::io::Error::last_os_error()) } else { Ok(returned) }
}
