//! Images made by other tools: an OCI layout, as a directory or a tar archive of it, or a docker
//! archive. Nothing of them is unpacked to look at them; the small texts are read in their place.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Take};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::fs::{OFlags, ResolveFlags};
use sha2::{Digest, Sha256};
use tar::{Archive, EntryType};

use super::{architecture, tree};
use crate::desired::Blob;
use crate::sys::file;
use crate::template::hex;
use crate::template::image::{self, Descriptor, Image};

/// The largest index, manifest or configuration.
const TEXT_BYTES_MAX: u64 = 4 << 20;
/// Files in one archive; an image has a few for each layer.
const MEMBERS_MAX: usize = 10_000;
/// Bytes of one header of the archive, long names included.
const HEADER_BYTES_MAX: u64 = 64 << 10;
/// Links from one name of the archive to the next, and indexes in indexes.
const HOPS_MAX: usize = 4;

/// What the image in `path` is made of, for this host's architecture.
pub fn look(path: &Path, reference: Option<&str>) -> Result<Image> {
    let store = Store::open(path)?;
    let host = architecture::host();
    let (wanted, image) = if let Some(index) = store.text(Path::new("index.json"))? {
        layout(&store, &index, reference, host)?
    } else if let Some(manifest) = store.text(Path::new("manifest.json"))? {
        saved(&store, &manifest, reference)?
    } else {
        bail!("{}: neither an OCI layout nor a docker archive", path.display());
    };
    if !wanted.is_empty() && wanted != host {
        architecture::check(&wanted).map_err(|why| anyhow!("{}: {why}", path.display()))?;
    }
    Ok(image)
}

/// The blob's bytes, for the layer that they are.
pub fn open(archive: &Path, blob: &Blob) -> Result<Take<File>> {
    let found = Store::open(archive)?.file(&blob.name)?;
    let found =
        found.with_context(|| format!("{}: {} is missing", archive.display(), blob.name.display()))?;
    let size = found.limit();
    if let Some(wanted) = blob.size {
        ensure!(size == wanted, "{} has {size} bytes, and should have {wanted}", blob.name.display());
    }
    Ok(found)
}

fn said<T>(name: &Path, result: Result<T, String>) -> Result<T> {
    result.map_err(|why| anyhow!("{}: {why}", name.display()))
}

fn layout(store: &Store, index: &[u8], reference: Option<&str>, host: &str) -> Result<(String, Image)> {
    let name = Path::new("index.json");
    let mut chosen: Descriptor = said(name, image::choose(index, reference, host))?;
    for _ in 0..HOPS_MAX {
        let blob = said(name, chosen.blob())?;
        let text = store.verified(&blob.name, &blob.sha256)?;
        if chosen.is_index() {
            chosen = said(&blob.name, image::choose(&text, None, host))?;
            continue;
        }
        let (config, layers) = said(&blob.name, image::manifest(&text))?;
        let config = said(&blob.name, config.blob())?;
        let text = store.verified(&config.name, &config.sha256)?;
        let (architecture, _, run) = said(&config.name, image::configuration(&text))?;
        return Ok((architecture, Image { layers, run }));
    }
    bail!("index.json: more than {HOPS_MAX} indexes stand in one another")
}

/// Its layers are known by the digests in the configuration, for they are not compressed.
fn saved(store: &Store, manifest: &[u8], reference: Option<&str>) -> Result<(String, Image)> {
    let found = said(Path::new("manifest.json"), image::saved(manifest, reference))?;
    let shown = found.config.display().to_string();
    let text = store.text(&found.config)?.with_context(|| format!("{shown} is missing"))?;
    let (architecture, diffs, run) = said(&found.config, image::configuration(&text))?;
    ensure!(
        diffs.len() == found.layers.len(),
        "{shown} speaks of {} layers, manifest.json of {}",
        diffs.len(),
        found.layers.len()
    );
    let blob = |(name, sha256)| Blob { name, sha256, size: None };
    Ok((architecture, Image { layers: found.layers.into_iter().zip(diffs).map(blob).collect(), run }))
}

/// Lets so many bytes of headers through, so that none can ask for all memory.
struct Metered<'f> {
    file: &'f File,
    left: Rc<Cell<u64>>,
}

impl Read for Metered<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left.get()).unwrap_or(usize::MAX));
        if most == 0 && !buffer.is_empty() {
            return Err(io::Error::other(format!("a header has more than {HEADER_BYTES_MAX} bytes")));
        }
        let count = self.file.read(&mut buffer[..most])?;
        self.left.set(self.left.get() - count as u64);
        Ok(count)
    }
}

impl Seek for Metered<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

