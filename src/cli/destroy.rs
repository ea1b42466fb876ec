//! `destroy`: stops jails and deletes all that is theirs. Afterwards nothing of them is left on
//! the host, whatever state they were in before.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use clap_complete::ArgValueCandidates;
use serde_json::json;

use super::{DONE, FAILED, Options, USAGE, complete, named, output};
use crate::desired::{Desired, Paths};
use crate::execute::schedule::{self, Task};
use crate::execute::{self, Host, Outcome};
use crate::jail::{JailName, Settings};
use crate::journal::{self, ids, lock};
use crate::keeper::{ROTATIONS, rotated};
use crate::live::{Live, Restarts};
use crate::{network, probe};

/// Everything that is looked at once for all jails.
struct Doomed {
    host: Host,
    live: Live,
    names: BTreeSet<JailName>,
    /// Id ranges by holder: a claim that was cut off is nowhere else to be found.
    ranges: BTreeMap<JailName, Vec<u32>>,
}

#[derive(Debug, Args)]
pub struct Destroy {
    #[arg(required = true, add = ArgValueCandidates::new(complete::jails))]
    pub names: Vec<String>,
    /// Without asking
    #[arg(long)]
    pub yes: bool,
}

pub fn destroy(options: &Options, asked: &Destroy) -> Result<i32> {
    let names: BTreeSet<JailName> =
        asked.names.iter().map(|name| JailName::new(name).map_err(|e| anyhow!(e))).collect::<Result<_>>()?;
    let (desired, host) = named::open(options)?;
    known(&host, &desired, &names)?;
    for name in &names {
        if let Some(note) = comes_back(&desired, name) {
            eprintln!("stockade: {name}: {note}");
        }
    }
    if !asked.yes && !consent(&names)? {
        return Ok(USAGE);
    }
    // Not across the question: an apply need not wait for a person.
    let _lock = lock::all(&host.journal.paths, &|holder| {
        eprintln!("stockade: waiting for another apply ({holder})");
    })?;
    let live = probe::probe(&host.journal, &host.config, &host.hierarchies)?;
    let mut ranges: BTreeMap<JailName, Vec<u32>> = BTreeMap::new();
    for (number, holder, _) in ids::taken(&host.journal.paths.state)? {
        ranges.entry(holder).or_default().push(number);
    }
    let doomed = Doomed { host, live, names, ranges };
    crate::interrupt::catch()?;
    doomed.no_dependants()?;
    doomed.run(options)
}

fn known(host: &Host, desired: &Desired, names: &BTreeSet<JailName>) -> Result<()> {
    let known = named::known(desired, &host.journal)?;
    for name in names {
        if !known.contains(name) && !log(&host.journal.paths, name).exists() {
            bail!("{}", named::no_jail(name.as_str(), known.iter().map(JailName::as_str)));
        }
    }
    Ok(())
}

/// Asks on a terminal; without one the consent has to be on the command line.
fn consent(names: &BTreeSet<JailName>) -> Result<bool> {
    let list: Vec<&str> = names.iter().map(JailName::as_str).collect();
    let question = format!("Stop {} and delete all files in it?", list.join(", "));
    let answer = output::ask(&question).context("read the answer")?;
    let Some(yes) = answer else {
        eprintln!("stockade: destroy {}: there is no terminal to ask on, give --yes", list.join(" "));
        return Ok(false);
    };
    if !yes {
        eprintln!("stockade: nothing was destroyed");
    }
    Ok(yes)
}

/// What a definition that is still there will lead to.
fn comes_back(desired: &Desired, name: &JailName) -> Option<String> {
    if let Some(wanted) = desired.jails.get(name) {
        let file = wanted.file.display();
        return wanted
            .jail
            .enabled
            .then(|| format!("it is still defined in {file}: apply, or the daemon, makes it anew"));
    }
    let broken = desired.broken.contains_key(name);
    broken.then(|| {
        "its definition is still there: apply, or the daemon, makes it anew once it has no errors".to_owned()
    })
}

impl Doomed {
    /// A jail that runs on what is destroyed would be left without it: that has to be said.
    fn no_dependants(&self) -> Result<()> {
        for (name, jail) in &self.live.jails {
            let runs =
                jail.record.as_ref().filter(|record| record.init.is_some_and(crate::sys::process::alive));
            if self.names.contains(name) {
                continue;
            }
            let below = runs.map(|record| depends(&record.settings)).unwrap_or_default();
            if let Some(below) = below.iter().find(|below| self.names.contains(*below)) {
                bail!("{below}: {name} depends on it and runs: stop {name}, or destroy both");
            }
        }
        Ok(())
    }

