//! The pure half over a thousand jails: reading definitions, and planning.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::{Path, PathBuf};

use criterion::{Criterion, criterion_group, criterion_main};
use serde_json::json;

use stockade::definition;
use stockade::desired::{Desired, DesiredJail, DesiredRoot, HostConfig, IdPool, OnChange, Paths, RootFile};
use stockade::jail::{Jail, JailName, Settings};
use stockade::live::Live;
use stockade::plan::{Options, plan, simulate};
use stockade::resolve::{Input, resolve};
use stockade::status;
use stockade::template::Template;

const JAILS: usize = 1_000;
/// About what a rendered configuration file has.
const FILE_BYTES: usize = 2_048;

const DEFINITION: &str = r#"
template = "host"
[exec]
command = ["/usr/sbin/nginx", "-g", "daemon off;"]
user = "www-data"
env = { LANG = "C.UTF-8" }
[network]
mode = "vnet"
address = ["10.77.0.10/24", "fd77::10/64"]
[limits]
memory = "512M"
cpu = 1.5
processes = 200
[[mount]]
source = "/srv/www"
target = "/var/www"
options = ["ro"]
"#;

fn settings() -> Settings {
    let keys = [
        ("template", json!("host")),
        ("exec.command", json!(["/usr/sbin/nginx", "-g", "daemon off;"])),
        ("exec.user", json!("www-data")),
        ("exec.env", json!({ "LANG": "C.UTF-8" })),
        ("network.mode", json!("vnet")),
        ("network.address", json!(["10.77.0.10/24", "fd77::10/64"])),
        ("limits.memory", json!(512 << 20)),
        ("limits.cpu", json!(1_500)),
        ("limits.processes", json!(200)),
    ];
    keys.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// Every tenth jail is what the nine after it depend on.
fn jail(number: usize) -> (JailName, DesiredJail) {
    let name = |number| JailName::new(&format!("jail-{number:04}")).expect("a good name");
    let mut settings = settings();
    if !number.is_multiple_of(10) {
        settings.insert("depend".to_owned(), json!([name(number / 10 * 10)]));
    }
    let jail = Jail::from_settings(&name(number), &settings).expect("good settings");
    let file = |target: &str| RootFile {
        target: target.into(),
        contents: vec![b'x'; FILE_BYTES],
        mode: 0o644,
        uid: 0,
        gid: 0,
        on_change: OnChange::Restart,
    };
    let files = vec![file("/etc/nginx/nginx.conf"), file("/var/www/index.html")];
    let root = DesiredRoot { layers: Vec::new(), host_usr: true, files, etc: Vec::new() };
    (
        name(number),
        DesiredJail {
            file: format!("/jails.d/jail-{number:04}.toml").into(),
            settings,
            jail: jail.into(),
            root,
        },
    )
}

fn desired() -> Desired {
    let none = PathBuf::new;
    let paths = Paths { config: none(), state: none(), run: none(), log: none() };
    let (ids, bridges) = (IdPool { first: 0, ranges: 0 }, BTreeMap::new());
    let host = HostConfig { paths, ids, bridges, cgroup: String::new(), broken: None };
    Desired { host, jails: (0..JAILS).map(jail).collect(), broken: BTreeMap::new(), complete: true }
}

/// All of them run as defined, and their limits were read back.
fn live(desired: &Desired) -> Live {
    let first = plan(desired, &Live::default(), &Options::default());
    let mut live = simulate(&first, &Live::default(), desired);
    for seen in live.jails.values_mut() {
        let settings = &seen.record.as_ref().expect("it was started").settings;
        let limits = settings.iter().filter(|(key, _)| key.starts_with("limits."));
        seen.observed = limits.map(|(key, value)| (key.clone(), value.clone())).collect();
    }
    live
}

fn plans(criterion: &mut Criterion) {
    let options = Options::default();
    let desired = desired();
    let live = live(&desired);
    assert!(plan(&desired, &live, &options).is_empty(), "nothing to do");
    criterion.bench_function("plan 1000 unchanged", |bench| {
        bench.iter(|| plan(black_box(&desired), black_box(&live), &options));
    });
    let mut edited = desired.clone();
    let middle = edited.jails.values_mut().nth(JAILS / 2).expect("there are enough");
    middle.settings.insert("limits.memory".to_owned(), json!(1 << 30));
    assert_eq!(plan(&edited, &live, &options).actions.len(), 1);
    criterion.bench_function("plan 1000 with one change", |bench| {
        bench.iter(|| plan(black_box(&edited), black_box(&live), &options));
    });
    criterion.bench_function("plan 1000 new, and its text", |bench| {
        bench.iter(|| plan(black_box(&desired), &Live::default(), &options).text(false));
    });
    criterion.bench_function("ls 1000", |bench| {
        bench.iter(|| status::table(&status::rows(black_box(&desired), black_box(&live), &BTreeMap::new())));
    });
}

fn definitions(criterion: &mut Criterion) {
    let file = Path::new("/etc/stockade/jails.d/web.toml");
    assert!(definition::parse(file, DEFINITION).1.is_empty(), "the definition is good");
    criterion.bench_function("parse 1000 definitions", |bench| {
        bench.iter(|| (0..JAILS).map(|_| definition::parse(file, black_box(DEFINITION))).collect::<Vec<_>>());
    });
}

/// A thousand texts, each with addresses of its own, through all checks across files.
fn input(texts: &[(PathBuf, String)]) -> Input {
    let parsed = texts.iter().filter_map(|(file, text)| definition::parse(file, text).0);
    let (host, _) = definition::parse_host(Path::new("stockade.toml"), "");
    let templates = BTreeMap::from([("host".to_owned(), Template::host("stamp".to_owned()))]);
    Input { host, definitions: parsed.collect(), templates, complete: true, ..Input::default() }
}

fn resolving(criterion: &mut Criterion) {
    let text = |number: usize| {
        let (high, low) = (number / 250, number % 250 + 2);
        let address = format!("address = [\"10.77.{high}.{low}/16\", \"fd77::{high:x}:{low:x}/64\"]");
        let text = DEFINITION.replace("address = [\"10.77.0.10/24\", \"fd77::10/64\"]", &address);
        (PathBuf::from(format!("/etc/stockade/jails.d/jail-{number:04}.toml")), text)
    };
    let texts: Vec<(PathBuf, String)> = (0..JAILS).map(text).collect();
    let (desired, found) = resolve(input(&texts));
    assert_eq!((desired.jails.len(), found.len()), (JAILS, 0), "{:?}", found.first());
    criterion.bench_function("parse and resolve 1000 definitions", |bench| {
        bench.iter(|| resolve(input(black_box(&texts))));
    });
}

criterion_group!(pure, plans, definitions, resolving);
criterion_main!(pure);
