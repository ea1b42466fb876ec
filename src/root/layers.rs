//! Immutable layers below `layers/`, named by the digest of what they are made from, built once
//! and shared by every jail.
//!
//! A layer is filled in `.building-ID` under the lock `.lock-ID`, put on the disk, and renamed
//! into place: what has the name is whole. Its files are owned by the ids they have inside a
//! jail, 0 to 65,535, and only an idmapped mount gives them to a jail; the directory above is
//! for the host's root alone, so setuid files in a layer are out of reach.

pub mod architecture;
pub(super) mod archive;
pub mod arriving;
pub(super) mod copied;
mod debootstrap;
pub mod failed;
mod host;
mod image;
pub mod manifest;
pub mod program;
pub(super) mod stream;
pub(super) mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use rustix::fs::{AtFlags, FileType, Mode};

use super::{copy, removal};
use crate::desired::{Blob, Build, Kept, Layer, LayerSource};
use crate::sys::file;
use crate::template::{Base, Template};
use tree::{BUILD_TIME_MAX, Tree};

pub use host::stamp as host_stamp;

/// Told what goes on while a layer is built, a line at a time.
pub type Progress<'p> = &'p dyn Fn(&str);

/// Runs the lines of a build: with the layers below, in a directory that holds `upper` and `work`.
/// Gives the first of the ids that own what is in `upper` then.
pub type Runner<'r> = &'r dyn Fn(&Build, &[PathBuf], &Path) -> anyhow::Result<u32>;

/// What the making of layers needs.
#[derive(Clone, Copy)]
pub struct Site<'s> {
    pub state: &'s Path,
    pub progress: Progress<'s>,
    pub run: Runner<'s>,
}

const BUILDING: &str = ".building-";
/// Behind the name of a layer in the making: what is only needed meanwhile.
const ASIDE: &str = "-aside";
const LOCK: &str = ".lock-";
/// How long to wait between two looks at another builder's lock.
const LOCK_INTERVAL: Duration = Duration::from_millis(50);
/// Said again and again while another builder has the lock.
pub const WAITING: &str = "waiting for another build of this layer";
/// How long another builder of the same layer is waited for: its own time, and some to clean up.
const LOCK_TIME_MAX: Duration = Duration::from_secs(BUILD_TIME_MAX.as_secs() + 60);
/// Layers looked at by `unused`.
const LAYERS_MAX: usize = 100_000;

/// Where the layer is, or will be.
pub fn path(state: &Path, id: &str) -> PathBuf {
    state.join("layers").join(id)
}

