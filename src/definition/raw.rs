//! One file's TOML as an owned tree in which every value knows its place.
//!
//! Owns the reading of TOML and of expressions' presence; what the values mean is not its business.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::diagnostic::Diagnostic;

/// A file as it was read.
#[derive(Debug, PartialEq, Eq)]
pub struct Text {
    pub file: PathBuf,
    pub text: String,
}

impl Text {
    pub fn new(file: &Path, text: &str) -> Arc<Self> {
        Arc::new(Self { file: file.to_owned(), text: text.to_owned() })
    }

    pub fn error(&self, span: &Range<usize>, message: impl Into<String>) -> Diagnostic {
        Diagnostic::at(&self.file, &self.text, span.clone(), message)
    }
}

/// A value and where it stands, in bytes.
#[derive(Clone, Debug)]
pub struct Raw {
    pub span: Range<usize>,
    pub value: RawValue,
    /// A string whose expressions have been worked out: it may stand for a number or a bool now.
    pub expanded: bool,
}

#[derive(Clone, Debug)]
pub enum RawValue {
    Text(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    Date(String),
    /// A number TOML allows and 64 bits do not.
    TooLarge,
    List(Vec<Raw>),
    Table(Vec<Member>),
}

#[derive(Clone, Debug)]
pub struct Member {
    pub name: String,
    pub span: Range<usize>,
    pub raw: Raw,
}

impl Raw {
    /// What it is, for "expected a size, found …".
    pub fn noun(&self) -> &'static str {
        match &self.value {
            RawValue::Text(_) => "a string",
            RawValue::Integer(_) => "a number",
            RawValue::Float(_) => "a decimal number",
            RawValue::Bool(_) => "true or false",
            RawValue::Date(_) => "a date",
            RawValue::TooLarge => "a number too large",
            RawValue::List(_) => "a list",
            RawValue::Table(_) => "a table",
        }
    }

    /// Whether a string in it still waits for its expressions to be worked out.
    pub fn has_expression(&self) -> bool {
        match &self.value {
            RawValue::Text(text) => !self.expanded && is_expression(text),
            RawValue::List(items) => items.iter().any(Raw::has_expression),
            RawValue::Table(members) => members.iter().any(|member| member.raw.has_expression()),
            _ => false,
        }
    }

    /// A copy in which `work_out` has replaced each string that holds an expression. `None` when
    /// one could not be replaced.
    pub fn expand(&self, work_out: &mut impl FnMut(&str, &Range<usize>) -> Option<String>) -> Option<Raw> {
        let value = match &self.value {
            RawValue::Text(text) if is_expression(text) => RawValue::Text(work_out(text, &self.span)?),
            RawValue::List(items) => {
                // All are worked out before the first failure counts, so that all are reported.
                let items: Vec<Option<Raw>> = items.iter().map(|item| item.expand(work_out)).collect();
                RawValue::List(items.into_iter().collect::<Option<_>>()?)
            }
            RawValue::Table(members) => {
                let copy =
                    |member: &Member| Some(Member { raw: member.raw.expand(work_out)?, ..member.clone() });
                RawValue::Table(members.iter().map(copy).collect::<Option<_>>()?)
            }
            other => other.clone(),
        };
        Some(Raw { span: self.span.clone(), value, expanded: true })
    }
}

/// Whether Tera would do anything to it; a plain string never meets Tera.
pub fn is_expression(text: &str) -> bool {
    // Most strings have no brace at all, and one byte is found faster than two.
    text.contains('{') && (text.contains("{{") || text.contains("{%"))
}

/// Reads TOML as far as it can be understood, with an error for each thing that cannot.
pub fn read(source: &Text) -> (Vec<Member>, Vec<Diagnostic>) {
    let (table, errors) = DeTable::parse_recoverable(&source.text);
    let diagnostic = |error: toml::de::Error| {
        let span = error.span().unwrap_or(0..0);
        let message = error.message().lines().collect::<Vec<_>>().join(", ");
        // The reader takes nothing for a string without quotes.
        let nothing = span.is_empty() && message.starts_with("string values must be quoted");
        source.error(&span, if nothing { "a value is missing".to_owned() } else { message })
    };
    let mut diagnostics: Vec<Diagnostic> = errors.into_iter().map(diagnostic).collect();
    diagnostics.sort_by_key(|found| (found.line, found.column));
    drop_echoes(&mut diagnostics);
    (members(table.get_ref()), diagnostics)
}

/// One slip can make several errors of its line, and the same one of each line that follows; the
/// first says it best.
fn drop_echoes(sorted: &mut Vec<Diagnostic>) {
    let mut last = (0, String::new());
    sorted.retain(|found| {
        let same_line = found.line == last.0;
        let echo = found.line == last.0 + 1 && found.message == last.1;
        if !same_line {
            last = (found.line, found.message.clone());
        }
        !same_line && !echo
    });
}

fn members(table: &DeTable<'_>) -> Vec<Member> {
    let member = |(name, value): (&Spanned<std::borrow::Cow<'_, str>>, &Spanned<DeValue<'_>>)| Member {
        name: name.get_ref().to_string(),
        span: name.span(),
        raw: raw(value),
    };
    table.iter().map(member).collect()
}

fn raw(value: &Spanned<DeValue<'_>>) -> Raw {
    let converted = match value.get_ref() {
        DeValue::String(text) => RawValue::Text(text.to_string()),
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).map_or(RawValue::TooLarge, RawValue::Integer)
        }
        DeValue::Float(number) => number.as_str().parse().map_or(RawValue::TooLarge, RawValue::Float),
        DeValue::Boolean(yes) => RawValue::Bool(*yes),
        DeValue::Datetime(date) => RawValue::Date(date.to_string()),
        DeValue::Array(items) => RawValue::List(items.iter().map(raw).collect()),
        DeValue::Table(table) => RawValue::Table(members(table)),
    };
    Raw { span: value.span(), value: converted, expanded: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_syntax_error_is_found_once_a_line() {
        let text = Text::new(Path::new("f"), "a = \nb = 1\nb = 2\nc = [1,\n");
        let (members, errors) = read(&text);
        let lines: Vec<usize> = errors.iter().map(|error| error.line).collect();
        assert!(lines.contains(&1) && lines.contains(&3) && lines.len() >= 3, "{errors:?}");
        assert!(members.iter().any(|member| member.name == "b"));
    }

    #[test]
    fn expressions_are_seen_and_replaced_at_any_depth() {
        let text = Text::new(Path::new("f"), "a = [{ b = \"{{ x }}\" }, \"plain\"]\nc = 0x1F\nd = 1_000\n");
        let (members, errors) = read(&text);
        assert!(errors.is_empty() && members[0].raw.has_expression() && !members[1].raw.has_expression());
        assert!(matches!(members[1].raw.value, RawValue::Integer(31)));
        assert!(matches!(members[2].raw.value, RawValue::Integer(1000)));
        let mut seen = Vec::new();
        let copy = members[0].raw.expand(&mut |text, _| {
            seen.push(text.to_owned());
            Some("1".into())
        });
        assert_eq!(seen, ["{{ x }}"]);
        assert!(!copy.expect("every string was replaced").has_expression());
        assert!(members[0].raw.expand(&mut |_, _| None).is_none());
    }
}
