//! `commit`: what a jail has changed becomes a template that stands on the jail's own, with one
//! archive beside it: a layer as images have them, whose `.wh.` names take away.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use clap_complete::ArgValueCandidates;
use rustix::fs::{Mode, OFlags};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::sandbox::{Seen, changes_of};
use super::{DONE, Options, complete, output};
use crate::jail::JailName;
use crate::journal;
use crate::root::diff::{Change, Kind};
use crate::root::import::Place;
use crate::root::pack::{Keep, Pack};
use crate::sys::{file, process};

const ARCHIVE: &str = "changes.tar.zst";
const LEVEL: i32 = 3;
/// Bytes digested at a time.
const CHUNK: usize = 1 << 20;

#[derive(Debug, Args)]
pub struct CommitArgs {
    /// The jail
    #[arg(add = ArgValueCandidates::new(complete::jails))]
    pub name: String,
    /// The new template
    pub template: String,
    /// A snapshot instead of what the jail has now, which has to be stopped otherwise
    #[arg(long, value_name = "LABEL")]
    pub from: Option<String>,
}

pub fn commit(options: &Options, asked: &CommitArgs) -> Result<i32> {
    // A template's name follows the same rule as a jail's.
    let name =
        JailName::new(&asked.template).map_err(|_| anyhow!("`{}` is not a template name", asked.template))?;
    let seen = Seen::of(options, &asked.name, asked.from.as_deref())?;
    let parent = seen.wanted.jail.template.clone().context("it has no template")?;
    let record = seen.host.journal.record(&seen.wanted.jail.name)?;
    if asked.from.is_none() && record.is_some_and(|record| record.init.is_some_and(process::alive)) {
        bail!("{}: it runs: stop it, or take a snapshot and give --from", asked.name);
    }
    let templates =
        seen.wanted.file.parent().and_then(Path::parent).context("find the templates")?.join("templates");
    let place = templates.join(name.as_str());
    ensure!(!place.exists(), "{} exists", place.display());
    journal::make_directory(&templates, 0o755)?;
    let new = Place::make(&templates, &name)?;
    let made = make(&seen, &new, &parent, &asked.name);
    let made = match made {
        Ok(count) => new.become_named(name.as_str().as_ref()).map(|_| count),
        Err(error) => {
            // The first error is the one to tell.
            let _ = new.remove();
            Err(error)
        }
    };
    let count = made.with_context(|| format!("commit {}", asked.name))?;
    if options.json {
        let item =
            json!({ "template": name, "from": asked.name, "base": parent, "changes": count, "path": place });
        output::json_text(&output::envelope("templates", json!([item])));
    } else {
        output::text(&format!("{name}: {count} changes over {parent}, in {}", place.display()));
    }
    Ok(DONE)
}

/// Fills the template's directory, which nobody sees by its name yet; gives the number of changes.
fn make(seen: &Seen, new: &Place, parent: &str, jail: &str) -> Result<usize> {
    rustix::fs::fchmod(&new.directory, Mode::from_raw_mode(0o755)).context("chmod the template")?;
    let archive = new.path.join(ARCHIVE);
    let file = File::create(&archive).with_context(|| format!("create {}", archive.display()))?;
    let sides = seen.sides()?;
    let changes = changes_of(seen, &sides)?;
    let written = pack(&sides.full, &changes, file)?;
    written.sync_all().context("sync the archive")?;
    let digest = digest(&archive)?;
    let text = format!(
        "# What the jail {jail} had changed, made by `stockade commit`.\n\
         [base]\ntemplate = {parent:?}\nchanges = {ARCHIVE:?}\nsha256 = {digest:?}\n\
         # All of it is the jail's own doing, and nothing gets more by being kept.\n\
         devices = true\ncapabilities = true\n"
    );
    journal::replace_synced(&new.path.join("template.toml"), text.as_bytes())?;
    Ok(changes.len())
}

fn pack(root: &OwnedFd, changes: &[Change], file: File) -> Result<File> {
    let encoder = zstd::Encoder::new(file, LEVEL).context("begin the archive")?;
    let mut pack = Pack::new(encoder, Keep::Everything, &|_| ());
    let mut above: BTreeSet<PathBuf> = BTreeSet::new();
    let open = |path: &Path| {
        let inside = path.strip_prefix("/").unwrap_or(path);
        file::open_inside(root.as_fd(), inside, OFlags::DIRECTORY | OFlags::NOFOLLOW, file::INSIDE_ONE)
            .with_context(|| format!("open {}", path.display()))
    };
    for change in changes {
        // A layer that has a directory gives it its owner and mode, so each is in it with its own.
        let parents: Vec<&Path> = change.path.ancestors().skip(1).collect();
        for parent in parents.into_iter().rev() {
            if above.insert(parent.to_owned()) {
                pack.directory_alone(&open(parent)?, below(parent))?;
            }
        }
        let (name, parent) =
            (change.path.file_name().unwrap_or_default(), change.path.parent().unwrap_or(Path::new("/")));
        match change.kind {
            Kind::Deleted => {
                let mut hidden = std::ffi::OsString::from(".wh.");
                hidden.push(name);
                pack.text(&below(parent).join(hidden), b"")?;
            }
            _ if change.file_type.is_dir() => {
                if above.insert(change.path.clone()) {
                    pack.directory_alone(&open(&change.path)?, below(&change.path))?;
                }
            }
            _ => pack.entry(open(parent)?.as_fd(), name, below(&change.path))?,
        }
    }
    pack.finish()?.finish().context("end the archive")
}

/// As the archive names it.
fn below(path: &Path) -> &Path {
    let inside = path.strip_prefix("/").unwrap_or(path);
    if inside.as_os_str().is_empty() { Path::new(".") } else { inside }
}

fn digest(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut digest = Sha256::new();
    let mut part = vec![0; CHUNK];
    loop {
        let count = file.read(&mut part).context("read the archive")?;
        if count == 0 {
            break;
        }
        digest.update(&part[..count]);
    }
    Ok(crate::template::hex(&digest.finalize()))
}
