//! Limits: there before the first instruction, changed while the jail runs, and repaired.

use crate::apply::SLEEP;
use crate::machine::Machine;

const MIB: u64 = 1 << 20;

/// The memory limit in force, in bytes.
fn memory(machine: &Machine) -> u64 {
    let file = |name: &str| machine.cgroup_file("a", name);
    let text = file("memory.limit_in_bytes").or_else(|| file("memory.max")).expect("a memory cgroup");
    text.parse().unwrap()
}

fn with(machine: &Machine, limits: &str) {
    machine.jail("a", &format!("{SLEEP}[limits]\n{limits}\n"));
}

#[test]
fn limits_are_set_before_anything_runs() {
    let Some(machine) = Machine::new() else { return };
    let seen = machine.path().join("seen");
    let files: Vec<String> = crate::leak::hierarchies()
        .iter()
        .flat_map(|mount| {
            ["memory.limit_in_bytes", "memory.max", "pids.max"]
                .map(|file| mount.join(&machine.cgroup).join("a").join(file))
        })
        .map(|path| path.display().to_string())
        .collect();
    let look = format!(
        "cat {} 2>/dev/null > {seen}; cat /proc/$STOCKADE_PID/cgroup >> {seen}",
        files.join(" "),
        seen = seen.display()
    );
    machine.jail("a", &format!("{SLEEP}created = ['{look}']\n[limits]\nmemory = '64M'\nprocesses = 17\n"));
    machine.good(&["apply"]);
    let seen = std::fs::read_to_string(seen).unwrap();
    assert!(seen.lines().any(|line| line == (64 * MIB).to_string()), "{seen}");
    assert!(seen.lines().any(|line| line == "17"), "{seen}");
    let own = format!("/{}/a", machine.cgroup);
    let outside = seen.lines().filter(|line| line.matches(':').count() == 2 && !line.contains(&own));
    let limiting = outside.filter(|line| line.contains("memory") || line.contains("pids"));
    assert_eq!(limiting.collect::<Vec<_>>(), Vec::<&str>::new(), "the init is in the jail's cgroup");
}

#[test]
fn a_limit_is_raised_and_cut_while_the_jail_runs() {
    let Some(machine) = Machine::new() else { return };
    with(&machine, "memory = '64M'\nprocesses = 30\ncpu = 0.5");
    machine.good(&["apply"]);
    let pid = machine.pid("a");
    for (limits, bytes, processes) in [
        ("memory = '256M'\nprocesses = 40", 256 * MIB, "40"),
        ("memory = '32M'\nprocesses = 20\ncpu = 1", 32 * MIB, "20"),
    ] {
        with(&machine, limits);
        let plan = machine.status(&["plan"], 4);
        assert!(plan.contains("~ a") && plan.contains("live"), "{plan}");
        machine.good(&["apply"]);
        assert_eq!((memory(&machine), machine.pid("a")), (bytes, pid), "{limits}");
        assert_eq!(machine.cgroup_file("a", "pids.max").as_deref(), Some(processes));
        assert_eq!(machine.good(&["apply"]), "No changes.\n");
    }
}

#[test]
fn a_limit_that_somebody_changed_is_repaired() {
    let Some(machine) = Machine::new() else { return };
    with(&machine, "processes = 30");
    machine.good(&["apply"]);
    let file = machine.cgroups().into_iter().map(|path| path.join("a/pids.max")).find(|path| path.exists());
    std::fs::write(file.unwrap(), "77").unwrap();
    let plan = machine.status(&["plan"], 4);
    assert!(plan.contains("77") && plan.contains("30"), "{plan}");
    machine.good(&["apply"]);
    assert_eq!(machine.cgroup_file("a", "pids.max").as_deref(), Some("30"));
    machine.status(&["plan"], 0);
}

#[test]
fn memory_beyond_the_limit_ends_the_jail_and_that_is_written_down() {
    let Some(machine) = Machine::new() else { return };
    let text =
        "template = 'host'\nexec.command = ['perl', '-e', 'my $x = \"x\" x (200 << 20); sleep 1000']\n";
    machine.jail("a", &format!("{text}limits.memory = '32M'\nrestart.policy = 'no'\n"));
    machine.good(&["apply"]);
    machine.wait_until("it is killed", || machine.state_of("a") == "failed");
    let item = machine.ls()["a"].clone();
    assert_eq!(item["exit"]["oom"], true, "{item}");
    assert!(item["reason"].as_str().unwrap_or_default().contains("out of memory"), "{item}");
}

#[test]
fn no_more_processes_than_allowed() {
    let Some(machine) = Machine::new() else { return };
    let script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 5 & done; wait";
    let output = machine.stockade(&["run", "--set", "limits.processes=6", "host", "--", "sh", "-c", script]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("fork"), "{said}");
    assert!(!output.status.success());
}