    fn run(&self, options: &Options) -> Result<i32> {
        let outcomes = schedule::run(self.tasks(), &|name| {
            self.one(name)?;
            if !options.json {
                eprintln!("{name}: destroyed");
            }
            Ok(())
        });
        let gone = self.names.iter().filter(|name| outcomes.get(*name) == Some(&Outcome::Done));
        let links = self.links_and_bridges(gone);
        // The cgroup of them all is the last one's as well; with another jail in it, it stays.
        let parent = self.host.hierarchies.remove_parent(&self.host.config.cgroup);
        let mut items = Vec::new();
        for (name, outcome) in &outcomes {
            let error = match outcome {
                Outcome::Done => None,
                Outcome::Failed(reason) => Some(reason.clone()),
                Outcome::Skipped(after) => Some(format!("skipped, for {after} did not end well")),
            };
            if let Some(error) = error.as_ref().filter(|_| !options.json) {
                eprintln!("stockade: {name}: {error}");
            }
            items.push(json!({ "name": name, "destroyed": error.is_none(), "error": error }));
        }
        links.and(parent)?;
        if options.json {
            output::json_text(&output::envelope("destroyed", items.into()));
        }
        Ok(if outcomes.values().all(|outcome| *outcome == Outcome::Done) { DONE } else { FAILED })
    }

    /// Each after the jails that depend on it.
    fn tasks(&self) -> Vec<Task> {
        let dependants = |name: &JailName| {
            let depends_on_it = |other: &&JailName| {
                *other != name
                    && self.settings(other).is_some_and(|settings| depends(settings).contains(name))
            };
            self.names.iter().filter(depends_on_it).cloned().collect()
        };
        self.names.iter().map(|name| Task { name: name.clone(), after: dependants(name) }).collect()
    }

    /// What the running jail was started with, else what its definition says.
    fn settings(&self, name: &JailName) -> Option<&Settings> {
        let record = self.live.jails.get(name).and_then(|jail| jail.record.as_ref());
        record.map(|record| &record.settings)
    }

    fn one(&self, name: &JailName) -> Result<()> {
        ensure!(!crate::interrupt::asked(), "interrupted");
        let journal = &self.host.journal;
        let lock = lock::jail(&journal.paths, name)?;
        match journal.record(name)? {
            Some(record) => execute::stop(&self.host, record)?,
            None => execute::remove_cgroup(&self.host, name)?,
        }
        journal.forget(name)?;
        journal.write_restarts(name, &Restarts::default())?;
        execute::destroy_data(journal, self.host.config.ids, name)?;
        for number in self.ranges.get(name).into_iter().flatten() {
            ids::release(&journal.paths.state, name, *number)?;
        }
        remove_logs(&journal.paths, name)?;
        lock::remove(lock, &journal.paths, name)
    }

    /// The links die with their namespaces, a little later than the processes.
    fn links_and_bridges<'a>(&self, gone: impl Iterator<Item = &'a JailName>) -> Result<()> {
        let vnet = |name: &&JailName| {
            self.settings(name)
                .is_some_and(|settings| settings.get("network.mode").is_some_and(|mode| mode == "vnet"))
        };
        let jails: Vec<&JailName> = gone.filter(vnet).collect();
        if jails.is_empty() {
            return Ok(());
        }
        network::disconnect(&jails.iter().map(|name| network::host_link(name)).collect())?;
        let bridge = |name: &JailName| {
            let named = self.settings(name).and_then(|settings| settings.get("network.bridge")?.as_str());
            named.unwrap_or(network::DEFAULT_BRIDGE).to_owned()
        };
        let bridges: BTreeSet<String> = jails.into_iter().map(bridge).collect();
        for bridge in bridges {
            network::remove_bridge_if_unused(&bridge).with_context(|| format!("remove bridge {bridge}"))?;
        }
        Ok(())
    }
}

fn depends(settings: &Settings) -> Vec<JailName> {
    let names = settings.get("depend").and_then(|value| value.as_array()).into_iter().flatten();
    names.filter_map(|name| JailName::new(name.as_str()?).ok()).collect()
}

fn log(paths: &Paths, name: &JailName) -> PathBuf {
    paths.log.join(format!("{name}.log"))
}

fn remove_logs(paths: &Paths, name: &JailName) -> Result<()> {
    let log = log(paths, name);
    (1..=ROTATIONS)
        .map(|number| rotated(&log, number))
        .chain([log.clone()])
        .try_for_each(|path| journal::remove(&path))
}
