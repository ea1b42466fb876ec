use serde_json::json;

use super::*;
use crate::jail::{JailName, Settings};

const FILE: &str = "/etc/stockade/templates/web/template.toml";

fn entry(path: &str, text: Option<&str>) -> TemplateEntry {
    let text = text.map(str::to_owned);
    TemplateEntry { path: path.into(), mode: 0o644, size: 3, inode: 7, text, ..TemplateEntry::default() }
}

fn entries() -> Vec<TemplateEntry> {
    vec![
        entry("nginx.conf.tera", Some("workers {{ vars.workers }};\n")),
        entry("files/etc/motd", None),
        entry("files/etc/app.conf.tera", Some("name = {{ name }}\n")),
        TemplateEntry { kind: EntryKind::Directory, mode: 0o755, ..entry("files/etc", None) },
        TemplateEntry { kind: EntryKind::Link("motd".into()), ..entry("files/etc/issue", None) },
    ]
}

#[track_caller]
fn good(file: &str, text: &str, entries: &[TemplateEntry]) -> Template {
    let (template, wrong) = parse(Path::new(file), text, entries);
    assert_eq!(wrong, [], "{text}");
    template.expect("a template without a diagnostic is given")
}

#[track_caller]
fn check_wrong(text: &str, expect: &[&str]) {
    let (template, wrong) = parse(Path::new(FILE), text, &entries());
    assert!(template.is_none(), "{text}");
    let all: Vec<String> = wrong
        .iter()
        .map(|d| format!("{}:{}: {} {}", d.line, d.column, d.message, d.help.clone().unwrap_or_default()))
        .collect();
    assert_eq!(all.len(), expect.len(), "{all:?}");
    for (found, wanted) in all.iter().zip(expect) {
        assert!(found.contains(wanted), "{found:?} lacks {wanted:?}");
    }
}

#[test]
fn bases_are_read() {
    let base = |text: &str| good(FILE, &format!("[base]\n{text}\n"), &[]).base;
    assert_eq!(base("host = true"), Base::Host);
    assert_eq!(base("template = 'debian'"), Base::Template("debian".into()));
    let directory = Base::Directory { path: "/srv/base".into(), version: "2".into() };
    assert_eq!(base("directory = '/srv/base'\nversion = '2'"), directory);
    let digest = "AB".repeat(32);
    let path = PathBuf::from("/etc/stockade/templates/web/base.tar.zst");
    let tar = Base::Tar { path, sha256: Some(digest.to_lowercase()) };
    assert_eq!(base(&format!("tar = 'base.tar.zst'\nsha256 = '{digest}'")), tar);
}

#[test]
fn what_is_wrong_is_said_at_its_place() {
    check_wrong("", &["0:0: `[base]` is missing"]);
    check_wrong("[base]\n", &["1:1: `[base]` says none"]);
    check_wrong("[base]\nhost = false", &["2:8: `host` is either"]);
    check_wrong("[base]\nhost = true\ntar = 'x'", &["both `host` and `tar`"]);
    check_wrong("[base]\nhots = true\nhost = true", &["2:1: unknown key `hots` did you mean `host`?"]);
    check_wrong("[base]\ntar = 3", &["2:7: this has to be a string, not integer"]);
    check_wrong("[base]\ntar = 'x'\nsha256 = 'zz'", &["3:10: this has to be 64"]);
    check_wrong("[base]\nhost = true\nsha256 = 'zz'", &["3:1: `sha256` goes with `tar`"]);
    check_wrong("[base]\noci = true", &["2:7: this has to be a string"]);
    check_wrong("[base]\noci = 'x'\nsetuid = 'no'", &["3:10: this has to be true or false, not string"]);
    check_wrong("[base]\noci = 'x'\nreference = 3", &["3:13: this has to be a string"]);
    check_wrong(
        "[base]\nhost = true\nreference = 'x'",
        &["3:1: `reference` goes with `oci`, not with `host`"],
    );
    check_wrong("[base]\nhost = true\nsetuid = true", &["3:1: `setuid` goes with `tar` and `oci` and"]);
    check_wrong(
        "[base]\ntemplate = 'a'\ndevices = true",
        &["3:1: beside a template, `devices` goes with `chan"],
    );
    check_wrong("[base]\ntar = 'x'\ncapabilities = 1", &["3:16: this has to be true or false"]);
    check_wrong("[base]\nhost = true\n[[fiel]]\n", &["3:3: unknown key `fiel` did you mean `file`?"]);
    check_wrong("[base]\nhost = = true\nb = [\n", &["2:8: ", "3:6: "]);
}

