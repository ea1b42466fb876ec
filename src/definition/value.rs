//! From what was written to the normal form of a key, by its kind.
//!
//! A string that still holds an expression is passed over: it is checked again when worked out.

use serde_json::{Map, Value};

use crate::diagnostic::Diagnostic;
use crate::keys::{Built, Key, Kind, Word, show};

use super::raw::{Raw, RawValue, Text};
use super::rows;
use super::units;
use super::word;
use super::wrong::Wrong;

/// setrlimit(2)'s names.
const RLIMITS: &[&str] = &[
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];
/// Those counted in bytes, which may have a unit.
const RLIMITS_OF_BYTES: &[&str] = &["as", "core", "data", "fsize", "memlock", "msgqueue", "rss", "stack"];

/// Where errors go, and the file they are of.
pub struct Report<'a> {
    pub source: &'a Text,
    pub found: Vec<Diagnostic>,
}

impl<'a> Report<'a> {
    pub fn new(source: &'a Text) -> Self {
        Self { source, found: Vec::new() }
    }

    pub fn wrong(&mut self, raw: &Raw, wrong: Wrong) {
        self.at(&raw.span, wrong);
    }

    pub fn at(&mut self, span: &std::ops::Range<usize>, wrong: Wrong) {
        let mut diagnostic = self.source.error(span, wrong.message);
        diagnostic.help = wrong.help;
        self.found.push(diagnostic);
    }
}

/// The normal form of a whole key, with an error for each thing wrong in it.
pub fn normalise(key: &Key, raw: &Raw, report: &mut Report<'_>) -> Option<Value> {
    let value = by_kind(key.name, key.kind, raw, report)?;
    if let Some(wrong) = not_built(key, &value) {
        report.wrong(raw, wrong);
    }
    Some(value)
}

/// The normal form of one member of a table key: an environment variable, an rlimit, a var.
pub fn normalise_member(key: &Key, name: &str, raw: &Raw, report: &mut Report<'_>) -> Option<Value> {
    match key.kind {
        Kind::StringMap => {
            text(&format!("{}.{name}", key.name), Word::Argument, raw, report).map(Value::String)
        }
        Kind::Rlimits => accept(raw, rlimit(name, raw), report).flatten().map(Value::from),
        _ => free(raw, report),
    }
}

/// Why `name` cannot be a member of the table `key`.
pub fn member_name(key: &Key, name: &str) -> Option<Wrong> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let identifier = name.bytes().all(good) && !name.starts_with(|c: char| c.is_ascii_digit());
    match key.kind {
        Kind::Rlimits => word::one_of("a resource limit", name, RLIMITS).err(),
        _ if identifier && !name.is_empty() => None,
        Kind::StringMap => Some(Wrong::new(format!("`{name}` is not the name of an environment variable"))),
        _ => {
            let help = "letters, digits and _, so that an expression can say it";
            Some(Wrong::help(format!("`{name}` is not the name of a variable"), help))
        }
    }
}

fn not_built(key: &Key, value: &Value) -> Option<Wrong> {
    let built = match key.built {
        Built::All => true,
        Built::Nothing => false,
        Built::Zero => value.as_u64() == Some(0),
    };
    if built {
        return None;
    }
    let what = match key.built {
        Built::Nothing => key.name.to_owned(),
        _ => format!("{} = {}", key.name, crate::keys::toml_text(value)),
    };
    let help = "stockade refuses what it cannot enforce; remove the key to go on without it";
    Some(Wrong::help(format!("`{what}` is not built yet in this version"), help))
}

fn by_kind(name: &str, kind: Kind, raw: &Raw, report: &mut Report<'_>) -> Option<Value> {
    match kind {
        Kind::Bool => boolean(name, raw, report).map(Value::Bool),
        Kind::Size { min, max } => {
            let number = with_unit(name, kind, raw, report, units::size, units::SIZE_HELP)?;
            in_range(name, number, min, max, raw, report)
        }
        Kind::Duration { min, max } => {
            let number = with_unit(name, kind, raw, report, units::duration, units::DURATION_HELP)?;
            in_range(name, number, min, max, raw, report)
        }
        Kind::Cpus => cpus(name, raw, report),
        Kind::Count { min, max } => {
            let number = count(name, raw, report)?;
            in_range(name, number, min, max, raw, report)
        }
        Kind::Choice(words) => {
            let text = text(name, Word::Argument, raw, report)?;
            accept(raw, word::one_of(&format!("a value of `{name}`"), &text, words), report)
                .map(Value::String)
        }
        Kind::Text(word) => text(name, word, raw, report).map(Value::String),
        Kind::List { of, min, max } => list(name, of, (min, max), raw, report),
        Kind::Tables(rows) => rows::tables(name, rows, raw, report),
        // Written member by member; see `normalise_member`.
        Kind::StringMap | Kind::Rlimits | Kind::Vars | Kind::Jail | Kind::OnChange => free(raw, report),
    }
}

