//! Every system call this profile knows, by name, with its number on each architecture, in the
//! group that decides about it.
//!
//! Data only. The groups follow moby's default profile as of 2026-06-30, kernel 6.18's tables give
//! the numbers; what is kept narrower than moby is said at the group. A call that is in no group is
//! newer than this table and answered with ENOSYS, so that a C library falls back to an older one.

#![forbid(unsafe_code)]

/// What decides about a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Allowed in every jail.
    Always,
    /// With `allow.mount`, and in a jail that boots a system; SYS_ADMIN alone is not enough.
    Mount,
    /// With `allow.ptrace` or SYS_PTRACE: the memory and descriptors of other processes.
    Ptrace,
    /// With SYS_ADMIN, which a jail only has over its own namespaces.
    Admin,
    /// With SYS_CHROOT.
    Chroot,
    /// With SYS_BOOT: ends or restarts the jail's own pid namespace.
    Boot,
    /// With SYS_TIME.
    Clock,
    /// With SYSLOG: the kernel's message buffer.
    Log,
    /// With SYS_PACCT.
    Accounting,
    /// With SYS_TTY_CONFIG.
    Terminal,
    /// With SYS_NICE: memory policy.
    Numa,
    /// With DAC_READ_SEARCH: opens files past every directory.
    Handle,
    /// New namespaces by `clone`, decided by its flags.
    Clone,
    /// New namespaces by `unshare`, decided by its flags.
    Unshare,
    /// All requests but those that type into a terminal.
    Ioctl,
    /// By address family.
    Socket,
    /// The usual execution domains only.
    Personality,
    /// Answered with ENOSYS: its flags are behind a pointer, where no filter can look.
    Absent,
    /// In no jail: not namespaced, obsolete, or a kernel interface with a long list of holes.
    /// Moby opens some of them with SYS_ADMIN, BPF, PERFMON, SYS_MODULE or SYS_RAWIO.
    Never,
}

/// A name with its numbers; [`NONE`] where an architecture has no such call.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub name: &'static str,
    pub group: Group,
    pub x86_64: u16,
    pub aarch64: u16,
}

/// The number of a call that an architecture does not have.
pub const NONE: u16 = u16::MAX;

/// All numbers of the table are below this.
pub const NUMBERS: usize = 512;

macro_rules! number {
    (-) => {
        NONE
    };
    ($number:literal) => {
        $number
    };
}

macro_rules! calls {
    ($($group:ident { $($name:ident $x86_64:tt $aarch64:tt;)* })*) => {
        &[$($(Call {
            name: stringify!($name),
            group: Group::$group,
            x86_64: number!($x86_64),
            aarch64: number!($aarch64),
        },)*)*]
    };
}

