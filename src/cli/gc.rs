//! `gc`: what nothing uses any more, found first and then removed piece by piece. A jail's own
//! files are never among it; `destroy` deletes those.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use comfy_table::{Table, presets};
use serde_json::{Value, json};

use super::import::{self, Dead};
use super::{DONE, FAILED, Options, output};
use crate::desired::Desired;
use crate::execute::{self, Host};
use crate::jail::JailName;
use crate::journal::{self, ids, lock};
use crate::live::{Live, Restarts};
use crate::resolve::Input;
use crate::{network, probe, root, source, status, template};

/// A throw-away jail has no record, only a range of ids; one that is younger than this may still
/// be building its layers. Longer than the longest build.
const SETTLED: Duration = Duration::from_hours(2);

/// One thing that nothing uses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Garbage {
    Layer(String),
    HalfLayer(String),
    /// Why a layer could not be built that nobody wants any more.
    BuildFailure(String),
    HalfImport(Dead),
    Cgroup(JailName),
    /// The one of all jails, when there are none.
    Parent(String),
    RunDirectory(JailName),
    Restarts(JailName),
    ExitBell(JailName),
    IdRange(u32, JailName),
    Lock(JailName),
    Bridge(String),
}

impl Garbage {
    fn kind(&self) -> &'static str {
        match self {
            Self::Layer(_) => "layer",
            Self::HalfLayer(_) => "half-built layer",
            Self::BuildFailure(_) => "build failure",
            Self::HalfImport(_) => "half import",
            Self::Cgroup(_) | Self::Parent(_) => "cgroup",
            Self::RunDirectory(_) => "run directory",
            Self::Restarts(_) => "restart count",
            Self::ExitBell(_) => "exit notice",
            Self::IdRange(..) => "id range",
            Self::Lock(_) => "lock",
            Self::Bridge(_) => "bridge",
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Layer(name)
            | Self::HalfLayer(name)
            | Self::BuildFailure(name)
            | Self::Bridge(name)
            | Self::Parent(name) => name.clone(),
            Self::HalfImport(dead) => dead.name().to_string(),
            Self::Cgroup(name)
            | Self::RunDirectory(name)
            | Self::Restarts(name)
            | Self::ExitBell(name)
            | Self::Lock(name) => name.to_string(),
            Self::IdRange(number, name) => format!("{number} ({name})"),
        }
    }
}

/// What is known when looking for garbage.
struct Look {
    host: Host,
    desired: Desired,
    input: Input,
    live: Live,
    ranges: Vec<(u32, JailName, Duration)>,
}

/// With the bytes on disk; none for what takes up no room.
type Found = BTreeMap<Garbage, u64>;

pub fn gc(options: &Options, dry_run: bool) -> Result<i32> {
    run(options, dry_run, Look::everything)
}

/// `template gc`: layers only.
pub fn layers(options: &Options) -> Result<i32> {
    run(options, false, |look| {
        let mut found = Found::new();
        look.layers(&mut found)?;
        Ok(found)
    })
}

fn run(options: &Options, dry_run: bool, find: impl Fn(&Look) -> Result<Found>) -> Result<i32> {
    let paths = options.paths();
    let (desired, _) = source::load(&paths);
    let input = source::parse(&paths, source::read(&paths));
    let host = Host::open(desired.host.clone())?;
    let waiting = |holder: &str| eprintln!("stockade: waiting for another apply ({holder})");
    let _lock = lock::all(&host.journal.paths, &waiting)?;
    let live = probe::probe(&host.journal, &host.config, &host.hierarchies)?;
    let ranges = ids::taken(&host.journal.paths.state)?;
    let look = Look { host, desired, input, live, ranges };
    let found = find(&look)?;
    let mut status = DONE;
    let mut items = Vec::new();
    for (garbage, bytes) in &found {
        let error = if dry_run { None } else { look.remove(garbage).err() };
        if let Some(error) = &error {
            status = FAILED;
            eprintln!("stockade: {} {}: {error:#}", garbage.kind(), garbage.name());
        }
        items.push(json!({
            "kind": garbage.kind(),
            "name": garbage.name(),
            "size": bytes,
            "removed": !dry_run && error.is_none(),
        }));
    }
    report(options, dry_run, &items);
    Ok(status)
}

