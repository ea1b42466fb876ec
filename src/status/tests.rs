use super::*;
use crate::desired::{DesiredJail, DesiredRoot, HostConfig, IdPool, Layer, LayerSource, Paths};
use crate::jail::Jail;
use crate::live::{Process, RECORD_SCHEMA, Record, Restarts};
use crate::step::Phase;

const NOW_MS: u64 = 1_000_000;

fn name(text: &str) -> JailName {
    JailName::new(text).expect("a good name")
}

fn settings() -> Settings {
    Settings::from([("network.address".to_owned(), json!(["10.0.0.2/24", "fd00::2/64"]))])
}

fn desired() -> Desired {
    let at = std::path::PathBuf::new;
    let paths = Paths { config: at(), state: at(), run: at(), log: at() };
    let (ids, bridges) = (IdPool { first: 0, ranges: 0 }, BTreeMap::new());
    let host = HostConfig { paths, ids, bridges, cgroup: String::new(), broken: None };
    let jail = Jail::from_settings(&name("web"), &settings()).expect("good settings");
    let web = DesiredJail {
        file: "web.toml".into(),
        settings: settings(),
        jail: jail.into(),
        root: DesiredRoot::default(),
    };
    Desired { host, jails: BTreeMap::from([(name("web"), web)]), broken: BTreeMap::new(), complete: true }
}

fn record() -> Record {
    Record {
        schema: RECORD_SCHEMA,
        boot_id: String::new(),
        name: name("web"),
        instance: String::new(),
        cgroup_base: String::new(),
        file: "web.toml".into(),
        phase: Phase::Up,
        stopping: false,
        settings: settings(),
        layers: Vec::new(),
        host_usr: false,
        etc: Vec::new(),
        files: BTreeMap::new(),
        keeper: None,
        init: Some(Process { pid: 4321, start_time: 7 }),
        first_id: 0,
        started_ms: NOW_MS - 65_500,
        hooks_done: BTreeSet::new(),
        instead_of: None,
    }
}

fn seen(state: JailState) -> LiveJail {
    LiveJail { state, record: Some(record()), ..LiveJail::default() }
}

fn show(desired: &Desired, seen: Option<LiveJail>) -> Row {
    let jails = seen.into_iter().map(|seen| (name("web"), seen)).collect();
    let live = Live { jails, now_ms: NOW_MS, ..Live::default() };
    let usage =
        BTreeMap::from([(name("web"), Usage { memory: Some(3 << 19), cpu_ms: Some(1_250), disk: Some(7) })]);
    rows(desired, &live, &usage).remove(0)
}

#[test]
fn states_say_what_a_person_wants_to_know() {
    let check = |seen: Option<LiveJail>, state: &str, reason: Option<&str>| {
        let row = show(&desired(), seen.clone());
        assert_eq!((row.state.as_str(), row.reason.as_deref()), (state, reason), "{seen:?}");
    };
    let exit = |code| Exit { code: Some(code), ..Exit::default() };
    let stopping = Record { stopping: true, ..record() };
    let wait = Restarts { count: 2, not_before_ms: NOW_MS + 2_500, ..Restarts::default() };
    let looped = Restarts { count: 9, crash_loop: true, ..Restarts::default() };
    check(None, "stopped", None);
    check(Some(seen(JailState::Up)), "running", None);
    check(Some(seen(JailState::Frozen)), "frozen", None);
    check(Some(seen(JailState::Orphaned)), "orphaned", Some("its keeper is gone"));
    check(Some(seen(JailState::Partial)), "starting", None);
    check(Some(LiveJail { record: Some(stopping), ..seen(JailState::Partial) }), "stopping", None);
    check(Some(seen(JailState::Exited(exit(0)))), "stopped", Some("exited with 0"));
    check(Some(seen(JailState::Exited(exit(3)))), "failed", Some("exited with 3"));
    let failed = LiveJail { restarts: wait.clone(), ..seen(JailState::Exited(exit(3))) };
    check(Some(failed), "failed", Some("exited with 3; starts again in 3 s"));
    let unstarted = LiveJail { restarts: wait, ..LiveJail::default() };
    check(Some(unstarted), "failed", Some("it did not start; starts again in 3 s"));
    let failure = Restarts { failure: Some("no such file".to_owned()), ..Restarts::default() };
    let refused = LiveJail { restarts: failure, ..LiveJail::default() };
    check(Some(refused), "failed", Some("it did not start: no such file"));
    let crashing = LiveJail { restarts: looped, exit: Some(exit(1)), ..LiveJail::default() };
    check(Some(crashing), "crash-loop", Some("exited with 1"));
    check(Some(LiveJail { held: true, ..LiveJail::default() }), "stopped", Some("stopped by hand"));
}

