//! What the daemon has done beside its passes, and that nobody waits for it.

use rustix::process::Signal;

use crate::apply::SLEEP;
use crate::builds::{layers, template};
use crate::daemon::{log, signal, start, wait_running};
use crate::leak;
use crate::machine::{Machine, kill};

const SLOW: &str = "template = 'b'\nexec.command = ['/bin/sleep', '1000']\n";

/// Waits until the lines of template `b` run.
fn wait_building(machine: &Machine) {
    machine.wait_until("it is being built", || machine.state_of("slow") == "starting");
    machine.wait_until("its lines run", || layers(machine).iter().any(|name| name.ends_with("-aside")));
}

/// Whether it runs, and not as the process that it was.
fn is_new(machine: &Machine, name: &str, pid: i32) -> bool {
    let seen = &machine.ls()[name];
    seen["state"] == "running" && seen["pid"] != pid
}

#[test]
fn a_long_build_keeps_nobody_waiting() {
    let Some(mut machine) = Machine::new() else { return };
    template(&machine, &["busybox sleep 8; echo x > /etc/built"], "");
    machine.jail("slow", SLOW);
    machine.jail("after", &format!("depend = ['slow']\n{SLEEP}"));
    start(&mut machine, &[]);
    wait_building(&machine);
    // A jail that is written now is started, one that dies restarted, one that was changed put back.
    machine.jail("quick", &format!("{SLEEP}[limits]\nmemory = '64M'\n[restart]\ndelay = '100ms'\n"));
    wait_running(&machine, "quick");
    let first = machine.pid("quick");
    kill(first, Signal::KILL);
    machine.wait_until("it is restarted", || is_new(&machine, "quick", first));
    let limits = ["memory.limit_in_bytes", "memory.max"];
    let mut files =
        machine.cgroups().into_iter().flat_map(|at| limits.map(|file| at.join("quick").join(file)));
    std::fs::write(files.find(|path| path.exists()).unwrap(), "32M").unwrap();
    signal(&machine, Signal::HUP);
    machine.wait_until("it is put back", || log(&machine).contains("quick: repaired: limits.memory"));
    let ls = machine.ls();
    assert_eq!(ls["slow"]["state"], "starting", "the build goes on: {}", log(&machine));
    assert_eq!(ls["slow"]["reason"], "its template `b` is being built");
    let plan = machine.status(&["plan"], 4);
    assert!(plan.contains("+ slow  its template `b` is being built"), "{plan}");
    assert!(machine.good(&["status"]).contains("slow: starting: its template `b` is being built"));
    // Its end rings the daemon.
    wait_running(&machine, "slow");
    wait_running(&machine, "after");
    let log = log(&machine);
    assert!(log.contains("template b: building\n") && log.contains("template b: built in "), "{log}");
    assert!(!log.contains("error"), "{log}");
}

#[test]
fn a_daemon_that_ends_takes_its_build_along() {
    let Some(mut machine) = Machine::new() else { return };
    template(&machine, &["busybox sleep 1000"], "");
    machine.jail("slow", SLOW);
    for by in [Signal::TERM, Signal::KILL] {
        start(&mut machine, &[]);
        wait_building(&machine);
        machine.wait_until("the jail is there", || !leak::processes(&machine).is_empty());
        signal(&machine, by);
        machine.daemon.take().unwrap().wait().unwrap();
        machine.wait_until("the build has ended", || leak::processes(&machine).is_empty());
        machine.wait_until("it has left nothing", || layers(&machine) == ["layer"]);
        let cgroups = || machine.cgroups().iter().any(|at| build_cgroup(at));
        machine.wait_until("nor a cgroup", || !cgroups());
    }
    assert_eq!(machine.state_of("slow"), "stopped");
    template(&machine, &["echo x > /etc/built"], "");
    start(&mut machine, &[]);
    wait_running(&machine, "slow");
}

fn build_cgroup(parent: &std::path::Path) -> bool {
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("build-"))
}

