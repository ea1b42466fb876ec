//! What bounds the jails and how many there can be: cgroups, and the kernel's own counts.

use anyhow::{Context, Result};

use super::Line;
use crate::desired::HostConfig;
use crate::jail::Limits;
use crate::limits::{Cgroup, Hierarchies, Needs};

/// The number of jails a host should have room for.
pub const JAILS: u64 = 1_000;
/// A keeper, an init and a program each, and some.
const THREADS_A_JAIL: u64 = 4;
/// Inotify instances: the daemon's and those of what runs in the jails are per user.
const INSTANCES_MIN: u64 = 16;
const WATCHES_MIN: u64 = 8_192;
const FILES_MIN: u64 = 4 * JAILS;

pub fn lines(config: &HostConfig) -> Vec<Line> {
    let mut lines = Vec::new();
    match Hierarchies::detect() {
        Ok(hierarchies) => {
            let version = if hierarchies.two() { "version 2" } else { "version 1, per controller" };
            lines.push(Line::tried(
                "cgroups",
                trial(&hierarchies, config)
                    .map(|()| version.to_owned())
                    .map_err(|error| format!("{error:#}")),
                Line::no_by,
                "mount cgroup v2 (or v1 with memory, pids and cpu) writable; a service needs Delegate=yes",
            ));
            for (key, reason) in hierarchies.refused() {
                lines.push(Line::limited("limit", format!("{key} cannot be enforced"), reason));
            }
        }
        Err(error) => {
            let remedy = "mount cgroup2 at /sys/fs/cgroup";
            lines.push(Line::no("cgroups", format!("{error:#}"), remedy));
        }
    }
    lines.extend([
        at_least("threads", "kernel.threads-max", "/proc/sys/kernel/threads-max", JAILS * THREADS_A_JAIL),
        at_least("process ids", "kernel.pid_max", "/proc/sys/kernel/pid_max", JAILS * THREADS_A_JAIL),
        at_least("keys", "kernel.keys.root_maxkeys", "/proc/sys/kernel/keys/root_maxkeys", 2 * JAILS),
        at_least(
            "inotify instances",
            "fs.inotify.max_user_instances",
            "/proc/sys/fs/inotify/max_user_instances",
            INSTANCES_MIN,
        ),
        at_least(
            "inotify watches",
            "fs.inotify.max_user_watches",
            "/proc/sys/fs/inotify/max_user_watches",
            WATCHES_MIN,
        ),
        files(),
    ]);
    lines
}

/// A cgroup of its own with the three limits, made, read back by its maker, and removed.
fn trial(hierarchies: &Hierarchies, config: &HostConfig) -> Result<()> {
    let refused = hierarchies.refused();
    let allowed = |key: &str, value: u64| (!refused.contains_key(key)).then_some(value);
    let limits = Limits {
        memory: allowed("limits.memory", 64 << 20),
        cpu: allowed("limits.cpu", 1_000),
        processes: allowed("limits.processes", 16),
        ..Limits::default()
    };
    let name = format!("doctor-{}", std::process::id());
    let cgroup = Cgroup::create(hierarchies, &config.cgroup, &name, &limits, &Needs::default())
        .context("make a cgroup with limits")?;
    cgroup.remove()?;
    hierarchies.remove_parent(&config.cgroup)
}

fn at_least(what: &'static str, key: &str, path: &str, least: u64) -> Line {
    match number(path) {
        Some(found) if found < least => Line::limited(
            what,
            format!("at most {found}"),
            format!("for {JAILS} jails: sysctl {key}={least}"),
        ),
        Some(found) => Line::ok(what, format!("at most {found}")),
        None => Line::ok(what, "this kernel sets no bound"),
    }
}

fn files() -> Line {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    match limit.maximum {
        Some(most) if most < FILES_MIN => Line::limited(
            "open files",
            format!("at most {most}"),
            format!("for {JAILS} jails: ulimit -Hn {FILES_MIN}, or LimitNOFILE="),
        ),
        Some(most) => Line::ok("open files", format!("at most {most}")),
        None => Line::ok("open files", "no bound"),
    }
}

/// A file that holds one number.
pub fn number(path: &str) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.split_whitespace().next()?.parse().ok()
}
