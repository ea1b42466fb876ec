//! `[base]`: what a template stands on, and what goes with each kind.

use std::borrow::Cow;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use toml::Spanned;

use super::{Item, Reader, Table};
use crate::desired::{Blob, Kept};
use crate::diagnostic::Diagnostic;
use crate::keys::{self, TEMPLATE_KEYS};
use crate::template::image::Run;
use crate::template::{Base, hex};

/// Keys of `[base]`, of which exactly one says what the base is.
const BASES: &[&str] = &["host", "directory", "tar", "template", "debootstrap", "oci", "layers"];
/// The bases that are archives; a template is one with `changes` over it.
const ARCHIVES: &[&str] = &["tar", "oci", "template"];
/// The other keys of `[base]`, and the bases they go with.
const QUALIFIERS: &[(&str, &[&str])] = &[
    ("sha256", &["tar", "template"]),
    ("changes", &["template"]),
    ("run", &["layers"]),
    ("version", &["directory", "debootstrap"]),
    ("reference", &["oci"]),
    ("setuid", ARCHIVES),
    ("devices", ARCHIVES),
    ("capabilities", ARCHIVES),
];

/// `[base]` as it was understood.
pub struct Found {
    pub base: Base,
    pub span: Range<usize>,
    pub kept: Kept,
    pub changes: Option<Blob>,
    pub layers: Vec<String>,
    pub run: Option<Run>,
}

impl Reader<'_> {
    pub fn base(&mut self, document: &Table<'_>) -> Option<Found> {
        let Some(item) = document.get("base") else {
            let wrong = Diagnostic::whole(self.file, "`[base]` is missing");
            self.wrong.push(wrong.help("for example: [base] and below it: host = true"));
            return None;
        };
        let Some(table) = item.get_ref().as_table() else {
            self.mismatch(item, "a table");
            return None;
        };
        self.only(table, &keys::words(TEMPLATE_KEYS, "base"));
        // An import may bring layers over the host's own /usr.
        let is_base = |key: &str| BASES.contains(&key) && (key != "layers" || !table.contains_key("host"));
        let mut given = table.iter().filter(|(key, _)| is_base(key.get_ref()));
        let Some((key, value)) = given.next() else {
            self.at(item.span(), format!("`[base]` says none of {}", BASES.join(", ")));
            return None;
        };
        if let Some((second, _)) = given.next() {
            let message = format!("`[base]` has both `{}` and `{}`", key.get_ref(), second.get_ref());
            self.at(second.span(), message);
            return None;
        }
        self.qualifiers(table, key.get_ref());
        let kept = self.kept(table);
        let base = self.one_base(table, key, value)?;
        let changes = self.changes(table);
        let layers = table.get("layers").map_or(Some(Vec::new()), |item| self.layers(item));
        let run = table.get("run").and_then(|item| self.run(item));
        let span = key.span().start..value.span().end;
        Some(Found { base, span, kept: kept?, changes, layers: layers?, run })
    }

    fn kept(&mut self, table: &Table<'_>) -> Option<Kept> {
        let usual = Kept::default();
        let mut flag = |key: &str, usual| table.get(key).map_or(Some(usual), |item| self.boolean(item));
        let setuid = flag("setuid", usual.setuid);
        let (devices, capabilities) =
            (flag("devices", usual.devices), flag("capabilities", usual.capabilities));
        Some(Kept { setuid: setuid?, devices: devices?, capabilities: capabilities? })
    }

    /// An archive beside the template, as `commit` writes it.
    fn changes(&mut self, table: &Table<'_>) -> Option<Blob> {
        let item = table.get("changes")?;
        let name = PathBuf::from(self.string(item)?);
        if !name.components().all(|part| matches!(part, Component::Normal(_))) {
            self.at(item.span(), "this has to be a path below the template's directory");
            return None;
        }
        let Some(digest) = table.get("sha256") else {
            self.at(item.span(), "`changes` needs the `sha256` of its archive beside it");
            return None;
        };
        let sha256 = self.sha256(digest)?;
        Some(Blob { name, sha256, size: None })
    }

    fn qualifiers(&mut self, table: &Table<'_>, base: &str) {
        for (qualifier, owners) in QUALIFIERS {
            if let Some((key, _)) = table.get_key_value(*qualifier)
                && !owners.contains(&base)
            {
                let owners = owners.join("` and `");
                self.at(key.span(), format!("`{qualifier}` goes with `{owners}`, not with `{base}`"));
            } else if base == "template"
                && *qualifier != "changes"
                && let Some(key) = table.get_key_value(*qualifier).map(|(key, _)| key)
                && !table.contains_key("changes")
            {
                self.at(key.span(), format!("beside a template, `{qualifier}` goes with `changes`"));
            }
        }
    }

    fn one_base(&mut self, table: &Table<'_>, key: &Spanned<Cow<'_, str>>, value: &Item<'_>) -> Option<Base> {
        let mut other = |key: &str| match table.get(key) {
            Some(item) => self.string(item).map(Some),
            None => Some(None),
        };
        match key.get_ref().as_ref() {
            "host" if value.get_ref().as_bool() == Some(true) => Some(Base::Host),
            "host" => {
                self.at(value.span(), "`host` is either `true` or absent");
                None
            }
            "directory" => {
                let version = other("version");
                Some(Base::Directory { path: self.path(value)?, version: version?.unwrap_or_default() })
            }
            "tar" => {
                let sha256 = match table.get("sha256") {
                    Some(item) => Some(self.sha256(item)?),
                    None => None,
                };
                Some(Base::Tar { path: self.path(value)?, sha256 })
            }
            "oci" => {
                let reference = other("reference");
                Some(Base::Oci { path: self.path(value)?, reference: reference? })
            }
            "template" => self.string(value).map(Base::Template),
            "layers" => Some(Base::Imported),
            _ => {
                let version = other("version");
                let debootstrap = self.debootstrap(value);
                Some(Base::Debootstrap { wanted: debootstrap?, version: version?.unwrap_or_default() })
            }
        }
    }

    /// A path of the host; a relative one is below the template's directory.
    pub fn path(&mut self, item: &Item<'_>) -> Option<PathBuf> {
        let text = self.string(item)?;
        Some(self.file.parent().unwrap_or(Path::new("")).join(text))
    }

    pub fn boolean(&mut self, item: &Item<'_>) -> Option<bool> {
        let found = item.get_ref().as_bool();
        if found.is_none() {
            self.mismatch(item, "true or false");
        }
        found
    }

    fn sha256(&mut self, item: &Item<'_>) -> Option<String> {
        let text = self.string(item)?.to_ascii_lowercase();
        if text.len() == hex(&[0; 32]).len() && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Some(text);
        }
        self.at(item.span(), "this has to be 64 hexadecimal digits");
        None
    }
}
