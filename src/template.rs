//! Templates: what a jail's root is made of, and the files in it that stockade owns.
//!
//! Pure. `source` reads a template's directory into [`TemplateEntry`]s and stamps its base;
//! [`parse()`] checks `template.toml`, and [`root`] lays the chain of templates of one jail
//! together: layers named by the digest of what they are made from, and rendered files. Nothing
//! here opens a file.
//!
//! A layer is made anew when its name changes. The name of a tar archive comes from its declared
//! `sha256`, else from its path, size, times and inode. A directory is not walked at every pass:
//! its name comes from its path, its own inode and the `version` key beside it, so a change below
//! it shows in new layers once `version` is raised (or another directory is moved to the place).
//!
//! `files/` is a layer over the base, merged as overlayfs merges: a directory of it takes the
//! place of a link of that name in the base, so `files/bin/x` belongs in `files/usr/bin/x` where
//! the base has `bin -> usr/bin`.

pub mod image;
pub mod imported;
mod parse;
mod roots;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::desired::{
    Blob, Build, CopiedFile, CopiedKind, Debootstrap, DesiredRoot, Kept, Layer, LayerSource, OnChange,
    RootFile,
};
use crate::diagnostic::Diagnostic;
use crate::expression;
use crate::jail::Jail;

pub use image::{Image, Run};
pub use parse::{is_layer, parse};
pub use roots::Roots;

/// The template that exists without a directory.
pub const HOST: &str = "host";
/// The longest chain of `base.template`.
pub const PARENTS_MAX: usize = 16;
/// Part of every layer's name: raised when layers are built another way than before.
const LAYER_FORMAT: &str = "2";
/// What the host base shows from the host, read only, so that nothing can be laid there.
const HOST_OWNED: &[&str] = &["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"];

/// One entry of a template's directory, as `source` found it by lstat(2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TemplateEntry {
    /// Relative to the template's directory.
    pub path: PathBuf,
    pub kind: EntryKind,
    /// Permission bits.
    pub mode: u32,
    /// Bytes.
    pub size: u64,
    /// Nanoseconds since the epoch.
    pub mtime_ns: i128,
    pub inode: u64,
    /// The contents, of `*.tera` files and of files outside `files/`, if they are UTF-8.
    pub text: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum EntryKind {
    #[default]
    File,
    Directory,
    /// A symbolic link with its target.
    Link(PathBuf),
}

/// One template, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    pub name: String,
    /// `template.toml`, and its text for diagnostics that come later.
    pub file: PathBuf,
    pub text: String,
    pub base: Base,
    /// Where the base stands in `text`.
    pub base_span: Range<usize>,
    /// What stays of the entries of the base's archive.
    pub kept: Kept,
    /// Layers over the base that an import has brought, topmost first.
    pub layers: Vec<String>,
    /// With a template for a base: an archive of what lies over it, in the template's directory.
    pub changes: Option<Blob>,
    /// What `root::layers::look` finds of the base; set by `source` after parsing.
    pub stamp: String,
    /// Of an `oci` base, found likewise.
    pub image: Option<Image>,
    pub build: Option<Lines>,
    pub rendered: Vec<TemplateFile>,
    pub copied: Vec<CopiedFile>,
    /// Size, times and inodes of the copied files, part of their layer's name.
    pub copied_stamp: String,
}

/// What a template stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Base {
    /// The host's own /usr, read only.
    Host,
    /// Nothing but the layers that an import has brought.
    Imported,
    Directory {
        path: PathBuf,
        version: String,
    },
    Tar {
        path: PathBuf,
        /// 64 lower-case hexadecimal digits.
        sha256: Option<String>,
    },
    /// An OCI layout, as a directory or a tar archive, or a docker archive.
    Oci {
        path: PathBuf,
        /// Which image, where there are several.
        reference: Option<String>,
    },
    Debootstrap {
        wanted: Debootstrap,
        /// Another one makes another layer.
        version: String,
    },
    Template(String),
}

/// `[build]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lines {
    pub run: Vec<String>,
    pub network: bool,
    /// Sorted by name.
    pub env: Vec<(String, String)>,
    pub timeout_ms: u64,
}

/// A file of a template that each jail gets its own of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateFile {
    /// The file the text came from.
    pub source: PathBuf,
    pub text: String,
    /// False: laid as it is written.
    pub is_expression: bool,
    pub target: PathBuf,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub on_change: OnChange,
}

