use std::path::PathBuf;

use super::*;
use crate::limits::Cgroup;

/// Directories and files as a kernel would show them; a name that ends in `/` is a cgroup.
fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a directory");
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().expect("below the root")).expect("a directory");
        fs::write(path, text).expect("a file");
    }
    root
}

fn two(root: &tempfile::TempDir, own: &str) -> Result<Hierarchies> {
    Hierarchies::open(Mounts { unified: Some(root.path().to_owned()), ..Mounts::default() }, own)
}

fn check(host: &Hierarchies, expect: &[(&str, &str)]) {
    let refused = host.refused();
    assert_eq!(refused.keys().collect::<Vec<_>>(), expect.iter().map(|(key, _)| key).collect::<Vec<_>>());
    for (key, reason) in expect {
        assert!(refused[*key].contains(reason), "{key}: {}", refused[*key]);
    }
}

const ALL: &str = "cpuset cpu io memory hugetlb pids\n";

#[test]
fn v2_that_has_everything_refuses_nothing() {
    let root = tree(&[
        ("cgroup.controllers", ALL),
        ("a.slice/cgroup.procs", ""),
        ("b.slice/memory.current", "0"),
        ("b.slice/memory.swap.max", "max"),
        ("b.slice/cpu.max", "max 100000"),
        ("b.slice/cpu.weight", "100"),
    ]);
    check(&two(&root, "0::/user.slice\n").unwrap(), &[]);
    let fresh = tree(&[("cgroup.controllers", ALL)]);
    check(&two(&fresh, "0::/\n").unwrap(), &[]);
}

#[test]
fn v2_names_what_is_missing_with_its_fix() {
    let root = tree(&[("cgroup.controllers", "cpu io pids\n"), ("init.scope/cpu.weight", "100")]);
    check(
        &two(&root, "0::/\n").unwrap(),
        &[
            ("limits.cpu", "CONFIG_CFS_BANDWIDTH"),
            ("limits.cpuset", "boot with cgroup_enable=cpuset"),
            ("limits.memory", "boot with cgroup_enable=memory"),
            ("limits.memory_high", "boot with cgroup_enable=memory"),
            ("limits.swap", "boot with cgroup_enable=memory"),
        ],
    );
    let noswap = tree(&[("cgroup.controllers", ALL), ("init.scope/memory.current", "0")]);
    check(&two(&noswap, "0::/\n").unwrap(), &[("limits.swap", "swapaccount=1")]);
    let container = tree(&[("cgroup.controllers", "cpuset cpu memory\n"), ("cgroup.type", "domain")]);
    check(&two(&container, "0::/\n").unwrap(), &[("limits.processes", "this container")]);
}

#[test]
fn v2_below_a_unit_names_the_unit() {
    let root = tree(&[("cgroup.controllers", ALL), ("s.service/cgroup.controllers", "cpu pids\n")]);
    let host = two(&root, "0::/\n").unwrap().at("s.service").unwrap();
    assert_eq!((host.base(), host.two()), ("s.service", true));
    let reason = "in s.service: its unit needs Delegate=yes";
    check(
        &host,
        &[
            ("limits.cpuset", reason),
            ("limits.memory", reason),
            ("limits.memory_high", reason),
            ("limits.swap", reason),
        ],
    );
    assert!(host.at("../..").is_err());
    let gone = host.at("gone").unwrap();
    assert!(!Cgroup::open(&gone, "stockade", "web").unwrap().exists());
    assert!(gone.refused().contains_key("limits.memory"));
}

#[test]
fn v1_names_what_is_missing_with_its_fix() {
    let root = tree(&[
        ("memory/memory.limit_in_bytes", "1"),
        ("cpu/cpu.shares", "1024"),
        ("cpu/cpu.cfs_quota_us", "-1"),
        ("pids/cgroup.procs", ""),
    ]);
    let at = |name: &str| -> PathBuf { root.path().join(name) };
    let v1 =
        [(Controller::Memory, at("memory")), (Controller::Cpu, at("cpu")), (Controller::Pids, at("pids"))];
    let missing = [(Controller::Cpuset, "no cpuset controller: why".to_owned())];
    let mounts = Mounts { v1: v1.into(), unified: None, missing: missing.into() };
    check(
        &Hierarchies::open(mounts, "").unwrap(),
        &[
            ("allow.devices", "no devices controller"),
            ("limits.cpuset", "no cpuset controller: why"),
            ("limits.memory_high", "no soft memory limit"),
            ("limits.swap", "swapaccount=1"),
        ],
    );
}

#[test]
fn paths_stay_below_the_parent() {
    let root = tree(&[("cgroup.controllers", ALL)]);
    let host = two(&root, "0::/\n").unwrap();
    for (parent, name) in
        [("..", "web"), ("/stockade", "web"), ("a//b", "web"), ("a", ".."), ("a", ""), ("a", "b/c")]
    {
        assert!(Cgroup::open(&host, parent, name).is_err(), "{parent} {name}");
    }
    assert!(Cgroup::open(&host, "a/b", "web").is_ok());
}

#[test]
fn our_own_place_on_v2() {
    let check = |text: &str, expect: &str| assert_eq!(own_unified(text), expect);
    check("9:name=systemd:/x\n4:memory:/y\n0::/system.slice/s.service\n", "system.slice/s.service");
    check("0::/\n", "");
    check("0::/../..\n", "");
    check("4:memory:/y\n", "");
}

/// Extended attributes of the cgroup file system need root, and a v2 hierarchy.
#[test]
fn only_a_subgroup_of_a_delegated_unit_moves_the_base() {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("STOCKADE_TEST_MUST_RUN").is_none(), "not root");
        eprintln!("skipped: needs root");
        return;
    }
    let host = Hierarchies::detect().expect("cgroups of this machine");
    let Some(tree) = host.unified() else { return };
    let unit = format!("stockade-test-unit-{}", std::process::id());
    tree.make(&unit).expect("a cgroup");
    let before = base_of(tree, &join(&unit, SUPERVISOR));
    let set =
        rustix::fs::setxattr(tree.full(&unit), "trusted.delegate", b"1", rustix::fs::XattrFlags::empty());
    let after = [SUPERVISOR, "", "other"].map(|leaf| base_of(tree, &join(&unit, leaf)));
    tree.remove(&unit).expect("remove the cgroup");
    set.expect("mark the cgroup");
    assert_eq!((before.as_str(), after), ("", [unit, String::new(), String::new()]));
}

#[test]
fn the_unit_names_our_leaf() {
    let line = format!("DelegateSubgroup={SUPERVISOR}");
    assert!(include_str!("../../etc/stockade.service").lines().any(|found| found == line));
}

/// As systemd marks a unit, on a plain directory.
#[test]
fn a_shell_joins_the_unit_while_it_exists() {
    let leaf = format!("{UNIT}/{SUPERVISOR}/cgroup.procs");
    let controllers = format!("{UNIT}/cgroup.controllers");
    let root = tree(&[("cgroup.controllers", ALL), (&controllers, ALL), (&leaf, "")]);
    let base = || two(&root, "0::/user.slice/session-1.scope\n").unwrap().base().to_owned();
    assert_eq!(base(), "");
    let unit = root.path().join(UNIT);
    rustix::fs::setxattr(&unit, "user.delegate", b"1", rustix::fs::XattrFlags::empty())
        .expect("a file system with extended attributes");
    assert_eq!(base(), UNIT);
    fs::remove_dir_all(unit.join(SUPERVISOR)).expect("a directory");
    assert_eq!(base(), "");
}
