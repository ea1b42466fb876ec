//! The rows as JSON schemas of the definition files, for editors.

use serde_json::{Map, Value, json};

use super::{HOST_KEYS, KEYS, Key, Kind, TEMPLATE_KEYS, Word};

/// A JSON schema (2020-12) of one file in jails.d.
pub fn jail_schema() -> Value {
    whole("stockade jail", object(KEYS, "", Expressions::Known))
}

/// Of a template.toml.
pub fn template_schema() -> Value {
    whole("stockade template", object(TEMPLATE_KEYS, "", Expressions::Unknown))
}

/// Of stockade.toml.
pub fn host_schema() -> Value {
    let mut root = whole("stockade host", object(HOST_KEYS, "", Expressions::Unknown));
    root["$defs"] = json!({ "jail": object(KEYS, "", Expressions::Known) });
    root
}

/// Strings of jails may be expressions, so there a kind that is not a string admits one too.
#[derive(Clone, Copy, PartialEq)]
enum Expressions {
    Known,
    Unknown,
}

fn whole(title: &str, mut root: Value) -> Value {
    root["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    root["title"] = title.into();
    root
}

/// The object of all rows below the dotted `prefix`, inner tables included.
fn object(rows: &[Key], prefix: &str, expressions: Expressions) -> Value {
    let mut properties = Map::new();
    for key in rows {
        let Some(rest) = below(key.name, prefix) else { continue };
        match rest.split_once('.') {
            None => {
                properties.insert(rest.to_owned(), property(key, expressions));
            }
            Some((table, _)) if !properties.contains_key(table) => {
                let name = if prefix.is_empty() { table.to_owned() } else { format!("{prefix}.{table}") };
                properties.insert(table.to_owned(), object(rows, &name, expressions));
            }
            Some(_) => {}
        }
    }
    // A name of the user's.
    let others = properties.remove("*").unwrap_or(false.into());
    json!({ "type": "object", "additionalProperties": others, "properties": properties })
}

/// What is left of a dotted name below `prefix`.
pub fn below<'n>(name: &'n str, prefix: &str) -> Option<&'n str> {
    if prefix.is_empty() { Some(name) } else { name.strip_prefix(prefix)?.strip_prefix('.') }
}

fn property(key: &Key, expressions: Expressions) -> Value {
    let mut value = shape(key.kind, expressions);
    value["description"] = key.doc.into();
    value
}

fn shape(kind: Kind, expressions: Expressions) -> Value {
    match kind {
        Kind::Bool => json!({ "type": or_string("boolean", expressions) }),
        Kind::Size { .. } => pattern("^[0-9]+(\\.[0-9]+)?([BKMGT]i?B?)?$", expressions),
        Kind::Duration { .. } => pattern("^[0-9]+(\\.[0-9]+)?(ms|s|m|h|d)?$", expressions),
        Kind::Cpus => json!({ "type": or_string("number", expressions), "exclusiveMinimum": 0 }),
        Kind::Count { min, max } => {
            json!({ "type": or_string("integer", expressions), "minimum": min, "maximum": max })
        }
        Kind::Choice(words) if expressions == Expressions::Known => {
            json!({ "type": "string", "anyOf": [{ "enum": words }, { "pattern": "\\{[{%]" }] })
        }
        Kind::Choice(words) => json!({ "type": "string", "enum": words }),
        Kind::Text(word) => text(word, expressions),
        Kind::List { of, min, max } => {
            json!({ "type": "array", "items": text(of, expressions), "minItems": min, "maxItems": max })
        }
        Kind::StringMap => json!({ "type": "object", "additionalProperties": { "type": "string" } }),
        Kind::Rlimits => {
            json!({ "type": "object", "additionalProperties": { "type": ["integer", "string"] } })
        }
        Kind::Tables(rows) => {
            let table = rows.first().map_or("", Key::table);
            json!({ "type": "array", "items": object(rows, table, expressions) })
        }
        Kind::Vars => json!({ "type": "object" }),
        Kind::Jail => json!({ "$ref": "#/$defs/jail" }),
        Kind::OnChange => on_change(),
    }
}

fn on_change() -> Value {
    let command = json!({ "type": "array", "items": { "type": "string" }, "minItems": 1 });
    json!({ "anyOf": [{ "enum": ["restart", "none"] }, {
        "type": "object", "additionalProperties": false, "properties": { "reload": command },
    }] })
}

fn text(word: Word, expressions: Expressions) -> Value {
    match word {
        Word::JailName | Word::Template => pattern("^[a-z0-9][a-z0-9-]{0,62}$", expressions),
        Word::Path => pattern("^/", expressions),
        Word::MachineId => pattern("^[0-9a-f]{32}$", expressions),
        Word::Device => pattern("^/dev/", expressions),
        _ => json!({ "type": "string" }),
    }
}

fn or_string(word: &str, expressions: Expressions) -> Value {
    if expressions == Expressions::Known { json!([word, "string"]) } else { word.into() }
}

fn pattern(pattern: &str, expressions: Expressions) -> Value {
    let more = if expressions == Expressions::Known { "|\\{[{%]" } else { "" };
    json!({ "type": "string", "pattern": format!("{pattern}{more}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_property() {
        for (schema, rows) in
            [(jail_schema(), KEYS), (template_schema(), TEMPLATE_KEYS), (host_schema(), HOST_KEYS)]
        {
            for key in rows {
                let path =
                    key.name.replace('.', "/properties/").replace("properties/*", "additionalProperties");
                let found = schema.pointer(&format!("/properties/{path}"));
                assert_eq!(
                    found.unwrap_or_else(|| panic!("{} is missing", key.name))["description"],
                    key.doc
                );
            }
        }
        let schema = jail_schema();
        let source = schema.pointer("/properties/mount/items/properties/source");
        assert_eq!(source.expect("mounts have a source")["type"], "string");
        assert!(schema.pointer("/properties/limits/properties/io/items/properties/read_ops").is_some());
    }
}
