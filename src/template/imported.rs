//! The template of a jail that came with its layers: these, by the names of what is in them, and
//! the files that are rendered for it. Pure.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::image::Run;
use crate::desired::OnChange;

/// What goes along with a jail so that it needs nothing of the host it comes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alone {
    /// Topmost first.
    pub layers: Vec<Brought>,
    /// The host's own /usr is below these: any host has one.
    pub host: bool,
    /// What the image that they come from runs.
    pub run: Option<Run>,
    pub files: Vec<File>,
}

/// One layer that goes along.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Brought {
    /// Its name on the host it comes from.
    pub id: String,
    /// Its name by what is in it, which it gets where it comes to.
    pub content: String,
    pub entries: u64,
    pub bytes: u64,
    /// It has device nodes, which its template has asked for.
    #[serde(default)]
    pub devices: bool,
}

/// A file that each jail gets its own of; its text is an entry of the archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    pub target: PathBuf,
    pub is_expression: bool,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub on_change: OnChange,
}

#[derive(Serialize)]
struct Text {
    base: Base,
    file: Vec<FileText>,
}

#[derive(Serialize)]
struct Base {
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<bool>,
    layers: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<RunText>,
}

#[derive(Serialize)]
struct RunText {
    #[serde(skip_serializing_if = "String::is_empty")]
    user: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    workdir: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    command: Vec<String>,
    env: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct FileText {
    source: String,
    target: PathBuf,
    mode: String,
    owner: u32,
    group: u32,
    on_change: OnChange,
}

/// What the text of one of its files is called in the template's directory.
pub fn source(number: usize, file: &File) -> String {
    format!("file-{number}{}", if file.is_expression { ".tera" } else { "" })
}

/// The `template.toml`.
pub fn text(alone: &Alone) -> Result<String, toml::ser::Error> {
    let run = alone.run.clone().map(|run| RunText {
        user: run.user,
        workdir: run.workdir,
        command: run.command,
        env: run.env.into_iter().collect(),
    });
    let layers = alone.layers.iter().map(|layer| layer.content.clone()).collect();
    let file = |(number, file): (usize, &File)| FileText {
        source: source(number, file),
        target: file.target.clone(),
        mode: format!("{:04o}", file.mode & 0o7777),
        owner: file.uid,
        group: file.gid,
        on_change: file.on_change.clone(),
    };
    let base = Base { host: alone.host.then_some(true), layers, run };
    let text = toml::to_string(&Text { base, file: alone.files.iter().enumerate().map(file).collect() })?;
    Ok(format!("# Made by `stockade import`; the layers came with the archive.\n{text}"))
}
