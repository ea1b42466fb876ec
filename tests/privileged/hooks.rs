//! The ten hooks and the dependencies: order, facts, and what undoes what.

use std::fmt::Write;

use crate::apply::SLEEP;
use crate::machine::Machine;

/// On the host, in jail(8)'s order; `start` and `stop` run inside.
const OUTSIDE: &[&str] = &["prepare", "prestart", "created", "poststart", "prestop", "poststop", "release"];
const INSIDE: &[&str] = &["start", "stop"];

/// A jail whose hooks write their names into one file; the line of `failing` ends with 1.
fn told(machine: &Machine, failing: &str) {
    let shared = machine.path().join("shared");
    std::fs::create_dir_all(&shared).unwrap();
    let order = shared.join("order");
    std::fs::write(&order, "").unwrap();
    rustix::fs::chmod(&order, rustix::fs::Mode::from_raw_mode(0o666)).unwrap();
    let end = |name: &str| if name == failing { "; false" } else { "" };
    let mut text = "template = \"host\"\n[exec]\n".to_owned();
    for name in OUTSIDE {
        let facts = "$STOCKADE_NAME ${STOCKADE_ID:+id} $(test -d \"$STOCKADE_ROOT\" && echo root) ${STOCKADE_PID:+pid}";
        writeln!(text, "{name} = ['echo {name} {facts} >> {}{}']", order.display(), end(name)).unwrap();
    }
    for name in INSIDE {
        writeln!(text, "{name} = ['echo {name} >> /srv/order{}']", end(name)).unwrap();
    }
    text += "command = ['sh', '-c', 'echo command >> /srv/order; exec sleep 1000']\n";
    writeln!(text, "[[mount]]\nsource = '{}'\ntarget = '/srv'", shared.display()).unwrap();
    machine.jail("a", &text);
}

fn order(machine: &Machine) -> Vec<String> {
    let text = std::fs::read_to_string(machine.path().join("shared/order")).unwrap();
    text.lines().map(|line| line.trim_end().to_owned()).collect()
}

fn first_words(machine: &Machine) -> String {
    let lines = order(machine);
    lines.iter().filter_map(|line| line.split(' ').next()).collect::<Vec<_>>().join(" ")
}

#[test]
fn each_hook_runs_once_in_order_and_knows_its_jail() {
    let Some(machine) = Machine::new() else { return };
    told(&machine, "");
    machine.good(&["apply"]);
    // The program writes its line by itself, before or after the host's `poststart`.
    machine.wait_until("the program runs", || order(&machine).len() == 6);
    machine.good(&["apply"]);
    machine.good(&["stop", "a"]);
    machine.good(&["apply"]);
    let mut lines = order(&machine);
    let command = lines.iter().position(|line| line == "command").unwrap();
    assert!(command == 4 || command == 5, "{lines:?}");
    lines.remove(command);
    let expect = [
        "prepare a id",
        "prestart a id",
        "created a id root pid",
        "start",
        "poststart a id root pid",
        "prestop a id root pid",
        "stop",
        "poststop a id",
        "release a id",
    ];
    let lines: Vec<String> =
        lines.iter().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(lines, expect);
}

#[test]
fn a_failing_hook_undoes_what_went_before() {
    let Some(machine) = Machine::new() else { return };
    let cases = [
        ("prepare", "prepare release"),
        ("prestart", "prepare prestart poststop release"),
        ("created", "prepare prestart created poststop release"),
        ("start", "prepare prestart created start poststop release"),
    ];
    for (failing, expect) in cases {
        told(&machine, failing);
        let said = machine.status(&["apply"], 1);
        assert!(said.contains(&format!("a: exec.{failing}")), "{failing}: {said}");
        assert_eq!(first_words(&machine), expect, "{failing}");
        assert!(machine.cgroups().iter().all(|cgroup| !cgroup.join("a").exists()), "{failing}");
        assert!(!machine.state().join("jails/a").exists(), "{failing}: a failed start leaves nothing");
        assert!(!machine.run_dir().join("jails/a").exists(), "{failing}");
        assert_eq!(machine.state_of("a"), "failed", "{failing}");
        let seen = machine.good(&["ls", "--json", "a"]);
        assert!(seen.contains(&format!("it did not start: exec.{failing}")), "{failing}: {seen}");
    }
    machine.jail("a", SLEEP);
    machine.good(&["apply"]);
    assert!(!machine.run_dir().join("jails/a.restarts").exists(), "what failed before is forgotten");
}

