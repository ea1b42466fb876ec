//! The definitions in jails.d.

use std::ffi::OsString;
use std::fs::{DirEntry, Metadata};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::guarded::{self, Guard, Refusal, read_seen};
use super::known::{Known, Parsed, Stamp};
use super::{DEFINITION_BYTES_MAX, DEFINITIONS_MAX, Texts, list};
use crate::cores;
use crate::definition;
use crate::diagnostic::Diagnostic;
use crate::jail::JailName;

/// One definition's file that could be taken.
#[derive(Debug)]
pub struct Definition {
    pub path: PathBuf,
    pub contents: Contents,
}

#[derive(Debug)]
pub enum Contents {
    /// With what the file was before it was read, and when that was.
    Read(String, Option<(Stamp, Instant)>),
    /// As it was.
    Known(Parsed),
}

impl Definition {
    pub fn given(path: PathBuf, text: String) -> Self {
        Self { path, contents: Contents::Read(text, None) }
    }

    pub fn parse(&self) -> Parsed {
        match &self.contents {
            Contents::Read(text, _) => definition::parse(&self.path, text),
            Contents::Known(parsed) => parsed.clone(),
        }
    }
}

impl Texts {
    pub(super) fn jails(&mut self, path: &Path, guard: Guard, known: Option<&Known>) {
        let entries = match list(path, guard) {
            Ok(entries) => entries,
            Err(why) => {
                self.complete = false;
                return self.unlisted(path, why);
            }
        };
        let mut entries: Vec<DirEntry> =
            entries.into_iter().filter(|entry| self.is_definition(entry)).collect();
        if entries.len() > DEFINITIONS_MAX {
            self.complete = false;
            let message = format!("more than {DEFINITIONS_MAX} definitions");
            self.diagnostics.push(Diagnostic::whole(path, message));
            entries.truncate(DEFINITIONS_MAX);
        }
        for (path, found) in cores::map(&entries, |entry| (entry.path(), read_entry(entry, guard, known))) {
            self.take(path, found);
        }
    }

    fn is_definition(&mut self, entry: &DirEntry) -> bool {
        let name: OsString = entry.file_name();
        if definition::is_leftover(&name.to_string_lossy()) {
            return false;
        }
        if Path::new(&name).extension().is_some_and(|extension| extension == "toml") {
            return true;
        }
        let found = Diagnostic::whole(&entry.path(), "passed over: it is no NAME.toml");
        self.diagnostics.push(found.warning());
        false
    }

    /// A file beside those in jails.d.
    pub(super) fn definition(&mut self, path: &Path, guard: Guard) {
        self.take(path.to_owned(), read(path, guard));
    }

    fn take(&mut self, path: PathBuf, found: Result<Contents, Refusal>) {
        match found {
            Ok(contents) => self.definitions.push(Definition { path, contents }),
            Err(Refusal::Because(why)) => self.refuse(&path, &why),
            // It went away after the directory was read, perhaps to come back by a rename.
            Err(Refusal::Absent) => {
                self.complete = false;
                self.refuse(&path, "there is no such file");
            }
        }
    }

    fn refuse(&mut self, path: &Path, why: &str) {
        let found = Diagnostic::whole(path, why);
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        if let Ok(name) = JailName::new(&stem) {
            self.refused.insert(name, found.summary());
        }
        self.diagnostics.push(found);
    }
}

/// A definition, unless the directory already says that it is no regular file: opening a device
/// may do something.
fn read_entry(entry: &DirEntry, guard: Guard, known: Option<&Known>) -> Result<Contents, Refusal> {
    let because = |found: Metadata| Refusal::Because(guarded::kind(&found));
    if entry.file_type().is_ok_and(|kind| !kind.is_file()) {
        let found = entry.metadata();
        return Err(found.map_or_else(|error| Refusal::Because(format!("stat: {error}")), because));
    }
    let path = entry.path();
    match known.and_then(|known| known.get(&path)) {
        Some(parsed) => Ok(Contents::Known(parsed.clone())),
        None => read(&path, guard),
    }
}

fn read(path: &Path, guard: Guard) -> Result<Contents, Refusal> {
    let now = Instant::now();
    let (text, found) = read_seen(path, DEFINITION_BYTES_MAX, guard)?;
    Ok(Contents::Read(text, Some((Stamp::of(&found), now))))
}
