//! What the program says about itself: its keys, their schema, its manual, its completions.

use anyhow::{Result, bail};
use comfy_table::{Table, presets};
use serde_json::{Value, json};

use super::command::SchemaOf;
use super::{DONE, Options, output};
use crate::diagnostic;
use crate::keys::{self, FILE_KEYS, HOST_KEYS, KEYS, Key, TEMPLATE_KEYS};

/// One key in full, the keys of a table in short, or all keys a line each.
pub fn explain(options: &Options, name: Option<&str>) -> Result<i32> {
    if options.json {
        output::json_text(&output::envelope("keys", chosen(name)?.into_iter().map(item).collect()));
        return Ok(DONE);
    }
    match name {
        None => output::text(&table()),
        Some(name) => match keys::explain(name) {
            Some(text) => output::text(&text),
            None => bail!(unknown(name)),
        },
    }
    Ok(DONE)
}

/// The keys of jails, of the host and of templates.
pub fn all() -> impl Iterator<Item = &'static Key> {
    KEYS.iter().chain(HOST_KEYS).chain(TEMPLATE_KEYS).chain(FILE_KEYS)
}

/// The rows by name, or of a table by its name; all without one.
fn chosen(name: Option<&str>) -> Result<Vec<&'static Key>> {
    let Some(name) = name else { return Ok(all().collect()) };
    let rows: Vec<&Key> = all().filter(|key| key.name == name || key.table() == name).collect();
    if rows.is_empty() {
        bail!(unknown(name));
    }
    Ok(rows)
}

fn unknown(name: &str) -> String {
    let known = all().map(|key| key.name).chain(all().map(Key::table));
    // Who knows a key's name need not know its table.
    let leaf = || all().find(|key| key.leaf() == name).map(|key| format!("did you mean `{}`?", key.name));
    let hint = leaf().or_else(|| diagnostic::did_you_mean(name, known));
    format!("no key is named `{name}`{}", hint.map(|hint| format!(" ({hint})")).unwrap_or_default())
}

fn item(key: &Key) -> Value {
    json!({
        "name": key.name,
        "type": key.kind.noun(),
        "default": key.default,
        "cost": key.cost.as_str(),
        "linux": key.linux,
        "doc": key.doc,
    })
}

fn table() -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["KEY", "TYPE", "DEFAULT", "CHANGE"]);
    for key in KEYS {
        table.add_row([key.name, key.kind.noun(), key.default, key.cost.as_str()]);
    }
    for key in HOST_KEYS {
        table.add_row([key.name, key.kind.noun(), key.default, "stockade.toml"]);
    }
    for key in TEMPLATE_KEYS.iter().chain(FILE_KEYS) {
        table.add_row([key.name, key.kind.noun(), key.default, "template.toml"]);
    }
    output::plain(&mut table)
}

pub fn schema(of: SchemaOf) -> i32 {
    output::json_text(&match of {
        SchemaOf::Jail => keys::jail_schema(),
        SchemaOf::Template => keys::template_schema(),
        SchemaOf::Host => keys::host_schema(),
    });
    DONE
}

pub fn man() -> i32 {
    output::text(&keys::man());
    DONE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_get_a_hint() {
        for (name, expect) in [
            ("limits.memroy", "no key is named `limits.memroy` (did you mean `limits.memory`?)"),
            ("memory", "no key is named `memory` (did you mean `limits.memory`?)"),
            ("limitz", "no key is named `limitz` (did you mean `limits`?)"),
            ("quite.something.else", "no key is named `quite.something.else`"),
        ] {
            assert_eq!(unknown(name), expect);
        }
    }

    #[test]
    fn a_table_has_its_rows_and_all_have_a_line() {
        let limits = chosen(Some("limits")).unwrap();
        assert!(limits.len() > 5 && limits.iter().all(|key| key.name.starts_with("limits.")));
        assert_eq!(chosen(Some("limits.memory")).unwrap().len(), 1);
        assert_eq!(table().lines().count(), all().count() + 1);
    }
}
