//! The mounts of a jail besides its root and /dev, each put onto a descriptor that was resolved
//! inside the root, and each verified. A mask that cannot be set stops the start; only a path that
//! does not exist is passed over.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::jail::Mount;
use crate::security::{Profile, paths};
use crate::spec::Spec;
use crate::sys::mount::{self, NO_DEVICES, NO_EXEC, NO_SUID, READ_ONLY};

/// statfs(2) types, linux/magic.h.
const PROC_SUPER_MAGIC: i64 = 0x9fa0;
const SYSFS_MAGIC: i64 = 0x6265_6572;

/// More CPUs than any kernel is built for.
const CPUS_MAX: usize = 8192;

/// Options of the tmpfs on /tmp and /run.
const SCRATCH_SIZE: &str = "50%";
const SCRATCH_INODES: &str = "400k";

/// Attaches `mounted` at a directory of the root, which is made when it is absent. With `strict`
/// no symbolic link may lie on the way (CVE-2019-19921, CVE-2023-27561: /proc or /sys a link).
pub fn attach_at(root: BorrowedFd<'_>, path: &str, mounted: BorrowedFd<'_>, strict: bool) -> Result<()> {
    let place = directory(root, Path::new(path), strict)?;
    mount::attach(mounted, place.as_fd()).with_context(|| format!("attach /{path}"))
}

/// A directory of the root by descriptor; missing parts are made, owned by the jail's root.
fn directory(root: BorrowedFd<'_>, path: &Path, strict: bool) -> Result<OwnedFd> {
    match mount::resolve(root, path, strict) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            make_directories(root, path).with_context(|| format!("make /{}", path.display()))
        }
        other => other.with_context(|| format!("open /{}", path.display())),
    }
}

/// mkdir -p below the root, each part opened before the next is made (CVE-2024-45310).
fn make_directories(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    let mut so_far = std::path::PathBuf::new();
    let mut parent = rustix::fs::openat(root, ".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    for part in path.components() {
        let std::path::Component::Normal(name) = part else { continue };
        so_far.push(name);
        parent = match mount::resolve(root, &so_far, false) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
                mount::resolve(root, &so_far, false)?
            }
            other => other?,
        };
    }
    Ok(parent)
}

/// A fresh procfs of the jail's own pid namespace; its mount is returned for the sysctls.
pub fn proc(root: BorrowedFd<'_>) -> Result<OwnedFd> {
    let proc = mount::create("proc", &[], NO_SUID | NO_DEVICES | NO_EXEC)?;
    attach_at(root, "proc", proc.as_fd(), true)?;
    expect_type(root, "proc", PROC_SUPER_MAGIC)?;
    Ok(proc)
}

/// What is seen at `path` must be of that type, whatever was mounted.
fn expect_type(root: BorrowedFd<'_>, path: &str, magic: i64) -> Result<()> {
    let seen = mount::resolve(root, Path::new(path), true).with_context(|| format!("open /{path}"))?;
    if mount::file_system_type(seen.as_fd())? == magic {
        return Ok(());
    }
    bail!("mount /{path}: another file system is seen there")
}

/// /sys read only, and the jail's own part of the cgroup v2 tree below it.
pub fn sys(root: BorrowedFd<'_>, spec: &Spec) -> Result<()> {
    let attributes = READ_ONLY | NO_SUID | NO_DEVICES | NO_EXEC;
    if spec.jail.network.mode == crate::jail::NetworkMode::Inherit {
        // sysfs belongs to the network namespace's owner, who is the host here: no sysfs of its own.
        let empty = mount::create("tmpfs", &[("mode", "0555"), ("size", "4k")], attributes)?;
        return attach_at(root, "sys", empty.as_fd(), true);
    }
    let sysfs = mount::create("sysfs", &[], attributes)?;
    attach_at(root, "sys", sysfs.as_fd(), true)?;
    expect_type(root, "sys", SYSFS_MAGIC)?;
    let boot = spec.jail.exec.boot.is_some();
    let writable = if boot { attributes & !READ_ONLY } else { attributes };
    let cgroup = mount::create("cgroup2", &[], writable)?;
    attach_at(root, "sys/fs/cgroup", cgroup.as_fd(), true)
}

