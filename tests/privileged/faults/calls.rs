//! Names of system calls, and those that are no step: calls on the process's own memory, clocks
//! and threads, which change nothing that another could see, and which the allocator and the C
//! library make when they like; poll(2), the language's own first act before `main`; what the
//! library that watches files ends its thread for, epoll_wait(2); and sysinfo(2), which cannot fail.

/// A table of calls by the names of linux/unistd.h.
macro_rules! table {
    ($($name:ident)*) => {
        &[$((concat!(stringify!($name)), libc::$name)),*]
    };
}

/// `libc` names them all; these are the ones that a report is likely to show.
#[rustfmt::skip]
const NAMES: &[(&str, i64)] = table!(
    SYS_accept4 SYS_access SYS_bind SYS_capget SYS_capset SYS_chdir SYS_chmod SYS_chroot SYS_clone
    SYS_clone3 SYS_close_range SYS_connect SYS_copy_file_range SYS_dup2 SYS_dup3 SYS_epoll_create1
    SYS_epoll_ctl SYS_epoll_pwait SYS_eventfd2 SYS_execve SYS_faccessat2
    SYS_fallocate SYS_fchdir SYS_fchmod SYS_fchmodat SYS_fchown SYS_fchownat SYS_fdatasync
    SYS_fgetxattr SYS_flistxattr SYS_flock SYS_fork SYS_fsconfig SYS_fsetxattr SYS_fsmount
    SYS_fsopen SYS_fstat SYS_fstatfs SYS_fsync SYS_ftruncate SYS_getcwd SYS_getdents64
    SYS_getsockname SYS_getsockopt SYS_inotify_add_watch SYS_inotify_init1 SYS_inotify_rm_watch
    SYS_ioctl SYS_keyctl SYS_kill SYS_link SYS_linkat SYS_listen SYS_lseek SYS_mkdir SYS_mkdirat SYS_mknodat
    SYS_mount SYS_mount_setattr SYS_move_mount SYS_newfstatat SYS_open SYS_open_tree SYS_openat
    SYS_openat2 SYS_personality SYS_pidfd_open SYS_pidfd_send_signal SYS_pipe2 SYS_pivot_root
    SYS_ppoll SYS_prctl SYS_pread64 SYS_prlimit64 SYS_pwrite64 SYS_read SYS_readlink
    SYS_readlinkat SYS_recvfrom SYS_recvmsg SYS_rename SYS_renameat SYS_renameat2 SYS_rmdir
    SYS_seccomp SYS_sendfile SYS_sendmsg SYS_sendto SYS_setdomainname SYS_setgroups
    SYS_sethostname SYS_setns SYS_setpgid SYS_setresgid SYS_setresuid SYS_setsid SYS_setsockopt
    SYS_shutdown SYS_signalfd4 SYS_socket SYS_socketpair SYS_statfs SYS_statx SYS_symlink
    SYS_symlinkat SYS_sync SYS_syncfs SYS_umask SYS_umount2 SYS_uname SYS_unlink SYS_unlinkat SYS_unshare
    SYS_utimensat SYS_vfork SYS_wait4 SYS_waitid SYS_write SYS_writev
);

#[rustfmt::skip]
const NO_STEPS: &[(&str, i64)] = table!(
    SYS_arch_prctl SYS_brk SYS_clock_gettime SYS_clock_nanosleep SYS_close SYS_epoll_wait SYS_exit SYS_exit_group
    SYS_fcntl SYS_futex SYS_getegid SYS_geteuid SYS_getgid SYS_getpid SYS_getppid SYS_getrandom
    SYS_gettid SYS_getuid SYS_madvise SYS_membarrier SYS_mmap SYS_mprotect SYS_mremap SYS_munmap
    SYS_nanosleep SYS_poll SYS_restart_syscall SYS_rseq SYS_rt_sigaction SYS_rt_sigprocmask
    SYS_rt_sigreturn SYS_sched_getaffinity SYS_sched_yield SYS_set_robust_list SYS_set_tid_address
    SYS_sigaltstack SYS_sysinfo
);

/// What others can see the effect of: the steps between which half a thing could be left.
#[rustfmt::skip]
const CHANGES: &[(&str, i64)] = table!(
    SYS_chmod SYS_clone SYS_clone3 SYS_copy_file_range SYS_fallocate SYS_fchmod SYS_fchmodat
    SYS_fchown SYS_fchownat SYS_fdatasync SYS_flock SYS_fsetxattr SYS_fsync SYS_ftruncate
    SYS_ioctl SYS_kill SYS_link SYS_linkat SYS_mkdir SYS_mkdirat SYS_mknodat SYS_mount
    SYS_mount_setattr SYS_move_mount SYS_pidfd_send_signal SYS_pivot_root SYS_pwrite64 SYS_rename
    SYS_renameat SYS_renameat2 SYS_rmdir SYS_sendmsg SYS_sendto SYS_setns SYS_setxattr
    SYS_symlink SYS_symlinkat SYS_sync SYS_syncfs SYS_umount2 SYS_unlink SYS_unlinkat SYS_unshare
    SYS_utimensat SYS_wait4 SYS_waitid SYS_write SYS_writev
);

pub fn changes(call: i64) -> bool {
    CHANGES.iter().any(|(_, number)| *number == call)
}

/// How ps(1) shows a process is no step either.
pub fn is_no_step(call: i64, first: u64) -> bool {
    let renames = call == libc::SYS_prctl && first == u64::from(libc::PR_SET_NAME.cast_unsigned());
    renames || NO_STEPS.iter().any(|(_, number)| *number == call)
}

pub fn name(call: i64) -> String {
    let found = NAMES.iter().find(|(_, number)| *number == call);
    found.map_or_else(|| format!("call {call}"), |(name, _)| name.trim_start_matches("SYS_").to_owned())
}
