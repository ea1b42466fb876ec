//! `doctor`: what this host can do and what not, each line with its remedy. Everything is tried,
//! in a child process or a cgroup of its own where a trial leaves traces; nothing is repaired.

mod host;
mod kernel;
mod limits;
mod storage;
mod trial;

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{DONE, FAILED, Options, output};
use crate::source;

const WRITES: &str = "writing to a String cannot fail";

/// How one thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Ok,
    /// Jails run, but something they may ask for does not work.
    Limited,
    /// No jail, or no jail of the default profile, can start.
    No,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Limited => "limited",
            Self::No => "no",
        }
    }

    fn colour(self) -> &'static str {
        match self {
            Self::Ok => "\x1b[32m",
            Self::Limited => "\x1b[33m",
            Self::No => "\x1b[31m",
        }
    }
}

/// One line.
#[derive(Clone, Debug)]
struct Line {
    what: &'static str,
    verdict: Verdict,
    /// What was seen.
    seen: String,
    remedy: Option<String>,
}

impl Line {
    fn ok(what: &'static str, seen: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Ok, seen: seen.into(), remedy: None }
    }

    fn limited(what: &'static str, seen: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Limited, seen: seen.into(), remedy: Some(remedy.into()) }
    }

    fn no(what: &'static str, seen: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::No, seen: seen.into(), remedy: Some(remedy.into()) }
    }

    /// `ok` when the trial went well, else as `wrong` with what it said.
    fn tried(
        what: &'static str,
        trial: Result<String, String>,
        wrong: fn(&'static str, String, &'static str) -> Self,
        remedy: &'static str,
    ) -> Self {
        match trial {
            Ok(seen) => Self::ok(what, seen),
            Err(seen) => wrong(what, seen, remedy),
        }
    }
}

pub fn doctor(options: &Options) -> i32 {
    let config = source::host(&options.paths());
    let mut lines = kernel::lines(&config);
    lines.extend(limits::lines(&config));
    lines.extend(storage::lines(&config));
    lines.extend(host::lines(&config));
    if options.json {
        output::json_text(&output::envelope("doctor", lines.iter().map(item).collect()));
    } else {
        output::text(&text(&lines, output::colour(&std::io::stdout())));
    }
    if lines.iter().any(|line| line.verdict == Verdict::No) { FAILED } else { DONE }
}

fn item(line: &Line) -> Value {
    json!({
        "what": line.what,
        "verdict": line.verdict.word(),
        "seen": line.seen,
        "remedy": line.remedy,
    })
}

fn text(lines: &[Line], colour: bool) -> String {
    let width = lines.iter().map(|line| line.what.len()).max().unwrap_or(0);
    let mut text = String::new();
    for line in lines {
        let word = line.verdict.word();
        let (on, off) = if colour { (line.verdict.colour(), "\x1b[0m") } else { ("", "") };
        writeln!(text, "{on}{word:<7}{off}  {:<width$}  {}", line.what, line.seen).expect(WRITES);
        if let Some(remedy) = &line.remedy {
            writeln!(text, "{:9}{:width$}  remedy: {remedy}", "", "").expect(WRITES);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_says_how_it_stands_and_what_helps() {
        let lines = [Line::ok("kernel", "6.18"), Line::no("bridge", "EPERM", "load it")];
        let expect = "ok       kernel  6.18\nno       bridge  EPERM\n                 remedy: load it\n";
        assert_eq!(text(&lines, false), expect);
        assert!(text(&lines, true).contains("\x1b[31mno"));
        assert_eq!(item(&lines[1])["verdict"], "no");
    }
}
