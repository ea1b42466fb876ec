//! Reads an archive of a jail (see [`super::manifest`]), which may be hostile, into places of its
//! own; nothing has its name before all of it has been read and its checksum found right.
//!
//! The jail's own writes are laid in `jails/.importing-NAME`, the templates in
//! `templates/.importing-NAME`. An import that did not live to its end is known by the lock that
//! nobody holds, and removed by the next one and by `gc`.

use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{AtFlags, Mode, RenameFlags};
use rustix::io::Errno;

use super::export;
use super::layers::archive::entry::{self, Item, Keep, Nodes, Source};
use super::layers::manifest::is_kept;
use super::layers::stream::{self, fill};
use super::layers::tree::{Budget, Tree};
use super::manifest::{
    CHECKSUM, DEFINITION, FILES, LAYERS, MANIFEST, MANIFEST_BYTES_MAX, Manifest, TEMPLATES, WRITES,
};
use super::removal;
use crate::jail::JailName;
use crate::source::DEFINITION_BYTES_MAX;
use crate::sys::file;
use crate::template::hex;

/// What half an import is called, before the jail's name.
pub const IMPORTING: &str = ".importing-";
/// In a jail's directory: the import is not done until this is gone.
pub const MARK: &str = "importing";
/// The checksum's digits and the end of their line.
const CHECKSUM_BYTES: u64 = 65;
/// The texts of all files that are rendered for a jail.
const FILES_BYTES_MAX: u64 = 16 << 20;
/// Zeros behind the last entry.
const TAIL_BYTES_MAX: u64 = 1 << 16;
/// Bytes digested at a time.
const PENDING: usize = 256 << 10;
/// Names looked at in one directory.
const NAMES_MAX: usize = 100_000;

/// A directory that is being filled, by an import or `commit`, for as long as this holds its lock.
pub struct Place {
    parent: OwnedFd,
    name: OsString,
    pub directory: OwnedFd,
    pub path: PathBuf,
}

impl Place {
    /// Makes `.importing-NAME` below `parent`, after what a dead import of that name has left is
    /// removed.
    pub fn make(parent: &Path, name: &JailName) -> Result<Self> {
        let own = OsString::from(format!("{IMPORTING}{name}"));
        let path = parent.join(&own);
        let above = file::open_directory(parent).with_context(|| format!("open {}", parent.display()))?;
        if let Some(old) = Self::abandoned(&above, &own)? {
            drop(old);
            removal::remove(&above, &own)?;
        }
        rustix::fs::mkdirat(&above, &own, Mode::from(0o700))
            .with_context(|| format!("make {}", path.display()))?;
        let directory = file::open_child(&above, &own).with_context(|| format!("open {}", path.display()))?;
        ensure!(lock(&directory)?, "{}: somebody else has taken it", path.display());
        Ok(Self { parent: above, name: own, directory, path })
    }

    /// The directory, locked, if its import is dead; an error if it lives.
    fn abandoned(above: &OwnedFd, name: &OsStr) -> Result<Option<OwnedFd>> {
        let directory = match file::open_child(above, name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.with_context(|| format!("open {}", name.display()))?,
        };
        ensure!(lock(&directory)?, "another import or commit of that name goes on");
        Ok(Some(directory))
    }

    /// Gives what was made in it, `from`, the name `to` in the directory above.
    pub fn hand_over(&self, from: &OsStr, to: &OsStr) -> Result<()> {
        rustix::fs::renameat_with(&self.directory, from, &self.parent, to, RenameFlags::NOREPLACE)
            .with_context(|| format!("rename to {}", to.display()))
    }

    /// Gives the directory itself its name.
    pub fn become_named(self, to: &OsStr) -> Result<OwnedFd> {
        let flags = RenameFlags::NOREPLACE;
        if let Err(error) = rustix::fs::renameat_with(&self.parent, &self.name, &self.parent, to, flags) {
            // The first error is the one to tell.
            let _ = removal::remove(&self.parent, &self.name);
            return Err(error).with_context(|| format!("rename to {}", to.display()));
        }
        rustix::fs::fsync(&self.parent).context("sync the directory")?;
        Ok(self.directory)
    }

    pub fn remove(self) -> Result<()> {
        removal::remove(&self.parent, &self.name)
    }
}

