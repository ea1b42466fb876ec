//! What goes along with a jail that is to stand alone: the layers below it, and the files that its
//! templates render.

use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::desired::{CopiedKind, DesiredJail, EtcFile, LayerSource};
use crate::execute::Host;
use crate::resolve::Input;
use crate::root::layers::{self, manifest::Contents};
use crate::source::TEXT_BYTES_MAX;
use crate::sys::file;
use crate::template::imported::{Alone, Brought, File};
use crate::template::{self, TemplateFile};

pub struct Found {
    pub alone: Alone,
    pub layers: Vec<OwnedFd>,
    pub texts: Vec<String>,
}

/// Of a jail that stands on these layers, which are verified.
pub fn full(host: &Host, input: &Input, wanted: &DesiredJail, ids: &[String]) -> Result<Found> {
    let name = &wanted.jail.name;
    let Some(template) = &wanted.jail.template else {
        bail!("{name}: its root is a directory of this host (`path`), which no archive holds");
    };
    let said = |wrong: Box<crate::diagnostic::Diagnostic>| anyhow!(wrong.summary());
    // That of a host base is made by every host, for its own /usr.
    let is_hosts = |id: &&String| {
        wanted.root.layers.iter().any(|layer| layer.id == **id && layer.source == LayerSource::Host)
    };
    let (mut brought, mut opened) = (Vec::new(), Vec::new());
    for id in ids.iter().filter(|id| !is_hosts(id)) {
        let (layer, root) = one(&host.journal.paths.state, id, template)?;
        brought.push(layer);
        opened.push(root);
    }
    ensure!(wanted.root.host_usr || !brought.is_empty(), "{name}: it has no layers");
    let run = template::run_of(&input.templates, template).map_err(said)?.map(|(_, run)| run.clone());
    let (files, texts) = files(input, template)?;
    Ok(Found {
        alone: Alone { layers: brought, host: wanted.root.host_usr, run, files },
        layers: opened,
        texts,
    })
}

fn one(state: &Path, id: &str, template: &str) -> Result<(Brought, OwnedFd)> {
    ensure!(
        layers::is_built(state, id),
        "layer {id} is not here: `template build {template}`, or start the jail"
    );
    let path = layers::path(state, id);
    let root = file::open_directory(&path).with_context(|| format!("open {}", path.display()))?;
    let found = Contents::verified(state, id, &root).with_context(|| format!("verify layer {id}"))?;
    let Contents { name, entries, bytes, devices } = found;
    Ok((Brought { id: id.to_owned(), content: name, entries, bytes, devices }, root))
}

fn files(input: &Input, template: &str) -> Result<(Vec<File>, Vec<String>)> {
    let found = template::files(&input.templates, template).map_err(|wrong| anyhow!(wrong.summary()))?;
    let (rendered, copied) = found;
    let (mut files, mut texts): (Vec<File>, Vec<String>) =
        rendered.into_iter().map(|file| (described(file), file.text.clone())).unzip();
    // What stockade would else write into the jail at its start.
    let of_etc = |target: &Path| EtcFile::ALL.iter().any(|own| own.target() == target);
    for copy in copied.into_iter().filter(|copy| of_etc(&copy.target) && copy.kind == CopiedKind::File) {
        if files.iter().any(|file| file.target == copy.target) {
            continue;
        }
        let text = std::fs::read_to_string(&copy.source);
        texts.push(text.with_context(|| format!("read {}", copy.source.display()))?);
        let (target, mode, on_change) = (copy.target.clone(), copy.mode, crate::desired::OnChange::Restart);
        files.push(File { target, is_expression: false, mode, uid: 0, gid: 0, on_change });
    }
    let large = texts.iter().zip(&files).find(|(text, _)| text.len() as u64 > TEXT_BYTES_MAX);
    ensure!(
        large.is_none(),
        "{} is too large",
        large.map_or("", |(_, file)| file.target.to_str().unwrap_or(""))
    );
    Ok((files, texts))
}

fn described(file: &TemplateFile) -> File {
    File {
        target: file.target.clone(),
        is_expression: file.is_expression,
        mode: file.mode,
        uid: file.uid,
        gid: file.gid,
        on_change: file.on_change.clone(),
    }
}
