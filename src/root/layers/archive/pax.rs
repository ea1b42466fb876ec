//! PAX records, pax(1): `LENGTH KEY=VALUE\n` each, where a value may hold any byte.
//!
//! Read from the raw headers that stand before an entry, for the tar crate splits them at
//! newlines, which the values of binary attributes hold too.

use anyhow::{Context, ensure};

/// Bytes of one block.
pub const BLOCK: usize = 512;
const KIND_AT: usize = 156;
const SIZE_AT: std::ops::Range<usize> = 124..136;

/// Keys with their values, of one entry.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Records(Vec<(String, Vec<u8>)>);

impl Records {
    /// The records among the `headers` of one entry: all blocks from where the last entry ended.
    pub fn of(headers: &[u8]) -> anyhow::Result<Self> {
        let mut records = Self::default();
        let mut rest = headers;
        while rest.len() > BLOCK {
            let (header, behind) = rest.split_at(BLOCK);
            let size = octal(&header[SIZE_AT]).context("the size of a header")?;
            let padded = size.checked_next_multiple_of(BLOCK).filter(|padded| *padded <= behind.len());
            let padded = padded.context("a header is larger than what was read")?;
            match header[KIND_AT] {
                b'x' => records.add(&behind[..size])?,
                b'L' | b'K' | b'g' => {}
                // The entry's own header, with the continuations of an old sparse file behind it.
                _ => break,
            }
            rest = &behind[padded..];
        }
        Ok(records)
    }

    fn add(&mut self, mut text: &[u8]) -> anyhow::Result<()> {
        while !text.is_empty() {
            let blank =
                text.iter().position(|byte| *byte == b' ').context("a PAX record without a length")?;
            let length: usize =
                std::str::from_utf8(&text[..blank])?.parse().context("a PAX record's length")?;
            ensure!(length > blank + 1 && length <= text.len(), "a PAX record of a wrong length");
            let (record, behind) = text.split_at(length);
            ensure!(record.ends_with(b"\n"), "a PAX record of a wrong length");
            let record = &record[blank + 1..length - 1];
            let equals = record.iter().position(|byte| *byte == b'=').context("a PAX record without `=`")?;
            let key = String::from_utf8(record[..equals].to_vec()).context("the key of a PAX record")?;
            self.0.push((key, record[equals + 1..].to_vec()));
            text = behind;
        }
        Ok(())
    }

    /// The last value of `key`.
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.0.iter().rev().find(|(own, _)| own == key).map(|(_, value)| value.as_slice())
    }

    pub fn number(&self, key: &str) -> anyhow::Result<Option<u64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let text = std::str::from_utf8(value).with_context(|| format!("the PAX record {key}"))?;
        Ok(Some(text.parse().with_context(|| format!("the PAX record {key}"))?))
    }

    /// Seconds and nanoseconds of a time such as `1700000000.25`.
    pub fn time(&self, key: &str) -> Option<(i64, u32)> {
        let text = std::str::from_utf8(self.get(key)?).ok()?;
        let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
        let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
        let (whole, part): (i64, u32) = (seconds.parse().ok()?, digits.parse().ok()?);
        // The fraction counts backwards too.
        Some(if text.starts_with('-') && part > 0 {
            (whole - 1, 1_000_000_000 - part)
        } else {
            (whole, part)
        })
    }

    /// Names and values of the extended attributes.
    pub fn attributes(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().filter_map(|(key, value)| Some((key.strip_prefix("SCHILY.xattr.")?, value.as_slice())))
    }

    pub fn has_prefix(&self, prefix: &str) -> bool {
        self.0.iter().any(|(key, _)| key.starts_with(prefix))
    }
}

/// A number as headers hold it, up to the first byte that is no digit.
fn octal(field: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(field).ok()?.trim_matches(|c: char| c == ' ' || c == '\0');
    usize::from_str_radix(text, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(text: &[u8]) -> anyhow::Result<Records> {
        let mut records = Records::default();
        records.add(text).map(|()| records)
    }

    #[test]
    fn a_value_holds_any_byte() {
        let found = records(b"25 SCHILY.xattr.a=1\n=\0 2\n13 mtime=7.5\n").expect("records");
        assert_eq!(found.attributes().collect::<Vec<_>>(), [("a", &b"1\n=\0 2"[..])]);
        assert_eq!(found.time("mtime"), Some((7, 500_000_000)));
        for (text, expect) in [("-1.5", (-2, 500_000_000)), ("-0.5", (-1, 500_000_000)), ("-7", (-7, 0))] {
            let found = records(format!("{} mtime={text}\n", text.len() + 10).as_bytes()).expect(text);
            assert_eq!(found.time("mtime"), Some(expect), "{text}");
        }
        assert_eq!(found.get("path"), None);
    }

    #[test]
    fn what_is_no_record_is_refused() {
        for text in [
            &b"x"[..],
            b"5 a=",
            b"9 a=b\n",
            b"0 a=b\n",
            b"7 a=bcd\n",
            b"5 ab\n",
            b"99999999999999999999 a=b\n",
        ] {
            assert!(records(text).is_err(), "{}", text.escape_ascii());
        }
    }
}