#[test]
fn nothing_in_debootstrap_can_be_an_option() {
    let base = |text: &str| good(FILE, &format!("[base]\ndebootstrap = {{ {text} }}\n"), &[]).base;
    let text = "suite = 'trixie', variant = 'minbase', include = ['nginx', 'g++', 'libc6:i386'], arch = 'arm64',
        mirror = 'https://deb.example.org/debian?x=1', components = ['main', 'non-free/x'], keyring = 'k.gpg'";
    let text = text.replace('\n', " ");
    let Base::Debootstrap { wanted, .. } = base(&text) else { panic!("another base") };
    assert_eq!((wanted.include.len(), wanted.variant.as_deref()), (3, Some("minbase")));
    assert_eq!(wanted.keyring.as_deref(), Some(Path::new("/etc/stockade/templates/web/k.gpg")));
    let check = |text: &str, expect: &str| check_wrong(&format!("[base]\ndebootstrap = {text}"), &[expect]);
    check("'trixie'", "2:15: this has to be a table such as");
    check("{}", "2:15: `suite` is missing");
    for suite in ["-x", "--hook=x", "a b", "a/../b", "$(x)", "a\\nb", "", "/etc"] {
        check_wrong(&format!("[base]\ndebootstrap = {{ suite = \"{suite}\" }}"), &["2:25: this "]);
    }
    for (rest, expect) in [
        ("variant = 'minimal'", "one of the variants apt, buildd"),
        ("variant = 'custom'", "one of the variants"),
        ("include = 'nginx'", "a list of strings"),
        ("include = ['?essential']", "the name of a package"),
        ("include = ['-x']", "the name of a package"),
        ("include = ['a,b']", "the name of a package"),
        ("include = ['./x.deb']", "the name of a package"),
        ("mirror = 'ftp://x'", "a URL"),
        ("mirror = 'deb http://x x main'", "a URL"),
        ("mirror = 'http://'", "a URL"),
        ("mirror = 'http://x\"y'", "a URL"),
        ("mirror = '/etc/shadow'", "a URL"),
        ("arch = '--x'", "an architecture"),
        ("components = ['-x']", "a component"),
        ("hook = 'x'", "unknown key `hook`"),
        ("keyring = 3", "this has to be a string"),
    ] {
        check(&format!("{{ suite = 'x', {rest} }}"), expect);
    }
    check_wrong("[base]\nhost = true\nversion = '1'", &["`version` goes with `directory` and `debootstrap`"]);
}

#[test]
fn what_is_run_in_a_build_is_checked() {
    let check =
        |text: &str, expect: &str| check_wrong(&format!("[base]\nhost = true\n[build]\n{text}"), &[expect]);
    check("network = true", "3:1: `run` is missing");
    check("run = 'x'", "4:7: this has to be a list of lines");
    check("run = []", "4:7: this has to be 1 to 100 lines");
    check("run = ['x', ' ']", "4:13: a line has 1 to");
    check("run = ['x']\nnetwork = 'yes'", "5:11: this has to be true or false");
    check("run = ['x']\nenv = { '1' = 'x' }", "5:9: `1` is not the name");
    check("run = ['x']\nenv = ['x']", "5:7: this has to be a table");
    check("run = ['x']\ntimeout = '0s'", "5:11: a build may take");
    check("run = ['x']\ntimeout = '3 weeks'", "5:11: ");
    check("run = ['x']\ntimeuot = '3s'", "did you mean `timeout`?");
}