#[test]
fn a_failing_poststart_takes_the_program_down_again() {
    let Some(machine) = Machine::new() else { return };
    told(&machine, "poststart");
    machine.status(&["apply"], 1);
    let words = first_words(&machine).replace("command ", "");
    assert_eq!(words, "prepare prestart created start poststart poststop release");
    assert!(!machine.state().join("jails/a").exists());
}

#[test]
fn a_hook_that_takes_too_long_is_killed_with_its_children() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("a", &format!("{SLEEP}prestart = [\"sleep 1000 & sleep 1000\"]\ntimeout = \"300ms\"\n"));
    let said = machine.status(&["apply"], 1);
    assert!(said.contains("not done after 300 ms"), "{said}");
}

#[test]
fn what_depends_on_a_failure_is_skipped_by_name_and_the_rest_is_not() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("db", &format!("{SLEEP}prestart = [\"false\"]\n"));
    machine.jail("web", &format!("depend = [\"db\"]\n{SLEEP}"));
    machine.jail("other", SLEEP);
    let said = machine.status(&["apply"], 1);
    assert!(said.contains("stockade: db: exec.prestart"), "{said}");
    assert!(said.contains("stockade: web: skipped, for db"), "{said}");
    let states = ["db", "web", "other"].map(|name| machine.state_of(name));
    assert_eq!(states[2], "running");
    assert!(states[..2].iter().all(|state| state != "running"), "{states:?}");
}

#[test]
fn dependencies_start_first_and_stop_last() {
    let Some(machine) = Machine::new() else { return };
    let order = machine.path().join("order");
    let told = |name: &str| {
        let line = |what: &str| format!("['echo {what} {name} >> {}']", order.display());
        format!("{SLEEP}poststart = {}\nprestop = {}\n", line("up"), line("down"))
    };
    machine.jail("a", &format!("depend = [\"b\"]\n{}", told("a")));
    machine.jail("b", &format!("depend = [\"c\"]\n{}", told("b")));
    machine.jail("c", &told("c"));
    machine.good(&["apply"]);
    machine.good(&["stop", "c"]);
    let lines = std::fs::read_to_string(&order).unwrap();
    assert_eq!(lines, "up c\nup b\nup a\ndown a\ndown b\ndown c\n");
}

/// Interrupts a verb once the jail's hooks have written `word`, and tells its exit status.
fn interrupted(machine: &Machine, verb: &[&str], word: &str) -> Option<i32> {
    let said = machine.path().join("said");
    std::fs::write(&said, "").unwrap();
    let mut child = machine.command(verb).spawn().unwrap();
    machine.wait_until(word, || std::fs::read_to_string(&said).unwrap().contains(word));
    crate::machine::kill(child.id().cast_signed(), rustix::process::Signal::INT);
    child.wait().unwrap().code()
}

#[test]
fn an_interrupt_undoes_a_start_hook_by_hook_and_cuts_no_stop_short() {
    let Some(machine) = Machine::new() else { return };
    let said = machine.path().join("said");
    let tell =
        |word: &str, more: &str| format!("{word} = ['echo {word} >> {}; sleep {more}']\n", said.display());
    let words = || std::fs::read_to_string(&said).unwrap().lines().collect::<Vec<_>>().join(" ");
    let hooks: String = [
        ("prepare", "0"),
        ("prestart", "0"),
        ("poststart", "0.5"),
        ("prestop", "0.5"),
        ("poststop", "0.1"),
        ("release", "0.1"),
    ]
    .map(|(word, more)| tell(word, more))
    .concat();
    machine.jail("a", &format!("template = 'host'\n[exec]\ncommand = ['sleep', '1000']\n{hooks}"));
    for verb in [vec!["apply"], vec!["start", "a"]] {
        assert_eq!(interrupted(&machine, &verb, "poststart"), Some(1), "{verb:?}");
        assert_eq!(words(), "prepare prestart poststart poststop release", "{verb:?}");
        assert_eq!(machine.state_of("a"), "stopped", "{verb:?}");
    }
    for verb in [vec!["stop", "a"], vec!["destroy", "--yes", "a"]] {
        machine.good(&["start", "a"]);
        assert_eq!(interrupted(&machine, &verb, "prestop"), Some(0), "{verb:?}");
        assert_eq!(words(), "prestop poststop release", "{verb:?}");
        assert_eq!(machine.state_of("a"), "stopped", "{verb:?}");
    }
}
