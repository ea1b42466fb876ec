//! Text with Tera expressions in it, rendered with named variables alone.
//!
//! Pure: no environment, no files, no randomness, and the same input gives the same output (the
//! maps of Tera keep their order by its `preserve_order` feature). What a template may cost is
//! bounded without threads: `scan` puts a call into every loop body and after every `set`, and
//! those calls, like the writer, stop the rendering once a limit is passed. The clock is read for
//! that one purpose and decides nothing else.

mod scan;

use std::cell::Cell;
use std::io::{self, Write};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use tera::{Context, Error, ErrorKind, Kwargs, State, StringInput, Tera, Value};

/// The longest text with expressions, in bytes.
pub const TEXT_BYTES_MAX: usize = 256 << 10;
/// The longest result, in bytes.
pub const OUTPUT_BYTES_MAX: usize = 1 << 20;
/// The largest value a variable of the template may take, strings and members counted, in bytes.
pub const VALUE_BYTES_MAX: usize = 128 << 10;
/// Passes through loop bodies in one rendering, all loops together.
pub const PASSES_MAX: u32 = 100_000;
/// How long one rendering may take.
pub const RENDER_TIME_MAX: Duration = Duration::from_secs(5);

/// What is wrong with a text, and at which of its bytes, where that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub at: Option<usize>,
    pub message: String,
}

impl Fault {
    fn whole(message: impl Into<String>) -> Self {
        Self { at: None, message: message.into() }
    }
}

/// Renders `text` as [`render_at`] does. An error reads `line:column: what`, counted from 1 in
/// `text`, wherever the place is known.
pub fn render(text: &str, variables: &serde_json::Value) -> Result<String, String> {
    render_at(text, variables).map_err(|fault| match fault.at {
        Some(at) => format!("{}: {}", place(text, at), fault.message),
        None => fault.message,
    })
}

/// Renders `text`, in which an undefined variable is an error and nothing is escaped.
/// `variables` is a JSON object.
pub fn render_at(text: &str, variables: &serde_json::Value) -> Result<String, Fault> {
    if !has_expression(text) {
        return Ok(text.to_owned());
    }
    if text.len() > TEXT_BYTES_MAX {
        let length = text.len();
        return Err(Fault::whole(format!(
            "a text with expressions may have {TEXT_BYTES_MAX} bytes, not {length}"
        )));
    }
    let guarded = scan::guard(text)?;
    let context = Context::from_serialize(variables).map_err(|error| Fault::whole(error.to_string()))?;
    LEFT.set(Left { passes: PASSES_MAX, deadline: Some(Instant::now() + RENDER_TIME_MAX) });
    let mut out = Bounded(Vec::new());
    ENGINE
        .render_str_to(&guarded.text, &context, false, &mut out)
        .map_err(|error| explain(&error, &guarded))?;
    String::from_utf8(out.0).map_err(|_| Fault::whole("the result is not UTF-8"))
}

