//! Reads `template.toml` and the entries of its directory into a [`Template`].
//!
//! All that is wrong is reported, each at its place; a template with an error is not used at all.

mod base;
mod build;
mod debootstrap;
mod imported;

pub use imported::is_layer;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::image::Image;
use super::{EntryKind, Template, TemplateEntry, TemplateFile, exact};
use crate::desired::{CopiedFile, CopiedKind, OnChange};
use crate::diagnostic::{Diagnostic, did_you_mean};
use crate::keys::{self, FILE_KEYS, TEMPLATE_KEYS};

/// The longest target path of a file, in bytes.
const TARGET_BYTES_MAX: usize = 1024;
/// Mounted over in every jail, so that a file laid there would never be seen.
const MOUNTED_OVER: &[&str] = &["/proc", "/sys", "/dev"];
/// The largest id inside a jail, whose range holds 65,536.
const ID_MAX: u32 = 65_535;

type Table<'t> = DeTable<'t>;
type Item<'t> = Spanned<DeValue<'t>>;

/// Checks the text of the `template.toml` at `file` against the `entries` of its directory.
pub fn parse(file: &Path, text: &str, entries: &[TemplateEntry]) -> (Option<Template>, Vec<Diagnostic>) {
    let mut reader = Reader { file, text, wrong: Vec::new() };
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        reader.at(error.span().unwrap_or(0..0), error.message());
    }
    if !reader.wrong.is_empty() {
        // What was recovered from broken syntax would only be complained about once more.
        reader.wrong.dedup_by_key(|wrong| wrong.line);
        return (None, reader.wrong);
    }
    let document = document.into_inner();
    reader.only(&document, &keys::words(TEMPLATE_KEYS, ""));
    let build = reader.build(&document);
    let base = reader.base(&document);
    let own = reader.files(&document, entries);
    let (rendered, copied, copied_stamp) = reader.tree(own, entries);
    let wrong = reader.wrong;
    let (Some(base), true) = (base, wrong.is_empty()) else { return (None, wrong) };
    let template = Template {
        name: name(file),
        file: file.to_owned(),
        text: text.to_owned(),
        base: base.base,
        base_span: base.span,
        kept: base.kept,
        layers: base.layers,
        changes: base.changes,
        stamp: String::new(),
        image: base.run.map(|run| Image { layers: Vec::new(), run }),
        build,
        rendered,
        copied,
        copied_stamp,
    };
    (Some(template), wrong)
}

fn name(file: &Path) -> String {
    let directory = file.parent().and_then(Path::file_name).unwrap_or_default();
    directory.to_string_lossy().into_owned()
}

/// The targets a `[[file]]` gives to one source; a source may be laid more than once.
type Own<'e> = Vec<(&'e TemplateEntry, TemplateFile)>;

struct Reader<'t> {
    file: &'t Path,
    text: &'t str,
    wrong: Vec<Diagnostic>,
}

