//! On the kernel: each case in a child process of its own, which the parent reads out by a pipe.
//! They need root; without it they say so and pass, or fail where STOCKADE_TEST_MUST_RUN=1.

use std::fs::{File, Permissions, set_permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork, pipe};

use super::*;
use crate::jail::{Jail, JailName, Settings};
use crate::security::rlimit::UNLIMITED;
use crate::security::seccomp::calls::CALLS;
use crate::security::{Kind, profile};

const NOBODY: u32 = 65_534;

fn is_root() -> bool {
    // SAFETY: a query without arguments.
    if unsafe { libc::geteuid() } == 0 {
        return true;
    }
    let must = std::env::var_os("STOCKADE_TEST_MUST_RUN").is_some_and(|value| value == "1");
    assert!(!must, "this test must run, and it needs root");
    eprintln!("skipped: needs root");
    false
}

fn made(key: &str, value: serde_json::Value) -> Profile {
    let settings: Settings = [(key.to_owned(), value)].into();
    let jail = Jail::from_settings(&JailName::new("test").unwrap(), &settings).unwrap();
    profile(&jail).unwrap()
}

fn app() -> Profile {
    made("exec.command", ["/bin/true"].as_slice().into())
}

fn identity(uid: u32) -> Identity {
    Identity { uid, gid: uid, groups: vec![uid], ..Identity::root() }
}

/// Runs `case` in a forked child; gives what it wrote and how it ended. A panic ends it too.
fn in_child(case: impl FnOnce(&mut File)) -> (String, WaitStatus) {
    let (read, write) = pipe().unwrap();
    // SAFETY: the child runs `case` and leaves by _exit; the C library's fork keeps malloc usable.
    let child = match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            drop(read);
            let mut write = File::from(write);
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case(&mut write)));
            // SAFETY: ends this process, running nothing of the parent's.
            unsafe { libc::_exit(done.is_err().into()) }
        }
        ForkResult::Parent { child } => child,
    };
    drop(write);
    let mut text = String::new();
    File::from(read).read_to_string(&mut text).unwrap();
    (text, waitpid(child, None).unwrap())
}

/// Runs a case that must succeed; an error is told with its chain.
fn check(case: impl FnOnce() -> Result<()>) {
    let (text, status) = in_child(|out| match case() {
        Ok(()) => {}
        Err(e) => write!(out, "{e:#}").unwrap(),
    });
    assert!(text.is_empty() && matches!(status, WaitStatus::Exited(_, 0)), "{text} {status:?}");
}

/// Makes the raw call; its errno, or 0.
fn errno_of(number: c_long, [a, b, c]: [u64; 3]) -> i32 {
    // SAFETY: the cases below pass numbers and null pointers, which the kernel refuses or ignores.
    let result = unsafe { libc::syscall(number, a, b, c, 0u64, 0u64, 0u64) };
    if result < 0 { io::Error::last_os_error().raw_os_error().unwrap_or(-1) } else { 0 }
}

fn seal_as(profile: &Profile, uid: u32) -> Result<()> {
    become_user(profile, &identity(uid))?;
    seal(profile, uid, profile.program().as_deref())
}

/// The errno of each call, with the profile or without it, one child a call.
fn answers(profile: Option<&Profile>, calls: &[Case]) -> Vec<i32> {
    let one = |case: &Case| {
        let (text, status) = in_child(|out| {
            if let Some(profile) = profile {
                seal_as(profile, 0).unwrap();
            }
            write!(out, "{}", errno_of(case.number, case.arguments)).unwrap();
        });
        text.parse().unwrap_or_else(|_| panic!("{}: {text:?} {status:?}", case.what))
    };
    calls.iter().map(one).collect()
}

struct Case {
    what: &'static str,
    number: c_long,
    arguments: [u64; 3],
    expect: i32,
}

const fn case(what: &'static str, number: c_long, arguments: [u64; 3], expect: i32) -> Case {
    Case { what, number, arguments, expect }
}