#[test]
fn a_build_is_named_by_what_it_stands_on_and_runs() {
    let id = |base: &str, build: &str| {
        let all = templates(&[("b", &format!("[base]\n{base}\n[build]\n{build}"), &entries())]);
        let layers = layers(&all, "b").expect("good");
        assert!(matches!(layers[1].source, LayerSource::Build(_)), "files lie over the build");
        layers[1].id.clone()
    };
    let same = id("host = true", "run = ['a', 'b']");
    assert_eq!(same, id("host = true", "run = ['a', 'b']\ntimeout = '5s'\nnetwork = false"));
    let other = [
        id("host = true", "run = ['a b']"),
        id("host = true", "run = ['b', 'a']"),
        id("host = true", "run = ['a', 'b']\nnetwork = true"),
        id("host = true", "run = ['a', 'b']\nenv = { A = 'b' }"),
        id("host = true", "run = ['a']\nenv = { b = '' }"),
        id("template = 'host'", "run = ['a']"),
        id("debootstrap = { suite = 'a' }", "run = ['a', 'b']"),
        id("debootstrap = { suite = 'a' }\nversion = '2'", "run = ['a', 'b']"),
    ];
    let all: BTreeSet<&String> = other.iter().chain([&same]).collect();
    assert_eq!(all.len(), 9);
}

#[test]
fn what_an_import_writes_is_a_template() {
    let layer = |digit: &str| imported::Brought {
        id: format!("sha256-{}", "f".repeat(64)),
        content: format!("sha256-{}", digit.repeat(64)),
        entries: 1,
        bytes: 1,
        devices: false,
    };
    let file = |target: &str, is_expression, on_change| imported::File {
        target: target.into(),
        is_expression,
        mode: 0o4750,
        uid: 5,
        gid: 65_535,
        on_change,
    };
    let run = Run {
        user: "www".into(),
        workdir: "/srv".into(),
        env: vec![("A".into(), "a = \"b\"\n[base]".into()), ("B".into(), String::new())],
        command: vec!["sh".into(), "-c".into(), String::new()],
    };
    let mut alone = imported::Alone {
        layers: vec![layer("a"), layer("b")],
        host: false,
        run: Some(run.clone()),
        files: vec![
            file("/etc/\"odd\"\nname", true, OnChange::Reload(vec!["kill".into(), "-HUP 1".into()])),
            file("/etc/plain", false, OnChange::None),
        ],
    };
    let entries = [entry("file-0.tera", Some("{{ name }}")), entry("file-1", Some("{{ name }}"))];
    let text = imported::text(&alone).expect("text");
    let template = good(FILE, &text, &entries);
    assert_eq!(template.base, Base::Imported);
    assert_eq!(template.image.as_ref().map(|image| &image.run), Some(&run));
    for (found, wanted) in template.rendered.iter().zip(&alone.files) {
        assert_eq!(
            (&found.target, found.is_expression, found.mode, found.uid, found.gid, &found.on_change),
            (&wanted.target, wanted.is_expression, wanted.mode, wanted.uid, wanted.gid, &wanted.on_change)
        );
    }
    let ids = |text: &str| -> Vec<String> {
        let all = templates(&[("t", text, &entries)]);
        layers(&all, "t").expect("good").into_iter().map(|layer| layer.id).collect()
    };
    let brought: Vec<String> = alone.layers.iter().map(|layer| layer.content.clone()).collect();
    assert_eq!(ids(&text), brought);
    (alone.host, alone.run) = (true, None);
    let over = ids(&imported::text(&alone).expect("text"));
    assert!(over.len() == 3 && over[..2] == brought, "over the host's own: {over:?}");
}

#[test]
fn the_layers_of_an_import_are_named_as_layers_are() {
    check_wrong("[base]\nlayers = []", &["2:10: this has to be a list of 1 to 250 layers"]);
    check_wrong("[base]\nlayers = ['../x']", &["2:11: this has to be the name of a layer"]);
    check_wrong("[base]\nlayers = 'x'", &["2:10: this has to be a list"]);
    check_wrong("[base]\ntar = 'x'\nlayers = ['x']", &["2:1: `[base]` has both `layers` and `tar`"]);
    check_wrong("[base]\nhost = true\nrun = {}", &["3:1: `run` goes with `layers`, not with `host`"]);
    let layers = format!("[base]\nlayers = ['sha256-{}']\n", "a".repeat(64));
    check_wrong(&format!("{layers}run = {{ comand = ['x'] }}"), &["3:9: unknown key `comand`"]);
    check_wrong(
        &format!("{layers}run = {{ command = 'x' }}"),
        &["3:19: this has to be a list with a command"],
    );
}

