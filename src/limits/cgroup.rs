//! The cgroup of one jail: its directory in every hierarchy it uses, from making to removal.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::devices;
use super::hierarchies::{Hierarchies, check_path, join};
use super::mounts::Controller;
use super::parents::{inherit_cpuset, make_one, make_two, read};
use super::setting::{Setting, settings};
use super::value::{cpus, same};
use crate::jail::{Jail, Limits};
use crate::sys::cgroup::{Tree, attach_device_filter, page_bytes};

/// Attempts at removing a cgroup the kernel still calls busy: it counts a process until some time
/// after its end. The pauses double from [`PAUSE_MIN`] and add up to 1.6 s.
const REMOVE_TRIES: u32 = 15;
const PAUSE_MIN: Duration = Duration::from_micros(50);
/// Cgroups a delegated jail may nest and make; removal keeps a descriptor a level.
const NESTED_DEPTH_MAX: &str = "32";
const NESTED_COUNT_MAX: &str = "1024";
/// The leaf of [`Cgroup::visitors_dir`].
const VISITORS: &str = "visitors";

/// What a jail needs of its cgroup beside limits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Present: devices are filtered, and these are open beside the usual ones.
    pub devices: Option<Vec<String>>,
}

impl Needs {
    /// With a user namespace the jail can make no device node at all, so nothing is to be filtered
    /// unless some are handed in.
    pub fn of(jail: &Jail) -> Self {
        let filtered = !jail.security.userns || !jail.allow.devices.is_empty();
        Self { devices: filtered.then(|| jail.allow.devices.clone()) }
    }
}

/// A handle; it may name a cgroup that does not exist.
#[derive(Clone, Debug)]
pub struct Cgroup {
    pub(super) host: Hierarchies,
    parent: String,
    /// Relative to the mount point of any hierarchy.
    pub(super) path: String,
}

impl Cgroup {
    /// Names the cgroup of jail `name` below `parent`, a relative path such as `stockade`.
    /// Touches nothing.
    pub fn open(host: &Hierarchies, parent: &str, name: &str) -> Result<Self> {
        check_path(parent)?;
        if name.is_empty() || name.contains('/') {
            bail!("`{name}` is not the name of a cgroup");
        }
        check_path(name)?;
        let path = join(host.base(), &join(parent, name));
        Ok(Self { host: host.clone(), parent: parent.to_owned(), path })
    }

    /// Makes the cgroup with every limit set, before any process is in it. A left-over of the same
    /// name is replaced when it is empty, and refused when it is not. On an error nothing is left.
    pub fn create(
        host: &Hierarchies,
        parent: &str,
        name: &str,
        limits: &Limits,
        needs: &Needs,
    ) -> Result<Self> {
        let cgroup = Self::open(host, parent, name)?;
        cgroup.vacate()?;
        match cgroup.build(limits, needs) {
            Ok(()) => Ok(cgroup),
            Err(error) => match cgroup.remove() {
                Ok(()) => Err(error),
                Err(left) => Err(error.context(format!("and then: {left:#}"))),
            },
        }
    }

    fn vacate(&self) -> Result<()> {
        if !self.exists() {
            return Ok(());
        }
        if self.populated()? {
            bail!("cgroup {} is in use: processes {:?}", self.path, self.processes()?);
        }
        self.remove()
    }

    /// The path below which it was opened.
    pub(super) fn parent(&self) -> &str {
        &self.parent
    }

    /// Whether any hierarchy has it.
    pub fn exists(&self) -> bool {
        self.trees().any(|tree| tree.exists(&self.path))
    }

    /// Every hierarchy the cgroup may be in.
    pub(super) fn trees(&self) -> impl Iterator<Item = &Tree> {
        self.host.trees().map(|(_, tree)| tree).chain(self.host.unified())
    }

    fn build(&self, limits: &Limits, needs: &Needs) -> Result<()> {
        if let Some(reason) = self.host.conflicts(limits).into_values().next() {
            bail!(reason);
        }
        self.make(limits, needs)?;
        self.write_fresh(limits)?;
        needs.devices.as_deref().map_or(Ok(()), |extra| self.filter_devices(extra))
    }

