//! Packs trees into a tar stream, by descriptor: no link is followed below the top, and what
//! changes its kind while it is looked at is an error, not a way out.
//!
//! Long names are written as GNU tar does, attributes, holes and times finer than a second as PAX
//! records, so that other programs read the stream too.

mod contents;
pub mod stack;

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use rustix::fs::{AtFlags, FileType, SeekFrom, Stat};
use tar::{Builder, EntryType, Header};

use super::layers::archive::BLOCK;
use super::layers::copied::open_regular;
use super::layers::tree::DEPTH_MAX;
use crate::sys::{file, mount};
use contents::{Exactly, Stretches};
use stack::Stack;

/// Entries of one directory.
const NAMES_MAX: usize = 10_000_000;
/// Stretches of data in one sparse file; with more it is packed whole.
const STRETCHES_MAX: usize = 1 << 16;
/// How a directory is marked that hides what is below it.
const OPAQUE_RECORD: &str = "SCHILY.xattr.trusted.overlay.opaque";
/// Bytes read at a time, and that the `told` function hears of.
const CHUNK: usize = 256 << 10;
/// What the kernel shows there is no file, and reading some of it acts or waits.
const OF_THE_KERNEL: &[i64] = &[
    libc::PROC_SUPER_MAGIC,
    0x6265_6572, // sysfs
    libc::CGROUP_SUPER_MAGIC,
    libc::CGROUP2_SUPER_MAGIC,
    0x1cd1,      // devpts
    0x1980_0202, // mqueue
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0xcafe_4a11, // bpf
];

/// What of an entry goes along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Contents, permissions and time; all is root's, and nothing runs as its owner.
    Plain,
    /// Also owners, set-id bits, `user.*` attributes and access lists.
    Owners,
    /// All there is: attributes of every kind, device nodes, overlayfs's whiteouts.
    Everything,
}

impl Keep {
    fn attribute(self, name: &OsStr) -> bool {
        let name = name.as_bytes();
        match self {
            Self::Plain => false,
            Self::Owners => name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_"),
            Self::Everything => true,
        }
    }
}

pub struct Pack<'p, W: Write> {
    out: Builder<W>,
    keep: Keep,
    /// The first name in the stream of each file that has several.
    names: HashMap<(u64, u64), PathBuf>,
    /// What could not go along: sockets, devices, and what the kernel shows.
    pub left_out: Vec<PathBuf>,
    told: &'p dyn Fn(u64),
    /// The last file system that was found to be none of the kernel's own.
    device: Option<u64>,
    /// What files are read into.
    buffer: Vec<u8>,
}

/// One entry: where it is and what it was when it was looked at.
struct Found<'f> {
    parent: BorrowedFd<'f>,
    name: &'f OsStr,
    path: &'f Path,
    stat: Stat,
}

impl<'p, W: Write> Pack<'p, W> {
    /// `told` hears of bytes that went into the stream.
    pub fn new(out: W, keep: Keep, told: &'p dyn Fn(u64)) -> Self {
        Self {
            out: Builder::new(out),
            keep,
            names: HashMap::new(),
            left_out: Vec::new(),
            told,
            device: None,
            buffer: vec![0; CHUNK],
        }
    }

    /// Names of files are not the same ones any more: another tree follows.
    pub fn forget_names(&mut self) {
        self.names.clear();
    }

    /// A regular file of root's with this text.
    pub fn text(&mut self, path: &Path, text: &[u8]) -> anyhow::Result<()> {
        let mut header = Header::new_gnu();
        header.set_mode(0o600);
        header.set_size(text.len() as u64);
        Ok(self.out.append_data(&mut header, path, text)?)
    }

    /// Ends the stream; one that is not ended is taken for cut off by nobody but us.
    pub fn finish(self) -> anyhow::Result<W> {
        self.out.into_inner().context("end the archive")
    }

    /// What the stream goes to.
    pub fn out(&mut self) -> &mut W {
        self.out.get_mut()
    }

    /// Packs `name` of `parent`, with all below it, as `path`.
    pub fn entry(&mut self, parent: BorrowedFd<'_>, name: &OsStr, path: &Path) -> anyhow::Result<()> {
        self.any(Stack::of(&[parent]), name, path, 0)
    }