impl Template {
    /// The built-in template `host`; `stamp` comes from `root::layers::host_stamp`.
    pub fn host(stamp: String) -> Self {
        Self {
            name: HOST.to_owned(),
            file: PathBuf::from("template.toml"),
            text: String::new(),
            base: Base::Host,
            base_span: 0..0,
            kept: Kept::default(),
            layers: Vec::new(),
            changes: None,
            stamp,
            image: None,
            build: None,
            rendered: Vec::new(),
            copied: Vec::new(),
            copied_stamp: String::new(),
        }
    }

    /// Whether a file of the template, rendered or copied, has this place.
    fn lays(&self, target: &Path) -> bool {
        let rendered = self.rendered.iter().map(|file| &file.target);
        rendered.chain(self.copied.iter().map(|file| &file.target)).any(|laid| laid == target)
    }

    fn wrong(&self, message: impl Into<String>) -> Diagnostic {
        Diagnostic::at(&self.file, &self.text, self.base_span.clone(), message)
    }
}

/// The root that `jail` wants: layers topmost first, and its own files rendered with `variables`.
pub fn root(
    templates: &BTreeMap<String, Template>,
    jail: &Jail,
    variables: &Value,
) -> Result<DesiredRoot, Vec<Diagnostic>> {
    Roots::new(templates).root(jail, || variables.clone())
}

/// The layers of one template and its parents, topmost first.
pub fn layers(templates: &BTreeMap<String, Template>, name: &str) -> Result<Vec<Layer>, Box<Diagnostic>> {
    Ok(layers_of(&chain(templates, name)?))
}

/// The template and its parents, itself first.
fn chain<'t>(
    templates: &'t BTreeMap<String, Template>,
    name: &str,
) -> Result<Vec<&'t Template>, Box<Diagnostic>> {
    let missing = |name: &str| {
        let help = crate::diagnostic::did_you_mean(name, templates.keys().map(String::as_str));
        (format!("there is no template `{name}`"), help)
    };
    let Some(first) = templates.get(name) else {
        let (message, help) = missing(name);
        return Err(Box::new(Diagnostic { help, ..Diagnostic::whole(Path::new(name), message) }));
    };
    let mut chain = vec![first];
    while let Some(Template { base: Base::Template(parent), .. }) = chain.last() {
        let child = chain[chain.len() - 1];
        if chain.iter().any(|seen| seen.name == *parent) {
            let names: Vec<&str> = chain.iter().map(|t| t.name.as_str()).chain([parent.as_str()]).collect();
            return Err(Box::new(
                child.wrong(format!("templates stand on each other: {}", names.join(" -> "))),
            ));
        }
        if chain.len() == PARENTS_MAX {
            return Err(Box::new(
                child.wrong(format!("more than {PARENTS_MAX} templates stand on one another")),
            ));
        }
        chain.push(templates.get(parent).ok_or_else(|| {
            let (message, help) = missing(parent);
            Box::new(Diagnostic { help, ..child.wrong(message) })
        })?);
    }
    Ok(chain)
}

/// Topmost first; each may be named after those that it lies on.
fn layers_of(chain: &[&Template]) -> Vec<Layer> {
    let mut layers: VecDeque<Layer> = VecDeque::new();
    for template in chain.iter().rev() {
        add_base(template, &mut layers);
        if let Some(lines) = &template.build {
            add_build(lines, host_usr(chain), &mut layers);
        }
        if !template.copied.is_empty() {
            let source = LayerSource::Files(template.copied.clone());
            layers.push_front(Layer { id: id(&["files", &template.copied_stamp]), source });
        }
    }
    layers.into()
}

