//! Snapshots of what is kept in another way than an overlay: subvolumes, and whole roots.

use crate::apply::SLEEP;
use crate::machine::Machine;
use crate::snapshot::{count, cut_off_anywhere, take};
use crate::storage::{on_btrfs, subvolumes};

#[test]
fn what_is_cut_off_anywhere_on_btrfs_is_finished_or_undone() {
    for kind in ["btrfs", "directory"] {
        let Some(machine) = Machine::new() else { return };
        on_btrfs(&machine, true);
        cut_off_anywhere(&machine, &stored(kind));
        let state = release_btrfs(&machine);
        assert_eq!(count(&machine, "changes"), 0, "{state}");
    }
}

/// A definition whose writes are kept in this way.
fn stored(kind: &str) -> String {
    SLEEP.replace("[exec]", &format!("root.storage = '{kind}'\n[exec]"))
}

/// Destroys all jails, sees that nothing of them is left in the file system, and unmounts it.
fn release_btrfs(machine: &Machine) -> String {
    for name in machine.ls().into_keys() {
        machine.remove(&name);
        machine.good(&["destroy", &name, "--yes"]);
    }
    assert_eq!(subvolumes(machine), "");
    let state = machine.state().display().to_string();
    let groups = machine.outside(&["btrfs", "qgroup", "show", &state]);
    let groups = String::from_utf8(groups.stdout).unwrap();
    assert!(!groups.lines().any(|line| line.starts_with("27/")), "{groups}");
    machine.wait_until("the file system is free", || machine.outside(&["umount", &state]).status.success());
    state
}

/// On btrfs of its own: by one call while it runs, put back by another, and nothing grows.
fn subvolumes_are_taken_and_put_back(simple: bool) {
    let Some(machine) = Machine::new() else { return };
    on_btrfs(&machine, simple);
    machine.jail("a", &stored("btrfs").replace("[exec]", "limits.disk = '64M'\n[exec]"));
    machine.good(&["apply"]);
    machine.inside("a", "echo one > /srv/f; chown 7:8 /srv/f; dd if=/dev/zero of=/srv/big bs=1M count=40");
    let pid = machine.pid("a");
    let taken = take(&machine, "a", "one");
    assert_eq!(taken["how"], "subvolume", "{taken}");
    assert!(taken["pause_ms"].as_f64().unwrap() < 1000.0, "{taken}");
    assert_eq!((machine.pid("a"), machine.state_of("a").as_str()), (pid, "running"));
    machine.inside("a", "echo two > /srv/f; echo new > /srv/new");
    machine.good(&["rollback", "a", "one", "--yes"]);
    assert_eq!(machine.inside("a", "cat /srv/f; stat -c %u:%g /srv/f; ls /srv"), "one\n7:8\nbig\nf\n");
    assert_eq!(machine.good(&["apply"]), "No changes.\n");
    let full = "dd if=/dev/zero of=/srv/more bs=1M count=60 2>&1; sync; wc -c < /srv/more; rm /srv/more";
    let said = machine.inside("a", full);
    let fitted: u64 = said.lines().last().unwrap().parse().unwrap();
    assert!((10 << 20..24 << 20).contains(&fitted), "what a rollback brings back counts: {said}");
    machine.good(&["rollback", "a", "before-rollback", "--yes", "--discard"]);
    assert_eq!(machine.inside("a", "cat /srv/f /srv/new"), "two\nnew\n");
    for round in 0..3 {
        machine.good(&["stop", "a"]);
        assert_eq!(take(&machine, "a", &format!("down-{round}"))["how"], "moved");
        assert_eq!(take(&machine, "a", &format!("same-{round}"))["how"], "unchanged");
        machine.good(&["start", "a"]);
        machine.inside("a", &format!("cat /srv/f /srv/new; echo {round} > /srv/r{round}"));
        assert!(!machine.state().join("jails/a/base.json").exists(), "it stands on nothing but itself");
    }
    let locked = machine.outside(&[
        "sh",
        "-c",
        "for one in \"$1\"/*/volume; do touch $one/x; done",
        "touch",
        &machine.state().join("changes").display().to_string(),
    ]);
    assert!(String::from_utf8_lossy(&locked.stderr).contains("Read-only"), "{locked:?}");
    machine.good(&["clone", "a", "b"]);
    machine.good(&["clone", "a", "c", "--from", "down-1"]);
    machine.good(&["apply"]);
    assert_eq!(machine.inside("b", "cat /srv/f /srv/r2; stat -c %u:%g /srv/f; rm /srv/f"), "two\n2\n7:8\n");
    assert_eq!(machine.inside("c", "ls /srv"), "big\nf\nnew\nr0\n");
    take(&machine, "b", "own");
    machine.inside("b", "echo b > /srv/b");
    machine.good(&["rollback", "b", "own", "--yes"]);
    assert_eq!(machine.inside("b", "ls /srv; cat /srv/r1"), "big\nnew\nr0\nr1\nr2\n1\n");
    // Another kind stands on what was set aside as a subvolume.
    machine.good(&["stop", "a"]);
    take(&machine, "a", "aside");
    machine.jail("a", &stored("overlay"));
    machine.good(&["start", "a"]);
    assert_eq!(machine.inside("a", "cat /srv/f /srv/r2; echo overlay > /srv/o"), "two\n2\n");
    machine.jail("a", &stored("btrfs"));
    machine.good(&["apply"]);
    assert_eq!(machine.inside("a", "cat /srv/f /srv/o"), "two\noverlay\n");
    release_btrfs(&machine);
}

