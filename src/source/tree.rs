//! The directories of templates.

use std::fs::{self, DirEntry, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::diagnostic::Diagnostic;
use crate::template::{EntryKind, TemplateEntry};

use super::guarded::{Guard, Refusal, kind, read_text};
use super::{DEFINITION_BYTES_MAX, list};

/// Files and directories of all templates together.
pub const ENTRIES_MAX: usize = 100_000;
/// The largest file whose text is read.
pub const TEXT_BYTES_MAX: u64 = 1 << 20;

/// One template's directory as it was read.
#[derive(Debug)]
pub struct TemplateTexts {
    pub name: String,
    /// Its template.toml.
    pub file: PathBuf,
    /// The text of that.
    pub text: String,
    pub entries: Vec<TemplateEntry>,
}

/// Reads one template's directory. `room` is how many entries may still be read.
pub fn read(directory: &Path, room: &mut usize, guard: Guard) -> Result<TemplateTexts, Vec<Diagnostic>> {
    let mut tree =
        Tree { top: directory, guard, entries: Vec::new(), wrong: Vec::new(), open: vec![PathBuf::new()] };
    while let Some(below) = tree.open.pop() {
        if !tree.directory(&below, room) {
            break;
        }
    }
    let file = directory.join("template.toml");
    let text = match read_text(&file, DEFINITION_BYTES_MAX, guard) {
        Ok(text) => text,
        Err(Refusal::Absent) => {
            tree.refuse(&file, "this template has no template.toml");
            String::new()
        }
        Err(Refusal::Because(why)) => {
            tree.refuse(&file, &why);
            String::new()
        }
    };
    if !tree.wrong.is_empty() {
        return Err(tree.wrong);
    }
    let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
    tree.entries.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(TemplateTexts { name, file, text, entries: tree.entries })
}

struct Tree<'a> {
    top: &'a Path,
    guard: Guard,
    entries: Vec<TemplateEntry>,
    wrong: Vec<Diagnostic>,
    /// Directories still to be read, relative to the top.
    open: Vec<PathBuf>,
}

impl Tree<'_> {
    fn refuse(&mut self, path: &Path, why: &str) {
        self.wrong.push(Diagnostic::whole(path, why));
    }

    /// Reads one directory; false when there is no room for more.
    fn directory(&mut self, below: &Path, room: &mut usize) -> bool {
        let path = self.top.join(below);
        let entries = match list(&path, self.guard) {
            Ok(entries) => entries,
            Err(Refusal::Absent) => return true,
            Err(Refusal::Because(why)) => {
                self.refuse(&path, &why);
                return true;
            }
        };
        for entry in entries {
            if below.as_os_str().is_empty() && entry.file_name() == "template.toml" {
                continue;
            }
            if *room == 0 {
                self.refuse(&path, &format!("the templates have more than {ENTRIES_MAX} files"));
                return false;
            }
            *room -= 1;
            self.entry(below, &entry);
        }
        true
    }

    fn entry(&mut self, below: &Path, entry: &DirEntry) {
        let path = entry.path();
        let found = match entry.metadata() {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => return self.refuse(&path, &format!("stat: {error}")),
        };
        if let Some(why) = self.guard.objection(&found) {
            return self.refuse(&path, &why);
        }
        let relative = below.join(entry.file_name());
        match entry_kind(&path, &found) {
            Ok(kind) => {
                if kind == EntryKind::Directory {
                    self.open.push(relative.clone());
                }
                let text = self.text(&relative, &path, &kind, &found);
                self.entries.push(template_entry(relative, kind, &found, text));
            }
            Err(why) => self.refuse(&path, &why),
        }
    }

    /// The text of what may be rendered or laid by `[[file]]`. Large files and those that are not
    /// UTF-8 have none: what becomes of them is the template's to say.
    fn text(&mut self, relative: &Path, path: &Path, kind: &EntryKind, found: &Metadata) -> Option<String> {
        let tera = relative.extension().is_some_and(|extension| extension == "tera");
        let copied = relative.starts_with("files") && !tera;
        if *kind != EntryKind::File || copied || found.len() > TEXT_BYTES_MAX && !tera {
            return None;
        }
        match read_text(path, TEXT_BYTES_MAX, self.guard) {
            Ok(text) => Some(text),
            Err(Refusal::Because(why)) if tera => {
                self.refuse(path, &why);
                None
            }
            Err(_) => None,
        }
    }
}

fn entry_kind(path: &Path, found: &Metadata) -> Result<EntryKind, String> {
    if found.is_dir() {
        return Ok(EntryKind::Directory);
    }
    if found.is_symlink() {
        let target = fs::read_link(path).map_err(|error| format!("readlink: {error}"))?;
        return Ok(EntryKind::Link(target));
    }
    if found.is_file() { Ok(EntryKind::File) } else { Err(kind(found)) }
}

fn template_entry(path: PathBuf, kind: EntryKind, found: &Metadata, text: Option<String>) -> TemplateEntry {
    TemplateEntry {
        path,
        kind,
        mode: found.mode() & 0o7777,
        size: found.len(),
        mtime_ns: i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec()),
        inode: found.ino(),
        text,
    }
}
