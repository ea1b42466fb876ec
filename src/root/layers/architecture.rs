//! The host's architecture, and those whose programs it can run besides.

use std::path::Path;

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
}
