//! The entries of a tar stream, one after the other, and how one is laid into a tree.

use std::cell::{Cell, RefCell};
use std::ffi::OsStr;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, ensure};
use rustix::fs::FileType;
use tar::{Archive, Entry, EntryType};

use super::pax::{BLOCK, Records};
use crate::root::layers::tree::{Attribute, Contents, Metadata, Tree};

/// Bytes of headers before one entry: long names and extended attributes.
pub const HEADER_BYTES_MAX: u64 = 1 << 20;
/// Stretches of data in one sparse file.
const STRETCHES_MAX: u64 = 1 << 20;

/// Which entries are kept that are no file, directory or link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nodes {
    None,
    /// FIFOs, and the whiteouts of overlayfs.
    Whiteouts,
    /// FIFOs and devices, but no whiteouts.
    Devices,
    All,
}

/// What is kept of an entry beside owner, mode, time and contents.
#[derive(Clone, Copy)]
pub struct Keep {
    pub attribute: fn(&str) -> bool,
    pub nodes: Nodes,
    pub set_id: bool,
    pub owner: bool,
}

/// One entry, at whose contents the reader stands.
pub struct Item<'e, 'a, R: Read> {
    entry: &'e mut Entry<'a, R>,
    pub path: PathBuf,
    records: Records,
}

/// What entries are read from: it keeps the bytes of the headers before one, and lets no more of
/// them through than one entry may have, so that it cannot ask for all memory.
pub struct Source<'r> {
    inner: Box<dyn Read + 'r>,
    /// Bytes read so far.
    place: Rc<Cell<u64>>,
    /// None while contents are read.
    headers: Rc<RefCell<Option<Vec<u8>>>>,
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut headers = self.headers.borrow_mut();
        let room = headers.as_ref().map_or(u64::MAX, |seen| HEADER_BYTES_MAX - seen.len() as u64);
        if room == 0 && !buffer.is_empty() {
            return Err(io::Error::other(format!("a header has more than {HEADER_BYTES_MAX} bytes")));
        }
        let most = buffer.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        let count = self.inner.read(&mut buffer[..most])?;
        if let Some(headers) = headers.as_mut() {
            headers.extend_from_slice(&buffer[..count]);
        }
        self.place.set(self.place.get() + count as u64);
        Ok(count)
    }
}

/// Forward alone, and by reading: for the few bytes between two entries the tar crate's own way
/// fills a large buffer with zeros first.
impl Seek for Source<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let SeekFrom::Current(ahead) = to else { return Err(io::ErrorKind::Unsupported.into()) };
        let ahead = u64::try_from(ahead).map_err(io::Error::other)?;
        if skip(&mut self.by_ref().take(ahead))? < ahead {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends in the middle"));
        }
        Ok(self.place.get())
    }
}

/// What is done with each entry.
pub type Visit<'v, 'r> = &'v mut dyn FnMut(&mut Item<'_, '_, Source<'r>>) -> anyhow::Result<()>;

/// Shows each entry to `visit`, which reads of it what it likes; says how many there were.
pub fn each<'r>(reader: Box<dyn Read + 'r>, visit: Visit<'_, 'r>) -> anyhow::Result<u64> {
    let (place, headers) = (Rc::new(Cell::new(0)), Rc::new(RefCell::new(None)));
    let source = Source { inner: reader, place: Rc::clone(&place), headers: Rc::clone(&headers) };
    let mut archive = Archive::new(source);
    let mut entries = archive.entries_with_seek()?;
    let mut count = 0_u64;
    let mut last = PathBuf::new();
    loop {
        // Padding of the last entry is no header.
        let padding = place.get().next_multiple_of(BLOCK as u64) - place.get();
        headers.replace(Some(Vec::new()));
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.with_context(|| format!("entry {count}, after `{}`", last.display()))?;
        let read = headers.take().unwrap_or_default();
        let raw = read.get(usize::try_from(padding)?..).unwrap_or_default();
        let mut item = Item::new(&mut entry, raw)
            .with_context(|| format!("entry {count}, after `{}`", last.display()))?;
        last.clone_from(&item.path);
        visit(&mut item).with_context(|| format!("entry `{}`", last.display()))?;
        // To its end, so that the next look for a header reads only headers.
        skip(item.entry)?;
        count += 1;
    }
    Ok(count)
}

