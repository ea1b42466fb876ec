//! Which device nodes a jail may open: a list for cgroup v1, a small program for v2. Pure but for
//! the look at a named device and the writing of the v1 list.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::hierarchies::join;
use super::parents::{read, write};
use crate::sys::cgroup::{Tree, device_of};

/// One line of v1's `devices.allow`; `None` is any minor number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    kind: char,
    major: u32,
    minor: Option<u32>,
    access: Access,
}

/// Read, write, mknod, as the bits of the v2 program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Access(u32);

const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const ALL: Access = Access(MKNOD | READ | WRITE);

/// null, zero, full, random, urandom, tty, ptmx, and every pts, which the console is one of. The
/// host's own console (5:1) is not among them.
const USUAL: &[(u32, Option<u32>)] = &[
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(2)),
    (136, None),
];

/// The usual rules and `extra`, entries of `allow.devices`.
pub fn rules(extra: &[String]) -> Result<Vec<Rule>> {
    let usual = USUAL.iter().map(|&(major, minor)| Ok(Rule { kind: 'c', major, minor, access: ALL }));
    usual.chain(extra.iter().map(|entry| rule(entry))).collect()
}

/// Whether an entry of `allow.devices` is well formed: `/dev/fuse`, or `c 10:229 rwm`.
pub fn check(entry: &str) -> Result<(), String> {
    let form = if entry.starts_with('/') { Some(()) } else { numbered(entry).map(drop) };
    form.ok_or_else(|| format!("`{entry}` is not a device: give its path, or numbers such as `c 10:229 rwm`"))
}

fn rule(entry: &str) -> Result<Rule> {
    if let Err(reason) = check(entry) {
        bail!(reason);
    }
    if let Some(rule) = numbered(entry) {
        return Ok(rule);
    }
    let (kind, major, minor) = device_of(Path::new(entry)).with_context(|| format!("look at {entry}"))?;
    Ok(Rule { kind, major, minor: Some(minor), access: ALL })
}

fn numbered(entry: &str) -> Option<Rule> {
    let words: Vec<&str> = entry.split_ascii_whitespace().collect();
    let [kind @ ("c" | "b"), numbers, access] = words[..] else { return None };
    let (major, minor) = numbers.split_once(':')?;
    let minor = if minor == "*" { None } else { Some(minor.parse().ok()?) };
    let kind = if kind == "c" { 'c' } else { 'b' };
    Some(Rule { kind, major: major.parse().ok()?, minor, access: Access::parse(access)? })
}

impl Access {
    fn parse(text: &str) -> Option<Self> {
        let bit = |c| {
            Some(match c {
                'r' => READ,
                'w' => WRITE,
                'm' => MKNOD,
                _ => return None,
            })
        };
        let bits = text.chars().try_fold(0, |bits, c| Some(bits | bit(c)?))?;
        (bits != 0).then_some(Self(bits))
    }

