//! Finds the tags of a Tera text, refuses those that cannot be bounded, and adds the guards.
//!
//! It follows Tera's own lexer as far as tags, strings, comments and raw blocks go, and leaves
//! every syntax error to Tera, which words it better.

use super::Fault;

/// The function called at the head of each loop body.
pub const PASS: &str = "stockade_pass";
/// The function called after each `set` with the new value.
pub const BOUND: &str = "stockade_bound";

/// Tags that need no guard. Components, blocks, filters and captured `set` bodies write where no
/// limit reaches, and includes and imports have nothing to include here.
const PLAIN: &[&str] = &["if", "elif", "else", "endif", "endfor", "break", "continue"];

/// A text with guards added.
pub struct Guarded {
    pub text: String,
    /// Where each guard begins in `text`, and its length.
    added: Vec<(usize, usize)>,
}

impl Guarded {
    /// The byte in the text as written that byte `at` of the guarded text came from.
    pub fn origin(&self, at: usize) -> usize {
        let before: usize = self
            .added
            .iter()
            .take_while(|(start, _)| *start < at)
            .map(|(start, n)| (*n).min(at - start))
            .sum();
        at - before
    }

    fn add(&mut self, call: &str, trims: bool) {
        let guard = format!("{{{{ {call} {}}}}}", if trims { "-" } else { "" });
        self.added.push((self.text.len(), guard.len()));
        self.text.push_str(&guard);
    }
}

/// One tag's or variable's inside.
struct Tag<'t> {
    /// Byte after its closing mark.
    end: usize,
    /// Closed by `-%}`, which takes the white space after it away.
    trims: bool,
    words: Vec<&'t str>,
    /// Byte of a `for` that is not the tag's own name: a list comprehension.
    inner_for: Option<usize>,
    /// An `=` follows the second word.
    assigns: bool,
}

/// Adds the guards to `text`, or says at its place what cannot be rendered here.
pub fn guard(text: &str) -> Result<Guarded, Fault> {
    let mut out = Guarded { text: String::with_capacity(text.len() * 2), added: Vec::new() };
    let mut at = 0;
    while let Some(start) = next_mark(text, at) {
        let Some(end) = skip_whole(text, start) else {
            let Some(tag) = read_tag(text, start) else { break };
            out.text.push_str(&text[at..tag.end]);
            at = tag.end;
            guard_tag(text, start, &tag, &mut out)?;
            continue;
        };
        out.text.push_str(&text[at..end]);
        at = end;
    }
    out.text.push_str(&text[at..]);
    Ok(out)
}

fn next_mark(text: &str, from: usize) -> Option<usize> {
    let found = text.as_bytes()[from..].windows(2).position(|two| matches!(two, b"{{" | b"{%" | b"{#"));
    found.map(|offset| from + offset)
}

/// The end of a comment or raw block that begins at `start`, whose inside means nothing.
fn skip_whole(text: &str, start: usize) -> Option<usize> {
    let body = after_opening(text, start);
    if text[start..].starts_with("{#") {
        return Some(text[body..].find("#}").map_or(text.len(), |end| body + end + 2));
    }
    let mut at = body + word_tag(&text[body..], "raw")?;
    while text[start..].starts_with("{%") {
        let Some(next) = text[at..].find("{%") else { return Some(text.len()) };
        at += next + 2;
        if let Some(length) = word_tag(&text[at..], "endraw") {
            return Some(at + length);
        }
    }
    None
}

/// The length of `word %}` with its trim marks at the head of `text`.
fn word_tag(text: &str, word: &str) -> Option<usize> {
    let rest = text.strip_prefix('-').unwrap_or(text).trim_ascii_start();
    let rest = rest.strip_prefix(word)?.trim_ascii_start();
    let rest = rest.strip_prefix('-').unwrap_or(rest).strip_prefix("%}")?;
    Some(text.len() - rest.len())
}

fn after_opening(text: &str, start: usize) -> usize {
    start + if text.as_bytes().get(start + 2) == Some(&b'-') { 3 } else { 2 }
}