fn report(options: &Options, dry_run: bool, items: &[Value]) {
    if options.json {
        return output::json_text(&output::envelope("garbage", items.into()));
    }
    if items.is_empty() {
        return output::text("Nothing to remove.");
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let word = |item: &Value, key: &str| item[key].as_str().unwrap_or_default().to_owned();
    for item in items {
        let size = item["size"].as_u64().filter(|bytes| *bytes > 0).map_or("-".to_owned(), status::size);
        table.add_row([word(item, "kind"), word(item, "name"), size]);
    }
    let gone: Vec<&Value> = items.iter().filter(|item| dry_run || item["removed"] == true).collect();
    let bytes = gone.iter().filter_map(|item| item["size"].as_u64()).sum();
    let verb = if dry_run { "Would remove" } else { "Removed" };
    let last = format!("{verb} {} things, {}.\n", gone.len(), status::size(bytes));
    output::text(&(output::plain(&mut table) + &last));
}

impl Look {
    fn everything(&self) -> Result<Found> {
        let mut found = Found::new();
        self.layers(&mut found)?;
        found.extend(import::dead(&self.host)?.into_iter().map(|dead| (Garbage::HalfImport(dead), 0)));
        self.cgroups(&mut found)?;
        self.run_directories(&mut found)?;
        self.notices(&mut found)?;
        self.id_ranges(&mut found);
        self.bridges(&mut found)?;
        Ok(found)
    }

    /// With a record in this boot, or files of its own.
    fn is_kept(&self, name: &JailName) -> bool {
        let recorded = self.live.jails.get(name).is_some_and(|jail| jail.record.is_some());
        recorded || self.host.journal.state_dir(name).exists()
    }

    fn is_defined(&self, name: &JailName) -> bool {
        self.desired.jails.contains_key(name) || self.desired.broken.contains_key(name)
    }

    /// Absence proves nothing when not all could be read.
    fn knows_all(&self) -> bool {
        self.desired.complete && self.desired.broken.is_empty() && self.input.broken_templates.is_empty()
    }

    /// Holders of an id range without a record: jails of `run`, alive or dead.
    fn throw_away(&self) -> impl Iterator<Item = &(u32, JailName, Duration)> {
        self.ranges.iter().filter(|(_, name, _)| !self.is_kept(name))
    }

    fn may_live(&self, name: &JailName, age: Duration) -> bool {
        let populated = || execute::cgroup(&self.host, name).and_then(|cgroup| cgroup.populated());
        age < SETTLED || populated().unwrap_or(true)
    }

    fn layers(&self, found: &mut Found) -> Result<()> {
        let state = &self.host.journal.paths.state;
        let half = root::layers::half_built(state)?;
        found.extend(half.into_iter().map(|(id, bytes)| (Garbage::HalfLayer(id), bytes)));
        if !self.knows_all() {
            eprintln!("stockade: layers are left alone: not all definitions and templates can be read");
            return Ok(());
        }
        if let Some((_, name, _)) = self.throw_away().find(|(_, name, age)| self.may_live(name, *age)) {
            eprintln!("stockade: layers are left alone: the throw-away jail {name} may use them");
            return Ok(());
        }
        let mut used: BTreeSet<String> = all_layers(&self.input.templates).collect();
        let records = self.live.jails.values().filter_map(|jail| jail.record.as_ref());
        used.extend(records.flat_map(|record| record.layers.iter().cloned()));
        let wanted = self.desired.jails.values().flat_map(|wanted| &wanted.root.layers);
        used.extend(wanted.map(|layer| layer.id.clone()));
        let unused = root::layers::unused(state, &used)?;
        found.extend(unused.into_iter().map(|(id, bytes)| (Garbage::Layer(id), bytes)));
        let failed = self.live.failed_builds.keys().filter(|id| !used.contains(*id));
        found.extend(failed.map(|id| (Garbage::BuildFailure(id.clone()), 0)));
        Ok(())
    }

    fn cgroups(&self, found: &mut Found) -> Result<()> {
        if self.host.hierarchies.has_empty(&self.host.config.cgroup)? {
            found.insert(Garbage::Parent(self.host.config.cgroup.clone()), 0);
        }
        for name in self.host.hierarchies.children(&self.host.config.cgroup)? {
            let Ok(name) = JailName::new(&name) else { continue };
            let recorded = self.live.jails.get(&name).is_some_and(|jail| jail.record.is_some());
            let held = self.throw_away().any(|(_, other, age)| *other == name && self.may_live(other, *age));
            let is_up = lock::is_up(&self.host.journal.paths, &name)?;
            if !recorded && !held && !is_up && !execute::cgroup(&self.host, &name)?.populated()? {
                found.insert(Garbage::Cgroup(name), 0);
            }
        }
        Ok(())
    }

    /// Of another boot: a record of this one would have been read.
    fn run_directories(&self, found: &mut Found) -> Result<()> {
        let directory = self.host.journal.paths.run.join("jails");
        for file in names(&directory)? {
            if let Some(name) = file.strip_suffix(".restarts").and_then(|name| JailName::new(name).ok()) {
                if !self.is_kept(&name) && !self.is_defined(&name) {
                    found.insert(Garbage::Restarts(name), 0);
                }
            } else if let Ok(name) = JailName::new(&file)
                && self.live.jails.get(&name).is_none_or(|jail| jail.record.is_none())
            {
                found.insert(Garbage::RunDirectory(name), bytes_below(&directory.join(&file)));
            }
        }
        Ok(())
    }

    fn notices(&self, found: &mut Found) -> Result<()> {
        let run = &self.host.journal.paths.run;
        let is_stranger = |name: &JailName| !self.is_kept(name) && !self.is_defined(name);
        for name in names(&run.join("exits"))?.iter().filter_map(|name| JailName::new(name).ok()) {
            if is_stranger(&name) {
                found.insert(Garbage::ExitBell(name), 0);
            }
        }
        let locks = names(&run.join("locks"))?;
        let locked = |file: &String| JailName::new(file.strip_suffix(lock::UP).unwrap_or(file)).ok();
        for name in locks.iter().filter_map(locked) {
            if is_stranger(&name) && !lock::is_up(&self.host.journal.paths, &name)? {
                found.insert(Garbage::Lock(name), 0);
            }
        }
        Ok(())
    }

    fn id_ranges(&self, found: &mut Found) {
        let dead = self.throw_away().filter(|(_, name, age)| !self.may_live(name, *age));
        found.extend(dead.map(|(number, name, _)| (Garbage::IdRange(*number, name.clone()), 0)));
    }

    /// Ours, without a port, and named by no definition.
    fn bridges(&self, found: &mut Found) -> Result<()> {
        if !self.knows_all() {
            return Ok(());
        }
        let wanted: BTreeSet<String> = self
            .desired
            .jails
            .values()
            .filter_map(|wanted| network::spec(&wanted.jail, &self.host.config))
            .map(|spec| spec.bridge)
            .collect();
        for bridge in probe::bridges() {
            if !wanted.contains(&bridge) && network::is_unused_bridge(&bridge)? {
                found.insert(Garbage::Bridge(bridge), 0);
            }
        }
        Ok(())
    }

    fn remove(&self, garbage: &Garbage) -> Result<()> {
        let journal = &self.host.journal;
        let state = &journal.paths.state;
        match garbage {
            Garbage::Layer(id) => root::layers::remove(state, id),
            Garbage::BuildFailure(id) => {
                root::layers::failed::forget(state, id);
                Ok(())
            }
            Garbage::HalfLayer(_) => root::layers::remove_half_built(state),
            Garbage::Parent(name) => self.host.hierarchies.remove_parent(name),
            Garbage::HalfImport(dead) => dead.remove(&self.host),
            Garbage::Cgroup(name) => execute::remove_cgroup(&self.host, name),
            Garbage::RunDirectory(name) => journal.forget(name),
            Garbage::Restarts(name) => journal.write_restarts(name, &Restarts::default()),
            Garbage::ExitBell(name) => journal::remove(&journal::exits::bell(&journal.paths.run, name)),
            Garbage::IdRange(number, name) => ids::release(state, name, *number),
            Garbage::Lock(name) => lock::remove(lock::jail(&journal.paths, name)?, &journal.paths, name),
            Garbage::Bridge(name) => network::remove_bridge_if_unused(name).map(drop),
        }
    }
}

/// All layers that the templates stand for now, whether built or not.
fn all_layers(templates: &BTreeMap<String, template::Template>) -> impl Iterator<Item = String> + '_ {
    let of = |name: &String| template::layers(templates, name).unwrap_or_default();
    templates.keys().flat_map(of).map(|layer| layer.id)
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
}

/// Of a flat directory of ours.
fn bytes_below(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).sum()
}
