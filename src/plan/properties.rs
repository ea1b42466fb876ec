//! What holds of every plan, over generated definitions and machines.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use proptest::collection::{btree_map, vec};
use proptest::option::of;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::effect::simulate_halves;
use super::{ActionKind, Options, Plan, plan, simulate};
use crate::desired::{
    Desired, DesiredJail, DesiredRoot, HostConfig, IdPool, Layer, LayerSource, OnChange, Paths, RootFile,
};
use crate::jail::{Jail, JailName, Settings};
use crate::live::{Exit, FileStamp, JailState, Live, LiveJail, Record, Restarts};
use crate::root::files::digest;
use crate::step::Phase;
use crate::storage::Held;

const NOW_MS: u64 = 100_000;
const LAYERS: [&str; 2] = ["sha256-1", "sha256-2"];
const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

fn name() -> impl Strategy<Value = JailName> {
    prop::sample::select(&NAMES[..]).prop_map(|text| JailName::new(text).expect("a good name"))
}

/// One key of each cost, the policy, and a few values each so that equal ones are common.
fn settings() -> impl Strategy<Value = Settings> {
    let key = |name: &'static str, values: Vec<Value>| {
        of(prop::sample::select(values)).prop_map(move |v| (name, v))
    };
    let keys = (
        key("limits.memory", vec![json!(1 << 20), json!(2 << 20), json!(3 << 20)]),
        key("limits.processes", vec![json!(1), json!(2)]),
        key("network.bridge", vec![json!("x"), json!("y")]),
        key("root.storage", vec![json!("overlay"), json!("tmpfs")]),
        key("exec.poststop", vec![json!(["true"]), json!([])]),
        key("restart.policy", vec![json!("no"), json!("on-failure"), json!("always")]),
        key("enabled", vec![json!(true), json!(true), json!(true), json!(false)]),
    );
    keys.prop_map(|(a, b, c, d, e, f, g)| {
        let present =
            [a, b, c, d, e, f, g].into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
        present.collect()
    })
}

fn file() -> impl Strategy<Value = RootFile> {
    let after = prop_oneof![
        Just(OnChange::Restart),
        Just(OnChange::Reload(vec!["true".to_owned()])),
        Just(OnChange::None)
    ];
    let target = prop::sample::select(vec!["/etc/p", "/etc/q"]).prop_map(PathBuf::from);
    (target, prop::sample::select(vec![b"1".to_vec(), b"2".to_vec()]), after).prop_map(
        |(target, contents, on_change)| RootFile { target, contents, mode: 0o644, uid: 0, gid: 0, on_change },
    )
}

fn root() -> impl Strategy<Value = DesiredRoot> {
    let ids = vec(prop::sample::select(&LAYERS[..]), 0..2);
    (ids, any::<bool>(), vec(file(), 0..3)).prop_map(|(ids, host_usr, files)| {
        let layer = |id: &str| Layer { id: id.to_owned(), source: LayerSource::Built };
        let by_target: BTreeMap<_, _> = files.into_iter().map(|file| (file.target.clone(), file)).collect();
        let layers = ids.into_iter().map(layer).collect();
        DesiredRoot { layers, host_usr, files: by_target.into_values().collect(), etc: Vec::new() }
    })
}

fn desired_jail(
    name: &JailName,
    mut settings: Settings,
    depend: &[JailName],
    root: DesiredRoot,
) -> DesiredJail {
    // Only towards smaller names, as `resolve` leaves no circle.
    let below: BTreeSet<&JailName> = depend.iter().filter(|other| *other < name).collect();
    if !below.is_empty() {
        settings.insert("depend".to_owned(), json!(below));
    }
    if !root.layers.is_empty() {
        settings.insert("template".to_owned(), json!("t"));
    }
    let jail = Jail::from_settings(name, &settings).expect("good settings");
    DesiredJail {
        file: format!("/etc/stockade/jails.d/{name}.toml").into(),
        settings,
        jail: jail.into(),
        root,
    }
}

fn host() -> HostConfig {
    let empty = PathBuf::new();
    let paths = Paths { config: empty.clone(), state: empty.clone(), run: empty.clone(), log: empty };
    HostConfig {
        paths,
        ids: IdPool { first: 0, ranges: 0 },
        bridges: BTreeMap::new(),
        cgroup: String::new(),
        broken: None,
    }
}

fn desired() -> impl Strategy<Value = Desired> {
    let jails = btree_map(name(), (settings(), vec(name(), 0..3), root()), 0..5);
    let broken = btree_map(name(), Just("file:1:1: wrong".to_owned()), 0..2);
    (jails, broken, any::<bool>()).prop_map(|(parts, broken, complete)| {
        let jails = parts
            .into_iter()
            .filter(|(name, _)| !broken.contains_key(name))
            .map(|(name, (settings, depend, root))| {
                let jail = desired_jail(&name, settings, &depend, root);
                (name, jail)
            })
            .collect();
        Desired { host: host(), jails, broken, complete }
    })
}

