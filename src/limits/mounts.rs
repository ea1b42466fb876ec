//! Where the cgroup hierarchies of this host are mounted, per controller. Pure: reads two texts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// A controller this program uses, by its cgroup v1 name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Controller {
    Memory,
    Pids,
    Cpu,
    Cpuacct,
    Cpuset,
    Devices,
    Freezer,
}

impl Controller {
    pub const ALL: [Self; 7] =
        [Self::Memory, Self::Pids, Self::Cpu, Self::Cpuacct, Self::Cpuset, Self::Devices, Self::Freezer];
    /// The three every jail needs; they decide which version of cgroups this host is.
    pub const CORE: [Self; 3] = [Self::Memory, Self::Pids, Self::Cpu];

    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Cpu => "cpu",
            Self::Cpuacct => "cpuacct",
            Self::Cpuset => "cpuset",
            Self::Devices => "devices",
            Self::Freezer => "freezer",
        }
    }
}

/// The usable hierarchies of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mounts {
    /// Mount points of the v1 hierarchies; empty on a host of pure cgroup v2.
    pub v1: BTreeMap<Controller, PathBuf>,
    /// The v2 hierarchy; with v1 controllers beside it, it carries none of ours.
    pub unified: Option<PathBuf>,
    /// Why a controller is not in `v1`; `/proc/cgroups` says so.
    pub missing: BTreeMap<Controller, String>,
}

impl Mounts {
    /// Whether the controllers are those of cgroup v2.
    pub fn two(&self) -> bool {
        self.v1.is_empty()
    }
}

/// One line of proc_pid_mountinfo(5).
#[derive(Debug)]
struct Mount<'a> {
    id: u32,
    parent: u32,
    root: &'a str,
    point: PathBuf,
    writable: bool,
    kind: &'a str,
    options: &'a str,
}

/// Finds the hierarchies in the texts of /proc/self/mountinfo and /proc/cgroups. Three layouts are
/// served: v1 controllers, v1 controllers beside a v2 hierarchy without them, and v2 alone.
pub fn parse(mountinfo: &str, cgroups: &str) -> Result<Mounts> {
    let all: Vec<Mount> = mountinfo.lines().filter_map(line).collect();
    let seen: Vec<&Mount> = all.iter().filter(|m| usable(m) && !hidden(m, &all)).collect();
    let table = Table::parse(cgroups);
    let mut v1 = BTreeMap::new();
    for controller in Controller::ALL {
        if let Some(mount) = best(seen.iter().filter(|m| m.kind == "cgroup" && has(m, controller.name()))) {
            v1.insert(controller, mount.point.clone());
        }
    }
    let unified = best(seen.iter().filter(|m| m.kind == "cgroup2")).map(|m| m.point.clone());
    settle(Mounts { v1, unified, missing: BTreeMap::new() }, &table, &all)
}

/// Decides between the layouts, and refuses a mix of both versions.
fn settle(mut mounts: Mounts, table: &Table, all: &[Mount]) -> Result<Mounts> {
    let (one, other): (Vec<_>, Vec<_>) =
        Controller::CORE.into_iter().partition(|c| mounts.v1.contains_key(c));
    if one.is_empty() {
        // Stray v1 controllers (a net_cls of some VPN, a forgotten freezer) are of no use alone.
        mounts.v1.clear();
        if mounts.unified.is_none() {
            bail!(nothing(all));
        }
        return Ok(mounts);
    }
    let on_two = other.iter().find(|c| mounts.unified.is_some() && table.on_v2(**c));
    if let Some(two) = on_two {
        bail!(
            "cgroup controllers are split: {} is on v1 and {} on v2; boot with \
             systemd.unified_cgroup_hierarchy=1, or mount all of them on v1",
            one[0].name(),
            two.name()
        );
    }
    for controller in Controller::ALL.into_iter().filter(|c| !mounts.v1.contains_key(c)) {
        mounts.missing.insert(controller, table.reason(controller, mounts.unified.is_some()));
    }
    Ok(mounts)
}

fn nothing(all: &[Mount]) -> String {
    match all.iter().find(|m| m.kind.starts_with("cgroup") && !m.writable) {
        Some(mount) => format!(
            "{} is mounted read only: mount the cgroup file system writable, or give this container its own",
            mount.point.display()
        ),
        None => "no cgroup file system is mounted: mount -t cgroup2 none /sys/fs/cgroup".to_owned(),
    }
}

