//! A tree that is filled from somewhere: every path is resolved inside its root, and what it may
//! cost is bounded. It is a fresh one that nobody else writes to, or one that is in use, of which
//! each entry is replaced at once and no directory changes.

mod below;
mod budget;
mod metadata;

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail, ensure};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::stream::fill;
use crate::root::files;
use crate::sys::file;
use below::Below;
use metadata::{chown_link, default_list, finish, finish_link, own, set_attribute, set_attributes, times};

pub use budget::{BUILD_TIME_MAX, BYTES_MAX, Budget, ENTRIES_MAX};
pub use metadata::{Attribute, Metadata};

/// Components of one path.
pub const DEPTH_MAX: usize = 128;
/// Bytes of one path or link target, PATH_MAX without its end.
pub const PATH_BYTES_MAX: usize = 4095;
/// Bytes of one component, NAME_MAX.
pub const NAME_BYTES_MAX: usize = 255;
/// Bytes copied between two looks at the clock.
const CHUNK: u64 = 4 << 20;
/// Bytes read and written at a time.
const BUFFER: usize = 256 << 10;

/// What a regular file holds: `parts` of it, offset and length in ascending order, come from
/// `data` one after the other, and the rest are holes.
pub struct Contents<'d> {
    pub size: u64,
    pub parts: Vec<(u64, u64)>,
    pub data: &'d mut dyn Read,
}

pub struct Tree {
    root: OwnedFd,
    pub budget: Budget,
    /// Others use what is there already.
    in_use: bool,
    /// The directory of the last entry, for the next is mostly beside it.
    last: Option<(PathBuf, OwnedFd)>,
    /// Directories get their times last, for each entry made in them changes these.
    directories: Vec<(PathBuf, (i64, u32))>,
    /// Their default access lists too, which each entry made in them would inherit.
    defaults: Vec<(PathBuf, Attribute)>,
    /// What it has to say of the layers below it.
    below: Below,
    /// What contents are read into.
    buffer: Vec<u8>,
    digests: Digests,
    /// Of the file that is being filled.
    digest: Option<blake3::Hasher>,
}

/// Size and digest of files, by inode, as they were written: they need not be read again.
pub type Digests = HashMap<u64, (u64, blake3::Hash)>;

impl Tree {
    /// `root` is an empty directory that nobody else writes to.
    pub fn new(root: OwnedFd) -> Self {
        Self {
            root,
            budget: Budget::default(),
            in_use: false,
            last: None,
            directories: Vec::new(),
            defaults: Vec::new(),
            below: Below::default(),
            buffer: Vec::new(),
            digests: Digests::new(),
            digest: None,
        }
    }

    /// `root` is a directory that others may use, and write to, while it is filled.
    pub fn in_use(root: OwnedFd) -> Self {
        Self { in_use: true, budget: Budget::boundless(), ..Self::new(root) }
    }

    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Makes a directory, or gives the one that is there its owner and mode.
    pub fn directory(&mut self, path: &Path, metadata: Metadata) -> anyhow::Result<()> {
        self.directory_with(path, metadata, &[])
    }

    /// The same with attributes. A directory in use stays as it is.
    pub fn directory_with(
        &mut self,
        path: &Path,
        metadata: Metadata,
        attributes: &[Attribute],
    ) -> anyhow::Result<()> {
        self.budget.entry()?;
        let path = inside(path)?;
        if path.as_os_str().is_empty() {
            if self.in_use {
                return Ok(());
            }
            own(&self.root, metadata)?;
            self.defaults.extend(default_list(&path, attributes));
            set_attributes(&self.root, attributes)?;
        } else {
            if !self.made_directory(&path)? && self.in_use {
                return Ok(());
            }
            let (parent, name) = self.place(&path)?;
            let made = file::open_child(parent, &name)?;
            own(&made, metadata)?;
            set_attributes(&made, attributes)?;
            self.defaults.extend(default_list(&path, attributes));
        }
        self.directories.push((path, metadata.mtime));
        Ok(())
    }

    /// False when there was one.
    fn made_directory(&mut self, path: &Path) -> anyhow::Result<bool> {
        let (parent, name) = self.place(path)?;
        let make = |parent: BorrowedFd<'_>, name: &OsStr| rustix::fs::mkdirat(parent, name, Mode::RWXU);
        match make(parent, &name) {
            Err(Errno::EXIST) if is_directory(parent, &name)? => Ok(false),
            Err(Errno::EXIST) => self.in_place(path, make)?.context("make directory").map(|()| true),
            other => other.context("make directory").map(|()| true),
        }
    }

