//! What dies at a bad moment: apply, keepers, jails' own inits, and the whole machine.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;

use crate::apply::SLEEP;
use crate::machine::{Machine, kill, pid_of, wait_gone};

#[test]
fn an_apply_that_is_killed_at_any_moment_is_made_good_by_the_next() {
    let Some(machine) = Machine::new() else { return };
    machine.host("[bridge.stockade0]\naddress = [\"10.77.0.1/24\"]\n");
    let vnet = "[network]\nmode = \"vnet\"\naddress = [\"10.77.0.9/24\"]\n";
    for round in 0..12 {
        machine.jail("a", &format!("{SLEEP}{vnet}"));
        machine.jail("b", SLEEP);
        let mut apply = machine.command(&["apply"]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(3 + round * 7));
        rustix::process::kill_process(pid_of(&apply), Signal::KILL).unwrap();
        apply.wait().unwrap();
        machine.good(&["apply"]);
        assert_eq!(machine.good(&["apply"]), "No changes.\n", "round {round}");
        assert_eq!(machine.inside("a", "echo in"), "in\n", "round {round}");
        machine.remove("a");
        machine.remove("b");
        let mut apply = machine.command(&["apply"]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(3 + round * 5));
        rustix::process::kill_process(pid_of(&apply), Signal::KILL).unwrap();
        apply.wait().unwrap();
        machine.good(&["apply"]);
    }
}

fn keeper(machine: &Machine, name: &str) -> i32 {
    i32::try_from(machine.record(name)["keeper"]["pid"].as_i64().unwrap()).unwrap()
}

#[test]
fn a_jail_without_its_keeper_is_never_shown_as_running() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("a", SLEEP);
    machine.good(&["apply"]);
    let keeper = keeper(&machine, "a");
    kill(keeper, Signal::KILL);
    wait_gone(keeper);
    let state = machine.state_of("a");
    assert!(state != "running" && state != "stopped", "{state}");
    machine.good(&["apply"]);
    assert_eq!(machine.state_of("a"), "running");
    assert_eq!(machine.good(&["apply"]), "No changes.\n");
}

#[test]
fn how_a_jail_ended_is_written_down() {
    let Some(machine) = Machine::new() else { return };
    let check = |command: &str, state: &str, exit: &str| {
        let command = format!("template = 'host'\nexec.command = ['sh', '-c', '{command}']\n");
        machine.jail("a", &format!("{command}restart.policy = 'no'\n"));
        machine.good(&["apply"]);
        machine.wait_until("it has ended", || machine.state_of("a") == state);
        let item = machine.ls()["a"].clone();
        let shown = format!("{} {} {}", item["exit"]["code"], item["exit"]["signal"], item["reason"]);
        assert!(shown.contains(exit), "{command}: {shown}");
        // The first clears what it has left; policy `no` lets it lie.
        machine.good(&["apply"]);
        assert_eq!(machine.good(&["apply"]), "No changes.\n", "{command}");
        assert_eq!(machine.state_of("a"), state, "{command}");
        machine.remove("a");
        machine.good(&["apply"]);
    };
    check("exit 0", "stopped", "0 null");
    check("exit 3", "failed", "3 null \"exited with 3");
    check("kill -9 $$", "failed", "null 9 \"killed by signal 9");
}

#[test]
fn a_jail_whose_init_is_killed_is_started_again() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("a", &format!("{SLEEP}[restart]\ndelay = \"100ms\"\n"));
    machine.good(&["apply"]);
    let init = machine.pid("a");
    kill(init, Signal::KILL);
    machine.wait_until("the end is seen", || machine.state_of("a") == "failed");
    machine.wait_until("it runs again", || {
        machine.good(&["apply"]);
        machine.state_of("a") == "running"
    });
    assert_ne!(machine.pid("a"), init);
    assert_eq!(machine.ls()["a"]["restarts"], 1);
}

#[test]
fn restarts_in_a_row_end_in_crash_loop() {
    let Some(machine) = Machine::new() else { return };
    let text = "template = 'host'\nexec.command = ['false']\n[restart]\ndelay = '100ms'\nmax = 2\n";
    machine.jail("a", text);
    machine.wait_until("it is given up", || {
        machine.good(&["apply"]);
        machine.state_of("a") == "crash-loop"
    });
    machine.good(&["apply"]);
    assert!(machine.good(&["plan"]).contains("crash-loop: change it, or `stockade start a`"));
}

#[test]
fn what_another_boot_has_left_is_not_taken_for_running() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("a", SLEEP);
    machine.good(&["apply"]);
    let (keeper, init) = (keeper(&machine, "a"), machine.pid("a"));
    for pid in [keeper, init] {
        kill(pid, Signal::KILL);
        wait_gone(pid);
    }
    // As after a crash of the machine, with a run directory that is on disk.
    let path = machine.run_dir().join("jails/a/record.json");
    let mut record = machine.record("a");
    record["boot_id"] = "11111111-2222-3333-4444-555555555555".into();
    // The pid is somebody else's by now: this test's own.
    record["init"]["pid"] = std::process::id().into();
    std::fs::write(&path, serde_json::to_vec(&record).unwrap()).unwrap();
    assert_eq!(machine.state_of("a"), "stopped");
    machine.good(&["apply"]);
    assert_eq!(machine.state_of("a"), "running");
}