/// Name, number on x86_64, number on aarch64.
#[rustfmt::skip]
pub const CALLS: &[Call] = calls! {
    Always {
        read 0 63; write 1 64; open 2 -; close 3 57; stat 4 -; fstat 5 80; lstat 6 -; poll 7 -;
        lseek 8 62; mmap 9 222; mprotect 10 226; munmap 11 215; brk 12 214; rt_sigaction 13 134;
        rt_sigprocmask 14 135; rt_sigreturn 15 139; pread64 17 67; pwrite64 18 68; readv 19 65;
        writev 20 66; access 21 -; pipe 22 -; select 23 -; sched_yield 24 124; mremap 25 216;
        msync 26 227; mincore 27 232; madvise 28 233; shmget 29 194; shmat 30 196; shmctl 31 195;
        dup 32 23; dup2 33 -; pause 34 -; nanosleep 35 101; getitimer 36 102; alarm 37 -;
        setitimer 38 103; getpid 39 172; sendfile 40 71; connect 42 203; accept 43 202;
        sendto 44 206; recvfrom 45 207; sendmsg 46 211; recvmsg 47 212; shutdown 48 210;
        bind 49 200; listen 50 201; getsockname 51 204; getpeername 52 205; socketpair 53 199;
        setsockopt 54 208; getsockopt 55 209; fork 57 -; vfork 58 -; execve 59 221; exit 60 93;
        wait4 61 260; kill 62 129; uname 63 160; semget 64 190; semop 65 193; semctl 66 191;
        shmdt 67 197; msgget 68 186; msgsnd 69 189; msgrcv 70 188; msgctl 71 187; fcntl 72 25;
        flock 73 32; fsync 74 82; fdatasync 75 83; truncate 76 45; ftruncate 77 46; getdents 78 -;
        getcwd 79 17; chdir 80 49; fchdir 81 50; rename 82 -; mkdir 83 -; rmdir 84 -; creat 85 -;
        link 86 -; unlink 87 -; symlink 88 -; readlink 89 -; chmod 90 -; fchmod 91 52; chown 92 -;
        fchown 93 55; lchown 94 -; umask 95 166; gettimeofday 96 169; getrlimit 97 163;
        getrusage 98 165; sysinfo 99 179; times 100 153; getuid 102 174; getgid 104 176;
        setuid 105 146; setgid 106 144; geteuid 107 175; getegid 108 177; setpgid 109 154;
        getppid 110 173; getpgrp 111 -; setsid 112 157; setreuid 113 145; setregid 114 143;
        getgroups 115 158; setgroups 116 159; setresuid 117 147; getresuid 118 148;
        setresgid 119 149; getresgid 120 150; getpgid 121 155; setfsuid 122 151; setfsgid 123 152;
        getsid 124 156; capget 125 90; capset 126 91; rt_sigpending 127 136;
        rt_sigtimedwait 128 137; rt_sigqueueinfo 129 138; rt_sigsuspend 130 133;
        sigaltstack 131 132; utime 132 -; mknod 133 -; statfs 137 43; fstatfs 138 44;
        getpriority 140 141; setpriority 141 140; sched_setparam 142 118; sched_getparam 143 121;
        sched_setscheduler 144 119; sched_getscheduler 145 120; sched_get_priority_max 146 125;
        sched_get_priority_min 147 126; sched_rr_get_interval 148 127; mlock 149 228;
        munlock 150 229; mlockall 151 230; munlockall 152 231; modify_ldt 154 -; prctl 157 167;
        arch_prctl 158 -; adjtimex 159 171; setrlimit 160 164; sync 162 81; gettid 186 178;
        readahead 187 213; setxattr 188 5; lsetxattr 189 6; fsetxattr 190 7; getxattr 191 8;
        lgetxattr 192 9; fgetxattr 193 10; listxattr 194 11; llistxattr 195 12; flistxattr 196 13;
        removexattr 197 14; lremovexattr 198 15; fremovexattr 199 16; tkill 200 130; time 201 -;
        futex 202 98; sched_setaffinity 203 122; sched_getaffinity 204 123; set_thread_area 205 -;
        io_setup 206 0; io_destroy 207 1; io_getevents 208 4; io_submit 209 2; io_cancel 210 3;
        get_thread_area 211 -; epoll_create 213 -; epoll_ctl_old 214 -; epoll_wait_old 215 -;
        remap_file_pages 216 234; getdents64 217 61; set_tid_address 218 96;
        restart_syscall 219 128; semtimedop 220 192; fadvise64 221 223; timer_create 222 107;
        timer_settime 223 110; timer_gettime 224 108; timer_getoverrun 225 109;
        timer_delete 226 111; clock_gettime 228 113; clock_getres 229 114; clock_nanosleep 230 115;
        exit_group 231 94; epoll_wait 232 -; epoll_ctl 233 21; tgkill 234 131; utimes 235 -;
        mq_open 240 180; mq_unlink 241 181; mq_timedsend 242 182; mq_timedreceive 243 183;
        mq_notify 244 184; mq_getsetattr 245 185; waitid 247 95; ioprio_set 251 30;
        ioprio_get 252 31; inotify_init 253 -; inotify_add_watch 254 27; inotify_rm_watch 255 28;
        openat 257 56; mkdirat 258 34; mknodat 259 33; fchownat 260 54; futimesat 261 -;
        newfstatat 262 79; unlinkat 263 35; renameat 264 38; linkat 265 37; symlinkat 266 36;
        readlinkat 267 78; fchmodat 268 53; faccessat 269 48; pselect6 270 72; ppoll 271 73;
        set_robust_list 273 99; get_robust_list 274 100; splice 275 76; tee 276 77;
        sync_file_range 277 84; vmsplice 278 75; utimensat 280 88; epoll_pwait 281 22;
        signalfd 282 -; timerfd_create 283 85; eventfd 284 -; fallocate 285 47;
        timerfd_settime 286 86; timerfd_gettime 287 87; accept4 288 242; signalfd4 289 74;
        eventfd2 290 19; epoll_create1 291 20; dup3 292 24; pipe2 293 59; inotify_init1 294 26;
        preadv 295 69; pwritev 296 70; rt_tgsigqueueinfo 297 240; recvmmsg 299 243;
        fanotify_mark 301 263; prlimit64 302 261; name_to_handle_at 303 264; clock_adjtime 305 266;
        syncfs 306 267; sendmmsg 307 269; getcpu 309 168; sched_setattr 314 274;
        sched_getattr 315 275; renameat2 316 276; seccomp 317 277; getrandom 318 278;
        memfd_create 319 279; execveat 322 281; membarrier 324 283; mlock2 325 284;
        copy_file_range 326 285; preadv2 327 286; pwritev2 328 287; pkey_mprotect 329 288;
        pkey_alloc 330 289; pkey_free 331 290; statx 332 291; io_pgetevents 333 292; rseq 334 293;
        uretprobe 335 -; uprobe 336 -; pidfd_send_signal 424 424; pidfd_open 434 434;
        close_range 436 436; openat2 437 437; faccessat2 439 439; epoll_pwait2 441 441;
        landlock_create_ruleset 444 444; landlock_add_rule 445 445; landlock_restrict_self 446 446;
        memfd_secret 447 447; process_mrelease 448 448; futex_waitv 449 449; cachestat 451 451;
        fchmodat2 452 452; map_shadow_stack 453 453; futex_wake 454 454; futex_wait 455 455;
        futex_requeue 456 456; statmount 457 457; listmount 458 458; mseal 462 462;
        setxattrat 463 463; getxattrat 464 464; listxattrat 465 465; removexattrat 466 466;
        file_getattr 468 468; file_setattr 469 469;
    }
    Mount {
        mount 165 40; umount2 166 39; pivot_root 155 41; open_tree 428 428; open_tree_attr 467 467;
        move_mount 429 429; fsopen 430 430; fsconfig 431 431; fsmount 432 432; fspick 433 433;
        mount_setattr 442 442;
    }
    Ptrace {
        ptrace 101 117; process_vm_readv 310 270; process_vm_writev 311 271;
        process_madvise 440 440; pidfd_getfd 438 438; kcmp 312 272;
    }
    Admin {
        sethostname 170 161; setdomainname 171 162; setns 308 268; fanotify_init 300 262;
        lsm_get_self_attr 459 459; lsm_set_self_attr 460 460; lsm_list_modules 461 461;
    }
    Chroot {
        chroot 161 51;
    }
    Boot {
        reboot 169 142;
    }
    Clock {
        settimeofday 164 170; clock_settime 227 112;
    }
    Log {
        syslog 103 116;
    }
    Accounting {
        acct 163 89;
    }
    Terminal {
        vhangup 153 58;
    }
    Numa {
        get_mempolicy 239 236; mbind 237 235; set_mempolicy 238 237;
        set_mempolicy_home_node 450 450;
    }
    Handle {
        open_by_handle_at 304 265;
    }
    Clone {
        clone 56 220;
    }
    Unshare {
        unshare 272 97;
    }
    Ioctl {
        ioctl 16 29;
    }
    Socket {
        socket 41 198;
    }
    Personality {
        personality 135 92;
    }
    Absent {
        clone3 435 435;
    }
    Never {
        add_key 248 217; request_key 249 218; keyctl 250 219; io_uring_setup 425 425;
        io_uring_enter 426 426; io_uring_register 427 427; bpf 321 280; perf_event_open 298 241;
        userfaultfd 323 282; init_module 175 105; finit_module 313 273; delete_module 176 106;
        kexec_load 246 104; kexec_file_load 320 294; iopl 172 -; ioperm 173 -; swapon 167 224;
        swapoff 168 225; quotactl 179 60; quotactl_fd 443 443; lookup_dcookie 212 18;
        nfsservctl 180 42; migrate_pages 256 238; move_pages 279 239; uselib 134 -; ustat 136 -;
        sysfs 139 -; _sysctl 156 -; getpmsg 181 -; putpmsg 182 -; afs_syscall 183 -; tuxcall 184 -;
        security 185 -; vserver 236 -;
    }
};

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_name_and_number_is_there_once() {
        let names: BTreeSet<_> = CALLS.iter().map(|call| call.name).collect();
        assert_eq!(names.len(), CALLS.len());
        for column in [|call: &Call| call.x86_64, |call: &Call| call.aarch64] {
            let numbers: Vec<u16> = CALLS.iter().map(column).filter(|&number| number != NONE).collect();
            let distinct: BTreeSet<_> = numbers.iter().collect();
            assert_eq!(distinct.len(), numbers.len());
            assert!(numbers.iter().all(|&number| usize::from(number) < NUMBERS));
        }
    }

    macro_rules! libc_numbers {
        ($($name:ident)*) => { [$((stringify!($name), libc::$name)),*] };
    }

    #[cfg(target_arch = "x86_64")]
    fn column(call: &Call) -> u16 {
        call.x86_64
    }
    #[cfg(target_arch = "aarch64")]
    fn column(call: &Call) -> u16 {
        call.aarch64
    }

    /// Every number libc knows on this architecture is the one in the table.
    #[test]
    fn numbers_are_those_of_libc() {
        let mut known = IN_LIBC.to_vec();
        #[cfg(target_arch = "x86_64")]
        known.extend(ONLY_X86_64);
        for (name, number) in known {
            let name = name.strip_prefix("SYS_").unwrap();
            let call = CALLS.iter().find(|call| call.name == name);
            assert_eq!(call.map(|call| libc::c_long::from(column(call))), Some(number), "{name}");
        }
    }

    #[rustfmt::skip]
    const IN_LIBC: &[(&str, libc::c_long)] = &libc_numbers! {
        SYS_accept SYS_accept4 SYS_acct SYS_add_key SYS_adjtimex SYS_bind SYS_bpf SYS_brk SYS_capget
        SYS_capset SYS_chdir SYS_chroot SYS_clock_adjtime SYS_clock_getres SYS_clock_gettime
        SYS_clock_nanosleep SYS_clock_settime SYS_clone SYS_clone3 SYS_close SYS_close_range SYS_connect
        SYS_copy_file_range SYS_delete_module SYS_dup SYS_dup3 SYS_epoll_create1 SYS_epoll_ctl
        SYS_epoll_pwait SYS_epoll_pwait2 SYS_eventfd2 SYS_execve SYS_execveat SYS_exit SYS_exit_group
        SYS_faccessat SYS_faccessat2 SYS_fadvise64 SYS_fallocate SYS_fanotify_init SYS_fanotify_mark
        SYS_fchdir SYS_fchmod SYS_fchmodat SYS_fchown SYS_fchownat SYS_fcntl SYS_fdatasync SYS_fgetxattr
        SYS_finit_module SYS_flistxattr SYS_flock SYS_fremovexattr SYS_fsconfig SYS_fsetxattr SYS_fsmount
        SYS_fsopen SYS_fspick SYS_fstat SYS_fstatfs SYS_fsync SYS_ftruncate SYS_futex SYS_futex_waitv
        SYS_get_mempolicy SYS_get_robust_list SYS_getcpu SYS_getcwd SYS_getdents64 SYS_getegid SYS_geteuid
        SYS_getgid SYS_getgroups SYS_getitimer SYS_getpeername SYS_getpgid SYS_getpid SYS_getppid
        SYS_getpriority SYS_getrandom SYS_getresgid SYS_getresuid SYS_getrusage SYS_getsid SYS_getsockname
        SYS_getsockopt SYS_gettid SYS_gettimeofday SYS_getuid SYS_getxattr SYS_init_module
        SYS_inotify_add_watch SYS_inotify_init1 SYS_inotify_rm_watch SYS_io_cancel SYS_io_destroy
        SYS_io_getevents SYS_io_setup SYS_io_submit SYS_io_uring_enter SYS_io_uring_register
        SYS_io_uring_setup SYS_ioctl SYS_ioprio_get SYS_ioprio_set SYS_kcmp SYS_kexec_file_load
        SYS_kexec_load SYS_keyctl SYS_kill SYS_landlock_add_rule SYS_landlock_create_ruleset
        SYS_landlock_restrict_self SYS_lgetxattr SYS_linkat SYS_listen SYS_listxattr SYS_llistxattr
        SYS_lookup_dcookie SYS_lremovexattr SYS_lseek SYS_lsetxattr SYS_madvise SYS_mbind SYS_membarrier
        SYS_memfd_create SYS_memfd_secret SYS_migrate_pages SYS_mincore SYS_mkdirat SYS_mknodat SYS_mlock
        SYS_mlock2 SYS_mlockall SYS_mmap SYS_mount SYS_mount_setattr SYS_move_mount SYS_move_pages
        SYS_mprotect SYS_mq_getsetattr SYS_mq_notify SYS_mq_open SYS_mq_timedreceive SYS_mq_timedsend
        SYS_mq_unlink SYS_mremap SYS_mseal SYS_msgctl SYS_msgget SYS_msgrcv SYS_msgsnd SYS_msync SYS_munlock
        SYS_munlockall SYS_munmap SYS_name_to_handle_at SYS_nanosleep SYS_newfstatat SYS_nfsservctl
        SYS_open_by_handle_at SYS_open_tree SYS_openat SYS_openat2 SYS_perf_event_open SYS_personality
        SYS_pidfd_getfd SYS_pidfd_open SYS_pidfd_send_signal SYS_pipe2 SYS_pivot_root SYS_pkey_alloc
        SYS_pkey_free SYS_pkey_mprotect SYS_ppoll SYS_prctl SYS_pread64 SYS_preadv SYS_preadv2 SYS_prlimit64
        SYS_process_madvise SYS_process_mrelease SYS_process_vm_readv SYS_process_vm_writev SYS_pselect6
        SYS_ptrace SYS_pwrite64 SYS_pwritev SYS_pwritev2 SYS_quotactl SYS_quotactl_fd SYS_read SYS_readahead
        SYS_readlinkat SYS_readv SYS_reboot SYS_recvfrom SYS_recvmmsg SYS_recvmsg SYS_remap_file_pages
        SYS_removexattr SYS_renameat2 SYS_request_key SYS_restart_syscall SYS_rseq SYS_rt_sigaction
        SYS_rt_sigpending SYS_rt_sigprocmask SYS_rt_sigqueueinfo SYS_rt_sigreturn SYS_rt_sigsuspend
        SYS_rt_sigtimedwait SYS_rt_tgsigqueueinfo SYS_sched_get_priority_max SYS_sched_get_priority_min
        SYS_sched_getaffinity SYS_sched_getattr SYS_sched_getparam SYS_sched_getscheduler
        SYS_sched_rr_get_interval SYS_sched_setaffinity SYS_sched_setattr SYS_sched_setparam
        SYS_sched_setscheduler SYS_sched_yield SYS_seccomp SYS_semctl SYS_semget SYS_semop SYS_semtimedop
        SYS_sendfile SYS_sendmmsg SYS_sendmsg SYS_sendto SYS_set_mempolicy SYS_set_mempolicy_home_node
        SYS_set_robust_list SYS_set_tid_address SYS_setdomainname SYS_setfsgid SYS_setfsuid SYS_setgid
        SYS_setgroups SYS_sethostname SYS_setitimer SYS_setns SYS_setpgid SYS_setpriority SYS_setregid
        SYS_setresgid SYS_setresuid SYS_setreuid SYS_setsid SYS_setsockopt SYS_settimeofday SYS_setuid
        SYS_setxattr SYS_shmat SYS_shmctl SYS_shmdt SYS_shmget SYS_shutdown SYS_sigaltstack SYS_signalfd4
        SYS_socket SYS_socketpair SYS_splice SYS_statfs SYS_statx SYS_swapoff SYS_swapon SYS_symlinkat
        SYS_sync SYS_syncfs SYS_sysinfo SYS_syslog SYS_tee SYS_tgkill SYS_timer_create SYS_timer_delete
        SYS_timer_getoverrun SYS_timer_gettime SYS_timer_settime SYS_timerfd_create SYS_timerfd_gettime
        SYS_timerfd_settime SYS_times SYS_tkill SYS_truncate SYS_umask SYS_umount2 SYS_uname SYS_unlinkat
        SYS_unshare SYS_userfaultfd SYS_utimensat SYS_vhangup SYS_vmsplice SYS_wait4 SYS_waitid SYS_write
        SYS_writev
    };

    #[cfg(target_arch = "x86_64")]
    #[rustfmt::skip]
    const ONLY_X86_64: &[(&str, libc::c_long)] = &libc_numbers! {
        SYS__sysctl SYS_access SYS_afs_syscall SYS_alarm SYS_arch_prctl SYS_chmod SYS_chown SYS_creat
        SYS_dup2 SYS_epoll_create SYS_epoll_ctl_old SYS_epoll_wait SYS_epoll_wait_old SYS_eventfd
        SYS_fchmodat2 SYS_fork SYS_futimesat SYS_get_thread_area SYS_getdents SYS_getpgrp SYS_getpmsg
        SYS_getrlimit SYS_inotify_init SYS_ioperm SYS_iopl SYS_lchown SYS_link SYS_lstat SYS_mkdir SYS_mknod
        SYS_modify_ldt SYS_open SYS_pause SYS_pipe SYS_poll SYS_putpmsg SYS_readlink SYS_rename SYS_renameat
        SYS_rmdir SYS_security SYS_select SYS_set_thread_area SYS_setrlimit SYS_signalfd SYS_stat
        SYS_symlink SYS_sync_file_range SYS_sysfs SYS_time SYS_tuxcall SYS_unlink SYS_uselib SYS_ustat
        SYS_utime SYS_utimes SYS_vfork SYS_vserver
    };
}