const TIOCSTI: u64 = 0x5412;
const AF_ALG: u64 = 38;
const HIGH: u64 = 0xdead_beef << 32;
const CLOSED: &[Case] = &[
    case("unshare user", libc::SYS_unshare, [0x1000_0000, 0, 0], libc::EPERM),
    case("unshare net", libc::SYS_unshare, [0x4000_0000, 0, 0], libc::EPERM),
    case("keyctl", libc::SYS_keyctl, [9999, 0, 0], libc::EPERM),
    case("add_key", libc::SYS_add_key, [0, 0, 0], libc::EPERM),
    case("TIOCSTI", libc::SYS_ioctl, [u64::MAX, TIOCSTI, 0], libc::EPERM),
    case("TIOCSTI with high bits", libc::SYS_ioctl, [u64::MAX, TIOCSTI | HIGH, 0], libc::EPERM),
    case("TIOCLINUX", libc::SYS_ioctl, [u64::MAX, 0x541c, 0], libc::EPERM),
    case("AF_ALG", libc::SYS_socket, [AF_ALG, 5, 0], libc::EPERM),
    case("AF_ALG with high bits", libc::SYS_socket, [HIGH | AF_ALG, 5, 0], libc::EPERM),
    case("AF_RXRPC", libc::SYS_socket, [33, 2, 2], libc::EPERM),
    case("audit", libc::SYS_socket, [16, 3, 9], libc::EAFNOSUPPORT),
    case("mount", libc::SYS_mount, [0, 0, 0], libc::EPERM),
    case("open_tree", libc::SYS_open_tree, [0, 0, 0], libc::EPERM),
    case("io_uring_setup", libc::SYS_io_uring_setup, [1, 0, 0], libc::EPERM),
    case("clone3", libc::SYS_clone3, [0, 0, 0], libc::ENOSYS),
    case("personality", libc::SYS_personality, [0x4_0000, 0, 0], libc::EPERM),
    case("ptrace", libc::SYS_ptrace, [9999, 0, 0], libc::EPERM),
    case("bpf", libc::SYS_bpf, [9999, 0, 0], libc::EPERM),
];

const OPEN: &[Case] = &[
    case("unshare nothing", libc::SYS_unshare, [0, 0, 0], 0),
    case("FIONREAD on nothing", libc::SYS_ioctl, [u64::MAX, 0x541b, 0], libc::EBADF),
    case("a unix socket", libc::SYS_socket, [1, 1, 0], 0),
    case("personality query", libc::SYS_personality, [0xffff_ffff, 0, 0], 0),
    case("prctl dumpable", libc::SYS_prctl, [3, 0, 0], 0),
    case("chroot to nothing", libc::SYS_chroot, [0, 0, 0], libc::EFAULT),
    case("unknown to all", 9999, [0, 0, 0], libc::ENOSYS),
];

