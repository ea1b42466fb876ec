//! Where a call is made from, as far as that is seen from outside: which process makes it, on what,
//! and what it has called just before. Calls from one place are alike, and the first, the last and
//! one in between stand for all of them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::libc::{self, user_regs_struct};

use super::calls;

/// The longest path that is told from others.
const PATH_MAX: usize = 256;
/// As many hexadecimal digits are a digest rather than a word.
const DIGEST: usize = 12;
/// So far down a path below the machine's directory is told from others.
const OWN_DEPTH: usize = 5;

/// What of the arguments tells one call from another: `d` is a descriptor, `p` a path or a word,
/// `n` a number, `m` a message to the kernel, and `-` tells nothing.
#[rustfmt::skip]
const ARGUMENTS: &[(&str, &[i64])] = &[
    ("p", &[
        libc::SYS_access, libc::SYS_chdir, libc::SYS_chmod, libc::SYS_chroot, libc::SYS_execve, libc::SYS_mkdir,
        libc::SYS_open, libc::SYS_readlink, libc::SYS_rmdir, libc::SYS_statfs, libc::SYS_umount2, libc::SYS_unlink,
    ]),
    ("pp", &[libc::SYS_link, libc::SYS_pivot_root, libc::SYS_rename, libc::SYS_symlink]),
    ("dp", &[
        libc::SYS_faccessat2, libc::SYS_fchmodat, libc::SYS_fchownat, libc::SYS_inotify_add_watch,
        libc::SYS_mkdirat, libc::SYS_mknodat, libc::SYS_mount_setattr, libc::SYS_newfstatat, libc::SYS_open_tree,
        libc::SYS_openat, libc::SYS_openat2, libc::SYS_readlinkat, libc::SYS_statx, libc::SYS_unlinkat,
        libc::SYS_utimensat,
    ]),
    ("dpdp", &[libc::SYS_linkat, libc::SYS_move_mount, libc::SYS_renameat, libc::SYS_renameat2]),
    ("pdp", &[libc::SYS_symlinkat]),
    ("pppn", &[libc::SYS_mount]),
    ("dnp", &[libc::SYS_fsconfig]),
    ("d", &[
        libc::SYS_bind, libc::SYS_connect, libc::SYS_fchdir, libc::SYS_fchmod, libc::SYS_fchown, libc::SYS_fdatasync,
        libc::SYS_fgetxattr, libc::SYS_flock, libc::SYS_fsetxattr, libc::SYS_fsmount, libc::SYS_fstat,
        libc::SYS_fstatfs, libc::SYS_fsync, libc::SYS_ftruncate, libc::SYS_getdents64, libc::SYS_lseek,
        libc::SYS_pread64, libc::SYS_pwrite64, libc::SYS_read, libc::SYS_recvfrom, libc::SYS_recvmsg,
        libc::SYS_sendmsg, libc::SYS_syncfs, libc::SYS_write, libc::SYS_writev,
    ]),
    ("dn", &[libc::SYS_ioctl, libc::SYS_pidfd_send_signal, libc::SYS_setns]),
    ("dnn", &[libc::SYS_getsockopt, libc::SYS_setsockopt]),
    ("n", &[libc::SYS_keyctl, libc::SYS_prctl, libc::SYS_seccomp, libc::SYS_unshare]),
    ("-n", &[libc::SYS_kill]),
    ("nnn", &[libc::SYS_socket]),
    ("dm", &[libc::SYS_sendto]),
];

/// The call that a stopped thread is about to make, on a machine whose directory is `own`.
pub fn of(thread: i32, regs: &user_regs_struct, own: &Path) -> String {
    let call = regs.orig_rax.cast_signed();
    let kinds = ARGUMENTS.iter().find(|(_, calls)| calls.contains(&call)).map_or("", |(kinds, _)| kinds);
    let mut words = vec![calls::name(call)];
    for (kind, value) in kinds.chars().zip([regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9]) {
        match kind {
            'd' => words.push(descriptor(thread, value, own)),
            'p' => words.push(below(&words[words.len() - 1], &general(&word(thread, value), own))),
            'n' => words.push(format!("{value:x}")),
            'm' => words.push(format!("{:x?}", message(thread, value))),
            _ => {}
        }
    }
    words.join(" ")
}

#[allow(clippy::cast_possible_truncation)] // The kernel itself looks at no more.
fn descriptor(thread: i32, value: u64, own: &Path) -> String {
    match value as i32 {
        libc::AT_FDCWD => ".".to_owned(),
        number => std::fs::read_link(format!("/proc/{thread}/fd/{number}"))
            .map_or_else(|_| "none".to_owned(), |path| general(&path.to_string_lossy(), own)),
    }
}

fn memory(thread: i32, address: u64, most: usize) -> Vec<u8> {
    let mut bytes = vec![0; most];
    let file = File::open(format!("/proc/{thread}/mem"));
    // Nothing is at address 0.
    let read = file.and_then(|file| file.read_at(&mut bytes, address)).unwrap_or(0);
    bytes.truncate(read);
    bytes
}

fn word(thread: i32, address: u64) -> String {
    let bytes = memory(thread, address, PATH_MAX);
    let word = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(word).into_owned()
}

/// The kind of a netlink message, behind its length.
fn message(thread: i32, address: u64) -> Vec<u8> {
    memory(thread, address, 6).split_off(4)
}

/// A name in a directory of the machine's own, or of a limit, says what it is of; in others, and deep
/// down, names are gone through in loops.
fn below(directory: &str, name: &str) -> String {
    let is_relative = directory.starts_with(['/', '~']) && !name.is_empty() && !name.starts_with(['/', '~']);
    let is_told = match directory.strip_prefix('~') {
        Some(own) => own.matches('/').count() + 1 < OWN_DEPTH,
        None => directory.starts_with("/sys/fs") && name.contains('.'),
    };
    if is_relative && !is_told { "*".to_owned() } else { name.to_owned() }
}

/// Without what differs from run to run, or from one thing of a kind to the next: numbers, digests,
/// names of jails, and what lies deep in a tree that is gone through.
fn general(path: &str, own: &Path) -> String {
    if let Some(path) = path.strip_prefix(&*own.to_string_lossy()) {
        return format!("~{}", path.split('/').take(OWN_DEPTH).map(part).collect::<Vec<_>>().join("/"));
    }
    let parts: Vec<String> = path.split('/').map(part).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    match parts[..] {
        ["", "proc", "#" | "self", ..] => parts.join("/"),
        ["", "sys", "fs", .., file] if file.contains('.') => format!("/sys/fs/{file}"),
        ["", "sys", ..] => "/sys/".to_owned(),
        ["", top, _, ..] => format!("/{top}/"),
        [_, .., file] if file.contains('.') => file.to_owned(),
        [first, _, ..] => format!("{first}/"),
        // `socket:[4711]`
        _ => parts.concat(),
    }
}

fn part(name: &str) -> String {
    name.split_inclusive(|char: char| !char.is_ascii_alphanumeric()).map(word_of_part).collect()
}

fn word_of_part(part: &str) -> String {
    let word = part.trim_end_matches(|char: char| !char.is_ascii_alphanumeric());
    let is_digest = word.len() >= DIGEST && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_number = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    if is_digest || is_number || word.len() == 1 {
        format!("#{}", &part[word.len()..])
    } else {
        part.to_owned()
    }
}
