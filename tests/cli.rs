//! The program itself, as far as it goes without being root: arguments, exit statuses, and what
//! is on which stream.

use std::fs;
use std::path::Path;

use assert_cmd::Command;
use serde_json::Value;
use tempfile::TempDir;

/// Directories of its own, so that nothing of the host is read or made.
struct Place {
    directory: TempDir,
}

/// What one call came to.
struct Said {
    status: i32,
    out: String,
    err: String,
}

impl Place {
    fn new() -> Self {
        let place = Self { directory: tempfile::tempdir().expect("a directory") };
        fs::create_dir_all(place.path().join("etc/jails.d")).expect("a config directory");
        place
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn jail(&self, name: &str, text: &str) -> &Self {
        fs::write(self.path().join(format!("etc/jails.d/{name}.toml")), text).expect("a definition");
        self
    }

    fn call(&self, arguments: &[&str]) -> Said {
        let mut command = Command::cargo_bin("stockade").expect("the program is built");
        for (flag, name) in
            [("--config-dir", "etc"), ("--state-dir", "state"), ("--run-dir", "run"), ("--log-dir", "log")]
        {
            command.arg(flag).arg(self.path().join(name));
        }
        let output = command.args(arguments).env("NO_COLOR", "1").output().expect("the program runs");
        Said {
            status: output.status.code().expect("no signal ends it"),
            out: String::from_utf8(output.stdout).expect("UTF-8"),
            err: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

const GOOD: &str = "template = \"host\"\n[exec]\ncommand = [\"/bin/sleep\", \"inf\"]\n";

#[test]
fn wrong_usage_is_status_2() {
    let place = Place::new();
    for arguments in [
        &["no-such-verb"][..],
        &[],
        &["start"],
        &["logs"],
        &["logs", "-n", "many", "web"],
        &["exec", "web"],
        &["template"],
        &["completions", "tcsh-ish"],
        &["--no-such-flag", "ls"],
    ] {
        let said = place.call(arguments);
        assert_eq!((said.status, said.out.as_str()), (2, ""), "{arguments:?}: {}", said.err);
        assert!(said.err.contains("--help"), "{arguments:?}: {}", said.err);
    }
}

#[test]
fn help_and_version_go_to_standard_output() {
    let place = Place::new();
    for arguments in [&["--help"][..], &["--version"], &["logs", "--help"]] {
        let said = place.call(arguments);
        assert_eq!((said.status, said.err.as_str()), (0, ""), "{arguments:?}");
        assert!(said.out.contains("stockade"), "{}", said.out);
    }
    assert!(!place.call(&["--help"]).out.contains(" man "), "the hidden verb stays hidden");
}

#[test]
fn check_counts_or_cites() {
    let place = Place::new();
    place.jail("web", GOOD);
    let said = place.call(&["check"]);
    assert_eq!((said.status, said.out.as_str()), (0, "1 jail, no errors\n"), "{}", said.err);
    place.jail("db", "template = \"host\"\n[limits]\nmemroy = \"1G\"\n");
    let said = place.call(&["check"]);
    assert_eq!((said.status, said.out.as_str()), (3, ""));
    assert!(said.err.contains("jails.d/db.toml:3:1: error: "), "{}", said.err);
    assert!(said.err.contains("did you mean `memory`?"), "{}", said.err);
}

#[test]
fn check_takes_files_from_anywhere() {
    let place = Place::new();
    let file = place.path().join("draft.toml");
    fs::write(&file, "template = \"hots\"\n").expect("a file");
    let said = place.call(&["check", file.to_str().expect("UTF-8")]);
    assert_eq!(said.status, 3, "{}", said.err);
    assert!(said.err.contains("draft.toml:1:"), "{}", said.err);
    fs::write(&file, GOOD).expect("a file");
    assert_eq!(place.call(&["check", file.to_str().expect("UTF-8")]).status, 0);
}

#[test]
fn errors_are_json_where_json_is_asked_for() {
    let place = Place::new();
    let said = place.jail("db", "limits = 3\n").call(&["check", "--json"]);
    assert_eq!(said.status, 3);
    let found = envelope(&said.err, "diagnostics");
    assert!(found.iter().any(|item| item["line"] == 1 && item["file"].is_string()), "{}", said.err);
    let said = place.call(&["explain", "limits.memroy", "--json"]);
    assert_eq!(said.status, 1);
    assert!(envelope(&said.err, "errors")[0]["message"].as_str().is_some_and(|text| text.contains("memory")));
}

#[test]
fn a_config_directory_that_is_missing_is_named() {
    let place = Place::new();
    fs::remove_dir_all(place.path().join("etc")).expect("removed");
    let said = place.call(&["check"]);
    assert_eq!(said.status, 3);
    assert!(said.err.contains("/etc: error: there is no such directory"), "{}", said.err);
    assert!(said.err.contains("nothing is removed as long as it cannot be read"), "{}", said.err);
}

#[test]
fn keys_are_explained() {
    let place = Place::new();
    let said = place.call(&["explain", "limits.memory"]);
    assert_eq!(said.status, 0);
    assert!(said.out.starts_with("limits.memory: ") && said.out.contains("change   live"), "{}", said.out);
    assert!(place.call(&["explain"]).out.lines().any(|line| line.starts_with("exec.command ")));
    assert!(place.call(&["explain", "limits"]).out.contains("limits.cpu"));
    let said = place.call(&["explain", "limits.memroy"]);
    assert_eq!((said.status, said.out.as_str()), (1, ""));
    assert_eq!(said.err, "stockade: no key is named `limits.memroy` (did you mean `limits.memory`?)\n");
    let keys = envelope(&place.call(&["explain", "--json"]).out, "keys");
    assert!(keys.iter().all(|key| key["name"].is_string() && key["cost"].is_string()));
}

#[test]
fn schema_manual_and_completions_are_whole() {
    let place = Place::new();
    let schema: Value = serde_json::from_str(&place.call(&["schema"]).out).expect("JSON");
    assert!(schema["properties"]["limits"]["properties"]["memory"].is_object());
    for (of, key) in [("jail", "limits"), ("template", "base"), ("host", "bridge")] {
        let schema: Value = serde_json::from_str(&place.call(&["schema", of]).out).expect("JSON");
        assert!(schema["properties"][key].is_object(), "{of}");
    }
    assert_eq!(place.call(&["schema", "jial"]).status, 2);
    assert!(place.call(&["man"]).out.contains(".It Cm limits.memory\n"));
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let said = place.call(&["completions", shell]);
        assert!(said.status == 0 && said.out.contains("STOCKADE_COMPLETE"), "{shell}");
    }
}

#[test]
fn a_completion_knows_jails_templates_and_keys() {
    let place = Place::new();
    place.jail("web", GOOD);
    let check = |line: &[&str], expect: &str| {
        let mut command = Command::cargo_bin("stockade").expect("the program is built");
        command.env("STOCKADE_COMPLETE", "bash").env("STOCKADE_CONFIG_DIR", place.path().join("etc"));
        command.env("_CLAP_COMPLETE_INDEX", (line.len() - 1).to_string()).arg("--").args(line);
        let output = command.output().expect("the program runs");
        let said = String::from_utf8(output.stdout).expect("text");
        assert!(said.lines().any(|word| word == expect), "{line:?}: {said}");
    };
    check(&["stockade", "show", "w"], "web");
    check(&["stockade", "run", ""], "host");
    check(&["stockade", "explain", "limits.m"], "limits.memory");
    check(&["stockade", "explain", "base.d"], "base.directory");
    check(&["stockade", "schema", "t"], "template");
    check(&["stockade", "des"], "destroy");
}

#[test]
fn a_stranger_has_no_logs_and_a_jail_may_have_none() {
    let place = Place::new();
    let said = place.jail("web", GOOD).call(&["logs", "wbe"]);
    assert_eq!(
        (said.status, said.err.as_str()),
        (1, "stockade: no jail is named `wbe` (did you mean `web`?)\n")
    );
    let said = place.call(&["logs", "web"]);
    assert_eq!((said.status, said.out.as_str(), said.err.as_str()), (0, "", ""));
    assert_eq!(place.call(&["logs", "No Name"]).status, 1);
}

#[test]
fn logs_come_oldest_first_and_as_asked() {
    let place = Place::new();
    let log = place.path().join("log");
    fs::create_dir(&log).expect("a directory");
    fs::write(log.join("web.log.1"), "2026-11-23T22:30:00.000001Z one\n").expect("a log");
    fs::write(
        log.join("web.log"),
        "2026-11-23T22:30:01.000001Z two\x1b[1m\n2026-11-23T22:30:02.000001Z three\n",
    )
    .expect("a log");
    for (arguments, expect) in [
        (&["--no-time"][..], "one\ntwo\x1b[1m\nthree\n"),
        (&["--no-time", "-n", "1"], "three\n"),
        (&["--no-time", "-n", "0"], ""),
        (&["--no-time", "--since", "2026-11-23T22:30:01Z"], "two\x1b[1m\nthree\n"),
        (&["-n", "1"], "2026-11-23T22:30:02.000001Z three\n"),
    ] {
        let said = place.call(&[&["logs", "web"], arguments].concat());
        assert_eq!((said.status, said.out.as_str()), (0, expect), "{arguments:?}: {}", said.err);
    }
    let said = place.call(&["logs", "web", "--json", "-n", "2"]);
    let lines: Vec<Value> =
        said.out.lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect();
    assert_eq!(lines[0]["text"], "two\u{1b}[1m");
    assert_eq!(lines[1]["time"], "2026-11-23T22:30:02.000001Z");
    let said = place.call(&["logs", "web", "--since", "yesterday"]);
    assert_eq!(said.status, 1);
    assert!(said.err.contains("--since yesterday: "), "{}", said.err);
}

#[test]
fn doctor_gives_a_remedy_for_all_that_is_wrong() {
    let place = Place::new();
    let said = place.call(&["doctor", "--json"]);
    let lines = envelope(&said.out, "doctor");
    let fatal = lines.iter().any(|line| line["verdict"] == "no");
    assert_eq!(said.status, i32::from(fatal), "{}", said.out);
    for line in &lines {
        let well = line["verdict"] == "ok";
        assert_eq!(line["remedy"].is_null(), well, "{line}");
    }
    assert_eq!(lines.iter().any(|line| line["what"] == "root" && line["verdict"] == "no"), !is_root());
    assert!(!place.path().join("state").exists() && !place.path().join("run").exists(), "it only looks");
}

/// What follows looks at cgroups and makes directories that only root may make.
fn rooted(test: &str) -> bool {
    if !is_root() {
        assert!(std::env::var_os("STOCKADE_TEST_MUST_RUN").is_none_or(|v| v != "1"), "{test} needs root");
        eprintln!("{test}: skipped, needs root");
    }
    is_root()
}

#[test]
fn verbs_that_look_speak_json() {
    if !rooted("verbs_that_look_speak_json") {
        return;
    }
    let place = Place::new();
    place.jail("web", GOOD).jail("db", GOOD);
    for (arguments, kind, count) in [
        (&["ls"][..], "jails", 2),
        (&["show", "web"], "jail", 1),
        (&["status"], "status", 1),
        (&["template", "ls"], "templates", 1),
        (&["gc", "-n"], "garbage", 0),
    ] {
        let said = place.call(&[arguments, &["--json"]].concat());
        assert_eq!(said.status, 0, "{arguments:?}: {}", said.err);
        assert_eq!(envelope(&said.out, kind).len(), count, "{arguments:?}: {}", said.out);
    }
}

#[test]
fn plan_says_by_its_status_what_there_is_to_do() {
    if !rooted("plan_says_by_its_status_what_there_is_to_do") {
        return;
    }
    let place = Place::new();
    let said = place.call(&["plan"]);
    assert_eq!((said.status, said.out.as_str()), (0, "No changes.\n"), "{}", said.err);
    let said = place.jail("web", GOOD).call(&["plan"]);
    assert_eq!(said.status, 4, "{}", said.err);
    assert!(
        said.out.ends_with("Plan: 1 to create, 0 to change, 0 to restart, 0 to remove.\n"),
        "{}",
        said.out
    );
    assert_eq!(place.call(&["plan", "--only", "wbe"]).status, 1);
    let said = place.jail("db", "nonsense\n").call(&["plan"]);
    assert_eq!(said.status, 3);
    assert!(said.out.contains("+ web") && said.err.contains("db.toml:1:"), "{}{}", said.out, said.err);
}

#[test]
fn destroy_wants_consent_and_a_known_name() {
    if !rooted("destroy_wants_consent_and_a_known_name") {
        return;
    }
    let place = Place::new();
    let said = place.jail("web", GOOD).call(&["destroy", "wbe", "--yes"]);
    assert_eq!(said.status, 1);
    assert!(said.err.contains("did you mean `web`?"), "{}", said.err);
    let own = place.path().join("state/jails/web/upper");
    fs::create_dir_all(&own).expect("a directory");
    let log = place.path().join("log/web.log");
    fs::write(&log, "").expect("a log");
    let said = place.call(&["destroy", "web"]);
    assert_eq!(said.status, 2);
    assert!(said.err.contains("give --yes") && said.err.contains("still defined"), "{}", said.err);
    assert!(own.exists() && log.exists());
    let said = place.call(&["destroy", "web", "--yes", "--json"]);
    assert_eq!(said.status, 0, "{}", said.err);
    assert_eq!(envelope(&said.out, "destroyed")[0]["destroyed"], true);
    assert!(!place.path().join("state/jails/web").exists() && !log.exists());
    assert!(!place.path().join("run/locks/web").exists());
}

#[test]
fn a_disabled_jail_is_not_started_silently() {
    if !rooted("a_disabled_jail_is_not_started_silently") {
        return;
    }
    let place = Place::new();
    place.jail("db", &format!("enabled = false\n{GOOD}")).jail("web", &format!("depend = [\"db\"]\n{GOOD}"));
    let said = place.call(&["start", "web"]);
    assert_eq!(said.status, 1);
    assert!(said.err.contains("db: it is disabled"), "{}", said.err);
}

#[test]
fn gc_removes_what_nothing_uses_and_no_more() {
    if !rooted("gc_removes_what_nothing_uses_and_no_more") {
        return;
    }
    let place = Place::new();
    assert_eq!(place.call(&["template", "build", "host"]).status, 0);
    let old = place.path().join("state/layers").join(format!("sha256-{}", "0".repeat(64)));
    let half = place.path().join("state/layers/.building-sha256-1");
    let dead = place.path().join("run/jails/dead");
    for directory in [&old, &half, &dead] {
        fs::create_dir_all(directory).expect("a directory");
    }
    fs::write(place.path().join("run/locks/gone"), "").expect("a lock");
    let kinds = |said: &Said| -> Vec<String> {
        let items = envelope(&said.out, "garbage");
        items.iter().map(|item| item["kind"].as_str().expect("a kind").to_owned()).collect()
    };
    let expect = ["layer", "half-built layer", "run directory", "lock"];
    assert_eq!(kinds(&place.call(&["gc", "-n", "--json"])), expect);
    assert!(old.exists() && half.exists() && dead.exists(), "only said");
    let said = place.call(&["gc", "--json"]);
    assert_eq!((said.status, kinds(&said)), (0, expect.map(str::to_owned).to_vec()), "{}", said.err);
    assert!(!old.exists() && !half.exists() && !dead.exists());
    assert_eq!(place.call(&["gc"]).out, "Nothing to remove.\n");
    let layers = envelope(&place.call(&["template", "ls", "--json"]).out, "templates")[0]["layers"].clone();
    assert_eq!(layers[0]["built"], true, "{layers}");
}

fn envelope(text: &str, kind: &str) -> Vec<Value> {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!((&value["schema"], &value["kind"]), (&Value::from(1), &Value::from(kind)), "{text}");
    value["items"].as_array().expect("a list").clone()
}
