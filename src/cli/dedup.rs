//! `gc --dedup`: what is the same in several layers and thick roots is kept once, where the file
//! system can.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::progress::Progress;
use super::{DONE, FAILED, Options, named, output};
use crate::execute::Host;
use crate::root::dedup;
use crate::status;
use crate::sys::mount;

pub fn dedup(options: &Options, dry_run: bool) -> Result<i32> {
    let desired = named::load(options);
    let host = Host::open(desired.host)?;
    crate::interrupt::catch()?;
    let state = &host.journal.paths.state;
    if !dedup::is_possible(&state.join("layers"))? {
        return cannot(options, state, dry_run);
    }
    let progress = Progress::new(options, "dedup", None)?;
    let done = dedup::share(&trees(&host)?, dry_run, &|bytes| progress.add(bytes))?;
    drop(progress);
    ensure!(!crate::interrupt::asked(), "interrupted: what is shared by now stays so");
    if options.json {
        let item = json!({ "files": done.files, "shared": done.shared, "saved": done.saved, "possible": true, "dry_run": dry_run });
        output::json_text(&output::envelope("dedup", json!([item])));
    } else {
        let (verb, saved) = (if dry_run { "Would share" } else { "Shared" }, status::size(done.saved));
        output::text(&format!("{verb} {} of {} files, {saved} saved.", done.shared, done.files));
    }
    Ok(DONE)
}

/// Said plainly, for it is not that there was nothing to share.
fn cannot(options: &Options, state: &Path, dry_run: bool) -> Result<i32> {
    if options.json {
        let item = json!({ "files": 0, "shared": 0, "saved": 0, "possible": false, "dry_run": dry_run });
        output::json_text(&output::envelope("dedup", json!([item])));
        return Ok(FAILED);
    }
    let place = mount::open_path(state)?;
    let kind = match mount::file_system_type(std::os::fd::AsFd::as_fd(&place))? {
        libc::EXT4_SUPER_MAGIC => " (ext4)",
        libc::TMPFS_MAGIC => " (tmpfs)",
        libc::XFS_SUPER_MAGIC => " (xfs without reflink)",
        _ => "",
    };
    eprintln!(
        "stockade: the file system of {}{kind} cannot share blocks between files: btrfs, and xfs made with \
         reflink=1, can; jails on one template share its layers on any",
        state.display()
    );
    Ok(FAILED)
}

/// All layers, and all roots that are no overlays.
fn trees(host: &Host) -> Result<Vec<PathBuf>> {
    let state = &host.journal.paths.state;
    let layers = state.join("layers");
    let entries = std::fs::read_dir(&layers).with_context(|| format!("list {}", layers.display()))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut trees: Vec<PathBuf> =
        names.filter(|name| name.starts_with("sha256-")).map(|name| layers.join(name)).collect();
    trees.sort();
    let roots = host.journal.names()?.into_iter().map(|name| host.journal.state_dir(&name).join("root"));
    trees.extend(roots.filter(|root| root.is_dir()));
    Ok(trees)
}
