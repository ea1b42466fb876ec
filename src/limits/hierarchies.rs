//! The hierarchies of this host, open: which controller is where, and what cannot be enforced.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};

use super::mounts::{Controller, Mounts, disabled, parse};
use super::setting::{Offer, SUM_ONE};
use crate::jail::Limits;
use crate::sys::cgroup::{Tree, VALUE_BYTES_MAX};

/// The leaf our own processes sit in below a delegated cgroup: an inner node holds none. The unit
/// names it too, `DelegateSubgroup=`.
pub const SUPERVISOR: &str = "daemon";
/// Where systemd puts the daemon's unit.
const UNIT: &str = "system.slice/stockade.service";
/// Cgroups looked at in the search for one that shows which files this kernel has.
const SAMPLES_MAX: usize = 16;

/// All hierarchies, opened once and shared by every [`Cgroup`](super::Cgroup). Cheap to clone.
#[derive(Clone, Debug)]
pub struct Hierarchies(Arc<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    trees: Vec<(Vec<Controller>, Arc<Tree>)>,
    unified: Option<Arc<Tree>>,
    two: bool,
    missing: BTreeMap<Controller, String>,
    /// The v2 cgroup everything is made below, relative to the mount point; empty is its top.
    base: String,
    /// The v2 cgroup this process is in.
    own: String,
    /// Controllers to be had in `base` on v2.
    controllers: Vec<String>,
    swap: bool,
}