fn exit() -> impl Strategy<Value = Exit> {
    prop_oneof![
        Just(Exit { code: Some(0), ..Exit::default() }),
        Just(Exit { code: Some(1), ..Exit::default() }),
        Just(Exit { signal: Some(9), oom: true, ..Exit::default() }),
        Just(Exit { reboot: true, ..Exit::default() }),
    ]
}

fn state() -> impl Strategy<Value = JailState> {
    prop_oneof![
        3 => Just(JailState::Up),
        2 => Just(JailState::Down),
        1 => Just(JailState::Frozen),
        1 => Just(JailState::Orphaned),
        1 => Just(JailState::Partial),
        1 => exit().prop_map(JailState::Exited),
    ]
}

fn record(jail: DesiredJail, name: &JailName, run: bool, stopping: bool) -> Record {
    let stamp = |file: &RootFile| FileStamp { digest: digest(file), ..FileStamp::default() };
    Record {
        schema: 1,
        boot_id: String::new(),
        name: name.clone(),
        instance: String::new(),
        file: if run { PathBuf::new() } else { jail.file },
        phase: Phase::Up,
        stopping,
        settings: jail.settings,
        layers: jail.root.layers.iter().map(|layer| layer.id.clone()).collect(),
        host_usr: jail.root.host_usr,
        etc: jail.root.etc,
        files: jail.root.files.iter().map(|file| (file.target.clone(), stamp(file))).collect(),
        keeper: None,
        init: None,
        first_id: 0,
        cgroup_base: String::new(),
        started_ms: 0,
        hooks_done: BTreeSet::new(),
        instead_of: None,
    }
}

#[derive(Clone, Debug)]
enum Recorded {
    Nothing,
    /// What `desired` says.
    Same,
    Other(Settings, Vec<JailName>, DesiredRoot),
}

#[derive(Clone, Debug)]
struct Seen {
    jail: LiveJail,
    record: Recorded,
    run: bool,
    stopping: bool,
}

fn seen() -> impl Strategy<Value = Seen> {
    let record = prop_oneof![
        1 => Just(Recorded::Nothing),
        1 => Just(Recorded::Same),
        2 => (settings(), vec(name(), 0..3), root()).prop_map(|(a, b, c)| Recorded::Other(a, b, c)),
    ];
    let flags =
        (prop::bool::weighted(0.1), prop::bool::weighted(0.2), prop::bool::weighted(0.1), any::<bool>());
    let restarts = (prop::sample::select(vec![0, NOW_MS + 5_000]), prop::bool::weighted(0.1));
    let edited = vec(prop::sample::select(vec!["/etc/p", "/etc/q"]), 0..2);
    (state(), record, settings(), edited, flags, restarts, of(exit())).prop_map(
        |(
            state,
            record,
            observed,
            edited,
            (held, stopping, run, has_data),
            (not_before_ms, crash_loop),
            exit,
        )| {
            let restarts = Restarts { count: 0, not_before_ms, crash_loop, ..Restarts::default() };
            let changed_files = edited.into_iter().map(PathBuf::from).collect();
            let jail = LiveJail {
                state,
                record: None,
                observed,
                default_routes: None,
                changed_files,
                held,
                restarts,
                exit,
                has_data,
                volume: has_data.then(Held::overlay),
                unreadable: None,
                busy: false,
            };
            Seen { jail, record, run, stopping }
        },
    )
}

fn case() -> impl Strategy<Value = (Desired, Live)> {
    (desired(), btree_map(name(), seen(), 0..6), prop::bool::weighted(0.1)).prop_map(
        |(desired, seen, refuses)| {
            let jails = seen.into_iter().map(|(name, seen)| live_jail(name, seen, &desired)).collect();
            let layers = BTreeSet::from([LAYERS[0].to_owned()]);
            let refused = refuses.then(|| ("limits.processes".to_owned(), "no pids controller".to_owned()));
            let live = Live {
                jails,
                layers,
                refused: refused.into_iter().collect(),
                now_ms: NOW_MS,
                ..Live::default()
            };
            (desired, live)
        },
    )
}

fn live_jail(name: JailName, seen: Seen, desired: &Desired) -> (JailName, LiveJail) {
    let then = match seen.record {
        Recorded::Nothing => None,
        Recorded::Same => desired.jails.get(&name).cloned(),
        Recorded::Other(settings, depend, root) => Some(desired_jail(&name, settings, &depend, root)),
    };
    let record = then.map(|jail| record(jail, &name, seen.run, seen.stopping));
    let mut jail = LiveJail { record, ..seen.jail };
    if super::judge::runs(&jail.state) {
        // A start takes these away.
        (jail.restarts, jail.exit) = (Restarts::default(), None);
    }
    (name, jail)
}

fn all(desired: &Desired, live: &Live) -> Plan {
    plan(desired, live, &Options::default())
}

fn runs_as_before(plan: &Plan) -> bool {
    plan.actions.iter().any(|action| action.as_before)
}