/// Each closed call has another answer without the filter, so that the filter is what is seen.
#[test]
fn the_app_filter_closes_what_it_says() {
    if !is_root() {
        return;
    }
    let profile = app();
    let found = answers(Some(&profile), CLOSED).into_iter().zip(answers(None, CLOSED));
    for (case, (under, without)) in CLOSED.iter().zip(found) {
        assert_eq!(under, case.expect, "{}", case.what);
        assert_ne!(without, case.expect, "{}: the kernel says so by itself", case.what);
    }
    for (case, under) in OPEN.iter().zip(answers(Some(&profile), OPEN)) {
        assert_eq!(under, case.expect, "{}", case.what);
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn x32_calls_are_refused() {
    let cases = [case("x32 getpid", libc::SYS_getpid | 0x4000_0000, [0; 3], libc::EPERM)];
    if is_root() {
        assert_eq!(answers(Some(&app()), &cases), [libc::EPERM]);
        assert_ne!(answers(None, &cases), [libc::EPERM]);
    }
}

/// The way into the 32-bit table, from a 64-bit program.
#[cfg(target_arch = "x86_64")]
#[test]
fn i386_calls_end_the_process() {
    if !is_root() {
        return;
    }
    let profile = app();
    let (text, status) = in_child(|out| {
        seal_as(&profile, 0).unwrap();
        // SAFETY: getpid by the 32-bit gate; it changes eax only.
        unsafe { std::arch::asm!("int 0x80", inout("eax") 20 => _) };
        write!(out, "still here").unwrap();
    });
    assert_eq!(text, "");
    // SIGSEGV: a kernel without the 32-bit gate.
    assert!(matches!(status, WaitStatus::Signaled(_, Signal::SIGSYS | Signal::SIGSEGV, _)), "{status:?}");
}

/// Every kind's program passes the kernel's own check; a system's without no_new_privs.
#[test]
fn the_kernel_takes_every_program() {
    if !is_root() {
        return;
    }
    let app = app();
    let system = made("exec.boot", "/sbin/init".into());
    assert_eq!((app.kind, system.kind), (Kind::App, Kind::System));
    for profile in [app, system] {
        check(|| seal_as(&profile, 0));
    }
    assert!(CALLS.len() > 350);
}

fn status_line(key: &str) -> String {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim_start_matches(':').trim().to_owned()
}

/// As /proc tells it, which `verify` does not ask.
#[test]
fn the_profile_is_exactly_what_the_kernel_holds() {
    if !is_root() {
        return;
    }
    let profile = app();
    for (uid, kept) in [(0, profile.capabilities), (NOBODY, 0)] {
        check(|| {
            seal_as(&profile, uid)?;
            for (key, mask) in [
                ("CapBnd", profile.capabilities),
                ("CapEff", kept),
                ("CapPrm", kept),
                ("CapInh", 0),
                ("CapAmb", 0),
            ] {
                assert_eq!(status_line(key), format!("{mask:016x}"), "{key} of {uid}");
            }
            assert_eq!(status_line("NoNewPrivs"), "1");
            assert_eq!(status_line("Seccomp"), "2");
            assert_eq!(status_line("Uid"), format!("{uid}\t{uid}\t{uid}\t{uid}"));
            assert_eq!(status_line("Groups"), uid.to_string());
            assert_eq!(securebits()?, 0);
            Ok(())
        });
    }
}

#[test]
fn verify_sees_every_gap() {
    if !is_root() {
        return;
    }
    let profile = app();
    let program = profile.program().unwrap();
    let gap = |what: &str, case: &dyn Fn() -> Result<()>| {
        let (text, _) = in_child(|out| {
            case().unwrap();
            write!(out, "{}", verify(&profile, 0).unwrap_err()).unwrap();
        });
        assert!(text.contains(what), "{what}: {text}");
    };
    gap("effective", &|| Ok(()));
    gap("bounding", &|| set_capabilities(profile.capabilities));
    gap("no_new_privs", &|| become_user(&profile, &Identity::root()));
    gap("filter", &|| become_user(&profile, &Identity::root()).and_then(|()| set_no_new_privs()));
    gap("effective", &|| {
        become_user(&profile, &Identity::root())?;
        set_no_new_privs()?;
        install_filter(&program)?;
        set_capabilities(1)
    });
}

/// A setuid program runs as its caller under the profile, and as root without it.
#[test]
fn setuid_programs_gain_nothing() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let program = folder.path().join("id");
    // By another process: a child forked by a test beside this one would inherit the descriptor
    // that a copy writes to, and make the program busy.
    let copied = Command::new("install").args(["-m", "4755", "/usr/bin/id"]).arg(&program).status().unwrap();
    assert!(copied.success());
    let effective = |sealed: bool| {
        let profile = app();
        let filter = profile.program();
        let mut command = Command::new(&program);
        command.arg("-u");
        let confine = move || -> io::Result<()> {
            become_user(&profile, &identity(NOBODY)).map_err(io::Error::other)?;
            if sealed {
                seal(&profile, NOBODY, filter.as_deref()).map_err(io::Error::other)?;
            }
            Ok(())
        };
        // SAFETY: the closure makes system calls and allocates only to tell an error.
        let output = unsafe { command.pre_exec(confine) }.output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(effective(true), NOBODY.to_string());
    assert_eq!(effective(false), "0", "the control: is the temporary directory mounted nosuid?");
}

/// A tighter hard limit stays and is told; everything else becomes what the profile has.
#[test]
fn limits_are_set_or_clamped_aloud() {
    if !is_root() {
        return;
    }
    let nofile = rlimit::number("nofile").unwrap();
    check(|| {
        let tight = Rlimit { resource: nofile, soft: 64, hard: 100 };
        assert_eq!(setrlimit(tight)?, None);
        set_capabilities(0)?;
        let clamped = limit(&app().rlimits)?;
        let told = clamped.iter().find(|clamped| clamped.resource == nofile);
        assert_eq!(told, Some(&Clamped { resource: nofile, wanted: 524_288, hard: 100 }));
        assert_eq!(prlimit(nofile, None)?, (100, 100));
        for wanted in app().rlimits.iter().filter(|limit| limit.resource != nofile) {
            let told = clamped.iter().find(|clamped| clamped.resource == wanted.resource);
            let hard = told.map_or(wanted.hard, |clamped| clamped.hard);
            let found = prlimit(wanted.resource, None)?;
            assert_eq!(found, (wanted.soft.min(hard), hard), "{}", rlimit::name(wanted.resource));
            assert!(hard <= wanted.hard);
        }
        Ok(())
    });
}

/// What is not a matter of privileges is an error, never a clamp.
#[test]
fn a_limit_that_cannot_be_is_an_error() {
    check(|| {
        let wrong = Rlimit { resource: 7, soft: UNLIMITED, hard: 1 };
        let unknown = Rlimit { resource: 99, soft: 0, hard: 0 };
        assert!(setrlimit(wrong).is_err() && setrlimit(unknown).is_err());
        Ok(())
    });
}

fn session_keyring() -> c_long {
    const SESSION: c_int = -3;
    // SAFETY: numbers only.
    unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_GET_KEYRING_ID, SESSION, 0) }
}

