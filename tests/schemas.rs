//! The JSON schemas take every file that is given to readers, and refuse what is wrong in them.

use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;
use serde_json::{Map, Value};
use stockade::keys;

/// What is wrong with `value`, by its place. Knows what our schemas say, and panics over anything
/// else rather than pass over it.
fn wrong(root: &Value, schema: &Value, value: &Value, at: &str) -> Vec<String> {
    let mut found = Vec::new();
    let rules = match schema {
        Value::Bool(true) => return found,
        Value::Bool(false) => return vec![format!("{at}: not allowed")],
        Value::Object(rules) => rules,
        other => panic!("{at}: {other} is no schema"),
    };
    for (rule, wanted) in rules {
        match rule.as_str() {
            "$schema" | "$defs" | "title" | "description" | "properties" => {}
            "$ref" => {
                let path = wanted.as_str().unwrap().trim_start_matches('#');
                found.extend(wrong(root, root.pointer(path).expect("a reference leads there"), value, at));
            }
            "additionalProperties" => found.extend(members(root, rules, value, at)),
            "items" => {
                for (item, number) in value.as_array().into_iter().flatten().zip(0..) {
                    found.extend(wrong(root, wanted, item, &format!("{at}[{number}]")));
                }
            }
            "anyOf" => {
                let fits = |other: &Value| wrong(root, other, value, at).is_empty();
                if !wanted.as_array().unwrap().iter().any(fits) {
                    found.push(format!("{at}: {value} fits none of {wanted}"));
                }
            }
            rule if !holds(rule, wanted, value) => {
                found.push(format!("{at}: {value} is not {rule} {wanted}"));
            }
            _ => {}
        }
    }
    found
}

fn members(root: &Value, rules: &Map<String, Value>, value: &Value, at: &str) -> Vec<String> {
    let members = value.as_object().into_iter().flatten();
    let known = |name: &str| rules.get("properties").and_then(|known| known.get(name));
    let one = |(name, member): (&String, &Value)| {
        let schema = known(name).unwrap_or(&rules["additionalProperties"]);
        wrong(root, schema, member, &format!("{at}.{name}"))
    };
    members.flat_map(one).collect()
}

/// A rule about a value of another type says nothing.
fn holds(rule: &str, wanted: &Value, value: &Value) -> bool {
    let number =
        |holds: fn(f64, f64) -> bool| value.as_f64().is_none_or(|n| holds(n, wanted.as_f64().unwrap()));
    let length = |holds: fn(usize, u64) -> bool| {
        value.as_array().is_none_or(|list| holds(list.len(), wanted.as_u64().unwrap()))
    };
    match rule {
        "type" => match wanted {
            Value::Array(words) => words.iter().any(|word| is(word, value)),
            word => is(word, value),
        },
        "enum" => wanted.as_array().unwrap().contains(value),
        "pattern" => {
            let pattern = Regex::new(wanted.as_str().unwrap()).expect("a regular expression");
            value.as_str().is_none_or(|text| pattern.is_match(text))
        }
        "minimum" => number(|found, least| found >= least),
        "maximum" => number(|found, most| found <= most),
        "exclusiveMinimum" => number(|found, below| found > below),
        "minItems" => length(|found, least| found as u64 >= least),
        "maxItems" => length(|found, most| found as u64 <= most),
        other => panic!("`{other}` is not known here"),
    }
}

fn is(word: &Value, value: &Value) -> bool {
    match word.as_str().unwrap() {
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("`{other}` is not known here"),
    }
}

/// All that is wrong in a text of TOML.
fn faults(schema: &Value, text: &str) -> Vec<String> {
    let value: Value = toml::from_str(text).expect("TOML");
    wrong(schema, schema, &value, "")
}

fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("the directory is part of the source") {
        let path = entry.expect("readable").path();
        match path.extension() {
            _ if path.is_dir() => files(&path, found),
            Some(extension) if extension == "toml" => found.push(path),
            _ => {}
        }
    }
}

#[test]
fn every_file_that_is_given_to_readers_fits_its_schema() {
    let (jail, template, host) = (keys::jail_schema(), keys::template_schema(), keys::host_schema());
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    files(&top.join("examples"), &mut found);
    files(&top.join("etc"), &mut found);
    let (mut jails, mut templates, mut hosts) = (0, 0, 0);
    for file in found {
        let (schema, count) = match file.file_name().and_then(|name| name.to_str()) {
            Some("template.toml") => (&template, &mut templates),
            Some("stockade.toml") => (&host, &mut hosts),
            _ => (&jail, &mut jails),
        };
        *count += 1;
        let faults = faults(schema, &fs::read_to_string(&file).expect("text"));
        assert!(faults.is_empty(), "{}: {faults:#?}", file.display());
    }
    assert!(jails > 10 && templates > 5 && hosts > 3, "{jails} {templates} {hosts}");
}

#[test]
fn what_is_wrong_does_not_fit() {
    let (jail, template, host) = (keys::jail_schema(), keys::template_schema(), keys::host_schema());
    for (schema, good, text, at) in [
        (&jail, "limits.memory = '512M'", "limits.memroy = '512M'", ".limits.memroy: not allowed"),
        (&jail, "mount = [{ source = '/a' }]", "mount = [{ sorce = '/a' }]", ".mount[0].sorce: not allowed"),
        (&jail, "template = '{{ vars.of }}'", "template = 'No Name'", ".template: "),
        (&template, "base.host = true", "bse.host = true", ".bse: not allowed"),
        (
            &template,
            "base.debootstrap.suite = 'x'",
            "base.debootstrap.suit = 'x'",
            ".base.debootstrap.suit: not",
        ),
        (
            &template,
            "base.debootstrap.variant = 'minbase'",
            "base.debootstrap.variant = '{{ x }}'",
            ".base.deb",
        ),
        (&template, "build.run = ['true']", "build.run = []", ".build.run: [] is not minItems 1"),
        (&template, "build.network = true", "build.network = 'yes'", ".build.network: \"yes\" is not type"),
        (
            &template,
            "file = [{ on_change = 'none' }]",
            "file = [{ on_change = 'nine' }]",
            ".file[0].on_change: ",
        ),
        (
            &template,
            "file = [{ on_change.reload = ['a'] }]",
            "file = [{ on_change.relod = ['a'] }]",
            ".file[0].",
        ),
        (
            &template,
            "file = [{ owner = 33 }]",
            "file = [{ owner = 65536 }]",
            ".file[0].owner: 65536 is not maximum",
        ),
        (&host, "bridge.any.mtu = 1500", "bridge.any.mut = 1500", ".bridge.any.mut: not allowed"),
        (&host, "cgroup = 'a'", "cgroops = 'a'", ".cgroops: not allowed"),
        (&host, "ids.first = 131072", "ids.first = '{{ x }}'", ".ids.first: \"{{ x }}\" is not type"),
        (
            &host,
            "defaults.limits.cpu = 1.5",
            "defaults.limits.cpus = 1.5",
            ".defaults.limits.cpus: not allowed",
        ),
        (&host, "enforce.persist = false", "enforce.persits = false", ".enforce.persits: not allowed"),
    ] {
        assert_eq!(faults(schema, good), Vec::<String>::new(), "{good}");
        let found = faults(schema, text);
        assert!(found.len() == 1 && found[0].starts_with(at), "{text}: {found:?}");
    }
}
