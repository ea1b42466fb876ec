//! Writes one archive of a jail (see [`super::manifest`]), in one go, to a file or a pipe.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, FileType, OFlags};
use rustix::io::Errno;

use super::changes::OwnLower;
use super::manifest::{CHECKSUM, DEFINITION, FILES, LAYERS, MANIFEST, Manifest, TEMPLATES, WRITES};
use super::pack::stack::Stack;
use super::pack::{Keep, Pack};
use super::volume::Volume;
use crate::storage::Kind;
use crate::sys::{file, mount, namespace};
use crate::template::hex;

/// As tar --zstd does it.
const LEVEL: i32 = 3;
/// Compressing threads; more take memory and help little.
const WORKERS_MAX: u32 = 8;
/// Bytes digested and compressed at a time.
const PENDING: usize = 256 << 10;
/// Names looked at in one directory while measuring.
const NAMES_MAX: usize = 10_000_000;

/// All that goes along.
pub struct Export<'e> {
    pub manifest: &'e Manifest,
    pub definition: &'e [u8],
    /// Below the config directory, one a template that has a directory.
    pub templates: &'e Path,
    /// The layers below it, topmost first, where all of them are here.
    pub layers: Option<Vec<OwnedFd>>,
    /// What `alone` of the manifest counts: the layers that go along, and the texts of the files.
    pub brought: Vec<OwnedFd>,
    pub texts: Vec<String>,
    /// The jail's own writes, topmost first: each as [`own_writes`] and [`set_aside`] give them.
    pub writes: Vec<OwnedFd>,
}

/// What has become of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Written {
    pub checksum: String,
    pub left_out: Vec<PathBuf>,
}

/// The directory of a volume in which the jail's own files are, and its name in the archive.
pub fn part(kind: Kind) -> &'static str {
    if kind == Kind::Directory { "root" } else { "upper" }
}

/// A volume's files with their ids inside the jail, whatever they are on the disk: seen through
/// a mount that takes `first_id` from each.
pub fn own_writes(volume: &Volume, first_id: u32) -> Result<OwnedFd> {
    // A thick root is shifted as a whole by the jail's own mount of it.
    let first_id = if volume.kind() == Kind::Directory { 0 } else { first_id };
    shifted(volume.directory(), part(volume.kind()), first_id)
}

/// What a snapshot has set aside, likewise.
pub fn set_aside(lower: &OwnLower, shift: bool) -> Result<OwnedFd> {
    let (above, name) = (lower.path.parent(), lower.path.file_name());
    let (above, name) = above.zip(name).context("changes have no place")?;
    let above = file::open_directory(above).with_context(|| format!("open {}", above.display()))?;
    shifted(above.as_fd(), &name.to_string_lossy(), if shift { lower.first_id } else { 0 })
}

/// `name` of `directory`, in whose files `first_id` and up are the ids 0 and up of what is seen.
pub fn shifted(directory: BorrowedFd<'_>, name: &str, first_id: u32) -> Result<OwnedFd> {
    // No link may have taken its place.
    let own = file::open_child(directory, name.as_ref()).with_context(|| format!("open {name}"))?;
    if first_id == 0 {
        return Ok(own);
    }
    let copy = mount::clone_tree(own.as_fd(), Path::new(""), false).context("copy the mount of the files")?;
    let users = namespace::users(first_id, 0)?;
    mount::set_attributes(copy.as_fd(), mount::NO_SUID | mount::NO_DEVICES, 0, Some(users.as_fd()), false)
        .context("shift the ids of the files")?;
    Ok(file::open_inside(copy.as_fd(), Path::new("."), OFlags::DIRECTORY, file::INSIDE)?)
}

/// Entries and bytes below a directory, for a reader who wants to know what comes. What changes
/// meanwhile is counted as it was, or not.
pub fn measure(directory: &OwnedFd) -> Result<(u64, u64)> {
    let (mut entries, mut bytes) = (0, 0);
    for name in file::names(directory, NAMES_MAX).context("list a directory")? {
        let stat = match rustix::fs::statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => continue,
            other => other.with_context(|| format!("stat {}", name.display()))?,
        };
        entries += 1;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind.is_file() {
            bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        } else if kind.is_dir() {
            let below = match file::open_child(directory, &name) {
                // It is gone, or something else by now.
                Err(error) if is_swapped(&error) => continue,
                child => measure(&child.with_context(|| format!("open {}", name.display()))?)?,
            };
            (entries, bytes) = (entries + below.0, bytes + below.1);
        }
    }
    Ok((entries, bytes))
}

