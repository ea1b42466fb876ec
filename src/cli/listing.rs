//! `ls`, `show`, `status`: what there is, and what is wrong with it.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow, bail};
use serde_json::{Value, json};

use super::{DONE, Options, named, output, volume};
use crate::desired::Desired;
use crate::execute::{self, Host};
use crate::jail::JailName;
use crate::live::{JailState, Live, LiveJail};
use crate::status::{self, Row, Usage};
use crate::{cores, keys, pass};

/// Everything there is to see, for the verbs that only look.
struct View {
    desired: Desired,
    live: Live,
    rows: Vec<Row>,
    host: Host,
}

fn view(options: &Options) -> Result<View> {
    let host = Host::open(named::host(options))?;
    let ((desired, found), mut live) = pass::look(&options.paths(), None, &host)?;
    named::tell_incomplete(options, &desired, &found);
    execute::account(&host.journal, &desired, &mut live, false)?;
    let usage = usage(&host, &live)?;
    let rows = status::rows(&desired, &live, &usage);
    Ok(View { desired, live, rows, host })
}

/// Of each jail that may run, on all cores: it is half of a look at many.
fn usage(host: &Host, live: &Live) -> Result<BTreeMap<JailName, Usage>> {
    let is_up = |jail: &LiveJail| !matches!(jail.state, JailState::Down | JailState::Exited(_));
    let up: Vec<(&JailName, &LiveJail)> = live.jails.iter().filter(|(_, jail)| is_up(jail)).collect();
    let each = cores::map(&up, |(name, jail)| -> Result<_> {
        Ok(usage_of(host, name, jail)?.map(|usage| ((*name).clone(), usage)))
    });
    each.into_iter().filter_map(Result::transpose).collect()
}

fn usage_of(host: &Host, name: &JailName, jail: &LiveJail) -> Result<Option<Usage>> {
    // A jail that ends while it is looked at simply has no figures.
    let Ok(used) = execute::cgroup(host, name)?.usage() else { return Ok(None) };
    let disk = volume::bytes(&host.journal.paths.state, name, jail);
    Ok(Some(Usage { memory: Some(used.memory), cpu_ms: Some(used.cpu_usec / 1000), disk }))
}

pub fn ls(options: &Options, names: &[String]) -> Result<i32> {
    let view = view(options)?;
    let wanted = |row: &&Row| names.is_empty() || names.iter().any(|name| name == row.name.as_str());
    let rows: Vec<Row> = view.rows.iter().filter(wanted).cloned().collect();
    if let Some(missing) = names.iter().find(|name| !rows.iter().any(|row| row.name.as_str() == *name)) {
        bail!("{}", unknown(missing, &view));
    }
    if options.json {
        output::json_text(&status::json(&rows));
    } else {
        output::text(&status::table(&rows));
    }
    Ok(DONE)
}

fn unknown(name: &str, view: &View) -> String {
    named::no_jail(name, view.rows.iter().map(|row| row.name.as_str()))
}

/// Its row, and every key as it is wanted, in force and found.
pub fn show(options: &Options, name: &str) -> Result<i32> {
    let view = view(options)?;
    let row = view
        .rows
        .iter()
        .find(|row| row.name.as_str() == name)
        .ok_or_else(|| anyhow!(unknown(name, &view)))?;
    let wanted = view.desired.jails.get(&row.name);
    let seen = view.live.jails.get(&row.name);
    let record = seen.and_then(|jail| jail.record.as_ref());
    let settings = wanted.map(|w| &w.settings).or(record.map(|r| &r.settings)).cloned().unwrap_or_default();
    let found = seen.map(|jail| jail.observed.clone()).unwrap_or_default();
    let storage = seen.and_then(|seen| volume::shown(&view.host.journal.paths.state, &row.name, seen));
    if options.json {
        let mut item = status::item(row);
        item["file"] = json!(wanted.map(|w| &w.file));
        item["settings"] = json!(settings);
        item["observed"] = json!(found);
        item["storage"] = json!(storage.map(|storage| storage.json()));
        item["first_id"] = json!(record.map(|r| r.first_id));
        item["layers"] = json!(record.map(|r| &r.layers));
        item["files"] = json!(record.map(|r| r.files.keys().collect::<Vec<_>>()));
        output::json_text(&output::envelope("jail", json!([item])));
        return Ok(DONE);
    }
    let mut text = status::table(std::slice::from_ref(row));
    if let Some(reason) = &row.reason {
        text.push_str(&format!("\n{reason}\n"));
    }
    text.push('\n');
    for (key, value) in &settings {
        let shown = keys::show(key, value);
        let other =
            found.get(key).filter(|f| *f != value).map(|f| format!("   (found {})", keys::show(key, f)));
        text.push_str(&format!("{key:<24} {shown}{}\n", other.unwrap_or_default()));
    }
    if let Some(storage) = storage {
        text.push_str(&format!("\nstorage                  {}\n", storage.text()));
    }
    if let Some(record) = record {
        let last = record.first_id.saturating_add(crate::sys::namespace::IDS - 1);
        text.push_str(&format!("\nids                      {} to {last}\n", record.first_id));
        for layer in &record.layers {
            text.push_str(&format!("layer                    {layer}\n"));
        }
        for file in record.files.keys() {
            text.push_str(&format!("file                     {}\n", file.display()));
        }
    }
    output::text(&text);
    Ok(DONE)
}

/// A count of each state, and every jail that is not as it should be.
pub fn status(options: &Options) -> Result<i32> {
    let view = view(options)?;
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for row in &view.rows {
        *counts.entry(row.state.as_str()).or_default() += 1;
    }
    let wrong = view.rows.iter().filter(|row| row.reason.is_some());
    if options.json {
        let wrong: Vec<Value> = wrong.map(status::item).collect();
        let daemon = crate::daemon::is_running(&view.host.config.paths.run);
        output::json_text(&output::envelope(
            "status",
            json!([{ "counts": counts, "daemon": daemon, "wrong": wrong }]),
        ));
        return Ok(DONE);
    }
    let counts: Vec<String> = counts.iter().map(|(state, count)| format!("{count} {state}")).collect();
    let mut text = if counts.is_empty() { "no jails".to_owned() } else { counts.join(", ") };
    let daemon = crate::daemon::is_running(&view.host.config.paths.run);
    text.push_str(if daemon { "\nthe daemon runs\n" } else { "\nno daemon runs\n" });
    for row in wrong {
        text.push_str(&format!(
            "{}: {}: {}\n",
            row.name,
            row.state.as_str(),
            row.reason.as_deref().unwrap_or_default()
        ));
    }
    output::text(&text);
    Ok(DONE)
}