impl Hierarchies {
    /// Looks at this host.
    pub fn detect() -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
        // Kernels without any v1 controller have no /proc/cgroups.
        let table = fs::read_to_string("/proc/cgroups").unwrap_or_default();
        Self::open(parse(&read("/proc/self/mountinfo")?, &table)?, &read("/proc/self/cgroup")?)
    }

    /// Opens the hierarchies of `mounts`, for a process whose proc_pid_cgroup(5) is `own`.
    pub fn open(mounts: Mounts, own: &str) -> Result<Self> {
        let two = mounts.two();
        let mut trees: Vec<(Vec<Controller>, Arc<Tree>)> = Vec::new();
        for (controller, point) in &mounts.v1 {
            let same = trees.iter_mut().find(|(held, _)| mounts.v1[&held[0]] == *point);
            match same {
                Some((held, _)) => held.push(*controller),
                None => trees.push((vec![*controller], open_tree(point)?)),
            }
        }
        let unified = mounts.unified.as_deref().map(open_tree).transpose()?;
        let own = own_unified(own);
        let base = unified.as_deref().filter(|_| two).map_or_else(String::new, |tree| base_of(tree, &own));
        let inner = Inner {
            trees,
            unified,
            two,
            missing: mounts.missing,
            base,
            own,
            controllers: Vec::new(),
            swap: false,
        };
        inner.look().map(|inner| Self(Arc::new(inner)))
    }

    /// The v2 cgroup everything is made below, relative to the mount point. A daemon in a cgroup
    /// delegated to it and a command typed in a shell may find different ones, so each jail's record
    /// holds its own, and whoever looks for the jail's goes there by [`Hierarchies::at`].
    pub fn base(&self) -> &str {
        &self.0.base
    }

    /// These hierarchies with `base`, one that [`Hierarchies::base`] gave before. Costs nothing
    /// when it is the same. A cgroup that is gone meanwhile is an empty one.
    pub fn at(&self, base: &str) -> Result<Self> {
        if base == self.base() || !self.two() { Ok(self.clone()) } else { self.with_base(base) }
    }

    fn with_base(&self, base: &str) -> Result<Self> {
        check_path(base)?;
        let inner = Inner { base: base.to_owned(), ..(*self.0).clone() };
        inner.look().map(|inner| Self(Arc::new(inner)))
    }

    /// Whether the controllers are those of cgroup v2.
    pub fn two(&self) -> bool {
        self.0.two
    }

    pub(super) fn offer(&self) -> Offer {
        Offer { two: self.0.two, swap: self.0.swap }
    }

    pub(super) fn own(&self) -> &str {
        &self.0.own
    }

    pub(super) fn controllers(&self) -> &[String] {
        &self.0.controllers
    }

    pub(super) fn unified(&self) -> Option<&Tree> {
        self.0.unified.as_deref()
    }

    /// The v1 hierarchies with their controllers; none on a host of pure v2.
    pub(super) fn trees(&self) -> impl Iterator<Item = (&[Controller], &Tree)> {
        self.0.trees.iter().map(|(controllers, tree)| (controllers.as_slice(), tree.as_ref()))
    }

    /// The hierarchy that carries `controller`.
    pub(super) fn tree(&self, controller: Controller) -> Result<&Tree> {
        if self.0.two {
            return self.unified().ok_or_else(|| anyhow!("no cgroup v2 hierarchy"));
        }
        let found = self.0.trees.iter().find(|(controllers, _)| controllers.contains(&controller));
        found.map(|(_, tree)| tree.as_ref()).ok_or_else(|| anyhow!(self.reason(controller)))
    }

    fn reason(&self, controller: Controller) -> String {
        let missing = self.0.missing.get(&controller).cloned();
        missing.unwrap_or_else(|| format!("no {} controller", controller.name()))
    }

    /// The names of all cgroups directly below `parent`, in any hierarchy: those of jails.
    pub fn children(&self, parent: &str) -> Result<BTreeSet<String>> {
        check_path(parent)?;
        let path = join(self.base(), parent);
        let mut names = BTreeSet::new();
        for tree in self.trees().map(|(_, tree)| tree).chain(self.unified()) {
            match tree.children(&path) {
                Ok(found) => names.extend(found),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("list {}", tree.full(&path).display()));
                }
            }
        }
        Ok(names)
    }

    /// Keys this host cannot enforce, with the reason and its fix.
    pub fn refused(&self) -> BTreeMap<String, String> {
        let mut refused = BTreeMap::new();
        for (controller, keys) in KEYS {
            if let Some(reason) = self.lacks(*controller) {
                refused.extend(keys.iter().map(|key| ((*key).to_owned(), reason.clone())));
            }
        }
        for (key, reason) in self.lacking_files() {
            refused.entry(key.to_owned()).or_insert_with(|| reason.to_owned());
        }
        refused
    }

    /// Limits that cannot be enforced together here, though each alone might: key and reason.
    pub fn conflicts(&self, limits: &Limits) -> BTreeMap<String, String> {
        let mut conflicts = BTreeMap::new();
        if !self.0.two && limits.swap.is_some() && limits.memory.is_none() {
            let reason = "cgroup v1 limits memory and swap in one sum: give limits.memory too";
            conflicts.insert("limits.swap".to_owned(), reason.to_owned());
        }
        conflicts
    }

    /// Why `controller` cannot be used, if so.
    fn lacks(&self, controller: Controller) -> Option<String> {
        if !self.0.two {
            return self.tree(controller).err().map(|error| error.to_string());
        }
        let name = controller.name();
        if matches!(controller, Controller::Devices) || self.0.controllers.iter().any(|c| c == name) {
            return None;
        }
        let top = self.unified().is_some_and(|tree| !tree.exists(&join(&self.0.base, "cgroup.type")));
        Some(match self.0.base.as_str() {
            // Only the kernel's own top has no cgroup.type.
            "" if top => disabled(name),
            "" => format!("no {name} controller: the host of this container does not hand it down"),
            unit => format!("no {name} controller in {unit}: its unit needs Delegate=yes"),
        })
    }

    /// Files that builds and boot options of the kernel leave out.
    fn lacking_files(&self) -> Vec<(&'static str, &'static str)> {
        let mut lacking = Vec::new();
        if !self.0.swap {
            lacking.push(("limits.swap", "swap is not accounted: boot with swapaccount=1"));
        }
        if !self.0.two {
            lacking.push((
                "limits.memory_high",
                "cgroup v1 has no soft memory limit that slows a jail: boot with systemd.unified_cgroup_hierarchy=1",
            ));
        }
        let (quota, shares) =
            if self.0.two { ("cpu.max", "cpu.weight") } else { ("cpu.cfs_quota_us", "cpu.shares") };
        let cpu = Controller::Cpu;
        if !self.0.offers(cpu, quota) {
            lacking.push(("limits.cpu", "no CPU quota: this kernel was built without CONFIG_CFS_BANDWIDTH"));
        }
        if !self.0.offers(cpu, shares) {
            lacking.push((
                "limits.cpu_weight",
                "no CPU weight: this kernel was built without CONFIG_FAIR_GROUP_SCHED",
            ));
        }
        lacking
    }
}