fn lock(directory: &OwnedFd) -> Result<bool> {
    file::try_lock(directory).context("lock the directory")
}

/// Names of dead imports in `parent`: of directories whose lock nobody holds.
pub fn dead(parent: &Path) -> Result<Vec<JailName>> {
    let above = match file::open_directory(parent) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("open {}", parent.display()))?,
    };
    let mut dead = Vec::new();
    for name in file::names(&above, NAMES_MAX).with_context(|| format!("list {}", parent.display()))? {
        let Some(jail) = name.to_str().and_then(|name| JailName::new(name.strip_prefix(IMPORTING)?).ok())
        else {
            continue;
        };
        if Place::abandoned(&above, &name).is_ok_and(|found| found.is_some()) {
            dead.push(jail);
        }
    }
    Ok(dead)
}

/// Removes the directory of a dead import.
pub fn remove_dead(parent: &Path, name: &JailName) -> Result<()> {
    let above = file::open_directory(parent).with_context(|| format!("open {}", parent.display()))?;
    let own = OsString::from(format!("{IMPORTING}{name}"));
    match Place::abandoned(&above, &own)? {
        Some(_held) => removal::remove(&above, &own),
        None => Ok(()),
    }
}

/// What of an archive is not the jail's own writes.
#[derive(Default)]
pub struct Head {
    pub manifest: Option<Manifest>,
    pub definition: String,
    /// Of the files that are rendered for the jail, as the manifest counts them.
    pub texts: Vec<String>,
}

/// Where the parts go that are not small; nowhere, if they are only read.
#[derive(Default)]
pub struct Laid {
    pub writes: Option<OwnedFd>,
    /// As the manifest counts them; those that are here already go nowhere.
    pub layers: Vec<Option<OwnedFd>>,
}

/// Reads an archive to its end and verifies it.
pub struct Reader<'r> {
    pub head: Head,
    templates: Option<Tree>,
    /// The directory of the templates, when all are in it.
    filled: Option<OwnedFd>,
    writes: Option<Tree>,
    layers: Vec<Option<OwnedFd>>,
    /// The layer that is being laid, by its number. They come one after the other.
    layer: (usize, Option<Tree>),
    /// What all layers together may still use up.
    budget: Budget,
    verified: bool,
    digest: &'r RefCell<Blocks>,
    pub left_out: Vec<PathBuf>,
    /// Decides, once the head is known, where the rest goes.
    decide: Decide<'r>,
    decided: bool,
    /// Why it did not, which is no entry's fault.
    refused: Option<anyhow::Error>,
}

/// Given the head, gives the directories for the rest.
pub type Decide<'r> = &'r mut dyn FnMut(&Head) -> Result<Laid>;

/// Reads `archive`; templates go into the directory `templates`.
pub fn read<'r>(
    archive: File,
    templates: OwnedFd,
    told: &'r dyn Fn(u64),
    decide: Decide<'r>,
) -> Result<(Head, Vec<PathBuf>)> {
    stream::read(archive.take(u64::MAX), None, |stream| {
        let stream = RefCell::new(stream);
        let digest = RefCell::default();
        let mut reader = Reader {
            head: Head::default(),
            templates: Some(Tree::new(templates)),
            filled: None,
            writes: None,
            layers: Vec::new(),
            layer: (0, None),
            budget: Budget::default(),
            verified: false,
            digest: &digest,
            left_out: Vec::new(),
            decide,
            decided: false,
            refused: None,
        };
        let source = Digesting { inner: &stream, digest: &digest, told };
        let read = entry::each(Box::new(source), &mut |item| reader.entry(item));
        if let Some(refused) = reader.refused.take() {
            return Err(refused);
        }
        if reader.head.manifest.is_none() {
            read.context("it is not an archive of a jail")?;
        } else {
            read?;
        }
        ensure!(reader.verified, "the archive ends before its checksum: it was cut off");
        at_end(&mut **stream.borrow_mut())?;
        if let Err(error) = reader.ask() {
            return Err(reader.refused.take().unwrap_or(error));
        }
        reader.end_layer()?;
        let writes = reader.writes.take().map(Tree::settle).transpose()?;
        for filled in reader.filled.into_iter().chain(writes.map(|(root, _)| root)) {
            rustix::fs::syncfs(&filled).context("sync the file system")?;
        }
        Ok((reader.head, reader.left_out))
    })
}