#[test]
fn a_build_that_fails_is_told_of_once_and_made_anew_when_it_is_mended() {
    let Some(mut machine) = Machine::new() else { return };
    template(&machine, &["echo the reason >&2; exit 3"], "");
    machine.jail("slow", SLOW);
    start(&mut machine, &[]);
    machine.wait_until("it is told", || log(&machine).contains("the reason"));
    std::thread::sleep(std::time::Duration::from_secs(3));
    let said = log(&machine);
    assert_eq!(said.matches("error: slow: build template b: ").count(), 1, "{said}");
    assert!(said.matches("template b: building\n").count() <= 3, "{said}");
    let seen = &machine.ls()["slow"];
    let why = "its template `b` could not be built: ";
    assert!(seen["reason"].as_str().is_some_and(|reason| reason.starts_with(why)), "{seen}");
    assert_eq!(seen["state"], "failed");
    assert!(machine.good(&["status"]).contains("the reason"));
    template(&machine, &["echo x > /etc/built"], "");
    wait_running(&machine, "slow");
    machine.wait_until("it is told", || log(&machine).contains("slow: no failure any more"));
}

#[test]
fn a_jail_that_dies_while_its_new_base_is_built_runs_again_on_the_old_one() {
    let Some(mut machine) = Machine::new() else { return };
    template(&machine, &["echo 1 > /etc/built"], "");
    machine.jail("a", &format!("{SLOW}[restart]\npolicy = 'always'\ndelay = '100ms'\n"));
    start(&mut machine, &[]);
    wait_running(&machine, "a");
    let built = |machine: &Machine| machine.good(&["exec", "a", "--", "cat", "/etc/built"]);
    // One that lasts, and one that fails and is begun again and again.
    for lines in ["busybox sleep 1000", "exit 3"] {
        let (first, begun) = (machine.pid("a"), log(&machine).matches("template b: building").count());
        template(&machine, &[lines], "");
        machine
            .wait_until("a build is begun", || log(&machine).matches("template b: building").count() > begun);
        kill(first, Signal::KILL);
        machine.wait_until("it runs again", || is_new(&machine, "a", first));
        assert_eq!(built(&machine), "1\n", "{lines}");
    }
    let before = machine.pid("a");
    template(&machine, &["echo 2 > /etc/built"], "");
    machine.wait_until("it runs on the new one", || is_new(&machine, "a", before));
    assert_eq!(built(&machine), "2\n");
}

#[test]
fn a_build_of_what_a_template_was_before_is_given_up() {
    let Some(mut machine) = Machine::new() else { return };
    template(&machine, &["busybox sleep 1000"], "");
    machine.jail("slow", SLOW);
    start(&mut machine, &[]);
    wait_building(&machine);
    template(&machine, &["echo x > /etc/built"], "");
    wait_running(&machine, "slow");
    machine.wait_until("the first one is gone", || layers(&machine) == ["layer", "layer"]);
}

#[test]
fn a_jail_that_another_command_works_on_is_not_waited_for() {
    let Some(mut machine) = Machine::new() else { return };
    let quick = format!("{SLEEP}[restart]\ndelay = '100ms'\n");
    machine.jail("busy", &quick);
    machine.jail("other", &quick);
    start(&mut machine, &[]);
    wait_running(&machine, "busy");
    wait_running(&machine, "other");
    let lock = std::fs::File::open(machine.run_dir().join("locks/busy")).unwrap();
    lock.lock().unwrap();
    let pids = ["busy", "other"].map(|name| machine.pid(name));
    for pid in pids {
        kill(pid, Signal::KILL);
    }
    machine.wait_until("the other is restarted", || is_new(&machine, "other", pids[1]));
    assert!(!is_new(&machine, "busy", pids[0]));
    drop(lock);
    machine.wait_until("and then this one", || is_new(&machine, "busy", pids[0]));
    assert!(!log(&machine).contains("error"), "{}", log(&machine));
}