    /// Makes a regular file of `size` bytes from `contents`.
    pub fn file(
        &mut self,
        path: &Path,
        metadata: Metadata,
        size: u64,
        contents: &mut dyn Read,
    ) -> anyhow::Result<()> {
        let contents = Contents { size, parts: vec![(0, size)], data: contents };
        self.file_with(path, metadata, contents, &[])
    }

    /// Makes a regular file with its holes and attributes.
    pub fn file_with(
        &mut self,
        path: &Path,
        metadata: Metadata,
        contents: Contents<'_>,
        attributes: &[Attribute],
    ) -> anyhow::Result<()> {
        ensure!(contents.size <= self.budget.bytes, "more than {BYTES_MAX} bytes");
        let (file, temporary) = self.create(path)?;
        let filled = self.fill_and_digest(&file, contents).and_then(|()| {
            own(&file, metadata)?;
            // After the owner, whose change takes a file's capabilities away.
            set_attributes(&file, attributes)?;
            rustix::fs::futimens(&file, &times(metadata.mtime)).context("set times")
        });
        self.put(path, temporary, filled)
    }

    /// A file with holes is not digested while it is written, for these count too.
    fn fill_and_digest(&mut self, file: &File, contents: Contents<'_>) -> anyhow::Result<()> {
        let size = contents.size;
        let is_whole = contents.parts == [(0, size)] && !self.in_use;
        self.digest = is_whole.then(blake3::Hasher::new);
        let filled = self.fill(file, contents);
        let digest = self.digest.take();
        filled?;
        if self.in_use {
            return Ok(());
        }
        // The inode may have been that of a file that is gone.
        let inode = rustix::fs::fstat(file).context("stat")?.st_ino;
        match digest {
            Some(digest) => drop(self.digests.insert(inode, (size, digest.finalize()))),
            None => drop(self.digests.remove(&inode)),
        }
        Ok(())
    }

    /// The digests of what it holds, as far as they are known.
    pub fn take_digests(&mut self) -> Digests {
        std::mem::take(&mut self.digests)
    }

    fn fill(&mut self, file: &File, contents: Contents<'_>) -> anyhow::Result<()> {
        let (mut at, mut position) = (0, 0);
        for (offset, length) in contents.parts {
            let end = offset.checked_add(length).filter(|end| offset >= at && *end <= contents.size);
            let end = end.context("its parts overlap or go beyond its end")?;
            if length == 0 {
                continue;
            }
            if offset != position {
                rustix::fs::seek(file, rustix::fs::SeekFrom::Start(offset)).context("seek")?;
            }
            self.budget.bytes(offset - at)?;
            self.stretch(contents.data, file, length)?;
            (at, position) = (end, end);
        }
        self.budget.bytes(contents.size - at)?;
        if at < contents.size {
            rustix::fs::ftruncate(file, contents.size).context("set the size")?;
        }
        Ok(())
    }

    fn stretch(&mut self, data: &mut dyn Read, file: &File, length: u64) -> anyhow::Result<()> {
        let mut left = length;
        while left > 0 {
            let part = left.min(CHUNK);
            let copied = self.part(data, file, part)?;
            ensure!(copied == part, "ends after {} of {length} bytes", length - left + copied);
            left -= part;
        }
        Ok(())
    }

    /// Makes a device node, a FIFO, or a whiteout of overlayfs.
    pub fn node(
        &mut self,
        path: &Path,
        metadata: Metadata,
        kind: FileType,
        device: u64,
    ) -> anyhow::Result<()> {
        self.budget.entry()?;
        let path = inside(path)?;
        self.make_way(&path)?;
        let (parent, name) = self.place(&path)?;
        rustix::fs::mknodat(parent, &name, kind, Mode::from(metadata.mode & 0o777), device)
            .context("make node")?;
        chown_link(parent, &name, metadata)?;
        // The umask, and a set-id bit that is not for nodes, have no say.
        rustix::fs::chmodat(parent, &name, Mode::from(metadata.mode & 0o777), AtFlags::empty())
            .context("chmod")?;
        let times = times(metadata.mtime);
        rustix::fs::utimensat(parent, &name, &times, AtFlags::SYMLINK_NOFOLLOW).context("set times")
    }

    /// Makes a regular file with the contents of an open one, sharing blocks where that is possible.
    pub fn copy(&mut self, path: &Path, metadata: Metadata, source: &File) -> anyhow::Result<File> {
        let (file, temporary) = self.create(path)?;
        if !self.digests.is_empty() {
            // The inode may have been that of a file that is gone.
            self.digests.remove(&rustix::fs::fstat(&file).context("stat")?.st_ino);
        }
        let filled = self.copy_contents(&file, source).and_then(|()| finish(&file, metadata));
        self.put(path, temporary, filled).map(|()| file)
    }

