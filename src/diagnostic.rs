//! What is wrong with something the user wrote: place, sentence, hint, and how it is printed.
//!
//! Owns the turning of byte ranges into lines and columns. It reads no file and prints nothing
//! itself. The form is the compilers' `file:line:column: error: …`, which editors jump to;
//! annotate-snippets puts the place on a second line, so the few lines of drawing are here.

use std::fmt::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};

/// How much of a cited line is shown, in characters; a longer one is cut around the mark.
const CITED_CHARACTERS_MAX: usize = 120;

/// How many diagnostics of one file are kept; a file with more is broken enough.
pub const PER_FILE_MAX: usize = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Error,
    Warning,
}

impl Severity {
    fn word(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
        }
    }
}

/// One thing wrong in one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    pub file: PathBuf,
    /// From 1; 0 when the file as a whole is meant.
    pub line: usize,
    /// From 1, in characters; 0 when the file as a whole is meant.
    pub column: usize,
    /// The line as written, without its end.
    pub cited: Box<str>,
    /// Characters to underline from `column` on, at least 1, never past the line's end.
    pub width: usize,
    pub severity: Severity,
    /// A fact in lower case, without a full stop.
    pub message: String,
    pub help: Option<String>,
}

impl Diagnostic {
    /// An error at a byte range of `text`. A range past the end is taken to mean the end.
    pub fn at(file: &Path, text: &str, range: Range<usize>, message: impl Into<String>) -> Self {
        let start = floor(text, range.start);
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[start..].find(['\n', '\r']).map_or(text.len(), |at| start + at);
        let end = floor(text, range.end).clamp(start, line_end.max(start));
        Self {
            line: text[..start].matches('\n').count() + 1,
            column: text[line_start..start].chars().count() + 1,
            cited: text[line_start..line_end.max(start)].trim_end().into(),
            width: text[start..end].chars().count().max(1),
            ..Self::whole(file, message)
        }
    }

    /// An error of the file as a whole, or of one that could not be read.
    pub fn whole(file: &Path, message: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            line: 0,
            column: 0,
            cited: Box::default(),
            width: 0,
            severity: Severity::Error,
            message: message.into(),
            help: None,
        }
    }

    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    #[must_use]
    pub fn warning(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }

    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// `file:line:column`, or the file alone.
    pub fn place(&self) -> String {
        let file = plain(&self.file.to_string_lossy());
        if self.line == 0 { file } else { format!("{file}:{}:{}", self.line, self.column) }
    }

    /// The first line alone, without the severity: `file:line:column: message`.
    pub fn summary(&self) -> String {
        format!("{}: {}", self.place(), plain(&self.message))
    }

    /// All of it, several lines, ending with a newline.
    pub fn render(&self, colour: bool) -> String {
        let paint = |code: &str, text: &str| {
            if colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
        };
        let tint = if self.is_error() { "1;31" } else { "1;33" };
        let severity = paint(tint, self.severity.word());
        let mut out = format!("{}: {severity}: {}\n", self.place(), plain(&self.message));
        if self.line > 0 {
            let number = self.line.to_string();
            let margin = " ".repeat(number.len());
            let (cited, indent, width) = self.window();
            let caret = format!("{}{}", " ".repeat(indent), paint(tint, &"^".repeat(width)));
            out_line(&mut out, &format!("  {number} | {cited}"));
            out_line(&mut out, &format!("  {margin} | {caret}"));
        }
        if let Some(help) = &self.help {
            out_line(&mut out, &format!("  {}: {}", paint("1", "help"), plain(help)));
        }
        out
    }

    /// The part of the cited line to show, the caret's indent in it and its length.
    fn window(&self) -> (String, usize, usize) {
        let characters: Vec<char> = self.cited.chars().map(plain_char).collect();
        let at = self.column.saturating_sub(1).min(characters.len());
        if characters.len() <= CITED_CHARACTERS_MAX {
            return (characters.iter().collect(), at, self.width.max(1));
        }
        let from = at.saturating_sub(CITED_CHARACTERS_MAX / 2);
        let to = (from + CITED_CHARACTERS_MAX).min(characters.len());
        let lead = if from > 0 { "…" } else { "" };
        let tail = if to < characters.len() { "…" } else { "" };
        let shown: String = characters[from..to].iter().collect();
        let indent = at - from + lead.chars().count();
        (format!("{lead}{shown}{tail}"), indent, self.width.max(1).min((to - at).max(1)))
    }

    /// The members of the `--json` form; `line` and `column` are null for a whole file.
    pub fn to_json(&self) -> Value {
        let number = |n: usize| if self.line == 0 { Value::Null } else { n.into() };
        json!({
            "file": self.file.to_string_lossy(),
            "line": number(self.line),
            "column": number(self.column),
            "severity": self.severity.word(),
            "message": self.message,
            "help": self.help,
        })
    }
}

