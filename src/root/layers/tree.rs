//! A tree that is filled from somewhere: every path is resolved inside its root, and what it may
//! cost is bounded. It is a fresh one that nobody else writes to, or one that is in use, of which
//! each entry is replaced at once and no directory changes.

mod below;
mod budget;
mod contents;
mod metadata;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail, ensure};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::root::files;
use crate::sys::file;
use below::Below;
use contents::{New, Writer};
use metadata::{chown_link, default_list, finish_link, ids, own, set_attribute, set_attributes, times};

pub use budget::{BUILD_TIME_MAX, BYTES_MAX, Budget, ENTRIES_MAX};
pub use contents::{Contents, Digests, Written};
pub use metadata::{Attribute, Metadata};

/// Components of one path.
pub const DEPTH_MAX: usize = 128;
/// Bytes of one path or link target, PATH_MAX without its end.
pub const PATH_BYTES_MAX: usize = 4095;
/// Bytes of one component, NAME_MAX.
pub const NAME_BYTES_MAX: usize = 255;
/// Bytes copied between two looks at the clock.
const CHUNK: u64 = 4 << 20;

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
    /// Of the contents of its files; there is none before the first.
    writer: Option<Writer>,
}

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
            writer: None,
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
        ids(metadata)?;
        let (file, temporary) = self.create(path, metadata)?;
        let new = New { file, path: path.to_owned(), metadata, attributes: attributes.to_vec() };
        let begin = if self.in_use { Writer::here } else { Writer::beside };
        let written = self.writer.get_or_insert_with(begin).file(new, contents, &mut self.budget);
        self.put(path, temporary, written)
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
        let (file, temporary) = self.create(path, metadata)?;
        let filled = self.copy_contents(&file, source).and_then(|()| {
            let inode = own(&file, metadata)?.st_ino;
            self.writer.as_mut().map_or(Ok(()), |writer| writer.forget(inode))?;
            rustix::fs::futimens(&file, &times(metadata.mtime)).context("set times")
        });
        self.put(path, temporary, filled).map(|()| file)
    }

    fn copy_contents(&mut self, mut file: &File, source: &File) -> anyhow::Result<()> {
        if file::clone_blocks(source, file) {
            return self.budget.bytes(file.metadata().context("stat")?.len());
        }
        loop {
            self.budget.bytes(0)?;
            let copied = io::copy(&mut source.take(CHUNK), &mut file).context("copy")?;
            self.budget.bytes(copied)?;
            if copied < CHUNK {
                return Ok(());
            }
        }
    }

    /// Opens a new file: in its place, or with another name beside it when the tree is in use.
    fn create(&mut self, path: &Path, metadata: Metadata) -> anyhow::Result<(File, Option<OsString>)> {
        self.budget.entry()?;
        let path = inside(path)?;
        if self.in_use {
            let (parent, name) = self.place(&path)?;
            let (file, temporary) = files::create_beside(parent, &name)?;
            return Ok((file, Some(temporary)));
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from(metadata.mode & 0o777);
        let create = |parent: BorrowedFd<'_>, name: &OsStr| rustix::fs::openat(parent, name, flags, mode);
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

    /// Gives directories what they get last, and waits until all is written. Says what is known
    /// of the files.
    pub fn settle(mut self) -> anyhow::Result<(OwnedFd, Digests)> {
        let digests = self.writer.take().map(Writer::end).transpose()?.unwrap_or_default();
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
        Ok((self.root, digests))
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
    let mut clean = PathBuf::with_capacity(path.as_os_str().len());
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
