//! `template show|verify`: one template's layers, and whether layers are as they were made.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow, bail};
use comfy_table::{Table, presets};
use serde_json::{Value, json};

use crate::cli::progress::made_from;
use crate::cli::{DONE, FAILED, Options, output};
use crate::desired::{Desired, Layer};
use crate::resolve::Input;
use crate::root::layers::{self, manifest::Verdict};
use crate::{diagnostic, source, status, template};

fn input(options: &Options) -> (Desired, Input) {
    let paths = options.paths();
    (source::load(&paths).0, source::parse(&paths, source::read(&paths)))
}

/// A template's layers, topmost first.
pub fn layers_of(input: &Input, name: &str) -> Result<Vec<Layer>> {
    if let Some(error) = input.broken_templates.get(name) {
        bail!("template {name}: {error}");
    }
    if !input.templates.contains_key(name) {
        let hint = diagnostic::did_you_mean(name, input.templates.keys().map(String::as_str));
        bail!("no template is named `{name}`{}", hint.map(|hint| format!(" ({hint})")).unwrap_or_default());
    }
    template::layers(&input.templates, name).map_err(|wrong| anyhow!(wrong.summary()))
}

/// The same, of the templates that are there now.
pub fn layers_named(options: &Options, name: &str) -> Result<Vec<Layer>> {
    layers_of(&input(options).1, name)
}

pub fn show(options: &Options, name: &str) -> Result<i32> {
    let (desired, input) = input(options);
    let state = &desired.host.paths.state;
    let mut items = Vec::new();
    for layer in layers_of(&input, name)? {
        let built = layers::is_built(state, &layer.id);
        let size = built.then(|| layers::disk_bytes(state, &layer.id)).transpose()?;
        let uses =
            |wanted: &&crate::desired::DesiredJail| wanted.root.layers.iter().any(|own| own.id == layer.id);
        let jails: Vec<&str> =
            desired.jails.values().filter(uses).map(|wanted| wanted.jail.name.as_str()).collect();
        let from = made_from(&layer.source);
        items.push(json!({ "id": layer.id, "from": from, "built": built, "size": size, "jails": jails }));
    }
    if options.json {
        output::json_text(&output::envelope("layers", items.into()));
    } else {
        output::text(&table(&items));
    }
    Ok(DONE)
}

fn table(items: &[Value]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["LAYER", "SIZE", "JAILS", "FROM"]);
    for item in items {
        let word = |key: &str| item[key].as_str().unwrap_or_default().to_owned();
        let size = item["size"].as_u64().map_or("not built".to_owned(), status::size);
        let jails = item["jails"].as_array().map_or(0, Vec::len).to_string();
        let id: String = word("id").chars().take("sha256-".len() + 12).collect();
        table.add_row([id, size, jails, word("from")]);
    }
    output::plain(&mut table)
}

/// Exit status 1 when one is not as it was made, or nobody can tell.
pub fn verify(options: &Options, names: &[String]) -> Result<i32> {
    let (desired, input) = input(options);
    let state = &desired.host.paths.state;
    let mut all: BTreeMap<String, Verdict> = BTreeMap::new();
    let wanted = if names.is_empty() {
        layers::built(state)?
    } else {
        let of = |name: &String| layers_of(&input, name);
        let layers = names.iter().map(of).collect::<Result<Vec<_>>>()?;
        let ids = layers.into_iter().flatten().map(|layer| layer.id);
        ids.filter(|id| layers::is_built(state, id)).collect()
    };
    for id in wanted {
        let verdict = layers::manifest::verify(state, &id).with_context(|| format!("verify layer {id}"))?;
        if !options.json {
            output::text(&format!("{id}  {}", said(&verdict)));
        }
        all.insert(id, verdict);
    }
    if options.json {
        let item = |(id, verdict): (&String, &Verdict)| json!({ "id": id, "good": *verdict == Verdict::Same, "verdict": said(verdict) });
        output::json_text(&output::envelope("layers", all.iter().map(item).collect()));
    }
    Ok(if all.values().all(|verdict| *verdict == Verdict::Same) { DONE } else { FAILED })
}

fn said(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Same => "as it was made".to_owned(),
        Verdict::Differs(what) => what.clone(),
        Verdict::Unknown => "made by a version that kept no manifests: remove and build it again".to_owned(),
    }
}