/// The keys each controller enforces.
const KEYS: &[(Controller, &[&str])] = &[
    (Controller::Memory, &["limits.memory", "limits.memory_high", "limits.swap"]),
    (Controller::Pids, &["limits.processes"]),
    (Controller::Cpu, &["limits.cpu", "limits.cpu_weight"]),
    (Controller::Cpuset, &["limits.cpuset"]),
    (Controller::Devices, &["allow.devices"]),
];

impl Inner {
    /// Reads what depends on `base` and on the kernel's build.
    fn look(mut self) -> Result<Self> {
        if let Some(tree) = self.unified.as_deref().filter(|_| self.two) {
            let mut buffer = [0; VALUE_BYTES_MAX];
            let path = join(&self.base, "cgroup.controllers");
            let text = match tree.read(&path, &mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && !self.base.is_empty() => "",
                other => other.with_context(|| format!("read {}", tree.full(&path).display()))?,
            };
            self.controllers = text.split(' ').map(str::to_owned).collect();
        }
        self.swap = self.offers(Controller::Memory, if self.two { "memory.swap.max" } else { SUM_ONE });
        Ok(self)
    }

    /// Whether cgroups of this host have `file`. On v2 the top has no limit files, so a cgroup
    /// below it is asked, one that has the controller; without any such the answer is yes, and
    /// the write that finds no file is the error.
    fn offers(&self, controller: Controller, file: &str) -> bool {
        if !self.two {
            let tree = self.trees.iter().find(|(held, _)| held.contains(&controller));
            return tree.is_some_and(|(_, tree)| tree.exists(file));
        }
        let Some(tree) = self.unified.as_deref() else { return false };
        // Either of the two shows that the controller is on there; builds may lack one of them.
        let known: &[&str] =
            if controller == Controller::Memory { &["memory.current"] } else { &["cpu.max", "cpu.weight"] };
        let children = tree.children(&self.base).unwrap_or_default();
        let below = children.iter().take(SAMPLES_MAX).map(|name| join(&self.base, name));
        let mut samples = std::iter::once(self.base.clone()).chain(below);
        let sample = samples.find(|path| known.iter().any(|file| tree.exists(&join(path, file))));
        sample.is_none_or(|path| tree.exists(&join(&path, file)))
    }
}

fn open_tree(point: &Path) -> Result<Arc<Tree>> {
    Tree::open(point).map(Arc::new).with_context(|| format!("open {}", point.display()))
}

/// Our own cgroup in the v2 hierarchy, without the leading slash; one outside of our cgroup
/// namespace counts as the top.
fn own_unified(cgroup: &str) -> String {
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    if path.starts_with("..") { String::new() } else { path.to_owned() }
}

/// A unit with `Delegate=yes` and `DelegateSubgroup=daemon` owns the cgroup above its own.
/// Without the subgroup systemd could not start the unit again while jails run: it would have to
/// put the process into an inner node, which the kernel refuses; so then the top is used. A command
/// from a shell joins the daemon's unit while that exists, where systemd leaves cgroups alone.
fn base_of(tree: &Tree, own: &str) -> String {
    let above = own.strip_suffix(SUPERVISOR).and_then(|path| path.strip_suffix('/'));
    let ours = |unit: &&str| tree.delegated(unit) && tree.exists(&join(unit, SUPERVISOR));
    above.filter(|unit| tree.delegated(unit)).or(Some(UNIT).filter(ours)).unwrap_or_default().to_owned()
}

/// Joins two relative paths, either of which may be empty.
pub(super) fn join(parent: &str, name: &str) -> String {
    match (parent, name) {
        ("", path) | (path, "") => path.to_owned(),
        _ => format!("{parent}/{name}"),
    }
}

/// Refuses a path that would leave the hierarchy or the place below our own top.
pub(super) fn check_path(path: &str) -> Result<()> {
    let bad = |part: &str| part.is_empty() || part == "." || part == ".." || part.contains('\0');
    if !path.is_empty() && path.split('/').any(bad) {
        bail!("`{path}` is not a cgroup path: relative, without empty parts, `.` or `..`");
    }
    Ok(())
}

#[cfg(test)]
#[path = "hierarchies_tests.rs"]
mod tests;