/// `line:column` of byte `at`, both from 1, columns in characters.
fn place(text: &str, at: usize) -> String {
    let before = &text[..text.floor_char_boundary(at.min(text.len()))];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    format!("{}:{}", before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// Whether `text` holds anything to render at all.
pub fn has_expression(text: &str) -> bool {
    text.as_bytes().windows(2).any(|two| matches!(two, b"{{" | b"{%" | b"{#"))
}

/// What the rendering of this thread may still use up.
#[derive(Clone, Copy)]
struct Left {
    passes: u32,
    deadline: Option<Instant>,
}

thread_local! {
    static LEFT: Cell<Left> = const { Cell::new(Left { passes: 0, deadline: None }) };
}

static ENGINE: LazyLock<Tera> = LazyLock::new(|| {
    let mut tera = Tera::new();
    tera.autoescape_on(Vec::<&str>::new());
    tera.register_function(scan::PASS, |_: Kwargs, _: &State| pass());
    tera.register_function(scan::BOUND, |kwargs: Kwargs, _: &State| bound(&kwargs));
    tera.register_filter("replace", |text: StringInput, kwargs: Kwargs, _: &State| replace(&text, &kwargs));
    tera.register_filter("join", |items: &[Value], kwargs: Kwargs, _: &State| join(items, &kwargs));
    tera
});

/// One pass through a loop body; gives nothing to print.
fn pass() -> Result<&'static str, Error> {
    let mut left = LEFT.get();
    if left.passes == 0 {
        return Err(Error::message(format!("the loops make more than {PASSES_MAX} passes")));
    }
    left.passes -= 1;
    LEFT.set(left);
    in_time().map(|()| "")
}

fn in_time() -> Result<(), Error> {
    match LEFT.get().deadline {
        Some(deadline) if Instant::now() > deadline => {
            Err(Error::message(format!("rendering takes more than {} s", RENDER_TIME_MAX.as_secs())))
        }
        _ => Ok(()),
    }
}

fn bound(kwargs: &Kwargs) -> Result<&'static str, Error> {
    let value = kwargs.must_get::<&Value>("value")?;
    let mut room = VALUE_BYTES_MAX;
    if !fits(value, &mut room) {
        return Err(too_large());
    }
    in_time().map(|()| "")
}

fn too_large() -> Error {
    Error::message(format!("a value grows beyond {VALUE_BYTES_MAX} bytes"))
}

/// Takes the size of `value` from `room`; stops at the limit, so that a value that holds itself
/// many times over is not walked to its end.
fn fits(value: &Value, room: &mut usize) -> bool {
    let own = value.as_str().map_or(1, |text| text.len() + 1);
    let Some(rest) = room.checked_sub(own) else { return false };
    *room = rest;
    if let Some(members) = value.as_array() {
        return members.iter().all(|member| fits(member, room));
    }
    let Some(map) = value.as_map() else { return true };
    map.iter().all(|(key, member)| {
        let name = key.as_str().map_or(1, str::len);
        room.checked_sub(name).is_some_and(|rest| {
            *room = rest;
            fits(member, room)
        })
    })
}

/// Tera's `replace` with a limit on what it makes, for it multiplies.
fn replace(text: &StringInput, kwargs: &Kwargs) -> Result<String, Error> {
    let from = kwargs.must_get::<&str>("from")?;
    let to = kwargs.must_get::<&str>("to")?;
    let grown = text.as_str().matches(from).count().saturating_mul(to.len());
    if grown > VALUE_BYTES_MAX {
        return Err(too_large());
    }
    Ok(text.as_str().replace(from, to))
}

/// Tera's `join`, likewise.
fn join(items: &[Value], kwargs: &Kwargs) -> Result<String, Error> {
    let separator = kwargs.get::<&str>("sep")?.unwrap_or("");
    let mut out = String::new();
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            out.push_str(separator);
        }
        let mut room = VALUE_BYTES_MAX;
        if !fits(item, &mut room) || out.len() > VALUE_BYTES_MAX {
            return Err(too_large());
        }
        out.push_str(&item.to_string());
    }
    Ok(out)
}