#[test]
fn subvolumes_in_quota_groups_are_taken_and_put_back() {
    subvolumes_are_taken_and_put_back(false);
}

#[test]
fn subvolumes_by_simple_quotas_are_taken_and_put_back() {
    subvolumes_are_taken_and_put_back(true);
}

/// Whole roots have no layers below them, here copied and on btrfs shared.
fn whole_roots_are_taken_and_put_back(machine: &Machine, how: &str) {
    machine.jail("a", &stored("directory"));
    machine.good(&["apply"]);
    machine.inside("a", "echo one > /srv/f; chown 7:8 /srv/f; rm -r /var/tmp");
    assert_eq!(take(machine, "a", "one")["how"], how);
    machine.inside("a", "echo two > /srv/f; echo new > /srv/new");
    machine.good(&["rollback", "a", "one", "--yes"]);
    let look = "cat /srv/f; stat -c %u:%g /srv/f; ls /srv; test -e /var/tmp || echo gone";
    assert_eq!(machine.inside("a", look), "one\n7:8\nf\ngone\n");
    machine.good(&["stop", "a"]);
    assert_eq!(take(machine, "a", "down")["how"], "moved");
    assert_eq!(take(machine, "a", "same")["how"], "unchanged");
    machine.good(&["clone", "a", "b"]);
    machine.good(&["clone", "a", "c", "--from", "before-rollback"]);
    machine.good(&["apply"]);
    machine.good(&["start", "a"]);
    assert_eq!(machine.inside("a", look), "one\n7:8\nf\ngone\n");
    assert_eq!(machine.inside("b", look), "one\n7:8\nf\ngone\n");
    assert_eq!(machine.inside("c", "cat /srv/f /srv/new"), "two\nnew\n");
    assert_eq!(machine.good(&["apply"]), "No changes.\n");
    for name in ["a", "b", "c"] {
        assert!(!machine.state().join(format!("jails/{name}/base.json")).exists(), "{name} is on its own");
    }
    // What was kept of the one kind is nothing for the other.
    assert!(machine.status(&["diff", "a", "--from", "one"], 1).contains("whole root"));
    machine.jail("b", SLEEP);
    machine.good(&["snapshot", "b", "whole"]);
    machine.jail("b", &stored("overlay"));
    machine.good(&["apply"]);
    assert!(machine.status(&["rollback", "b", "whole", "--yes"], 1).contains("whole root"));
    machine.good(&["start", "b"]);
    assert_eq!(machine.inside("b", "cat /srv/f"), "one\n");
}

#[test]
fn a_whole_root_is_taken_and_put_back() {
    let Some(machine) = Machine::new() else { return };
    whole_roots_are_taken_and_put_back(&machine, "copied");
}

#[test]
fn a_whole_root_on_btrfs_is_taken_and_put_back() {
    let Some(machine) = Machine::new() else { return };
    on_btrfs(&machine, true);
    whole_roots_are_taken_and_put_back(&machine, "subvolume");
    release_btrfs(&machine);
}

/// A rollback empties the writes in an image where they are, and leaves those of an overlay that are
/// empty: it is the same directory, and yet says nothing of what the last snapshot has found in it.
#[test]
fn what_was_put_back_is_copied_anew() {
    for kind in ["image", "overlay"] {
        let Some(machine) = Machine::new() else { return };
        machine.jail("a", &stored(kind));
        machine.good(&["apply"]);
        let settle = || std::thread::sleep(std::time::Duration::from_millis(100));
        machine.inside("a", "mkdir /srv/d; echo one > /srv/d/x; echo one > /srv/d/y");
        settle();
        assert_eq!(take(&machine, "a", "one")["how"], "copied");
        machine.inside("a", "echo two > /srv/d/z");
        settle();
        assert_eq!(take(&machine, "a", "two")["how"], "changed");
        // What the layers do not have leaves no trace; of an overlay's writes nothing is left then.
        machine.inside("a", "rm -r /srv/d");
        machine.good(&["stop", "a"]);
        let upper = machine.state().join("jails/a/upper");
        for entry in std::fs::read_dir(&upper).into_iter().flatten().flatten() {
            std::fs::remove_dir_all(entry.path()).unwrap();
        }
        machine.good(&["rollback", "a", "one", "--yes", "--discard"]);
        machine.good(&["start", "a"]);
        take(&machine, "a", "three");
        machine.inside("a", "rm -r /srv/d");
        machine.good(&["rollback", "a", "three", "--yes", "--discard"]);
        assert_eq!(machine.inside("a", "cd /srv/d; cat x y; ls"), "one\none\nx\ny\n", "{kind}");
        machine.good(&["rollback", "a", "two", "--yes", "--discard"]);
        assert_eq!(machine.inside("a", "cd /srv/d; cat x z; ls"), "one\ntwo\nx\ny\nz\n", "{kind}");
    }
}
