//! What a process takes away from itself before it becomes part of a jail.
//!
//! Thin calls, each named after its system call, and three that keep the order which security
//! hangs on: [`limit`], [`become_user`], [`seal`]. For single-threaded processes between `fork`
//! and `exec`: what is set here is set for the calling thread. Decides nothing: the profile comes
//! from `security`. Nothing here is skipped quietly, and [`verify`] reads back what the kernel holds.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use anyhow::{Context, Result, bail, ensure};
use libc::{c_int, c_long, c_uint, c_ulong};

use crate::security::passwd::Identity;
use crate::security::rlimit::{self, Rlimit};
use crate::security::seccomp::Instruction;
use crate::security::{Profile, capability};

#[cfg(test)]
mod tests;

/// No capability has a higher number: the sets are 64 bits wide.
const CAPABILITIES_MAX: c_ulong = 64;

/// Room for 8,192 CPUs, the most a kernel can be built for.
const CPU_MASK_WORDS: usize = 128;

/// `SECCOMP_MODE_FILTER`, what PR_GET_SECCOMP answers under a filter.
const MODE_FILTER: c_int = 2;

/// A limit that could not be as wide as the profile has it, for the process may not raise its own:
/// it is the tighter one now. Values in the resource's unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clamped {
    pub resource: u32,
    pub wanted: u64,
    pub hard: u64,
}

// The order.

/// Sets every limit of the profile and reads it back. A hard limit above the present one that may
/// not be raised (no CAP_SYS_RESOURCE) stays where it is and is told; anything else is an error.
pub fn limit(limits: &[Rlimit]) -> Result<Vec<Clamped>> {
    let mut clamped = Vec::new();
    for limit in limits {
        clamped.extend(setrlimit(*limit)?);
    }
    Ok(clamped)
}

/// Drops the bounding set, changes to `identity`, and keeps the profile's capabilities if that is
/// root, none if it is not (as execve would). In this order, for each step needs what a later one
/// takes: dropping needs SETPCAP, the ids need SETUID and SETGID.
pub fn become_user(profile: &Profile, identity: &Identity) -> Result<()> {
    drop_bounding(profile.capabilities)?;
    clear_ambient()?;
    setgroups(&identity.groups)?;
    setresgid(identity.gid)?;
    setresuid(identity.uid)?;
    set_capabilities(kept(profile, identity.uid))
}

/// Forbids new privileges where the profile says so, installs the filter, and verifies all of it.
/// The last thing before execve: the filter holds from here on. Make `program` by
/// [`Profile::program`] beforehand.
pub fn seal(profile: &Profile, uid: u32, program: Option<&[Instruction]>) -> Result<()> {
    ensure!(profile.filter == program.is_some(), "install filter: profile and program disagree");
    if profile.no_new_privs {
        set_no_new_privs()?;
    }
    if let Some(program) = program {
        install_filter(program)?;
    }
    verify(profile, uid)
}

/// Reads back from the kernel that this thread holds what the profile says and nothing more.
/// By prctl(2) and capget(2) alone: a /proc may not be there, or not be the kernel's.
pub fn verify(profile: &Profile, uid: u32) -> Result<()> {
    let kept = kept(profile, uid);
    let sets = capget()?;
    same("effective capabilities", sets.effective, kept)?;
    same("permitted capabilities", sets.permitted, kept)?;
    // An empty inheritable set means an empty ambient set: the kernel keeps one within the other.
    same("inheritable capabilities", sets.inheritable, 0)?;
    same("bounding capabilities", bounding()?, profile.capabilities)?;
    // Inherited where it was not asked for, it is only tighter.
    let privileges = prctl("PR_GET_NO_NEW_PRIVS", libc::PR_GET_NO_NEW_PRIVS, 0)?;
    ensure!(privileges == 1 || !profile.no_new_privs, "verify no_new_privs: it is off");
    if profile.filter {
        let mode = prctl("PR_GET_SECCOMP", libc::PR_GET_SECCOMP, 0)?;
        ensure!(mode == MODE_FILTER, "verify filter: mode is {mode}");
    }
    Ok(())
}

