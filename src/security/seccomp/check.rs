//! Calls whose arguments decide: a handful of instructions each, entered with the call known.
//!
//! A filter sees registers only. Every argument looked at here is an `int` or smaller to the
//! kernel, so the low half of its register is compared: bits above it cannot slip a value past.

#![forbid(unsafe_code)]

use super::tree::{ALLOW, Instruction, JUMP_ANY_BIT, JUMP_EQUAL, JUMP_GREATER, errno, give, load, test};

/// An argument check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// EPERM when the first argument has any of these bits.
    NoBits(u32),
    /// EPERM for the requests that type into a terminal.
    Request,
    /// By address family and, for netlink, by protocol.
    Family,
    /// EPERM for all but the usual execution domains.
    Domain,
}

/// New namespaces, `linux/sched.h`: mount, cgroup, uts, ipc, user, pid, net.
pub const NEW_NAMESPACE: u32 = 0x7e02_0000;
/// A new user namespace.
pub const NEW_USER: u32 = 0x1000_0000;
/// A new time namespace; to `clone` this bit is part of the exit signal.
pub const NEW_TIME: u32 = 0x80;

/// TIOCSTI and TIOCLINUX: both put characters into a terminal's input (CVE-2017-5226, CVE-2023-28100).
const TYPING: [u32; 2] = [0x5412, 0x541c];

/// AF_RXRPC, AF_ALG, AF_VSOCK: page-cache writes (CVE-2026-43284, CVE-2026-31431), and a way to
/// the hypervisor that no network namespace bounds.
const REFUSED_FAMILIES: [u32; 3] = [33, 38, 40];
/// AF_MCTP, the newest family of kernel 6.18; later ones are not there for the jail.
const NEWEST_FAMILY: u32 = 45;
const AF_NETLINK: u32 = 16;
const NETLINK_AUDIT: u32 = 9;

/// Linux, Linux with 32-bit addresses, the same two with `uname` 2.6, and the query.
const DOMAINS: [u32; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

const EPERM: Instruction = give(errno(1));
const EAFNOSUPPORT: Instruction = give(errno(97));
const ALLOWED: Instruction = give(ALLOW);

/// Loads the low half of an argument; both architectures are little-endian.
const fn argument(index: u32) -> Instruction {
    load(16 + 8 * index)
}

const REQUEST: &[Instruction] =
    &[argument(1), test(JUMP_EQUAL, TYPING[0], 2, 0), test(JUMP_EQUAL, TYPING[1], 1, 0), ALLOWED, EPERM];

/// Audit's own tools take EAFNOSUPPORT for "no audit in this kernel" and go on.
const FAMILY: &[Instruction] = &[
    argument(0),
    test(JUMP_EQUAL, AF_NETLINK, 4, 0),
    test(JUMP_GREATER, NEWEST_FAMILY, 6, 0),
    test(JUMP_EQUAL, REFUSED_FAMILIES[0], 6, 0),
    test(JUMP_EQUAL, REFUSED_FAMILIES[1], 5, 0),
    test(JUMP_EQUAL, REFUSED_FAMILIES[2], 4, 2),
    argument(2),
    test(JUMP_EQUAL, NETLINK_AUDIT, 1, 0),
    ALLOWED,
    EAFNOSUPPORT,
    EPERM,
];

const DOMAIN: &[Instruction] = &[
    argument(0),
    test(JUMP_EQUAL, DOMAINS[0], 5, 0),
    test(JUMP_EQUAL, DOMAINS[1], 4, 0),
    test(JUMP_EQUAL, DOMAINS[2], 3, 0),
    test(JUMP_EQUAL, DOMAINS[3], 2, 0),
    test(JUMP_EQUAL, DOMAINS[4], 1, 0),
    EPERM,
    ALLOWED,
];

/// The instructions of `check`; they end in an answer on every path.
pub fn instructions(check: Check) -> Vec<Instruction> {
    match check {
        Check::NoBits(bits) => vec![argument(0), test(JUMP_ANY_BIT, bits, 1, 0), ALLOWED, EPERM],
        Check::Request => REQUEST.to_vec(),
        Check::Family => FAMILY.to_vec(),
        Check::Domain => DOMAIN.to_vec(),
    }
}