/// Where the files of an image are.
enum Store {
    Directory(OwnedFd),
    Archive { file: File, members: BTreeMap<PathBuf, Member> },
}

enum Member {
    File {
        offset: u64,
        size: u64,
    },
    /// As old docker archives share layers.
    Link(PathBuf),
}

impl Store {
    fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        let found = file.metadata().with_context(|| format!("stat {}", path.display()))?;
        if found.is_dir() {
            return Ok(Self::Directory(file.into()));
        }
        ensure!(found.is_file(), "{} is neither a directory nor a regular file", path.display());
        let mut head = [0; 4];
        let is_packed = file.read_exact_at(&mut head, 0).is_ok()
            && (head.starts_with(&[0x1f, 0x8b]) || head == [0x28, 0xb5, 0x2f, 0xfd] || head == *b"\xfd7zX");
        ensure!(!is_packed, "{} is compressed as a whole: decompress it first", path.display());
        let members = members(&file).with_context(|| format!("read {}", path.display()))?;
        Ok(Self::Archive { file, members })
    }

    /// A file's bytes; absent when there is none of that name.
    fn file(&self, name: &Path) -> Result<Option<Take<File>>> {
        match self {
            Self::Directory(top) => {
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
                let file = match file::open_inside(top.as_fd(), name, flags, resolve) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                    other => File::from(other.with_context(|| format!("open {}", name.display()))?),
                };
                let found = file.metadata()?;
                ensure!(found.is_file(), "{} is not a regular file", name.display());
                Ok(Some(file.take(found.len())))
            }
            Self::Archive { file, members } => {
                let Some((offset, size)) = follow(members, name)? else { return Ok(None) };
                let mut file = file.try_clone().context("duplicate a descriptor")?;
                file.seek(SeekFrom::Start(offset)).context("seek")?;
                Ok(Some(file.take(size)))
            }
        }
    }

    fn text(&self, name: &Path) -> Result<Option<Vec<u8>>> {
        let Some(mut file) = self.file(name)? else { return Ok(None) };
        let size = file.limit();
        ensure!(size <= TEXT_BYTES_MAX, "{} is larger than {TEXT_BYTES_MAX} bytes", name.display());
        let mut text = Vec::new();
        file.read_to_end(&mut text).with_context(|| format!("read {}", name.display()))?;
        Ok(Some(text))
    }

    fn verified(&self, name: &Path, sha256: &str) -> Result<Vec<u8>> {
        let text = self.text(name)?.with_context(|| format!("{} is missing", name.display()))?;
        let found = hex(&Sha256::digest(&text));
        ensure!(found == sha256, "{} has the sha256 {found}", name.display());
        Ok(text)
    }
}

fn follow(members: &BTreeMap<PathBuf, Member>, name: &Path) -> Result<Option<(u64, u64)>> {
    let mut name = name.to_owned();
    for _ in 0..HOPS_MAX {
        match members.get(&name) {
            None => return Ok(None),
            Some(Member::File { offset, size }) => return Ok(Some((*offset, *size))),
            Some(Member::Link(target)) => name.clone_from(target),
        }
    }
    bail!("{} leads in a circle of links", name.display())
}

/// Where each file of the archive begins, from its headers alone.
fn members(file: &File) -> Result<BTreeMap<PathBuf, Member>> {
    let left = Rc::new(Cell::new(HEADER_BYTES_MAX));
    let mut archive = Archive::new(Metered { file, left: Rc::clone(&left) });
    let mut entries = archive.entries_with_seek()?;
    let mut members = BTreeMap::new();
    loop {
        left.set(HEADER_BYTES_MAX);
        let Some(entry) = entries.next() else { return Ok(members) };
        let entry = entry?;
        ensure!(members.len() < MEMBERS_MAX, "more than {MEMBERS_MAX} files in it");
        let Ok(name) = tree::inside(&entry.path()?) else { continue };
        let member = match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => {
                Member::File { offset: entry.raw_file_position(), size: entry.size() }
            }
            EntryType::Symlink => {
                let target = entry.link_name()?.context("a link without a target")?.into_owned();
                Member::Link(beside(&name, &target))
            }
            _ => continue,
        };
        members.insert(name, member);
    }
}

/// A link's target as a name of the archive: only names are looked up, so none leads out of it.
fn beside(name: &Path, target: &Path) -> PathBuf {
    let mut path = name.parent().unwrap_or(Path::new("")).to_owned();
    for part in target.components() {
        match part {
            std::path::Component::ParentDir => drop(path.pop()),
            std::path::Component::Normal(part) => path.push(part),
            _ => {}
        }
    }
    path
}

#[cfg(test)]
mod tests;
