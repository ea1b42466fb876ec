//! `run` and `exec`: the command's own status, user, environment, directory and terminal.

use rustix::process::Signal;

use crate::apply::SLEEP;
use crate::machine::Machine;

fn run(machine: &Machine, words: &[&str]) -> Option<i32> {
    let mut args = vec!["run", "host", "--"];
    args.extend(words);
    machine.stockade(&args).status.code()
}

#[test]
fn run_passes_the_status_on() {
    let Some(machine) = Machine::new() else { return };
    let cases: &[(&[&str], i32)] = &[
        (&["true"], 0),
        (&["sh", "-c", "exit 7"], 7),
        (&["no-such-command"], 127),
        (&["/etc/passwd"], 126),
        (&["sh", "-c", "kill -9 $$"], 128 + 9),
        (&["sh", "-c", "kill -15 $$"], 128 + 15),
    ];
    for (argv, status) in cases {
        assert_eq!(run(&machine, argv), Some(*status), "{argv:?}");
    }
    let said = machine.status(&["run", "no-such-template", "--", "true"], 125);
    assert!(said.contains("no-such-template"), "{said}");
    assert_eq!(machine.ls().len(), 0, "a throw-away jail leaves no trace");
}

#[test]
fn run_streams_both_ways() {
    let Some(machine) = Machine::new() else { return };
    let input: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    let output = machine.stockade_with(&["run", "host", "--", "cat"], &input);
    assert!(output.stdout == input, "{} of {} bytes came back", output.stdout.len(), input.len());
    let output = machine.stockade(&["run", "host", "--", "sh", "-c", "echo out; echo err >&2"]);
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
}

#[test]
fn run_that_is_interrupted_leaves_nothing() {
    let Some(machine) = Machine::new() else { return };
    for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
        let mut run =
            machine.command(&["run", "--name", "r", "host", "--", "sleep", "1000"]).spawn().unwrap();
        let up = || machine.cgroup_file("r", "cgroup.procs").is_some_and(|text| text.lines().count() > 1);
        machine.wait_until("it runs", up);
        rustix::process::kill_process(crate::machine::pid_of(&run), signal).unwrap();
        assert!(!run.wait().unwrap().success(), "{signal:?}");
        machine.wait_until(&format!("its processes are gone, {signal:?}"), || {
            machine.cgroup_file("r", "cgroup.procs").is_none_or(|text| text.is_empty())
        });
    }
    // What SIGKILL kept `run` from clearing, the next `run` of that name clears.
    machine.good(&["run", "--name", "r", "host", "--", "true"]);
}

/// The cgroups in which jails of this machine run, or ran.
fn cgroups(machine: &Machine) -> usize {
    let below = |path: std::path::PathBuf| std::fs::read_dir(path).into_iter().flatten().flatten();
    let all = machine.cgroups().into_iter().flat_map(below);
    all.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).count()
}

#[test]
fn what_a_killed_run_has_left_is_cleared_by_the_next_apply() {
    let Some(machine) = Machine::new() else { return };
    let start = || {
        let run = machine.command(&["run", "host", "--", "sleep", "1000"]).spawn().unwrap();
        let name = format!("run-{}", run.id());
        let is_up =
            || machine.cgroup_file(&name, "cgroup.procs").is_some_and(|text| text.lines().count() > 1);
        machine.wait_until("it runs", is_up);
        run
    };
    let mut killed = start();
    killed.kill().unwrap();
    killed.wait().unwrap();
    let mut other = start();
    machine.good(&["apply"]);
    assert!(machine.cgroup_file(&format!("run-{}", killed.id()), "cgroup.procs").is_none());
    assert!(machine.cgroup_file(&format!("run-{}", other.id()), "cgroup.procs").is_some(), "it lives");
    assert!(other.try_wait().unwrap().is_none(), "and runs on");
    other.kill().unwrap();
    other.wait().unwrap();
    assert_ne!(cgroups(&machine), 0);
    machine.good(&["apply"]);
    assert_eq!(cgroups(&machine), 0);
    let locks: Vec<_> = std::fs::read_dir(machine.run_dir().join("locks")).unwrap().flatten().collect();
    assert!(locks.is_empty(), "{locks:?}");
}

