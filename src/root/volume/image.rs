//! A volume in a sparse file: a file system of its own on a loop device that goes with its last
//! mount. It is mounted detached, so that the host's mount table never shows it.
//!
//! After a crash its journal is replayed by the mount; no check runs before.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::ground::tool;
use crate::storage::FileSystem;
use crate::sys::loops::Loop;
use crate::sys::{btrfs, grow, mount};

/// What an image without a note of it has.
pub const USUAL: FileSystem = FileSystem::Ext4;
/// Below this an ext4 is made with small blocks, for else its journal would take most of it.
const SMALL_BYTES: u64 = 32 << 20;
/// How long a stopped jail's mount may take to go.
const RELEASE_LIMIT: Duration = Duration::from_secs(20);
const RELEASE_LOOK: Duration = Duration::from_millis(20);

/// Makes an image of this length. Lazy: what a file system need not write now, the kernel writes
/// later, when it is mounted.
pub fn create(path: &Path, file_system: FileSystem, bytes: u64) -> Result<()> {
    let shown = path.display();
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    let file = options.open(path).with_context(|| format!("create {shown}"))?;
    file.set_len(bytes).with_context(|| format!("lengthen {shown}"))?;
    let options: &[&str] = match file_system {
        // No blocks for a root who is not the jail's.
        FileSystem::Ext4 => {
            &["-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0"]
        }
        FileSystem::Xfs | FileSystem::Btrfs => &["-q", "-f", "-K"],
    };
    // A small one may grow large: its blocks must not be those of a small one for ever.
    let blocks: &[&str] =
        if file_system == FileSystem::Ext4 && bytes >= SMALL_BYTES { &["-b", "4096"] } else { &[] };
    run(&format!("mkfs.{}", file_system.as_str()), &[options, blocks].concat(), path, None)?;
    file.sync_all().with_context(|| format!("write {shown}"))
}

/// Runs a tool on the image, with nothing of this process's environment.
fn run(name: &str, options: &[&str], path: &Path, last: Option<&str>) -> Result<i32> {
    let program = tool(name).ok_or_else(|| anyhow!("{name} is not installed"))?;
    let output = Command::new(program)
        .args(options)
        .arg(path)
        .args(last)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {name}"))?;
    let status = output.status.code().unwrap_or(-1);
    // e2fsck(8) has repaired what it found with 1.
    if status == 0 || (name == "e2fsck" && status == 1) {
        return Ok(status);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    bail!("{name} {}: {}", path.display(), said.trim().lines().last().unwrap_or("it failed"))
}

/// The image's file system, mounted nowhere. A running jail's is the same one.
pub fn mount(path: &Path, file_system: FileSystem) -> Result<OwnedFd> {
    let (file, bound) = bind(path)?;
    let mounted = mount_device(&bound, file_system)
        .with_context(|| format!("mount {} (if its file system is damaged: fsck it)", path.display()))?;
    drop(file);
    Ok(mounted)
}

fn open(path: &Path) -> Result<File> {
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, rustix::fs::Mode::empty())
        .with_context(|| format!("open {}", path.display()))?;
    Ok(File::from(file))
}

fn bind(path: &Path) -> Result<(File, Loop)> {
    let file = open(path)?;
    let bound = Loop::of(&file).with_context(|| format!("bind {}", path.display()))?;
    Ok((file, bound))
}

fn mount_device(bound: &Loop, file_system: FileSystem) -> Result<OwnedFd> {
    let source = bound.path();
    let options: &[(&str, &str)] = match file_system {
        FileSystem::Ext4 => &[("source", &source), ("discard", "")],
        // A clone of the image has the same number.
        FileSystem::Xfs => &[("source", &source), ("discard", ""), ("nouuid", "")],
        FileSystem::Btrfs => &[("source", &source), ("discard", "async")],
    };
    mount::create(file_system.as_str(), options, 0)
}

/// Makes the image this long, live where its file system can. A note beside it says so until it is
/// done: the file's length alone does not tell how far its file system goes.
pub fn resize(place: &Path, file_system: FileSystem, bytes: u64, grows_ext4: bool) -> Result<()> {
    let path = place.join(super::IMAGE);
    let now = open(&path)?.metadata().with_context(|| format!("stat {}", path.display()))?.len();
    let note = place.join("image.size");
    if now == bytes && !note.exists() {
        return Ok(());
    }
    crate::journal::replace_synced(&note, bytes.to_string().as_bytes())?;
    match file_system {
        FileSystem::Ext4 if now > bytes || !grows_ext4 => resize_down(&path, bytes)?,
        _ => resize_mounted(&path, file_system, now, bytes)?,
    }
    crate::journal::remove(&note)
}

/// ext4 by its own tools, while nothing has it mounted.
fn resize_down(path: &Path, bytes: u64) -> Result<()> {
    let file = open(path)?;
    wait_released(&file, path)?;
    let now = file.metadata()?.len();
    if now < bytes {
        file.set_len(bytes).with_context(|| format!("lengthen {}", path.display()))?;
    }
    run("e2fsck", &["-f", "-p"], path, None)?;
    run("resize2fs", &["-f"], path, Some(&format!("{}K", bytes / 1024)))?;
    if now > bytes {
        file.set_len(bytes).with_context(|| format!("shorten {}", path.display()))?;
    }
    file.sync_all().with_context(|| format!("write {}", path.display()))
}

fn wait_released(file: &File, path: &Path) -> Result<()> {
    let end = Instant::now() + RELEASE_LIMIT;
    while Loop::find(file)?.is_some() {
        ensure!(Instant::now() < end, "{} is still mounted by somebody", path.display());
        std::thread::sleep(RELEASE_LOOK);
    }
    Ok(())
}

fn resize_mounted(path: &Path, file_system: FileSystem, now: u64, bytes: u64) -> Result<()> {
    let shown = path.display();
    let (file, bound) = bind(path)?;
    let longer = |bytes: u64| -> Result<()> {
        file.set_len(bytes).with_context(|| format!("set the length of {shown}"))?;
        bound.follow_size().with_context(|| format!("set the length of {}", bound.path()))
    };
    if now < bytes {
        longer(bytes)?;
    }
    let mounted = mount_device(&bound, file_system).with_context(|| format!("mount {shown}"))?;
    let top = crate::sys::file::open_child(&mounted, ".".as_ref())?;
    match file_system {
        FileSystem::Ext4 => grow::ext4(top.as_fd(), bytes),
        FileSystem::Xfs => grow::xfs(top.as_fd(), bytes),
        FileSystem::Btrfs => btrfs::resize(top.as_fd(), bytes),
    }
    .with_context(|| format!("resize the {} in {shown}", file_system.as_str()))?;
    if now > bytes {
        rustix::fs::syncfs(&top).with_context(|| format!("write {shown}"))?;
        longer(bytes)?;
    }
    Ok(())
}
