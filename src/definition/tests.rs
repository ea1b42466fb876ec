use super::*;

fn parsed(text: &str) -> (RawDefinition, Vec<Diagnostic>) {
    let (definition, found) = parse(Path::new("web.toml"), text);
    (definition.expect("web is a jail's name"), found)
}

fn value(text: &str, key: &'static str) -> Option<Value> {
    let (definition, found) = parsed(text);
    assert!(found.is_empty(), "{text}: {found:?}");
    definition.entries.get(&(key, String::new())).and_then(|entry| entry.value.clone())
}

#[test]
fn values_have_their_normal_form() {
    let check = |text: &str, key, expect: Value| assert_eq!(value(text, key), Some(expect), "{text}");
    check("limits.memory = \"512M\"", "limits.memory", 536_870_912_u64.into());
    check("limits.cpu = 2", "limits.cpu", 2000.into());
    check("[limits]\ncpu = 1.5", "limits.cpu", 1500.into());
    check("limits.cpuset = \"3,0-2\"", "limits.cpuset", "0-3".into());
    check("exec = { timeout = \"1m\" }", "exec.timeout", 60_000.into());
    check("exec.stop_signal = \"SIGINT\"", "exec.stop_signal", "INT".into());
    check("path = \"/srv//x/\"", "path", "/srv/x".into());
    check("allow.jails = 0", "allow.jails", 0.into());
    let mount = serde_json::json!([{ "source": "/a", "target": "/b" }]);
    check("[[mount]]\nsource = \"/a\"\ntarget = \"/b/\"", "mount", mount);
}

#[test]
fn members_are_entries_of_their_own() {
    let (definition, found) = parsed("[exec.env]\nLANG = \"C\"\n[vars.db]\nport = 1\n");
    assert!(found.is_empty(), "{found:?}");
    let names: Vec<String> = definition.entries.values().map(|entry| entry.name()).collect();
    assert_eq!(names, ["exec.env.LANG", "vars.db"]);
}

#[test]
fn expressions_wait_without_a_complaint() {
    let (definition, found) = parsed("limits.memory = \"{{ vars.m }}M\"\ndepend = [\"{{ name }}-db\"]\n");
    assert!(found.is_empty(), "{found:?}");
    assert!(definition.entries.values().all(|entry| entry.deferred && entry.value.is_none()));
}

#[test]
fn leftovers_are_known() {
    for name in
        [".web.toml.swp", "web.toml~", "web.bak", "web.toml.dpkg-new", "web.toml.rpmsave", "#web#", "4913"]
    {
        assert!(is_leftover(name), "{name}");
    }
    for name in ["web.toml", "rpm.toml", "4913.toml", "notes"] {
        assert!(!is_leftover(name), "{name}");
    }
}

#[test]
fn no_text_makes_the_reader_panic() {
    use proptest::prelude::*;
    proptest!(ProptestConfig::with_cases(300), |(text in "[a-z.= \\[\\]{}\"0-9\n'#\u{e9}-]{0,120}")| {
        let (_, found) = parse(Path::new("web.toml"), &text);
        for diagnostic in found {
            prop_assert!(!diagnostic.render(false).is_empty());
        }
        parse_host(Path::new("stockade.toml"), &text);
    });
}