fn add_base(template: &Template, layers: &mut VecDeque<Layer>) {
    let stamp = template.stamp.as_str();
    let kept = template.kept;
    let mut add = |parts: &[&str], source| {
        let parts: Vec<&str> = parts.iter().copied().chain(kept.words()).collect();
        layers.push_front(Layer { id: id(&parts), source });
    };
    match &template.base {
        Base::Host => add(&["host", stamp], LayerSource::Host),
        Base::Directory { path, version } => {
            add(&["directory", &exact(path), version, stamp], LayerSource::Directory(path.clone()));
        }
        Base::Tar { path, sha256 } => {
            let source = LayerSource::Tar { path: path.clone(), sha256: sha256.clone(), kept };
            match sha256 {
                Some(digest) => add(&["tar", digest], source),
                None => add(&["tar", &exact(path), stamp], source),
            }
        }
        Base::Debootstrap { wanted, version } => {
            let Debootstrap { suite, variant, include, mirror, arch, components, keyring } = wanted;
            let keyring = keyring.as_deref().map(exact);
            let (include, components) = (include.join(","), components.join(","));
            let or_none = |word: &Option<String>| word.clone().unwrap_or_default();
            let (variant, mirror, arch) = (or_none(variant), or_none(mirror), or_none(arch));
            let keyring = or_none(&keyring);
            let words = [suite, &variant, &include, &mirror, &arch, &components, &keyring, version];
            let parts: Vec<&str> = ["debootstrap"].into_iter().chain(words.map(String::as_str)).collect();
            add(&parts, LayerSource::Debootstrap(wanted.clone()));
        }
        Base::Oci { path, .. } => add_image(template, path, layers),
        Base::Template(_) => add_changes(template, layers),
        Base::Imported => {}
    }
    let brought = |id: &String| Layer { id: id.clone(), source: LayerSource::Built };
    template.layers.iter().rev().for_each(|id| layers.push_front(brought(id)));
}

/// Whether a chain of templates stands on the host's own /usr.
fn host_usr(chain: &[&Template]) -> bool {
    chain.last().is_some_and(|last| last.base == Base::Host)
}

/// Named after what lies below, the lines and what they are given; not after the time they may take.
fn add_build(lines: &Lines, host_usr: bool, layers: &mut VecDeque<Layer>) {
    let lower: Vec<String> = layers.iter().map(|layer| layer.id.clone()).collect();
    let count = |list: usize| list.to_string();
    let (below, run) = (count(lower.len()), count(lines.run.len()));
    let mut parts = vec!["build", if lines.network { "network" } else { "" }, &below];
    parts.extend(lower.iter().map(String::as_str));
    parts.push(&run);
    parts.extend(lines.run.iter().map(String::as_str));
    parts.extend(lines.env.iter().flat_map(|(name, value)| [name.as_str(), value.as_str()]));
    let id = id(&parts);
    let source = LayerSource::Build(Build {
        lower,
        host_usr,
        run: lines.run.clone(),
        env: lines.env.iter().cloned().collect(),
        network: lines.network,
        timeout: lines.timeout_ms,
    });
    layers.push_front(Layer { id, source });
}

/// As OCI's chain ids go: a layer's name holds those below, for what it deletes is theirs. Images
/// that begin alike share what they begin with.
fn add_image(template: &Template, archive: &Path, layers: &mut VecDeque<Layer>) {
    for blob in template.image.iter().flat_map(|image| &image.layers) {
        let below: Vec<String> = layers.iter().map(|layer| layer.id.clone()).collect();
        let mut parts = vec!["image", &blob.sha256];
        parts.extend(template.kept.words());
        parts.extend(below.first().map(String::as_str));
        let id = id(&parts);
        let (archive, blob, kept) = (archive.to_owned(), blob.clone(), template.kept);
        layers.push_front(Layer { id, source: LayerSource::Image { archive, blob, kept, below } });
    }
}

/// A layer like an image's: its name holds those below, for what it deletes is theirs.
fn add_changes(template: &Template, layers: &mut VecDeque<Layer>) {
    let Some(blob) = &template.changes else { return };
    let below: Vec<String> = layers.iter().map(|layer| layer.id.clone()).collect();
    let mut parts = vec!["changes", blob.sha256.as_str()];
    parts.extend(template.kept.words());
    parts.extend(below.first().map(String::as_str));
    let id = id(&parts);
    let archive = template.file.parent().unwrap_or(Path::new("")).to_owned();
    let source = LayerSource::Image { archive, blob: blob.clone(), kept: template.kept, below };
    layers.push_front(Layer { id, source });
}

/// What the image at the bottom of a template's chain starts by itself, if there is one, and whose
/// it is. An error when the chain is broken.
pub fn run_of<'t>(
    templates: &'t BTreeMap<String, Template>,
    name: &str,
) -> Result<Option<(&'t Template, &'t Run)>, Box<Diagnostic>> {
    let bottom = chain(templates, name)?.pop();
    Ok(bottom.and_then(|bottom| Some((bottom, &bottom.image.as_ref()?.run))))
}