#[test]
fn what_is_inherited_is_reset() {
    check(|| {
        let before = session_keyring();
        join_session_keyring()?;
        assert!(before < 0 || session_keyring() != before);

        // SAFETY: numbers only. ADDR_NO_RANDOMIZE.
        assert!(unsafe { libc::personality(0x4_0000) } >= 0);
        reset_personality()?;

        let all = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0))?;
        let mut first = nix::sched::CpuSet::new();
        let cpu = (0..nix::sched::CpuSet::count()).find(|&cpu| all.is_set(cpu).unwrap()).unwrap();
        first.set(cpu)?;
        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &first)?;
        reset_affinity()?;
        let now = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0))?;
        assert!((0..nix::sched::CpuSet::count()).all(|cpu| now.is_set(cpu).ok() >= all.is_set(cpu).ok()));

        umask(0o777);
        assert_eq!(umask(0o022), 0o777);
        set_dumpable(false)
    });
}

#[test]
fn descriptors_are_closed() {
    let (text, status) = in_child(|out| {
        let kept = std::os::fd::AsRawFd::as_raw_fd(out);
        // SAFETY: both copies belong to this child alone.
        let (low, high) = unsafe { (libc::dup2(kept, 100), libc::dup2(kept, 200)) };
        // SAFETY: both stay open until they are asked about.
        let keep =
            unsafe { [std::os::fd::BorrowedFd::borrow_raw(low), std::os::fd::BorrowedFd::borrow_raw(kept)] };
        close_all_but(&keep).unwrap();
        // SAFETY: a query on two numbers.
        let alive = [low, high].map(|fd| unsafe { libc::fcntl(fd, libc::F_GETFD) });
        close_range_at_exec_from(100).unwrap();
        // SAFETY: as above.
        let flags = unsafe { libc::fcntl(low, libc::F_GETFD) };
        write!(out, "{alive:?} {flags}").unwrap();
    });
    assert_eq!((text.as_str(), matches!(status, WaitStatus::Exited(_, 0))), ("[0, -1] 1", true));
}