#[test]
fn a_build_that_failed_is_told_of_where_it_is_waited_for() {
    let mut wanted = desired();
    let jail = wanted.jails.get_mut(&name("web")).unwrap();
    jail.jail.template = Some("debian".to_owned());
    let path = std::path::PathBuf::from("/srv/debian");
    jail.root.layers = vec![Layer { id: "sha256-1".to_owned(), source: LayerSource::Directory(path) }];
    let usage = BTreeMap::new();
    for (seen, building, state, reason) in [
        (LiveJail::default(), false, "failed", Some("its template `debian` could not be built: no mirror")),
        (LiveJail::default(), true, "starting", Some("its template `debian` is being built")),
        (seen(JailState::Up), false, "running", Some("its template `debian` could not be built: no mirror")),
        (seen(JailState::Up), true, "running", None),
    ] {
        let mut live = Live { now_ms: NOW_MS, ..Live::default() };
        live.failed_builds.insert("sha256-1".to_owned(), "no mirror".to_owned());
        live.building.extend(building.then(|| "sha256-1".to_owned()));
        live.jails.insert(name("web"), seen);
        let row = rows(&wanted, &live, &usage).remove(0);
        assert_eq!((row.state.as_str(), row.reason.as_deref()), (state, reason));
    }
}

#[test]
fn a_broken_file_shows_only_where_nothing_runs() {
    let mut desired = desired();
    desired.jails.clear();
    desired.broken.insert(name("web"), "web.toml:1:1: wrong".to_owned());
    let up = show(&desired, Some(seen(JailState::Up)));
    assert_eq!((up.state, up.reason.as_deref()), (State::Running, Some("web.toml:1:1: wrong")));
    assert_eq!(show(&desired, None).state, State::ConfigError);
    let mut ended = seen(JailState::Exited(Exit { code: Some(1), ..Exit::default() }));
    ended.restarts.not_before_ms = NOW_MS + 4_200;
    let ended = show(&desired, Some(ended));
    assert_eq!(ended.reason.as_deref(), Some("web.toml:1:1: wrong; starts again in 5 s"));
}

#[test]
fn the_table_is_plain_and_aligned() {
    let mut all = vec![show(&desired(), Some(seen(JailState::Up))), show(&desired(), None)];
    all[1].name = name("a-much-longer-name");
    all[1].address.clear();
    let expect = "\
NAME                STATE     PID  ADDRESS           MEMORY    CPU  UPTIME
web                 running  4321  10.0.0.2,fd00::2    1.5M  1.25s    1m5s
a-much-longer-name  stopped     -  -                      -      -       -
";
    assert_eq!(table(&all), expect);
}

#[test]
fn the_json_has_raw_numbers() {
    let item = item(&show(&desired(), Some(seen(JailState::Up))));
    let expect = json!({ "name": "web", "state": "running", "pid": 4321, "address": ["10.0.0.2", "fd00::2"],
        "memory": 3 << 19, "cpu": 1.25, "disk": 7, "uptime": 65, "exit": null, "restarts": 0, "reason": null });
    assert_eq!(item, expect);
}

#[test]
fn sizes_and_times_are_short() {
    let sizes = [
        (0, "0B"),
        (1_023, "1023B"),
        (1_024, "1K"),
        (1_536, "1.5K"),
        (200 << 20, "200M"),
        ((1 << 30) - 1, "1023M"),
        (u64::MAX, "15.9E"),
    ];
    for (bytes, expect) in sizes {
        assert_eq!(size(bytes), expect);
    }
    for (seconds, expect) in [(0, "0s"), (59, "59s"), (60, "1m0s"), (3_700, "1h1m"), (90_000, "1d1h")] {
        assert_eq!(duration(seconds), expect);
    }
    assert_eq!([cpu_time(0), cpu_time(9_999), cpu_time(10_000)], ["0.00s", "9.99s", "10s"]);
}
