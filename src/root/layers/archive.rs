//! Unpacks a tar archive, which may be hostile, into a fresh tree.
//!
//! Entry by entry through [`Tree`], never the tar crate's own unpacking. An entry whose path goes
//! through `..`, or whose owner is outside of 0 to 65,535, ends the build; absolute paths and
//! links begin at the tree's root. Device nodes and FIFOs are left out and counted, for a jail's
//! /dev is made by stockade. Setuid bits stay (a jail has no new privileges); of the extended
//! attributes `user.*` alone is kept, so neither file capabilities nor overlayfs's own marks.

pub mod entry;
mod pax;

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, ensure};
use flate2::bufread::MultiGzDecoder;
use liblzma::bufread::XzDecoder;
use liblzma::stream::{CONCATENATED, Stream};
use sha2::{Digest, Sha256};

use super::Progress;
use super::tree::Tree;
use crate::template::hex;
use entry::Keep;

/// Memory an xz archive may ask for; `xz -9` asks for 65 MiB.
const XZ_MEMORY_MAX: u64 = 256 << 20;
/// The base-2 logarithm of the window a zstd archive may ask for, 128 MiB; `zstd -19` asks for 8 MiB.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
/// Entries between two lines of progress.
const PROGRESS_EVERY: u64 = 5_000;
/// Attributes of overlayfs in their unprivileged spelling.
const OVERLAY_ATTRIBUTES: &str = "user.overlay.";

/// Unpacks the archive at `path`; with `sha256`, its bytes must have that digest.
pub fn unpack(
    path: &Path,
    sha256: Option<&str>,
    tree: &mut Tree,
    progress: Progress<'_>,
) -> anyhow::Result<()> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    ensure!(file.metadata()?.is_file(), "{} is not a regular file", path.display());
    let digest = Rc::new(RefCell::new(Sha256::new()));
    let mut source = Digesting { file, wanted: sha256.is_some(), digest: Rc::clone(&digest) };
    let reader = decoder(BufReader::with_capacity(1 << 16, source.share()?))?;
    entries(reader, tree, path, progress).with_context(|| format!("unpack {}", path.display()))?;
    let Some(wanted) = sha256 else { return Ok(()) };
    // What lies behind the archive's end belongs to the digest too.
    io::copy(&mut source, &mut io::sink()).with_context(|| format!("read {}", path.display()))?;
    let found = hex(&digest.borrow_mut().finalize_reset());
    ensure!(wanted == found, "{} has the sha256 {found}, and should have {wanted}", path.display());
    Ok(())
}

/// A file whose bytes are digested as they are read, if anybody wants that: it costs more than
/// all the rest of an unpacking. Shares its place in the file.
struct Digesting {
    file: File,
    wanted: bool,
    digest: Rc<RefCell<Sha256>>,
}

impl Digesting {
    fn share(&self) -> anyhow::Result<Self> {
        let file = self.file.try_clone().context("duplicate a descriptor")?;
        Ok(Self { file, wanted: self.wanted, digest: Rc::clone(&self.digest) })
    }
}

impl Read for Digesting {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        if self.wanted {
            self.digest.borrow_mut().update(&buffer[..count]);
        }
        Ok(count)
    }
}

/// Chooses by the first bytes, not by the name.
fn decoder(mut file: BufReader<Digesting>) -> anyhow::Result<Box<dyn Read>> {
    let head = file.fill_buf().context("read the archive")?;
    if head.starts_with(&[0x1f, 0x8b]) {
        return Ok(Box::new(MultiGzDecoder::new(file)));
    }
    if head.starts_with(&[0xfd, b'7', b'z', b'X', b'Z', 0]) {
        let stream = Stream::new_stream_decoder(XZ_MEMORY_MAX, CONCATENATED).context("start xz")?;
        return Ok(Box::new(XzDecoder::new_stream(file, stream)));
    }
    if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let mut decoder = zstd::Decoder::with_buffer(file).context("start zstd")?;
        decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).context("limit zstd")?;
        return Ok(Box::new(decoder));
    }
    Ok(Box::new(file))
}

fn entries(
    reader: Box<dyn Read>,
    tree: &mut Tree,
    path: &Path,
    progress: Progress<'_>,
) -> anyhow::Result<()> {
    let (mut done, mut left_out) = (0_u64, 0_u64);
    let count = entry::each(reader, &mut |item| {
        let path_in_tree = item.path.clone();
        left_out += u64::from(!item.lay(&path_in_tree, tree, LAYER)?);
        done += 1;
        if done.is_multiple_of(PROGRESS_EVERY) {
            progress(&format!("{}: {done} entries", path.display()));
        }
        Ok(())
    })?;
    ensure!(count > 0, "there is no entry in it: not a tar archive");
    if left_out > 0 {
        progress(&format!("{}: {left_out} device nodes, FIFOs and the like are left out", path.display()));
    }
    Ok(())
}

/// What a layer keeps of an entry.
const LAYER: Keep = Keep {
    attribute: |name| name.starts_with("user.") && !name.starts_with(OVERLAY_ATTRIBUTES),
    nodes: false,
    set_id: true,
    owner: true,
};

#[cfg(test)]
mod tests;
