//! The host's architecture, and those whose programs it can run besides.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::OFlags;

use crate::sys::file;

/// What OCI and Debian call an architecture, and qemu's name for it.
const KNOWN: &[(&str, &str, &str, &str)] = &[
    // OCI, Debian, qemu, Rust
    ("amd64", "amd64", "x86_64", "x86_64"),
    ("386", "i386", "i386", "x86"),
    ("arm64", "arm64", "aarch64", "aarch64"),
    ("arm", "armhf", "arm", "arm"),
    ("ppc64le", "ppc64el", "ppc64le", "powerpc64"),
    ("riscv64", "riscv64", "riscv64", "riscv64"),
    ("s390x", "s390x", "s390x", "s390x"),
    ("loong64", "loong64", "loongarch64", "loongarch64"),
];
/// How elf(5) has an architecture: machine, class, and whether the least byte comes first.
const MACHINES: &[(u16, u8, bool, &str)] = &[
    (3, 1, true, "386"),
    (21, 2, true, "ppc64le"),
    (22, 2, false, "s390x"),
    (40, 1, true, "arm"),
    (62, 2, true, "amd64"),
    (183, 2, true, "arm64"),
    (243, 2, true, "riscv64"),
    (258, 2, true, "loong64"),
];
/// Programs of which nearly every root has one.
const USUAL: &[&str] = &["bin/sh", "sbin/init", "bin/busybox", "usr/bin/env"];
/// What the kernel itself looks at to know a program's kind.
const HEAD_BYTES: u64 = 256;
/// Where the kernel keeps the interpreters of foreign programs.
const BINFMT: &str = "/proc/sys/fs/binfmt_misc";

/// What lets a host run programs of other architectures.
pub const REMEDY: &str = "install qemu-user-static (or qemu-user-binfmt) and see that binfmt_misc is mounted";

/// The host's architecture by OCI's name.
pub fn host() -> &'static str {
    let own = KNOWN.iter().find(|(_, _, _, rust)| *rust == std::env::consts::ARCH);
    own.map_or(std::env::consts::ARCH, |(oci, ..)| oci)
}

/// Why programs of `wanted`, OCI's or Debian's name, do not run here.
pub fn check(wanted: &str) -> Result<(), String> {
    let known = KNOWN.iter().find(|(oci, debian, ..)| *oci == wanted || *debian == wanted);
    let Some((oci, _, qemu, _)) = known else {
        return Err(format!("`{wanted}` is no architecture that is known here"));
    };
    if is_native(oci) {
        return Ok(());
    }
    // The F flag holds the interpreter open, so that it is found inside a jail as well.
    let found = std::fs::read_to_string(Path::new(BINFMT).join(format!("qemu-{qemu}"))).unwrap_or_default();
    let flags = found.lines().find_map(|line| line.strip_prefix("flags: ")).unwrap_or_default();
    if found.starts_with("enabled") && flags.contains('F') {
        return Ok(());
    }
    Err(format!("it is for {wanted}, this host is {}, and no qemu-{qemu} is registered: {REMEDY}", host()))
}

/// Why the programs below the directory `root` do not run here, by one of them.
pub fn check_root(root: &Path) -> Result<(), String> {
    let Ok(root) = file::open_directory(root) else { return Ok(()) };
    let head = |program: &str| {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        head(file::open_inside(root.as_fd(), Path::new(program), flags, file::INSIDE).ok()?.into())
    };
    match USUAL.iter().find_map(|program| Some((program, of_program(&head(program)?)?))) {
        Some((program, oci)) => check(oci).map_err(|why| format!("{program}: {why}")),
        None => Ok(()),
    }
}

/// How a regular file begins.
pub fn head(program: File) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    let is_file = program.metadata().is_ok_and(|found| found.is_file());
    (is_file && program.take(HEAD_BYTES).read_to_end(&mut head).is_ok()).then_some(head)
}

/// The architecture, by OCI's name, of the program that begins so; none of what is no program of
/// the kernel's own kind, or of a machine that is not known here.
pub fn of_program(head: &[u8]) -> Option<&'static str> {
    let (ident, rest) = head.split_at_checked(18)?;
    let machine: [u8; 2] = rest.get(..2)?.try_into().ok()?;
    let (class, little) = (ident[4], ident[5] == 1);
    let machine = if little { u16::from_le_bytes(machine) } else { u16::from_be_bytes(machine) };
    let known =
        MACHINES.iter().find(|(number, size, order, _)| (*number, *size, *order) == (machine, class, little));
    known.filter(|_| ident.starts_with(b"\x7fELF")).map(|(.., oci)| *oci)
}

fn is_native(oci: &str) -> bool {
    oci == host() || (oci == "386" && host() == "amd64")
}

/// The other architectures, by Debian's name, whose programs an interpreter runs here.
pub fn foreign() -> Vec<&'static str> {
    let others = KNOWN.iter().filter(|(oci, ..)| !is_native(oci) && check(oci).is_ok());
    others.map(|(_, debian, ..)| *debian).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_runs_its_own_programs() {
        assert_eq!(check(host()), Ok(()));
        assert!(check("vax").expect_err("none").contains("`vax` is no architecture"));
    }

    #[test]
    fn a_program_tells_its_architecture() {
        let elf = |class: u8, order: u8, machine: [u8; 2]| {
            let ident = [b"\x7fELF", &[class, order, 1, 0][..], &[0; 8]].concat();
            [ident, vec![2, 0], machine.to_vec(), vec![0; 44]].concat()
        };
        for (head, expect) in [
            (elf(2, 1, [183, 0]), Some("arm64")),
            (elf(2, 1, [62, 0]), Some("amd64")),
            (elf(2, 2, [0, 22]), Some("s390x")),
            (elf(2, 1, [2, 1]), Some("loong64")),
            // ppc64, the other way round; x32; a machine of the past.
            (elf(2, 2, [0, 21]), None),
            (elf(1, 1, [62, 0]), None),
            (elf(1, 1, [75, 0]), None),
            (elf(2, 1, [183, 0])[..19].to_vec(), None),
            (b"#!/bin/sh\necho a long enough line".to_vec(), None),
            (Vec::new(), None),
        ] {
            assert_eq!(of_program(&head), expect, "{head:?}");
        }
        let own = head(File::open(std::env::current_exe().unwrap()).unwrap()).unwrap();
        assert_eq!(of_program(&own), Some(host()));
        let root = tempfile::tempdir().unwrap();
        assert_eq!(check_root(root.path()), Ok(()));
        assert_eq!(check_root(&root.path().join("none")), Ok(()));
        let foreign = if host() == "arm64" { [62, 0] } else { [183, 0] };
        std::fs::create_dir(root.path().join("bin")).unwrap();
        std::fs::write(root.path().join("bin/busybox"), elf(2, 1, foreign)).unwrap();
        // It leads out of the root for whoever does not stay in it.
        std::os::unix::fs::symlink("/bin/busybox", root.path().join("bin/sh")).unwrap();
        assert!(check_root(root.path()).expect_err("foreign").starts_with("bin/sh: it is for "));
    }
}