/// Reads what is left, up to the compressor's own checksum: zeros that fill a block of a tape.
fn at_end(stream: &mut dyn Read) -> Result<()> {
    let mut rest = Vec::new();
    stream.take(TAIL_BYTES_MAX + 1).read_to_end(&mut rest).context("read the archive to its end")?;
    let plain = rest.len() as u64 <= TAIL_BYTES_MAX && rest.iter().all(|byte| *byte == 0);
    ensure!(plain, "something follows the checksum");
    Ok(())
}

impl Reader<'_> {
    fn entry(&mut self, item: &mut Item<'_, '_, Source<'_>>) -> Result<()> {
        ensure!(!self.verified, "something follows the checksum");
        let mut parts = item.path.components();
        let first = match parts.next() {
            Some(Component::Normal(first)) => first.to_owned(),
            _ => bail!("it is not part of an archive of a jail"),
        };
        let rest = parts.as_path().to_owned();
        let first = first.to_string_lossy();
        ensure!(first == MANIFEST || self.head.manifest.is_some(), "it is not an archive of a jail");
        match first.as_ref() {
            MANIFEST => {
                ensure!(self.head.manifest.is_none(), "there are two of it");
                self.head.manifest = Some(Manifest::parse(&item.contents(MANIFEST_BYTES_MAX)?)?);
            }
            DEFINITION => {
                ensure!(self.head.definition.is_empty() && !self.decided, "there are two of it");
                let text = item.contents(DEFINITION_BYTES_MAX)?;
                self.head.definition = String::from_utf8(text).context("it is not UTF-8")?;
            }
            TEMPLATES => self.template(item, &rest)?,
            FILES => self.file(item, &rest)?,
            LAYERS => self.layer(item, &rest)?,
            WRITES => self.write(item, &rest)?,
            CHECKSUM => self.verify(item)?,
            _ => bail!("it is not part of an archive of a jail"),
        }
        Ok(())
    }

    fn template(&mut self, item: &mut Item<'_, '_, Source<'_>>, path: &Path) -> Result<()> {
        ensure!(!self.decided, "it comes too late");
        let named =
            self.head.manifest.as_ref().is_some_and(|manifest| {
                manifest.templates.iter().any(|name| path.starts_with(name.as_str()))
            });
        ensure!(named, "it is of no template of the jail");
        let keep = Keep { attribute: |_| false, nodes: Nodes::None, set_id: false, owner: false };
        let tree = self.templates.as_mut().context("the templates are done")?;
        lay(item, path, TEMPLATES, tree, keep).map(drop)
    }

    fn write(&mut self, item: &mut Item<'_, '_, Source<'_>>, path: &Path) -> Result<()> {
        self.ask()?;
        let own = export::part(self.head.manifest.as_ref().context("there is no manifest")?.storage);
        let inner = path.strip_prefix(own).context("it is of another storage than the manifest says")?;
        let Some(tree) = self.writes.as_mut() else { return Ok(()) };
        let keep = Keep { attribute: is_kept, nodes: Nodes::Whiteouts, set_id: true, owner: true };
        let below = Path::new(WRITES).join(own);
        if !lay(item, inner, &below.to_string_lossy(), tree, keep)? {
            self.left_out.push(inner.to_owned());
        }
        Ok(())
    }

    fn file(&mut self, item: &mut Item<'_, '_, Source<'_>>, path: &Path) -> Result<()> {
        ensure!(!self.decided, "it comes too late");
        let texts = &mut self.head.texts;
        ensure!(number(path)? == texts.len(), "it is out of its order");
        let so_far: u64 = texts.iter().map(|text| text.len() as u64).sum();
        let text = item.contents(FILES_BYTES_MAX.saturating_sub(so_far))?;
        texts.push(String::from_utf8(text).context("it is not UTF-8")?);
        Ok(())
    }

    fn layer(&mut self, item: &mut Item<'_, '_, Source<'_>>, path: &Path) -> Result<()> {
        self.ask()?;
        let mut parts = path.components();
        let own = parts.next().map_or(Path::new(""), |own| Path::new(own.as_os_str())).to_owned();
        let number = number(&own)?;
        let alone = self.head.manifest.as_ref().and_then(|manifest| manifest.alone.as_ref());
        let layer =
            alone.and_then(|alone| alone.layers.get(number)).context("it is of no layer of the jail")?;
        let nodes = if layer.devices { Nodes::All } else { Nodes::Whiteouts };
        ensure!(number >= self.layer.0, "it is out of its order");
        if number > self.layer.0 || self.layer.1.is_none() {
            self.end_layer()?;
            let root = self.layers.get_mut(number).and_then(Option::take);
            self.layer = (number, root.map(Tree::new));
        }
        let Some(tree) = self.layer.1.as_mut() else { return Ok(()) };
        std::mem::swap(&mut tree.budget, &mut self.budget);
        let keep = Keep { attribute: is_kept, nodes, set_id: true, owner: true };
        let prefix = Path::new(LAYERS).join(&own);
        let laid = lay(item, parts.as_path(), &prefix.to_string_lossy(), tree, keep)?;
        std::mem::swap(&mut tree.budget, &mut self.budget);
        if !laid {
            self.left_out.push(item.path.clone());
        }
        Ok(())
    }

    fn end_layer(&mut self) -> Result<()> {
        self.layer.1.take().map_or(Ok(()), |tree| tree.settle().map(drop))
    }

    /// All that comes before the layers and the jail's own writes has been read.
    fn ask(&mut self) -> Result<()> {
        if !self.decided {
            self.decided = true;
            if let Some(templates) = self.templates.take() {
                self.filled = Some(templates.settle()?.0);
            }
            let laid = match (self.decide)(&self.head) {
                Ok(laid) => laid,
                Err(error) => {
                    self.refused = Some(error);
                    bail!("it is refused");
                }
            };
            self.writes = laid.writes.map(Tree::new);
            self.layers = laid.layers;
        }
        Ok(())
    }

    fn verify(&mut self, item: &mut Item<'_, '_, Source<'_>>) -> Result<()> {
        let found = self.digest.borrow().before_last();
        let said = item.contents(CHECKSUM_BYTES)?;
        ensure!(said.trim_ascii() == found.as_bytes(), "the archive is damaged: its checksum is {found}");
        self.verified = true;
        Ok(())
    }
}

