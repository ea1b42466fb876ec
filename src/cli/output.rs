//! How results, errors and progress are printed: text for people, an envelope for programs.

use std::io::{IsTerminal, Write};

use serde_json::{Value, json};

use super::Options;
use crate::diagnostic::{self, Diagnostic};

/// `{"schema": 1, "kind": …, "items": […]}`.
#[allow(clippy::needless_pass_by_value)]
pub fn envelope(kind: &str, items: Value) -> Value {
    json!({ "schema": 1, "kind": kind, "items": items })
}

/// Prints to standard output.
pub fn text(text: &str) {
    let mut out = std::io::stdout().lock();
    let ended = out
        .write_all(text.as_bytes())
        .and_then(|()| if text.ends_with('\n') { Ok(()) } else { out.write_all(b"\n") });
    if let Err(error) = ended {
        unwritten(&error);
    }
}

/// `stockade ls | head` ends quietly, as other programs do; any other reason is said.
pub fn unwritten(error: &std::io::Error) -> ! {
    if error.kind() == std::io::ErrorKind::BrokenPipe {
        crate::sys::process::end_by_pipe_signal();
    }
    eprintln!("stockade: write to standard output: {error}");
    std::process::exit(super::FAILED);
}

pub fn json_text(value: &Value) {
    text(&serde_json::to_string_pretty(value).expect("a value made here is always JSON"));
}

/// The error chain on one line, or as JSON where that was asked for.
pub fn error(options: &Options, error: &anyhow::Error) {
    if options.json {
        eprintln!("{}", envelope("errors", json!([{ "message": format!("{error:#}") }])));
    } else {
        let text = crate::init::program::reason(error);
        eprintln!("stockade: {text}");
        if let Some(hint) = hint(error, rustix::process::geteuid().is_root()) {
            eprintln!("  help: {hint}");
        }
    }
}

/// What may help with an error that says only what was refused.
fn hint(error: &anyhow::Error, is_root: bool) -> Option<&'static str> {
    let refused = |cause: &(dyn std::error::Error + 'static)| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
    };
    (!is_root && error.chain().any(refused)).then_some("this needs root")
}

/// All diagnostics, to standard error.
pub fn diagnostics(options: &Options, found: &[Diagnostic]) {
    if found.is_empty() {
        return;
    }
    if options.json {
        let items: Vec<Value> = found.iter().map(Diagnostic::to_json).collect();
        eprintln!("{}", envelope("diagnostics", items.into()));
    } else {
        eprint!("{}", diagnostic::render(found, colour(&std::io::stderr())));
    }
}

/// Colour only on a terminal, and not where NO_COLOR is set.
pub fn colour(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A table without lines and without blanks at the ends of its rows.
pub fn plain(table: &mut comfy_table::Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt() + "\n"
}

/// Yes or no on the terminal; `None` without one.
pub fn ask(question: &str) -> std::io::Result<Option<bool>> {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Ok(None);
    }
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(Some(matches!(answer.trim(), "y" | "Y" | "yes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_root_is_told_so_where_that_is_why() {
        let error = |errno| {
            anyhow::Error::new(std::io::Error::from_raw_os_error(errno))
                .context("make directory /run/stockade")
        };
        assert_eq!(hint(&error(libc::EACCES), false), Some("this needs root"));
        assert_eq!(hint(&error(libc::EPERM), false), Some("this needs root"));
        assert_eq!(hint(&error(libc::EACCES), true), None);
        assert_eq!(hint(&error(libc::ENOENT), false), None);
    }
}
