//! One mounted cgroup hierarchy, v1 or v2, reached through a descriptor of its mount point.
//!
//! Owns the system calls on the cgroup file system, and `bpf(2)` for device filters. It knows no
//! limit and no file name; what is written, and in which order, is decided in `limits`.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, chownat, getxattr, mkdirat, openat, statat, unlinkat};
use rustix::process::{Gid, Pid, PidfdFlags, Signal, Uid, pidfd_open, pidfd_send_signal};

/// The longest answer read from a file of one value; the longest real one is a CPU list.
pub const VALUE_BYTES_MAX: usize = 4096;
/// The longest list of processes read at once: the largest pid_max, seven digits a line.
const LIST_BYTES_MAX: u64 = 32 << 20;

/// A hierarchy. All paths given to it are relative to its mount point, without a leading slash;
/// the empty path is the mount point itself.
#[derive(Debug)]
pub struct Tree {
    fd: OwnedFd,
    mount: PathBuf,
}

impl Tree {
    /// Opens the mount point.
    pub fn open(mount: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { fd: openat(CWD, mount, flags, Mode::empty())?, mount: mount.to_owned() })
    }

    /// Where `path` is in the file system, for messages.
    pub fn full(&self, path: &str) -> PathBuf {
        self.mount.join(path)
    }

    fn file(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let path = if path.is_empty() { "." } else { path };
        Ok(openat(&self.fd, path, flags | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// Reads a short file into `buffer` and gives its text without the last newline.
    pub fn read<'a>(&self, path: &str, buffer: &'a mut [u8; VALUE_BYTES_MAX]) -> io::Result<&'a str> {
        let file = self.file(path, OFlags::RDONLY)?;
        value_from(file.as_fd(), buffer)
    }

    /// Reads a file of any length, such as `cgroup.procs`.
    pub fn read_long(&self, path: &str) -> io::Result<String> {
        let mut text = String::new();
        File::from(self.file(path, OFlags::RDONLY)?).take(LIST_BYTES_MAX).read_to_string(&mut text)?;
        Ok(text)
    }

    /// Writes `value` in one call, as every file of the cgroup file system wants it.
    pub fn write(&self, path: &str, value: &str) -> io::Result<()> {
        let file = self.file(path, OFlags::WRONLY)?;
        let written = rustix::io::write(&file, value.as_bytes())?;
        if written == value.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    pub fn exists(&self, path: &str) -> bool {
        statat(&self.fd, path, AtFlags::empty()).is_ok()
    }

    /// Makes a cgroup.
    pub fn make(&self, path: &str) -> io::Result<()> {
        Ok(mkdirat(&self.fd, path, Mode::from_raw_mode(0o755))?)
    }

    /// Removes a cgroup that has neither processes nor children.
    pub fn remove(&self, path: &str) -> io::Result<()> {
        Ok(unlinkat(&self.fd, path, AtFlags::REMOVEDIR)?)
    }

    /// The cgroup itself as a tree, so that what is below it is reached however deep it lies.
    pub fn subtree(&self, path: &str) -> io::Result<Self> {
        let fd = self.file(path, OFlags::PATH | OFlags::DIRECTORY)?;
        Ok(Self { fd, mount: self.full(path) })
    }

    /// The names of the cgroups directly below `path`.
    pub fn children(&self, path: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::new(self.file(path, OFlags::RDONLY | OFlags::DIRECTORY)?)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy();
            if entry.file_type().is_dir() && name != "." && name != ".." {
                names.push(name.into_owned());
            }
        }
        Ok(names)
    }

    /// A file for one process to write itself into.
    pub fn open_for_join(&self, path: &str) -> io::Result<OwnedFd> {
        self.file(path, OFlags::WRONLY)
    }

    /// The directory as clone3(2) wants it for CLONE_INTO_CGROUP.
    pub fn open_dir(&self, path: &str) -> io::Result<OwnedFd> {
        self.file(path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// Gives `path` to user and group `id`.
    pub fn give(&self, path: &str, id: u32) -> io::Result<()> {
        let (user, group) = (Uid::from_raw(id), Gid::from_raw(id));
        Ok(chownat(&self.fd, path, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Whether systemd marked the cgroup as handed over to the unit in it (`Delegate=yes`).
    pub fn delegated(&self, path: &str) -> bool {
        let full = self.full(path);
        ["trusted.delegate", "user.delegate"].iter().any(|name| {
            let mut value = [0_u8; 8];
            getxattr(&full, *name, &mut value[..]).is_ok_and(|length| value[..length] == *b"1")
        })
    }

    /// Opens a file that announces its changes, `cgroup.events`.
    pub fn events(&self, path: &str) -> io::Result<Events> {
        Ok(Events(self.file(path, OFlags::RDONLY)?))
    }
}

/// An open `cgroup.events`.
#[derive(Debug)]
pub struct Events(OwnedFd);

impl Events {
    /// The text as it is now; a later [`Events::wait`] returns on a change after this.
    pub fn read<'a>(&self, buffer: &'a mut [u8; VALUE_BYTES_MAX]) -> io::Result<&'a str> {
        value_from(self.0.as_fd(), buffer)
    }

    /// Waits for a change, `timeout` at most; a change or not, the caller reads again.
    pub fn wait(&self, timeout: Duration) -> io::Result<()> {
        let timeout =
            Timespec { tv_sec: timeout.as_secs().cast_signed(), tv_nsec: timeout.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&self.0, PollFlags::PRI)], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn value_from<'a>(fd: BorrowedFd<'_>, buffer: &'a mut [u8; VALUE_BYTES_MAX]) -> io::Result<&'a str> {
    let length = rustix::io::pread(fd, &mut buffer[..], 0)?;
    let text = std::str::from_utf8(&buffer[..length]).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(text.trim_end_matches('\n'))
}

/// A process held by descriptor, so that its number cannot pass to another unnoticed.
#[derive(Debug)]
pub struct Pinned {
    pid: i32,
    fd: OwnedFd,
}

impl Pinned {
    /// `None` when there is no such process.
    pub fn open(pid: i32) -> Option<Self> {
        let fd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        Some(Self { pid, fd })
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends SIGKILL; one that ended meanwhile is no error.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.fd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Bytes of a page, what the kernel rounds memory limits to.
pub fn page_bytes() -> u64 {
    // SAFETY: sysconf(3) takes a number and touches no memory of ours.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(bytes).expect("every Linux has a page size")
}

/// The kind and number of a device node, `('c', 10, 229)`.
pub fn device_of(path: &Path) -> io::Result<(char, u32, u32)> {
    use rustix::fs::{FileType, major, minor, stat};
    let found = stat(path)?;
    let kind = match FileType::from_raw_mode(found.st_mode) {
        FileType::CharacterDevice => 'c',
        FileType::BlockDevice => 'b',
        _ => return Err(io::Error::other("is not a device")),
    };
    Ok((kind, major(found.st_rdev), minor(found.st_rdev)))
}

// From linux/bpf.h; libc has none of these.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// The head of `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// The head of `union bpf_attr` for BPF_PROG_ATTACH.
#[repr(C)]
#[derive(Default)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// Loads `program` (instructions of eight bytes, see `struct bpf_insn`) and binds it to the v2
/// cgroup `dir`, where it decides on every device open and mknod until the cgroup is removed.
pub fn attach_device_filter(dir: BorrowedFd<'_>, program: &[u64]) -> io::Result<()> {
    let loaded = load(program)?;
    let attr = AttachAttr {
        target_fd: dir.as_raw_fd().cast_unsigned(),
        attach_bpf_fd: loaded.as_raw_fd().cast_unsigned(),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: `attr` is a live `repr(C)` head of `union bpf_attr` and its exact size is passed;
    // the kernel takes the bytes beyond as zero. Both descriptors are open during the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attr, size_of_val(&attr)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn load(program: &[u64]) -> io::Result<OwnedFd> {
    let attr = LoadAttr {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        insns: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..LoadAttr::default()
    };
    // SAFETY: `attr` as above; `program` and the license text outlive the call, and the kernel
    // only reads `insn_cnt` instructions of eight bytes from the first, which is their length.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attr, size_of_val(&attr)) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).expect("a descriptor is an int");
    // SAFETY: BPF_PROG_LOAD gave this descriptor (close-on-exec by itself) to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
