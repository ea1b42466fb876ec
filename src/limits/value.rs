//! What the kernel's files say, in our units and back. Pure.

use std::collections::BTreeSet;

/// cgroup v1's word for "no limit" is the largest multiple of a page, which differs by page size;
/// nothing this large is a limit.
const UNLIMITED_FROM: u64 = (i64::MAX as u64) - (1 << 20);
/// The period of a CPU quota, microseconds; the kernel's own default.
pub const PERIOD_US: u64 = 100_000;
/// The longest period the kernel takes, for quotas that would be below its least one.
const PERIOD_US_MAX: u64 = 1_000_000;
/// The least quota the kernel takes, microseconds.
const QUOTA_US_MIN: u64 = 1_000;
/// The highest CPU number believed; the kernel's own largest NR_CPUS is 8192.
const CPU_MAX: u32 = 8191;

/// How the text of a file is compared with what was written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    /// Bytes, which the kernel rounds down to pages.
    Bytes,
    /// A CPU list, which the kernel rewrites.
    Cpus,
}

/// Whether `found` is what the kernel makes of `wanted`.
pub fn same(kind: Kind, page: u64, wanted: &str, found: &str) -> bool {
    match kind {
        Kind::Text => wanted.trim() == found.trim(),
        Kind::Cpus => cpus(wanted).is_some() && cpus(wanted) == cpus(found),
        Kind::Bytes => match (bytes(wanted), bytes(found)) {
            (Some(wanted), Some(found)) => same_bytes(page, wanted, found),
            _ => false,
        },
    }
}

/// Whether a limit of `found` bytes is `wanted` after rounding to pages; `None` is no limit.
pub fn same_bytes(page: u64, wanted: Option<u64>, found: Option<u64>) -> bool {
    wanted.map(|n| n / page) == found.map(|n| n / page)
}

/// A byte limit: the inner `None` is no limit (`max`, `-1`, v1's huge number).
#[allow(clippy::option_option)]
pub fn bytes(text: &str) -> Option<Option<u64>> {
    match text.trim() {
        "max" | "-1" => Some(None),
        number => Some(Some(number.parse().ok()?).filter(|n| *n < UNLIMITED_FROM)),
    }
}

/// The value of one line of a flat keyed file (`memory.events`, `cpu.stat`, `cgroup.events`).
pub fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Quota and period in microseconds for so many thousandths of a CPU.
pub fn quota(thousandths: u64) -> (u64, u64) {
    let quota = thousandths.saturating_mul(PERIOD_US / 1000);
    if quota >= QUOTA_US_MIN {
        return (quota, PERIOD_US);
    }
    (thousandths.max(1) * (PERIOD_US_MAX / 1000), PERIOD_US_MAX)
}

/// Thousandths of a CPU for a quota and period, to the nearest.
pub fn thousandths(quota: u64, period: u64) -> Option<u64> {
    let exact = u128::from(quota) * 1000 + u128::from(period) / 2;
    u64::try_from(exact.checked_div(u128::from(period))?).ok()
}

/// cgroup v1's `cpu.shares` for a weight: 100 is the middle of one, 1024 of the other.
pub fn shares(weight: u64) -> u64 {
    (weight.saturating_mul(1024) / 100).clamp(2, 262_144)
}

/// The weight for cgroup v1's `cpu.shares`, to the nearest.
pub fn weight(shares: u64) -> u64 {
    ((shares.saturating_mul(100) + 512) / 1024).clamp(1, 10_000)
}

/// The CPUs of a list such as `0-3,6`; the empty list is the empty set.
pub fn cpus(list: &str) -> Option<BTreeSet<u32>> {
    let mut set = BTreeSet::new();
    for part in list.trim().split(',').filter(|part| !part.is_empty()) {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        let (low, high): (u32, u32) = (low.trim().parse().ok()?, high.trim().parse().ok()?);
        if low > high || high > CPU_MAX {
            return None;
        }
        set.extend(low..=high);
    }
    Some(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_limits() {
        let check = |text, expect| assert_eq!(bytes(text), expect, "{text}");
        check("max\n", Some(None));
        check("-1", Some(None));
        check("9223372036854771712", Some(None));
        // The same with pages of 64 KiB.
        check("9223372036854710272", Some(None));
        check("4096", Some(Some(4096)));
        check("", None);
        check("lots", None);
    }

    #[test]
    fn what_the_kernel_makes_of_a_value_is_the_same() {
        let check = |kind, wanted, found, expect| {
            assert_eq!(same(kind, 4096, wanted, found), expect, "{kind:?} {wanted} {found}");
        };
        check(Kind::Bytes, "1000000", "999424", true);
        check(Kind::Bytes, "1000000", "995328", false);
        check(Kind::Bytes, "-1", "9223372036854771712", true);
        check(Kind::Bytes, "max", "max", true);
        check(Kind::Bytes, "4096", "max", false);
        check(Kind::Text, "max 100000", "max 100000\n", true);
        check(Kind::Text, "100", "101", false);
        check(Kind::Cpus, "0,1,2,5", "0-2,5", true);
        check(Kind::Cpus, "0-1", "0", false);
        check(Kind::Cpus, "x", "x", false);
    }

    #[test]
    fn cpu_time_and_back() {
        let check = |thousandths_in, expect: (u64, u64)| {
            assert_eq!(quota(thousandths_in), expect, "{thousandths_in}");
            assert_eq!(thousandths(expect.0, expect.1), Some(thousandths_in));
        };
        check(1500, (150_000, 100_000));
        check(10, (1_000, 100_000));
        check(9, (9_000, 1_000_000));
        check(1, (1_000, 1_000_000));
        check(128_000, (12_800_000, 100_000));
        assert_eq!(thousandths(5, 0), None);
        assert_eq!(thousandths(50_000, 150_000), Some(333));
    }

    #[test]
    fn every_weight_survives_the_way_through_shares() {
        for w in 1..=10_000 {
            assert_eq!(weight(shares(w)), w);
        }
        assert_eq!((shares(100), weight(1024), weight(2)), (1024, 100, 1));
    }

    #[test]
    fn flat_keyed_files() {
        let events = "low 0\nhigh 2\nmax 31\noom 4\noom_kill 3\noom_group_kill 1\n";
        let check = |name, expect| assert_eq!(field(events, name), expect, "{name}");
        check("oom", Some(4));
        check("oom_kill", Some(3));
        check("oom_group_kill", Some(1));
        check("kill", None);
        check("", None);
    }

    #[test]
    fn cpu_lists() {
        let check = |list, expect: Option<&[u32]>| {
            assert_eq!(cpus(list), expect.map(|e| e.iter().copied().collect()), "{list}");
        };
        check("0-2,5\n", Some(&[0, 1, 2, 5]));
        check("", Some(&[]));
        check("3-1", None);
        check("0-4294967295", None);
        check("1-", None);
    }
}
