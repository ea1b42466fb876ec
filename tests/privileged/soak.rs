//! The long run: what comes and goes for hours leaves nothing, and costs the daemon nothing.
//!
//! `STOCKADE_SOAK=full` is a thousand of each; otherwise it is enough to see a leak of one in ten.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::apply::SLEEP;
use crate::leak;
use crate::machine::Machine;

/// What the daemon's memory may grow by, once everything has been used once.
const GROWTH_MAX_KIB: u64 = 2048;
/// Addresses for the jails at once: more than a thousand ports no bridge has.
const WITH_LINK_MAX: usize = 100;

fn full() -> bool {
    std::env::var("STOCKADE_SOAK").is_ok_and(|value| value == "full")
}

fn count(short: usize, long: usize) -> usize {
    if full() { long } else { short }
}

fn say(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    eprintln!("soak: {what}, {} of them: p50 {:.1?}, p99 {:.1?}", times.len(), at(50), at(99));
}

#[test]
fn starts_and_stops_in_a_row_leave_nothing() {
    let Some(machine) = Machine::new() else { return };
    machine.host("[bridge.stockade0]\naddress = [\"10.77.0.1/24\"]\n");
    machine.jail("a", &format!("{SLEEP}[network]\nmode = 'vnet'\naddress = ['10.77.0.9/24']\n"));
    machine.good(&["apply"]);
    machine.good(&["stop", "a"]);
    let before = leak::look(&machine);
    let (mut starts, mut stops) = (Vec::new(), Vec::new());
    for _ in 0..count(30, 1_000) {
        let start = Instant::now();
        machine.good(&["start", "a"]);
        starts.push(start.elapsed());
        let start = Instant::now();
        machine.good(&["stop", "a"]);
        stops.push(start.elapsed());
    }
    say("start", starts);
    say("stop", stops);
    let leaks = leak::compare(&before, &machine);
    assert!(leaks.is_empty(), "{leaks:?}");
}

fn memory_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_daemon_that_follows_many_changes_does_not_grow() {
    let Some(mut machine) = Machine::new() else { return };
    machine.jail("a", SLEEP);
    let daemon = machine.command(&["daemon"]).stderr(Stdio::null()).spawn().unwrap();
    let pid = daemon.id();
    machine.daemon = Some(daemon);
    machine.wait_until("it follows", || machine.state_of("a") == "running");
    let round = |machine: &Machine| {
        machine.jail("b", SLEEP);
        machine.wait_until("b is up", || machine.cgroup_file("b", "cgroup.procs").is_some());
        machine.remove("b");
        machine.wait_until("b is gone", || machine.cgroup_file("b", "cgroup.procs").is_none());
    };
    for _ in 0..5 {
        round(&machine);
    }
    let (before, kib) = (leak::look(&machine), memory_kib(pid));
    let rounds = count(10, 300);
    for _ in 0..rounds {
        round(&machine);
    }
    machine.wait_until("b is settled", || machine.state_of("b") == "stopped");
    let after = memory_kib(pid);
    eprintln!("soak: the daemon's memory {kib} KiB, after {rounds} rounds {after} KiB");
    let leaks = leak::compare(&before, &machine);
    assert!(leaks.is_empty(), "{leaks:?}");
    assert!(after <= kib + GROWTH_MAX_KIB, "it grew from {kib} to {after} KiB");
}

/// All up by one `apply`, all down by another; then they are destroyed.
fn at_once(machine: &Machine, count: usize, text: impl Fn(usize) -> String) {
    machine.jail("j0", &text(0));
    machine.good(&["apply"]);
    machine.good(&["destroy", "--yes", "j0"]);
    machine.remove("j0");
    let before = leak::look(machine);
    let names: Vec<String> = (0..count).map(|number| format!("j{number}")).collect();
    for (number, name) in names.iter().enumerate() {
        machine.jail(name, &text(number));
    }
    let timed = |args: &[&str]| {
        let start = Instant::now();
        machine.good_within(args, Duration::from_mins(20));
        start.elapsed()
    };
    let up = timed(&["apply"]);
    let running = machine.ls().values().filter(|item| item["state"] == "running").count();
    assert_eq!(running, count);
    let nothing = timed(&["plan"]);
    let mut words = vec!["destroy", "--yes"];
    words.extend(names.iter().map(String::as_str));
    let down = timed(&words);
    for name in &names {
        machine.remove(name);
    }
    let each = up / u32::try_from(count).unwrap();
    eprintln!(
        "soak: {count} at once up in {up:.1?} ({each:.1?} each), plan in {nothing:.1?}, destroyed in {down:.1?}"
    );
    let leaks = leak::compare(&before, machine);
    assert!(leaks.is_empty(), "{leaks:?}");
}

#[test]
fn many_jails_side_by_side_leave_nothing() {
    let Some(machine) = Machine::new() else { return };
    machine.host("[bridge.stockade0]\naddress = [\"10.77.0.1/24\"]\n");
    at_once(&machine, count(12, WITH_LINK_MAX), |number| {
        format!("{SLEEP}[network]\nmode = 'vnet'\naddress = ['10.77.0.{}/24']\n", number + 2)
    });
}

#[test]
fn a_thousand_jails_at_once_leave_nothing() {
    let Some(mut machine) = Machine::new() else { return };
    machine.make_room();
    at_once(&machine, count(24, 1_000), |_| SLEEP.to_owned());
}