/// Looks at the base of `template`, as far as the names of its layers need it.
pub fn look(template: &mut Template) -> anyhow::Result<()> {
    template.stamp = base_stamp(template)?;
    match &template.base {
        Base::Oci { path, reference } => template.image = Some(image::look(path, reference.as_deref())?),
        Base::Directory { path, .. } => {
            architecture::check_root(path).map_err(|why| anyhow!("{}: {why}", path.display()))?;
        }
        Base::Debootstrap { wanted, .. } => {
            if let Some(arch) = &wanted.arch {
                architecture::check(arch).map_err(|why| anyhow!("base.debootstrap.arch: {why}"))?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// What stands for the base in the name of its layer. An archive with a declared digest is not
/// looked at, nor is a parent.
fn base_stamp(template: &Template) -> anyhow::Result<String> {
    let seen = |path: &Path| fs::metadata(path).with_context(|| format!("stat {}", path.display()));
    Ok(match &template.base {
        Base::Host => host_stamp(),
        Base::Tar { path, sha256: None } => {
            let m = seen(path)?;
            format!("{} {} {} {} {}", m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec())
        }
        Base::Directory { path, .. } => {
            let m = seen(path)?;
            format!("{} {}", m.dev(), m.ino())
        }
        Base::Tar { .. }
        | Base::Oci { .. }
        | Base::Debootstrap { .. }
        | Base::Template(_)
        | Base::Imported => String::new(),
    })
}

/// Gives the directories of `layers`, topmost first as they come, and builds what is missing from
/// the bottom up.
pub fn ensure_all(site: Site<'_>, layers: &[Layer]) -> anyhow::Result<Vec<PathBuf>> {
    let built = layers.iter().rev().map(|layer| ensure(site, layer));
    let mut built = built.collect::<anyhow::Result<Vec<_>>>()?;
    built.reverse();
    Ok(built)
}

/// Gives the directory of `layer`, which is built now if it is not there yet; those that it needs
/// below it are there.
pub fn ensure(site: Site<'_>, layer: &Layer) -> anyhow::Result<PathBuf> {
    let done = path(site.state, &layer.id);
    if is_built(site.state, &layer.id) {
        return Ok(done);
    }
    let (layers, at) = (open_layers(site.state)?, site.state.join("layers"));
    let lock = Lock::take(&at, &layer.id, site.progress)?;
    let was_built = is_built(site.state, &layer.id);
    let built = if was_built { Ok(()) } else { build(&layers, layer, site) };
    match &built {
        Ok(()) => failed::forget(site.state, &layer.id),
        Err(error) if !crate::interrupt::asked() => failed::note(&at, &layer.id, error),
        Err(_) => {}
    }
    lock.release();
    built.with_context(|| format!("build layer {}", layer.id))?;
    if !was_built {
        sweep(&at, &layers)?;
    }
    Ok(done)
}

pub fn is_built(state: &Path, id: &str) -> bool {
    fs::symlink_metadata(path(state, id)).is_ok_and(|found| found.is_dir())
}

/// Opens `layers/`, made if need be, for the host's root alone.
fn open_layers(state: &Path) -> anyhow::Result<OwnedFd> {
    let path = state.join("layers");
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&path)
        .with_context(|| format!("make directory {}", path.display()))?;
    let opened = file::open_directory(&path).with_context(|| format!("open {}", path.display()))?;
    rustix::fs::fchmod(&opened, Mode::from(0o700)).with_context(|| format!("chmod {}", path.display()))?;
    Ok(opened)
}

fn build(layers: &OwnedFd, layer: &Layer, site: Site<'_>) -> anyhow::Result<()> {
    let building = OsString::from(format!("{BUILDING}{}", layer.id));
    let aside = OsString::from(format!("{BUILDING}{}{ASIDE}", layer.id));
    for name in [&building, &aside] {
        removal::remove(layers, name)?;
    }
    rustix::fs::mkdirat(layers, &building, Mode::from(0o755)).context("make directory")?;
    let filled = fill(layers, &building, &aside, layer, site);
    // The first error is the one to tell; what is left now goes before the next build.
    let _ = removal::remove(layers, &aside);
    if filled.is_err() {
        let _ = removal::remove(layers, &building);
    }
    filled
}

fn fill(
    layers: &OwnedFd,
    building: &OsStr,
    aside: &OsStr,
    layer: &Layer,
    site: Site<'_>,
) -> anyhow::Result<()> {
    let root = file::open_child(layers, building).context("open the new layer")?;
    // The umask must not reach the root of a layer.
    rustix::fs::fchmod(&root, Mode::from(0o755)).context("chmod the new layer")?;
    let mut filled = Tree::new(root);
    let tree = &mut filled;
    let progress = site.progress;
    let make_aside = || -> anyhow::Result<PathBuf> {
        rustix::fs::mkdirat(layers, aside, Mode::from(0o700)).context("make directory")?;
        Ok(site.state.join("layers").join(aside))
    };
    match &layer.source {
        LayerSource::Host => host::build(tree, progress)?,
        LayerSource::Directory(path) => copied::directory(path, tree, progress)?,
        LayerSource::Tar { path, sha256, kept } => {
            archive::unpack(path, sha256.as_deref(), *kept, tree, progress)?;
        }
        LayerSource::Image { archive, blob, kept, below } => {
            unpack_image(layers, (archive, blob), below, *kept, tree, progress)?;
        }
        LayerSource::Debootstrap(wanted) => debootstrap::build(wanted, &make_aside()?, tree, progress)?,
        LayerSource::Build(lines) => run_lines(lines, &make_aside()?, tree, site)?,
        LayerSource::Built => bail!("it was made, or imported, once and is gone"),
        LayerSource::Files(files) => copied::files(files, tree)?,
    }
    let (root, digests) = filled.settle()?;
    // One waits for the disk, the other for the processor.
    std::thread::scope(|scope| {
        let sync = || rustix::fs::syncfs(&root).context("sync the file system");
        let beside = std::thread::Builder::new().spawn_scoped(scope, sync);
        let written = manifest::write(site.state, &layer.id, &root, &digests);
        // Without a thread it is one after the other.
        let died = |_| anyhow!("the syncing thread died");
        let synced = beside.map_or_else(|_| Ok(sync()), |thread| thread.join().map_err(died));
        synced?.and(written)
    })?;
    // What comes after the rename may be cut off, and nobody builds a layer that is there.
    removal::remove(layers, aside)?;
    rustix::fs::renameat(layers, building, layers, layer.id.as_str()).context("rename into place")?;
    rustix::fs::fsync(layers).context("sync the directory of layers")
}

/// What a build jail has changed, with the ids that it has inside.
fn run_lines(lines: &Build, aside: &Path, tree: &mut Tree, site: Site<'_>) -> anyhow::Result<()> {
    let lower: Vec<PathBuf> = lines.lower.iter().map(|id| path(site.state, id)).collect();
    let from = (site.run)(lines, &lower, aside)?;
    let upper = file::open_directory(&aside.join("upper")).context("open what was written")?;
    let owners = copy::Owners::Shifted { from, to: 0 };
    let deadline = tree.budget.deadline;
    copy::tree(upper.as_fd(), tree.root(), owners, &|_| {
        ensure!(!crate::interrupt::asked(), "interrupted");
        ensure!(Instant::now() < deadline, "takes more than {} s", BUILD_TIME_MAX.as_secs());
        Ok(())
    })
    .context("take over what was written")
    .map(drop)
}

fn unpack_image(
    layers: &OwnedFd,
    (archive, blob): (&Path, &Blob),
    below: &[String],
    kept: Kept,
    tree: &mut Tree,
    progress: Progress<'_>,
) -> anyhow::Result<()> {
    let name = format!("{} {}", archive.display(), blob.name.display());
    let rules = archive::Rules { name: &name, whiteouts: true, kept };
    stream::read(image::open(archive, blob)?, Some(&blob.sha256), |reader| {
        archive::entries(reader, tree, rules, progress)
    })
    .with_context(|| format!("unpack {name}"))?;
    let open =
        |id: &String| file::open_child(layers, id.as_ref()).with_context(|| format!("open layer {id}"));
    tree.lie_on(&below.iter().map(open).collect::<anyhow::Result<Vec<_>>>()?)
}

/// The lock of one layer's name; also kept by the kernel for no longer than its holder lives.
struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    fn take(layers: &Path, id: &str, progress: Progress<'_>) -> anyhow::Result<Self> {
        let deadline = Instant::now() + LOCK_TIME_MAX;
        loop {
            if let Some(lock) = Self::try_take(layers, id)? {
                return Ok(lock);
            }
            ensure!(!crate::interrupt::asked(), "interrupted while another builds layer {id}");
            if Instant::now() > deadline {
                bail!("wait for the other builder of layer {id}: {} s are over", LOCK_TIME_MAX.as_secs());
            }
            progress(WAITING);
            thread::sleep(LOCK_INTERVAL);
        }
    }

    fn try_take(layers: &Path, id: &str) -> anyhow::Result<Option<Self>> {
        let path = layers.join(format!("{LOCK}{id}"));
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        if !file::try_lock(&file).with_context(|| format!("lock {}", path.display()))? {
            return Ok(None);
        }
        // The last holder may have removed the name between the opening and the locking.
        let own = file.metadata().with_context(|| format!("stat {}", path.display()))?.ino();
        let same = fs::symlink_metadata(&path).is_ok_and(|m| m.ino() == own);
        Ok(same.then_some(Self { path, _file: file }))
    }

    /// Asked for by way of a shared lock, so that two who look do not see each other.
    fn is_held(path: &Path) -> bool {
        let Ok(file) = File::open(path) else { return false };
        matches!(file.try_lock_shared(), Err(fs::TryLockError::WouldBlock))
    }

    fn release(self) {
        // A lock file that stays costs nothing, and the next holder removes it.
        let _ = fs::remove_file(&self.path);
    }
}

/// The layer that something is left of.
fn building_id(name: &OsStr) -> Option<&str> {
    let id = name.to_str()?.strip_prefix(BUILDING)?;
    Some(id.strip_suffix(ASIDE).unwrap_or(id))
}

/// Removes what builders left that did not live to the end.
fn sweep(path: &Path, layers: &OwnedFd) -> anyhow::Result<()> {
    for name in file::names(layers, LAYERS_MAX).context("list the layers")? {
        let Some(id) = building_id(&name) else { continue };
        let Some(lock) = Lock::try_take(path, id)? else { continue };
        removal::remove(layers, &name)?;
        lock.release();
    }
    Ok(())
}

/// Layers by their ids.
#[derive(Debug, Default)]
pub struct There {
    pub built: BTreeSet<String>,
    /// Somebody builds them just now.
    pub building: BTreeSet<String>,
    /// Why the last one who built them could not.
    pub failed: BTreeMap<String, String>,
}

pub fn there(state: &Path) -> anyhow::Result<There> {
    let path = state.join("layers");
    let entries = fs::read_dir(&path).with_context(|| format!("list {}", path.display()))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut there = There::default();
    for name in names.take(LAYERS_MAX) {
        if let Some(id) = name.strip_prefix(LOCK) {
            there.building.extend(Lock::is_held(&path.join(&name)).then(|| id.to_owned()));
        } else if let Some(id) = failed::id(&name) {
            there.failed.extend(failed::read(&path, id).map(|why| (id.to_owned(), why)));
        } else if name.starts_with("sha256-") {
            there.built.insert(name);
        }
    }
    Ok(there)
}

/// The ids of all layers that are built, sorted.
pub fn built(state: &Path) -> anyhow::Result<Vec<String>> {
    let names = file::names(open_layers(state)?, LAYERS_MAX).context("list the layers")?;
    let ids = names.into_iter().filter_map(|name| name.into_string().ok());
    let mut ids: Vec<String> = ids.filter(|id| id.starts_with("sha256-")).collect();
    ids.sort();
    Ok(ids)
}

/// The layers that are not among the `used` ids, with the bytes they take on the disk.
pub fn unused(state: &Path, used: &BTreeSet<String>) -> anyhow::Result<Vec<(String, u64)>> {
    let path = state.join("layers");
    let layers = match file::open_directory(&path) {
        Ok(layers) => layers,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("open {}", path.display())),
    };
    let mut unused = Vec::new();
    for name in file::names(&layers, LAYERS_MAX).context("list the layers")? {
        let Ok(id) = name.into_string() else { continue };
        if id.starts_with("sha256-") && !used.contains(&id) {
            let size = size(&layers, id.as_ref(), 0).with_context(|| format!("measure layer {id}"))?;
            unused.push((id, size));
        }
    }
    unused.sort();
    Ok(unused)
}

/// The bytes that a built layer takes on the disk.
pub fn disk_bytes(state: &Path, id: &str) -> anyhow::Result<u64> {
    let layers = open_layers(state)?;
    size(&layers, id.as_ref(), 0).with_context(|| format!("measure layer {id}"))
}

/// What builders left that did not live to the end, by the layer's id.
pub fn half_built(state: &Path) -> anyhow::Result<Vec<(String, u64)>> {
    let path = state.join("layers");
    let layers = open_layers(state)?;
    let mut found = Vec::new();
    for name in file::names(&layers, LAYERS_MAX).context("list the layers")? {
        let Some(id) = building_id(&name) else { continue };
        let Some(lock) = Lock::try_take(&path, id)? else { continue };
        found.push((
            id.to_owned(),
            size(&layers, &name, 0).with_context(|| format!("measure {BUILDING}{id}"))?,
        ));
        lock.release();
    }
    Ok(found)
}

/// Removes what [`half_built`] lists.
pub fn remove_half_built(state: &Path) -> anyhow::Result<()> {
    sweep(&state.join("layers"), &open_layers(state)?)
}

/// Bytes on the disk; a file with several names is counted once.
pub fn size(parent: &OwnedFd, name: &OsStr, depth: usize) -> anyhow::Result<u64> {
    measure(parent, name, depth, &mut BTreeSet::new())
}

fn measure(parent: &OwnedFd, name: &OsStr, depth: usize, linked: &mut BTreeSet<u64>) -> anyhow::Result<u64> {
    let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).context("stat")?;
    let own = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
    if !FileType::from_raw_mode(stat.st_mode).is_dir() || depth > tree::DEPTH_MAX {
        let is_known = stat.st_nlink > 1 && !linked.insert(stat.st_ino);
        return Ok(if is_known { 0 } else { own });
    }
    let directory = file::open_child(parent, name).context("open")?;
    let most = usize::try_from(tree::ENTRIES_MAX).unwrap_or(usize::MAX);
    let names = file::names(&directory, most).context("list")?;
    names.iter().try_fold(own, |sum, name| Ok(sum + measure(&directory, name, depth + 1, linked)?))
}

/// Removes a layer that no jail uses: the caller has seen to that. First it loses its name, so
/// that half a layer is never taken for a whole one.
pub fn remove(state: &Path, id: &str) -> anyhow::Result<()> {
    let layers = open_layers(state)?;
    let lock = Lock::take(&state.join("layers"), id, &|_| ())?;
    let building = OsString::from(format!("{BUILDING}{id}"));
    removal::remove(&layers, &building)?;
    match rustix::fs::renameat(&layers, id, &layers, &building) {
        Err(rustix::io::Errno::NOENT) => {}
        other => {
            other.with_context(|| format!("take layer {id} out of its place"))?;
            removal::remove(&layers, &building)?;
        }
    }
    manifest::remove(state, id)?;
    lock.release();
    Ok(())
}

#[cfg(test)]
mod tests;