#[test]
fn what_is_kept_of_an_archive_is_part_of_its_layers_name() {
    let digest = "0".repeat(64);
    for base in [
        format!("tar = 'x'\nsha256 = '{digest}'"),
        format!("template = 'host'\nchanges = 'x'\nsha256 = '{digest}'"),
    ] {
        let id = |more: &str| {
            let all = templates(&[("t", &format!("[base]\n{base}\n{more}"), &[])]);
            layers(&all, "t").expect("good")[0].id.clone()
        };
        let more = [
            "",
            "setuid = false",
            "devices = true",
            "capabilities = true",
            "devices = true\ncapabilities = true",
        ];
        let all: BTreeSet<String> = more.iter().map(|more| id(more)).collect();
        assert_eq!(all.len(), more.len(), "{base}");
        assert_eq!(id(""), id("setuid = true\ndevices = false\ncapabilities = false"));
    }
}

#[test]
fn wrong_files_are_said_at_their_place() {
    let check =
        |file: &str, expect: &[&str]| check_wrong(&format!("[base]\nhost=true\n[[file]]\n{file}"), expect);
    check("", &["`source` is missing", "`target` is missing"]);
    check("source='nginx.conf.terra'\ntarget='/a'", &["4:8: there is no file"]);
    check("source='files/etc/motd'\ntarget='/a'", &["4:8: this was not read as text"]);
    let source = "source='nginx.conf.tera'\n";
    for (target, expect) in [
        ("a/b", "absolute"),
        ("/", "absolute"),
        ("/a/../b", "`..`"),
        ("/proc/x", "never be seen"),
        ("/etc/app.conf", "also comes from"),
    ] {
        check(&format!("{source}target='{target}'"), &[expect]);
    }
    let rest = |line: &str| format!("{source}target='/a'\n{line}");
    check(&rest("mode='0999'"), &["6:6: this has to be an octal mode"]);
    check(&rest("mode=644"), &["6:6: this has to be a string"]);
    check(&rest("owner=65536"), &["6:7: this has to be a number from 0 to 65535"]);
    check(&rest("owner=-1"), &["a number"]);
    check(&rest("on_change='reload'"), &["6:11: this has to be \"restart\""]);
    check(&rest("on_change={reload=[]}"), &["a list with a command"]);
    check(
        &rest("[[file]]\nsource='nginx.conf.tera'\ntarget='/a'"),
        &["8:8: /a is the target of two", "also comes"],
    );
}

fn jail(template: &str) -> Jail {
    let settings = Settings::from([("template".to_owned(), Value::from(template))]);
    Jail::from_settings(&JailName::new("web").expect("a name"), &settings).expect("a jail")
}

fn templates(list: &[(&str, &str, &[TemplateEntry])]) -> BTreeMap<String, Template> {
    let parsed = list.iter().map(|(name, text, entries)| {
        let file = format!("/t/{name}/template.toml");
        ((*name).to_owned(), good(&file, text, entries))
    });
    parsed.chain([(HOST.to_owned(), Template::host("stamp".into()))]).collect()
}

const WEB: &str =
    "[base]\ntemplate = 'host'\n[[file]]\nsource = 'nginx.conf.tera'\ntarget = '/etc/nginx.conf'
mode = '0600'\nowner = 33\non_change = { reload = ['nginx', '-s', 'reload'] }\n";