/// Reads to the end and says how many bytes there were. Mostly there are none, which the standard
/// library's way finds out with a large buffer that it fills with zeros.
fn skip(from: &mut impl Read) -> io::Result<u64> {
    let mut skipped = 0;
    loop {
        match from.read(&mut [0; BLOCK]) {
            Ok(0) => return Ok(skipped),
            Ok(count) => skipped += count as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

impl<'e, 'a, R: Read> Item<'e, 'a, R> {
    fn new(entry: &'e mut Entry<'a, R>, headers: &[u8]) -> anyhow::Result<Self> {
        let records = Records::of(headers)?;
        if let Some(size) = records.number("size")? {
            ensure!(entry.header().entry_type() == EntryType::GNUSparse || size == entry.size(), "two sizes");
        }
        let named = records.get("GNU.sparse.name").or(records.get("path"));
        let path = match named {
            Some(path) => PathBuf::from(OsStr::from_bytes(path)),
            None => entry.path().context("the name of an entry")?.into_owned(),
        };
        Ok(Self { entry, path, records })
    }

    /// A second name of a file that came before; its target is a path of the archive.
    pub fn is_hard_link(&self) -> bool {
        self.entry.header().entry_type() == EntryType::Link
    }

    /// Bytes of its contents in the archive.
    pub fn size(&self) -> u64 {
        self.entry.size()
    }

    /// All of its contents, at most `most` bytes.
    pub fn contents(&mut self, most: u64) -> anyhow::Result<Vec<u8>> {
        ensure!(self.entry.header().entry_type() == EntryType::Regular, "it is not a regular file");
        ensure!(self.size() <= most, "it has more than {most} bytes");
        let mut contents = Vec::new();
        self.entry.read_to_end(&mut contents).context("read")?;
        ensure!(contents.len() as u64 == self.size(), "the archive ends in the middle of it");
        Ok(contents)
    }

    /// Lays it at `path` of `tree`; false when it is of a kind that is left out.
    pub fn lay(&mut self, path: &Path, tree: &mut Tree, keep: Keep) -> anyhow::Result<bool> {
        let laid = self.lay_kind(path, tree, keep)?;
        // What is left out costs as much to read.
        tree.budget.bytes(skip(self.entry)?)?;
        Ok(laid)
    }

    fn lay_kind(&mut self, path: &Path, tree: &mut Tree, keep: Keep) -> anyhow::Result<bool> {
        let kind = self.entry.header().entry_type();
        match kind {
            EntryType::Directory => {
                tree.directory_with(path, self.metadata(keep)?, &self.attributes(keep))?;
            }
            EntryType::Symlink => tree.link(path, &self.link_target()?, self.metadata(keep)?)?,
            EntryType::Link => tree.hard_link(path, &self.link_target()?)?,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.file(path, tree, keep)?;
            }
            EntryType::Fifo if keep.nodes != Nodes::None => {
                tree.node(path, self.metadata(keep)?, FileType::Fifo, 0)?;
            }
            EntryType::Char | EntryType::Block if self.keeps_device(keep.nodes)? => {
                let is_char = kind == EntryType::Char;
                let kind = if is_char { FileType::CharacterDevice } else { FileType::BlockDevice };
                tree.node(path, self.metadata(keep)?, kind, self.device()?)?;
            }
            _ => {
                tree.budget.entry()?;
                return Ok(kind == EntryType::XGlobalHeader);
            }
        }
        Ok(true)
    }

    fn keeps_device(&self, nodes: Nodes) -> anyhow::Result<bool> {
        let is_char = self.entry.header().entry_type() == EntryType::Char;
        Ok(match nodes {
            Nodes::None => false,
            Nodes::Whiteouts => is_char && self.device()? == 0,
            Nodes::Devices => self.device()? != 0,
            Nodes::All => true,
        })
    }

    fn device(&self) -> anyhow::Result<u64> {
        let header = self.entry.header();
        let number = |found: io::Result<Option<u32>>| Ok::<_, io::Error>(found?.unwrap_or(0));
        Ok(rustix::fs::makedev(number(header.device_major())?, number(header.device_minor())?))
    }

    fn file(&mut self, path: &Path, tree: &mut Tree, keep: Keep) -> anyhow::Result<()> {
        let (metadata, attributes) = (self.metadata(keep)?, self.attributes(keep));
        let (size, parts) = match self.records.number("GNU.sparse.major")? {
            Some(1) => self.stretches()?,
            None if !self.records.has_prefix("GNU.sparse.") => (self.size(), vec![(0, self.size())]),
            // The tar crate would lay the map of holes as if it were the contents.
            _ => anyhow::bail!("a sparse file of another form than PAX 1.0"),
        };
        tree.file_with(path, metadata, Contents { size, parts, data: self.entry }, &attributes)
    }

    /// The map at the beginning of a sparse file: a count, and offset and length of each stretch,
    /// in lines, filled up to a block.
    fn stretches(&mut self) -> anyhow::Result<(u64, Vec<(u64, u64)>)> {
        let size = self.records.number("GNU.sparse.realsize")?.context("a sparse file without a size")?;
        let mut lines = Lines { entry: self.entry, block: [0; BLOCK], at: BLOCK };
        let count = lines.number()?;
        ensure!(count <= STRETCHES_MAX, "a sparse file of more than {STRETCHES_MAX} stretches");
        let mut parts = Vec::new();
        for _ in 0..count {
            parts.push((lines.number()?, lines.number()?));
        }
        Ok((size, parts))
    }

    pub fn link_target(&self) -> anyhow::Result<PathBuf> {
        if let Some(target) = self.records.get("linkpath") {
            return Ok(PathBuf::from(OsStr::from_bytes(target)));
        }
        Ok(self.entry.link_name()?.context("a link without a target")?.into_owned())
    }

    /// Owner and time come from PAX records where there are some.
    fn metadata(&self, keep: Keep) -> anyhow::Result<Metadata> {
        let header = self.entry.header();
        let owner = |key: &str, own: io::Result<u64>| -> anyhow::Result<u64> {
            if !keep.owner {
                return Ok(0);
            }
            Ok(self.records.number(key)?.map_or(own, Ok)?)
        };
        let mtime = (i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0), 0);
        Ok(Metadata {
            mode: header.mode().context("mode")? & if keep.set_id { 0o7777 } else { 0o1777 },
            uid: owner("uid", header.uid()).context("owner")?,
            gid: owner("gid", header.gid()).context("group")?,
            mtime: self.records.time("mtime").unwrap_or(mtime),
        })
    }

    fn attributes(&self, keep: Keep) -> Vec<Attribute> {
        let kept = self.records.attributes().filter(|(name, _)| (keep.attribute)(name));
        kept.map(|(name, value)| (name.to_owned(), value.to_vec())).collect()
    }
}

/// Numbers of a line each, of blocks at the beginning of an entry.
struct Lines<'e, 'a, R: Read> {
    entry: &'e mut Entry<'a, R>,
    block: [u8; BLOCK],
    at: usize,
}

impl<R: Read> Lines<'_, '_, R> {
    fn number(&mut self) -> anyhow::Result<u64> {
        let mut number = 0_u64;
        let mut digits = 0;
        loop {
            match self.byte()? {
                b'\n' if digits > 0 => return Ok(number),
                digit @ b'0'..=b'9' => {
                    digits += 1;
                    let more = number.checked_mul(10).and_then(|n| n.checked_add(u64::from(digit - b'0')));
                    number = more.context("a number in the map of a sparse file")?;
                }
                _ => anyhow::bail!("the map of a sparse file is not one of numbers"),
            }
        }
    }

    fn byte(&mut self) -> anyhow::Result<u8> {
        if self.at == BLOCK {
            self.entry.read_exact(&mut self.block).context("read the map of a sparse file")?;
            self.at = 0;
        }
        self.at += 1;
        Ok(self.block[self.at - 1])
    }
}
