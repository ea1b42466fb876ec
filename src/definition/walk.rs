//! The tree of a file against the table of keys.

use std::sync::Arc;

use serde_json::Value;

use crate::diagnostic::{Diagnostic, did_you_mean, nearest};
use crate::keys::{self, KEYS, Key, Kind};

use super::raw::{Member, Raw, RawValue, Text};
use super::value::{self, Report};
use super::wrong::Wrong;
use super::{Entries, Entry, Origin};

/// All keys of the tree below the top, with an error for each that is unknown or wrong.
pub fn entries(members: Vec<Member>, source: &Arc<Text>, origin: Origin) -> (Entries, Vec<Diagnostic>) {
    let mut walk = Walk { source, origin, entries: Entries::new(), report: Report::new(source) };
    walk.table("", members);
    (walk.entries, walk.report.found)
}

/// The normal form of a key's or a member's value.
pub fn normal_form(key: &Key, member: &str, raw: &Raw, report: &mut Report<'_>) -> Option<Value> {
    if member.is_empty() {
        value::normalise(key, raw, report)
    } else {
        value::normalise_member(key, member, raw, report)
    }
}

struct Walk<'a> {
    source: &'a Arc<Text>,
    origin: Origin,
    entries: Entries,
    report: Report<'a>,
}

impl Walk<'_> {
    fn table(&mut self, prefix: &str, members: Vec<Member>) {
        for member in members {
            let name = dotted(prefix, &member.name);
            if let Some(key) = keys::find(&name) {
                self.key(key, member);
            } else if !keys::is_table(&name) {
                let wrong = unknown(prefix, &member, &name);
                self.report.at(&member.span, wrong);
            } else if let RawValue::Table(inner) = member.raw.value {
                self.table(&name, inner);
            } else {
                self.report.wrong(&member.raw, value::wrong_type(&name, "a table", &member.raw));
            }
        }
    }

    fn key(&mut self, key: &'static Key, member: Member) {
        if !matches!(key.kind, Kind::StringMap | Kind::Rlimits | Kind::Vars) {
            self.entry(key, String::new(), member);
            return;
        }
        let RawValue::Table(inner) = member.raw.value else {
            let wrong = value::wrong_type(key.name, key.kind.noun(), &member.raw);
            self.report.wrong(&member.raw, wrong);
            return;
        };
        for member in inner {
            match value::member_name(key, &member.name) {
                Some(wrong) => self.report.at(&member.span, wrong),
                None => self.entry(key, member.name.clone(), member),
            }
        }
    }

    fn entry(&mut self, key: &'static Key, name: String, member: Member) {
        let value = normal_form(key, &name, &member.raw, &mut self.report);
        let deferred = member.raw.has_expression();
        let entry = Entry {
            key,
            member: name.clone(),
            span: member.span,
            raw: member.raw,
            source: Arc::clone(self.source),
            origin: self.origin,
            value,
            deferred,
        };
        self.entries.insert((key.name, name), Arc::new(entry));
    }
}

fn dotted(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}

/// An unknown key: perhaps a slip, perhaps in the wrong table.
fn unknown(prefix: &str, member: &Member, name: &str) -> Wrong {
    let here = KEYS.iter().filter(|key| key.table() == prefix).map(Key::leaf);
    let tables = KEYS.iter().map(Key::table).filter(|table| prefix.is_empty() && !table.is_empty());
    let elsewhere = || {
        let same = KEYS.iter().find(|key| key.leaf() == member.name);
        same.or_else(|| {
            let leaf = nearest(&member.name, KEYS.iter().map(Key::leaf).filter(|leaf| leaf.len() > 3))?;
            KEYS.iter().find(|key| key.leaf() == leaf)
        })
    };
    let help = did_you_mean(&member.name, here.chain(tables))
        .or_else(|| elsewhere().map(|key| format!("did you mean `{}`?", key.name)));
    Wrong { message: format!("unknown key `{name}`"), help }
}
