//! Resource limits of processes: setrlimit(2)'s names and the values a jail starts with.
//!
//! Pure. What a whole jail may use is the cgroup's business, not this table's.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// No limit, `RLIM_INFINITY`.
pub const UNLIMITED: u64 = u64::MAX;

const MEBIBYTE: u64 = 1 << 20;

/// One limit. `resource` is the kernel's number, which x86_64 and aarch64 share; the unit is the
/// resource's (bytes, descriptors, seconds, signals).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    pub resource: u32,
    pub soft: u64,
    pub hard: u64,
}

/// Names in lower case, without `RLIMIT_`, in the order of their numbers (`asm-generic/resource.h`).
pub const NAMES: &[&str] = &[
    "cpu",
    "fsize",
    "data",
    "stack",
    "core",
    "rss",
    "nproc",
    "nofile",
    "memlock",
    "as",
    "locks",
    "sigpending",
    "msgqueue",
    "nice",
    "rtprio",
    "rttime",
];

/// The number of a name.
pub fn number(name: &str) -> Option<u32> {
    (0..).zip(NAMES).find(|(_, known)| **known == name).map(|(number, _)| number)
}

/// The name of a number, for messages.
pub fn name(resource: u32) -> &'static str {
    NAMES.get(resource as usize).copied().unwrap_or("unknown")
}

/// Name, soft, hard. Every resource is here but `nproc`, which counts a user's processes over all
/// jails with that id range and is bounded by the processes cgroup instead: what is absent would
/// be inherited from whoever typed `apply`.
const DEFAULTS: &[(&str, u64, u64)] = &[
    ("as", UNLIMITED, UNLIMITED),
    ("core", 0, 0),
    ("cpu", UNLIMITED, UNLIMITED),
    ("data", UNLIMITED, UNLIMITED),
    ("fsize", UNLIMITED, UNLIMITED),
    ("locks", UNLIMITED, UNLIMITED),
    ("memlock", 8 * MEBIBYTE, 8 * MEBIBYTE),
    ("msgqueue", 819_200, 819_200),
    ("nice", 0, 0),
    ("nofile", 1024, 524_288),
    ("rss", UNLIMITED, UNLIMITED),
    ("rtprio", 0, 0),
    ("rttime", UNLIMITED, UNLIMITED),
    ("sigpending", 32_768, 32_768),
    ("stack", 8 * MEBIBYTE, UNLIMITED),
];

/// The defaults with `security.rlimits` over them (one value is both soft and hard), by resource
/// number; or one message for each unknown name.
pub fn limits(own: &BTreeMap<String, u64>) -> Result<Vec<Rlimit>, Vec<String>> {
    let known = |name: &str| number(name).expect("the defaults use the names above");
    let mut limits: BTreeMap<u32, Rlimit> = DEFAULTS
        .iter()
        .map(|&(name, soft, hard)| (known(name), Rlimit { resource: known(name), soft, hard }))
        .collect();
    let mut wrong = Vec::new();
    for (name, &value) in own {
        match number(name) {
            Some(resource) => {
                limits.insert(resource, Rlimit { resource, soft: value, hard: value });
            }
            None => wrong.push(format!("`{name}` is not a resource: one of {}", NAMES.join(", "))),
        }
    }
    if wrong.is_empty() { Ok(limits.into_values().collect()) } else { Err(wrong) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(own: &[(&str, u64)], resource: &str, expect: (u64, u64)) {
        let own = own.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
        let limits = limits(&own).unwrap();
        let found = limits.iter().find(|limit| limit.resource == number(resource).unwrap()).unwrap();
        assert_eq!((found.soft, found.hard), expect, "{resource}");
    }

    #[test]
    fn own_limits_lie_over_the_defaults() {
        check(&[], "nofile", (1024, 524_288));
        check(&[], "core", (0, 0));
        check(&[], "stack", (8_388_608, UNLIMITED));
        check(&[("nofile", 4096)], "nofile", (4096, 4096));
        check(&[("nproc", 10)], "nproc", (10, 10));
        check(&[("nproc", 10)], "memlock", (8_388_608, 8_388_608));
    }

    #[test]
    fn numbers_are_the_kernels() {
        for (name, expect) in
            [("cpu", 0), ("core", 4), ("nofile", 7), ("memlock", 8), ("msgqueue", 12), ("rttime", 15)]
        {
            assert_eq!(number(name), Some(expect), "{name}");
        }
        assert_eq!(number("NOFILE"), None);
        assert_eq!(name(7), "nofile");
    }

    #[test]
    fn unknown_names_are_refused() {
        let own = [("nofiles".to_owned(), 1)].into();
        assert!(limits(&own).unwrap_err()[0].starts_with("`nofiles` is not a resource: one of cpu, "));
    }
}
