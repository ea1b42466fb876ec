//! Capabilities by name, and the sets that jails start from.
//!
//! Pure. A set is a mask with one bit for each number of capabilities(7).

#![forbid(unsafe_code)]

/// Names without `CAP_`, in the order of their numbers (kernel 6.18, `linux/capability.h`).
pub const NAMES: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The mask of one name, without `CAP_`, upper case as in capabilities(7).
pub const fn bit(name: &str) -> Option<u64> {
    let mut number = 0;
    while number < NAMES.len() {
        if same(NAMES[number], name) {
            return Some(1 << number);
        }
        number += 1;
    }
    None
}

/// `==` of strings, which is not `const` yet.
const fn same(left: &str, right: &str) -> bool {
    let (left, right) = (left.as_bytes(), right.as_bytes());
    if left.len() != right.len() {
        return false;
    }
    let mut i = 0;
    while i < left.len() {
        if left[i] != right[i] {
            return false;
        }
        i += 1;
    }
    true
}

/// The mask of names that are known when compiling: a wrong one does not compile.
const fn set(names: &[&str]) -> u64 {
    let mut mask = 0;
    let mut i = 0;
    while i < names.len() {
        mask |= known(names[i]);
        i += 1;
    }
    mask
}

/// The mask of a name that is known when compiling.
pub const fn known(name: &str) -> u64 {
    bit(name).expect("a capability of the table above")
}

/// A jail that runs a command: Podman's eleven.
pub const APP: u64 = set(&[
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
]);

/// A jail that boots a system: what systemd-nspawn keeps, less SYS_RESOURCE and DAC_READ_SEARCH.
/// Only ever over the jail's own user namespace, where SYS_BOOT reaches its own pid namespace.
pub const SYSTEM: u64 = APP
    | set(&[
        "AUDIT_CONTROL",
        "AUDIT_WRITE",
        "IPC_OWNER",
        "LEASE",
        "LINUX_IMMUTABLE",
        "MKNOD",
        "NET_BROADCAST",
        "NET_RAW",
        "SYS_ADMIN",
        "SYS_BOOT",
        "SYS_NICE",
        "SYS_PTRACE",
        "SYS_TTY_CONFIG",
    ]);

/// What a jail without a user namespace never gets, whatever it asks for: with any of these, root
/// inside is root of the host in a few steps.
pub const NEVER_ON_HOST: u64 = set(&[
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "DAC_READ_SEARCH",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "PERFMON",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_MODULE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
]);

/// The names in a mask, without `CAP_`, in the order of their numbers.
pub fn names(mask: u64) -> Vec<&'static str> {
    NAMES.iter().enumerate().filter(|(number, _)| mask >> number & 1 == 1).map(|(_, name)| *name).collect()
}

/// Reads `security.capabilities`: `default` stands for `base`, `NAME` adds, `!NAME` drops, in the
/// order written; without `default` the set starts empty. Gives the mask, or one message for each
/// wrong entry.
pub fn parse(entries: &[String], base: u64) -> Result<u64, Vec<String>> {
    let mut mask = 0;
    let mut wrong = Vec::new();
    for entry in entries {
        match (entry.as_str(), entry.strip_prefix('!')) {
            ("default", _) => mask |= base,
            (_, Some(name)) => match bit(name) {
                Some(bit) => mask &= !bit,
                None => wrong.push(unknown(name)),
            },
            (name, None) => match bit(name) {
                Some(bit) => mask |= bit,
                None => wrong.push(unknown(name)),
            },
        }
    }
    if wrong.is_empty() { Ok(mask) } else { Err(wrong) }
}

fn unknown(name: &str) -> String {
    let upper = name.to_ascii_uppercase();
    let plain = upper.strip_prefix("CAP_").unwrap_or(&upper);
    let hint = match NAMES.iter().find(|known| strsim::damerau_levenshtein(known, plain) <= 2) {
        Some(known) => format!("did you mean `{known}`?"),
        None => "capabilities(7) lists them, written here without CAP_".into(),
    };
    format!("`{name}` is not a capability: {hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(entries: &[&str], expect: Result<u64, &str>) {
        let entries: Vec<String> = entries.iter().map(ToString::to_string).collect();
        let found = parse(&entries, APP).map_err(|wrong| wrong.join("; "));
        assert_eq!(found, expect.map_err(String::from), "{entries:?}");
    }

    #[test]
    fn entries_add_and_drop_in_order() {
        check(&[], Ok(0));
        check(&["default"], Ok(APP));
        check(&["NET_RAW"], Ok(1 << 13));
        check(&["default", "!CHOWN"], Ok(APP & !1));
        check(&["default", "NET_RAW", "!NET_RAW"], Ok(APP));
        check(&["!CHOWN", "default"], Ok(APP));
        check(&["CHECKPOINT_RESTORE"], Ok(1 << 40));
    }

    #[test]
    fn wrong_entries_are_all_named() {
        check(
            &["cap_chown", "!NET_RAWW"],
            Err("`cap_chown` is not a capability: did you mean `CHOWN`?; \
                 `NET_RAWW` is not a capability: did you mean `NET_RAW`?"),
        );
        check(
            &["everything"],
            Err("`everything` is not a capability: capabilities(7) lists them, written here without CAP_"),
        );
    }

    #[test]
    fn sets_have_the_bits_of_the_kernel() {
        assert_eq!(NAMES.len(), 41);
        assert_eq!(APP.count_ones(), 11);
        assert_eq!(known("SYS_ADMIN"), 1 << 21);
        assert_eq!(known("SETFCAP"), 1 << 31);
        assert_eq!(SYSTEM.count_ones(), 24);
        for missing in ["SYS_RESOURCE", "DAC_READ_SEARCH", "SYS_MODULE", "SYS_RAWIO", "SYS_TIME"] {
            assert_eq!(SYSTEM & known(missing), 0, "{missing}");
        }
        assert_eq!(names(APP & 0x1f), ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID"]);
        assert_eq!(APP & NEVER_ON_HOST, 0);
    }
}
