//! One file: its text to the keys it sets, each with its place, and every error in it.
//!
//! Pure. What needs more than one file (defaults, variables, clashes) is `resolve`'s.

mod host;
mod publish;
mod raw;
mod rows;
mod units;
mod value;
mod walk;
mod word;
mod wrong;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use crate::diagnostic::Diagnostic;
use crate::jail::JailName;
use crate::keys::Key;

pub use host::{RawHost, parse_host};
pub use publish::parse as parse_publish;
pub use raw::{Raw, RawValue, Text, is_expression};
pub use units::duration;
pub use value::Report;

/// Where a key of a jail was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In its own file.
    Own,
    /// In `[defaults]`.
    Defaults,
    /// In `[enforce]`.
    Enforce,
}

/// One key as it was written.
#[derive(Debug)]
pub struct Entry {
    pub key: &'static Key,
    /// The member of a table key: `LANG` of `exec.env`. Empty for other keys.
    pub member: String,
    /// Where its name stands.
    pub span: Range<usize>,
    pub raw: Raw,
    pub source: Arc<Text>,
    pub origin: Origin,
    /// The normal form; absent with an error, and as long as an expression is not worked out.
    pub value: Option<Value>,
    /// Holds an expression.
    pub deferred: bool,
}

impl Entry {
    /// The dotted name with its member, as errors and loops call it.
    pub fn name(&self) -> String {
        if self.member.is_empty() {
            self.key.name.to_owned()
        } else {
            format!("{}.{}", self.key.name, self.member)
        }
    }

    /// The normal form of `raw`, which is this entry's with its expressions worked out.
    pub fn normalise(&self, raw: &Raw, report: &mut Report<'_>) -> Option<Value> {
        walk::normal_form(self.key, &self.member, raw, report)
    }

    /// An error at the key's name.
    pub fn error(&self, message: impl Into<String>) -> Diagnostic {
        self.source.error(&self.span, message)
    }
}

/// The normal form of a value that no file of ours says, such as an image's; what looks like an
/// expression in it is none.
pub fn normal_form(key: &str, member: &str, value: RawValue) -> Result<Value, String> {
    let key = crate::keys::find(key).ok_or_else(|| format!("`{key}` is no key"))?;
    let source = Text::new(Path::new(""), "");
    let mut report = Report::new(&source);
    let raw = Raw { span: 0..0, value, expanded: true };
    let value = walk::normal_form(key, member, &raw, &mut report);
    match report.found.into_iter().next() {
        Some(wrong) => Err(wrong.message),
        None => value.ok_or_else(|| "it cannot be understood".to_owned()),
    }
}

/// A string in such a value.
pub fn text(word: &str) -> Raw {
    Raw { span: 0..0, value: RawValue::Text(word.to_owned()), expanded: true }
}

/// Keys by their dotted name and member.
pub type Entries = BTreeMap<(&'static str, String), Arc<Entry>>;

/// One definition file, as far as it could be understood. A copy shares what was read.
#[derive(Clone, Debug)]
pub struct RawDefinition {
    pub name: JailName,
    pub source: Arc<Text>,
    pub entries: Arc<Entries>,
}

/// Reads a definition file. The definition is there even when it has errors, so that `resolve`
/// can find more of them; it is absent only when the file's name is no jail's.
pub fn parse(file: &Path, text: &str) -> (Option<RawDefinition>, Vec<Diagnostic>) {
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let name = match JailName::new(&stem) {
        Ok(name) => name,
        Err(message) => return (None, vec![Diagnostic::whole(file, message)]),
    };
    let source = Text::new(file, text);
    let (members, mut diagnostics) = raw::read(&source);
    let (entries, found) = walk::entries(members, &source, Origin::Own);
    add_unless_syntax(&mut diagnostics, found);
    (Some(RawDefinition { name, source, entries: Arc::new(entries) }), diagnostics)
}

/// Adds what was found in the tree, except on lines whose syntax is broken: the tree is a guess there.
fn add_unless_syntax(diagnostics: &mut Vec<Diagnostic>, found: Vec<Diagnostic>) {
    let broken: Vec<usize> = diagnostics.iter().map(|diagnostic| diagnostic.line).collect();
    diagnostics.extend(found.into_iter().filter(|diagnostic| !broken.contains(&diagnostic.line)));
}

/// Whether a file in jails.d is an editor's or a package manager's leftover, to be passed over in
/// silence. Anything else that is not `NAME.toml` is passed over with a warning.
pub fn is_leftover(file_name: &str) -> bool {
    let ends = [".bak", ".swp", ".swx", ".swo", ".orig", ".rej", ".tmp", ".part", "~"];
    file_name.starts_with('.')
        || ends.iter().any(|end| file_name.ends_with(end))
        || file_name.contains(".dpkg-")
        || [".rpmnew", ".rpmsave", ".rpmorig"].iter().any(|end| file_name.ends_with(end))
        || (file_name.starts_with('#') && file_name.ends_with('#'))
        // vim's probe for a writable directory.
        || file_name == "4913"
}

#[cfg(test)]
mod tests;