/// /run and /tmp as tmpfs. A whole system mounts its own, a directory of the host is left as it
/// is, and where all writes go to a tmpfs anyway another one gains nothing.
pub fn scratch(root: BorrowedFd<'_>, spec: &Spec) -> Result<()> {
    if spec.jail.exec.boot.is_some() || !spec.root.keeps_writes() {
        return Ok(());
    }
    for (path, mode) in [("run", "0755"), ("tmp", "1777")] {
        let options = [("mode", mode), ("size", SCRATCH_SIZE), ("nr_inodes", SCRATCH_INODES)];
        let tmpfs = mount::create("tmpfs", &options, NO_SUID | NO_DEVICES)?;
        attach_at(root, path, tmpfs.as_fd(), false)?;
    }
    Ok(())
}

/// The definition's own `[[mount]]`s, in its order. `sources` are the binds the keeper opened.
pub fn from_definition(
    root: BorrowedFd<'_>,
    spec: &Spec,
    mut sources: impl Iterator<Item = OwnedFd>,
    missing: &[usize],
) -> Result<()> {
    for (index, wanted) in spec.jail.mount.iter().enumerate() {
        let shown = wanted.target.display();
        let source = match wanted.kind.as_deref() {
            Some("readonly") => {
                own_path(root, wanted, read_only)?;
                continue;
            }
            Some("hidden") => {
                own_path(root, wanted, cover)?;
                continue;
            }
            Some("tmpfs") => tmpfs(wanted).with_context(|| format!("mount {shown}"))?,
            _ if missing.contains(&index) => continue,
            _ => sources.next().ok_or_else(|| anyhow!("mount {shown}: the keeper sent no source"))?,
        };
        let target = target(root, &wanted.target, source.as_fd())?;
        mount::attach(source.as_fd(), target.as_fd()).with_context(|| format!("mount {shown}"))?;
    }
    Ok(())
}

/// A path of the jail's own root that gets another mode, by a mount over it. One that is not there
/// stops the start, unless it is optional: what was to be protected would not be.
fn own_path(
    root: BorrowedFd<'_>,
    wanted: &Mount,
    made: impl Fn(BorrowedFd<'_>, BorrowedFd<'_>) -> Result<OwnedFd>,
) -> Result<()> {
    let shown = wanted.target.display();
    let below = wanted.target.strip_prefix("/").unwrap_or(&wanted.target);
    let place = match mount::resolve(root, below, true) {
        Err(e)
            if e.kind() == std::io::ErrorKind::NotFound && wanted.options.iter().any(|o| o == "optional") =>
        {
            return Ok(());
        }
        Err(e) if e.raw_os_error() == Some(libc::ELOOP) => {
            bail!("mount {shown}: a symbolic link lies on the way")
        }
        other => other.with_context(|| format!("mount {shown}"))?,
    };
    let over = made(root, place.as_fd()).with_context(|| format!("mount {shown}"))?;
    mount::attach(over.as_fd(), place.as_fd()).with_context(|| format!("mount {shown}"))
}

/// The path itself again, with all that is mounted below it.
fn read_only(_: BorrowedFd<'_>, place: BorrowedFd<'_>) -> Result<OwnedFd> {
    let copy = mount::clone_tree(place, Path::new(""), true).context("copy its mount")?;
    mount::set_attributes(copy.as_fd(), READ_ONLY, 0, None, true).context("make it read only")?;
    Ok(copy)
}

