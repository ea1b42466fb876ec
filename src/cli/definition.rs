//! A definition made of another one, comments and order kept.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use toml_edit::{DocumentMut, Item, Table, TableLike, Value};

/// What one jail alone can have, and another makes for itself.
const NEVER_SHARED: [&str; 2] = ["network.mac", "host.machine_id"];

/// `text` with these keys set, and without what must not be the same twice.
pub fn derive(text: &str, set: &BTreeMap<&str, String>) -> Result<String> {
    let mut document: DocumentMut = text.parse().context("parse it")?;
    for key in NEVER_SHARED {
        let (table, leaf) = key.split_once('.').expect("each is in a table");
        if let Some(table) = document.get_mut(table).and_then(Item::as_table_like_mut) {
            table.remove(leaf);
        }
    }
    for (key, value) in set {
        let value: Value = value.parse().with_context(|| format!("{key}={value}"))?;
        put(document.as_table_mut(), key, value)?;
    }
    Ok(document.to_string())
}

/// `text` with one key set to a string.
pub fn set(text: &str, key: &str, value: &str) -> Result<String> {
    let mut document: DocumentMut = text.parse().context("parse it")?;
    put(document.as_table_mut(), key, value.into())?;
    Ok(document.to_string())
}

fn put(top: &mut Table, key: &str, value: Value) -> Result<()> {
    let (tables, leaf) = key.rsplit_once('.').map_or((None, key), |(tables, leaf)| (Some(tables), leaf));
    let mut at: &mut dyn TableLike = top;
    for name in tables.into_iter().flat_map(|tables| tables.split('.')) {
        if !at.contains_key(name) {
            at.insert(name, Item::Table(Table::new()));
        }
        let Some(inner) = at.get_mut(name).and_then(Item::as_table_like_mut) else {
            bail!("{key}: `{name}` is no table");
        };
        at = inner;
    }
    match at.get_mut(leaf).and_then(Item::as_value_mut) {
        // Its comment stays behind it.
        Some(old) => {
            let decor = old.decor().clone();
            *old = value;
            *old.decor_mut() = decor;
        }
        None => drop(at.insert(leaf, Item::Value(value))),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, set: &[(&str, &str)], expect: &str) {
        let set = set.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
        assert_eq!(derive(text, &set).unwrap(), expect);
    }

    #[test]
    fn comments_stay_and_what_is_one_jails_own_goes() {
        let text = "# The web server.\ntemplate = 'debian' # stable\n\n[network] # its own\n\
                    mode = 'vnet'\nmac = '02:00:00:00:00:01'\naddress = ['10.0.0.1/24'] # fixed\n";
        let expect = "# The web server.\ntemplate = 'debian' # stable\n\n[network] # its own\n\
                      mode = 'vnet'\naddress = [\"10.0.0.2/24\"] # fixed\n";
        check(text, &[("network.address", "[\"10.0.0.2/24\"]")], expect);
    }

    #[test]
    fn dotted_keys_and_tables_that_are_not_there_are_set() {
        check(
            "exec.command = ['a']\nnetwork.mode = 'none'\n",
            &[("network.mode", "'vnet'")],
            "exec.command = ['a']\nnetwork.mode = 'vnet'\n",
        );
        check(
            "template = 'host'\n",
            &[("limits.memory", "'64M'")],
            "template = 'host'\n\n[limits]\nmemory = '64M'\n",
        );
        check("host = { machine_id = 'x', hostname = 'h' }\n", &[], "host = { hostname = 'h' }\n");
    }
}