/// What a user of the profile has: execve gives root all of the bounding set, others nothing.
fn kept(profile: &Profile, uid: u32) -> u64 {
    if uid == 0 { profile.capabilities } else { 0 }
}

fn same(what: &str, found: u64, wanted: u64) -> Result<()> {
    ensure!(found == wanted, "verify {what}: {found:#x}, not {wanted:#x}");
    Ok(())
}

// Privileges.

/// prctl(2) with one argument; the rest zero, as newer options insist.
fn prctl(name: &str, option: c_int, argument: c_ulong) -> Result<c_int> {
    // SAFETY: none of the options used in this module takes a pointer, so no memory is touched.
    let result = unsafe { libc::prctl(option, argument, 0 as c_ulong, 0 as c_ulong, 0 as c_ulong) };
    if result < 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("prctl {name}"));
    }
    Ok(result)
}

/// From here on no execve gains anything by setuid bits or file capabilities. Cannot be undone.
pub fn set_no_new_privs() -> Result<()> {
    prctl("PR_SET_NO_NEW_PRIVS", libc::PR_SET_NO_NEW_PRIVS, 1).map(drop)
}

/// False: nobody without privileges over this process may trace it or open its /proc files.
/// Changing ids and execve set it anew.
pub fn set_dumpable(dumpable: bool) -> Result<()> {
    prctl("PR_SET_DUMPABLE", libc::PR_SET_DUMPABLE, dumpable.into())?;
    let now = prctl("PR_GET_DUMPABLE", libc::PR_GET_DUMPABLE, 0)?;
    ensure!(now == c_int::from(dumpable), "verify dumpable: {now}");
    Ok(())
}

/// The present securebits, `linux/securebits.h`; a jail starts with those it was given.
pub fn securebits() -> Result<c_int> {
    prctl("PR_GET_SECUREBITS", libc::PR_GET_SECUREBITS, 0)
}

/// Empties the ambient set.
pub fn clear_ambient() -> Result<()> {
    let clear = libc::PR_CAP_AMBIENT_CLEAR_ALL as c_ulong;
    prctl("PR_CAP_AMBIENT_CLEAR_ALL", libc::PR_CAP_AMBIENT, clear).map(drop)
}

/// Whether the bounding set has a capability; `None` past the last one that this kernel knows.
fn bounded(capability: c_ulong) -> Result<Option<bool>> {
    // SAFETY: this option takes a number only.
    match unsafe { libc::prctl(libc::PR_CAPBSET_READ, capability, 0, 0, 0) } {
        0 => Ok(Some(false)),
        1 => Ok(Some(true)),
        _ if io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL) => Ok(None),
        _ => Err(io::Error::last_os_error()).context("prctl PR_CAPBSET_READ"),
    }
}

/// The bounding set as the kernel has it.
pub fn bounding() -> Result<u64> {
    let mut mask = 0;
    for capability in 0..CAPABILITIES_MAX {
        match bounded(capability)? {
            Some(set) => mask |= u64::from(set) << capability,
            None => break,
        }
    }
    Ok(mask)
}

/// Leaves only `mask` in the bounding set: all others go, those newer than this program too.
pub fn drop_bounding(mask: u64) -> Result<()> {
    for capability in 0..CAPABILITIES_MAX {
        let Some(set) = bounded(capability)? else { break };
        if set && mask >> capability & 1 == 0 {
            prctl("PR_CAPBSET_DROP", libc::PR_CAPBSET_DROP, capability)?;
        }
    }
    Ok(())
}

/// The three sets of capget(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
}

/// `struct __user_cap_header_struct`.
#[repr(C)]
struct Header {
    version: u32,
    pid: c_int,
}

/// `struct __user_cap_data_struct`, one of two halves, the low one first.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Half {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3`, and pid 0: the calling thread.
const SELF: Header = Header { version: 0x2008_0522, pid: 0 };