/// Reads a tag or variable to its end; nothing when it has none, which Tera will say.
fn read_tag(text: &str, start: usize) -> Option<Tag<'_>> {
    let is_tag = text[start..].starts_with("{%");
    let close: &[u8] = if is_tag { b"%}" } else { b"}}" };
    let bytes = text.as_bytes();
    let mut at = after_opening(text, start);
    let mut tag = Tag { end: 0, trims: false, words: Vec::new(), inner_for: None, assigns: false };
    while at < bytes.len() {
        let trims = bytes[at] == b'-' && bytes[at + 1..].starts_with(close);
        if trims || bytes[at..].starts_with(close) {
            (tag.end, tag.trims) = (at + 2 + usize::from(trims), trims);
            return Some(tag);
        }
        let next = token_end(bytes, at)?;
        let token = &text[at..next];
        if is_word(token) {
            let own_name = is_tag && tag.words.is_empty();
            if token == "for" && !own_name && bytes[at - 1] != b'.' {
                tag.inner_for.get_or_insert(at);
            }
            tag.words.push(token);
        }
        tag.assigns |= token == "=" && tag.words.len() == 2;
        at = next;
    }
    None
}

/// The end of the string, word or single character at `at`; nothing in an unclosed string.
fn token_end(bytes: &[u8], at: usize) -> Option<usize> {
    match bytes[at] {
        quote @ (b'\'' | b'"' | b'`') => {
            let mut end = at + 1;
            while *bytes.get(end)? != quote {
                end += if bytes[end] == b'\\' { 2 } else { 1 };
            }
            Some(end + 1)
        }
        head if head == b'_' || head.is_ascii_alphabetic() => {
            let tail = bytes[at..].iter().take_while(|b| **b == b'_' || b.is_ascii_alphanumeric());
            Some(at + tail.count())
        }
        head if head < 0x80 => Some(at + 1),
        // Outside of a string Tera takes ASCII alone, and names the place.
        _ => None,
    }
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c == '_' || c.is_ascii_alphabetic())
}

fn guard_tag(text: &str, start: usize, tag: &Tag<'_>, out: &mut Guarded) -> Result<(), Fault> {
    if let Some(at) = tag.inner_for {
        let message = "a list made by `for` inside an expression is not available here: use {% for %}";
        return Err(Fault { at: Some(at), message: message.to_owned() });
    }
    if !text[start..].starts_with("{%") {
        return Ok(());
    }
    match tag.words.as_slice() {
        ["for", ..] => out.add(&format!("{PASS}()"), tag.trims),
        ["set" | "set_global", name, ..] if tag.assigns => {
            out.add(&format!("{BOUND}(value={name})"), tag.trims);
        }
        [name, ..] if !PLAIN.contains(name) => {
            let message = format!("`{{% {name} %}}` is not available here");
            return Err(Fault { at: Some(start), message });
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Pieces that end and begin every state of the scan, in any order.
    const PIECES: &[&str] = &[
        "{{", "}}", "{%", "%}", "{#", "#}", "-", " ", "for", "set", "x", "=", "in", "raw", "endraw",
        "endfor", "'", "\"", "\\", "é", ".", "[", "]", "\n", "1", "name",
    ];

    proptest! {
        #[test]
        fn any_text_is_scanned_and_guards_are_all_that_is_added(
            picks in proptest::collection::vec(0..PIECES.len(), 0..40),
        ) {
            let text: String = picks.into_iter().map(|pick| PIECES[pick]).collect();
            let Ok(guarded) = guard(&text) else { return Ok(()) };
            let mut plain = guarded.text.clone();
            for (start, length) in guarded.added.iter().rev() {
                plain.replace_range(*start..start + length, "");
            }
            prop_assert_eq!(&plain, &text);
            prop_assert_eq!(guarded.origin(guarded.text.len()), text.len());
        }

        #[test]
        fn any_text_renders_or_fails_without_a_panic(
            picks in proptest::collection::vec(0..PIECES.len(), 0..40),
        ) {
            let text: String = picks.into_iter().map(|pick| PIECES[pick]).collect();
            let variables = serde_json::json!({"x": [1], "name": "web"});
            if let Err(fault) = super::super::render_at(&text, &variables) {
                prop_assert!(fault.at.is_none_or(|at| at <= text.len()), "{:?}", fault);
            }
        }
    }
}
