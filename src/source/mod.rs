//! Reads the config directory: every text, by one open descriptor each, and nothing else.
//!
//! Decides nothing about what the texts say. What others than root could have written, links,
//! FIFOs, huge files and non-UTF-8 are refused by name. A directory that cannot be listed makes
//! the reading incomplete, and nothing is removed then.

mod guarded;
mod jails;
mod known;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, DirEntry};
use std::io;
use std::path::{Path, PathBuf};

use crate::cores;
use crate::definition::{self, RawHost};
use crate::desired::{Desired, HostConfig, Paths};
use crate::diagnostic::Diagnostic;
use crate::jail::JailName;
use crate::resolve::{self, Input};
use crate::root::layers;
use crate::template::{self, Template};

pub use jails::{Contents, Definition};
pub use known::Known;
pub use tree::{ENTRIES_MAX, TEXT_BYTES_MAX, TemplateTexts};

use guarded::{Guard, Refusal, read_text};
use known::Parsed;

/// The largest definition, stockade.toml or template.toml.
pub const DEFINITION_BYTES_MAX: u64 = 1 << 20;
/// Files in jails.d.
pub const DEFINITIONS_MAX: usize = 20_000;
/// Directories in templates.
pub const TEMPLATES_MAX: usize = 1_000;

/// Everything below the config directory that could be read.
#[derive(Debug)]
pub struct Texts {
    /// stockade.toml; a host without one has the defaults.
    pub host: Option<(PathBuf, String)>,
    /// Why stockade.toml is there and cannot be used.
    pub host_refused: Option<String>,
    pub definitions: Vec<Definition>,
    /// Jails whose file is there and cannot be used.
    pub refused: BTreeMap<JailName, String>,
    pub templates: Vec<TemplateTexts>,
    pub broken_templates: BTreeMap<String, String>,
    pub diagnostics: Vec<Diagnostic>,
    /// False when something could not be listed: absence proves nothing then.
    pub complete: bool,
}

impl Default for Texts {
    fn default() -> Self {
        Self {
            host: None,
            host_refused: None,
            definitions: Vec::new(),
            refused: BTreeMap::new(),
            templates: Vec::new(),
            broken_templates: BTreeMap::new(),
            diagnostics: Vec::new(),
            complete: true,
        }
    }
}

/// Reads, parses and resolves everything: what is wanted, and all that is wrong, sorted.
/// An empty path in `paths` is one that no flag gave.
pub fn load(paths: &Paths) -> (Desired, Vec<Diagnostic>) {
    resolve::resolve(parse(paths, read(paths)))
}

/// As [`load`], without reading the definitions that are known and have not changed.
pub fn load_again(paths: &Paths, known: &mut Known) -> (Desired, Vec<Diagnostic>) {
    let texts = read_again(paths, Some(known));
    resolve::resolve(parse_again(paths, texts, Some(known)))
}

/// Like [`load`], with `files` beside the definitions there are, or in the place of those of
/// the same name: for `check FILE`. Whose files they are does not matter.
pub fn load_with(paths: &Paths, files: &[PathBuf]) -> (Desired, Vec<Diagnostic>) {
    let mut texts = read(paths);
    for file in files {
        let same = |other: &Path| other.file_name() == file.file_name();
        texts.definitions.retain(|other| !same(&other.path));
        texts.refused.retain(|name, _| file.file_stem().is_none_or(|stem| *stem != *name.as_str()));
        texts.diagnostics.retain(|found| !same(&found.file));
        texts.definition(file, Guard::lenient());
    }
    resolve::resolve(parse(paths, texts))
}

/// Like [`load`], with one definition more that is not written yet.
pub fn load_beside(paths: &Paths, file: &Path, text: &str) -> (Desired, Vec<Diagnostic>) {
    let mut texts = read(paths);
    texts.definitions.push(Definition::given(file.to_owned(), text.to_owned()));
    resolve::resolve(parse(paths, texts))
}

/// Like [`load`], with one more definition, and the templates below `templates` that the host does
/// not have: for `import`.
pub fn load_more(paths: &Paths, file: PathBuf, text: String, templates: &Path) -> (Desired, Vec<Diagnostic>) {
    resolve::resolve(with_more(paths, file, text, templates))
}

