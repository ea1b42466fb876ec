//! How a normalised value is written by a person: the plan's and `show`'s text.

use std::fmt::Write as _;

use serde_json::Value;

use super::{Kind, find};

/// The units of sizes, binary, largest first.
const SIZE_UNITS: &[(u64, char)] =
    &[(1 << 40, 'T'), (1 << 30, 'G'), (1 << 20, 'M'), (1 << 10, 'K'), (1, 'B')];
/// The units of durations in milliseconds, largest first.
const DURATION_UNITS: &[(u64, &str)] =
    &[(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s"), (1, "ms")];

/// The value of the key as it would stand in a definition, without outer quotes:
/// `show("limits.memory", 536870912)` is `512M`.
pub fn show(key: &str, value: &Value) -> String {
    find(key).map_or_else(|| toml_text(value), |key| show_kind(key.kind, value))
}

fn show_kind(kind: Kind, value: &Value) -> String {
    match (kind, value) {
        (_, Value::Null) => "none".to_owned(),
        (Kind::Size { .. }, Value::Number(n)) => n.as_u64().map_or_else(|| n.to_string(), size),
        (Kind::Duration { .. }, Value::Number(n)) => n.as_u64().map_or_else(|| n.to_string(), duration),
        (Kind::Cpus, Value::Number(n)) => n.as_u64().map_or_else(|| n.to_string(), cpus),
        (Kind::Tables(rows), Value::Array(items)) => {
            let shown: Vec<String> = items.iter().map(|item| show_row(rows, item)).collect();
            format!("[{}]", shown.join(", "))
        }
        (_, Value::String(text)) => text.clone(),
        (_, value) => toml_text(value),
    }
}

/// One inner table on one line, its sizes and durations with units.
fn show_row(rows: &[super::Key], item: &Value) -> String {
    let Value::Object(members) = item else { return toml_text(item) };
    let member = |(name, value): (&String, &Value)| {
        let kind = rows.iter().find(|row| row.leaf() == name).map(|row| row.kind);
        let shown = match (kind, value) {
            (Some(kind), Value::Number(_)) => show_kind(kind, value),
            _ => toml_text(value),
        };
        format!("{name} = {shown}")
    };
    let shown: Vec<String> = members.iter().map(member).collect();
    format!("{{ {} }}", shown.join(", "))
}

/// Bytes with the largest unit that divides them.
fn size(bytes: u64) -> String {
    if bytes == 0 {
        return "0".to_owned();
    }
    let unit = SIZE_UNITS.iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit));
    unit.map_or_else(|| bytes.to_string(), |(unit, letter)| format!("{}{letter}", bytes / unit))
}

/// Milliseconds with the largest unit that divides them.
fn duration(milliseconds: u64) -> String {
    if milliseconds == 0 {
        return "0s".to_owned();
    }
    let unit = DURATION_UNITS.iter().find(|(unit, _)| milliseconds.is_multiple_of(*unit));
    unit.map_or_else(String::new, |(unit, name)| format!("{}{name}", milliseconds / unit))
}

/// Thousandths as a decimal number.
fn cpus(thousandths: u64) -> String {
    let fraction = format!("{:03}", thousandths % 1000);
    let fraction = fraction.trim_end_matches('0');
    let dot = if fraction.is_empty() { "" } else { "." };
    format!("{}{dot}{fraction}", thousandths / 1000)
}

/// Any value as TOML on one line.
pub fn toml_text(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::Bool(yes) => yes.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => quoted(text),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(toml_text).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(members) if members.is_empty() => "{}".to_owned(),
        Value::Object(members) => {
            let members: Vec<String> = members
                .iter()
                .map(|(name, value)| format!("{} = {}", bare(name), toml_text(value)))
                .collect();
            format!("{{ {} }}", members.join(", "))
        }
    }
}

/// A table's key, quoted only when TOML wants it.
fn bare(name: &str) -> String {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if plain && !name.is_empty() { name.to_owned() } else { quoted(name) }
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => {
                write!(out, "\\u{:04x}", c as u32).expect("writing to a String cannot fail");
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    #[allow(clippy::needless_pass_by_value)]
    fn values_are_written_as_a_person_writes_them() {
        let check = |key: &str, value: Value, expect: &str| assert_eq!(show(key, &value), expect, "{key}");
        check("limits.memory", json!(536_870_912), "512M");
        check("limits.memory", json!(1_610_612_736), "1536M");
        check("limits.memory", json!(1025), "1025B");
        check("limits.swap", json!(0), "0");
        check("limits.cpu", json!(1500), "1.5");
        check("limits.cpu", json!(2000), "2");
        check("limits.cpu", json!(50), "0.05");
        check("exec.timeout", json!(10_000), "10s");
        check("exec.timeout", json!(1_500), "1500ms");
        check("exec.stop_timeout", json!(0), "0s");
        check("network.bridge", json!("stockade0"), "stockade0");
        check("network.address", json!(["10.0.0.1/24"]), "[\"10.0.0.1/24\"]");
        check("exec.env", json!({"A": "x y", "b.c": "\"\n"}), r#"{ A = "x y", "b.c" = "\"\n" }"#);
        check("limits.io", json!([{"path": "/", "read": 1_048_576}]), "[{ path = \"/\", read = 1M }]");
        check("limits.memory", Value::Null, "none");
        check("no.such.key", json!(true), "true");
    }
}
