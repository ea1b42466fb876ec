//! Mounts by descriptor: fsopen(2), open_tree(2), mount_setattr(2), move_mount(2), openat2(2).
//!
//! Nothing here follows a path twice: a target is resolved once to a descriptor, and the mount is
//! put onto that descriptor.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};

/// Attributes of mount_setattr(2), as flags of one mount.
pub const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY;
pub const NO_SUID: u64 = libc::MOUNT_ATTR_NOSUID;
pub const NO_DEVICES: u64 = libc::MOUNT_ATTR_NODEV;
pub const NO_EXEC: u64 = libc::MOUNT_ATTR_NOEXEC;

/// A new file system of `kind`, mounted nowhere yet. An option with an empty value is a flag.
pub fn create(kind: &str, options: &[(&str, &str)], attributes: u64) -> Result<OwnedFd> {
    let context =
        fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).with_context(|| format!("open file system {kind}"))?;
    for (key, value) in options {
        let set = if value.is_empty() {
            fsconfig_set_flag(context.as_fd(), *key)
        } else {
            fsconfig_set_string(context.as_fd(), *key, *value)
        };
        set.map_err(|e| explain(&context, e)).with_context(|| format!("set {key}={value} of {kind}"))?;
    }
    fsconfig_create(context.as_fd())
        .map_err(|e| explain(&context, e))
        .with_context(|| format!("create {kind}"))?;
    let flags = MountAttrFlags::from_bits_retain(u32::try_from(attributes).expect("attributes fit 32 bits"));
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags).with_context(|| format!("mount {kind}"))
}

/// The kernel's own words from the context's log, fsopen(2), when it has any.
fn explain(context: &OwnedFd, errno: rustix::io::Errno) -> anyhow::Error {
    let mut line = [0_u8; 256];
    match rustix::io::read(context, &mut line) {
        Ok(length) if length > 0 => {
            let text = String::from_utf8_lossy(&line[..length]);
            anyhow::Error::new(io::Error::from(errno))
                .context(text.trim_end().trim_start_matches("e ").to_owned())
        }
        _ => io::Error::from(errno).into(),
    }
}

/// A detached copy of the mount at `path` (with those below it if `recursive`).
pub fn clone_tree(directory: BorrowedFd<'_>, path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if path.as_os_str().is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(rustix::mount::open_tree(directory, path, flags)?)
}

/// mount_setattr(2) on the mount behind `mount`: sets and clears flags, and shifts ids through
/// the user namespace `idmap`. It is private from then on: a copy of a shared mount of the host
/// would hand what is mounted on it to the host.
pub fn set_attributes(
    mount: BorrowedFd<'_>,
    set: u64,
    clear: u64,
    idmap: Option<BorrowedFd<'_>>,
    recursive: bool,
) -> io::Result<()> {
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    let attributes = libc::mount_attr {
        attr_set: set | idmap.map_or(0, |_| libc::MOUNT_ATTR_IDMAP),
        attr_clr: clear,
        propagation: libc::MS_PRIVATE,
        userns_fd: idmap.map_or(0, |fd| u64::try_from(fd.as_raw_fd()).expect("a descriptor is not negative")),
    };
    mount_setattr(mount.as_raw_fd(), flags, &attributes)
}

/// Makes every mount of this namespace private, so that nothing comes in and nothing leaks out.
pub fn make_all_private() -> io::Result<()> {
    let attributes =
        libc::mount_attr { attr_set: 0, attr_clr: 0, propagation: libc::MS_PRIVATE, userns_fd: 0 };
    // Relative to the root: the path must not be empty, so it is given as one.
    let path = c"/";
    // SAFETY: a valid C string and a valid structure with its size.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if returned == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn mount_setattr(descriptor: i32, flags: i32, attributes: &libc::mount_attr) -> io::Result<()> {
    // SAFETY: the empty C string is static, the structure is valid and its size is given.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            descriptor,
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    if returned == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Puts a detached mount onto the very file or directory that `target` is open on.
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, "", target, "", flags)?)
}

/// Opens `path` below `root` as O_PATH, resolved as if `root` were /; no symbolic link at all is
/// followed with `strict`, only ones that stay inside without.
pub fn resolve(root: BorrowedFd<'_>, path: &Path, strict: bool) -> io::Result<OwnedFd> {
    let mut how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    if strict {
        how |= ResolveFlags::NO_SYMLINKS;
    }
    Ok(rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), how)?)
}

/// A detached copy of the mount at a host path on which no symbolic link lies: a jail that may
/// write to a part of the path must not be able to send the mount elsewhere (CVE-2024-42472).
pub fn clone_plain_tree(path: &Path, recursive: bool) -> Result<OwnedFd> {
    let how = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let source = match rustix::fs::openat2(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), how) {
        Err(rustix::io::Errno::LOOP) => bail!("open {}: a symbolic link lies on the way", path.display()),
        other => other.with_context(|| format!("open {}", path.display()))?,
    };
    clone_tree(source.as_fd(), Path::new(""), recursive)
        .with_context(|| format!("copy the mount of {}", path.display()))
}

/// Opens a host path as O_PATH without following a last symbolic link.
pub fn open_path(path: &Path) -> Result<OwnedFd> {
    rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
        .with_context(|| format!("open {}", path.display()))
}

/// Makes the directory behind `root` this process's root and drops the old one;
/// pivot_root(2), NOTES on `pivot_root(".", ".")`.
pub fn pivot(root: BorrowedFd<'_>) -> Result<()> {
    rustix::process::fchdir(root).context("enter the new root")?;
    rustix::process::pivot_root(".", ".").context("pivot_root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).context("detach the old root")?;
    rustix::process::chdir("/").context("enter /")
}

/// The type number statfs(2) shows for `descriptor`.
pub fn file_system_type(descriptor: BorrowedFd<'_>) -> io::Result<i64> {
    #[allow(clippy::useless_conversion)]
    Ok(i64::from(rustix::fs::fstatfs(descriptor)?.f_type))
}

/// The file system that `descriptor` is on, by the numbers of statfs(2).
pub fn file_system_name(descriptor: BorrowedFd<'_>) -> String {
    match file_system_type(descriptor) {
        Ok(0xef53) => "ext4".to_owned(),
        Ok(0x9123_683e) => "btrfs".to_owned(),
        Ok(0x5846_5342) => "xfs".to_owned(),
        Ok(0x0102_1994) => "tmpfs".to_owned(),
        Ok(0x794c_7630) => "overlay".to_owned(),
        Ok(0x2fc1_2fc1) => "zfs".to_owned(),
        Ok(0x6969) => "nfs".to_owned(),
        Ok(other) => format!("file system type {other:#x}"),
        Err(error) => format!("a file system that cannot be asked ({error})"),
    }
}