#[test]
fn a_jail_whose_run_directory_was_deleted_is_started_anew() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("a", SLEEP);
    machine.jail("b", SLEEP);
    machine.good(&["apply"]);
    let pids = ["a", "b"].map(|name| machine.pid(name));
    machine.inside("a", "echo kept > /srv/mine");
    std::fs::remove_dir_all(machine.run_dir()).unwrap();
    let plan = machine.status(&["plan"], 4);
    assert!(plan.contains("-/+ a  record kept -> gone"), "{plan}");
    machine.remove("b");
    machine.good(&["apply"]);
    assert_eq!(machine.good(&["apply"]), "No changes.\n");
    assert_eq!(machine.state_of("a"), "running");
    assert_eq!(machine.inside("a", "cat /srv/mine"), "kept\n");
    pids.into_iter().for_each(wait_gone);
}

#[test]
fn an_export_lets_the_jail_go_on_without_its_helper() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("a", SLEEP);
    machine.good(&["apply"]);
    // More than a pipe and a compressor hold, and nothing that can be compressed.
    machine.inside("a", "dd if=/dev/urandom of=/srv/big bs=64k count=1024 2>/dev/null");
    let export = || {
        let child = machine.command(&["export", "a"]).stdout(Stdio::piped()).spawn().unwrap();
        machine.wait_until("the jail stands still", || machine.state_of("a") == "frozen");
        child
    };
    let mut child = export();
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
    let helper = children.split_whitespace().next().expect("one that waits for its end");
    kill(helper.parse().unwrap(), Signal::KILL);
    std::io::copy(&mut child.stdout.take().unwrap(), &mut std::io::sink()).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(machine.state_of("a"), "running");
    // What the helper is for.
    let mut child = export();
    child.kill().unwrap();
    child.wait().unwrap();
    machine.wait_until("the jail goes on", || machine.state_of("a") == "running");
}

#[test]
fn what_is_held_stays_down_over_a_reboot() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("a", SLEEP);
    machine.jail("b", SLEEP);
    machine.good(&["apply"]);
    machine.good(&["stop", "a"]);
    let init = machine.pid("b");
    kill(keeper(&machine, "b"), Signal::KILL);
    kill(init, Signal::KILL);
    wait_gone(init);
    // What a reboot leaves of the run directory.
    std::fs::remove_dir_all(machine.run_dir()).unwrap();
    assert_eq!((machine.state_of("a"), machine.state_of("b")), ("stopped".into(), "stopped".into()));
    machine.good(&["apply"]);
    assert_eq!((machine.state_of("a"), machine.state_of("b")), ("stopped".into(), "running".into()));
    machine.good(&["start", "a"]);
    assert_eq!(machine.state_of("a"), "running");
}

/// Beside a tmpfs of a few pages as state or run directory: `cp` fills it, `rm` frees it.
#[test]
fn a_full_disk_is_said_and_nothing_is_lost() {
    let Some(machine) = Machine::new() else { return };
    for (directory, size) in [("state", "8m"), ("run", "256k")] {
        let path = machine.path().join(directory);
        std::fs::create_dir_all(&path).unwrap();
        let path = path.display().to_string();
        let shell = |script: &str| {
            let output = machine.outside(&["sh", "-ec", script]);
            assert!(output.status.success(), "{script}: {output:?}");
        };
        shell(&format!("mount -t tmpfs -o size={size},mode=0700 tmpfs {path}"));
        machine.jail("a", SLEEP);
        machine.good(&["apply"]);
        let pid = machine.pid("a");
        machine.inside("a", "true");
        shell(&format!("dd if=/dev/zero of={path}/ballast bs=4k 2>/dev/null || true"));
        machine.jail("b", SLEEP);
        let said = machine.status(&["apply"], 1);
        let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("stockade: ")).collect();
        assert!(lines.len() == 1 && lines[0].contains("No space left on device"), "{directory}: {said}");
        assert!(lines[0].starts_with("stockade: b: ") && lines[0].contains(directory), "{directory}: {said}");
        assert_eq!(machine.pid("a"), pid, "{directory}");
        assert_ne!(machine.state_of("b"), "running", "{directory}");
        shell(&format!("rm {path}/ballast"));
        machine.good(&["apply"]);
        assert_eq!(machine.good(&["apply"]), "No changes.\n", "{directory}");
        assert_eq!((machine.state_of("b"), machine.pid("a")), ("running".into(), pid), "{directory}");
        machine.good(&["destroy", "--yes", "a", "b"]);
        machine.remove("a");
        machine.remove("b");
        machine.good(&["apply"]);
        shell(&format!("umount {path}"));
    }
}
