//! `apply`: what it makes, what it leaves alone, and its exit statuses.

use std::process::Stdio;

use rustix::process::Signal;

use crate::machine::{Machine, kill, wait_gone};

pub const SLEEP: &str = "template = \"host\"\n[exec]\ncommand = [\"sleep\", \"1000\"]\n";

#[test]
fn a_second_apply_has_nothing_to_do() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("a", SLEEP);
    machine.jail("b", &format!("depend = [\"a\"]\n{SLEEP}"));
    machine.status(&["plan"], 4);
    let plan = machine.good(&["apply"]);
    assert!(plan.contains("Plan: 2 to create, 0 to change, 0 to restart, 0 to remove."), "{plan}");
    machine.status(&["plan"], 0);
    let pids = (machine.pid("a"), machine.pid("b"));
    assert_eq!(machine.good(&["apply"]), "No changes.\n");
    assert_eq!((machine.pid("a"), machine.pid("b")), pids, "nothing is restarted");
}

#[test]
fn a_file_that_is_gone_means_removal_and_a_directory_that_is_gone_does_not() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("a", SLEEP);
    machine.good(&["apply"]);
    let (etc, away) = (machine.config(), machine.path().join("away"));
    std::fs::rename(&etc, &away).unwrap();
    let output = machine.stockade(&["apply"]);
    std::fs::rename(&away, &etc).unwrap();
    assert!(!output.status.success(), "a missing directory is an error");
    assert_eq!(machine.state_of("a"), "running");
    machine.remove("a");
    machine.good(&["apply"]);
    assert_eq!(machine.state_of("a"), "stopped", "its data is kept, and so it is shown");
}

#[test]
fn a_broken_file_leaves_its_jail_and_the_others_up() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("a", SLEEP);
    machine.jail("b", SLEEP);
    machine.good(&["apply"]);
    let pid = machine.pid("a");
    machine.jail("a", "template = \"host\"\n[exec]\ncomand = [\"sleep\", \"1\"]\n");
    machine.jail("c", SLEEP);
    let said = machine.status(&["apply"], 3);
    assert!(said.contains("a.toml:3:1: error: "), "{said}");
    assert!(said.contains("did you mean `command`"), "{said}");
    assert_eq!((machine.pid("a"), machine.state_of("b").as_str()), (pid, "running"));
    assert_eq!(machine.state_of("c"), "running", "the rest is applied");
}

/// A jail that keeps nothing of its own, with a rendered file that its program needs.
pub fn with_a_rendered_file(machine: &Machine) -> String {
    let base = "[base]\nhost = true\n";
    let file = "[[file]]\nsource = 'word.tera'\ntarget = '/srv/word'\non_change = 'none'\n";
    machine.write("templates/word/word.tera", "{{ vars.word }}\n");
    machine.write("templates/word/template.toml", &format!("{base}{file}"));
    let (fail, words) =
        (machine.path().join("fail"), "command = ['sh', '-c', 'cat /srv/word && sleep 1000']");
    let exec = format!("[exec]\n{words}\nprestart = [\"test ! -e '{}'\"]\n", fail.display());
    let rest = "[root]\non_stop = 'discard'\n[restart]\ndelay = '100ms'\n[vars]\nword = 'one'\n";
    format!("template = 'word'\n{exec}{rest}")
}

#[test]
fn a_file_with_errors_keeps_no_crashed_jail_down() {
    let Some(machine) = Machine::new() else { return };
    let good = with_a_rendered_file(&machine);
    machine.jail("web", &good);
    machine.jail("app", &format!("depend = ['web']\n{SLEEP}"));
    machine.good(&["apply"]);
    // What the file said in between was applied, and is the last good definition.
    machine.jail("web", &good.replace("one", "two"));
    machine.good(&["apply"]);
    let first = machine.pid("web");
    machine.jail("web", &format!("{good}three\n"));
    kill(first, Signal::KILL);
    wait_gone(first);
    machine.wait_until("it runs again", || {
        let said = machine.status(&["apply"], 3);
        let is_told = said.contains("as it ran before: ") && said.contains("web.toml:11:6: ");
        assert!(is_told || said.contains("starts again in"), "{said}");
        machine.state_of("web") == "running"
    });
    assert_ne!(machine.pid("web"), first);
    assert_eq!(machine.good(&["exec", "web", "--", "cat", "/srv/word"]), "two\n");
    assert!(machine.status(&["plan"], 3).contains("No changes."));
    // By hand it stops, and does not start.
    for verb in ["start", "restart"] {
        let said = machine.status(&[verb, "web"], 3);
        assert!(said.contains("web: its file has errors: ") && said.contains("web.toml:11:6: "), "{said}");
    }
    // So it is of what depends on it.
    let app = machine.pid("app");
    kill(app, Signal::KILL);
    wait_gone(app);
    machine.wait_until("it runs again too", || {
        machine.status(&["apply"], 3);
        machine.state_of("app") == "running"
    });
    machine.good(&["stop", "web"]);
    machine.status(&["start", "web"], 3);
    machine.status(&["apply"], 3);
    assert_eq!(machine.state_of("web"), "config-error", "stopped by hand");
    machine.status(&["start", "app"], 3);
    machine.jail("web", &good);
    machine.good(&["start", "app"]);
    assert_eq!(machine.good(&["exec", "web", "--", "cat", "/srv/word"]), "one\n");
    // Disabled is the last that was good.
    machine.jail("web", &format!("enabled = false\n{good}"));
    machine.good(&["apply"]);
    machine.jail("web", "three\n");
    machine.status(&["apply"], 3);
    assert_eq!(machine.state_of("web"), "config-error");
}

