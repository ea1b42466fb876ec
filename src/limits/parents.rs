//! The cgroups above a jail's own: made on demand, with the controllers a jail needs handed down.

use std::io;

use anyhow::{Context as _, Result, bail};

use super::hierarchies::{Hierarchies, SUPERVISOR, join};
use super::mounts::Controller;
use crate::sys::cgroup::{Tree, VALUE_BYTES_MAX};

/// Attempts at enabling controllers while processes are moved out of the way.
const ENABLE_TRIES: usize = 5;

/// Makes `parent` in the hierarchy `tree` of v1, which holds `held`.
pub fn make_one(tree: &Tree, held: &[Controller], parent: &str) -> Result<()> {
    for path in prefixes(parent) {
        let new = make(tree, path)?;
        if held.contains(&Controller::Cpuset) {
            inherit_cpuset(tree, path)?;
        }
        if new && held.contains(&Controller::Memory) {
            count_children(tree, path)?;
        }
    }
    Ok(())
}

/// Makes `parent` (below `base`) in the v2 hierarchy, with `wanted` controllers enabled for what
/// is below it, from the top down as the kernel demands.
pub fn make_two(host: &Hierarchies, tree: &Tree, parent: &str, wanted: &[Controller]) -> Result<()> {
    enable_for(host, tree, host.base(), wanted)?;
    for path in prefixes(parent) {
        let path = join(host.base(), path);
        make(tree, &path)?;
        enable_for(host, tree, &path, wanted)?;
    }
    Ok(())
}

/// Makes one cgroup; false when it was there.
pub fn make(tree: &Tree, path: &str) -> Result<bool> {
    match tree.make(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error).with_context(|| format!("make cgroup {}", tree.full(path).display())),
    }
}

/// Gives a v1 cpuset the CPUs and memory nodes of the one above: it starts with none, and takes
/// no process until it has both.
pub fn inherit_cpuset(tree: &Tree, path: &str) -> Result<()> {
    let above = path.rsplit_once('/').map_or("", |(above, _)| above);
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let wanted = read(tree, &join(above, file))?;
        if wanted != read(tree, &join(path, file))? {
            write(tree, &join(path, file), &wanted)?;
        }
    }
    Ok(())
}

/// Kernels before 5.11 count a child's memory to its parent only when told so.
fn count_children(tree: &Tree, path: &str) -> Result<()> {
    let file = join(path, "memory.use_hierarchy");
    if tree.exists(&file) && read(tree, &file)? == "0" {
        write(tree, &file, "1")?;
    }
    Ok(())
}

fn enable_for(host: &Hierarchies, tree: &Tree, path: &str, wanted: &[Controller]) -> Result<()> {
    let file = join(path, "cgroup.subtree_control");
    for _ in 0..ENABLE_TRIES {
        let add = missing(host.controllers(), &read(tree, &file)?, wanted);
        if add.is_empty() {
            return Ok(());
        }
        match tree.write(&file, &add) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && path == host.base() => {
                step_aside(host, tree, path)
                    .with_context(|| format!("write `{add}` to {}", tree.full(&file).display()))?;
            }
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("write `{add}` to {}", tree.full(&file).display()));
            }
        }
    }
    bail!("enable controllers in {}: processes keep appearing in it", tree.full(path).display())
}

/// Moves the processes of our own cgroup into a leaf below it: the kernel enables no controller
/// below a cgroup that has processes itself.
fn step_aside(host: &Hierarchies, tree: &Tree, path: &str) -> Result<()> {
    if host.own() != path {
        bail!(
            "processes that are not ours are in this cgroup, and only one without any can hand controllers down"
        );
    }
    let leaf = join(path, SUPERVISOR);
    make(tree, &leaf)?;
    let procs = join(&leaf, "cgroup.procs");
    for pid in tree.read_long(&join(path, "cgroup.procs"))?.lines() {
        match tree.write(&procs, pid) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                return Err(error)
                    .with_context(|| format!("move process {pid} to {}", tree.full(&leaf).display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The text that enables what is wanted, offered and not enabled yet. What is not offered is
/// refused by the limits that need it, not here: a jail without such a limit does without.
fn missing(offered: &[String], enabled: &str, wanted: &[Controller]) -> String {
    let off = |name: &&str| offered.iter().any(|o| o == name) && !enabled.split(' ').any(|e| e == *name);
    let add: Vec<String> =
        wanted.iter().map(|c| c.name()).filter(off).map(|name| format!("+{name}")).collect();
    add.join(" ")
}

/// `a/b/c` as `a`, `a/b`, `a/b/c`.
fn prefixes(path: &str) -> impl Iterator<Item = &str> {
    let ends = path.match_indices('/').map(|(at, _)| at).chain(std::iter::once(path.len()));
    ends.map(move |end| &path[..end]).filter(|prefix| !prefix.is_empty())
}

pub fn read(tree: &Tree, path: &str) -> Result<String> {
    let mut buffer = [0; VALUE_BYTES_MAX];
    let text = tree.read(path, &mut buffer).with_context(|| format!("read {}", tree.full(path).display()))?;
    Ok(text.to_owned())
}

pub fn write(tree: &Tree, path: &str, value: &str) -> Result<()> {
    tree.write(path, value).with_context(|| format!("write `{value}` to {}", tree.full(path).display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_is_enabled() {
        let offered: Vec<String> = ["cpuset", "cpu", "io", "memory", "pids"].map(String::from).to_vec();
        let check =
            |enabled, wanted: &[Controller], expect| assert_eq!(missing(&offered, enabled, wanted), expect);
        check("", &Controller::CORE, "+memory +pids +cpu");
        check("memory pids", &Controller::CORE, "+cpu");
        check("cpu memory pids", &Controller::CORE, "");
        check("cpuset", &[Controller::Cpu], "+cpu");
        check("", &[Controller::Devices], "");
    }

    #[test]
    fn parents_from_the_top_down() {
        let check = |path, expect: &[&str]| assert_eq!(prefixes(path).collect::<Vec<_>>(), expect);
        check("stockade", &["stockade"]);
        check("a/b/c", &["a", "a/b", "a/b/c"]);
        check("", &[]);
    }
}
