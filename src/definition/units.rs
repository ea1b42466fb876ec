//! Numbers with units: sizes, durations, CPUs, and lists of CPUs.

use super::wrong::Wrong;

/// A TOML number in a place that needs a unit.
pub const SIZE_HELP: &str = "write a number and a unit: B, K, M, G or T, such as \"512M\"";
pub const DURATION_HELP: &str = "write a number and a unit: ms, s, m, h or d, such as \"10s\"";

/// The highest CPU number of a list, the kernel's own largest `NR_CPUS`.
const CPU_MAX: u32 = 8191;
/// The most CPUs a limit may name, in thousandths.
const CPUS_MAX: u64 = 8_192_000;
/// The least, a hundredth: below it the kernel's quota is too coarse.
const CPUS_MIN: u64 = 10;
/// Digits before and after the dot that still multiply without overflow.
const DIGITS_MAX: usize = 18;
const FRACTION_DIGITS_MAX: usize = 6;

/// `512M` in bytes: binary units, fractions as far as they make whole bytes.
pub fn size(text: &str) -> Result<u64, Wrong> {
    measure(text, "size", SIZE_HELP, |unit| match unit {
        "B" => Some(1),
        "K" | "KiB" => Some(1 << 10),
        "M" | "MiB" => Some(1 << 20),
        "G" | "GiB" => Some(1 << 30),
        "T" | "TiB" => Some(1 << 40),
        _ => None,
    })
}

/// `10s` in milliseconds.
pub fn duration(text: &str) -> Result<u64, Wrong> {
    measure(text, "duration", DURATION_HELP, |unit| match unit {
        "ms" => Some(1),
        "s" => Some(1_000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        "d" => Some(86_400_000),
        _ => None,
    })
}

/// A number and its unit, or a bare `0`, which is the same in every unit.
fn measure(text: &str, what: &str, help: &str, unit: fn(&str) -> Option<u64>) -> Result<u64, Wrong> {
    if text == "0" {
        return Ok(0);
    }
    let (number, name) = split(text);
    if name.is_empty() {
        return Err(Wrong::help(format!("`{text}` has no unit"), help));
    }
    let scaled = unit(name).and_then(|unit| scaled(number, unit));
    scaled.ok_or_else(|| Wrong::help(format!("`{text}` is not a {what}"), help))
}

/// CPUs in thousandths.
pub fn cpus(number: f64) -> Result<u64, Wrong> {
    let thousandths = (number * 1000.0).round();
    #[allow(clippy::cast_precision_loss)]
    let range = CPUS_MIN as f64..=CPUS_MAX as f64;
    if !range.contains(&thousandths) {
        return Err(Wrong::new(format!("{number} is not a number of CPUs from 0.01 to {}", CPUS_MAX / 1000)));
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Ok(thousandths as u64)
}

/// `0-3,6` in the kernel's own form: sorted, joined, without doubles.
pub fn cpu_list(text: &str) -> Result<String, Wrong> {
    let wrong = || Wrong::help(format!("`{text}` is not a list of CPUs"), "such as \"0-3,6\"");
    let mut ranges = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let range = (cpu(first).ok_or_else(wrong)?, cpu(last).ok_or_else(wrong)?);
        if range.0 > range.1 {
            return Err(wrong());
        }
        ranges.push(range);
    }
    ranges.sort_unstable();
    let mut joined: Vec<(u32, u32)> = Vec::new();
    for (first, last) in ranges {
        match joined.last_mut() {
            Some(before) if first <= before.1 + 1 => before.1 = before.1.max(last),
            _ => joined.push((first, last)),
        }
    }
    let one = |(a, b): &(u32, u32)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    Ok(joined.iter().map(one).collect::<Vec<_>>().join(","))
}

fn cpu(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|number| digits && *number <= CPU_MAX)
}

/// The number and what follows it.
fn split(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    text.split_at(end)
}

/// `number`, decimal digits with at most one dot, times `unit`; `None` when that is no whole
/// number or too large for a TOML integer.
fn scaled(number: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let dangling = number.ends_with('.') || whole.is_empty();
    if dangling || whole.len() > DIGITS_MAX || fraction.len() > FRACTION_DIGITS_MAX {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let divisor = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let product = digits * u128::from(unit);
    let result = u64::try_from(product / divisor).ok()?;
    (product.is_multiple_of(divisor) && i64::try_from(result).is_ok()).then_some(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let check = |text: &str, expect: Option<u64>| assert_eq!(size(text).ok(), expect, "{text}");
        check("512M", Some(536_870_912));
        check("1.5G", Some(1_610_612_736));
        check("1KiB", Some(1024));
        check("7B", Some(7));
        check("0", Some(0));
        for bad in
            ["512", "1.5B", "M", "", "-1M", "1.M", ".5G", "1..5G", "1 G", "99999999T", "1e3M", "5MB", "1m"]
        {
            check(bad, None);
        }
    }

    #[test]
    fn durations() {
        let check = |text: &str, expect: Option<u64>| assert_eq!(duration(text).ok(), expect, "{text}");
        check("10s", Some(10_000));
        check("1.5s", Some(1_500));
        check("250ms", Some(250));
        check("2h", Some(7_200_000));
        check("1d", Some(86_400_000));
        check("0s", Some(0));
        for bad in ["10", "s", "10S", "10 s", "0.1ms", "-1s", "10sec"] {
            check(bad, None);
        }
    }

    #[test]
    fn cpus_and_their_lists() {
        assert_eq!(cpus(1.5).ok(), Some(1500));
        assert_eq!(cpus(0.1).ok(), Some(100));
        for bad in [0.0, -1.0, 0.001, 9999.0, f64::NAN, f64::INFINITY] {
            assert!(cpus(bad).is_err(), "{bad}");
        }
        let check =
            |text: &str, expect: Option<&str>| assert_eq!(cpu_list(text).ok().as_deref(), expect, "{text}");
        check("0-3,6", Some("0-3,6"));
        check("6,0,1,2-3,2", Some("0-3,6"));
        for bad in ["", "3-1", "a", "1,", "+1", "99999", "1-2-3"] {
            check(bad, None);
        }
    }
}