/// What must come out alike, whichever way it was reached.
fn outcome(live: &Live) -> Vec<(JailName, bool, Option<Settings>)> {
    let jail = |(name, seen): (&JailName, &LiveJail)| {
        let record = seen.record.as_ref().map(|record| record.settings.clone());
        (name.clone(), super::judge::runs(&seen.state), record)
    };
    live.jails.iter().map(jail).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_carried_out_leaves_nothing((desired, live) in case(), only in vec(name(), 0..2), no_restart: bool, waits_for_layers: bool) {
        let options = Options { only, no_restart, again: false, waits_for_layers };
        let mut after = live;
        let mut plans = vec![plan(&desired, &after, &options)];
        while plans.len() < 4 && plans.last().is_some_and(|last| !last.is_empty()) {
            after = simulate(&plans[plans.len() - 1], &after, &desired);
            plans.push(plan(&desired, &after, &options));
        }
        // What runs as before may need a layer that the first of them has made, and what can be changed
        // while it runs follows.
        let again = !desired.broken.is_empty() || plans.iter().any(runs_as_before);
        let most = if again { 4 } else { 2 };
        prop_assert!(plans.len() <= most && plans.last().is_some_and(Plan::is_empty), "{plans:#?}");
    }

    #[test]
    fn a_plan_cut_off_is_finished_by_the_next((desired, mut live) in case(), cut in 0.0..1.0) {
        // Where all are there, none comes to be by a start.
        live.layers.extend(LAYERS.map(str::to_owned));
        let whole = all(&desired, &live);
        let halves = whole.halves();
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let done = (halves.len() as f64 * cut) as usize;
        let cut_off = simulate_halves(&halves[..done], &live, &desired);
        let rest = all(&desired, &cut_off);
        let end = simulate(&rest, &cut_off, &desired);
        prop_assert!(all(&desired, &end).is_empty(), "{:#?}", all(&desired, &end));
        prop_assert_eq!(outcome(&end), outcome(&simulate(&whole, &live, &desired)), "{:#?}\n{:#?}", whole, rest);
    }

    #[test]
    fn an_unchanged_definition_never_restarts((desired, live) in case()) {
        let first = all(&desired, &live);
        // A change that waits for another jail comes later, rightly.
        prop_assume!(first.postponed.is_empty());
        let up = simulate(&first, &live, &desired);
        // Whatever else happens to be wrong with the others: what runs by its definition stays.
        let plan = all(&desired, &Live { now_ms: NOW_MS * 2, ..up.clone() });
        for action in &plan.actions {
            let runs = up.jails.get(&action.name).is_some_and(|seen| super::judge::runs(&seen.state));
            prop_assert!(!runs, "{action:?}");
        }
    }

    #[test]
    fn broken_refused_and_thrown_away_jails_are_left_alone((desired, live) in case()) {
        for action in all(&desired, &live).actions {
            let seen = live.jails.get(&action.name);
            // But for what was stopped by hand.
            let held = seen.is_some_and(|seen| seen.held) && action.kind == ActionKind::Stop;
            let runs = seen.is_some_and(|seen| super::judge::runs(&seen.state));
            let as_before = action.as_before || !action.has_start();
            prop_assert!(held || !desired.broken.contains_key(&action.name) || !runs && as_before);
            let run = seen.and_then(|seen| seen.record.as_ref()).is_some_and(|r| r.file.as_os_str().is_empty());
            prop_assert!(!run || seen.is_some_and(|seen| seen.state == JailState::Down));
            let refused = desired.jails.get(&action.name).is_some_and(|wanted| {
                wanted.jail.enabled && live.refused.keys().any(|key| wanted.settings.contains_key(key))
            });
            prop_assert!(held || !refused);
        }
    }

    #[test]
    fn only_what_is_really_gone_is_removed((desired, live) in case()) {
        for action in all(&desired, &live).actions {
            let gone = !desired.jails.contains_key(&action.name) && !desired.broken.contains_key(&action.name);
            prop_assert_eq!(action.kind == ActionKind::Remove, gone);
            prop_assert!(desired.complete || !gone);
        }
    }

    #[test]
    fn nothing_running_is_interrupted_without_restarts((desired, live) in case()) {
        let plan = plan(&desired, &live, &Options { no_restart: true, ..Options::default() });
        for action in plan.actions {
            let runs = live.jails.get(&action.name).is_some_and(|seen| super::judge::runs(&seen.state));
            prop_assert!(!(runs && action.has_stop() && action.has_start()), "{action:?}");
        }
    }

    #[test]
    fn nothing_starts_before_what_it_depends_on((desired, live) in case()) {
        let plan = all(&desired, &live);
        let after = simulate(&plan, &live, &desired);
        let order: Vec<_> = plan.halves().into_iter().map(|(action, half)| (&action.name, half)).collect();
        let at = |name: &JailName, half| order.iter().position(|step| *step == (name, half));
        for action in plan.actions.iter().filter(|action| action.starts()) {
            for below in super::order::depends(&desired, &live)[&action.name].iter() {
                prop_assert!(super::judge::runs(&after.jails[below].state), "{} without {below}", action.name);
                if action.start_after.contains(below) {
                    let (below, own) = (at(below, super::Half::Start), at(&action.name, super::Half::Start));
                    prop_assert!(below < own);
                }
            }
        }
    }
}