impl Reader<'_> {
    fn at(&mut self, span: Range<usize>, message: impl Into<String>) {
        self.wrong.push(Diagnostic::at(self.file, self.text, span, message));
    }

    /// Reports the keys of `table` that are not `known`.
    fn only(&mut self, table: &Table<'_>, known: &[&str]) {
        for (key, _) in table {
            let word: &str = key.get_ref();
            if !known.contains(&word) {
                let help = did_you_mean(word, known.iter().copied());
                let unknown = format!("unknown key `{word}`");
                let wrong = Diagnostic::at(self.file, self.text, key.span(), unknown);
                self.wrong.push(Diagnostic { help, ..wrong });
            }
        }
    }

    fn mismatch(&mut self, item: &Item<'_>, wanted: &str) {
        let found = item.get_ref().type_str();
        self.at(item.span(), format!("this has to be {wanted}, not {found}"));
    }

    fn string(&mut self, item: &Item<'_>) -> Option<String> {
        match item.get_ref().as_str() {
            Some("") => {
                self.at(item.span(), "this is empty");
                None
            }
            Some(text) if text.contains('\0') => {
                self.at(item.span(), "this has a NUL in it");
                None
            }
            Some(text) => Some(text.to_owned()),
            None => {
                self.mismatch(item, "a string");
                None
            }
        }
    }

    fn files<'e>(&mut self, document: &Table<'_>, entries: &'e [TemplateEntry]) -> Own<'e> {
        let Some(item) = document.get("file") else { return Vec::new() };
        let Some(list) = item.get_ref().as_array() else {
            self.mismatch(item, "a list of tables, [[file]]");
            return Vec::new();
        };
        let by_path: BTreeMap<&Path, &TemplateEntry> =
            entries.iter().map(|e| (e.path.as_path(), e)).collect();
        let mut own: Own<'e> = Vec::new();
        for item in list {
            let Some(table) = item.get_ref().as_table() else {
                self.mismatch(item, "a table");
                continue;
            };
            let Some((entry, file)) = self.one_file(item, table, &by_path) else { continue };
            if own.iter().any(|(_, other)| other.target == file.target) {
                let span = table.get("target").map_or(item.span(), Spanned::span);
                self.at(span, format!("{} is the target of two files", file.target.display()));
            }
            own.push((entry, file));
        }
        own
    }

    fn one_file<'e>(
        &mut self,
        item: &Item<'_>,
        table: &Table<'_>,
        entries: &BTreeMap<&Path, &'e TemplateEntry>,
    ) -> Option<(&'e TemplateEntry, TemplateFile)> {
        self.only(table, &keys::words(FILE_KEYS, "file"));
        let mode = table.get("mode").map(|mode| self.mode(mode));
        let uid = table.get("owner").map_or(Some(0), |owner| self.id(owner));
        let gid = table.get("group").map_or(Some(0), |group| self.id(group));
        let on_change = table.get("on_change").map_or(Some(OnChange::Restart), |item| self.on_change(item));
        let source = self.required(item, table, "source").and_then(|item| self.entry(item, entries));
        let target = self.required(item, table, "target").and_then(|item| self.target(item));
        let (entry, text) = source?;
        let file = TemplateFile {
            source: self.file.with_file_name(&entry.path),
            text,
            is_expression: is_tera(&entry.path),
            target: target?,
            mode: mode.unwrap_or(Some(entry.mode & 0o7777))?,
            uid: uid?,
            gid: gid?,
            on_change: on_change?,
        };
        Some((entry, file))
    }

    fn required<'i, 't>(&mut self, item: &Item<'_>, table: &'i Table<'t>, key: &str) -> Option<&'i Item<'t>> {
        let found = table.get(key);
        if found.is_none() {
            self.at(item.span(), format!("`{key}` is missing"));
        }
        found
    }

    fn entry<'e>(
        &mut self,
        item: &Item<'_>,
        entries: &BTreeMap<&Path, &'e TemplateEntry>,
    ) -> Option<(&'e TemplateEntry, String)> {
        let path = self.string(item)?;
        let Some(entry) = entries.get(Path::new(&path)) else {
            let known = entries.keys().filter_map(|known| known.to_str());
            let help = did_you_mean(&path, known);
            let message = format!("there is no file `{path}` in the template's directory");
            let wrong = Diagnostic::at(self.file, self.text, item.span(), message);
            self.wrong.push(Diagnostic { help, ..wrong });
            return None;
        };
        match &entry.text {
            Some(text) if entry.kind == EntryKind::File => Some((entry, text.clone())),
            _ => {
                let message = "this was not read as text: a source ends in `.tera` or lies outside `files/`";
                self.at(item.span(), message);
                None
            }
        }
    }

    fn target(&mut self, item: &Item<'_>) -> Option<PathBuf> {
        let text = self.string(item)?;
        match target(Path::new(&text)) {
            Ok(target) => Some(target),
            Err(message) => {
                self.at(item.span(), message);
                None
            }
        }
    }

    fn mode(&mut self, item: &Item<'_>) -> Option<u32> {
        let text = self.string(item)?;
        let digits = (3..=5).contains(&text.len()) && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
        let mode = u32::from_str_radix(&text, 8).ok().filter(|mode| digits && *mode <= 0o7777);
        if mode.is_none() {
            self.at(item.span(), "this has to be an octal mode such as \"0644\"");
        }
        mode
    }

    fn id(&mut self, item: &Item<'_>) -> Option<u32> {
        let number =
            item.get_ref().as_integer().and_then(|int| u32::from_str_radix(int.as_str(), int.radix()).ok());
        let id = number.filter(|id| *id <= ID_MAX);
        if id.is_none() {
            self.at(
                item.span(),
                format!("this has to be a number from 0 to {ID_MAX}, an id inside the jail"),
            );
        }
        id
    }

    fn on_change(&mut self, item: &Item<'_>) -> Option<OnChange> {
        match item.get_ref() {
            DeValue::String(word) if word == "restart" => Some(OnChange::Restart),
            DeValue::String(word) if word == "none" => Some(OnChange::None),
            DeValue::Table(table) if table.contains_key("reload") => {
                self.only(table, &["reload"]);
                self.command(table.get("reload")?).map(OnChange::Reload)
            }
            _ => {
                self.at(item.span(), "this has to be \"restart\", \"none\" or { reload = [\"command\", …] }");
                None
            }
        }
    }

    fn command(&mut self, item: &Item<'_>) -> Option<Vec<String>> {
        let Some(list) = item.get_ref().as_array().filter(|list| !list.is_empty()) else {
            self.mismatch(item, "a list with a command and its arguments");
            return None;
        };
        list.iter().map(|word| self.string(word)).collect()
    }

    /// Lays `files/`: the `[[file]]`s and every `*.tera` are rendered, the rest is copied.
    fn tree(
        &mut self,
        own: Own<'_>,
        entries: &[TemplateEntry],
    ) -> (Vec<TemplateFile>, Vec<CopiedFile>, String) {
        let (sources, mut rendered): (Vec<_>, Vec<_>) = own.into_iter().unzip();
        let mut copied: Vec<(CopiedFile, &TemplateEntry)> = Vec::new();
        for entry in entries {
            let Ok(inside) = entry.path.strip_prefix("files") else { continue };
            if inside.as_os_str().is_empty() || sources.iter().any(|source| source.path == entry.path) {
                continue;
            }
            let source = self.file.with_file_name(&entry.path);
            let is_rendered = entry.kind == EntryKind::File && is_tera(inside);
            let laid = if is_rendered { inside.with_extension("") } else { inside.to_owned() };
            match target(&Path::new("/").join(laid)) {
                Err(message) => self.wrong.push(Diagnostic::whole(&source, message)),
                Ok(target) if is_rendered => rendered.extend(self.implied(entry, source, target)),
                Ok(target) => copied.push((copy(entry, source, target), entry)),
            }
        }
        self.clashes(&rendered, &copied);
        copied.sort_by(|a, b| a.0.target.cmp(&b.0.target));
        let stamp = copied.iter().map(|(file, entry)| stamp(file, entry)).collect();
        rendered.sort_by(|a, b| a.target.cmp(&b.target));
        (rendered, copied.into_iter().map(|(file, _)| file).collect(), stamp)
    }

    /// The file that a `*.tera` below `files/` stands for.
    fn implied(&mut self, entry: &TemplateEntry, source: PathBuf, target: PathBuf) -> Option<TemplateFile> {
        let Some(text) = entry.text.clone() else {
            self.wrong.push(Diagnostic::whole(&source, "this is not text in UTF-8"));
            return None;
        };
        let (mode, on_change) = (entry.mode & 0o7777, OnChange::Restart);
        Some(TemplateFile { source, text, is_expression: true, target, mode, uid: 0, gid: 0, on_change })
    }

    fn clashes(&mut self, rendered: &[TemplateFile], copied: &[(CopiedFile, &TemplateEntry)]) {
        let mut seen: BTreeMap<&Path, &Path> = BTreeMap::new();
        let laid = copied.iter().map(|(file, _)| (&file.target, &file.source));
        for (target, source) in laid.chain(rendered.iter().map(|file| (&file.target, &file.source))) {
            if let Some(other) = seen.insert(target, source) {
                let (target, other) = (target.display(), other.display());
                self.wrong.push(Diagnostic::whole(source, format!("{target} also comes from {other}")));
            }
        }
    }
}

