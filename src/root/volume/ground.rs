//! What this host can do for volumes. Reads only.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::storage::{FileSystem, Ground};
use crate::sys::btrfs::{self, Counting};
use crate::sys::{mount, quota};

/// Where a file system's tools are.
const TOOL_DIRECTORIES: [&str; 5] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin"];

pub fn ground(state: &Path) -> Ground {
    let Ok(directory) = File::open(state) else { return Ground::default() };
    let file_system = mount::file_system_name(directory.as_fd());
    Ground {
        project: project(&directory, &file_system),
        subvolume: subvolume(&directory, &file_system, state),
        image: image(),
        grows_ext4: rustix::thread::capabilities(None)
            .is_ok_and(|own| own.effective.contains(rustix::thread::CapabilitySet::SYS_RESOURCE)),
        file_system,
    }
}

/// Whether project quotas are enforced where the state directory is.
pub fn has_projects(state: &Path) -> bool {
    File::open(state).is_ok_and(|directory| quota::enforced(directory.as_fd()).unwrap_or(false))
}

/// Whether subvolumes can be made where the state directory is.
pub fn is_on_btrfs(state: &Path) -> bool {
    File::open(state).is_ok_and(|directory| mount::file_system_name(directory.as_fd()) == "btrfs")
}

fn project(directory: &File, file_system: &str) -> Result<(), String> {
    if quota::enforced(directory.as_fd()).unwrap_or(false) {
        return Ok(());
    }
    Err(match file_system {
        "ext4" => "the state directory's ext4 has no project quota (unmounted: tune2fs -O project,quota \
                   -Q prjquota, then mount it with prjquota)"
            .to_owned(),
        "xfs" => "the state directory's xfs has no project quota (mount it with prjquota)".to_owned(),
        other => format!("{other}, on which the state directory is, has no project quotas"),
    })
}

fn subvolume(directory: &File, file_system: &str, state: &Path) -> Result<(), String> {
    if file_system != "btrfs" {
        return Err(format!("the state directory is on {file_system}, not on btrfs"));
    }
    let shown = state.display();
    match btrfs::counting(directory.as_fd()) {
        Ok(Counting::Simple | Counting::Groups) => Ok(()),
        Ok(Counting::Off) => {
            Err(format!("the state directory's btrfs has no quotas (btrfs quota enable --simple {shown})"))
        }
        Ok(Counting::Inconsistent) => Err(format!(
            "the quotas of the state directory's btrfs are not right (btrfs quota rescan -w {shown})"
        )),
        Err(error) => Err(format!("the quotas of the state directory's btrfs cannot be read: {error}")),
    }
}

fn image() -> Result<Vec<FileSystem>, String> {
    if !Path::new("/dev/loop-control").exists() {
        return Err("no image can be used, for there is no /dev/loop-control (modprobe loop)".to_owned());
    }
    let here: Vec<FileSystem> = FileSystem::ALL
        .into_iter()
        .filter(|kind| tool(&format!("mkfs.{}", kind.as_str())).is_some())
        .collect();
    if here.is_empty() {
        return Err("no image can be made, for there is no mkfs (install e2fsprogs)".to_owned());
    }
    Ok(here)
}

/// A program of the host that only root is to run: never looked for in PATH.
pub fn tool(name: &str) -> Option<PathBuf> {
    let is_program = |path: &PathBuf| {
        std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    TOOL_DIRECTORIES.iter().map(|directory| Path::new(directory).join(name)).find(is_program)
}