/// One value of a row of an inner table.
pub fn inner(key: &Key, raw: &Raw, report: &mut Report<'_>) -> Option<Value> {
    by_kind(key.name, key.kind, raw, report)
}

fn accept<T>(raw: &Raw, result: Result<T, Wrong>, report: &mut Report<'_>) -> Option<T> {
    result.map_err(|wrong| report.wrong(raw, wrong)).ok()
}

pub fn wrong_type(name: &str, noun: &str, raw: &Raw) -> Wrong {
    Wrong::new(format!("`{name}` must be {noun}, not {}", raw.noun()))
}

fn boolean(name: &str, raw: &Raw, report: &mut Report<'_>) -> Option<bool> {
    match &raw.value {
        RawValue::Bool(yes) => return Some(*yes),
        RawValue::Text(text) if raw.expanded && text.trim() == "true" => return Some(true),
        RawValue::Text(text) if raw.expanded && text.trim() == "false" => return Some(false),
        RawValue::Text(_) if raw.has_expression() => return None,
        _ => {}
    }
    let mut wrong = wrong_type(name, "true or false", raw);
    if matches!(raw.value, RawValue::Text(_)) && !raw.expanded {
        wrong.help = Some("write it without quotes".to_owned());
    }
    report.wrong(raw, wrong);
    None
}

/// A string of the kind `word`.
pub fn text(name: &str, word: Word, raw: &Raw, report: &mut Report<'_>) -> Option<String> {
    let RawValue::Text(written) = &raw.value else {
        let mut wrong = wrong_type(name, word.noun(), raw);
        wrong.help = match &raw.value {
            RawValue::Integer(number) => Some(format!("write \"{number}\"")),
            RawValue::Bool(yes) => Some(format!("write \"{yes}\"")),
            _ => None,
        };
        report.wrong(raw, wrong);
        return None;
    };
    if raw.has_expression() {
        return None;
    }
    accept(raw, word::check(word, written), report)
}

/// A string with a unit; a bare number is told which.
fn with_unit(
    name: &str,
    kind: Kind,
    raw: &Raw,
    report: &mut Report<'_>,
    read: fn(&str) -> Result<u64, Wrong>,
    help: &str,
) -> Option<u64> {
    match &raw.value {
        RawValue::Text(_) if raw.has_expression() => None,
        RawValue::Text(text) => accept(raw, read(text), report),
        RawValue::Integer(number) => {
            report.wrong(raw, Wrong::help(format!("`{name} = {number}` has no unit"), help));
            None
        }
        _ => {
            report.wrong(raw, wrong_type(name, kind.noun(), raw));
            None
        }
    }
}

fn in_range(
    name: &str,
    number: u64,
    min: u64,
    max: u64,
    raw: &Raw,
    report: &mut Report<'_>,
) -> Option<Value> {
    if (min..=max).contains(&number) {
        return Some(number.into());
    }
    let text = |number: u64| show(name, &number.into());
    let bound =
        if number < min { format!("at least {}", text(min)) } else { format!("at most {}", text(max)) };
    report.wrong(raw, Wrong::new(format!("`{name}` must be {bound}")));
    None
}

fn count(name: &str, raw: &Raw, report: &mut Report<'_>) -> Option<u64> {
    let found = match &raw.value {
        RawValue::Integer(number) => u64::try_from(*number).ok(),
        RawValue::Text(text) if raw.expanded => text.trim().parse().ok(),
        RawValue::Text(_) if raw.has_expression() => return None,
        _ => None,
    };
    if found.is_none() {
        let mut wrong = match raw.value {
            RawValue::Integer(_) => Wrong::new(format!("`{name}` cannot be negative")),
            _ => wrong_type(name, "a whole number", raw),
        };
        if matches!(&raw.value, RawValue::Text(text) if text.parse::<u64>().is_ok()) {
            wrong.help = Some("write it without quotes".to_owned());
        }
        report.wrong(raw, wrong);
    }
    found
}

