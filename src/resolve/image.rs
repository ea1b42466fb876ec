//! What an image's makers start in it, as defaults below all that the definition and the host say.
//!
//! The image is not trusted: its words are checked as those of a file are, hold no expressions,
//! and an error in one counts only where nobody has said better.

use std::ops::Range;
use std::sync::Arc;

use serde_json::Value;

use crate::definition::{RawValue, Text, normal_form, text};
use crate::diagnostic::Diagnostic;
use crate::jail::Settings;
use crate::template::{Run, Template};

/// Adds to `settings` what they do not say and the image does.
pub fn add(settings: &mut Settings, template: &Template, run: &Run) -> Vec<Diagnostic> {
    let source = Text::new(&template.file, &template.text);
    let mut defaults = Defaults { settings, source, span: template.base_span.clone(), found: Vec::new() };
    let has = |settings: &Settings, key: &str| settings.contains_key(key);
    let boots = has(defaults.settings, "exec.boot");
    let persists = defaults.settings.get("persist") == Some(&Value::Bool(true));
    if !boots && !persists && !run.command.is_empty() {
        defaults.add("exec.command", RawValue::List(run.command.iter().map(|word| text(word)).collect()));
    }
    if !boots && !run.workdir.is_empty() {
        defaults.add("exec.workdir", RawValue::Text(run.workdir.clone()));
    }
    if !boots && !run.user.is_empty() {
        defaults.add("exec.user", RawValue::Text(run.user.clone()));
    }
    for (name, value) in &run.env {
        defaults.variable(name, value);
    }
    defaults.found
}

struct Defaults<'a> {
    settings: &'a mut Settings,
    source: Arc<Text>,
    span: Range<usize>,
    found: Vec<Diagnostic>,
}

impl Defaults<'_> {
    fn add(&mut self, key: &str, value: RawValue) {
        if self.settings.contains_key(key) {
            return;
        }
        match normal_form(key, "", value) {
            Ok(value) => drop(self.settings.insert(key.to_owned(), value)),
            Err(message) => self.wrong(key, &message),
        }
    }

    /// One member of `exec.env`; names that only a program of the image itself could like are left
    /// out.
    fn variable(&mut self, name: &str, value: &str) {
        const KEY: &str = "exec.env";
        let said = self.settings.get(KEY).is_some_and(|env| env.get(name).is_some());
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let is_name = name.bytes().all(plain) && !name.starts_with(|c: char| c.is_ascii_digit());
        if said || name.is_empty() || !is_name {
            return;
        }
        match normal_form(KEY, name, RawValue::Text(value.to_owned())) {
            Ok(value) => {
                let env = self.settings.entry(KEY.to_owned()).or_insert_with(|| serde_json::json!({}));
                if let Value::Object(members) = env {
                    members.insert(name.to_owned(), value);
                }
            }
            Err(message) => self.wrong(&format!("{KEY}.{name}"), &message),
        }
    }

    fn wrong(&mut self, key: &str, message: &str) {
        let error = self.source.error(&self.span, format!("the image's own `{key}`: {message}"));
        self.found.push(error.help(format!("set `{key}` in the definition")));
    }
}