/// What /proc/cgroups says; a controller it does not list is not in the kernel, or only on v2.
struct Table {
    listed: BTreeSet<String>,
    disabled: BTreeSet<String>,
    /// Controllers of hierarchy 0, the v2 one when there is one.
    zero: BTreeSet<String>,
}

impl Table {
    fn parse(text: &str) -> Self {
        let mut table = Self { listed: BTreeSet::new(), disabled: BTreeSet::new(), zero: BTreeSet::new() };
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let mut words = line.split_ascii_whitespace();
            let (Some(name), Some(hierarchy), enabled) = (words.next(), words.next(), words.nth(1)) else {
                continue;
            };
            table.listed.insert(name.to_owned());
            if enabled == Some("0") {
                table.disabled.insert(name.to_owned());
            } else if hierarchy == "0" {
                table.zero.insert(name.to_owned());
            }
        }
        table
    }

    fn on_v2(&self, controller: Controller) -> bool {
        self.zero.contains(controller.name())
    }

    fn reason(&self, controller: Controller, unified: bool) -> String {
        let name = controller.name();
        if self.disabled.contains(name) {
            return disabled(name);
        }
        if !self.listed.contains(name) {
            return format!("no {name} controller: this kernel was built without it");
        }
        if self.zero.contains(name) && unified {
            return format!(
                "no {name} controller: it is not mounted as v1 like the others; \
                 mount -t cgroup -o {name} cgroup /sys/fs/cgroup/{name}"
            );
        }
        format!(
            "no {name} controller: its hierarchy is not mounted here; mount -t cgroup -o {name} cgroup /sys/fs/cgroup/{name}"
        )
    }
}

/// What a controller that is off says.
pub fn disabled(name: &str) -> String {
    format!("no {name} controller: boot with cgroup_enable={name}")
}

fn line(text: &str) -> Option<Mount<'_>> {
    let (head, tail) = text.split_once(" - ")?;
    let mut head = head.split(' ');
    let (id, parent) = (head.next()?.parse().ok()?, head.next()?.parse().ok()?);
    let root = head.nth(1)?;
    let (point, flags) = (unescape(head.next()?), head.next()?);
    let mut tail = tail.split(' ');
    let kind = tail.next()?;
    let options = tail.nth(1)?;
    let writable = !word(flags, "ro") && !word(options, "ro");
    Some(Mount { id, parent, root, point, writable, kind, options })
}

fn word(list: &str, name: &str) -> bool {
    list.split(',').any(|part| part == name)
}

fn has(mount: &Mount, controller: &str) -> bool {
    word(mount.options, controller)
}

/// Read-only mounts take no limit; a root above our cgroup namespace belongs to somebody else.
fn usable(mount: &Mount) -> bool {
    mount.kind.starts_with("cgroup") && mount.writable && !mount.root.starts_with("/..")
}

/// A hierarchy mounted whole is preferred over a bound part of it, then the first of the list.
fn best<'a, 'b: 'a>(mounts: impl Iterator<Item = &'a &'b Mount<'b>>) -> Option<&'a Mount<'b>> {
    mounts.copied().min_by_key(|m| m.root != "/")
}

/// Whether another mount lies over this one: whether a walk down its path, entering what is
/// mounted at each step as the kernel does, ends in another.
fn hidden(mount: &Mount, all: &[Mount]) -> bool {
    let mut at = None;
    let steps: Vec<&Path> = mount.point.ancestors().collect();
    for step in steps.into_iter().rev() {
        while let Some(next) =
            all.iter().rev().find(|m| m.point.as_os_str() == step.as_os_str() && above(m, all) == at)
        {
            at = Some(next.id);
        }
    }
    at != Some(mount.id)
}

/// The mount this one stands on; none for the first, and for one that stands on what a chroot hides.
fn above(mount: &Mount, all: &[Mount]) -> Option<u32> {
    (mount.parent != mount.id && all.iter().any(|m| m.id == mount.parent)).then_some(mount.parent)
}

/// Undoes the octal escapes of space, tab, newline and backslash.
fn unescape(text: &str) -> PathBuf {
    if !text.contains('\\') {
        return Path::new(text).to_owned();
    }
    let (tab, newline) = ("\t", "\n");
    let plain = text.replace("\\040", " ").replace("\\011", tab).replace("\\012", newline);
    plain.replace("\\134", "\\").into()
}

#[cfg(test)]
#[path = "mounts_tests.rs"]
mod tests;
