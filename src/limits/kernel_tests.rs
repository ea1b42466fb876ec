//! On the kernel of this machine, as root: cgroups made below a parent of each test's own.

use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd as _;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::hierarchies::join;
use super::parents::{read, write};
use super::value::{bytes, field};
use super::*;
use crate::jail::{Limits, Settings};
use crate::sys::cgroup::page_bytes;

/// How long something that must happen may take before it counts as not happening.
const PATIENCE: Duration = Duration::from_secs(20);

/// A parent that takes everything below it away again, also when the test fails.
struct Yard {
    host: Hierarchies,
    parent: String,
    jails: Vec<Cgroup>,
    children: Vec<Child>,
}

impl Yard {
    /// `None` without root, which is said aloud, or an error where the tests must run.
    fn new() -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("STOCKADE_TEST_MUST_RUN").is_none(), "not root");
            eprintln!("skipped: needs root");
            return None;
        }
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let parent = format!("stockade-test-{}-{count}", std::process::id());
        let host = Hierarchies::detect().expect("cgroups of this machine");
        Some(Self { host, parent, jails: Vec::new(), children: Vec::new() })
    }

    fn jail(&mut self, limits: &Limits) -> Cgroup {
        self.jail_with(limits, &Needs::default()).expect("a cgroup")
    }

    fn jail_with(&mut self, limits: &Limits, needs: &Needs) -> anyhow::Result<Cgroup> {
        let name = format!("jail{}", self.jails.len());
        let jail = Cgroup::create(&self.host, &self.parent, &name, limits, needs)?;
        self.jails.push(jail.clone());
        Ok(jail)
    }

    /// Runs `script` in the cgroup, and gives what it prints first once it is inside.
    fn run(&mut self, jail: &Cgroup, script: &str) -> BufReader<std::process::ChildStdout> {
        let (files, dir) = (jail.join_files().expect("join files"), jail.unified_dir().expect("a directory"));
        let pid = std::process::id();
        let tasks = files.iter().map(|file| format!("echo 0 > /proc/{pid}/fd/{}", file.as_raw_fd()));
        let procs =
            dir.iter().map(|dir| format!("echo $$ > /proc/{pid}/fd/{}/cgroup.procs", dir.as_raw_fd()));
        let joins: Vec<String> = tasks.chain(procs).collect();
        let text = format!("set -e; {}; set +e; echo inside; {script}", joins.join("; "));
        let mut command = Command::new("sh");
        let mut child = command.args(["-c", &text]).stdout(Stdio::piped()).spawn().expect("a shell");
        let mut output = BufReader::new(child.stdout.take().expect("piped"));
        self.children.push(child);
        assert_eq!(line(&mut output), "inside");
        output
    }
}

impl Drop for Yard {
    fn drop(&mut self) {
        for jail in &self.jails {
            jail.kill_all().expect("kill all");
        }
        for child in &mut self.children {
            child.wait().expect("our child");
        }
        for jail in &self.jails {
            jail.remove().expect("remove");
            assert!(!jail.exists());
        }
        self.host.remove_parent(&self.parent).expect("remove the parent");
        let parent = Cgroup::open(&self.host, "", &self.parent).expect("a name");
        assert!(!parent.exists(), "something is left below {}", self.parent);
    }
}

fn line(output: &mut impl BufRead) -> String {
    let mut text = String::new();
    output.read_line(&mut text).expect("a line");
    text.trim().to_owned()
}

fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let start = Instant::now();
    while !reached() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        sleep(Duration::from_millis(5));
    }
}

fn settings(pairs: &[(&str, Value)]) -> Settings {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
}

fn memory(bytes: u64) -> Limits {
    Limits { memory: Some(bytes), ..Limits::default() }
}

const MIB: u64 = 1 << 20;

