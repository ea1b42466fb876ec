use super::*;
use crate::definition::{parse, parse_host};
use crate::keys::{Built, KEYS, Kind, Word};
use proptest::prelude::*;

/// Resolves jails and a host's file given as texts.
fn resolved(host: &str, jails: &[(&str, &str)]) -> (Desired, Vec<Diagnostic>) {
    let mut input = Input { complete: true, ..Input::default() };
    let (host, found) = parse_host(Path::new("stockade.toml"), host);
    input.host = host;
    input.diagnostics.extend(found);
    for (name, text) in jails {
        let (definition, found) = parse(Path::new(&format!("{name}.toml")), text);
        input.definitions.extend(definition);
        input.diagnostics.extend(found);
    }
    input.templates.insert("host".into(), Template::host("stamp".into()));
    resolve(input)
}

/// As above, with a template `image` whose image runs this.
fn of_image(run: template::Run, host: &str, jail: &str) -> (Desired, Vec<Diagnostic>) {
    let (definition, found) = parse(Path::new("web.toml"), jail);
    let image = template::Image { layers: Vec::new(), run };
    let base = template::Base::Oci { path: "image.tar".into(), reference: None };
    let template = Template { base, image: Some(image), ..Template::host(String::new()) };
    resolve(Input {
        host: parse_host(Path::new("stockade.toml"), host).0,
        definitions: definition.into_iter().collect(),
        templates: [("image".to_owned(), template)].into(),
        diagnostics: found,
        complete: true,
        ..Input::default()
    })
}

fn image_run() -> template::Run {
    let env = [("A", "{{ image }}"), ("B", "image"), ("not a name", "x")];
    template::Run {
        user: "33".into(),
        workdir: "/srv".into(),
        env: env.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        command: vec!["/bin/x".into(), "{{ y }}".into()],
    }
}

#[test]
fn an_images_own_words_are_defaults_below_all_others() {
    let jail = |host: &str, text: &str| {
        let (desired, found) = of_image(image_run(), host, &format!("template = \"image\"\n{text}"));
        assert!(!diagnostic::has_errors(&found), "{found:?}");
        desired.jails.into_values().next().expect("a good jail").jail
    };
    let bare = jail("", "");
    assert_eq!(bare.exec.command, ["/bin/x", "{{ y }}"]);
    assert_eq!(bare.exec.user.as_deref(), Some("33"));
    assert_eq!(bare.exec.workdir.as_deref(), Some(Path::new("/srv")));
    assert_eq!((&*bare.exec.env["A"], bare.exec.env.len()), ("{{ image }}", 2));
    let own =
        jail("[defaults.exec.env]\nB = \"host\"\n", "exec.command = [\"/own\"]\nexec.user = \"root\"\n");
    assert_eq!((&*own.exec.command, own.exec.user.as_deref()), (&["/own".to_owned()][..], Some("root")));
    assert_eq!(&*own.exec.env["B"], "host");
    let booted = jail("", "exec.boot = \"/sbin/init\"\n");
    assert_eq!((booted.exec.command.len(), booted.exec.user, booted.exec.workdir), (0, None, None));
    assert!(jail("", "persist = true\n").exec.command.is_empty());
}

#[test]
fn an_images_bad_word_counts_where_nobody_says_better() {
    let bad = || template::Run { user: "a b:c".into(), ..image_run() };
    let (desired, found) = of_image(bad(), "", "template = \"image\"\n");
    assert!(desired.jails.is_empty());
    assert!(found[0].message.contains("the image's own `exec.user`: `a b` is not a user name"), "{found:?}");
    let (desired, found) = of_image(bad(), "", "template = \"image\"\nexec.user = \"33\"\n");
    assert!(found.is_empty() && desired.jails.len() == 1, "{found:?}");
    let silent = template::Run { command: Vec::new(), ..image_run() };
    let (_, found) = of_image(silent, "", "template = \"image\"\n");
    assert!(found[0].message.contains("nothing to run"), "{found:?}");
}

const LEAST: &str = "template = \"host\"\nexec.command = [\"/bin/true\"]\n";

fn one(host: &str, more: &str) -> Jail {
    let (desired, found) = resolved(host, &[("web", &format!("{LEAST}{more}"))]);
    assert!(!diagnostic::has_errors(&found), "{found:?}");
    *desired.jails.into_values().next().expect("a jail without errors is desired").jail
}

