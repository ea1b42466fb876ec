//! Unpacks a tar archive, which may be hostile, into a fresh tree.
//!
//! Entry by entry through [`Tree`], never the tar crate's own unpacking. An entry whose path goes
//! through `..`, or whose owner is outside of 0 to 65,535, ends the build; absolute paths and
//! links begin at the tree's root. Set-id bits, device nodes and the capabilities of files stay as
//! the template says ([`Kept`]); what is left out of nodes is counted. Of the other extended
//! attributes `user.*` and access lists are kept, and never overlayfs's own marks: a layer hides
//! nothing of those below it but by an image's `.wh.` names.

pub mod entry;
mod pax;

pub use pax::BLOCK;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, ensure};

use super::tree::Tree;
use super::{Progress, stream};
use crate::desired::Kept;
use entry::{Keep, Nodes};

/// Entries between two lines of progress.
const PROGRESS_EVERY: u64 = 5_000;
/// Attributes of overlayfs in their unprivileged spelling.
const OVERLAY_ATTRIBUTES: &str = "user.overlay.";
const CAPABILITY: &str = "security.capability";
/// How OCI layers name what is not there any more, and directories with nothing from below.
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Left over from the file system that these names come from.
const OWN_OF_AUFS: &[u8] = b".wh..wh.";

/// How an archive is taken.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// What progress calls it.
    pub name: &'a str,
    /// It is a layer of an image, whose names that begin with `.wh.` take away.
    pub whiteouts: bool,
    pub kept: Kept,
}

/// Unpacks the archive at `path`; with `sha256`, its bytes must have that digest.
pub fn unpack(
    path: &Path,
    sha256: Option<&str>,
    kept: Kept,
    tree: &mut Tree,
    progress: Progress<'_>,
) -> anyhow::Result<()> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let found = file.metadata().with_context(|| format!("stat {}", path.display()))?;
    ensure!(found.is_file(), "{} is not a regular file", path.display());
    let name = path.display().to_string();
    let rules = Rules { name: &name, whiteouts: false, kept };
    stream::read(file.take(found.len()), sha256, |reader| entries(reader, tree, rules, progress))
        .with_context(|| format!("unpack {name}"))
}

/// Unpacks the entries of an archive that comes as a stream.
pub fn entries(
    reader: &mut dyn Read,
    tree: &mut Tree,
    rules: Rules<'_>,
    progress: Progress<'_>,
) -> anyhow::Result<()> {
    let (mut done, mut left_out) = (0_u64, 0_u64);
    let keep = keep(rules.kept);
    let reader: Box<dyn Read + '_> =
        if rules.whiteouts { Box::new(Padded { inner: reader, count: 0 }) } else { Box::new(reader) };
    let count = entry::each(reader, &mut |item| {
        let path = item.path.clone();
        if rules.whiteouts && takes_away(&path) {
            whiteout(&path, tree)?;
        } else {
            left_out += u64::from(!item.lay(&path, tree, keep)?);
        }
        done += 1;
        if done.is_multiple_of(PROGRESS_EVERY) {
            progress(&format!("{}: {done} entries", rules.name));
        }
        Ok(())
    })?;
    // A layer of an image may change nothing.
    ensure!(count > 0 || rules.whiteouts, "there is no entry in it: not a tar archive");
    if left_out > 0 {
        progress(&format!("{}: {left_out} device nodes, FIFOs and the like are left out", rules.name));
    }
    Ok(())
}

fn takes_away(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_bytes().starts_with(WHITEOUT))
}

/// The entry only speaks of its directory: what it holds itself is passed over.
fn whiteout(path: &Path, tree: &mut Tree) -> anyhow::Result<()> {
    let name = path.file_name().unwrap_or_default().as_bytes();
    let directory = path.parent().unwrap_or(Path::new(""));
    if name == OPAQUE {
        return tree.opaque(directory);
    }
    if name.starts_with(OWN_OF_AUFS) {
        return tree.budget.entry();
    }
    let hidden = OsStr::from_bytes(&name[WHITEOUT.len()..]);
    ensure!(!hidden.is_empty() && hidden != "." && hidden != "..", "it takes away what cannot have a name");
    tree.whiteout(&directory.join(hidden))
}

/// Fills the last block of a stream with zeros: tools that make images leave that out, and their
/// readers do not mind. What is missing otherwise, the image's digest shows.
struct Padded<'r> {
    inner: &'r mut dyn Read,
    count: u64,
}

impl Read for Padded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count += count as u64;
        if count > 0 || buffer.is_empty() {
            return Ok(count);
        }
        let missing = self.count.next_multiple_of(pax::BLOCK as u64) - self.count;
        let most = buffer.len().min(usize::try_from(missing).unwrap_or(0));
        buffer[..most].fill(0);
        self.count += most as u64;
        Ok(most)
    }
}

/// What a layer keeps of an entry.
fn keep(kept: Kept) -> Keep {
    let attribute: fn(&str) -> bool =
        if kept.capabilities { |name| is_plain(name) || name == CAPABILITY } else { is_plain };
    let nodes = if kept.devices { Nodes::Devices } else { Nodes::None };
    Keep { attribute, nodes, set_id: kept.setuid, owner: true }
}

/// An attribute that gives nobody anything.
fn is_plain(name: &str) -> bool {
    let is_own = name.starts_with("user.") && !name.starts_with(OVERLAY_ATTRIBUTES);
    is_own || name.starts_with("system.posix_acl_")
}

#[cfg(test)]
mod tests;