/// What [`load_more`] resolves.
pub fn with_more(paths: &Paths, file: PathBuf, text: String, templates: &Path) -> Input {
    let mut texts = read(paths);
    texts.definitions.push(Definition::given(file, text));
    let mut more = Texts::default();
    more.templates(templates, Guard::strict());
    let has = |name: &str| texts.templates.iter().any(|own| own.name == name);
    more.templates
        .retain(|template| !has(&template.name) && !texts.broken_templates.contains_key(&template.name));
    texts.templates.extend(more.templates);
    texts.diagnostics.extend(more.diagnostics);
    parse(paths, texts)
}

/// One definition given as text beside the host's file and templates, which may be absent: for
/// `run`. The other jails are left out.
pub fn load_text(paths: &Paths, name: &JailName, text: &str) -> (Desired, Vec<Diagnostic>) {
    let mut texts = read_shared(paths);
    texts.definitions.push(Definition::given(PathBuf::from(format!("{name}.toml")), text.to_owned()));
    resolve::resolve(parse(paths, texts))
}

/// The host's own keys alone, with their defaults where its file is absent or has errors.
pub fn host(paths: &Paths) -> HostConfig {
    let mut texts = Texts::below(config(paths), Guard::strict());
    resolve::host_config(paths, &raw_host(&mut texts))
}

/// The host's file and the templates, as far as they are there.
fn read_shared(paths: &Paths) -> Texts {
    let config = config(paths);
    let guard = Guard::strict();
    let mut texts = Texts::below(config, guard);
    if texts.complete {
        texts.templates(&config.join("templates"), guard);
    }
    texts
}

/// The directory of `paths`, or the usual one.
fn config(paths: &Paths) -> &Path {
    if paths.config.as_os_str().is_empty() { Path::new(resolve::CONFIG_DIR) } else { &paths.config }
}

/// Reads everything below the config directory.
pub fn read(paths: &Paths) -> Texts {
    read_again(paths, None)
}

/// The same but for the definitions that are known and have not changed.
fn read_again(paths: &Paths, known: Option<&Known>) -> Texts {
    let config = config(paths);
    let guard = Guard::strict();
    let mut texts = Texts::below(config, guard);
    if texts.complete {
        texts.jails(&config.join("jails.d"), guard, known);
        texts.templates(&config.join("templates"), guard);
    }
    texts
}

/// Checks a directory itself: that root alone can change what is in it.
fn directory(path: &Path, guard: Guard) -> Result<(), Refusal> {
    let found = fs::metadata(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Refusal::Absent,
        _ => Refusal::Because(format!("stat: {error}")),
    })?;
    if !found.is_dir() {
        return Err(Refusal::Because("it is not a directory".into()));
    }
    guard.objection(&found).map_or(Ok(()), |why| Err(Refusal::Because(why)))
}

/// The entries of a directory, by name.
fn list(path: &Path, guard: Guard) -> Result<Vec<DirEntry>, Refusal> {
    directory(path, guard)?;
    let because = |error: io::Error| Refusal::Because(format!("read directory: {error}"));
    let entries = fs::read_dir(path).map_err(because)?.collect::<io::Result<Vec<_>>>();
    let mut entries = entries.map_err(because)?;
    entries.sort_by_cached_key(DirEntry::file_name);
    Ok(entries)
}

impl Texts {
    /// The host's file, if the directory itself is good. Of one that is there and no good nobody
    /// knows what the file says: the defaults may be looser.
    fn below(config: &Path, guard: Guard) -> Self {
        let mut texts = Self::default();
        match directory(config, guard) {
            Ok(()) => texts.host(&config.join("stockade.toml"), guard),
            Err(why) => {
                texts.complete = false;
                if let Refusal::Because(why) = &why {
                    texts.host_refused = Some(Diagnostic::whole(config, why.clone()).summary());
                }
                texts.unlisted(config, why);
            }
        }
        texts
    }

    fn unlisted(&mut self, path: &Path, why: Refusal) {
        let message = match why {
            Refusal::Absent => "there is no such directory".to_owned(),
            Refusal::Because(why) => why,
        };
        let help = "nothing is removed as long as it cannot be read";
        self.diagnostics.push(Diagnostic::whole(path, message).help(help));
    }

    fn host(&mut self, file: &Path, guard: Guard) {
        match read_text(file, DEFINITION_BYTES_MAX, guard) {
            Ok(text) => self.host = Some((file.to_owned(), text)),
            Err(Refusal::Absent) => {}
            Err(Refusal::Because(why)) => {
                let found = Diagnostic::whole(file, why);
                self.host_refused = Some(found.summary());
                self.diagnostics.push(found);
            }
        }
    }

