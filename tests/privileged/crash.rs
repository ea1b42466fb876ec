//! kill -9 in exact places: a hook that sleeps holds `apply` in its phase.

use std::process::Child;

use rustix::process::Signal;

use crate::machine::{Machine, kill, pid_of, wait_gone};

/// Ends well when it is asked to, so that the restart policy would leave it alone.
const POLITE: &str = "exec.command = ['sh', '-c', 'trap \"exit 0\" TERM; while :; do sleep 0.05; done']\n";
const ON_HOST: [&str; 7] = ["prepare", "prestart", "created", "poststart", "prestop", "poststop", "release"];

/// A jail all of whose hooks tell that they ran; the one named `slow` waits for a file `go`.
fn jail(machine: &Machine, slow: &str, more: &str) {
    let base = machine.path().display();
    let mut text = format!("template = 'host'\n{POLITE}restart.policy = 'no'\n{more}");
    for hook in ON_HOST {
        let wait = if hook == slow {
            format!("; until [ -e {base}/go ]; do sleep 0.02; done")
        } else {
            String::new()
        };
        text += &format!("exec.{hook} = ['echo {hook} >> {base}/hooks{wait}']\n");
    }
    machine.jail("a", &text);
}

fn hooks(machine: &Machine) -> Vec<String> {
    let text = std::fs::read_to_string(machine.path().join("hooks")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn clear(machine: &Machine) {
    for file in ["hooks", "go"] {
        // Not there is as good.
        let _ = std::fs::remove_file(machine.path().join(file));
    }
}

/// `apply`, killed as soon as the hook has begun; then the hook may go on by itself.
fn killed_in(machine: &Machine, hook: &str) {
    let mut apply: Child = machine.command(&["apply"]).spawn().unwrap();
    machine.wait_until(hook, || hooks(machine).last().is_some_and(|last| last == hook));
    rustix::process::kill_process(pid_of(&apply), Signal::KILL).unwrap();
    apply.wait().unwrap();
    std::fs::write(machine.path().join("go"), "").unwrap();
}

#[test]
fn a_start_that_was_cut_in_any_hook_is_taken_back_and_made_anew() {
    let Some(machine) = Machine::new() else { return };
    let whole = ["prepare", "prestart", "created", "poststart"];
    for (slow, expect) in [
        ("prepare", &["prepare", "release"][..]),
        ("prestart", &["prepare", "prestart", "poststop", "release"]),
        ("created", &["prepare", "prestart", "created", "poststop", "release"]),
        ("poststart", &["prepare", "prestart", "created", "poststart", "poststop", "release"]),
    ] {
        clear(&machine);
        jail(&machine, slow, "");
        killed_in(&machine, slow);
        assert_ne!(machine.state_of("a"), "running", "cut in {slow}");
        machine.good(&["apply"]);
        assert_eq!(machine.state_of("a"), "running", "cut in {slow}, and applied");
        assert_eq!(hooks(&machine), [expect, &whole].concat(), "cut in {slow}");
        assert_eq!(machine.good(&["apply"]), "No changes.\n");
        machine.remove("a");
        machine.good(&["apply"]);
    }
}

#[test]
fn a_restart_that_was_cut_in_any_hook_ends_with_the_jail_up() {
    let Some(machine) = Machine::new() else { return };
    for slow in ["prestop", "poststop", "release"] {
        clear(&machine);
        jail(&machine, slow, "");
        machine.good(&["apply"]);
        let before = hooks(&machine).len();
        jail(&machine, slow, "exec.env = { CHANGED = '1' }\n");
        killed_in(&machine, slow);
        machine.good(&["apply"]);
        assert_eq!(machine.state_of("a"), "running", "cut in {slow}, and applied");
        let expect = ["prestop", "poststop", "release", "prepare", "prestart", "created", "poststart"];
        assert_eq!(hooks(&machine)[before..], expect, "cut in {slow}");
        assert_eq!(machine.good(&["apply"]), "No changes.\n");
        assert!(machine.inside("a", "echo $CHANGED").contains('1'));
        machine.remove("a");
        machine.good(&["apply"]);
    }
}

#[test]
fn a_stop_says_nothing_about_the_next_start() {
    let Some(machine) = Machine::new() else { return };
    jail(&machine, "", "");
    machine.good(&["apply"]);
    jail(&machine, "", "enabled = false\n");
    machine.good(&["apply"]);
    assert_eq!(machine.state_of("a"), "stopped");
    jail(&machine, "", "");
    machine.good(&["apply"]);
    assert_eq!(machine.state_of("a"), "running", "its policy is `no`, but it did not end by itself");
    machine.good(&["stop", "--all", "--for-now"]);
    assert_eq!(machine.state_of("a"), "stopped");
    machine.good(&["apply"]);
    assert_eq!(machine.state_of("a"), "running", "nothing holds it");
    machine.good(&["stop", "--all"]);
    machine.good(&["apply"]);
    assert_eq!(machine.state_of("a"), "stopped");
    machine.good(&["start", "a"]);
    assert_eq!(machine.state_of("a"), "running");
}

#[test]
fn keepers_and_inits_that_are_killed_while_a_jail_starts_leave_nothing() {
    let Some(machine) = Machine::new() else { return };
    for (slow, whose) in
        [("created", "keeper"), ("created", "init"), ("poststart", "keeper"), ("poststart", "init")]
    {
        clear(&machine);
        jail(&machine, slow, "");
        let mut apply = machine.command(&["apply"]).spawn().unwrap();
        machine.wait_until(slow, || hooks(&machine).last().is_some_and(|last| last == slow));
        let pid = i32::try_from(machine.record("a")[whose]["pid"].as_i64().unwrap()).unwrap();
        kill(pid, Signal::KILL);
        wait_gone(pid);
        std::fs::write(machine.path().join("go"), "").unwrap();
        apply.wait().unwrap();
        let state = machine.state_of("a");
        assert_ne!(state, "running", "{whose} killed in {slow}");
        jail(&machine, "", "exec.env = { AGAIN = '1' }\n");
        machine.good(&["apply"]);
        assert_eq!(machine.state_of("a"), "running", "{whose} killed in {slow}");
        machine.remove("a");
        machine.good(&["apply"]);
    }
}

#[test]
fn a_record_that_cannot_be_read_refuses_its_own_jail_alone() {
    let Some(machine) = Machine::new() else { return };
    jail(&machine, "", "");
    machine.good(&["apply"]);
    let path = machine.run_dir().join("jails/a/record.json");
    let good = std::fs::read(&path).unwrap();
    std::fs::write(&path, "{").unwrap();
    machine.jail("b", crate::apply::SLEEP);
    let said = machine.status(&["apply"], 1);
    assert!(said.contains("record.json"), "{said}");
    assert_eq!(machine.state_of("b"), "running");
    std::fs::write(&path, good).unwrap();
    assert_eq!(machine.state_of("a"), "running");
    assert_eq!(machine.good(&["apply"]), "No changes.\n");
}

#[test]
fn a_start_that_was_cut_before_its_first_record_leaves_nothing() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("a", crate::apply::SLEEP);
    machine.good(&["apply"]);
    let cut = machine.run_dir().join("jails/b");
    std::fs::create_dir(&cut).unwrap();
    assert_eq!(machine.good(&["apply"]), "No changes.\n");
    assert!(!cut.exists());
    assert_eq!(machine.state_of("a"), "running");
}

#[test]
fn a_stop_whose_hook_fails_goes_on_after_it_and_runs_it_once() {
    let Some(machine) = Machine::new() else { return };
    let base = machine.path().display().to_string();
    for failing in ["prestop", "stop", "poststop", "release"] {
        clear(&machine);
        jail(&machine, "", "");
        let path = machine.config().join("jails.d/a.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        let good = format!("exec.{failing} = ['echo {failing} >> {base}/hooks']\n");
        let bad = if failing == "stop" {
            "exec.stop = ['false']\n".to_owned()
        } else {
            format!("exec.{failing} = ['echo {failing} >> {base}/hooks; false']\n")
        };
        machine.jail("a", &(text.replace(&good, "") + &bad));
        machine.good(&["apply"]);
        let before = hooks(&machine).len();
        let said = machine.status(&["stop", "a"], 1);
        let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("stockade: ")).collect();
        assert!(lines.len() == 1 && lines[0].contains(&format!("a: exec.{failing}")), "{failing}: {said}");
        assert_ne!(machine.state_of("a"), "running", "{failing}");
        machine.good(&["apply"]);
        assert_eq!(machine.state_of("a"), "stopped", "{failing}: the stop by hand holds");
        assert_eq!(hooks(&machine)[before..], ["prestop", "poststop", "release"], "{failing}: each once");
        assert_eq!(machine.stockade(&["plan"]).status.code(), Some(0), "{failing}");
        machine.good(&["destroy", "--yes", "a"]);
    }
}

#[test]
fn a_jail_is_adopted_by_another_binary() {
    let Some(machine) = Machine::new() else { return };
    let old = machine.path().join("stockade-of-yesterday");
    std::fs::copy(env!("CARGO_BIN_EXE_stockade"), &old).unwrap();
    jail(&machine, "", "");
    let mut words = machine.words(&["apply"]);
    for word in &mut words {
        if word == env!("CARGO_BIN_EXE_stockade") {
            *word = old.display().to_string();
        }
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let started = std::process::Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(started.status.success(), "{started:?}");
    let pid = machine.pid("a");
    std::fs::remove_file(&old).unwrap();
    assert_eq!(machine.good(&["apply"]), "No changes.\n");
    jail(&machine, "", "limits.memory = '32M'\n");
    machine.good(&["apply"]);
    assert_eq!((machine.pid("a"), machine.state_of("a")), (pid, "running".into()));
    assert_eq!(machine.inside("a", "echo in"), "in\n");
    machine.good(&["restart", "a"]);
    assert_ne!(machine.pid("a"), pid);
}

/// The kernel takes its root and its namespaces from a process a while before that is gone; what is
/// traced and not yet reaped holds it there.
#[test]
fn a_jail_on_its_way_out_fails_no_pass() {
    let Some(machine) = Machine::new() else { return };
    machine.host("[bridge.stockade0]\naddress = [\"10.77.0.1/24\"]\n");
    machine.write("templates/page/page.tera", "a page\n");
    let file = "[[file]]\nsource = 'page.tera'\ntarget = '/srv/page'\n";
    machine.write("templates/page/template.toml", &format!("[base]\nhost = true\n{file}"));
    let network = "network = { mode = 'vnet', address = ['10.77.0.9/24'] }\n";
    machine.jail("a", &format!("template = 'page'\n{POLITE}restart.delay = '100ms'\n{network}"));
    machine.good(&["apply"]);
    let init = machine.pid("a");
    let children = std::fs::read_to_string(format!("/proc/{init}/task/{init}/children")).unwrap();
    let program = children.split_whitespace().next().expect("the program runs").parse().unwrap();
    let program = nix::unistd::Pid::from_raw(program);
    nix::sys::ptrace::seize(program, nix::sys::ptrace::Options::empty()).unwrap();
    kill(init, Signal::KILL);
    let root = format!("/proc/{init}/root");
    machine.wait_until("the jail ends", || std::fs::metadata(&root).is_err());
    assert_eq!(machine.good(&["apply"]), "No changes.\n");
    nix::sys::wait::waitpid(program, Some(nix::sys::wait::WaitPidFlag::__WALL)).unwrap();
    wait_gone(init);
    machine.wait_until("the jail is up again", || {
        machine.good(&["apply"]);
        machine.state_of("a") == "running" && machine.pid("a") != init
    });
}