fn out_line(out: &mut String, line: &str) {
    writeln!(out, "{}", line.trim_end()).expect("writing to a String cannot fail");
}

/// The last character boundary at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    text.floor_char_boundary(at.min(text.len()))
}

/// What a terminal would act on is shown as a mark instead: the text comes from a file.
fn plain_char(character: char) -> char {
    match character {
        '\t' => ' ',
        c if c.is_control() => '\u{fffd}',
        c => c,
    }
}

fn plain(text: &str) -> String {
    text.chars().map(plain_char).collect()
}

/// Sorts by file and place, drops doubles, and keeps at most [`PER_FILE_MAX`] of each file.
pub fn sort(diagnostics: &mut Vec<Diagnostic>) {
    diagnostics.sort_by(|a, b| {
        (&a.file, a.line, a.column, a.severity, &a.message)
            .cmp(&(&b.file, b.line, b.column, b.severity, &b.message))
    });
    diagnostics.dedup();
    let mut seen = 0;
    let mut last: Option<PathBuf> = None;
    diagnostics.retain(|diagnostic| {
        if last.as_ref() != Some(&diagnostic.file) {
            last = Some(diagnostic.file.clone());
            seen = 0;
        }
        seen += 1;
        seen <= PER_FILE_MAX
    });
}

/// All of them, sorted, with an empty line between.
pub fn render(diagnostics: &[Diagnostic], colour: bool) -> String {
    let parts: Vec<String> = diagnostics.iter().map(|d| d.render(colour)).collect();
    parts.join("\n")
}

pub fn has_errors(diagnostics: &[Diagnostic]) -> bool {
    diagnostics.iter().any(Diagnostic::is_error)
}

/// `did you mean …?`, when one of `known` is near enough to `word` to be what was meant.
pub fn did_you_mean<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<String> {
    nearest(word, known).map(|best| format!("did you mean `{best}`?"))
}

/// The nearest of `known`: a slip or two of the fingers, or one being a part of the other.
pub fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let near = |candidate: &str| strsim::damerau_levenshtein(word, candidate);
    let allowed = (word.chars().count() / 3).clamp(1, 3);
    known
        .into_iter()
        .map(|candidate| (near(candidate), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, range: Range<usize>, expect: &str) {
        let shown = Diagnostic::at(Path::new("f.toml"), text, range, "wrong").render(false);
        assert_eq!(shown, expect, "{text:?}");
    }

    #[test]
    fn places_are_lines_and_characters() {
        check("a = 1\nbé = 2\n", 9..10, "f.toml:2:3: error: wrong\n  2 | bé = 2\n    |   ^\n");
        check("a = 1\nbcd = 2", 6..9, "f.toml:2:1: error: wrong\n  2 | bcd = 2\n    | ^^^\n");
        check("a = 1\r\nb", 4..7, "f.toml:1:5: error: wrong\n  1 | a = 1\n    |     ^\n");
        check("x", 90..99, "f.toml:1:2: error: wrong\n  1 | x\n    |  ^\n");
        check("é", 1..2, "f.toml:1:1: error: wrong\n  1 | é\n    | ^\n");
        check("a\u{1b}[2J", 0..1, "f.toml:1:1: error: wrong\n  1 | a\u{fffd}[2J\n    | ^\n");
    }

    #[test]
    fn long_lines_are_cut_around_the_mark() {
        let text = "x".repeat(1000);
        let shown = Diagnostic::at(Path::new("f"), &text, 500..900, "m").render(false);
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines[1].chars().count() < CITED_CHARACTERS_MAX + 12 && lines[1].ends_with('…'));
        assert!(lines[2].chars().count() <= lines[1].chars().count(), "{shown}");
    }

    #[test]
    fn sorted_by_file_and_place_and_bounded() {
        let at = |file: &str, line| Diagnostic { line, ..Diagnostic::whole(Path::new(file), "m") };
        let mut all = vec![at("b", 1), at("a", 9), at("a", 2), at("a", 2)];
        all.extend((0..200).map(|n| at("c", n)));
        sort(&mut all);
        let head: Vec<String> = all.iter().take(3).map(Diagnostic::place).collect();
        assert_eq!(head, ["a:2:0", "a:9:0", "b:1:0"]);
        assert_eq!(all.len(), 3 + PER_FILE_MAX);
    }

    #[test]
    fn near_words_are_found_and_far_ones_are_not() {
        let known = ["memory", "memory_high", "cpu", "swap"];
        assert_eq!(nearest("memroy", known), Some("memory"));
        assert_eq!(nearest("cpus", known), Some("cpu"));
        assert_eq!(nearest("banana", known), None);
    }

    #[test]
    fn json_has_null_for_a_whole_file() {
        let value = Diagnostic::whole(Path::new("f"), "m").help("h").to_json();
        assert_eq!(value["line"], Value::Null);
        assert_eq!((&value["severity"], &value["help"]), (&"error".into(), &"h".into()));
    }
}