#[test]
fn a_name_is_for_one_throw_away_jail_at_a_time() {
    let Some(machine) = Machine::new() else { return };
    let mut first = machine.command(&["run", "--name", "r", "host", "--", "sleep", "1000"]).spawn().unwrap();
    machine.wait_until("it runs", || {
        machine.cgroup_file("r", "cgroup.procs").is_some_and(|text| text.lines().count() > 1)
    });
    let said = machine.status(&["run", "--name", "r", "host", "--", "true"], 125);
    assert_eq!(said, "stockade: a jail named r runs already\n");
    machine.good(&["gc"]);
    assert!(first.try_wait().unwrap().is_none(), "neither has done anything to the first");
    rustix::process::kill_process(crate::machine::pid_of(&first), Signal::TERM).unwrap();
    first.wait().unwrap();
    machine.good(&["run", "--name", "r", "host", "--", "true"]);
    let locks = std::fs::read_dir(machine.run_dir().join("locks")).unwrap();
    let of_r = locks.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("r."));
    assert_eq!(of_r.count(), 0, "no lock is left");
}

#[test]
fn exec_passes_status_user_environment_and_directory_on() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("a", &format!("{SLEEP}env = {{ COLOUR = \"red\" }}\n"));
    machine.good(&["apply"]);
    let exec = |more: &[&str], argv: &[&str]| {
        let args = [&["exec"][..], more, &["a", "--"], argv].concat();
        let output = machine.stockade(&args);
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let check = |more: &[&str], script: &str, status: i32, expect: &str| {
        assert_eq!(exec(more, &["sh", "-c", script]), (status, expect.to_owned()), "{more:?} {script}");
    };
    check(&[], "exit 0", 0, "");
    check(&[], "exit 7", 7, "");
    check(&[], "kill -9 $$", 137, "");
    check(&[], "id -u; id -g", 0, "0\n0");
    check(&["--user", "nobody"], "id -un", 0, "nobody");
    check(&["--user", "1234:1234"], "id -u", 0, "1234");
    check(&[], "echo $COLOUR", 0, "red");
    check(&["--env", "COLOUR=blue"], "echo $COLOUR", 0, "blue");
    check(&["--workdir", "/usr/bin"], "pwd", 0, "/usr/bin");
    assert_eq!(exec(&[], &["no-such-command"]).0, 127);
    assert_eq!(exec(&[], &["/etc/passwd"]).0, 126);
    assert_eq!(exec(&["--user", "no-such-user"], &["true"]).0, 125);
    machine.status(&["exec", "b", "--", "true"], 125);
}

#[test]
fn exec_is_in_every_namespace_and_cgroup_of_the_jail() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("a", SLEEP);
    machine.jail("b", SLEEP);
    machine.good(&["apply"]);
    let script = "for n in cgroup ipc mnt net pid user uts; do readlink /proc/self/ns/$n; done";
    let ours = machine.inside("a", script);
    // Only from outside: pid 1 shows nothing to those within.
    let init = machine.outside(&["sh", "-c", &script.replace("self", &machine.pid("a").to_string())]);
    assert_eq!(ours, String::from_utf8_lossy(&init.stdout));
    let others = machine.inside("b", script);
    let host: Vec<String> = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"]
        .map(|name| std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap().display().to_string())
        .to_vec();
    for ((own, other), host) in ours.lines().zip(others.lines()).zip(&host) {
        assert!(own != other && own != host, "{own} is shared");
    }
    let processes = machine.inside("a", "ls -d /proc/[0-9]* | wc -l");
    assert!(processes.trim().parse::<u32>().unwrap() < 8, "no process of b or the host: {processes}");
    assert_eq!(machine.inside("a", "cat /proc/self/cgroup | grep -c stockade-test || true").trim(), "0");
    assert_eq!(machine.inside("a", "hostname").trim(), "a");
}

#[test]
fn a_command_on_a_terminal_gets_one_of_the_jails_own() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("a", SLEEP);
    machine.good(&["apply"]);
    for words in [&["exec", "a", "--"][..], &["run", "host", "--"]] {
        let inner = [words, &["sh", "-c", "tty; stty size; test -t 0 && echo terminal; exit 5"]].concat();
        let line = format!("stty rows 33 cols 99; {}", machine.shell_words(&inner));
        let output = assert_cmd::Command::new("script")
            .args(["-qec", &line, "/dev/null"])
            .env("TERM", "vt100")
            .timeout(std::time::Duration::from_mins(1))
            .output()
            .unwrap();
        let said = crate::machine::said(&output);
        assert!(said.contains("/dev/pts/") || said.contains("/dev/console"), "{words:?}: {said}");
        assert!(said.contains("33 99") && said.contains("terminal"), "{words:?}: {said}");
        assert_eq!(output.status.code(), Some(5), "{words:?}: {said}");
    }
}
