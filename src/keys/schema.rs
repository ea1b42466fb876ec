//! The rows as a JSON schema of a jail's definition, for editors.

use serde_json::{Map, Value, json};

use super::{KEYS, Key, Kind, Word};

/// A JSON schema (2020-12) of one file in jails.d.
pub fn schema() -> Value {
    let mut root = object(KEYS, "");
    if let Value::Object(members) = &mut root {
        members.insert("$schema".into(), "https://json-schema.org/draft/2020-12/schema".into());
        members.insert("title".into(), "stockade jail".into());
    }
    root
}

/// The object of all rows below the dotted `prefix`, inner tables included.
fn object(rows: &[Key], prefix: &str) -> Value {
    let mut properties = Map::new();
    for key in rows {
        let Some(rest) = below(key.name, prefix) else { continue };
        match rest.split_once('.') {
            None => {
                properties.insert(rest.to_owned(), property(key));
            }
            Some((table, _)) if !properties.contains_key(table) => {
                let name = if prefix.is_empty() { table.to_owned() } else { format!("{prefix}.{table}") };
                properties.insert(table.to_owned(), object(rows, &name));
            }
            Some(_) => {}
        }
    }
    json!({ "type": "object", "additionalProperties": false, "properties": properties })
}

fn below<'n>(name: &'n str, prefix: &str) -> Option<&'n str> {
    if prefix.is_empty() { Some(name) } else { name.strip_prefix(prefix)?.strip_prefix('.') }
}

fn property(key: &Key) -> Value {
    let mut value = shape(key.kind);
    if let Value::Object(members) = &mut value {
        members.insert("description".into(), key.doc.into());
    }
    value
}

/// Strings may hold expressions, so a kind that is not a string admits one too.
fn shape(kind: Kind) -> Value {
    match kind {
        Kind::Bool => json!({ "type": ["boolean", "string"] }),
        Kind::Size { .. } => expression_or("^[0-9]+(\\.[0-9]+)?([BKMGT]i?B?)?$"),
        Kind::Duration { .. } => expression_or("^[0-9]+(\\.[0-9]+)?(ms|s|m|h|d)?$"),
        Kind::Cpus => json!({ "type": ["number", "string"], "exclusiveMinimum": 0 }),
        Kind::Count { min, max } => {
            json!({ "type": ["integer", "string"], "minimum": min, "maximum": max })
        }
        Kind::Choice(words) => {
            json!({ "type": "string", "anyOf": [{ "enum": words }, { "pattern": "\\{[{%]" }] })
        }
        Kind::Text(word) => text(word),
        Kind::List { of, min, max } => {
            json!({ "type": "array", "items": text(of), "minItems": min, "maxItems": max })
        }
        Kind::StringMap => json!({ "type": "object", "additionalProperties": { "type": "string" } }),
        Kind::Rlimits => {
            json!({ "type": "object", "additionalProperties": { "type": ["integer", "string"] } })
        }
        Kind::Tables(rows) => {
            let table = rows.first().map_or("", Key::table);
            json!({ "type": "array", "items": object(rows, table) })
        }
        Kind::Vars | Kind::Jail => json!({ "type": "object" }),
    }
}

fn text(word: Word) -> Value {
    match word {
        Word::JailName | Word::Template => expression_or("^[a-z0-9][a-z0-9-]{0,62}$"),
        Word::Path => expression_or("^/"),
        Word::MachineId => expression_or("^[0-9a-f]{32}$"),
        Word::Device => expression_or("^/dev/"),
        _ => json!({ "type": "string" }),
    }
}

fn expression_or(pattern: &str) -> Value {
    json!({ "type": "string", "pattern": format!("{pattern}|\\{{[{{%]") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_jail_key_has_a_property() {
        let schema = schema();
        for key in KEYS {
            let pointer = format!("/properties/{}", key.name.replace('.', "/properties/"));
            let found = schema.pointer(&pointer).unwrap_or_else(|| panic!("{} is missing", key.name));
            assert_eq!(found["description"], key.doc);
        }
        let source = schema.pointer("/properties/mount/items/properties/source");
        assert_eq!(source.expect("mounts have a source")["type"], "string");
        assert!(schema.pointer("/properties/limits/properties/io/items/properties/read_ops").is_some());
    }
}