fn is_tera(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "tera") && path.file_stem().is_some()
}

fn copy(entry: &TemplateEntry, source: PathBuf, target: PathBuf) -> CopiedFile {
    let kind = match &entry.kind {
        EntryKind::File => CopiedKind::File,
        EntryKind::Directory => CopiedKind::Directory,
        EntryKind::Link(to) => CopiedKind::Link(to.clone()),
    };
    CopiedFile { source, target, mode: entry.mode & 0o7777, kind }
}

/// A line that changes whenever the copied file does. The times of a directory change with each
/// editor's temporary file, and say nothing about what is laid.
fn stamp(file: &CopiedFile, entry: &TemplateEntry) -> String {
    let head = format!("{} {:?} {:o}", exact(&file.target), file.kind, file.mode);
    match file.kind {
        CopiedKind::File => {
            format!("{head} {} {} {} {}\n", exact(&file.source), entry.size, entry.mtime_ns, entry.inode)
        }
        _ => format!("{head}\n"),
    }
}

/// A path as the jail sees it: absolute, without `..`, not below what is mounted over it.
fn target(path: &Path) -> Result<PathBuf, String> {
    let shown = path.display();
    if !path.is_absolute() || path.file_name().is_none() {
        return Err(format!("`{shown}` has to be an absolute path inside the jail"));
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(format!("`{shown}` must not go through `..`"));
    }
    if path.as_os_str().len() > TARGET_BYTES_MAX {
        return Err(format!("a target may have {TARGET_BYTES_MAX} bytes"));
    }
    if let Some(over) = MOUNTED_OVER.iter().find(|over| path.starts_with(over)) {
        return Err(format!("`{shown}` would never be seen: {over} is mounted over in a jail"));
    }
    Ok(path.components().collect())
}
