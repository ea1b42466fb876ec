//! Unpacks a tar archive, which may be hostile, into a fresh tree.
//!
//! Entry by entry through [`Tree`], never the tar crate's own unpacking. An entry whose path goes
//! through `..`, or whose owner is outside of 0 to 65,535, ends the build; absolute paths and
//! links begin at the tree's root. Device nodes and FIFOs are left out and counted, for a jail's
//! /dev is made by stockade. Setuid bits stay (a jail has no new privileges); of the extended
//! attributes `user.*` alone is kept, so neither file capabilities nor overlayfs's own marks.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, ensure};
use flate2::bufread::MultiGzDecoder;
use liblzma::bufread::XzDecoder;
use liblzma::stream::{CONCATENATED, Stream};
use sha2::{Digest, Sha256};
use tar::{Archive, Entry, EntryType};

use super::Progress;
use super::tree::{Metadata, Tree};
use crate::template::hex;

/// Bytes of headers before one entry: long names and extended attributes.
const HEADER_BYTES_MAX: u64 = 1 << 20;
/// Memory an xz archive may ask for; `xz -9` asks for 65 MiB.
const XZ_MEMORY_MAX: u64 = 256 << 20;
/// The base-2 logarithm of the window a zstd archive may ask for, 128 MiB; `zstd -19` asks for 8 MiB.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
/// Entries between two lines of progress.
const PROGRESS_EVERY: u64 = 5_000;
/// Attributes of overlayfs in their unprivileged spelling.
const OVERLAY_ATTRIBUTES: &[u8] = b"user.overlay.";

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

/// Lets so many bytes through, so that a header cannot ask for all memory.
struct Metered<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left.get();
        if left == 0 && !buffer.is_empty() {
            return Err(io::Error::other(format!("a header has more than {HEADER_BYTES_MAX} bytes")));
        }
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = self.inner.read(&mut buffer[..most])?;
        self.left.set(left - count as u64);
        Ok(count)
    }
}

fn entries(
    reader: Box<dyn Read>,
    tree: &mut Tree,
    path: &Path,
    progress: Progress<'_>,
) -> anyhow::Result<()> {
    let left = Rc::new(Cell::new(HEADER_BYTES_MAX));
    let mut archive = Archive::new(Metered { inner: reader, left: Rc::clone(&left) });
    let mut entries = archive.entries()?;
    let (mut count, mut left_out) = (0_u64, 0_u64);
    let mut last = PathBuf::new();
    loop {
        left.set(HEADER_BYTES_MAX);
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.with_context(|| format!("entry {count}, after `{}`", last.display()))?;
        left.set(u64::MAX);
        last = entry.path().context("the name of an entry")?.into_owned();
        let laid = one(&mut entry, &last, tree).with_context(|| format!("entry `{}`", last.display()))?;
        left_out += u64::from(!laid);
        skip_rest(&mut entry, tree).with_context(|| format!("entry `{}`", last.display()))?;
        count += 1;
        if count.is_multiple_of(PROGRESS_EVERY) {
            progress(&format!("{}: {count} entries", path.display()));
        }
    }
    ensure!(count > 0, "there is no entry in it: not a tar archive");
    if left_out > 0 {
        progress(&format!("{}: {left_out} device nodes, FIFOs and the like are left out", path.display()));
    }
    Ok(())
}

/// Reads to the entry's end, so that the next look for a header reads only headers.
fn skip_rest(entry: &mut Entry<'_, impl Read>, tree: &mut Tree) -> anyhow::Result<()> {
    let count = io::copy(entry, &mut io::sink())?;
    tree.budget.bytes(count)
}

/// Lays one entry; false when it is of a kind that is left out.
fn one(entry: &mut Entry<'_, impl Read>, path: &Path, tree: &mut Tree) -> anyhow::Result<bool> {
    let kind = entry.header().entry_type();
    match kind {
        EntryType::Directory => tree.directory(path, metadata(entry)?)?,
        EntryType::Symlink => tree.link(path, &link_target(entry)?, metadata(entry)?)?,
        EntryType::Link => tree.hard_link(path, &link_target(entry)?)?,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            let attributes = attributes(entry)?;
            let file = tree.file(path, metadata(entry)?, entry.size(), entry)?;
            for (name, value) in attributes {
                rustix::fs::fsetxattr(&file, name, &value, rustix::fs::XattrFlags::empty())
                    .context("set an attribute")?;
            }
        }
        _ => {
            tree.budget.entry()?;
            return Ok(kind == EntryType::XGlobalHeader);
        }
    }
    Ok(true)
}

fn link_target(entry: &Entry<'_, impl Read>) -> anyhow::Result<PathBuf> {
    Ok(entry.link_name()?.context("a link without a target")?.into_owned())
}

/// Owner and time come from PAX records where there are some, which the tar crate applies.
fn metadata(entry: &Entry<'_, impl Read>) -> anyhow::Result<Metadata> {
    let header = entry.header();
    Ok(Metadata {
        mode: header.mode().context("mode")? & 0o7777,
        uid: header.uid().context("owner")?,
        gid: header.gid().context("group")?,
        mtime: (i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0), 0),
    })
}

fn attributes(entry: &mut Entry<'_, impl Read>) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut kept = Vec::new();
    let Some(records) = entry.pax_extensions()? else { return Ok(kept) };
    for record in records {
        let record = record.context("a PAX record")?;
        // The tar crate would lay the map of holes as if it were the contents.
        let is_sparse = record.key_bytes().starts_with(b"GNU.sparse.");
        ensure!(!is_sparse, "a sparse file in PAX form is not read: make the archive without `--sparse`");
        let Some(name) = record.key_bytes().strip_prefix(b"SCHILY.xattr.") else { continue };
        if name.starts_with(b"user.") && !name.starts_with(OVERLAY_ATTRIBUTES) {
            let name = String::from_utf8(name.to_vec()).context("the name of an attribute")?;
            kept.push((name, record.value_bytes().to_vec()));
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests;