/// `sha256-` and the digest of the parts, each with its length before it so that none runs into
/// the next.
fn id(parts: &[&str]) -> String {
    let mut digest = Sha256::new();
    for part in [LAYER_FORMAT].iter().chain(parts) {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part.as_bytes());
    }
    format!("sha256-{}", hex(&digest.finalize()))
}

/// The name of a layer by what is in it, written down as the text `contents`: no layer that is
/// named after what it is made from can have it.
pub fn content_name(contents: &str) -> String {
    id(&["content", contents])
}

/// A path as text that no other path has, whatever its bytes are.
fn exact(path: &Path) -> String {
    path.as_os_str().as_encoded_bytes().escape_ascii().to_string()
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] =
        ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    let digits = |byte: &u8| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
    bytes.iter().flat_map(digits).collect()
}

/// The files of a template and its parents that are rendered for each jail, by their targets, and
/// those that are copied.
pub fn files<'t>(
    templates: &'t BTreeMap<String, Template>,
    name: &str,
) -> Result<(Vec<&'t TemplateFile>, Vec<&'t CopiedFile>), Box<Diagnostic>> {
    let chain = chain(templates, name)?;
    Ok((rendered(&chain), chain.iter().flat_map(|template| &template.copied).collect()))
}

fn render_all(chain: &[&Template], variables: &Value) -> Result<Vec<RootFile>, Vec<Diagnostic>> {
    let (mut files, mut wrong) = (Vec::new(), Vec::new());
    for file in rendered(chain) {
        match render(file, variables) {
            Ok(rendered) => files.push(rendered),
            Err(diagnostic) => wrong.push(*diagnostic),
        }
    }
    if wrong.is_empty() { Ok(files) } else { Err(wrong) }
}

/// The rendered files of the whole chain; a child's file, rendered or copied, hides a parent's.
fn rendered<'t>(chain: &[&'t Template]) -> Vec<&'t TemplateFile> {
    let mut hidden: BTreeSet<&Path> = BTreeSet::new();
    let mut files: BTreeMap<&Path, &TemplateFile> = BTreeMap::new();
    for template in chain {
        let seen = template.rendered.iter().filter(|file| !hidden.contains(file.target.as_path()));
        files.extend(seen.map(|file| (file.target.as_path(), file)));
        let laid = template.copied.iter().filter(|file| file.kind != CopiedKind::Directory);
        hidden.extend(laid.map(|file| file.target.as_path()));
        hidden.extend(template.rendered.iter().map(|file| file.target.as_path()));
    }
    files.into_values().collect()
}

fn render(file: &TemplateFile, variables: &Value) -> Result<RootFile, Box<Diagnostic>> {
    let contents = if file.is_expression {
        expression::render_at(&file.text, variables).map_err(|fault| match fault.at {
            Some(at) => Box::new(Diagnostic::at(&file.source, &file.text, at..at + 1, fault.message)),
            None => Box::new(Diagnostic::whole(&file.source, fault.message)),
        })?
    } else {
        file.text.clone()
    };
    Ok(RootFile {
        target: file.target.clone(),
        contents: contents.into_bytes(),
        mode: file.mode,
        uid: file.uid,
        gid: file.gid,
        on_change: file.on_change.clone(),
    })
}

fn refuse_host_owned(chain: &[&Template]) -> Result<(), Vec<Diagnostic>> {
    let laid = chain.iter().flat_map(|template| {
        let rendered = template.rendered.iter().map(|file| (&file.source, &file.target));
        // The place of the host's own /usr is a directory of the root like any other.
        let usr = |file: &&CopiedFile| file.kind == CopiedKind::Directory && file.target == Path::new("/usr");
        let copied = template.copied.iter().filter(move |file| !usr(file));
        rendered.chain(copied.map(|file| (&file.source, &file.target)))
    });
    let wrong: Vec<Diagnostic> = laid
        .filter(|(_, target)| HOST_OWNED.iter().any(|owned| target.starts_with(owned)))
        .map(|(source, target)| {
            let target = target.display();
            Diagnostic::whole(source, format!("{target} is the host's own and read only with a `host` base"))
        })
        .collect();
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

#[cfg(test)]
mod tests;