#[test]
fn limits_are_set_before_and_changed_live() {
    let Some(mut yard) = Yard::new() else { return };
    let first = Limits {
        memory: Some(100_000_000),
        swap: Some(5000),
        cpu: Some(1500),
        cpu_weight: Some(7),
        processes: Some(40),
        ..Limits::default()
    };
    let jail = yard.jail(&first);
    let wanted = settings(&[
        ("exec.command", json!(["x"])),
        ("limits.cpu", json!(1500)),
        ("limits.cpu_weight", json!(7)),
        ("limits.disk", json!(1)),
        ("limits.memory", json!(100_000_000)),
        ("limits.processes", json!(40)),
        ("limits.swap", json!(5000)),
    ]);
    let mut expect = wanted.clone();
    expect.retain(|key, _| key != "exec.command" && key != "limits.disk");
    assert_eq!(jail.observe(&wanted).unwrap(), expect, "rounding is no drift");

    let second = Limits { memory: Some(200_000_000), cpu: None, processes: None, ..first.clone() };
    assert_eq!(jail.set(&first, &second).unwrap(), []);
    expect.insert("limits.memory".into(), json!(200_000_000 / page_bytes() * page_bytes()));
    expect.insert("limits.cpu".into(), Value::Null);
    expect.insert("limits.processes".into(), json!(PROCESSES_DEFAULT));
    let seen = jail.observe(&wanted).unwrap();
    assert!(seen["limits.swap"].as_u64().unwrap().abs_diff(5000) <= page_bytes());
    expect.insert("limits.swap".into(), seen["limits.swap"].clone());
    assert_eq!(seen, expect);

    assert_eq!(jail.set(&second, &memory(50_000_000)).unwrap(), []);
    assert_eq!(jail.set(&memory(50_000_000), &Limits::default()).unwrap(), []);
    let none = settings(&[("limits.memory", json!(1)), ("limits.cpu_weight", json!(1))]);
    let expect = settings(&[("limits.memory", Value::Null), ("limits.cpu_weight", json!(100))]);
    assert_eq!(jail.observe(&none).unwrap(), expect);
}

#[test]
fn a_limit_changed_by_hand_is_seen_and_repaired() {
    let Some(mut yard) = Yard::new() else { return };
    let limits = Limits { processes: Some(10), ..memory(64 * MIB) };
    let jail = yard.jail(&limits);
    write(jail.host.tree(Controller::Pids).unwrap(), &join(&jail.path, "pids.max"), "max").unwrap();
    let wanted = settings(&[("limits.processes", json!(10))]);
    assert_eq!(jail.observe(&wanted).unwrap()["limits.processes"], Value::Null);
    assert_eq!(jail.set(&limits, &limits).unwrap(), []);
    assert_eq!(jail.observe(&wanted).unwrap(), wanted);
}

#[test]
fn memory_beyond_the_limit_kills_inside_only() {
    let Some(mut yard) = Yard::new() else { return };
    let jail = yard.jail(&memory(32 * MIB));
    let beside = yard.jail(&memory(64 * MIB));
    let mut bystander = yard.run(&beside, "sleep 60");
    // tail(1) keeps a line without end in memory.
    let mut output = yard.run(&jail, "head -c 300000000 /dev/zero | tail; echo $?");
    assert_ne!(line(&mut output), "0");
    assert!(jail.oom_kills().unwrap() >= 1);
    assert!(jail.usage().unwrap().memory <= 33 * MIB);
    assert_eq!(beside.oom_kills().unwrap(), 0);
    assert!(beside.populated().unwrap());
    beside.kill_all().unwrap();
    assert_eq!(line(&mut bystander), "");
}

#[test]
fn more_processes_than_allowed_cannot_be_made() {
    let Some(mut yard) = Yard::new() else { return };
    let jail = yard.jail(&Limits { processes: Some(3), ..Limits::default() });
    let script = "sleep 60 & sleep 60 & (sleep 60 & sleep 60) 2>/dev/null || echo refused; sleep 60";
    yard.run(&jail, script);
    let tree = jail.host.tree(Controller::Pids).unwrap();
    let current = join(&jail.path, "pids.current");
    until("two children", || read(tree, &current).unwrap().trim() == "3");
    until("a refused fork", || {
        field(&read(tree, &join(&jail.path, "pids.events")).unwrap(), "max") >= Some(1)
    });
    assert!(jail.processes().unwrap().len() <= 3);
}