/// What an entry of a list is called.
fn number(path: &Path) -> Result<usize> {
    let digits = path.to_str().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    digits.and_then(|digits| digits.parse().ok()).context("it is not part of an archive of a jail")
}

fn lay(
    item: &mut Item<'_, '_, Source<'_>>,
    path: &Path,
    prefix: &str,
    tree: &mut Tree,
    keep: Keep,
) -> Result<bool> {
    if item.is_hard_link() {
        let target = item.link_target()?;
        let first = target.strip_prefix(prefix).context("a hard link to another part of the archive")?;
        return tree.hard_link(path, first).map(|()| true);
    }
    item.lay(path, tree, keep)
}

/// The digest of what was read, and what has been read since. The tar crate reads a header at
/// once, so when one has been read, `last` is where it begins.
#[derive(Default)]
struct Blocks {
    digest: blake3::Hasher,
    pending: Vec<u8>,
    /// Where the last read began, in `pending`.
    last: usize,
}

impl Blocks {
    fn add(&mut self, bytes: &[u8]) {
        if self.pending.len() >= PENDING {
            self.digest.update(&self.pending);
            self.pending.clear();
        }
        self.last = self.pending.len();
        self.pending.extend_from_slice(bytes);
    }

    fn before_last(&self) -> String {
        let mut digest = self.digest.clone();
        digest.update(&self.pending[..self.last]);
        hex(digest.finalize().as_bytes())
    }
}

struct Digesting<'d, 's> {
    inner: &'d RefCell<&'s mut dyn Read>,
    digest: &'d RefCell<Blocks>,
    told: &'d dyn Fn(u64),
}

impl Read for Digesting<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = fill(&mut **self.inner.borrow_mut(), buffer)?;
        self.digest.borrow_mut().add(&buffer[..count]);
        (self.told)(count as u64);
        Ok(count)
    }
}

/// Whether the jail's directory still waits for its definition: an import that was cut off
/// right at its end.
pub fn is_marked(directory: &Path) -> bool {
    directory.join(MARK).exists()
}

/// The import is done: the jail is one like any other.
pub fn unmark(directory: &OwnedFd) -> Result<()> {
    match rustix::fs::unlinkat(directory.as_fd(), MARK, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error).context("end the import"),
    }
}
