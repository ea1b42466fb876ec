//! The filter, run by a small interpreter of classic BPF.

use super::check::{NEW_NAMESPACE, NEW_TIME, NEW_USER};
use super::tree::{
    ALLOW, JUMP, JUMP_ANY_BIT, JUMP_AT_LEAST, JUMP_EQUAL, JUMP_GREATER, KILL_PROCESS, LOAD, RETURN, errno,
};
use super::*;
use crate::security::capability::{APP, SYSTEM};

const BOTH: [Architecture; 2] = [Architecture::X86_64, Architecture::Aarch64];
const OPEN: Allowances = Allowances { mount: true, ptrace: true };
const SHUT: Allowances = Allowances { mount: false, ptrace: false };

const PROFILES: [Rules; 5] = [
    Rules { kind: Kind::App, capabilities: APP, allowances: SHUT },
    Rules { kind: Kind::App, capabilities: 0, allowances: SHUT },
    Rules { kind: Kind::App, capabilities: APP | 1 << 21, allowances: OPEN },
    Rules { kind: Kind::System, capabilities: SYSTEM, allowances: SHUT },
    Rules { kind: Kind::System, capabilities: !0, allowances: OPEN },
];

const EPERM: u32 = errno(1);
const ENOSYS: u32 = errno(38);
const EAFNOSUPPORT: u32 = errno(97);

/// What `struct seccomp_data` holds, as the kernel lays it out.
#[derive(Clone, Copy)]
struct Data {
    number: u32,
    architecture: u32,
    arguments: [u64; 6],
}

impl Data {
    fn word(&self, offset: u32) -> u32 {
        match offset {
            0 => self.number,
            4 => self.architecture,
            16..=60 if offset.is_multiple_of(4) => {
                let argument = self.arguments[(offset as usize - 16) / 8];
                let half = if offset.is_multiple_of(8) { argument } else { argument >> 32 };
                u32::try_from(half & 0xffff_ffff).unwrap()
            }
            _ => panic!("load at {offset}"),
        }
    }
}

/// The answer, the instructions it took, and whether an argument was read on the way.
fn run(program: &[Instruction], data: Data) -> (u32, usize, bool) {
    let (mut at, mut word, mut steps, mut arguments) = (0, 0, 0, false);
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        steps += 1;
        let holds = match code {
            LOAD => {
                word = data.word(k);
                arguments |= k >= 16;
                true
            }
            RETURN => return (k, steps, arguments),
            JUMP => {
                at += k as usize;
                true
            }
            JUMP_EQUAL => word == k,
            JUMP_GREATER => word > k,
            JUMP_AT_LEAST => word >= k,
            JUMP_ANY_BIT => word & k != 0,
            _ => panic!("code {code:#x}"),
        };
        at += 1 + usize::from(if holds { jt } else { jf });
    }
}

fn answer(architecture: Architecture, rules: Rules, number: u32, arguments: [u64; 6]) -> u32 {
    let data = Data { number, architecture: architecture.audit_number(), arguments };
    run(&compile(architecture, rules), data).0
}

fn number(architecture: Architecture, name: &str) -> Option<u32> {
    let call = CALLS.iter().find(|call| call.name == name).unwrap_or_else(|| panic!("no call {name}"));
    Some(architecture.number(call)).filter(|&number| number != NONE).map(u32::from)
}

/// The first two arguments decide; the rest are noise that must not.
fn check(rules: Rules, name: &str, arguments: [u64; 3], expect: u32) {
    for architecture in BOTH {
        let Some(number) = number(architecture, name) else { continue };
        for noise in [0, u64::from(u32::MAX) << 32] {
            let [a, b, c] = arguments.map(|argument| argument | noise);
            let found = answer(architecture, rules, number, [a, b, c, !0, !0, !0]);
            assert_eq!(found, expect, "{architecture:?} {name} {arguments:x?}: {found:#x}");
        }
    }
}

/// Every number under every profile: the tree says what the table says.
#[test]
fn the_tree_agrees_with_the_table() {
    for (architecture, rules) in BOTH.into_iter().flat_map(|a| PROFILES.map(|rules| (a, rules))) {
        let program = compile(architecture, rules);
        for number in (0..=600).chain([9999, X32 - 1, u32::MAX >> 2]) {
            let call = CALLS.iter().find(|call| u32::from(architecture.number(call)) == number);
            let data = Data { number, architecture: architecture.audit_number(), arguments: [0; 6] };
            let expect = match call.map(|call| rules.verdict(call.group)) {
                None => ENOSYS,
                Some(Verdict::Errno(number)) => errno(number),
                Some(Verdict::Allow | Verdict::Check(_)) => ALLOW,
            };
            let (found, steps, arguments) = run(&program, data);
            assert_eq!(found, expect, "{architecture:?} {number}");
            assert_eq!(arguments, matches!(call.map(|c| rules.verdict(c.group)), Some(Verdict::Check(_))));
            assert!(steps <= if arguments { 24 } else { 14 }, "{number} takes {steps}");
        }
    }
}