    /// Packs what is in `directory`, each below `path`.
    pub fn inner(&mut self, directory: &OwnedFd, path: &Path) -> anyhow::Result<()> {
        self.children(Stack::of(&[directory.as_fd()]), path, 0)
    }

    /// Packs the directory itself, and what is in it.
    pub fn directory(&mut self, directory: &OwnedFd, path: &Path) -> anyhow::Result<()> {
        self.merged(Stack::of(&[directory.as_fd()]), path)
    }

    /// Packs directories that lie on each other as the one that overlayfs would show in their
    /// place: what they hide of those below stays hidden.
    pub fn merged(&mut self, stack: Stack<'_>, path: &Path) -> anyhow::Result<()> {
        self.directory_entry(stack.own[0], path, false)?;
        self.children(stack, path, 0)
    }

    /// Packs the directory itself alone.
    pub fn directory_alone(&mut self, directory: &OwnedFd, path: &Path) -> anyhow::Result<()> {
        self.directory_entry(directory.as_fd(), path, false)
    }

    /// `name` of the topmost of `stack`, and what the others have to add to it. The recursion is
    /// bounded by `DEPTH_MAX`.
    fn any(&mut self, stack: Stack<'_>, name: &OsStr, path: &Path, depth: usize) -> anyhow::Result<()> {
        ensure!(!crate::interrupt::asked(), "interrupted");
        let (parent, shown) = (stack.own[0], || path.display().to_string());
        let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).with_context(shown)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind.is_dir() {
            ensure!(depth <= DEPTH_MAX, "{} is more than {DEPTH_MAX} directories deep", path.display());
            let directory = file::open_child(parent, name).with_context(shown)?;
            let merged = stack.merge(directory, name).with_context(shown)?;
            self.directory_entry(merged.own[0].as_fd(), path, merged.hides).with_context(shown)?;
            let own: Vec<BorrowedFd<'_>> = merged.own.iter().map(AsFd::as_fd).collect();
            let base: Option<Vec<BorrowedFd<'_>>> =
                merged.base.as_ref().map(|base| base.iter().map(AsFd::as_fd).collect());
            return self.children(Stack { own: &own, base: base.as_deref() }, path, depth);
        }
        if stack.base.is_some_and(<[_]>::is_empty) && kind.is_char_device() && stat.st_rdev == 0 {
            return Ok(());
        }
        self.other(&Found { parent, name, path, stat }).with_context(shown)
    }

    fn children(&mut self, stack: Stack<'_>, path: &Path, depth: usize) -> anyhow::Result<()> {
        let directory = stack.own[0];
        let device = rustix::fs::fstat(directory).context("stat")?.st_dev;
        if self.device != Some(device) {
            if OF_THE_KERNEL.contains(&mount::file_system_type(directory).context("statfs")?) {
                self.left_out.push(path.to_owned());
                return Ok(());
            }
            self.device = Some(device);
        }
        let mut names: BTreeMap<OsString, usize> = BTreeMap::new();
        for (level, directory) in stack.own.iter().enumerate() {
            let listed = file::names(directory, NAMES_MAX);
            for name in listed.with_context(|| format!("list {}", path.display()))? {
                names.entry(name).or_insert(level);
            }
        }
        for (name, level) in names {
            let stack = Stack { own: &stack.own[level..], ..stack };
            match self.any(stack, &name, &path.join(&name), depth + 1) {
                // Removed between the listing and the look.
                Err(error) if is_gone(&error) && self.keep != Keep::Everything => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn directory_entry(&mut self, directory: BorrowedFd<'_>, path: &Path, hides: bool) -> anyhow::Result<()> {
        let stat = rustix::fs::fstat(directory).context("stat")?;
        let mut header = self.header(&stat, EntryType::Directory);
        let hidden: [(&str, &[u8]); 1] = [(OPAQUE_RECORD, b"y")];
        self.records(directory, &stat, if hides { &hidden } else { &[] })?;
        self.out.append_data(&mut header, path, io::empty()).context("write")
    }

    fn other(&mut self, found: &Found<'_>) -> anyhow::Result<()> {
        let stat = &found.stat;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if let Some(first) = self.names.get(&(stat.st_dev, stat.st_ino)).cloned() {
            let mut header = self.header(stat, EntryType::Link);
            return self.out.append_link(&mut header, found.path, first).context("write");
        }
        let packed = match kind {
            FileType::Symlink => self.link(found).map(|()| true),
            FileType::RegularFile => self.file(found).map(|()| true),
            FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice
                if self.keep == Keep::Everything =>
            {
                self.node(found, kind).map(|()| true)
            }
            _ => Ok(false),
        }?;
        if !packed {
            self.left_out.push(found.path.to_owned());
        } else if stat.st_nlink > 1 {
            self.names.insert((stat.st_dev, stat.st_ino), found.path.to_owned());
        }
        Ok(())
    }

    fn link(&mut self, found: &Found<'_>) -> anyhow::Result<()> {
        let target = rustix::fs::readlinkat(found.parent, found.name, Vec::new()).context("read link")?;
        let target = OsString::from_vec(target.into_bytes());
        let mut header = self.header(&found.stat, EntryType::Symlink);
        // The tar crate writes paths in their plainest form, which would change some links.
        let plain: PathBuf = Path::new(&target).components().collect();
        let mut records: Vec<(&str, &[u8])> = Vec::new();
        if plain.as_os_str() != target {
            records.push(("linkpath", target.as_bytes()));
        }
        self.time_record(&found.stat, records)?;
        self.out.append_link(&mut header, found.path, &target).context("write")
    }

    fn node(&mut self, found: &Found<'_>, kind: FileType) -> anyhow::Result<()> {
        let mut header = self.header(
            &found.stat,
            match kind {
                FileType::Fifo => EntryType::Fifo,
                FileType::BlockDevice => EntryType::Block,
                _ => EntryType::Char,
            },
        );
        if kind != FileType::Fifo {
            header.set_device_major(rustix::fs::major(found.stat.st_rdev))?;
            header.set_device_minor(rustix::fs::minor(found.stat.st_rdev))?;
        }
        self.time_record(&found.stat, Vec::new())?;
        self.out.append_data(&mut header, found.path, io::empty()).context("write")
    }

    fn file(&mut self, found: &Found<'_>) -> anyhow::Result<()> {
        let file = open_regular(found.parent, found.name)?;
        let stat = rustix::fs::fstat(&file).context("stat")?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let mut header = self.header(&stat, EntryType::Regular);
        if let Some(parts) = stretches(&file, &stat)? {
            return self.sparse(found, &file, &stat, &parts);
        }
        self.records(&file, &stat, &[])?;
        header.set_size(size);
        let mut contents = Exactly { file: &file, left: size, told: self.told };
        self.out.append_data(&mut header, found.path, io::empty()).context("write")?;
        self.contents(&mut contents)
    }

    /// What belongs behind a header, and the rest of its last block. The tar crate would read and
    /// write it in small pieces.
    fn contents(&mut self, contents: &mut dyn Read) -> anyhow::Result<()> {
        let (out, mut size) = (self.out.get_mut(), 0);
        loop {
            let count = contents.read(&mut self.buffer).context("read")?;
            if count == 0 {
                break;
            }
            out.write_all(&self.buffer[..count]).context("write")?;
            size += count;
        }
        out.write_all(&[0; BLOCK][..size.next_multiple_of(BLOCK) - size]).context("write")
    }

    /// GNU tar's form 1.0 of a file with holes: a map of what is data, then the data.
    fn sparse(
        &mut self,
        found: &Found<'_>,
        file: &File,
        stat: &Stat,
        parts: &[(u64, u64)],
    ) -> anyhow::Result<()> {
        let mut map = format!("{}\n", parts.len());
        for (offset, length) in parts {
            map.push_str(&format!("{offset}\n{length}\n"));
        }
        let mut map = map.into_bytes();
        map.resize(map.len().next_multiple_of(BLOCK), 0);
        let real = stat.st_size.to_string();
        self.records(
            file,
            stat,
            &[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.name", found.path.as_os_str().as_bytes()),
                ("GNU.sparse.realsize", real.as_bytes()),
            ],
        )?;
        // GNU tar takes holes behind a header of its own for those of an older form.
        let mut header = self.fill(Header::new_ustar(), stat, EntryType::Regular);
        header.set_size(map.len() as u64 + parts.iter().map(|(_, length)| length).sum::<u64>());
        let mut contents = Stretches { map: &map, file, parts, done: 0, told: self.told };
        self.out.append_data(&mut header, sparse_name(found.path), io::empty()).context("write")?;
        self.contents(&mut contents)
    }

    fn header(&self, stat: &Stat, kind: EntryType) -> Header {
        self.fill(Header::new_gnu(), stat, kind)
    }

    fn fill(&self, mut header: Header, stat: &Stat, kind: EntryType) -> Header {
        header.set_entry_type(kind);
        header.set_size(0);
        header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
        if self.keep == Keep::Plain {
            header.set_mode(stat.st_mode & 0o1777);
        } else {
            header.set_mode(stat.st_mode & 0o7777);
            header.set_uid(stat.st_uid.into());
            header.set_gid(stat.st_gid.into());
        }
        header
    }

    /// The PAX records of a file or directory: those `first`, its time, its attributes.
    fn records(&mut self, file: impl AsFd, stat: &Stat, first: &[(&str, &[u8])]) -> anyhow::Result<()> {
        if self.keep == Keep::Plain {
            return Ok(self.out.append_pax_extensions(first.iter().copied())?);
        }
        let attributes = file::all_attributes(file.as_fd()).context("read attributes")?;
        let kept = attributes.iter().filter(|(name, _)| self.keep.attribute(name));
        let named: Vec<(String, &[u8])> = kept
            .map(|(name, value)| (format!("SCHILY.xattr.{}", name.to_string_lossy()), value.as_slice()))
            .collect();
        let mut records = first.to_vec();
        records.extend(named.iter().map(|(name, value)| (name.as_str(), *value)));
        self.time_record(stat, records)
    }

    fn time_record(&mut self, stat: &Stat, records: Vec<(&str, &[u8])>) -> anyhow::Result<()> {
        let time = time(stat.st_mtime, stat.st_mtime_nsec);
        let is_fine = (stat.st_mtime_nsec != 0 || stat.st_mtime < 0) && self.keep == Keep::Everything;
        // Before the attributes: not every reader goes on behind a value with a newline.
        let first = is_fine.then_some(("mtime", time.as_bytes()));
        Ok(self.out.append_pax_extensions(first.into_iter().chain(records))?)
    }
}

/// Seconds with their fraction; before 1970 both count backwards.
fn time(seconds: i64, nanoseconds: u64) -> String {
    if seconds >= 0 || nanoseconds == 0 {
        return format!("{seconds}.{nanoseconds:09}");
    }
    format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds)
}

fn is_gone(error: &anyhow::Error) -> bool {
    error.downcast_ref::<rustix::io::Errno>() == Some(&rustix::io::Errno::NOENT)
}

/// The name that GNU tar gives a file with holes, for readers that do not know them.
fn sparse_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default();
    path.parent().unwrap_or(Path::new("")).join("GNUSparseFile.0").join(name)
}

