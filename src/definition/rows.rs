//! Lists of tables: `[[mount]]` and `limits.io`.

use serde_json::{Map, Value};

use crate::diagnostic::did_you_mean;
use crate::keys::Key;

use super::raw::{Member, Raw, RawValue};
use super::value::{Report, inner, wrong_type};
use super::wrong::Wrong;

/// How many tables a list may have.
const TABLES_MAX: usize = 200;

/// The normal form of a list of tables whose keys are `rows`.
pub fn tables(name: &str, rows: &[Key], raw: &Raw, report: &mut Report<'_>) -> Option<Value> {
    let RawValue::List(items) = &raw.value else {
        let mut wrong = wrong_type(name, "a list of tables", raw);
        if matches!(raw.value, RawValue::Table(_)) && !name.contains('.') {
            wrong.help = Some(format!("write [[{name}]], with two brackets"));
        }
        report.wrong(raw, wrong);
        return None;
    };
    if items.len() > TABLES_MAX {
        report.wrong(raw, Wrong::new(format!("`{name}` has more than {TABLES_MAX} entries")));
        return None;
    }
    let checked: Vec<Option<Value>> = items.iter().map(|item| table(name, rows, item, report)).collect();
    checked.into_iter().collect::<Option<_>>().map(Value::Array)
}

fn table(name: &str, rows: &[Key], raw: &Raw, report: &mut Report<'_>) -> Option<Value> {
    let RawValue::Table(members) = &raw.value else {
        report.wrong(raw, wrong_type(name, "a list of tables", raw));
        return None;
    };
    let mut map = Map::new();
    let mut whole = true;
    for member in members {
        let Some(key) = rows.iter().find(|key| key.leaf() == member.name) else {
            let help = did_you_mean(&member.name, rows.iter().map(Key::leaf));
            let message = format!("unknown key `{}` in `{name}`", member.name);
            report.at(&member.span, Wrong { message, help });
            continue;
        };
        if let Some(value) = inner(key, &member.raw, report) {
            map.insert(member.name.clone(), value);
        } else {
            whole = false;
        }
    }
    let complete = match name {
        "mount" => mount(members, raw, report),
        "snapshot" => snapshot(members, raw, report),
        _ => io(members, raw, report),
    };
    (whole && complete).then_some(Value::Object(map))
}

fn member<'m>(members: &'m [Member], name: &str) -> Option<&'m Raw> {
    members.iter().find(|member| member.name == name).map(|member| &member.raw)
}

fn written<'m>(members: &'m [Member], name: &str) -> Option<&'m str> {
    match member(members, name)?.value {
        RawValue::Text(ref text) => Some(text),
        _ => None,
    }
}

fn snapshot(members: &[Member], raw: &Raw, report: &mut Report<'_>) -> bool {
    if member(members, "every").is_none() {
        report.wrong(raw, Wrong::help("this snapshot has no `every`", "for example: every = \"1h\""));
        return false;
    }
    true
}

/// Places that stockade fills itself, and whose masks a mount would lift.
const OWN_PLACES: &[&str] = &["/proc", "/sys"];

fn mount(members: &[Member], raw: &Raw, report: &mut Report<'_>) -> bool {
    let errors = report.found.len();
    let kind = written(members, "type").unwrap_or("bind");
    match (member(members, "source"), kind) {
        (None, "bind") => report.wrong(raw, Wrong::new("this mount has no `source`")),
        (Some(source), "tmpfs") => report.wrong(source, Wrong::new("a tmpfs has no `source`")),
        (Some(source), "readonly" | "hidden") => {
            let message = format!("a `{kind}` path has no `source`");
            report.wrong(source, Wrong::help(message, "it is one of the jail's own root"));
        }
        _ => {}
    }
    match member(members, "target") {
        None => report.wrong(raw, Wrong::new("this mount has no `target`")),
        Some(target) => mount_target(target, report),
    }
    if let Some(RawValue::List(options)) = member(members, "options").map(|raw| &raw.value) {
        mount_options(options, kind, report);
    }
    report.found.len() == errors
}

fn mount_target(target: &Raw, report: &mut Report<'_>) {
    let RawValue::Text(text) = &target.value else { return };
    let path = std::path::Path::new(text);
    if path == std::path::Path::new("/") || path == std::path::Path::new("/dev") {
        report.wrong(target, Wrong::new(format!("nothing can be mounted over `{text}` itself")));
    } else if OWN_PLACES.iter().any(|own| path.starts_with(own)) {
        report.wrong(target, Wrong::new(format!("`{text}` is in a file system that stockade guards")));
    }
}

/// Options that contradict each other or the type.
fn mount_options(options: &[Raw], kind: &str, report: &mut Report<'_>) {
    let tmpfs = kind == "tmpfs";
    let text = |raw: &Raw| match &raw.value {
        RawValue::Text(text) => text.clone(),
        _ => String::new(),
    };
    let all: Vec<String> = options.iter().map(text).collect();
    for (raw, option) in options.iter().zip(&all) {
        let of_tmpfs = option.starts_with("size=") || option.starts_with("mode=");
        let of_bind = matches!(option.as_str(), "rbind" | "idmap" | "optional");
        if matches!(kind, "readonly" | "hidden") {
            if option != "optional" {
                report.wrong(raw, Wrong::new(format!("a `{kind}` path has no option but `optional`")));
            }
        } else if of_tmpfs && !tmpfs {
            report.wrong(
                raw,
                Wrong::help(format!("`{option}` is an option of a tmpfs"), "add type = \"tmpfs\""),
            );
        } else if of_bind && tmpfs {
            report.wrong(raw, Wrong::new(format!("`{option}` is an option of a bind, not of a tmpfs")));
        } else if option == "rw" && all.iter().any(|other| other == "ro") {
            report.wrong(raw, Wrong::new("`ro` and `rw` contradict each other"));
        }
    }
}

fn io(members: &[Member], raw: &Raw, report: &mut Report<'_>) -> bool {
    if member(members, "path").is_none() {
        report.wrong(raw, Wrong::new("this entry has no `path`"));
        return false;
    }
    if members.len() < 2 {
        report.wrong(raw, Wrong::new("this entry limits nothing"));
        return false;
    }
    true
}
