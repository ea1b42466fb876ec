//! Golden plans: each directory below `tests/plans` holds
//!
//! - `jails.d/NAME.toml`: the definitions now,
//! - `before/NAME.toml`: those that the running jails were started with, where they differ,
//! - `live.toml`: what is found on the machine, see [`Case`],
//! - `plan.txt`, and sometimes `plan.json`: what comes out.
//!
//! `STOCKADE_BLESS=1` writes the last two anew, for a person to read before committing them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use stockade::definition;
use stockade::desired::{
    Desired, DesiredJail, DesiredRoot, HostConfig, IdPool, Layer, LayerSource, OnChange, Paths, RootFile,
};
use stockade::jail::{Jail, JailName, Settings};
use stockade::live::{Exit, JailState, Live, LiveJail, Restarts};
use stockade::plan::{Options, plan, simulate};
use stockade::storage::{FileSystem, Ground, Held, Kind};

const NOW_MS: u64 = 1_000_000;
const CASES_MIN: usize = 25;

/// `live.toml`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(clippy::struct_excessive_bools)] // Each is a word of the case's file.
struct Case {
    /// Why the case is there.
    about: String,
    only: Vec<JailName>,
    no_restart: bool,
    again: bool,
    waits_for_layers: bool,
    /// Ids of layers that are not there, and of those that somebody builds; all others are built.
    unbuilt: BTreeSet<String>,
    building: BTreeSet<String>,
    /// A directory of definitions could not be read.
    incomplete: bool,
    /// Keys this host cannot enforce.
    refused: BTreeMap<String, String>,
    ground: CaseGround,
    live: BTreeMap<JailName, Seen>,
    /// Roots now, and those that the running jails were started with, where they differ.
    root: BTreeMap<JailName, CaseRoot>,
    root_before: BTreeMap<JailName, CaseRoot>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(clippy::struct_excessive_bools)] // Each is a word of the case's file.
struct Seen {
    /// `up`, `down`, `frozen`, `orphaned`, `partial`, `exited CODE`, `killed SIGNAL` or `reboot`.
    state: String,
    /// No record was found.
    no_record: bool,
    /// It was started by `stockade run`.
    run: bool,
    /// What was cut off is a stop.
    stopping: bool,
    held: bool,
    has_data: bool,
    volume: Option<CaseVolume>,
    crash_loop: bool,
    /// Milliseconds of back-off that are left.
    wait_ms: u64,
    /// How it ended, for one that is down.
    exit: Option<String>,
    /// Normalised keys as read back.
    observed: Settings,
    default_routes: Option<Vec<std::net::IpAddr>>,
    changed_files: BTreeSet<PathBuf>,
}

/// What the host can do for volumes.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct CaseGround {
    project: bool,
    image: Vec<FileSystem>,
    grows_ext4: bool,
}

/// What a jail's own files are in.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseVolume {
    kind: Kind,
    file_system: Option<FileSystem>,
    bytes: Option<u64>,
    #[serde(default)]
    counted: bool,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct CaseRoot {
    layers: Vec<String>,
    host_usr: bool,
    /// By target: contents, and `restart`, `none` or a command to reload with.
    files: BTreeMap<PathBuf, (String, String)>,
}