    /// Makes the directories, empty of limits.
    fn make(&self, limits: &Limits, needs: &Needs) -> Result<()> {
        let wanted = self.wanted(limits, needs);
        if self.host.two() {
            make_two(&self.host, self.host.tree(Controller::Memory)?, &self.parent, &wanted)?;
        }
        for (held, tree) in self.host.trees() {
            if held.iter().any(|c| wanted.contains(c)) {
                self.make_in(tree, held)?;
            }
        }
        let Some(tree) = self.host.unified() else { return Ok(()) };
        if !self.host.two() {
            make_one(tree, &[], &self.parent)?;
        }
        tree.make(&self.path).with_context(|| format!("make cgroup {}", tree.full(&self.path).display()))
    }

    /// Makes the directory in one v1 hierarchy, able to take processes.
    pub(super) fn make_in(&self, tree: &Tree, held: &[Controller]) -> Result<()> {
        make_one(tree, held, &self.parent)?;
        tree.make(&self.path).with_context(|| format!("make cgroup {}", tree.full(&self.path).display()))?;
        if held.contains(&Controller::Cpuset) {
            inherit_cpuset(tree, &self.path)?;
        }
        Ok(())
    }

    /// The controllers of this jail. A hierarchy more costs each start a mkdir, a join and a rmdir,
    /// so accounting of CPU time and freezing are left to the v2 hierarchy where there is one.
    fn wanted(&self, limits: &Limits, needs: &Needs) -> Vec<Controller> {
        let mut wanted = Controller::CORE.to_vec();
        if self.host.unified().is_none() {
            wanted.extend([Controller::Cpuacct, Controller::Freezer]);
        }
        if limits.cpuset.is_some() {
            wanted.push(Controller::Cpuset);
        }
        if needs.devices.is_some() && !self.host.two() {
            wanted.push(Controller::Devices);
        }
        wanted
    }

    /// Writes every limit into the fresh directories and reads it back.
    pub(super) fn write_fresh(&self, limits: &Limits) -> Result<()> {
        for setting in settings(self.host.offer(), limits).iter().filter(|s| s.needed()) {
            let tree = self.host.tree(setting.controller).context(setting.key)?;
            // A host without the memory controller runs jails that ask for no memory limit.
            let default = setting.file == "memory.oom.group" && limits.memory.is_none();
            if default && !tree.exists(&join(&self.path, setting.file)) {
                continue;
            }
            self.write_checked(tree, setting)?;
        }
        Ok(())
    }

    /// Writes one file and compares what the kernel made of it.
    pub(super) fn write_checked(&self, tree: &Tree, setting: &Setting) -> Result<()> {
        let path = join(&self.path, setting.file);
        let full = || tree.full(&path).display().to_string();
        // An empty CPU list has to be written as an empty line: a write of nothing is none.
        let value = if setting.value.is_empty() { "\n" } else { &setting.value };
        tree.write(&path, value)
            .with_context(|| format!("{}: write `{}` to {}", setting.key, value.trim(), full()))?;
        let found = read(tree, &path).context(setting.key)?;
        if !same(setting.kind, page_bytes(), &setting.value, &found) {
            bail!("{}: {} is `{found}` after `{}` was written to it", setting.key, full(), setting.value);
        }
        if setting.file == "cpuset.cpus" && self.host.two() {
            self.check_effective(tree, &setting.value)
        } else {
            Ok(())
        }
    }

    /// v2 takes a list of CPUs that do not exist, and then allows all of the parent's.
    fn check_effective(&self, tree: &Tree, wanted: &str) -> Result<()> {
        let found = read(tree, &join(&self.path, "cpuset.cpus.effective"))?;
        let (allowed, effective) = (cpus(wanted).unwrap_or_default(), cpus(&found).unwrap_or_default());
        if !wanted.is_empty() && !effective.is_subset(&allowed) {
            bail!("limits.cpuset: none of the CPUs `{wanted}` can be had; the kernel gives `{found}`");
        }
        Ok(())
    }

    fn filter_devices(&self, extra: &[String]) -> Result<()> {
        let rules = devices::rules(extra).context("allow.devices")?;
        if !self.host.two() {
            return devices::write_one(self.host.tree(Controller::Devices)?, &self.path, &rules);
        }
        let dir = self.unified_dir()?.context("no cgroup v2 hierarchy")?;
        attach_device_filter(dir.as_fd(), &devices::program(&rules)).context("attach a device filter")
    }