#[test]
fn defaults_are_below_and_enforced_keys_above() {
    let host = "[defaults.limits]\nmemory = \"1G\"\nprocesses = 5\n[enforce.limits]\ncpu = 1\n\
                [defaults.exec.env]\nA = \"host\"\nB = \"host\"\n";
    let jail = one(host, "limits.memory = \"2G\"\nlimits.cpu = 4\nexec.env.A = \"own\"\n");
    assert_eq!(jail.limits.memory, Some(2 << 30));
    assert_eq!(jail.limits.processes, Some(5));
    assert_eq!(jail.limits.cpu, Some(1000));
    assert_eq!((&*jail.exec.env["A"], &*jail.exec.env["B"]), ("own", "host"));
}

#[test]
fn a_default_that_does_not_fit_gives_way() {
    let jail = one("[defaults.network]\nmode = \"vnet\"\nmtu = 1400\n", "network.mode = \"none\"\n");
    assert_eq!(jail.network.mtu, None);
    let jail = one("[defaults]\nexec.boot = \"/sbin/init\"\n", "");
    assert_eq!(jail.exec.boot, None);
    let jail = one("[defaults]\nlimits.swap = \"1G\"\n", "");
    assert_eq!(jail.limits.swap, None);
}

#[test]
fn expressions_see_one_another_in_the_right_order() {
    let jail = one(
        "",
        "host.hostname = \"{{ vars.b }}\"\nlimits.memory = \"{{ vars.mib }}M\"\n\
         vars = { a = \"{{ name }}-1\", b = \"{{ vars.a }}.example\", mib = 64 }\n\
         exec.env.LINE = \"{% if network.mode == 'none' %}off{% endif %} {{ host.hostname }}\"\n",
    );
    assert_eq!(jail.hostname(), "web-1.example");
    assert_eq!(jail.limits.memory, Some(64 << 20));
    assert_eq!(jail.exec.env["LINE"], "off web-1.example");
}

#[test]
fn a_broken_host_file_touches_no_jail() {
    let (desired, _) = resolved("[enforce.limits]\nmemroy = \"1G\"\n", &[("web", LEAST)]);
    assert!(desired.jails.is_empty() && !desired.complete);
    assert!(desired.broken.values().all(|why| why.starts_with("stockade.toml:2:1: ")));
}

#[test]
fn one_jails_error_leaves_the_others_alone() {
    let (desired, found) = resolved("", &[("a", "template = 3\n"), ("b", LEAST), ("c", LEAST)]);
    assert_eq!(desired.jails.len(), 2);
    assert_eq!(desired.broken.len(), 1);
    assert!(desired.complete && found.len() == 1, "{found:?}");
}

#[test]
fn flags_go_above_the_host_file_and_that_above_the_defaults() {
    let paths = Paths { run: "/flag".into(), ..Paths::default() };
    let (host, _) = parse_host(Path::new("f"), "run_dir = \"/file\"\nlog_dir = \"/file\"\n");
    let config = host_config(&paths, &host);
    let shown =
        [&config.paths.run, &config.paths.log, &config.paths.state].map(|path| path.display().to_string());
    assert_eq!(shown, ["/flag", "/file", "/var/lib/stockade"]);
    assert!(config.bridges.contains_key(BRIDGE));
}

#[test]
fn a_long_chain_of_jails_is_walked_without_recursion() {
    let names: Vec<String> = (0..5_000).map(|n| format!("j{n}")).collect();
    let text = |n: usize| format!("{LEAST}depend = [\"j{}\"]\n", n + 1);
    let texts: Vec<String> = (0..5_000)
        .map(|n| if n < 4_999 { text(n).replace("exec.", "\nexec.") } else { LEAST.into() })
        .collect();
    let jails: Vec<(&str, &str)> =
        names.iter().map(String::as_str).zip(texts.iter().map(String::as_str)).collect();
    let (desired, found) = resolved("", &jails);
    assert_eq!((desired.jails.len(), found.len()), (5_000, 0));
}

