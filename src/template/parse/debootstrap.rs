//! `base.debootstrap`: each value checked so that none of them can pass for an option, or for
//! anything but what it is called, on the bootstrapping program's command line.

use toml::de::DeValue;

use super::{Item, Reader, Table};
use crate::desired::Debootstrap;
use crate::keys::{self, TEMPLATE_KEYS, VARIANTS};

/// The longest value, in bytes, and the most packages or components.
const BYTES_MAX: usize = 1024;
const WORDS_MAX: usize = 1_000;

impl Reader<'_> {
    pub fn debootstrap(&mut self, item: &Item<'_>) -> Option<Debootstrap> {
        let Some(table) = item.get_ref().as_table() else {
            self.mismatch(item, "a table such as { suite = \"trixie\" }");
            return None;
        };
        let wrong = self.wrong.len();
        self.only(table, &keys::words(TEMPLATE_KEYS, "base.debootstrap"));
        let suite = match table.get("suite") {
            Some(suite) => self.word(suite, "a suite such as \"trixie\"", is_suite),
            None => {
                self.at(item.span(), "`suite` is missing");
                None
            }
        };
        let variant = self.one(table, "variant", "one of the variants", |word| VARIANTS.contains(&word));
        if variant.is_none() && self.wrong.len() > wrong && table.get("variant").is_some() {
            let last = self.wrong.last_mut().filter(|last| last.help.is_none());
            if let Some(last) = last {
                last.help = Some(VARIANTS.join(", "));
            }
        }
        let found = Debootstrap {
            suite: suite.unwrap_or_default(),
            variant,
            include: self.many(table, "include", "the name of a package", is_package),
            mirror: self.one(table, "mirror", "a URL that begins with http://, https:// or file:///", is_url),
            arch: self.one(table, "arch", "an architecture such as \"arm64\"", is_plain),
            components: self.many(table, "components", "a component such as \"main\"", is_suite),
            keyring: table.get("keyring").and_then(|item| self.path(item)),
        };
        (self.wrong.len() == wrong).then_some(found)
    }

    fn one(&mut self, table: &Table<'_>, key: &str, what: &str, good: fn(&str) -> bool) -> Option<String> {
        table.get(key).and_then(|item| self.word(item, what, good))
    }

    fn many(&mut self, table: &Table<'_>, key: &str, what: &str, good: fn(&str) -> bool) -> Vec<String> {
        let Some(item) = table.get(key) else { return Vec::new() };
        let DeValue::Array(list) = item.get_ref() else {
            self.mismatch(item, "a list of strings");
            return Vec::new();
        };
        if list.len() > WORDS_MAX {
            self.at(item.span(), format!("more than {WORDS_MAX} of them"));
        }
        list.iter().filter_map(|item| self.word(item, what, good)).collect()
    }

    fn word(&mut self, item: &Item<'_>, what: &str, good: fn(&str) -> bool) -> Option<String> {
        let text = self.string(item)?;
        if text.len() <= BYTES_MAX && good(&text) {
            return Some(text);
        }
        self.at(item.span(), format!("this has to be {what}"));
        None
    }
}

fn begins_well(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
}

fn is_plain(text: &str) -> bool {
    begins_well(text) && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// Suites and components: `trixie`, `trixie-backports`, `updates/main`.
fn is_suite(text: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"-._/".contains(&b);
    begins_well(text) && text.bytes().all(good) && !text.contains("..") && !text.contains("//")
}

/// As Debian's policy has it, with an architecture behind it or not.
fn is_package(text: &str) -> bool {
    let (name, arch) = text.split_once(':').map_or((text, None), |(name, arch)| (name, Some(arch)));
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b);
    let long = name.len() >= 2 && name.bytes().all(good) && begins_well(name);
    long && !name.ends_with('-') && arch.is_none_or(is_plain)
}

fn is_url(text: &str) -> bool {
    let known = ["http://", "https://", "file:///"].iter().any(|scheme| {
        text.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty() && !rest.starts_with('-'))
    });
    known && text.bytes().all(|b| b.is_ascii_graphic() && !b"\"'`\\[]{}|<>^".contains(&b))
}
