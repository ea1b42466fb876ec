//! Expressions: `name`, `host.*`, `network.*` and `vars.*` inside strings.
//!
//! What refers to something that itself holds an expression is worked out after it; a loop is an
//! error that names it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde_json::{Map, Value, json};

use crate::definition::{Entries, Entry, Report};
use crate::diagnostic::Diagnostic;
use crate::expression::{self, Fault};
use crate::jail::{JailName, Settings};

/// How deep variables may refer to one another.
const DEPTH_MAX: usize = 64;

/// The tables whose keys expressions can say.
const SAYABLE: &[&str] = &["host", "network", "vars"];

pub struct Expanded {
    pub settings: Settings,
    pub found: Vec<Diagnostic>,
}

/// The normal form of every key of one jail. Keys with errors are left out.
pub fn expand(name: &JailName, entries: &Entries) -> Expanded {
    let mut settings = Settings::new();
    let mut found = Vec::new();
    if entries.values().any(|entry| entry.deferred) {
        let mut work = Work { name, entries, done: BTreeMap::new(), stack: Vec::new(), found: Vec::new() };
        for (id, entry) in entries {
            if let Some(value) = work.value(id, entry) {
                put(&mut settings, entry, value);
            }
        }
        found = work.found;
    } else {
        for entry in entries.values() {
            if let Some(value) = &entry.value {
                put(&mut settings, entry, value.clone());
            }
        }
    }
    Expanded { settings, found }
}

/// What expressions and templates of a jail can say, with the defaults of what they need most.
pub fn variables(name: &JailName, settings: &Settings) -> Value {
    let mut host = table(settings, "host.");
    host.entry("hostname").or_insert_with(|| name.as_str().into());
    let mut network = table(settings, "network.");
    network.entry("mode").or_insert_with(|| "none".into());
    network.entry("address").or_insert_with(|| Value::Array(Vec::new()));
    if network.get("mode").is_some_and(|mode| mode == "vnet") {
        network.entry("bridge").or_insert_with(|| super::BRIDGE.into());
    }
    let vars = settings.get("vars").cloned().unwrap_or_else(|| json!({}));
    let mut all = Map::new();
    all.insert("name".into(), name.as_str().into());
    all.insert("host".into(), Value::Object(host));
    all.insert("network".into(), Value::Object(network));
    all.insert("vars".into(), vars);
    Value::Object(all)
}

fn table(settings: &Settings, prefix: &str) -> Map<String, Value> {
    let inside = settings.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
    inside.map(|(key, value)| (key[prefix.len()..].to_owned(), value.clone())).collect()
}

/// Puts a value in its place; members gather in the one object of their key.
fn put(settings: &mut Settings, entry: &Entry, value: Value) {
    if entry.member.is_empty() {
        settings.insert(entry.key.name.to_owned(), value);
        return;
    }
    let slot = settings.entry(entry.key.name.to_owned()).or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(members) = slot {
        members.insert(entry.member.clone(), value);
    }
}

type Id = (&'static str, String);

struct Work<'a> {
    name: &'a JailName,
    entries: &'a Entries,
    /// Those that are worked out; `None` with an error.
    done: BTreeMap<Id, Option<Value>>,
    /// Those being worked out, outermost first.
    stack: Vec<Id>,
    found: Vec<Diagnostic>,
}

impl Work<'_> {
    fn value(&mut self, id: &Id, entry: &Entry) -> Option<Value> {
        if !entry.deferred {
            return entry.value.clone();
        }
        if let Some(done) = self.done.get(id) {
            return done.clone();
        }
        if let Some(at) = self.stack.iter().position(|open| open == id) {
            let names: Vec<String> = self.stack[at..].iter().chain([id]).map(said).collect();
            let message = format!("these refer to one another: {}", names.join(" -> "));
            self.found.push(entry.source.error(&entry.raw.span, message));
            return None;
        }
        if self.stack.len() == DEPTH_MAX {
            self.found.push(entry.error(format!("more than {DEPTH_MAX} variables refer to one another")));
            return None;
        }
        self.stack.push(id.clone());
        let value = self.work_out(entry);
        self.stack.pop();
        self.done.insert(id.clone(), value.clone());
        value
    }

    fn work_out(&mut self, entry: &Entry) -> Option<Value> {
        let raw = entry.raw.expand(&mut |text, span| self.text(entry, text, span))?;
        let mut report = Report::new(&entry.source);
        let value = entry.normalise(&raw, &mut report);
        self.found.append(&mut report.found);
        value
    }

    /// One string worked out.
    fn text(&mut self, entry: &Entry, text: &str, span: &Range<usize>) -> Option<String> {
        let mut known = Settings::new();
        let mut whole = true;
        for id in self.needed(text) {
            let Some(needed) = self.entries.get(&id).cloned() else { continue };
            match self.value(&id, &needed) {
                Some(value) => put(&mut known, &needed, value),
                None => whole = false,
            }
        }
        if !whole {
            return None;
        }
        let variables = variables(self.name, &known);
        let rendered = expression::render_at(text, &variables);
        rendered.map_err(|fault| self.fail(entry, text, span, &variables, &fault)).ok()
    }

    /// The keys that `text` speaks of. A table said as a whole means all of it but what is being
    /// worked out at the moment.
    fn needed(&self, text: &str) -> BTreeSet<Id> {
        let mut needed = BTreeSet::new();
        for said in references(text) {
            for id in self.entries.keys().filter(|id| is_sayable(id)) {
                let (table, leaf) = parts(id);
                let open = said.leaf.is_none() && self.stack.contains(id);
                let meant = said.table == table && said.leaf.as_ref().is_none_or(|said| said == leaf);
                if meant && !open {
                    needed.insert(id.clone());
                }
            }
        }
        needed
    }

    fn fail(&mut self, entry: &Entry, text: &str, span: &Range<usize>, variables: &Value, fault: &Fault) {
        for said in references(text) {
            let Some(leaf) = &said.leaf else { continue };
            let table = &variables[&said.table];
            if table.get(leaf).is_none() {
                let mut error = entry.source.error(span, format!("`{}.{leaf}` is not defined", said.table));
                let known = table.as_object().into_iter().flat_map(|table| table.keys().map(String::as_str));
                let all = self.entries.keys().filter(|id| parts(id).0 == said.table).map(|id| parts(id).1);
                let near = crate::diagnostic::nearest(leaf, known.chain(all));
                error.help = near.map(|near| format!("did you mean `{}.{near}`?", said.table));
                self.found.push(error.for_jail(entry, self.name));
                return;
            }
        }
        let span = place(entry, text, span, fault);
        let error = entry.source.error(&span, first_sentence(&fault.message));
        let error = error.help("an expression can say name, host.*, network.* and vars.*");
        self.found.push(error.for_jail(entry, self.name));
    }
}