/// A value that the row accepts, as TOML.
fn written(key: &'static Key) -> BoxedStrategy<String> {
    match key.kind {
        Kind::Bool => any::<bool>().prop_map(|yes| yes.to_string()).boxed(),
        Kind::Size { .. } => (1..4096_u64).prop_map(|n| format!("\"{n}M\"")).boxed(),
        Kind::Duration { .. } => (1..600_u64).prop_map(|n| format!("\"{n}s\"")).boxed(),
        Kind::Cpus => (1..400_u32).prop_map(|n| format!("{}.{:02}", n / 100, n % 100)).boxed(),
        Kind::Count { min, max } => (min..=max.min(i64::MAX as u64)).prop_map(|n| n.to_string()).boxed(),
        Kind::Choice(words) => proptest::sample::select(words).prop_map(|word| format!("\"{word}\"")).boxed(),
        Kind::Text(word) => Just(format!("\"{}\"", sample(word))).boxed(),
        Kind::List { of, .. } => Just(format!("[\"{}\"]", sample(of))).boxed(),
        Kind::StringMap => Just("{ LANG = \"C\" }".to_owned()).boxed(),
        Kind::Rlimits => Just("{ nofile = 4096, stack = \"8M\", core = \"unlimited\" }".to_owned()).boxed(),
        Kind::Vars => Just("{ a = 1, b = [1.5, { c = 2020-01-01 }] }".to_owned()).boxed(),
        Kind::Tables(_) => {
            let tables = match key.name {
                "mount" => MOUNTS,
                "snapshot" => "[{ every = \"1h\", keep = 3 }, { every = \"1s\", label = \"often\" }]",
                _ => "[{ path = \"/\", read = \"1M\" }]",
            };
            Just(tables.to_owned()).boxed()
        }
        Kind::Jail | Kind::OnChange => unreachable!("no jail key holds such"),
    }
}

const MOUNTS: &str = "[{ source = \"/a\", target = \"/b\", options = [\"ro\"] }, { type = \"tmpfs\", target = \"/c\", options = [\"size=1M\"] }]";

fn sample(word: Word) -> &'static str {
    match word {
        Word::Line | Word::Argument => "true",
        Word::JailName | Word::Template => "host",
        Word::Path => "/srv/x",
        Word::CgroupPath => "stockade",
        Word::HostName => "a.example",
        Word::MachineId => "0123456789abcdef0123456789abcdef",
        Word::User => "1000",
        Word::Signal => "RTMIN+3",
        Word::CpuList => "0-1",
        Word::Interface => "stockade0",
        Word::Network => "10.77.3.4/16",
        Word::Ip => "10.77.3.1",
        Word::Mac => "02:00:00:00:00:01",
        Word::Publish => "8080:80",
        Word::MountOption => "ro",
        Word::Device => "/dev/fuse",
        Word::Capability => "!NET_RAW",
        Word::Unsafe => "host-root",
    }
}

use crate::keys::Key;

fn any_definition() -> impl Strategy<Value = Vec<(&'static str, String)>> {
    let rows: Vec<_> = KEYS
        .iter()
        .filter(|key| key.built != Built::Nothing && key.name != "depend")
        .map(|key| proptest::option::of(written(key).prop_map(move |text| (key.name, text))))
        .collect();
    rows.prop_map(|rows| rows.into_iter().flatten().collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// What has no error becomes a jail: the table of keys and the types agree.
    #[test]
    fn what_parses_becomes_a_jail(keys in any_definition()) {
        let lines: Vec<String> = keys.iter().map(|(name, value)| format!("{name} = {value}")).collect();
        let text = lines.join("\n");
        let (definition, found) = parse(Path::new("web.toml"), &text);
        let unbuilt = |found: &Diagnostic| found.message.contains("is not built yet");
        prop_assert!(found.iter().all(unbuilt), "{text}\n{found:?}");
        let definition = definition.expect("web is a jail's name");
        let name = definition.name.clone();
        let settings = expand::expand(&name, &definition.entries).settings;
        let jail = Jail::from_settings(&name, &settings);
        prop_assert!(jail.is_ok(), "{jail:?}");
        for (key, value) in &settings {
            prop_assert!(!crate::keys::show(key, value).is_empty());
        }
    }
}

#[test]
fn every_key_alone_reaches_its_field() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let bare = Jail::from_settings(&JailName::new("web").expect("web is a name"), &Settings::new());
    let bare = bare.expect("a jail of defaults");
    for key in KEYS {
        let differs = (0..50).any(|_| {
            let text = written(key).new_tree(&mut runner).expect("every row has a value").current();
            let (definition, _) = parse(Path::new("web.toml"), &format!("{} = {text}\n", key.name));
            let definition = definition.expect("web is a jail's name");
            let settings = expand::expand(&definition.name, &definition.entries).settings;
            Jail::from_settings(&definition.name, &settings).is_ok_and(|jail| jail != bare)
        });
        assert!(differs, "{} reaches no field of Jail", key.name);
    }
}
