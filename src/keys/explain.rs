//! The rows as prose: `explain KEY` and the list of keys in stockade.toml(5).

use std::fmt::Write as _;

use super::{Built, Cost, FILE_KEYS, HOST_KEYS, KEYS, Key, Kind, TEMPLATE_KEYS, table};

/// What `explain` prints: one key in full, or the keys of a table (`limits`) in short.
pub fn explain(name: &str) -> Option<String> {
    if let Some(key) = table::all().find(|key| key.name == name) {
        return Some(explain_key(key));
    }
    let inside: Vec<&Key> = table::all().filter(|key| key.table() == name && !name.is_empty()).collect();
    if inside.is_empty() {
        return None;
    }
    let width = inside.iter().map(|key| key.name.len()).max().unwrap_or(0);
    let line = |key: &&Key| format!("{:width$}  {}\n", key.name, key.doc);
    Some(inside.iter().map(line).collect())
}

fn explain_key(key: &Key) -> String {
    let mut out = format!("{}: {}\n\n", key.name, key.doc);
    let mut row = |label: &str, text: &str| {
        writeln!(out, "  {label:<8} {text}").expect("writing to a String cannot fail");
    };
    row("value", &value_text(key.kind));
    row("default", key.default);
    if !is_host(key) {
        row("change", cost_text(key.cost));
    }
    row("linux", key.linux);
    if let Some(text) = built_text(key) {
        row("note", &text);
    }
    out
}

fn is_host(key: &Key) -> bool {
    HOST_KEYS.iter().any(|row| row.name == key.name)
}

/// The value with its bounds or words.
fn value_text(kind: Kind) -> String {
    match kind {
        Kind::Choice(words) => words.join(" | "),
        Kind::Count { min, max } => format!("a whole number from {min} to {max}"),
        Kind::List { of, .. } => format!("a list, each {}", of.noun()),
        Kind::Tables(rows) => {
            let names: Vec<&str> = rows.iter().map(Key::leaf).collect();
            format!("a list of tables with {}", names.join(", "))
        }
        kind => kind.noun().to_owned(),
    }
}

fn cost_text(cost: Cost) -> &'static str {
    match cost {
        Cost::None => "nothing running is touched",
        Cost::Live => "live: set on the running jail",
        Cost::Reload => "reload: a command runs inside",
        Cost::Restart => "restart: the jail is stopped and started",
        Cost::Rebuild => "rebuild: the root is made anew and the jail restarted",
    }
}

fn built_text(key: &Key) -> Option<String> {
    match key.built {
        Built::All => None,
        Built::Nothing => Some("not built yet in this version: using it is an error".to_owned()),
        Built::Zero => Some("only 0 is built yet in this version".to_owned()),
    }
}

/// mdoc(7) items of every key, for stockade.toml(5): the jail's keys, then the host's.
pub fn man() -> String {
    let mut out = String::from(".Sh JAIL KEYS\n");
    list(&mut out, KEYS);
    for (title, rows) in
        [("mount", table::MOUNT_KEYS), ("limits.io", table::IO_KEYS), ("snapshot", table::SNAPSHOT_KEYS)]
    {
        writeln!(out, ".Ss Keys of each table of {title}").expect("writing to a String cannot fail");
        list(&mut out, rows);
    }
    out.push_str(".Sh HOST KEYS\n");
    list(&mut out, HOST_KEYS);
    out.push_str(".Sh TEMPLATE KEYS\n");
    list(&mut out, TEMPLATE_KEYS);
    out.push_str(".Ss Keys of each table of file\n");
    list(&mut out, FILE_KEYS);
    out
}

fn list(out: &mut String, rows: &[Key]) {
    out.push_str(".Bl -tag -width Ds\n");
    for key in rows {
        item(out, key).expect("writing to a String cannot fail");
    }
    out.push_str(".El\n");
}

fn item(out: &mut String, key: &Key) -> std::fmt::Result {
    writeln!(out, ".It Cm {}", escaped(key.name))?;
    for line in [key.doc.to_owned(), format!("Value: {}.", value_text(key.kind))] {
        sentences(out, &line)?;
    }
    sentences(out, &format!("Default: {}.", key.default))?;
    if !is_host(key) {
        sentences(out, &format!("Change: {}.", key.cost.as_str()))?;
    }
    sentences(out, &format!("On Linux: {}.", key.linux))?;
    built_text(key).map_or(Ok(()), |text| sentences(out, &format!("Note: {text}.")))
}

/// Text on a line of its own that cannot be taken for a macro.
fn sentences(out: &mut String, text: &str) -> std::fmt::Result {
    writeln!(out, "{}", escaped(text))
}

fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('`', "").replace('"', "\\(dq");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_explained_and_in_the_man_page() {
        let man = man();
        for key in table::all() {
            assert!(explain(key.name).is_some_and(|text| text.contains(key.doc)), "{}", key.name);
            assert!(man.contains(&format!(".It Cm {}\n", key.name)), "{}", key.name);
        }
    }

    #[test]
    fn a_table_lists_its_keys_and_a_stranger_is_unknown() {
        assert!(explain("limits").is_some_and(|text| text.contains("limits.memory ")));
        assert_eq!(explain("limts"), None);
        assert_eq!(explain(""), None);
    }
}