/// Where a file has data, if it has holes.
fn stretches(file: &File, stat: &Stat) -> anyhow::Result<Option<Vec<(u64, u64)>>> {
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    if size == 0 || u64::try_from(stat.st_blocks).unwrap_or(0) * 512 >= size {
        return Ok(None);
    }
    let mut parts = Vec::new();
    let mut at = 0;
    while at < size {
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(found) => found,
            // Nothing but a hole is left.
            Err(rustix::io::Errno::NXIO) => break,
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => return Ok(None),
            Err(error) => return Err(error).context("look for data"),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(data)).context("look for a hole")?.min(size);
        if data >= size {
            break;
        }
        if end <= data || parts.len() == STRETCHES_MAX {
            bail!("has too many holes, or they change");
        }
        parts.push((data, end - data));
        at = end;
    }
    rustix::fs::seek(file, SeekFrom::Start(0)).context("seek")?;
    let is_whole = parts == [(0, size)];
    if parts.last().is_none_or(|(start, length)| start + length < size) {
        // What ends in a hole is ended by a stretch of nothing, as GNU tar does.
        parts.push((size, 0));
    }
    Ok((!is_whole).then_some(parts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_count_backwards() {
        for (seconds, nanoseconds, expect) in [
            (1, 250_000_000, "1.250000000"),
            (-2, 500_000_000, "-1.500000000"),
            (-1, 1, "-0.999999999"),
            (-7, 0, "-7.000000000"),
        ] {
            assert_eq!(time(seconds, nanoseconds), expect);
        }
    }
}
