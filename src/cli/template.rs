//! `template ls|build|gc`: the layers that templates stand for.

mod layers;

use std::path::Path;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use clap_complete::ArgValueCandidates;
use comfy_table::{Table, presets};
use serde_json::{Value, json};

use super::{DONE, INVALID, Options, complete, gc, output, progress};
use crate::desired::{Desired, DesiredJail, Layer};
use crate::execute::Host;
use crate::template::{self, Base};
use crate::{root, source, status};

pub use layers::layers_named;

#[derive(Debug, Args)]
pub struct Template {
    #[command(subcommand)]
    pub verb: TemplateVerb,
}

#[derive(Debug, Subcommand)]
pub enum TemplateVerb {
    /// List templates, their layers and who uses them
    Ls,
    /// Build a template's layers now
    Build {
        /// The template
        #[arg(add = ArgValueCandidates::new(complete::templates))]
        name: String,
    },
    /// Show a template's layers: what they are made from, their sizes, who uses them
    Show {
        /// The template
        #[arg(add = ArgValueCandidates::new(complete::templates))]
        name: String,
    },
    /// Compare layers with what they held when they were made
    Verify {
        /// Without one: every layer there is
        #[arg(add = ArgValueCandidates::new(complete::templates))]
        names: Vec<String>,
    },
    /// Remove layers that no jail uses
    Gc,
}

pub fn template(options: &Options, asked: &Template) -> Result<i32> {
    match &asked.verb {
        TemplateVerb::Ls => ls(options),
        TemplateVerb::Build { name } => build(options, name),
        TemplateVerb::Show { name } => layers::show(options, name),
        TemplateVerb::Verify { names } => layers::verify(options, names),
        TemplateVerb::Gc => gc::layers(options),
    }
}

/// One template as it is on this host.
struct Seen {
    name: String,
    base: String,
    /// With the bytes on disk of those that are built.
    layers: Vec<(String, Option<u64>)>,
    jails: Vec<String>,
    /// Why it cannot be used.
    error: Option<String>,
}

fn ls(options: &Options) -> Result<i32> {
    let paths = options.paths();
    let (desired, _) = source::load(&paths);
    let input = source::parse(&paths, source::read(&paths));
    let state = &desired.host.paths.state;
    let mut seen: Vec<Seen> = Vec::new();
    for (name, template) in &input.templates {
        let layers = template::layers(&input.templates, name);
        let error = layers.as_ref().err().map(|wrong| wrong.summary());
        let layers = layers.unwrap_or_default();
        seen.push(Seen {
            name: name.clone(),
            base: base(&template.base),
            error,
            layers: measured(state, &layers)?,
            jails: users(&desired, name, layers.first()),
        });
    }
    for (name, error) in &input.broken_templates {
        let (base, error) = ("-".to_owned(), Some(error.clone()));
        seen.push(Seen {
            name: name.clone(),
            base,
            layers: Vec::new(),
            jails: users(&desired, name, None),
            error,
        });
    }
    seen.sort_by(|a, b| a.name.cmp(&b.name));
    if options.json {
        output::json_text(&output::envelope("templates", seen.iter().map(item).collect()));
    } else {
        output::text(&table(&seen));
    }
    Ok(DONE)
}

fn base(base: &Base) -> String {
    match base {
        Base::Host => "host".to_owned(),
        Base::Directory { path, .. } => format!("directory {}", path.display()),
        Base::Tar { path, .. } => format!("tar {}", path.display()),
        Base::Oci { path, .. } => format!("oci {}", path.display()),
        Base::Debootstrap { wanted, .. } => format!("debootstrap {}", wanted.suite),
        Base::Template(name) => format!("template {name}"),
        Base::Imported => "imported".to_owned(),
    }
}

fn measured(state: &Path, layers: &[Layer]) -> Result<Vec<(String, Option<u64>)>> {
    let measure = |layer: &Layer| {
        let built = root::layers::path(state, &layer.id).is_dir();
        let bytes = built.then(|| root::layers::disk_bytes(state, &layer.id)).transpose()?;
        Ok((layer.id.clone(), bytes))
    };
    layers.iter().map(measure).collect()
}

/// The jails that stand on a template, itself or one made of it: they have its topmost layer.
fn users(desired: &Desired, template: &str, top: Option<&Layer>) -> Vec<String> {
    let stands = |wanted: &DesiredJail| match top {
        Some(top) => wanted.root.layers.iter().any(|layer| layer.id == top.id),
        None => wanted.jail.template.as_deref() == Some(template),
    };
    let users = desired.jails.iter().filter(|(_, wanted)| stands(wanted));
    users.map(|(name, _)| name.to_string()).collect()
}

fn item(seen: &Seen) -> Value {
    let layer =
        |(id, bytes): &(String, Option<u64>)| json!({ "id": id, "built": bytes.is_some(), "size": bytes });
    let layers: Vec<Value> = seen.layers.iter().map(layer).collect();
    json!({ "name": seen.name, "base": seen.base, "layers": layers, "jails": seen.jails, "error": seen.error })
}

fn table(all: &[Seen]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["NAME", "BASE", "LAYERS", "SIZE", "JAILS"]);
    for seen in all {
        let built: Vec<u64> = seen.layers.iter().filter_map(|(_, bytes)| *bytes).collect();
        let layers = match &seen.error {
            Some(_) => "config-error".to_owned(),
            None => format!("{}/{} built", built.len(), seen.layers.len()),
        };
        let size = if built.is_empty() { "-".to_owned() } else { status::size(built.iter().sum()) };
        let jails = if seen.jails.is_empty() { "-".to_owned() } else { seen.jails.join(",") };
        table.add_row([seen.name.clone(), seen.base.clone(), layers, size, jails]);
    }
    output::plain(&mut table)
}

fn build(options: &Options, name: &str) -> Result<i32> {
    let paths = options.paths();
    let (desired, found) = source::load(&paths);
    let input = source::parse(&paths, source::read(&paths));
    if let Some(error) = input.broken_templates.get(name) {
        let wrong: Vec<_> = found.into_iter().filter(|wrong| is_below(&wrong.file, name)).collect();
        output::diagnostics(options, &wrong);
        if wrong.is_empty() {
            bail!("template {name}: {error}");
        }
        return Ok(INVALID);
    }
    let layers = layers::layers_of(&input, name)?;
    let host = Host::open(desired.host)?;
    crate::interrupt::catch()?;
    let state = &host.journal.paths.state;
    let mut items = Vec::new();
    // From the bottom up, as they lie on one another.
    for layer in layers.iter().rev() {
        let new = !root::layers::path(state, &layer.id).is_dir();
        if new {
            progress::build(options, true, &host, name, layer)?;
        }
        // It takes a walk through all of the layer.
        let size = options.json.then(|| root::layers::disk_bytes(state, &layer.id)).transpose()?;
        items.push(json!({ "id": layer.id, "new": new, "size": size }));
    }
    if options.json {
        output::json_text(&output::envelope("layers", items.into()));
    } else {
        let new = items.iter().filter(|item| item["new"] == true).count();
        output::text(&format!("{name}: {} layers, {new} built now", items.len()));
    }
    Ok(DONE)
}

fn is_below(file: &Path, template: &str) -> bool {
    file.components().any(|part| part.as_os_str() == template)
}
