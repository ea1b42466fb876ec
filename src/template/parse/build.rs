//! `[build]`: the lines that are run on the base, and what they may use.

use toml::de::DeValue;

use super::{Item, Reader, Table};
use crate::keys::{self, TEMPLATE_KEYS};
use crate::template::Lines;

/// How many lines, and the bytes of one.
const LINES_MAX: usize = 100;
const LINE_BYTES_MAX: usize = 64 << 10;
/// A build's own time, unless it says another.
const TIMEOUT_MS: u64 = 30 * 60 * 1_000;

impl Reader<'_> {
    pub fn build(&mut self, document: &Table<'_>) -> Option<Lines> {
        let build = document.get("build")?;
        let Some(table) = build.get_ref().as_table() else {
            self.mismatch(build, "a table");
            return None;
        };
        self.only(table, &keys::words(TEMPLATE_KEYS, "build"));
        let Some(run) = table.get("run") else {
            self.at(build.span(), "`run` is missing");
            return None;
        };
        let run = self.lines(run);
        let network = table.get("network").map_or(Some(false), |item| self.boolean(item));
        let env = table.get("env").map_or(Some(Vec::new()), |item| self.environment(item));
        let timeout_ms = table.get("timeout").map_or(Some(TIMEOUT_MS), |item| self.duration(item));
        Some(Lines { run: run?, network: network?, env: env?, timeout_ms: timeout_ms? })
    }

    fn lines(&mut self, item: &Item<'_>) -> Option<Vec<String>> {
        let DeValue::Array(list) = item.get_ref() else {
            self.mismatch(item, "a list of lines for sh(1)");
            return None;
        };
        if list.is_empty() || list.len() > LINES_MAX {
            self.at(item.span(), format!("this has to be 1 to {LINES_MAX} lines"));
            return None;
        }
        let lines: Vec<Option<String>> = list.iter().map(|line| self.line(line)).collect();
        lines.into_iter().collect()
    }

    fn line(&mut self, item: &Item<'_>) -> Option<String> {
        let text = self.string(item)?;
        if text.trim().is_empty() || text.len() > LINE_BYTES_MAX {
            self.at(item.span(), format!("a line has 1 to {LINE_BYTES_MAX} bytes"));
            return None;
        }
        Some(text)
    }

    pub fn environment(&mut self, item: &Item<'_>) -> Option<Vec<(String, String)>> {
        let Some(table) = item.get_ref().as_table() else {
            self.mismatch(item, "a table such as { LANG = \"C.UTF-8\" }");
            return None;
        };
        let wrong = self.wrong.len();
        let mut env = Vec::new();
        for (name, value) in table {
            let word: &str = name.get_ref();
            let good = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
            if !word.bytes().all(good) || word.is_empty() || word.starts_with(|c: char| c.is_ascii_digit()) {
                self.at(name.span(), format!("`{word}` is not the name of an environment variable"));
            }
            match value.get_ref().as_str() {
                // Empty is a value too.
                Some("") => env.push((word.to_owned(), String::new())),
                _ => env.extend(self.string(value).map(|value| (word.to_owned(), value))),
            }
        }
        env.sort();
        (self.wrong.len() == wrong).then_some(env)
    }

    fn duration(&mut self, item: &Item<'_>) -> Option<u64> {
        let text = self.string(item)?;
        match crate::definition::duration(&text) {
            Ok(milliseconds) if (1_000..=TIMEOUT_MS).contains(&milliseconds) => Some(milliseconds),
            Ok(_) => {
                self.at(item.span(), "a build may take from \"1s\" to \"30m\"");
                None
            }
            Err(wrong) => {
                self.at(item.span(), wrong.message);
                None
            }
        }
    }
}