    fn copy_contents(&mut self, file: &File, source: &File) -> anyhow::Result<()> {
        if file::clone_blocks(source, file) {
            return self.budget.bytes(file.metadata().context("stat")?.len());
        }
        let mut rest = source;
        while self.part(&mut rest, file, CHUNK)? == CHUNK {}
        Ok(())
    }

    /// Copies up to `most` bytes and says how many there were.
    fn part(&mut self, from: &mut dyn Read, mut to: &File, most: u64) -> anyhow::Result<u64> {
        self.budget.bytes(0)?;
        self.buffer.resize(BUFFER, 0);
        let mut copied = 0;
        while copied < most {
            let room = usize::try_from(most - copied).map_or(BUFFER, |left| left.min(BUFFER));
            let count = fill(from, &mut self.buffer[..room]).context("read")?;
            if count == 0 {
                break;
            }
            to.write_all(&self.buffer[..count]).context("write")?;
            if let Some(digest) = &mut self.digest {
                digest.update(&self.buffer[..count]);
            }
            copied += count as u64;
        }
        self.budget.bytes(copied)?;
        Ok(copied)
    }

    /// Opens a new file: in its place, or with another name beside it when the tree is in use.
    fn create(&mut self, path: &Path) -> anyhow::Result<(File, Option<OsString>)> {
        self.budget.entry()?;
        let path = inside(path)?;
        if self.in_use {
            let (parent, name) = self.place(&path)?;
            let (file, temporary) = files::create_beside(parent, &name)?;
            return Ok((file, Some(temporary)));
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let create =
            |parent: BorrowedFd<'_>, name: &OsStr| rustix::fs::openat(parent, name, flags, Mode::from(0o600));
        let file = self.in_place(&path, create)?.context("create")?;
        Ok((File::from(file), None))
    }

    /// Gives what was made beside its place its name, or takes it away if it is not whole.
    fn put(
        &mut self,
        path: &Path,
        temporary: Option<OsString>,
        made: anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let Some(temporary) = temporary else { return made };
        let (parent, name) = self.place(&inside(path)?)?;
        let put = made.and_then(|()| match rustix::fs::renameat(parent, &temporary, parent, &name) {
            Err(Errno::ISDIR | Errno::EXIST | Errno::NOTEMPTY) => bail!("takes the place of a directory"),
            other => other.context("rename into place"),
        });
        if put.is_err() {
            // The first error is the one to tell.
            let _ = rustix::fs::unlinkat(parent, &temporary, AtFlags::empty());
        }
        put
    }

    pub fn link(&mut self, path: &Path, target: &Path, metadata: Metadata) -> anyhow::Result<()> {
        self.budget.entry()?;
        let length = target.as_os_str().len();
        ensure!(length > 0 && length <= PATH_BYTES_MAX, "a link target has 1 to {PATH_BYTES_MAX} bytes");
        let path = inside(path)?;
        if self.in_use {
            let (parent, name) = self.place(&path)?;
            let ((), temporary) = files::beside(&name, |free| rustix::fs::symlinkat(target, parent, free))
                .context("make link")?;
            let finished = finish_link(parent, &temporary, metadata);
            return self.put(&path, Some(temporary), finished);
        }
        self.in_place(&path, |parent, name| rustix::fs::symlinkat(target, parent, name))?
            .context("make link")?;
        let (parent, name) = self.place(&path)?;
        finish_link(parent, &name, metadata)
    }

    /// Gives the entry at `target`, which is in the tree already, a second name.
    pub fn hard_link(&mut self, path: &Path, target: &Path) -> anyhow::Result<()> {
        self.budget.entry()?;
        let (path, target) = (inside(path)?, inside(target)?);
        let (directory, name) = split(&target)?;
        let directory =
            file::open_inside(self.root(), directory, OFlags::PATH | OFlags::DIRECTORY, file::INSIDE)
                .context("hard link to what is not there")?;
        if path == target {
            return Ok(());
        }
        let shown = || format!("hard link to {}", target.display());
        if self.in_use {
            let (parent, own_name) = self.place(&path)?;
            let link = |free: &OsStr| rustix::fs::linkat(&directory, name, parent, free, AtFlags::empty());
            let ((), temporary) = files::beside(&own_name, link).with_context(shown)?;
            let put = self.put(&path, Some(temporary.clone()), Ok(()));
            // Renaming one name of a file to another of the same file leaves both.
            let (parent, _) = self.place(&path)?;
            let _ = rustix::fs::unlinkat(parent, &temporary, AtFlags::empty());
            return put;
        }
        self.make_way(&path)?;
        let (parent, own_name) = self.place(&path)?;
        rustix::fs::linkat(&directory, name, parent, &own_name, AtFlags::empty()).with_context(shown)
    }

    /// Gives directories what they get last.
    pub fn settle(mut self) -> anyhow::Result<OwnedFd> {
        for (path, list) in std::mem::take(&mut self.defaults) {
            let directory = file::open_inside(self.root(), &path, OFlags::DIRECTORY, file::INSIDE);
            let Ok(directory) = directory else { continue };
            set_attribute(&directory, &list)?;
        }
        while let Some((path, mtime)) = self.directories.pop() {
            let directory = file::open_inside(self.root(), &path, OFlags::DIRECTORY, file::INSIDE);
            let Ok(directory) = directory else { continue };
            rustix::fs::futimens(&directory, &times(mtime)).context("set times")?;
        }
        Ok(self.root)
    }

    /// The open parent of `path` and its last component; missing parents are made.
    fn place(&mut self, path: &Path) -> anyhow::Result<(BorrowedFd<'_>, OsString)> {
        let (directory, name) = split(path)?;
        let known = self.last.as_ref().is_some_and(|(last, _)| last == directory);
        if !known {
            let opened = self.open_or_make(directory)?;
            self.last = Some((directory.to_owned(), opened));
        }
        let (_, parent) = self.last.as_ref().expect("it was set just now");
        Ok((parent.as_fd(), name.to_owned()))
    }

    fn open_or_make(&mut self, directory: &Path) -> anyhow::Result<OwnedFd> {
        let open = |root| file::open_inside(root, directory, OFlags::DIRECTORY, file::INSIDE);
        match open(self.root()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other.with_context(|| format!("open {}", directory.display())),
        }
        // The depth of a path is bounded, and so is this recursion.
        let (above, name) = split(directory)?;
        let above = self.open_or_make(above)?;
        rustix::fs::mkdirat(&above, name, Mode::from(0o755))
            .with_context(|| format!("make directory {}", directory.display()))?;
        let made = file::open_child(&above, name)?;
        own(&made, Metadata { mode: 0o755, ..Metadata::default() })?;
        self.below.implied.push(directory.to_owned());
        Ok(made)
    }

    /// Makes something at `path`, in the place of what else may be there: mostly nothing is.
    fn in_place<T>(
        &mut self,
        path: &Path,
        make: impl Fn(BorrowedFd<'_>, &OsStr) -> Result<T, Errno>,
    ) -> anyhow::Result<Result<T, Errno>> {
        let (parent, name) = self.place(path)?;
        match make(parent, &name) {
            Err(Errno::EXIST) => {
                self.make_way(path)?;
                let (parent, name) = self.place(path)?;
                Ok(make(parent, &name))
            }
            other => Ok(other),
        }
    }

    /// Removes what stands in the place of a new entry, as a later entry of an archive wins.
    fn make_way(&mut self, path: &Path) -> anyhow::Result<()> {
        let in_use = self.in_use;
        let (parent, name) = self.place(path)?;
        if in_use {
            return match rustix::fs::statat(parent, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => Ok(()),
                Ok(_) => bail!("takes the place of what is there already"),
                Err(error) => Err(error).context("stat"),
            };
        }
        match rustix::fs::unlinkat(parent, &name, AtFlags::empty()) {
            // A link may have been part of the way to the directory that is kept open.
            Ok(()) => self.last = None,
            Err(Errno::NOENT) => {}
            Err(Errno::ISDIR) => bail!("takes the place of a directory"),
            Err(error) => return Err(error).context("remove what was there"),
        }
        Ok(())
    }
}

/// `path` relative to the root, without `.`; `..` and absurd lengths are refused.
pub fn inside(path: &Path) -> anyhow::Result<PathBuf> {
    ensure!(path.as_os_str().len() <= PATH_BYTES_MAX, "the path has more than {PATH_BYTES_MAX} bytes");
    let mut clean = PathBuf::new();
    let mut depth = 0;
    for part in path.components() {
        match part {
            Component::ParentDir => bail!("the path goes through `..`"),
            Component::Normal(name) => {
                ensure!(name.len() <= NAME_BYTES_MAX, "a name has more than {NAME_BYTES_MAX} bytes");
                depth += 1;
                clean.push(name);
            }
            _ => {}
        }
    }
    ensure!(depth <= DEPTH_MAX, "the path is more than {DEPTH_MAX} directories deep");
    Ok(clean)
}

fn split(path: &Path) -> anyhow::Result<(&Path, &OsStr)> {
    let name = path.file_name().context("the path is the root itself")?;
    Ok((path.parent().unwrap_or(Path::new("")), name))
}

fn is_directory(parent: BorrowedFd<'_>, name: &OsStr) -> anyhow::Result<bool> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode).is_dir()),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error).context("stat"),
    }
}
