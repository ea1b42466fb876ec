//! The system call filter of a jail.
//!
//! Pure: from what the jail may do to a program for the kernel, in microseconds. Owns the policy
//! (which group of calls is open when); the calls are in `calls`, the argument checks in `check`,
//! the code generation in `tree`. An allow list: what is known but not open gets EPERM, what is
//! not known ENOSYS, and another architecture's calls (i386 among them) end the process. Verdicts
//! that need no argument depend on architecture and number alone, so that the kernel remembers
//! them and the filter costs those calls nothing.

#![forbid(unsafe_code)]

pub mod calls;
mod check;
#[cfg(test)]
mod tests;
mod tree;

pub use tree::Instruction;

use super::capability::known;
use super::{Allowances, Kind};
use calls::{CALLS, Call, Group, NONE, NUMBERS};
use check::{Check, NEW_NAMESPACE, NEW_TIME, NEW_USER};
use tree::{Range, Verdict};

/// The most instructions the kernel takes, `BPF_MAXINSNS`.
pub const INSTRUCTIONS_MAX: usize = 4096;

const EPERM: Verdict = Verdict::Errno(1);
const ENOSYS: Verdict = Verdict::Errno(38);

/// x32 calls have this bit, and it must not lead around the rules for the plain numbers.
const X32: u32 = 0x4000_0000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "a build uses one of them, the tests check both")]
enum Architecture {
    X86_64,
    Aarch64,
}

impl Architecture {
    #[cfg(target_arch = "x86_64")]
    const NATIVE: Self = Self::X86_64;
    #[cfg(target_arch = "aarch64")]
    const NATIVE: Self = Self::Aarch64;

    /// `AUDIT_ARCH_X86_64` and `AUDIT_ARCH_AARCH64`, `linux/audit.h`.
    const fn audit_number(self) -> u32 {
        match self {
            Self::X86_64 => 0xc000_003e,
            Self::Aarch64 => 0xc000_00b7,
        }
    }

    const fn number(self, call: &Call) -> u16 {
        match self {
            Self::X86_64 => call.x86_64,
            Self::Aarch64 => call.aarch64,
        }
    }
}

/// What the verdicts depend on.
#[derive(Clone, Copy)]
struct Rules {
    kind: Kind,
    capabilities: u64,
    allowances: Allowances,
}

/// The filter of a jail of this kind that keeps `capabilities` (a mask), for the architecture this
/// program was built for.
pub fn program(kind: Kind, capabilities: u64, allowances: Allowances) -> Vec<Instruction> {
    compile(Architecture::NATIVE, Rules { kind, capabilities, allowances })
}

fn compile(architecture: Architecture, rules: Rules) -> Vec<Instruction> {
    tree::compile(architecture.audit_number(), &ranges(architecture, rules))
}

/// Neighbouring numbers with the same verdict are one range.
fn ranges(architecture: Architecture, rules: Rules) -> Vec<Range> {
    let mut verdicts = [ENOSYS; NUMBERS];
    for call in CALLS {
        let number = architecture.number(call);
        if number != NONE {
            verdicts[usize::from(number)] = rules.verdict(call.group);
        }
    }
    let mut ranges: Vec<Range> = Vec::with_capacity(NUMBERS);
    for (first, verdict) in (0..).zip(verdicts) {
        if ranges.last().is_none_or(|last| last.verdict != verdict) {
            ranges.push(Range { first, verdict });
        }
    }
    if architecture == Architecture::X86_64 {
        ranges.push(Range { first: X32, verdict: EPERM });
    }
    ranges
}

impl Rules {
    fn verdict(self, group: Group) -> Verdict {
        match group {
            Group::Always => Verdict::Allow,
            Group::Mount => open(self.mounts()),
            Group::Ptrace => open(self.allowances.ptrace || self.has(const { known("SYS_PTRACE") })),
            Group::Admin => open(self.has(const { known("SYS_ADMIN") })),
            Group::Chroot => open(self.has(const { known("SYS_CHROOT") })),
            Group::Boot => open(self.has(const { known("SYS_BOOT") })),
            Group::Clock => open(self.has(const { known("SYS_TIME") })),
            Group::Log => open(self.has(const { known("SYSLOG") })),
            Group::Accounting => open(self.has(const { known("SYS_PACCT") })),
            Group::Terminal => open(self.has(const { known("SYS_TTY_CONFIG") })),
            Group::Numa => open(self.has(const { known("SYS_NICE") })),
            Group::Handle => open(self.has(const { known("DAC_READ_SEARCH") })),
            Group::Clone => Verdict::Check(Check::NoBits(self.closed_namespaces())),
            Group::Unshare => Verdict::Check(Check::NoBits(self.closed_to_unshare())),
            Group::Ioctl => Verdict::Check(Check::Request),
            Group::Socket => Verdict::Check(Check::Family),
            Group::Personality => Verdict::Check(Check::Domain),
            Group::Absent => ENOSYS,
            Group::Never => EPERM,
        }
    }

    fn has(self, capability: u64) -> bool {
        self.capabilities & capability != 0
    }

    /// Mounting, and the namespaces that go with it, inside the jail's user namespace.
    fn mounts(self) -> bool {
        self.allowances.mount || self.kind == Kind::System
    }

    /// A new user namespace gives every capability over the kernel's less tried code, so none ever.
    fn closed_namespaces(self) -> u32 {
        if self.mounts() { NEW_USER } else { NEW_NAMESPACE }
    }

    fn closed_to_unshare(self) -> u32 {
        if self.mounts() { NEW_USER } else { NEW_NAMESPACE | NEW_TIME }
    }
}

fn open(holds: bool) -> Verdict {
    if holds { Verdict::Allow } else { EPERM }
}