    fn templates(&mut self, path: &Path, guard: Guard) {
        let entries = match list(path, guard) {
            Ok(entries) => entries,
            Err(Refusal::Absent) => return,
            Err(why) => {
                self.complete = false;
                return self.unlisted(path, why);
            }
        };
        let mut room = ENTRIES_MAX;
        for entry in entries.iter().take(TEMPLATES_MAX) {
            let name = entry.file_name().to_string_lossy().into_owned();
            if definition::is_leftover(&name) {
                continue;
            }
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => self.template(&entry.path(), name, &mut room, guard),
                _ => {
                    let found =
                        Diagnostic::whole(&entry.path(), "passed over: it is no template's directory");
                    self.diagnostics.push(found.warning());
                }
            }
        }
        if entries.len() > TEMPLATES_MAX {
            self.diagnostics.push(Diagnostic::whole(path, format!("more than {TEMPLATES_MAX} templates")));
        }
    }

    fn template(&mut self, path: &Path, name: String, room: &mut usize, guard: Guard) {
        if JailName::new(&name).is_err() {
            let message = format!("`{name}` is not a template name: a-z, 0-9 and -");
            self.diagnostics.push(Diagnostic::whole(path, message));
            return;
        }
        match tree::read(path, room, guard) {
            Ok(template) => self.templates.push(template),
            Err(wrong) => {
                let first = wrong.first().map(Diagnostic::summary).unwrap_or_default();
                self.broken_templates.insert(name, first);
                self.diagnostics.extend(wrong);
            }
        }
    }
}

/// Parses all that was read, for `resolve`. Looks at the machine only for the stamps of the bases.
pub fn parse(paths: &Paths, texts: Texts) -> Input {
    parse_again(paths, texts, None)
}

/// The same, and takes note of what the definitions hold.
fn parse_again(paths: &Paths, mut texts: Texts, known: Option<&mut Known>) -> Input {
    let mut input = Input {
        paths: paths.clone(),
        host: raw_host(&mut texts),
        refused: texts.refused,
        broken_templates: texts.broken_templates,
        diagnostics: texts.diagnostics,
        complete: texts.complete,
        ..Input::default()
    };
    let parsed = cores::map(&texts.definitions, Definition::parse);
    if let Some(known) = known {
        note(&texts.definitions, &parsed, known);
    }
    for (definition, found) in parsed {
        input.definitions.extend(definition);
        input.diagnostics.extend(found);
    }
    input.templates.insert(template::HOST.to_owned(), Template::host(layers::host_stamp()));
    for texts in &texts.templates {
        parse_template(texts, &mut input);
    }
    input
}

/// The host's file; what is wrong with it goes to the other diagnostics.
fn raw_host(texts: &mut Texts) -> RawHost {
    if let Some(why) = texts.host_refused.take() {
        return RawHost { broken: Some(why), ..RawHost::default() };
    }
    let Some((file, text)) = &texts.host else { return RawHost::default() };
    let (host, found) = definition::parse_host(file, text);
    texts.diagnostics.extend(found);
    host
}

/// Takes note of the definitions that were read, and of those that are gone.
fn note(found: &[Definition], parsed: &[Parsed], known: &mut Known) {
    let there: BTreeSet<&OsStr> = found.iter().map(|definition| definition.path.as_os_str()).collect();
    known.retain(|path| there.contains(path));
    for (definition, parsed) in found.iter().zip(parsed) {
        if let Contents::Read(_, Some((stamp, read))) = definition.contents {
            known.insert(&definition.path, stamp, read, parsed.clone());
        }
    }
}

fn parse_template(texts: &TemplateTexts, input: &mut Input) {
    let (template, mut found) = template::parse(&texts.file, &texts.text, &texts.entries);
    // A directory named `host` takes the place of the built-in template.
    input.templates.remove(&texts.name);
    if let Some(mut template) = template {
        match layers::look(&mut template) {
            Ok(()) => {
                input.templates.insert(texts.name.clone(), template);
            }
            Err(error) => {
                let span = template.base_span.clone();
                found.push(Diagnostic::at(&texts.file, &texts.text, span, format!("{error:#}")));
            }
        }
    }
    if !input.templates.contains_key(&texts.name) {
        let first = found.first().map(Diagnostic::summary).unwrap_or_default();
        input.broken_templates.insert(texts.name.clone(), first);
    }
    input.diagnostics.append(&mut found);
}

#[cfg(test)]
mod tests;