/// A writer that ends the rendering when it has taken [`OUTPUT_BYTES_MAX`].
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > OUTPUT_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Tera's error in one line, at its place in the text as it was before `scan` added to it.
fn explain(error: &Error, guarded: &scan::Guarded) -> Fault {
    match error.kind() {
        ErrorKind::SyntaxError(report) | ErrorKind::RenderingError(report) => Fault {
            at: Some(guarded.origin(report.span().range.start)),
            message: report.message().to_owned(),
        },
        ErrorKind::Io(io::ErrorKind::FileTooLarge) => {
            Fault::whole(format!("the result is longer than {OUTPUT_BYTES_MAX} bytes"))
        }
        kind => Fault::whole(kind.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn variables() -> serde_json::Value {
        json!({"name": "web", "vars": {"workers": 2, "list": ["a", "b"], "z": 1, "a": 2, "m": {"y": 1, "b": 2}}})
    }

    #[track_caller]
    fn check(text: &str, expect: &str) {
        assert_eq!(render(text, &variables()).as_deref(), Ok(expect), "{text}");
    }

    #[track_caller]
    fn check_wrong(text: &str, expect: &str) {
        let error = render(text, &variables()).expect_err(text);
        assert!(error.contains(expect) && !error.contains(scan::PASS), "{text:.80}: {error}");
    }

    #[test]
    fn expressions_become_text() {
        check("plain { } }} %}", "plain { } }} %}");
        check("{{ name }}.example.org", "web.example.org");
        check("{{ vars.workers * 2 }}", "4");
        check("<{{ '&<>' }}>", "<&<>>");
        check("{# note {% for #}x", "x");
        check("{% if vars.workers > 1 %}many{% else %}one{% endif %}", "many");
        check("{% for x in vars.list %}{{ x }};{% endfor %}", "a;b;");
        check("{% for x in vars.list -%}\n  {{ x }}\n{%- endfor %}", "ab");
        check("{%- for x in vars.list %} {{ x }}{% endfor -%} !", " a b!");
        check("{% raw %}{{ name }}{% for %}{% endraw %}", "{{ name }}{% for %}");
        check("{{ '{% for x in y %}' }}", "{% for x in y %}");
        check("{% set n = name ~ '!' %}{{ n }}", "web!");
        check("{{ vars.list | join(sep=', ') }}", "a, b");
        check("{{ name | replace(from='w', to='W') }}", "Web");
    }

    #[test]
    fn maps_keep_their_order() {
        for _ in 0..50 {
            check("{% for k, v in vars.m %}{{ k }}{{ v }}{% endfor %}", "b2y1");
        }
    }

    #[test]
    fn what_is_not_there_is_an_error_with_its_place() {
        check_wrong("{{ nope }}", "1:4: ");
        check_wrong("a\n  {{ vars.nope }}", "2:");
        check_wrong("{% for x in vars.list %}{{ nope }}{% endfor %}", "1:28: ");
        check_wrong("ä{{ name", "1:");
        check_wrong("{{ get_env(name='HOME') }}", "get_env");
        check_wrong("{{ now() }}", "now");
        check_wrong("{{ random(end=3) }}", "random");
        check_wrong("{% include '/etc/shadow' %}", "1:1: `{% include %}` is not available");
        check_wrong("{% extends 'x' %}", "not available");
        check_wrong("x\n{% component c() %}{% endcomponent %}", "2:1: ");
        check_wrong("{% set x %}text{% endset %}", "not available");
        check_wrong("{{ [x for x in vars.list] }}", "1:7: ");
        check_wrong("{{ throw(message='stop here') }}", "stop here");
    }

    #[test]
    fn a_rendering_out_of_time_ends_at_its_next_pass() {
        let deadline = Instant::now().checked_sub(Duration::from_millis(1));
        LEFT.set(Left { passes: 9, deadline });
        assert!(pass().expect_err("too late").to_string().contains("more than 5 s"));
        LEFT.set(Left { passes: 9, deadline: None });
        assert!(pass().is_ok());
    }

    #[test]
    fn nothing_runs_or_grows_without_end() {
        let nest = |body: &str| {
            let open = "{% for a in range(end=100000) %}".repeat(6);
            format!("{open}{body}{}", "{% endfor %}".repeat(6))
        };
        check_wrong(&nest(""), "passes");
        check_wrong(&nest("text of some length"), "longer than");
        check_wrong(
            "{% set x = 'aaaa' %}{% for i in range(end=90) %}{% set_global x = x ~ x %}{% endfor %}",
            "grows beyond",
        );
        let doubling = "{% set x = [x, x] %}".repeat(64);
        check_wrong(&format!("{{% set x = [1] %}}{doubling}"), "grows beyond");
        let many =
            "{% set x = 'a' | indent(width=1000, first=true) %}{% set y = x | replace(from=' ', to=x) %}";
        check_wrong(many, "grows beyond");
        check_wrong(&format!("{{{{ name }}}}{}", " ".repeat(TEXT_BYTES_MAX)), "may have");
    }
}