    /// The v1 files into each of which the jail's first process writes `0` for itself: cheap, where
    /// moving another process is not. Only a process of one thread joins whole that way. Empty on
    /// pure v2; the v2 hierarchy is entered by [`Cgroup::unified_dir`].
    pub fn join_files(&self) -> Result<Vec<OwnedFd>> {
        let mut files = Vec::new();
        for (held, tree) in self.host.trees() {
            let path = join(&self.path, "tasks");
            match tree.open_for_join(&path) {
                Ok(file) => files.push(file),
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound && !held.contains(&Controller::Pids) => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("open {}", tree.full(&path).display()));
                }
            }
        }
        Ok(files)
    }

    /// The v2 directory for clone3(2) with CLONE_INTO_CGROUP, if this host has a v2 hierarchy.
    pub fn unified_dir(&self) -> Result<Option<OwnedFd>> {
        let Some(tree) = self.host.unified() else { return Ok(None) };
        let dir = tree.open_dir(&self.path);
        dir.map(Some).with_context(|| format!("open {}", tree.full(&self.path).display()))
    }

    /// Where visitors of a whole system go: a leaf beside the cgroups of its init, which hands
    /// controllers down and so can have no process in the jail's own cgroup.
    pub fn visitors_dir(&self) -> Result<Option<OwnedFd>> {
        let Some(tree) = self.host.unified() else { return Ok(None) };
        let path = join(&self.path, VISITORS);
        super::parents::make(tree, &path)?;
        let dir = tree.open_dir(&path);
        dir.map(Some).with_context(|| format!("open {}", tree.full(&path).display()))
    }

    /// Hands the v2 part to `id`, the jail's root as the host sees it, so that an init inside can
    /// make cgroups of its own: the directory and the three files the kernel's documentation names,
    /// none that holds a limit. How deep and how many is bounded first.
    pub fn delegate(&self, id: u32) -> Result<()> {
        let Some(tree) = self.host.unified() else {
            bail!("hand over a cgroup: no cgroup v2 hierarchy is mounted");
        };
        super::parents::write(tree, &join(&self.path, "cgroup.max.depth"), NESTED_DEPTH_MAX)?;
        super::parents::write(tree, &join(&self.path, "cgroup.max.descendants"), NESTED_COUNT_MAX)?;
        for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            let path = join(&self.path, file);
            tree.give(&path, id).with_context(|| format!("give {} to {id}", tree.full(&path).display()))?;
        }
        Ok(())
    }

    /// Removes the cgroup from all hierarchies, with what the jail made below it. One that is gone
    /// is no error; one with processes is, after a short wait.
    pub fn remove(&self) -> Result<()> {
        for tree in self.trees() {
            remove_tree(tree, &self.path)?;
        }
        Ok(())
    }
}

impl Hierarchies {
    /// Whether any hierarchy has `parent` with no jail in it.
    pub fn has_empty(&self, parent: &str) -> Result<bool> {
        let path = join(self.base(), parent);
        let mut trees = self.trees().map(|(_, tree)| tree).chain(self.unified());
        Ok(self.children(parent)?.is_empty() && trees.any(|tree| tree.exists(&path)))
    }

    /// Removes `parent` where no jail is left in it.
    pub fn remove_parent(&self, parent: &str) -> Result<()> {
        check_path(parent)?;
        let path = join(self.base(), parent);
        for tree in self.trees().map(|(_, tree)| tree).chain(self.unified()) {
            match tree.remove(&path) {
                Ok(()) => {}
                Err(error) if gone(&error) || busy(&error) => {}
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("remove cgroup {}", tree.full(&path).display()));
                }
            }
        }
        Ok(())
    }
}

fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

fn busy(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ResourceBusy | io::ErrorKind::DirectoryNotEmpty)
}

fn remove_tree(tree: &Tree, path: &str) -> Result<()> {
    let mut pause = PAUSE_MIN;
    for attempt in 1.. {
        match tree.remove(path) {
            Ok(()) => return Ok(()),
            Err(error) if gone(&error) => return Ok(()),
            Err(error) if busy(&error) && attempt < REMOVE_TRIES => {
                if !remove_children(tree, path)? {
                    sleep(pause);
                    pause *= 2;
                }
            }
            Err(error) => {
                return Err(error).with_context(|| format!("remove cgroup {}", tree.full(path).display()));
            }
        }
    }
    unreachable!("the last attempt returns")
}

/// Removes what is below; false when nothing was.
fn remove_children(tree: &Tree, path: &str) -> Result<bool> {
    let listed = tree.subtree(path).and_then(|below| below.children("").map(|names| (below, names)));
    match listed {
        Ok((below, names)) => {
            names.iter().try_for_each(|name| remove_tree(&below, name))?;
            Ok(!names.is_empty())
        }
        Err(error) if gone(&error) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("list cgroups below {}", tree.full(path).display())),
    }
}