#[test]
fn cpu_beyond_the_quota_is_throttled() {
    let Some(mut yard) = Yard::new() else { return };
    let jail = yard.jail(&Limits { cpu: Some(100), ..Limits::default() });
    yard.run(&jail, "while :; do :; done");
    let tree = jail.host.tree(Controller::Cpu).unwrap();
    let file = join(&jail.path, "cpu.stat");
    until("throttled periods", || field(&read(tree, &file).unwrap(), "nr_throttled") >= Some(3));
    assert!(jail.usage().unwrap().cpu_usec > 0);
}

#[test]
fn a_cut_below_use_waits_and_kills_nothing() {
    let Some(mut yard) = Yard::new() else { return };
    let (wide, narrow) = (memory(256 * MIB), memory(8 * MIB));
    let jail = yard.jail(&wide);
    let script = "x=$(head -c 30000000 /dev/zero | tr '\\0' x); echo held; while read go; do :; done; sleep 60; echo $x";
    let mut output = yard.run(&jail, script);
    assert_eq!(line(&mut output), "held");
    let pending = jail.set(&wide, &narrow).unwrap();
    assert_eq!((pending[0].key, pending[0].wanted), ("limits.memory", 8 * MIB));
    assert!(pending[0].used > 8 * MIB && pending.len() == 1, "{pending:?}");
    assert_eq!(jail.oom_kills().unwrap(), 0);
    assert!(jail.populated().unwrap());
    let wanted = settings(&[("limits.memory", json!(256 * MIB))]);
    assert_eq!(jail.observe(&wanted).unwrap(), wanted, "the old limit holds");
    assert_eq!(jail.set(&narrow, &memory(512 * MIB)).unwrap(), []);
    assert_eq!(jail.set(&memory(512 * MIB), &memory(128 * MIB)).unwrap(), []);
    assert!(jail.populated().unwrap());
}

#[test]
fn a_cut_that_page_cache_stands_in_the_way_of_is_made() {
    let Some(mut yard) = Yard::new() else { return };
    let jail = yard.jail(&memory(256 * MIB));
    let file = tempfile::NamedTempFile::new().unwrap();
    let name = file.path().display();
    let script = format!("head -c 60000000 /dev/zero > {name}; sync {name}; echo written; sleep 60");
    let mut output = yard.run(&jail, &script);
    assert_eq!(line(&mut output), "written");
    assert!(jail.usage().unwrap().memory > 40 * MIB);
    assert_eq!(jail.set(&memory(256 * MIB), &memory(16 * MIB)).unwrap(), []);
    assert!(jail.usage().unwrap().memory <= 16 * MIB);
    assert_eq!(jail.oom_kills().unwrap(), 0);
    assert!(jail.populated().unwrap());
}

#[test]
fn frozen_processes_stand_still_and_can_be_killed() {
    let Some(mut yard) = Yard::new() else { return };
    let jail = yard.jail(&Limits::default());
    yard.run(&jail, "while :; do :; done");
    assert!(!jail.frozen().unwrap());
    jail.freeze().unwrap();
    assert!(jail.frozen().unwrap());
    let before = jail.usage().unwrap().cpu_usec;
    sleep(Duration::from_millis(50));
    assert_eq!(jail.usage().unwrap().cpu_usec, before);
    jail.thaw().unwrap();
    until("running again", || jail.usage().unwrap().cpu_usec > before);
    jail.freeze().unwrap();
    jail.kill_all().unwrap();
    assert!(jail.wait_empty(PATIENCE).unwrap());
}