#[test]
fn what_cannot_be_trusted_is_told_of_and_removes_nothing() {
    use std::os::unix::fs::PermissionsExt;
    let Some(machine) = Machine::new() else { return };
    machine.jail("a", SLEEP);
    machine.good(&["apply"]);
    let pid = machine.pid("a");
    let chmod = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    for path in [machine.config(), machine.config().join("jails.d")] {
        chmod(&path, 0o777);
        let why = "others than root can write it";
        assert!(machine.status(&["apply"], 3).contains(why));
        for verb in [&["ls"][..], &["status"], &["show", "a"]] {
            let said = crate::machine::said(&machine.stockade(verb));
            assert!(said.contains(why), "{verb:?}: {said}");
        }
        assert!(crate::machine::said(&machine.stockade(&["stop", "b"])).contains(why));
        // Nor may what stockade.toml enforces be passed over.
        if path == machine.config() {
            assert!(machine.status(&["run", "host", "--", "true"], 125).contains(why));
        }
        chmod(&path, 0o755);
        assert_eq!(machine.pid("a"), pid, "{}", path.display());
    }
    assert!(machine.good(&["apply"]).contains("No changes"));
}

#[test]
fn ctrl_c_leaves_no_half_made_jail() {
    let Some(machine) = Machine::new() else { return };
    let slow = format!("{SLEEP}prestart = [\"touch {}/here; sleep 60\"]\n", machine.path().display());
    machine.jail("a", &slow);
    let mut apply = machine.command(&["apply"]).spawn().unwrap();
    machine.wait_until("the hook runs", || machine.path().join("here").exists());
    rustix::process::kill_process(crate::machine::pid_of(&apply), rustix::process::Signal::INT).unwrap();
    assert_eq!(apply.wait().unwrap().code(), Some(1));
    assert!(machine.cgroups().iter().all(|cgroup| !cgroup.join("a").exists()));
    assert!(!machine.run_dir().join("jails/a").exists());
    assert!(!machine.state().join("jails/a").exists());
}

#[test]
fn two_applies_at_once_take_turns() {
    let Some(machine) = Machine::new() else { return };
    for name in ["a", "b", "c", "d"] {
        machine.jail(name, SLEEP);
    }
    let spawn = || machine.command(&["apply"]).spawn().unwrap();
    let (mut one, mut other) = (spawn(), spawn());
    assert!(one.wait().unwrap().success() && other.wait().unwrap().success());
    assert_eq!(machine.good(&["apply"]), "No changes.\n");
}

#[test]
fn twenty_jails_start_and_stop_together() {
    let Some(machine) = Machine::new() else { return };
    for number in 0..20 {
        machine.jail(&format!("jail-{number}"), SLEEP);
    }
    machine.good(&["apply"]);
    let running = machine.ls().values().filter(|item| item["state"] == "running").count();
    assert_eq!(running, 20);
}

#[test]
fn a_file_that_is_away_for_a_moment_is_not_gone() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("a", SLEEP);
    machine.good(&["apply"]);
    let pid = machine.pid("a");
    machine.remove("a");
    let mut apply = machine.command(&["apply"]).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(80));
    machine.jail("a", SLEEP);
    assert!(apply.wait().unwrap().success());
    assert_eq!(machine.pid("a"), pid);
}

#[test]
fn apply_goes_on_when_nobody_reads_what_it_says() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("a", SLEEP);
    machine.jail("b", &format!("depend = ['a']\n{SLEEP}"));
    let mut apply = machine.command(&["apply"]).stderr(Stdio::piped()).spawn().unwrap();
    drop(apply.stderr.take());
    assert_eq!(apply.wait().unwrap().code(), Some(0));
    assert_eq!((machine.state_of("a"), machine.state_of("b")), ("running".into(), "running".into()));
}

#[test]
fn a_stranger_is_told_apart_from_a_jail_that_is_down() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("web", &format!("enabled = false\n{SLEEP}"));
    for (verb, status) in
        [("freeze", 1), ("thaw", 1), ("kill", 1), ("stop", 1), ("console", 1), ("shell", 125)]
    {
        let said = machine.status(&[verb, "wbe"], status);
        assert_eq!(said, "stockade: no jail is named `wbe` (did you mean `web`?)\n", "{verb}");
    }
    let locks = std::fs::read_dir(machine.run_dir().join("locks")).unwrap().count();
    assert_eq!(locks, 0, "nothing is made for a name that there is not");
    assert_eq!(machine.status(&["exec", "web", "--", "true"], 125), "stockade: web: it is not running\n");
    assert_eq!(machine.status(&["freeze", "web"], 1), "stockade: web: it is not running\n");
}
