//! From verdicts by number to a filter: a balanced tree of comparisons in classic BPF.
//!
//! The kernel runs the filter once for each number when it is installed, to learn which calls are
//! always allowed, and then for each call that is not. A list costs hundreds of steps there; the
//! tree costs the logarithm of the number of ranges. Nothing here knows what a call is.

#![forbid(unsafe_code)]

use super::check::{self, Check};

/// One instruction of classic BPF, laid out as `struct sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    pub code: u16,
    /// Instructions to skip when the comparison holds.
    pub jt: u8,
    /// Instructions to skip when it does not.
    pub jf: u8,
    pub k: u32,
}

/// The codes used here: `linux/bpf_common.h`, their parts already or-ed.
pub const LOAD: u16 = 0x20;
pub const JUMP: u16 = 0x05;
pub const JUMP_EQUAL: u16 = 0x15;
pub const JUMP_GREATER: u16 = 0x25;
pub const JUMP_AT_LEAST: u16 = 0x35;
pub const JUMP_ANY_BIT: u16 = 0x45;
pub const RETURN: u16 = 0x06;

/// What a filter answers: `linux/seccomp.h`.
pub const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
pub const KILL_PROCESS: u32 = 0x8000_0000;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

/// The answer to one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Allow,
    Errno(u16),
    Check(Check),
}

/// All numbers from `first` up to the next range's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub first: u32,
    pub verdict: Verdict,
}

pub const fn load(offset: u32) -> Instruction {
    Instruction { code: LOAD, jt: 0, jf: 0, k: offset }
}

pub const fn give(answer: u32) -> Instruction {
    Instruction { code: RETURN, jt: 0, jf: 0, k: answer }
}

/// The answer that fails a call with this error.
pub const fn errno(number: u16) -> u32 {
    ERRNO | number as u32
}

pub const fn test(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}

/// The filter for one architecture (an `AUDIT_ARCH_` number); a call of any other kills the process.
/// `ranges` are sorted, the first starts at 0, and the last has no end.
pub fn compile(architecture: u32, ranges: &[Range]) -> Vec<Instruction> {
    let mut backwards = Vec::with_capacity(ranges.len() * 4);
    grow(&mut backwards, ranges);
    backwards.push(load(NUMBER));
    backwards.push(give(KILL_PROCESS));
    backwards.push(test(JUMP_EQUAL, architecture, 1, 0));
    backwards.push(load(ARCHITECTURE));
    backwards.reverse();
    backwards
}

/// Adds the tree for `ranges`, last instruction first, so that every distance is known when the
/// comparison that jumps over it is written: only forward jumps exist.
fn grow(backwards: &mut Vec<Instruction>, ranges: &[Range]) {
    if let [range] = ranges {
        return leaf(backwards, range.verdict);
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    grow(backwards, high);
    let end = backwards.len();
    grow(backwards, low);
    let distance = backwards.len() - end;
    if let Ok(near) = u8::try_from(distance) {
        backwards.push(test(JUMP_AT_LEAST, high[0].first, near, 0));
    } else {
        // A conditional jump reaches 255 instructions; this one goes by an unconditional jump.
        let far = u32::try_from(distance).expect("a filter has far fewer than 2^32 instructions");
        backwards.push(Instruction { code: JUMP, jt: 0, jf: 0, k: far });
        backwards.push(test(JUMP_AT_LEAST, high[0].first, 0, 1));
    }
}

fn leaf(backwards: &mut Vec<Instruction>, verdict: Verdict) {
    match verdict {
        Verdict::Allow => backwards.push(give(ALLOW)),
        Verdict::Errno(number) => backwards.push(give(errno(number))),
        Verdict::Check(check) => backwards.extend(check::instructions(check).iter().rev()),
    }
}