fn cpus(name: &str, raw: &Raw, report: &mut Report<'_>) -> Option<Value> {
    let number = match &raw.value {
        #[allow(clippy::cast_precision_loss)]
        RawValue::Integer(number) => *number as f64,
        RawValue::Float(number) => *number,
        RawValue::Text(_) if raw.has_expression() => return None,
        RawValue::Text(text) if raw.expanded && text.trim().parse::<f64>().is_ok() => {
            text.trim().parse().unwrap_or_default()
        }
        _ => {
            report.wrong(raw, wrong_type(name, "a number of CPUs such as 1.5", raw));
            return None;
        }
    };
    accept(raw, units::cpus(number), report).map(Value::from)
}

fn list(
    name: &str,
    of: Word,
    (min, max): (usize, usize),
    raw: &Raw,
    report: &mut Report<'_>,
) -> Option<Value> {
    let RawValue::List(items) = &raw.value else {
        let mut wrong = wrong_type(name, "a list of strings", raw);
        if let RawValue::Text(text) = &raw.value {
            wrong.help = Some(format!("write [{}]", crate::keys::toml_text(&text.as_str().into())));
        }
        report.wrong(raw, wrong);
        return None;
    };
    if items.len() < min || items.len() > max {
        let bound = if items.len() < min { format!("at least {min}") } else { format!("at most {max}") };
        report.wrong(raw, Wrong::new(format!("`{name}` has {} entries and must have {bound}", items.len())));
        return None;
    }
    let checked: Vec<Option<String>> = items.iter().map(|item| text(name, of, item, report)).collect();
    doubled(name, of, &checked, items, report);
    checked.into_iter().map(|item| item.map(Value::String)).collect::<Option<_>>().map(Value::Array)
}

/// An entry twice is a slip, except among lines and arguments.
fn doubled(name: &str, of: Word, checked: &[Option<String>], items: &[Raw], report: &mut Report<'_>) {
    if matches!(of, Word::Line | Word::Argument) {
        return;
    }
    for (index, item) in checked.iter().enumerate() {
        if let Some(text) = item
            && checked[..index].contains(item)
        {
            report.wrong(&items[index], Wrong::new(format!("`{text}` is in `{name}` twice")));
        }
    }
}

/// A number, a size for those counted in bytes, or `unlimited`. `Ok(None)` waits for an expression.
fn rlimit(name: &str, raw: &Raw) -> Result<Option<u64>, Wrong> {
    let wrong = || wrong_type(&format!("security.rlimits.{name}"), "a number or \"unlimited\"", raw);
    match &raw.value {
        RawValue::Integer(number) => u64::try_from(*number).map(Some).map_err(|_| wrong()),
        RawValue::Text(_) if raw.has_expression() => Ok(None),
        RawValue::Text(text) if text == "unlimited" => Ok(Some(u64::MAX)),
        RawValue::Text(text) if raw.expanded && text.trim().parse::<u64>().is_ok() => {
            Ok(text.trim().parse().ok())
        }
        RawValue::Text(text) if RLIMITS_OF_BYTES.contains(&name) => units::size(text).map(Some),
        _ => Err(wrong()),
    }
}

/// Any TOML as JSON; dates become strings.
fn free(raw: &Raw, report: &mut Report<'_>) -> Option<Value> {
    match &raw.value {
        RawValue::Text(_) if raw.has_expression() => None,
        RawValue::Text(text) | RawValue::Date(text) => Some(text.as_str().into()),
        RawValue::Integer(number) => Some((*number).into()),
        RawValue::Bool(yes) => Some((*yes).into()),
        RawValue::Float(number) if number.is_finite() => Some((*number).into()),
        RawValue::Float(_) | RawValue::TooLarge => {
            report.wrong(raw, Wrong::new("a number that 64 bits cannot hold"));
            None
        }
        RawValue::List(items) => {
            let items: Vec<Option<Value>> = items.iter().map(|item| free(item, report)).collect();
            items.into_iter().collect::<Option<_>>().map(Value::Array)
        }
        RawValue::Table(members) => {
            let mut map = Map::new();
            for member in members {
                map.insert(member.name.clone(), free(&member.raw, report)?);
            }
            Some(Value::Object(map))
        }
    }
}