#[test]
fn plans_read_as_agreed() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plans");
    let entries = fs::read_dir(here).expect("the cases can be listed");
    let mut cases: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry can be read").path()).collect();
    cases.sort();
    assert!(cases.len() >= CASES_MIN, "only {} cases", cases.len());
    let wrong: Vec<String> = cases.iter().filter_map(|case| run(case)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn run(dir: &Path) -> Option<String> {
    let case: Case = toml::from_str(&read(&dir.join("live.toml")))
        .unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    assert!(!case.about.is_empty(), "{} says nothing about itself", dir.display());
    let desired = desired(dir, &case);
    let live = live(dir, &case, &desired);
    let Case { only, no_restart, again, waits_for_layers, .. } = case;
    let options = Options { only, no_restart, again, waits_for_layers };
    let first = plan(&desired, &live, &options);
    // Asked for once, and done.
    let options = Options { again: false, ..options };
    let second = plan(&desired, &simulate(&first, &live, &desired), &options);
    assert!(second.is_empty(), "{}: planned again: {}", dir.display(), second.text(false));
    let json = serde_json::to_string_pretty(&first.json()).expect("a plan can be written") + "\n";
    let wrong_json = dir.join("plan.json").exists().then(|| check(&dir.join("plan.json"), &json)).flatten();
    check(&dir.join("plan.txt"), &first.text(false)).or(wrong_json)
}

fn check(file: &Path, found: &str) -> Option<String> {
    if std::env::var_os("STOCKADE_BLESS").is_some() {
        fs::write(file, found).expect("the plan can be written");
        return None;
    }
    let expect = read(file);
    (expect != found).then(|| format!("{}: expected\n{expect}found\n{found}", file.display()))
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn desired(dir: &Path, case: &Case) -> Desired {
    let mut jails = BTreeMap::new();
    let mut broken = BTreeMap::new();
    for (name, parsed) in definitions(&dir.join("jails.d")) {
        match parsed {
            Ok(settings) => drop(jails.insert(name.clone(), jail(&name, settings, &case.root))),
            Err(message) => drop(broken.insert(name, message)),
        }
    }
    Desired { host: host(), jails, broken, complete: !case.incomplete }
}

fn host() -> HostConfig {
    let none = PathBuf::new;
    let paths = Paths { config: none(), state: none(), run: none(), log: none() };
    let ids = IdPool { first: 0, ranges: 0 };
    HostConfig { paths, ids, bridges: BTreeMap::new(), cgroup: String::new(), broken: None }
}

/// The definitions of a directory; a case may have none.
fn definitions(dir: &Path) -> Vec<(JailName, Result<Settings, String>)> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    entries.map(|entry| definition(&entry.expect("an entry can be read").path())).collect()
}

fn definition(file: &Path) -> (JailName, Result<Settings, String>) {
    let shown = Path::new("jails.d").join(file.file_name().expect("a file has a name"));
    let (raw, diagnostics) = definition::parse(&shown, &read(file));
    let raw = raw.expect("cases have good names");
    if let Some(first) = diagnostics.first() {
        let place = format!("{}:{}:{}", first.file.display(), first.line, first.column);
        return (raw.name, Err(format!("{place}: {}", first.message)));
    }
    let mut settings = Settings::new();
    for ((key, member), entry) in raw.entries.as_ref() {
        let value = entry.value.clone().expect("no case has expressions");
        if member.is_empty() {
            settings.insert((*key).to_owned(), value);
        } else if let Value::Object(table) =
            settings.entry((*key).to_owned()).or_insert_with(|| Value::Object(serde_json::Map::new()))
        {
            table.insert(member.clone(), value);
        }
    }
    (raw.name, Ok(settings))
}

fn jail(name: &JailName, settings: Settings, roots: &BTreeMap<JailName, CaseRoot>) -> DesiredJail {
    let jail = Jail::from_settings(name, &settings).expect("the parser and the types agree");
    let root = roots.get(name).cloned().unwrap_or_default();
    let layer = |id: &String| Layer { id: id.clone(), source: LayerSource::Built };
    let root = DesiredRoot {
        layers: root.layers.iter().map(layer).collect(),
        host_usr: root.host_usr,
        files: root.files.into_iter().map(root_file).collect(),
        etc: Vec::new(),
    };
    DesiredJail {
        file: format!("/etc/stockade/jails.d/{name}.toml").into(),
        settings,
        jail: jail.into(),
        root,
    }
}

fn root_file((target, (contents, then)): (PathBuf, (String, String))) -> RootFile {
    let on_change = match then.as_str() {
        "restart" => OnChange::Restart,
        "none" => OnChange::None,
        command => OnChange::Reload(command.split(' ').map(str::to_owned).collect()),
    };
    RootFile { target, contents: contents.into_bytes(), mode: 0o644, uid: 0, gid: 0, on_change }
}

fn live(dir: &Path, case: &Case, desired: &Desired) -> Live {
    let mut started = started(dir, case, desired);
    let unseen = || LiveJail { has_data: false, ..LiveJail::default() };
    let jails = case.live.iter().map(|(name, seen)| {
        let then = started.jails.remove(name).unwrap_or_else(unseen);
        (name.clone(), live_jail(seen, then))
    });
    let (refused, ground) = (case.refused.clone(), ground(&case.ground));
    let layers = desired.jails.values().flat_map(|wanted| &wanted.root.layers).map(|layer| layer.id.clone());
    let layers = layers.filter(|id| !case.unbuilt.contains(id)).collect();
    let building = case.building.clone();
    let failed_builds = BTreeMap::new();
    Live { jails: jails.collect(), layers, building, failed_builds, refused, ground, now_ms: NOW_MS }
}

/// All jails that were ever started, by the model of a start.
fn started(dir: &Path, case: &Case, desired: &Desired) -> Live {
    let mut roots = case.root.clone();
    roots.extend(case.root_before.clone());
    let now = desired.jails.iter().map(|(name, wanted)| (name.clone(), wanted.settings.clone()));
    let mut settings: BTreeMap<JailName, Settings> = now.collect();
    for (name, parsed) in definitions(&dir.join("before")) {
        settings.insert(name, parsed.expect("what was started had no errors"));
    }
    let before = |(name, settings): (JailName, Settings)| {
        let mut then = jail(&name, settings, &roots);
        (then.jail.enabled, then.jail.depend) = (true, Vec::new());
        (name, then)
    };
    let jails = settings.into_iter().map(before).collect();
    let then = Desired { host: host(), jails, broken: BTreeMap::new(), complete: true };
    let nothing = Live { ground: ground(&case.ground), ..Live::default() };
    simulate(&plan(&then, &nothing, &Options::default()), &nothing, &then)
}

fn ground(case: &CaseGround) -> Ground {
    let image =
        if case.image.is_empty() { Err("there is no mkfs".to_owned()) } else { Ok(case.image.clone()) };
    Ground {
        file_system: "ext4".to_owned(),
        project: if case.project { Ok(()) } else { Err("ext4 has no project quota".to_owned()) },
        subvolume: Err("not on btrfs".to_owned()),
        image,
        grows_ext4: case.grows_ext4,
    }
}

fn held(volume: &CaseVolume) -> Held {
    let CaseVolume { kind, file_system, bytes, counted } = volume.clone();
    Held { kind, file_system, bytes, counted, ..Held::overlay() }
}

fn live_jail(seen: &Seen, then: LiveJail) -> LiveJail {
    let mut record = then.record.filter(|_| !seen.no_record);
    if let Some(record) = &mut record {
        record.stopping = seen.stopping;
        if seen.run {
            record.file = PathBuf::new();
        }
    }
    let not_before_ms = if seen.wait_ms == 0 { 0 } else { NOW_MS + seen.wait_ms };
    LiveJail {
        state: state(&seen.state),
        record,
        observed: seen.observed.clone(),
        default_routes: seen.default_routes.clone(),
        changed_files: seen.changed_files.clone(),
        held: seen.held,
        restarts: Restarts { not_before_ms, crash_loop: seen.crash_loop, ..Restarts::default() },
        exit: seen.exit.as_deref().map(exit),
        has_data: seen.has_data || seen.volume.is_some(),
        volume: seen.volume.as_ref().map(held).or_else(|| seen.has_data.then(Held::overlay)),
        unreadable: None,
        busy: false,
    }
}

fn state(text: &str) -> JailState {
    match text {
        "up" => JailState::Up,
        "down" => JailState::Down,
        "frozen" => JailState::Frozen,
        "orphaned" => JailState::Orphaned,
        "partial" => JailState::Partial,
        ended => JailState::Exited(exit(ended)),
    }
}

fn exit(text: &str) -> Exit {
    let number = |text: &str| text.parse::<i32>().expect("a number");
    match text.split_once(' ') {
        Some(("exited", code)) => Exit { code: Some(number(code)), ..Exit::default() },
        Some(("killed", signal)) => Exit { signal: Some(number(signal)), ..Exit::default() },
        _ if text == "reboot" => Exit { reboot: true, ..Exit::default() },
        _ => panic!("`{text}` is no state"),
    }
}
