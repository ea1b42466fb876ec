//! What jails' volumes can be here, and what keeps them to their limits.

use super::Line;
use super::kernel::existing;
use crate::desired::HostConfig;
use crate::root::volume;
use crate::storage::{FileSystem, Ground};

pub fn lines(config: &HostConfig) -> Vec<Line> {
    let ground = volume::ground(&existing(&config.paths.state));
    let mut lines = vec![disk(&ground), inodes(&ground), image(&ground)];
    if ground.file_system == "btrfs" {
        lines.push(split("subvolume quota", &ground.subvolume, "on: `limits.disk` of btrfs volumes"));
    }
    lines
}

/// Without any of them `limits.disk` is refused.
fn disk(ground: &Ground) -> Line {
    let what = "limits.disk";
    if ground.project.is_ok() {
        return Line::ok(what, "by project quota, live both ways");
    }
    if ground.subvolume.is_ok() {
        return Line::ok(what, "by the quota of a subvolume, live both ways");
    }
    match &ground.image {
        Ok(_) => Line::ok(what, "by an image file for each jail that has it"),
        Err(reason) => split(what, &Err(reason.clone()), ""),
    }
}

fn inodes(ground: &Ground) -> Line {
    split("limits.inodes", &ground.project, "by project quota")
}

fn image(ground: &Ground) -> Line {
    let Ok(here) = &ground.image else {
        return split("storage image", &ground.image.clone().map(drop), "");
    };
    let names: Vec<&str> = here.iter().map(|file_system| file_system.as_str()).collect();
    let seen = names.join(", ");
    if here.first() == Some(&FileSystem::Ext4) && !ground.grows_ext4 {
        let seen = format!("{seen}; ext4 grows only with a restart, for CAP_SYS_RESOURCE is missing");
        return Line::limited("storage image", seen, "run stockade with CAP_SYS_RESOURCE");
    }
    Line::ok("storage image", seen)
}

/// A reason has what helps in brackets at its end.
fn split(what: &'static str, found: &Result<(), String>, well: &str) -> Line {
    let Err(reason) = found else { return Line::ok(what, well) };
    match reason.strip_suffix(')').and_then(|reason| reason.rsplit_once(" (")) {
        Some((seen, remedy)) => Line::limited(what, seen, remedy),
        None => Line::limited(what, reason.clone(), "put the state directory on ext4 or xfs with prjquota"),
    }
}