    fn text(self) -> String {
        [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')]
            .iter()
            .filter(|(bit, _)| self.0 & bit != 0)
            .map(|(_, c)| c)
            .collect()
    }
}

impl Rule {
    /// As `devices.allow` takes it and `devices.list` shows it.
    fn line(&self) -> String {
        let minor = self.minor.map_or_else(|| "*".to_owned(), |n| n.to_string());
        format!("{} {}:{minor} {}", self.kind, self.major, self.access.text())
    }
}

/// Denies everything in a v1 cgroup, then allows `rules`, and reads the list back.
pub fn write_one(tree: &Tree, path: &str, rules: &[Rule]) -> Result<()> {
    write(tree, &join(path, "devices.deny"), "a")?;
    for rule in rules {
        write(tree, &join(path, "devices.allow"), &rule.line())?;
    }
    let list = read(tree, &join(path, "devices.list"))?;
    if list.lines().any(|line| line.starts_with('a')) {
        bail!("{}: every device is open after `a` was denied", tree.full(path).display());
    }
    let absent = rules.iter().map(Rule::line).find(|line| !list.lines().any(|found| covers(found, line)));
    absent
        .map_or(Ok(()), |line| bail!("{}: `{line}` was allowed but is not listed", tree.full(path).display()))
}

/// The kernel merges the rights of two rules for one device into one line.
fn covers(found: &str, line: &str) -> bool {
    let split =
        |text: &str| text.rsplit_once(' ').map(|(device, access)| (device.to_owned(), Access::parse(access)));
    match (split(found), split(line)) {
        (Some((a, Some(has))), Some((b, Some(wants)))) => a == b && wants.0 & !has.0 == 0,
        _ => false,
    }
}

/// The v2 filter for `rules`, as `struct bpf_insn` words: eight bytes of opcode, two registers, a
/// jump offset and a constant. It returns 1 for what is allowed and 0 for all else.
pub fn program(rules: &[Rule]) -> Vec<u64> {
    let mut code = vec![
        load(TYPE, 0),
        copy(ACCESS, TYPE),
        constant(SHIFT_RIGHT, ACCESS, 16),
        constant(AND, TYPE, 0xffff),
        load(MAJOR, 4),
        load(MINOR, 8),
    ];
    for rule in rules {
        code.extend(block(rule));
    }
    code.extend([constant(SET, RESULT, 0), EXIT]);
    code
}

// Registers. The kernel passes a `struct bpf_cgroup_dev_ctx` in ARGUMENT: access << 16 | type,
// major, minor, each 32 bits.
const RESULT: u8 = 0;
const ARGUMENT: u8 = 1;
const TYPE: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
// Opcodes of Documentation/bpf/standardization/instruction-set.rst, 32-bit arithmetic.
const LOAD_WORD: u8 = 0x61;
const COPY: u8 = 0xbc;
const SET: u8 = 0xb4;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP_UNLESS_EQUAL: u8 = 0x56;
const JUMP_IF_SET: u8 = 0x46;
const EXIT: u64 = 0x95;

fn word(code: u8, to: u8, from: u8, offset: i16, value: u32) -> u64 {
    u64::from_ne_bytes({
        let (o, v) = (offset.to_ne_bytes(), value.to_ne_bytes());
        let registers = if cfg!(target_endian = "little") { from << 4 | to } else { to << 4 | from };
        [code, registers, o[0], o[1], v[0], v[1], v[2], v[3]]
    })
}

fn load(to: u8, offset: i16) -> u64 {
    word(LOAD_WORD, to, ARGUMENT, offset, 0)
}

fn copy(to: u8, from: u8) -> u64 {
    word(COPY, to, from, 0, 0)
}

fn constant(code: u8, register: u8, value: u32) -> u64 {
    word(code, register, 0, 0, value)
}

/// One rule: any mismatch jumps behind it, to the next.
fn block(rule: &Rule) -> Vec<u64> {
    let mut tests = vec![(JUMP_UNLESS_EQUAL, TYPE, if rule.kind == 'b' { 1 } else { 2 })];
    if rule.access != ALL {
        tests.push((JUMP_IF_SET, ACCESS, ALL.0 & !rule.access.0));
    }
    tests.push((JUMP_UNLESS_EQUAL, MAJOR, rule.major));
    tests.extend(rule.minor.map(|minor| (JUMP_UNLESS_EQUAL, MINOR, minor)));
    let length = i16::try_from(tests.len()).expect("four tests at most");
    let mut code: Vec<u64> = (0..length)
        .zip(tests)
        .map(|(at, (code, register, value))| word(code, register, 0, length - at + 1, value))
        .collect();
    code.extend([constant(SET, RESULT, 1), EXIT]);
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries() {
        let check = |entry: &str, expect: Option<&str>| {
            let line = rule(entry).ok().map(|rule| rule.line());
            assert_eq!(line.as_deref(), expect, "{entry}");
        };
        check("c 10:229 rwm", Some("c 10:229 rwm"));
        check("c 10:229 mr", Some("c 10:229 rm"));
        check("b 7:* rw", Some("b 7:* rw"));
        check("/dev/null", Some("c 1:3 rwm"));
        for bad in [
            "",
            "a *:* rwm",
            "c *:* rwm",
            "c 1:3",
            "c 1:3 x",
            "c 1:3 rwm extra",
            "/etc",
            "/dev/none",
            "dev/null",
        ] {
            check(bad, None);
        }
    }

    /// Runs a program as the kernel would, on one access.
    fn run(code: &[u64], kind: u32, access: u32, major: u32, minor: u32) -> u32 {
        let (input, mut r, mut at) = ([access << 16 | kind, major, minor], [0_u32; 8], 0);
        loop {
            let [op, registers, o0, o1, v @ ..] = code[at].to_ne_bytes();
            let (to, from, value) =
                (usize::from(registers & 15), usize::from(registers >> 4), u32::from_ne_bytes(v));
            let offset = i16::from_ne_bytes([o0, o1]);
            let mut jump = false;
            match op {
                LOAD_WORD => r[to] = input[usize::try_from(offset).unwrap() / 4],
                COPY => r[to] = r[from],
                SET => r[to] = value,
                AND => r[to] &= value,
                SHIFT_RIGHT => r[to] >>= value,
                JUMP_UNLESS_EQUAL => jump = r[to] != value,
                JUMP_IF_SET => jump = r[to] & value != 0,
                0x95 => return r[0],
                other => panic!("opcode {other:#x}"),
            }
            at += 1 + if jump { usize::try_from(offset).unwrap() } else { 0 };
        }
    }

    #[test]
    fn the_program_allows_the_rules_and_nothing_else() {
        let code = program(&rules(&["c 10:229 rw".into(), "b 7:* r".into()]).unwrap());
        let check = |kind, access, major, minor, expect| {
            assert_eq!(run(&code, kind, access, major, minor), expect, "{kind} {access} {major}:{minor}");
        };
        let (block, char) = (1, 2);
        check(char, READ | WRITE, 1, 3, 1);
        check(char, MKNOD, 1, 9, 1);
        check(char, READ, 136, 77, 1);
        check(char, READ, 5, 1, 0);
        check(char, READ, 1, 1, 0);
        check(block, READ, 1, 3, 0);
        check(char, READ | WRITE, 10, 229, 1);
        check(char, MKNOD, 10, 229, 0);
        check(char, READ, 10, 228, 0);
        check(block, READ, 7, 4, 1);
        check(block, READ | WRITE, 7, 4, 0);
        check(block, READ, 8, 0, 0);
    }

    #[test]
    fn merged_lines_cover_what_was_allowed() {
        assert!(covers("c 1:3 rwm", "c 1:3 rw") && covers("c 1:3 rw", "c 1:3 rw"));
        assert!(!covers("c 1:3 r", "c 1:3 rw") && !covers("c 1:5 rwm", "c 1:3 rw"));
    }
}