#[test]
fn a_root_is_layers_and_rendered_files() {
    let all = templates(&[("web", WEB, &entries())]);
    let variables = json!({"name": "web", "vars": {"workers": 2}});
    let root = root(&all, &jail("web"), &variables).expect("a root");
    assert!(root.host_usr);
    let [LayerSource::Files(files), LayerSource::Host] = [&root.layers[0].source, &root.layers[1].source]
    else {
        panic!("{:?}", root.layers)
    };
    let targets: Vec<_> = files.iter().map(|file| file.target.to_str().expect("text")).collect();
    assert_eq!(targets, ["/etc", "/etc/issue", "/etc/motd"]);
    assert_eq!(files[2].source, Path::new("/t/web/files/etc/motd"));
    let shown: Vec<_> = root
        .files
        .iter()
        .map(|f| {
            (
                f.target.to_str().expect("text"),
                String::from_utf8_lossy(&f.contents).into_owned(),
                f.mode,
                f.uid,
            )
        })
        .collect();
    let expect = [
        ("/etc/app.conf", "name = web\n".to_owned(), 0o644, 0),
        ("/etc/nginx.conf", "workers 2;\n".to_owned(), 0o600, 33),
    ];
    assert_eq!(shown, expect);
    assert_eq!(root.files[1].on_change, OnChange::Reload(vec!["nginx".into(), "-s".into(), "reload".into()]));
}

#[test]
fn a_layer_is_named_by_its_inputs_alone() {
    let variables = json!({"name": "web", "vars": {"workers": 2}});
    let ids = |entries: &[TemplateEntry], workers: u64| {
        let all = templates(&[("web", WEB, entries)]);
        let variables = json!({"name": "web", "vars": {"workers": workers}});
        let root = root(&all, &jail("web"), &variables).expect("a root");
        root.layers.into_iter().map(|layer| layer.id).collect::<Vec<_>>()
    };
    let first = ids(&entries(), 2);
    assert!(first.iter().all(|id| id.len() == 71 && id.starts_with("sha256-")));
    let mut reversed = entries();
    reversed.reverse();
    assert_eq!(ids(&reversed, 9), first);
    let mut touched = entries();
    touched[1].mtime_ns = 1;
    let second = ids(&touched, 2);
    assert!(second[0] != first[0] && second[1] == first[1]);
    let mut other = templates(&[]);
    other.insert(HOST.into(), Template::host("another".into()));
    assert_ne!(root(&other, &jail(HOST), &variables).expect("a root").layers[0].id, first[1]);
}

#[test]
fn a_child_hides_its_parents_files() {
    let base = [entry("files/etc/a.tera", Some("parent")), entry("files/etc/b.tera", Some("{{ nope }}"))];
    let child = [entry("files/etc/a.tera", Some("child")), entry("files/etc/b", None)];
    let all =
        templates(&[("base", "[base]\nhost = true", &base), ("child", "[base]\ntemplate = 'base'", &child)]);
    let root = root(&all, &jail("child"), &json!({})).expect("a root");
    assert_eq!(root.files.len(), 1);
    assert_eq!(root.files[0].contents, b"child");
    assert_eq!(root.layers.len(), 2);
}

#[track_caller]
fn check_no_root(list: &[(&str, &str, &[TemplateEntry])], name: &str, expect: &str) {
    let wrong = root(&templates(list), &jail(name), &json!({"name": "web"})).expect_err(expect);
    let summary = wrong[0].render(false);
    assert!(summary.contains(expect), "{summary}");
}

#[test]
fn a_root_that_cannot_be_says_why() {
    let a = ("a", "[base]\ntemplate = 'b'", &[] as &[TemplateEntry]);
    let b = ("b", "[base]\ntemplate = 'a'", &[] as &[TemplateEntry]);
    check_no_root(&[a, b], "a", "/t/b/template.toml:2:1: error: templates stand on each other: a -> b -> a");
    check_no_root(&[a], "a", "there is no template `b`");
    check_no_root(&[], "hots", "did you mean `host`?");
    let undefined = [entry("files/etc/x.tera", Some("one\n{{ nope }}\n"))];
    check_no_root(&[("c", "[base]\nhost = true", &undefined)], "c", "/t/c/files/etc/x.tera:2:4: error: ");
    let usr = [entry("files/usr/bin/x", None)];
    check_no_root(&[("d", "[base]\nhost = true", &usr)], "d", "/usr/bin/x is the host's own");
}