#[test]
fn a_tree_that_keeps_forking_is_killed_whole() {
    let Some(mut yard) = Yard::new() else { return };
    let jail = yard.jail(&Limits { processes: Some(60), ..Limits::default() });
    yard.run(
        &jail,
        "f() { while :; do (setsid sleep 0.01; f) & sleep 0.01; done 2>/dev/null; }; f 2>/dev/null",
    );
    until("a crowd", || jail.processes().unwrap().len() >= 30);
    assert!(!jail.wait_empty(Duration::from_millis(1)).unwrap());
    jail.kill_all().unwrap();
    assert!(jail.wait_empty(PATIENCE).unwrap());
    assert_eq!(jail.processes().unwrap(), Vec::<i32>::new());
}

#[test]
fn a_process_outside_of_the_unified_cgroup_is_killed_too() {
    let Some(mut yard) = Yard::new() else { return };
    if yard.host.two() {
        return;
    }
    let jail = yard.jail(&Limits::default());
    let tasks = jail.host.tree(Controller::Pids).unwrap().full(&join(&jail.path, "tasks"));
    let script = format!("echo 0 > {}; echo in; exec sleep 60", tasks.display());
    let mut child = Command::new("sh").args(["-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
    assert_eq!(line(&mut BufReader::new(child.stdout.take().unwrap())), "in");
    yard.children.push(child);
    assert_eq!(jail.processes().unwrap().len(), 1);
    jail.kill_all().unwrap();
    assert!(jail.wait_empty(PATIENCE).unwrap());
}

#[test]
fn removal_takes_what_the_jail_made_and_can_be_repeated() {
    let Some(mut yard) = Yard::new() else { return };
    let jail = yard.jail(&Limits::default());
    jail.delegate(65_534).unwrap();
    let tree = jail.host.unified().unwrap();
    for below in ["a", "a/b", "a/b/c", "d"] {
        tree.make(&join(&jail.path, below)).unwrap();
    }
    jail.remove().unwrap();
    assert!(!jail.exists());
    jail.remove().unwrap();
    assert_eq!(jail.usage().unwrap(), Usage::default());
    assert_eq!(jail.observe(&settings(&[("limits.memory", json!(1))])).unwrap(), Settings::new());
    assert!(jail.wait_empty(PATIENCE).unwrap());
    jail.kill_all().unwrap();
}

#[test]
fn a_cgroup_in_use_is_neither_removed_nor_taken_over() {
    let Some(mut yard) = Yard::new() else { return };
    let jail = yard.jail(&Limits::default());
    yard.run(&jail, "sleep 60");
    assert!(jail.remove().is_err());
    let again = Cgroup::create(&yard.host, &yard.parent, "jail0", &Limits::default(), &Needs::default());
    assert!(again.unwrap_err().to_string().contains("in use"));
    assert!(jail.populated().unwrap());
    jail.kill_all().unwrap();
    assert!(jail.wait_empty(PATIENCE).unwrap());
    let limits = memory(64 * MIB);
    Cgroup::create(&yard.host, &yard.parent, "jail0", &limits, &Needs::default())
        .expect("an empty left-over");
}

#[test]
fn a_limit_the_kernel_does_not_take_leaves_nothing() {
    let Some(mut yard) = Yard::new() else { return };
    let limits = Limits { cpuset: Some("4000".into()), ..memory(64 * MIB) };
    let error = yard.jail_with(&limits, &Needs::default()).unwrap_err();
    assert!(format!("{error:#}").contains("cpuset"), "{error:#}");
    assert!(!Cgroup::open(&yard.host, &yard.parent, "jail0").unwrap().exists());
}

#[test]
fn a_running_jail_gets_and_loses_a_cpuset() {
    let Some(mut yard) = Yard::new() else { return };
    let jail = yard.jail(&Limits::default());
    yard.run(&jail, "(sleep 60; :) & sleep 60");
    until("a child", || jail.processes().unwrap().len() >= 2);
    let one = Limits { cpuset: Some("0".into()), ..Limits::default() };
    assert_eq!(jail.set(&Limits::default(), &one).unwrap(), []);
    for pid in jail.processes().unwrap() {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains("Cpus_allowed_list:\t0\n"), "{status}");
    }
    let wanted = settings(&[("limits.cpuset", json!("0-0"))]);
    assert_eq!(jail.observe(&wanted).unwrap(), wanted);
    assert_eq!(jail.set(&one, &Limits::default()).unwrap(), []);
    let after = jail.observe(&wanted).unwrap();
    assert_eq!(after == wanted, std::thread::available_parallelism().unwrap().get() == 1, "{after:?}");
}

#[test]
fn devices_are_denied_but_for_the_usual_and_the_allowed() {
    let Some(mut yard) = Yard::new() else { return };
    let needs = Needs { devices: Some(vec!["c 10:229 rw".into(), "/dev/null".into()]) };
    let jail = yard.jail_with(&Limits::default(), &needs).unwrap();
    // 1:11 is kmsg, which root may open outside.
    let mut output =
        yard.run(&jail, ": > /dev/null && echo null; (: > /dev/kmsg) 2>/dev/null || echo no; sleep 60");
    assert_eq!((line(&mut output), line(&mut output)), ("null".into(), "no".into()));
}

#[test]
fn the_filter_program_is_taken_by_the_kernel_and_works() {
    use crate::sys::cgroup::attach_device_filter;
    use std::os::fd::AsFd as _;
    let Some(mut yard) = Yard::new() else { return };
    let jail = yard.jail(&Limits::default());
    let Some(dir) = jail.unified_dir().unwrap() else { return };
    let rules = devices::rules(&["b 7:* r".into()]).unwrap();
    attach_device_filter(dir.as_fd(), &devices::program(&rules)).unwrap();
    let mut output =
        yard.run(&jail, ": > /dev/null && echo null; (: > /dev/kmsg) 2>/dev/null || echo no; sleep 60");
    assert_eq!((line(&mut output), line(&mut output)), ("null".into(), "no".into()));
}

#[test]
fn v1_without_a_v2_hierarchy_beside_it() {
    let Some(mut yard) = Yard::new() else { return };
    if yard.host.two() {
        return;
    }
    let table = std::fs::read_to_string("/proc/cgroups").unwrap();
    let mounts = parse(&std::fs::read_to_string("/proc/self/mountinfo").unwrap(), &table).unwrap();
    yard.host = Hierarchies::open(Mounts { unified: None, ..mounts }, "").unwrap();
    let jail = yard.jail(&Limits { processes: Some(60), ..Limits::default() });
    yard.run(&jail, "f() { while :; do (sleep 0.01; f) & sleep 0.01; done 2>/dev/null; }; f 2>/dev/null");
    until("a crowd", || jail.processes().unwrap().len() >= 20);
    assert!(jail.usage().unwrap().cpu_usec > 0);
    jail.freeze().unwrap();
    assert!(jail.frozen().unwrap());
    jail.thaw().unwrap();
    assert!(!jail.frozen().unwrap());
    jail.kill_all().unwrap();
    assert!(jail.wait_empty(PATIENCE).unwrap());
}

#[test]
fn what_this_host_refuses_is_no_key_it_enforces() {
    let Some(mut yard) = Yard::new() else { return };
    let refused = yard.host.refused();
    assert_eq!(refused.contains_key("limits.memory_high"), !yard.host.two(), "{refused:?}");
    assert!(!refused.contains_key("limits.processes"), "{refused:?}");
    let swap_only = Limits { swap: Some(MIB), ..Limits::default() };
    assert_eq!(yard.host.conflicts(&swap_only).contains_key("limits.swap"), !yard.host.two());
    assert_eq!(yard.jail_with(&swap_only, &Needs::default()).is_err(), !yard.host.two());
    let jail = yard.jail(&memory(64 * MIB));
    let file = if yard.host.two() { "memory.swap.max" } else { "memory.memsw.limit_in_bytes" };
    let found = read(jail.host.tree(Controller::Memory).unwrap(), &join(&jail.path, file)).unwrap();
    assert_eq!(bytes(&found), Some(Some(if yard.host.two() { 0 } else { 64 * MIB })));
}