impl Diagnostic {
    /// Names the jail in an error of a key that stands in the host's file.
    fn for_jail(mut self, entry: &Entry, name: &JailName) -> Self {
        if entry.origin != crate::definition::Origin::Own {
            self.message = format!("{} (for the jail `{name}`)", self.message);
        }
        self
    }
}

/// Where in the file a fault of an expression is; the whole string, when its quoting hides that.
fn place(entry: &Entry, text: &str, span: &Range<usize>, fault: &Fault) -> Range<usize> {
    let inside = span.start + 1..span.end.saturating_sub(1);
    match (fault.at, entry.source.text.get(inside.clone())) {
        (Some(at), Some(written)) if written == text => {
            let word = take_word(text.get(at..).unwrap_or_default()).len().max(1);
            inside.start + at..inside.start + at + word
        }
        _ => span.clone(),
    }
}

/// What went wrong, without the advice that follows it and without a full stop.
pub fn first_sentence(message: &str) -> &str {
    let line = message.lines().next().unwrap_or(message);
    line.split(". ").next().unwrap_or(line).trim_end_matches('.')
}

fn is_sayable(id: &Id) -> bool {
    SAYABLE.contains(&parts(id).0)
}

/// `("host.hostname", "")` is `hostname` of `host`, and `("vars", "x")` is `x` of `vars`.
fn parts(id: &Id) -> (&str, &str) {
    if id.1.is_empty() { id.0.split_once('.').unwrap_or((id.0, "")) } else { (id.0, &id.1) }
}

fn said(id: &Id) -> String {
    if id.1.is_empty() { id.0.to_owned() } else { format!("{}.{}", id.0, id.1) }
}

/// A mention of a variable in an expression.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Reference {
    table: String,
    /// Absent when the table is said as a whole.
    leaf: Option<String>,
}

/// The variables that the expressions in `text` speak of.
fn references(text: &str) -> BTreeSet<Reference> {
    let mut found = BTreeSet::new();
    let mut rest = text;
    while let Some(open) = rest.find("{{").into_iter().chain(rest.find("{%")).min() {
        let inside = &rest[open + 2..];
        let end = inside.find("}}").into_iter().chain(inside.find("%}")).min().unwrap_or(inside.len());
        references_in(&inside[..end], &mut found);
        rest = &inside[end..];
    }
    found
}

fn references_in(code: &str, found: &mut BTreeSet<Reference>) {
    let mut rest = code;
    let mut before = ' ';
    while let Some(first) = rest.chars().next() {
        if matches!(first, '"' | '\'' | '`') {
            let end = rest[1..].find(first).map_or(rest.len(), |at| at + 2);
            rest = &rest[end..];
        } else if is_word(first) {
            let word = take_word(rest);
            rest = &rest[word.len()..];
            if before != '.' && SAYABLE.contains(&word) {
                found.insert(Reference { table: word.to_owned(), leaf: leaf(rest) });
            }
        } else {
            rest = &rest[first.len_utf8()..];
        }
        before = first;
    }
}

/// The leaf in `.leaf` or `["leaf"]`, when that is how `rest` begins.
fn leaf(rest: &str) -> Option<String> {
    let rest = rest.trim_start();
    if let Some(rest) = rest.strip_prefix('.') {
        return Some(take_word(rest.trim_start()).to_owned()).filter(|word| !word.is_empty());
    }
    let rest = rest.strip_prefix('[')?.trim_start();
    let quote = rest.chars().next().filter(|first| matches!(first, '"' | '\'' | '`'))?;
    rest[1..].split_once(quote).map(|(word, _)| word.to_owned())
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

fn take_word(text: &str) -> &str {
    &text[..text.find(|c| !is_word(c)).unwrap_or(text.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_found_outside_strings_only() {
        let check = |text: &str, expect: &[&str]| {
            let said = references(text);
            let said: Vec<String> =
                said.iter().map(|r| format!("{}.{}", r.table, r.leaf.as_deref().unwrap_or("*"))).collect();
            assert_eq!(said, expect, "{text}");
        };
        check("{{ vars.a }} vars.b {{ host.hostname }}", &["host.hostname", "vars.a"]);
        check("{{ \"vars.a\" ~ vars['b'] ~ x.vars.c }}", &["vars.b"]);
        check("{% for v in vars %}{{ v }}{% endfor %}", &["vars.*"]);
        check("{{ network.address[0] }}{{ myvars.x }}", &["network.address"]);
        check("{{ vars.", &["vars.*"]);
        check("plain", &[]);
    }
}