/// The calling thread's sets.
pub fn capget() -> Result<Capabilities> {
    let mut header = SELF;
    let mut halves = [Half::default(); 2];
    // SAFETY: version 3 reads one header and writes exactly two halves; both live here.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, halves.as_mut_ptr()) };
    answered(result, || "capget".into())?;
    let join = |part: fn(&Half) -> u32| u64::from(part(&halves[0])) | u64::from(part(&halves[1])) << 32;
    Ok(Capabilities {
        effective: join(|half| half.effective),
        permitted: join(|half| half.permitted),
        inheritable: join(|half| half.inheritable),
    })
}

/// Makes `mask` the permitted and the effective set, and the inheritable set empty: a set left
/// there would come back by file capabilities (CVE-2022-29162).
pub fn set_capabilities(mask: u64) -> Result<()> {
    let mut header = SELF;
    let half = |part: u64| {
        let part = u32::try_from(part & 0xffff_ffff).expect("masked to 32 bits");
        Half { effective: part, permitted: part, inheritable: 0 }
    };
    let halves = [half(mask), half(mask >> 32)];
    // SAFETY: version 3 reads one header and exactly two halves; both live here.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, halves.as_ptr()) };
    answered(result, || format!("capset {}", capability::names(mask).join(" ")))
}

/// Turns -1 into the error that errno holds.
fn answered(result: c_long, what: impl FnOnce() -> String) -> Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error()).with_context(what);
    }
    Ok(())
}

// Ids.

/// Exactly these supplementary groups.
pub fn setgroups(groups: &[u32]) -> Result<()> {
    // SAFETY: the pointer and the length are of one slice, which the kernel only reads.
    let result = unsafe { libc::setgroups(groups.len(), groups.as_ptr()) };
    answered(result.into(), || format!("setgroups {groups:?}"))?;
    // SAFETY: a size of 0 only asks for the count.
    let count = unsafe { libc::getgroups(0, std::ptr::null_mut()) };
    ensure!(usize::try_from(count) == Ok(groups.len()), "verify groups: {count}");
    Ok(())
}

/// Real, effective and saved group.
pub fn setresgid(gid: u32) -> Result<()> {
    // SAFETY: numbers only.
    let set = unsafe { libc::setresgid(gid, gid, gid) };
    // SAFETY: `all_three` hands in three places for three ids.
    all_three("resgid", gid, set, |real, effective, saved| unsafe { libc::getresgid(real, effective, saved) })
}

/// Real, effective and saved user. Leaving root empties the permitted and effective sets.
pub fn setresuid(uid: u32) -> Result<()> {
    // SAFETY: numbers only.
    let set = unsafe { libc::setresuid(uid, uid, uid) };
    // SAFETY: `all_three` hands in three places for three ids.
    all_three("resuid", uid, set, |real, effective, saved| unsafe { libc::getresuid(real, effective, saved) })
}

/// Takes the answer of a setting call, reads the three ids back, and compares.
fn all_three(
    call: &str,
    id: u32,
    set: c_int,
    get: impl FnOnce(&mut u32, &mut u32, &mut u32) -> c_int,
) -> Result<()> {
    answered(set.into(), || format!("set{call} {id}"))?;
    let mut now = [u32::MAX; 3];
    let [real, effective, saved] = &mut now;
    answered(get(real, effective, saved).into(), || format!("get{call}"))?;
    ensure!(now == [id; 3], "verify {call}: {now:?}");
    Ok(())
}

// What else a process inherits.

/// Sets one limit and reads it back; see [`limit`].
pub fn setrlimit(limit: Rlimit) -> Result<Option<Clamped>> {
    let what = || format!("setrlimit {}", rlimit::name(limit.resource));
    let set = match prlimit(limit.resource, Some((limit.soft, limit.hard))) {
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => {
            let (_, present) = prlimit(limit.resource, None).with_context(what)?;
            let hard = limit.hard.min(present);
            prlimit(limit.resource, Some((limit.soft.min(hard), hard))).with_context(what)?;
            hard
        }
        result => {
            result.with_context(what)?;
            limit.hard
        }
    };
    let (soft, hard) = prlimit(limit.resource, None).with_context(what)?;
    if hard != set || soft != limit.soft.min(set) {
        bail!("verify {}: {soft}:{hard}, not {}:{set}", rlimit::name(limit.resource), limit.soft);
    }
    let clamped = Clamped { resource: limit.resource, wanted: limit.hard, hard };
    Ok((hard < limit.hard).then_some(clamped))
}