#[test]
fn groups_open_with_their_key_and_nothing_else() {
    let [app, bare, mount, system, all] = PROFILES;
    let table: &[(&str, [bool; 5])] = &[
        // app, app without capabilities, app with mount and ptrace, system, everything
        ("read", [true; 5]),
        ("execve", [true; 5]),
        ("mseal", [true; 5]),
        ("futex_wait", [true; 5]),
        ("mount", [false, false, true, true, true]),
        ("open_tree_attr", [false, false, true, true, true]),
        ("pivot_root", [false, false, true, true, true]),
        ("setns", [false, false, true, true, true]),
        ("ptrace", [false, false, true, true, true]),
        ("chroot", [true, false, true, true, true]),
        ("reboot", [false, false, false, true, true]),
        ("mbind", [false, false, false, true, true]),
        ("clock_settime", [false, false, false, false, true]),
        ("syslog", [false, false, false, false, true]),
        ("open_by_handle_at", [false, false, false, false, true]),
        ("keyctl", [false; 5]),
        ("add_key", [false; 5]),
        ("io_uring_setup", [false; 5]),
        ("bpf", [false; 5]),
        ("perf_event_open", [false; 5]),
        ("userfaultfd", [false; 5]),
        ("kexec_file_load", [false; 5]),
        ("finit_module", [false; 5]),
        ("quotactl", [false; 5]),
    ];
    for (name, expect) in table {
        for (rules, &open) in [app, bare, mount, system, all].into_iter().zip(expect) {
            check(rules, name, [0; 3], if open { ALLOW } else { EPERM });
        }
    }
    for rules in PROFILES {
        check(rules, "clone3", [0; 3], ENOSYS);
    }
}

#[test]
fn arguments_decide_by_their_low_half() {
    let [app, _, mount, system, _] = PROFILES;
    let new_net = 0x4000_0000;
    for rules in PROFILES {
        check(rules, "ioctl", [0, 0x5413, 0], ALLOW);
        check(rules, "ioctl", [0, 0x5412, 0], EPERM);
        check(rules, "ioctl", [0, 0x541c, 0], EPERM);
        check(rules, "ioctl", [0x5412, 0x541b, 0], ALLOW);
        for family in [1, 2, 10, 17, 32, 34, 37, 39, 41, 45] {
            check(rules, "socket", [family, 3, 9], ALLOW);
        }
        for family in [33, 38, 40] {
            check(rules, "socket", [family, 1, 0], EPERM);
        }
        for family in [46, 1000, 0xffff_ffff] {
            check(rules, "socket", [family, 1, 0], EAFNOSUPPORT);
        }
        check(rules, "socket", [16, 3, 0], ALLOW);
        check(rules, "socket", [16, 3, 9], EAFNOSUPPORT);
        for domain in [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff] {
            check(rules, "personality", [domain, 0, 0], ALLOW);
        }
        for domain in [1, 0x4_0000, 0x40_0000, 0x2_0009] {
            check(rules, "personality", [domain, 0, 0], EPERM);
        }
        for call in ["clone", "unshare"] {
            check(rules, call, [NEW_USER.into(), 0, 0], EPERM);
            check(rules, call, [(NEW_USER | 0x2_0000).into(), 0, 0], EPERM);
            check(rules, call, [0x100, 0, 0], ALLOW);
        }
        check(rules, "clone", [0x0121_2011, 0, 0], ALLOW);
    }
    for (rules, expect) in [(app, EPERM), (mount, ALLOW), (system, ALLOW)] {
        check(rules, "clone", [new_net | 0x11, 0, 0], expect);
        check(rules, "unshare", [new_net, 0, 0], expect);
        check(rules, "unshare", [NEW_TIME.into(), 0, 0], expect);
        check(rules, "clone", [NEW_TIME.into(), 0, 0], ALLOW);
        for bit in (0..32).map(|bit| 1u32 << bit).filter(|bit| NEW_NAMESPACE & !NEW_USER & bit != 0) {
            check(rules, "clone", [bit.into(), 0, 0], expect);
        }
    }
}

#[test]
fn other_architectures_and_x32_find_no_way_in() {
    let program = compile(Architecture::X86_64, PROFILES[4]);
    for architecture in [0x4000_0003, 0xc000_00b7, 0x4000_0028, 0] {
        let data = Data { number: 0, architecture, arguments: [0; 6] };
        assert_eq!(run(&program, data).0, KILL_PROCESS, "{architecture:#x}");
    }
    for low in 0..=600 {
        assert_eq!(answer(Architecture::X86_64, PROFILES[4], X32 | low, [0; 6]), EPERM, "{low}");
    }
    assert_eq!(answer(Architecture::X86_64, PROFILES[4], u32::MAX, [0; 6]), EPERM);
    assert_eq!(answer(Architecture::Aarch64, PROFILES[4], X32, [0; 6]), ENOSYS);
}

/// The kernel accepts only forward jumps that stay inside, and a bounded size.
#[test]
fn programs_are_well_formed_and_small() {
    for (architecture, rules) in BOTH.into_iter().flat_map(|a| PROFILES.map(|rules| (a, rules))) {
        let program = compile(architecture, rules);
        assert!((100..500).contains(&program.len()), "{}", program.len());
        assert!(program.len() < INSTRUCTIONS_MAX);
        for (at, instruction) in program.iter().enumerate() {
            let far = match instruction.code {
                JUMP => instruction.k as usize,
                _ => usize::from(instruction.jt.max(instruction.jf)),
            };
            let last = usize::from(instruction.code != RETURN);
            assert!(at + far + last < program.len(), "{at}: {instruction:?}");
        }
    }
}

/// A tree too wide for the 8-bit jumps still finds every number.
#[test]
fn far_jumps_reach() {
    let range = |number: u16| Range { first: number.into(), verdict: Verdict::Errno(number) };
    let program = tree::compile(7, &(0..2000).map(range).collect::<Vec<_>>());
    assert!(program.iter().any(|instruction| instruction.code == JUMP));
    for number in 0..2000 {
        let data = Data { number: number.into(), architecture: 7, arguments: [0; 6] };
        assert_eq!(run(&program, data).0, errno(number), "{number}");
    }
}