fn is_swapped(error: &io::Error) -> bool {
    let errors = [Errno::NOENT, Errno::NOTDIR, Errno::LOOP];
    error.raw_os_error().is_some_and(|code| errors.iter().any(|errno| errno.raw_os_error() == code))
}

/// Packs all of it into `out`. `begin` is called before the jail's own writes are read, and `end`
/// after that.
pub fn write(
    export: &Export<'_>,
    out: impl Write,
    told: &dyn Fn(u64),
    (begin, end): (impl FnOnce() -> Result<()>, impl FnOnce()),
) -> Result<Written> {
    let mut encoder = zstd::Encoder::new(out, LEVEL).context("start zstd")?;
    encoder.include_checksum(true).context("start zstd")?;
    // Packing and compressing at the same time; without threads it is one after the other.
    let _ = encoder.multithread(workers());
    let mut pack = Pack::new(Digesting::new(encoder), Keep::Everything, told);
    pack.text(Path::new(MANIFEST), &serde_json::to_vec_pretty(export.manifest)?)?;
    pack.text(Path::new(DEFINITION), export.definition)?;
    for name in &export.manifest.templates {
        let path = export.templates.join(name.as_str());
        let directory = match file::open_directory(&path) {
            // The built-in template has none.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other.with_context(|| format!("open {}", path.display()))?,
        };
        pack.forget_names();
        pack.directory(&directory, &Path::new(TEMPLATES).join(name.as_str()))
            .with_context(|| format!("pack {}", path.display()))?;
    }
    for (number, text) in export.texts.iter().enumerate() {
        pack.text(&Path::new(FILES).join(number.to_string()), text.as_bytes())?;
    }
    for (number, layer) in export.brought.iter().enumerate() {
        pack.forget_names();
        let name = Path::new(LAYERS).join(number.to_string());
        pack.directory(layer, &name).with_context(|| format!("pack layer {number}"))?;
    }
    begin()?;
    let writes: Vec<BorrowedFd<'_>> = export.writes.iter().map(AsFd::as_fd).collect();
    if !writes.is_empty() {
        pack.forget_names();
        let name = Path::new(WRITES).join(part(export.manifest.storage));
        let base: Option<Vec<BorrowedFd<'_>>> =
            export.layers.as_ref().map(|layers| layers.iter().map(AsFd::as_fd).collect());
        let stack = Stack { own: &writes, base: base.as_deref() };
        pack.merged(stack, &name).context("pack the jail's files")?;
    }
    end();
    let checksum = pack.out().checksum().context("write the archive")?;
    pack.text(Path::new(CHECKSUM), format!("{checksum}\n").as_bytes())?;
    let left_out = std::mem::take(&mut pack.left_out);
    let mut digesting = pack.finish()?;
    digesting.flush_pending().context("write the archive")?;
    let mut out = digesting.inner.finish().context("end the archive")?;
    out.flush().context("write the archive")?;
    Ok(Written { checksum, left_out })
}

/// Threads that compress, one for each core.
fn workers() -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u32::try_from(cores).unwrap_or(WORKERS_MAX).min(WORKERS_MAX)
}

/// Digests what goes through it, many small pieces at once.
struct Digesting<W> {
    inner: W,
    digest: blake3::Hasher,
    /// What has come and gone nowhere yet.
    pending: Vec<u8>,
}

impl<W: Write> Digesting<W> {
    fn new(inner: W) -> Self {
        Self { inner, digest: blake3::Hasher::new(), pending: Vec::with_capacity(PENDING) }
    }

    fn flush_pending(&mut self) -> std::io::Result<()> {
        self.digest.update(&self.pending);
        self.inner.write_all(&self.pending)?;
        self.pending.clear();
        Ok(())
    }

    /// Of all that has come so far.
    fn checksum(&mut self) -> std::io::Result<String> {
        self.flush_pending()?;
        Ok(hex(self.digest.finalize().as_bytes()))
    }
}

impl<W: Write> Write for Digesting<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.pending.len() + bytes.len() > PENDING {
            self.flush_pending()?;
        }
        if bytes.len() >= PENDING {
            self.digest.update(bytes);
            self.inner.write_all(bytes)?;
        } else {
            self.pending.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.flush_pending()?;
        self.inner.flush()
    }
}