/// prlimit(2) on this process: the limits before the call, soft and hard.
fn prlimit(resource: u32, new: Option<(u64, u64)>) -> io::Result<(u64, u64)> {
    let new = new.map(|(rlim_cur, rlim_max)| libc::rlimit64 { rlim_cur, rlim_max });
    let new = new.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let mut old = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `new` is null or a limit that outlives the call, `old` is a place for one.
    let result = unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, new, &raw mut old) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok((old.rlim_cur, old.rlim_max)) }
}

/// Gives this process a new, empty, anonymous session keyring: keyrings have no namespace, and the
/// inherited one is the administrator's. Only a kernel without keys is excused.
pub fn join_session_keyring() -> Result<()> {
    let name: *const libc::c_char = std::ptr::null();
    // SAFETY: a null name asks for an anonymous keyring; nothing is read.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, name) };
    match io::Error::last_os_error().raw_os_error() {
        Some(libc::ENOSYS) if result < 0 => Ok(()),
        _ => answered(result, || "keyctl KEYCTL_JOIN_SESSION_KEYRING".into()),
    }
}

/// The plain Linux execution domain, with address randomisation.
pub fn reset_personality() -> Result<()> {
    const QUERY: c_ulong = 0xffff_ffff;
    // SAFETY: numbers only.
    answered(unsafe { libc::personality(0) }.into(), || "personality 0".into())?;
    // SAFETY: numbers only.
    let now = unsafe { libc::personality(QUERY) };
    ensure!(now == 0, "verify personality: {now:#x}");
    Ok(())
}

/// All CPUs that the cgroup allows, whatever the caller was pinned to.
pub fn reset_affinity() -> Result<()> {
    let mask = [c_ulong::MAX; CPU_MASK_WORDS];
    // SAFETY: the size is the mask's; the kernel reads no more than that.
    let result = unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(&mask), mask.as_ptr()) };
    answered(result, || "sched_setaffinity".into())
}

/// The mask of file modes; gives the one before.
pub fn umask(mask: u32) -> u32 {
    // SAFETY: a number only, and the call cannot fail.
    unsafe { libc::umask(mask) }
}

/// Closes every descriptor from 3 on but these. For a process that never returns to code which
/// still owns one of the others.
pub fn close_all_but(keep: &[BorrowedFd<'_>]) -> Result<()> {
    let mut kept: Vec<c_uint> = keep.iter().map(|fd| fd.as_raw_fd().cast_unsigned()).collect();
    kept.sort_unstable();
    let mut first = 3;
    for number in kept {
        if number > first {
            close_range(first, number - 1, 0)?;
        }
        first = first.max(number + 1);
    }
    close_range(first, c_uint::MAX, 0)
}

/// Closes every descriptor from `first` on at execve: the pipe that tells of a failed execve stays.
pub fn close_range_at_exec_from(first: c_uint) -> Result<()> {
    close_range(first, c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

fn close_range(first: c_uint, last: c_uint, flags: c_uint) -> Result<()> {
    // SAFETY: the caller uses none of these descriptors again: it is about to become another
    // program, or goes on for good with those it has named.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    answered(result, || format!("close_range {first}"))
}

// The filter.

const _: () = assert!(size_of::<Instruction>() == size_of::<libc::sock_filter>());
const _: () = assert!(align_of::<Instruction>() == align_of::<libc::sock_filter>());

/// Installs `program` for the calling thread and all it starts. Needs no_new_privs, or SYS_ADMIN
/// in its user namespace. Cannot be undone.
pub fn install_filter(program: &[Instruction]) -> Result<()> {
    let length = u16::try_from(program.len()).context("install filter: too long")?;
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
    let no_flags: c_uint = 0;
    // SAFETY: `Instruction` is laid out as `sock_filter` (checked above), the kernel copies
    // `length` of them and writes nothing.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, no_flags, &raw const program)
    };
    answered(result, || format!("seccomp: install a filter of {length} instructions"))
}
