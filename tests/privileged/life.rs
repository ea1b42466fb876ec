//! The long life of a jail: a whole system in it, no process at all, its log, and its end.

use crate::apply::SLEEP;
use crate::machine::Machine;
use crate::templates::busybox_root;

/// A system whose init is busybox's.
fn system(machine: &Machine, more: &str) {
    let base = machine.path().join("base");
    busybox_root(&base);
    let inittab =
        "::sysinit:/bin/touch /etc/booted\n::respawn:/bin/sleep 1000\n::shutdown:/bin/touch /etc/shut\n";
    std::fs::write(base.join("etc/inittab"), inittab).unwrap();
    machine.write("templates/system/template.toml", &format!("[base]\ndirectory = '{}'\n", base.display()));
    machine.jail("a", &format!("template = 'system'\nexec.boot = '/bin/init'\n{more}"));
    machine.good(&["apply"]);
    booted(machine);
}

fn booted(machine: &Machine) {
    machine.wait_until("it has booted", || {
        machine.stockade(&["exec", "a", "--", "/bin/ls", "/etc/booted"]).status.success()
    });
}

#[test]
fn a_whole_system_boots_and_stops_in_order() {
    let Some(machine) = Machine::new() else { return };
    system(&machine, "");
    assert_eq!(machine.state_of("a"), "running");
    let read = |file| machine.good(&["exec", "a", "--", "/bin/cat", file]);
    assert_eq!(read("/etc/hostname"), "a\n");
    assert_eq!(read("/etc/machine-id").len(), 33);
    machine.good(&["stop", "a"]);
    assert!(machine.state().join("jails/a/upper/etc/shut").exists(), "its init has run the shutdown action");
    assert_eq!(machine.state_of("a"), "stopped");
}

#[test]
fn a_system_that_halts_stays_down_and_one_that_reboots_comes_back() {
    let Some(machine) = Machine::new() else { return };
    system(&machine, "restart.policy = 'on-failure'\n");
    let pid = machine.pid("a");
    machine.stockade(&["exec", "a", "--", "/bin/reboot"]);
    machine.wait_until("it has gone down", || machine.state_of("a") != "running");
    assert_eq!(machine.ls()["a"]["exit"]["reboot"], true, "{}", machine.ls()["a"]);
    machine.good(&["apply"]);
    booted(&machine);
    assert_ne!(machine.pid("a"), pid);
    machine.stockade(&["exec", "a", "--", "/bin/halt"]);
    machine.wait_until("it has gone down", || machine.state_of("a") == "stopped");
    machine.good(&["apply"]);
    assert_eq!(machine.state_of("a"), "stopped");
}

#[test]
fn a_persistent_jail_is_up_without_a_process_of_its_own() {
    let Some(machine) = Machine::new() else { return };
    let text = "template = 'host'\npersist = true\nexec.start = ['echo up > /srv/seen']\nexec.stop = ['echo down >> /srv/seen']\n";
    machine.jail("a", text);
    machine.good(&["apply"]);
    assert_eq!(machine.inside("a", "cat /srv/seen"), "up\n");
    assert_eq!(machine.good(&["apply"]), "No changes.\n");
    machine.good(&["stop", "a"]);
    machine.good(&["start", "a"]);
    assert_eq!(machine.inside("a", "cat /srv/seen"), "up\n");
}

#[test]
fn the_processes_of_a_jail_that_are_stockades_bear_its_name() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("a", SLEEP);
    machine.good(&["apply"]);
    for whose in ["keeper", "init"] {
        let pid = &machine.record("a")[whose]["pid"];
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
        let words: Vec<&str> = line.split('\0').collect();
        assert_eq!(words[0], "stockade: jail a", "{whose}: {line:?}");
    }
}

#[test]
fn what_a_jail_writes_is_kept_or_discarded_as_asked() {
    let Some(machine) = Machine::new() else { return };
    for (on_stop, expect) in [("keep", "1\n2\n"), ("discard", "2\n")] {
        machine.jail("a", &format!("{SLEEP}[root]\non_stop = '{on_stop}'\n"));
        machine.good(&["apply"]);
        machine.inside("a", "rm -f /srv/seen; echo 1 >> /srv/seen");
        machine.good(&["restart", "a"]);
        assert_eq!(machine.inside("a", "echo 2 >> /srv/seen; cat /srv/seen"), expect, "{on_stop}");
    }
}

#[test]
fn what_a_jail_prints_is_logged_and_the_log_is_rotated() {
    let Some(machine) = Machine::new() else { return };
    let script = "echo first; echo second >&2; printf unfinished";
    machine.jail(
        "a",
        &format!("template = 'host'\nexec.command = ['sh', '-c', '{script}']\nrestart.policy = 'no'\n"),
    );
    machine.good(&["apply"]);
    machine.wait_until("all is there", || machine.log("a").contains("unfinished\n"));
    let log = machine.log("a");
    let lines: Vec<&str> =
        log.lines().filter_map(|line| line.split_once(' ')).map(|(_, text)| text).collect();
    assert!(lines.contains(&"first") && lines.contains(&"second") && lines.contains(&"unfinished"), "{log}");
    assert!(
        log.lines().all(|line| line.starts_with("20") && line.split(' ').next().unwrap().ends_with('Z')),
        "{log}"
    );
    let flood = "yes 0123456789012345678901234567890123456789 | head -n 250000; echo last";
    machine.jail(
        "b",
        &format!("template = 'host'\nexec.command = ['sh', '-c', '{flood}']\nrestart.policy = 'no'\n"),
    );
    machine.good(&["apply"]);
    machine.wait_until("all is there", || machine.log("b").ends_with("last\n"));
    assert!(machine.path().join("log/b.log.1").exists());
    assert!(machine.path().join("log/b.log").metadata().unwrap().len() <= 10 << 20);
}

#[test]
fn destroy_leaves_nothing_of_a_jail() {
    let Some(machine) = Machine::new() else { return };
    machine.host("[bridge.stockade0]\naddress = [\"10.77.0.1/24\"]\n");
    let vnet = "[network]\nmode = 'vnet'\naddress = ['10.77.0.5/24']\n";
    machine.jail("a", &format!("{SLEEP}{vnet}"));
    machine.jail("b", SLEEP);
    machine.good(&["apply"]);
    machine.inside("a", "mkdir -p /srv/x && echo > /srv/x/y");
    machine.status(&["destroy", "a"], 2);
    assert_eq!(machine.state_of("a"), "running", "nobody has said yes");
    machine.remove("a");
    machine.good(&["destroy", "--yes", "a"]);
    assert_eq!(machine.state_of("a"), "absent");
    assert_eq!(machine.state_of("b"), "running");
    let named: Vec<String> = walk(machine.path());
    assert_eq!(named, Vec::<String>::new(), "files with its name");
    let ids: Vec<_> = std::fs::read_dir(machine.state().join("ids")).unwrap().collect();
    assert_eq!(ids.len(), 1, "one range, for b");
}

/// Files of the machine's directories that are named after jail `a`; layers and logs left out.
fn walk(top: &std::path::Path) -> Vec<String> {
    let directories = ["state/jails", "state/ids", "run", "run/jails", "run/exits", "run/locks"];
    let entries = directories.iter().filter_map(|name| std::fs::read_dir(top.join(name)).ok()).flatten();
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let named = |path: &std::path::PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name == "a" || name.starts_with("a.")
    };
    paths.filter(named).map(|path| path.display().to_string()).collect()
}