/// Something empty of the same kind, which nobody can read or write.
fn cover(root: BorrowedFd<'_>, place: BorrowedFd<'_>) -> Result<OwnedFd> {
    let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(place)?.st_mode);
    let options = [("mode", "0000"), ("size", "4k"), ("nr_inodes", "2")];
    let attributes = NO_SUID | NO_DEVICES | NO_EXEC;
    let tmpfs = mount::create("tmpfs", &options, attributes)?;
    if kind.is_dir() {
        mount::set_attributes(tmpfs.as_fd(), READ_ONLY, 0, None, false).context("make it read only")?;
        return Ok(tmpfs);
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::WRONLY;
    drop(rustix::fs::openat(&tmpfs, "empty", flags, Mode::empty()).context("make an empty file")?);
    let file = match mount::clone_tree(tmpfs.as_fd(), Path::new("empty"), false) {
        // Kernels before 6.15 copy only what is attached. /dev/null is as empty.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            let null = mount::resolve(root, Path::new("dev/null"), true).context("open /dev/null")?;
            mount::clone_tree(null.as_fd(), Path::new(""), false).context("copy the mount of /dev/null")?
        }
        other => other.context("copy the empty file")?,
    };
    mount::set_attributes(file.as_fd(), READ_ONLY, 0, None, false).context("make it read only")?;
    Ok(file)
}

/// The place of a mount: no symbolic link below the root may lead elsewhere, as jail(8) demands.
fn target(root: BorrowedFd<'_>, path: &Path, source: BorrowedFd<'_>) -> Result<OwnedFd> {
    let below = path.strip_prefix("/").unwrap_or(path);
    match mount::resolve(root, below, true) {
        Ok(place) => return Ok(place),
        Err(e) if e.raw_os_error() == Some(libc::ELOOP) => {
            bail!("mount {}: a symbolic link lies on the way", path.display())
        }
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("mount {}", path.display()));
        }
        Err(_) => {}
    }
    let source_type = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(source)?.st_mode);
    if source_type.is_dir() {
        return make_directories(root, below).with_context(|| format!("make {}", path.display()));
    }
    let parent = make_directories(root, below.parent().unwrap_or(Path::new("")))?;
    let name = below.file_name().ok_or_else(|| anyhow!("mount {}: not a file name", path.display()))?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
    let inside = mount::resolve(parent.as_fd(), Path::new("."), true)?;
    rustix::fs::openat2(&inside, name, flags, Mode::from_raw_mode(0o644), ResolveFlags::BENEATH)
        .with_context(|| format!("create {}", path.display()))
}

fn tmpfs(wanted: &Mount) -> Result<OwnedFd> {
    let keyed = |key: &str| wanted.options.iter().find_map(|o| o.strip_prefix(key)?.strip_prefix('='));
    let size = keyed("size").unwrap_or(SCRATCH_SIZE).to_ascii_lowercase();
    let mode = keyed("mode").unwrap_or("1777");
    mount::create("tmpfs", &[("mode", mode), ("size", &size)], attributes(&wanted.options))
}

/// nosuid and nodev unless the definition says `suid` or `dev`; `ro` and `noexec` when it does.
pub fn attributes(options: &[String]) -> u64 {
    let has = |name: &str| options.iter().any(|o| o == name);
    let mut attributes = 0;
    for (flag, on) in
        [(NO_SUID, !has("suid")), (NO_DEVICES, !has("dev")), (READ_ONLY, has("ro")), (NO_EXEC, has("noexec"))]
    {
        if on {
            attributes |= flag;
        }
    }
    attributes
}

/// Hides what tells too much about the host and freezes what could change it.
pub fn mask(root: BorrowedFd<'_>, profile: &Profile) -> Result<()> {
    let null = mount::resolve(root, Path::new("dev/null"), true).context("open /dev/null")?;
    let per_cpu = masked_per_cpu(root);
    let mut empty = None;
    for path in profile.masked.iter().chain(&per_cpu) {
        let Some(place) = existing(root, path)? else { continue };
        let directory = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&place)?.st_mode).is_dir();
        let cover = if directory {
            empty_directory(&mut empty)?
        } else {
            mount::clone_tree(null.as_fd(), Path::new(""), false).context("copy the mount of /dev/null")?
        };
        mount::attach(cover.as_fd(), place.as_fd()).with_context(|| format!("mask {path}"))?;
    }
    let writable = open_writable(root, &profile.writable)?;
    profile.read_only.iter().try_for_each(|path| freeze(root, path))?;
    for (path, copy) in writable {
        let Some(place) = existing(root, &path)? else { continue };
        mount::attach(copy.as_fd(), place.as_fd()).with_context(|| format!("attach {path}"))?;
    }
    Ok(())
}

/// `/sys/devices/system/cpu/cpuN/thermal_throttle` where there is one.
fn masked_per_cpu(root: BorrowedFd<'_>) -> Vec<String> {
    let first = format!("{}/cpu0/{}", paths::CPUS, paths::MASKED_PER_CPU);
    if !matches!(existing(root, &first), Ok(Some(_))) {
        return Vec::new();
    }
    (0..CPUS_MAX)
        .map(|cpu| format!("{}/cpu{cpu}/{}", paths::CPUS, paths::MASKED_PER_CPU))
        .take_while(|path| matches!(existing(root, path), Ok(Some(_))))
        .collect()
}

/// Copies of what stays writable, taken before its parent is frozen.
fn open_writable(root: BorrowedFd<'_>, paths: &[String]) -> Result<Vec<(String, OwnedFd)>> {
    let mut copies = Vec::new();
    for path in paths {
        if let Some(place) = existing(root, path)? {
            let copy = mount::clone_tree(place.as_fd(), Path::new(""), true)
                .with_context(|| format!("copy {path}"))?;
            copies.push((path.clone(), copy));
        }
    }
    Ok(copies)
}

/// An empty read-only directory: one file system, and a copy of its mount for each place. Only
/// an attached mount can be copied by older kernels, so the copies are made of the first, which
/// is attached by then.
fn empty_directory(first: &mut Option<OwnedFd>) -> Result<OwnedFd> {
    if let Some(attached) = first {
        return mount::clone_tree(attached.as_fd(), Path::new(""), false).context("copy the empty directory");
    }
    let attributes = READ_ONLY | NO_SUID | NO_DEVICES | NO_EXEC;
    let options = [("mode", "0555"), ("size", "4k"), ("nr_inodes", "2")];
    let made = mount::create("tmpfs", &options, attributes)?;
    *first = Some(made.try_clone().context("copy a descriptor")?);
    Ok(made)
}

fn existing(root: BorrowedFd<'_>, path: &str) -> Result<Option<OwnedFd>> {
    match mount::resolve(root, Path::new(path.trim_start_matches('/')), true) {
        Ok(place) => Ok(Some(place)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("open {path}")),
    }
}

/// Binds a path onto itself, read only.
fn freeze(root: BorrowedFd<'_>, path: &str) -> Result<()> {
    let Some(place) = existing(root, path)? else { return Ok(()) };
    let copy =
        mount::clone_tree(place.as_fd(), Path::new(""), true).with_context(|| format!("copy {path}"))?;
    mount::set_attributes(copy.as_fd(), READ_ONLY | NO_SUID | NO_DEVICES | NO_EXEC, 0, None, true)
        .with_context(|| format!("make {path} read only"))?;
    mount::attach(copy.as_fd(), place.as_fd()).with_context(|| format!("attach {path}"))?;
    let seen = existing(root, path)?.ok_or_else(|| anyhow!("freeze {path}: it is gone"))?;
    let flags = rustix::fs::fstatvfs(&seen).with_context(|| format!("look at {path}"))?.f_flag;
    if flags.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    bail!("freeze {path}: it is still writable")
}

/// Only the root's own mount: volumes and /dev keep what they were given.
pub fn make_root_read_only() -> Result<()> {
    let root = mount::open_path(Path::new("/"))?;
    mount::set_attributes(root.as_fd(), READ_ONLY, 0, None, false).context("make the root read only")
}
