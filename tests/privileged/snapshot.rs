//! Snapshots, rollbacks and clones: of jails that run and that do not, cut off anywhere, and on
//! file systems that share blocks.

use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::apply::SLEEP;
use crate::machine::{Machine, pid_of};

pub fn labels(machine: &Machine, name: &str) -> Vec<String> {
    let answer: Value = serde_json::from_str(&machine.good(&["snapshot", "--list", name, "--json"])).unwrap();
    let label = |item: &Value| item["label"].as_str().unwrap().to_owned();
    answer["items"].as_array().unwrap().iter().map(label).collect()
}

pub fn take(machine: &Machine, name: &str, label: &str) -> Value {
    let answer: Value = serde_json::from_str(&machine.good(&["snapshot", name, label, "--json"])).unwrap();
    answer["items"][0].clone()
}

pub fn count(machine: &Machine, directory: &str) -> usize {
    let entries = std::fs::read_dir(machine.state().join(directory)).into_iter().flatten();
    entries.flatten().filter(|entry| !entry.file_name().to_string_lossy().starts_with('.')).count()
}

#[test]
fn a_running_jail_is_put_back_to_what_it_was() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("a", SLEEP);
    machine.jail("b", &format!("depend = ['a']\n{SLEEP}"));
    machine.good(&["apply"]);
    machine.inside(
        "a",
        "echo one > /srv/f; mkdir /srv/d; echo x > /srv/d/x; chown 7:8 /srv/f; ln -s /etc/passwd /srv/l",
    );
    let pid = machine.pid("a");
    let taken = take(&machine, "a", "one");
    assert_eq!(machine.pid("a"), pid, "it runs on");
    assert!(taken["pause_ms"].as_f64().unwrap() < 1000.0, "{taken}");
    assert_eq!(machine.state_of("a"), "running");
    machine.inside("a", "echo two > /srv/f; rm -r /srv/d /srv/l; echo new > /srv/new");
    let other = machine.pid("b");
    machine.status(&["rollback", "a", "one"], 2);
    machine.good(&["rollback", "a", "one", "--yes"]);
    let look = "cat /srv/f /srv/d/x; stat -c %u:%g /srv/f; readlink /srv/l; ls /srv";
    assert_eq!(machine.inside("a", look), "one\nx\n7:8\n/etc/passwd\nd\nf\nl\n");
    assert_ne!(machine.pid("a"), pid, "it was stopped for it");
    assert_ne!(machine.pid("b"), other, "and so was what runs on it");
    assert_eq!(machine.good(&["apply"]), "No changes.\n");
    assert_eq!(labels(&machine, "a"), ["one", "before-rollback"]);
    machine.good(&["rollback", "a", "before-rollback", "--yes", "--discard"]);
    assert_eq!(machine.inside("a", "cat /srv/f; ls /srv"), "two\nf\nnew\n");
    machine.good(&["rollback", "a", "one", "--yes"]);
    assert_eq!(machine.inside("a", "cat /srv/f"), "one\n", "a snapshot is not used up");
    machine.good(&["snapshot", "a", "--rm", "one", "--rm", "before-rollback"]);
    assert_eq!(machine.inside("a", "cat /srv/f"), "one\n", "what the jail stands on stays");
    assert_eq!(count(&machine, "changes"), 1);
    machine.good(&["destroy", "a", "b", "--yes"]);
    assert_eq!(count(&machine, "changes"), 0);
}

/// The second snapshot of a running jail is what has changed since the first, and yet is all of it.
#[test]
fn a_running_jail_is_copied_once() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("a", SLEEP);
    machine.good(&["apply"]);
    machine.inside("a", "cd /srv; mkdir d e; echo x > d/x; echo y > d/y; head -c 4000000 /dev/zero > big");
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(take(&machine, "a", "one")["how"], "copied");
    machine.inside("a", "cd /srv; rm d/x; echo z > d/z; rm -r e; echo file > e; chmod 700 d");
    assert_eq!(take(&machine, "a", "two")["how"], "changed");
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(take(&machine, "a", "three")["how"], "changed");
    assert_eq!(take(&machine, "a", "quiet")["how"], "unchanged");
    assert_eq!(count(&machine, "changes"), 3, "none for what has not changed");
    let answer: Value = serde_json::from_str(&machine.good(&["snapshot", "--list", "a", "--json"])).unwrap();
    let sizes: Vec<&Value> = answer["items"].as_array().unwrap().iter().map(|item| &item["size"]).collect();
    let bytes = |at: usize| sizes[at].as_u64().unwrap();
    assert!(bytes(0) > 4_000_000 && bytes(1) < 1_000_000 && bytes(2) < 1_000_000, "{sizes:?}");
    assert!(sizes[3].is_null(), "{sizes:?}");
    let look = "cd /srv; ls -R; stat -c %a d; cat e d/y; wc -c < big";
    let now = machine.inside("a", look);
    assert!(machine.good(&["diff", "a", "--from", "three"]).contains("/srv/d/z"));
    machine.good(&["clone", "a", "b", "--from", "two"]);
    machine.good(&["apply"]);
    assert_eq!(machine.inside("b", look), now, "a clone of what has changed, over what it lies on");
    machine.inside("a", "rm -r /srv/*");
    machine.good(&["snapshot", "a", "--rm", "one"]);
    machine.good(&["rollback", "a", "quiet", "--yes"]);
    assert_eq!(machine.inside("a", look), now);
    assert_eq!(machine.good(&["apply"]), "No changes.\n");
    // Its writes are others now.
    machine.inside("a", "echo new > /srv/new");
    assert_eq!(take(&machine, "a", "four")["how"], "copied");
    machine.good(&["destroy", "a", "b", "--yes"]);
    assert_eq!(count(&machine, "changes"), 0);
}

#[test]
fn a_stopped_jail_is_set_aside_and_not_copied() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("a", SLEEP);
    machine.good(&["apply"]);
    machine.inside("a", "echo one > /srv/f; rm -r /var/tmp");
    machine.good(&["stop", "a"]);
    let inode = std::fs::metadata(machine.state().join("jails/a/upper/srv/f")).unwrap().ino();
    let taken = take(&machine, "a", "one");
    assert_eq!((&taken["how"], &taken["pause_ms"]), (&"moved".into(), &Value::Null), "{taken}");
    let id = std::fs::read_dir(machine.state().join("changes"))
        .unwrap()
        .flatten()
        .find(|e| e.path().is_dir())
        .unwrap();
    assert_eq!(std::fs::metadata(id.path().join("upper/srv/f")).unwrap().ino(), inode, "the same file");
    assert_eq!(take(&machine, "a", "again")["how"], "unchanged");
    assert!(machine.status(&["snapshot", "a", "one"], 1).contains("already"));
    machine.good(&["start", "a"]);
    assert_eq!(
        machine.inside("a", "cat /srv/f; test -e /var/tmp || echo gone; echo two >> /srv/f; cat /srv/f"),
        "one\ngone\none\ntwo\n"
    );
    machine.good(&["stop", "a"]);
    for round in 0..20 {
        take(&machine, "a", &format!("round-{round}"));
        machine.good(&["start", "a"]);
        machine.inside("a", &format!("echo {round} > /srv/r{round}"));
        machine.good(&["stop", "a"]);
    }
    machine.good(&["start", "a"]);
    let expect = "0\n10\n19\n";
    assert_eq!(
        machine.inside("a", "cat /srv/r0 /srv/r10 /srv/r19"),
        expect,
        "more lowers than one option can name"
    );
    machine.good(&["stop", "a"]);
    machine.good(&["rollback", "a", "one", "--yes"]);
    assert_eq!(machine.state_of("a"), "stopped", "it was down, and stays so");
    machine.good(&["start", "a"]);
    assert_eq!(machine.inside("a", "cat /srv/f; ls /srv"), "one\nf\n");
}

#[test]
fn a_clone_is_a_jail_of_its_own() {
    let Some(machine) = Machine::new() else { return };
    machine.host("[bridge.stockade0]\naddress = [\"10.77.0.1/24\"]\n");
    let network =
        "# Its network.\n[network]\nmode = \"vnet\" # on the bridge\naddress = [\"10.77.0.9/24\"]\n";
    machine.jail("a", &format!("{SLEEP}{network}"));
    machine.good(&["apply"]);
    machine.inside("a", "echo one > /srv/f; chown 5:6 /srv/f; chmod 4755 /srv/f");
    let said = machine.status(&["clone", "a", "b"], 3);
    assert!(said.contains("10.77.0.9") && said.contains("--address"), "{said}");
    assert_eq!(count(&machine, "changes"), 0, "a refusal leaves nothing");
    machine.good(&["clone", "a", "b", "--address", "10.77.0.10/24"]);
    let text = std::fs::read_to_string(machine.config().join("jails.d/b.toml")).unwrap();
    assert!(
        text.contains("# Its network.") && text.contains("# on the bridge") && text.contains("10.77.0.10/24"),
        "{text}"
    );
    machine.good(&["apply"]);
    let look = "cat /srv/f; stat -c %u:%g:%a /srv/f";
    assert_eq!(machine.inside("b", look), "one\n5:6:4755\n", "with ids of its own");
    assert_ne!(machine.record("a")["first_id"], machine.record("b")["first_id"]);
    machine.inside("b", "echo two > /srv/f; echo b > /srv/b");
    assert_eq!(machine.inside("a", "cat /srv/f; ls /srv"), "one\nf\n", "the one does not see the other");
    machine.inside("a", "rm /srv/f");
    assert_eq!(machine.inside("b", "cat /srv/f /srv/b"), "two\nb\n");
    // Of the clone, and of the clone as it was.
    take(&machine, "b", "s");
    machine.inside("b", "rm /srv/b");
    machine.good(&["clone", "b", "c", "--from", "s", "--address", "10.77.0.11/24"]);
    machine.good(&["apply"]);
    assert_eq!(machine.inside("c", "cat /srv/f /srv/b; stat -c %u:%g /srv/f"), "two\nb\n5:6\n");
    // Without their model.
    for name in ["a", "b"] {
        machine.remove(name);
        machine.good(&["destroy", name, "--yes"]);
    }
    machine.good(&["restart", "c"]);
    assert_eq!(machine.inside("c", "cat /srv/f /srv/b; stat -c %u:%g /srv/f"), "two\nb\n5:6\n");
    assert!(machine.good(&["gc", "--dry-run"]).contains("Nothing"));
    machine.remove("c");
    machine.good(&["destroy", "c", "--yes"]);
    assert_eq!(count(&machine, "changes"), 0);
    assert_eq!(count(&machine, "ids"), 0, "and their ids are free again");
}

/// Enough files that a copy is cut off in the middle.
const MANY: &str = "mkdir /srv/many; i=0; while [ $i -lt 800 ]; do echo $i > /srv/many/$i; i=$((i+1)); done";

#[test]
fn what_is_cut_off_anywhere_is_finished_or_undone() {
    let Some(machine) = Machine::new() else { return };
    cut_off_anywhere(&machine, SLEEP);
}

pub fn cut_off_anywhere(machine: &Machine, definition: &str) {
    machine.jail("a", definition);
    machine.good(&["apply"]);
    machine.inside("a", MANY);
    take(machine, "a", "first");
    machine.inside("a", "echo later > /srv/later");
    let cut = |args: &[&str], after: Duration| {
        let mut child = machine.command(args).spawn().unwrap();
        std::thread::sleep(after);
        rustix::process::kill_process(pid_of(&child), Signal::KILL).unwrap();
        child.wait().unwrap();
        machine.good(&["apply"]);
        assert_eq!(machine.state_of("a"), "running", "{args:?} cut after {after:?}");
        assert_eq!(machine.good(&["apply"]), "No changes.\n");
        assert_eq!(count(machine, "pending"), 0);
        assert_eq!(machine.inside("a", "ls /srv/many | wc -l"), "800\n", "{args:?} cut after {after:?}");
    };
    // Each is made once as a whole, and then cut in every eighth of the time that took.
    let whole = |args: &[&str]| {
        let start = Instant::now();
        machine.good(args);
        start.elapsed()
    };
    let mut finished = [0; 3];
    let time = whole(&["snapshot", "a", "whole"]);
    for round in 1..=8_u32 {
        let label = format!("cut-{round}");
        cut(&["snapshot", "a", &label], time * round / 8);
        finished[0] += usize::from(labels(machine, "a").contains(&label));
    }
    let time = whole(&["rollback", "a", "first", "--yes"]);
    for round in 1..=8_u32 {
        machine.inside("a", &format!("touch /srv/now-{round}"));
        cut(&["rollback", "a", "first", "--yes"], time * round / 8);
        let now = machine.inside("a", &format!("ls /srv/now-{round} 2>/dev/null || true"));
        finished[1] += usize::from(now.is_empty());
    }
    machine.good(&["rollback", "a", "first", "--yes"]);
    assert_eq!(machine.inside("a", "ls /srv"), "many\n");
    machine.inside("a", "for i in /srv/many/*; do echo more >> $i; done");
    let time = whole(&["clone", "a", "c0"]);
    for round in 1..=8_u32 {
        let name = format!("c{round}");
        cut(&["clone", "a", &name], time * round / 8);
        if machine.config().join(format!("jails.d/{name}.toml")).exists() {
            finished[2] += 1;
            assert_eq!(
                machine.inside(&name, "ls /srv/many | wc -l; tail -qn1 /srv/many/*1 | sort -u"),
                "800\nmore\n"
            );
        }
    }
    for round in 0..=8 {
        let name = format!("c{round}");
        if machine.config().join(format!("jails.d/{name}.toml")).exists() {
            machine.remove(&name);
            machine.good(&["destroy", &name, "--yes"]);
        }
    }
    eprintln!("finished of 8 each: {finished:?}");
    machine.good(&["snapshot", "a", "--rm", "first"]);
}

/// A stopped jail's snapshots go below each other; what expired ones leave there is merged.
#[test]
fn more_snapshots_than_may_lie_below_each_other() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("a", SLEEP);
    machine.good(&["apply"]);
    machine.good(&["stop", "a"]);
    let upper = machine.state().join("jails/a/upper");
    let base = || std::fs::read_to_string(machine.state().join("jails/a/base.json")).unwrap();
    let below = || serde_json::from_str::<Value>(&base()).unwrap()["chain"].as_array().unwrap().len();
    let write = |round: u32| {
        std::fs::create_dir_all(upper.join(format!("srv/d{}", round % 10))).unwrap();
        std::fs::write(upper.join(format!("srv/d{}/{round}", round % 10)), "").unwrap();
        std::fs::write(upper.join("srv/last"), format!("{round}\n")).unwrap();
    };
    // A clone that runs stands on the first, which stays as it is under it.
    write(0);
    take(&machine, "a", "clone");
    machine.good(&["clone", "a", "c", "--from", "clone"]);
    machine.good(&["apply", "--only", "c"]);
    let mut next = 1;
    let mut rounds = |count: u32| {
        for round in next..next + count {
            write(round);
            take(&machine, "a", &format!("s{round}"));
            if round > 3 {
                machine.good(&["snapshot", "a", "--rm", &format!("s{}", round - 3)]);
            }
        }
        next += count;
        next
    };
    rounds(40);
    assert!(below() < 30, "{}", below());
    // Cut off while they are merged.
    for cut in 1..=6 {
        let round = rounds(24_u32.saturating_sub(below().try_into().unwrap()));
        write(round);
        let label = format!("cut-{cut}");
        let mut child = machine.command(&["snapshot", "a", &label]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(9 * cut));
        rustix::process::kill_process(pid_of(&child), Signal::KILL).unwrap();
        child.wait().unwrap();
        machine.good(&["apply"]);
        // It may have been as fast.
        machine.stockade(&["snapshot", "a", "--rm", &label]);
    }
    let last = rounds(3) - 1;
    machine.good(&["start", "a"]);
    let look = "cat /srv/last; ls /srv/d* | grep -c '^[0-9]'";
    assert_eq!(machine.inside("a", look), format!("{last}\n{}\n", last + 1));
    let before = last - 1;
    machine.good(&["rollback", "a", &format!("s{before}"), "--yes"]);
    assert_eq!(machine.inside("a", look), format!("{before}\n{last}\n"));
    assert_eq!(machine.inside("c", look), "0\n1\n");
    machine.good(&["stop", "a"]);
    // None expires: in the end they are copied, and nothing lies below the jail for them.
    let start = below();
    for round in 0..160 {
        std::fs::write(upper.join("kept"), round.to_string()).unwrap();
        take(&machine, "a", &format!("kept-{round}"));
    }
    assert!(below() <= 150, "{start} and then {}", below());
    machine.good(&["rollback", "a", "kept-5", "--yes"]);
    machine.good(&["start", "a"]);
    assert_eq!(machine.inside("a", "cat /kept"), "5");
    machine.good(&["rollback", "a", "kept-159", "--yes"]);
    assert_eq!(machine.inside("a", "cat /kept; cat /srv/last"), format!("159{before}\n"));
    assert_eq!(machine.inside("c", look), "0\n1\n");
}

#[test]
fn snapshots_are_listed_and_wrong_names_are_told() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("a", SLEEP);
    machine.good(&["apply"]);
    machine.good(&["snapshot", "a"]);
    let label = labels(&machine, "a").remove(0);
    assert_eq!(label.len(), "20261125-103000".len(), "{label}");
    assert!(machine.good(&["snapshot", "--list"]).contains(&label));
    for (args, word) in [
        (vec!["snapshot", "a", "../x"], "label"),
        (vec!["snapshot", "z"], "no jail"),
        (vec!["rollback", "a", "nope", "--yes"], "no snapshot"),
        (vec!["snapshot", "a", "--rm", "nope"], "no snapshot"),
        (vec!["clone", "a", "a"], "exists"),
        (vec!["clone", "a", "b", "--from", "nope"], "no snapshot"),
    ] {
        let said = machine.status(&args, 1);
        assert!(said.contains(word), "{said}");
    }
    machine.jail("m", &SLEEP.replace("[exec]", "root.storage = 'tmpfs'\n[exec]"));
    machine.good(&["apply"]);
    assert!(machine.status(&["snapshot", "m"], 1).contains("tmpfs"));
}

/// 10 GiB in one file, most of it a hole: a rename does not look at it.
#[test]
fn a_stopped_jail_of_ten_gigabytes_is_set_aside_at_once() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("a", SLEEP);
    machine.good(&["apply"]);
    machine.inside("a", "dd if=/dev/zero of=/srv/big bs=1M count=1 seek=10239 2>/dev/null; for i in 1 2 3; do cp -r /etc /srv/$i; done; sync");
    machine.good(&["stop", "a"]);
    assert_eq!(take(&machine, "a", "big")["how"], "moved");
    machine.good(&["rollback", "a", "big", "--yes"]);
}

#[test]
fn the_daemon_takes_snapshots_by_itself_and_removes_old_ones() {
    let Some(mut machine) = Machine::new() else { return };
    let schedule = "[[snapshot]]\nevery = '1s'\nkeep = 2\nlabel = 'often'\n[[snapshot]]\nevery = '1h'\n";
    machine.jail("a", &format!("{SLEEP}{schedule}"));
    machine.daemon = Some(machine.command(&["daemon"]).spawn().unwrap());
    machine.wait_until("the daemon has begun it", || machine.state_of("a") == "running");
    let pid = machine.pid("a");
    let often = |all: &[String]| all.iter().filter(|label| label.starts_with("often-")).count();
    machine.wait_until("two are there", || often(&labels(&machine, "a")) == 2);
    let first = labels(&machine, "a");
    machine.wait_until("both were followed by others", || {
        let now = labels(&machine, "a");
        often(&now) == 2 && !now.iter().any(|label| label.starts_with("often-") && first.contains(label))
    });
    let all = labels(&machine, "a");
    assert_eq!(all.iter().filter(|label| label.starts_with("auto-")).count(), 1, "{all:?}");
    assert_eq!(machine.pid("a"), pid, "no snapshot stops it");
    machine.end_daemon();
    // Without a daemon an apply does it; a jail that is down and the same as before needs none.
    machine.good(&["stop", "a"]);
    std::thread::sleep(Duration::from_millis(1100));
    machine.good(&["apply"]);
    let all = labels(&machine, "a");
    std::thread::sleep(Duration::from_millis(1100));
    machine.good(&["apply"]);
    assert_eq!(labels(&machine, "a"), all);
    machine.good(&["rollback", "a", all.last().unwrap(), "--yes"]);
}

#[test]
fn paths_of_the_root_are_read_only_or_hidden() {
    let Some(machine) = Machine::new() else { return };
    let base = machine.path().join("base");
    crate::templates::busybox_root(&base);
    for (file, text) in
        [("etc/secret", "s"), ("srv/hidden/file", "h"), ("srv/fixed/file", "f"), ("srv/open", "o")]
    {
        std::fs::create_dir_all(base.join(file).parent().unwrap()).unwrap();
        std::fs::write(base.join(file), text).unwrap();
    }
    std::os::unix::fs::symlink("/etc", base.join("srv/link")).unwrap();
    machine.write("templates/t/template.toml", &format!("[base]\ndirectory = '{}'\n", base.display()));
    let mount = |kind: &str, target: &str| format!("[[mount]]\ntype = '{kind}'\ntarget = '{target}'\n");
    let jail = |mounts: &str| {
        machine.jail("a", &format!("template = 't'\n[exec]\ncommand = ['/bin/sleep', '1000']\n{mounts}"));
    };
    let optional = format!("{}options = ['optional']\n", mount("hidden", "/srv/absent"));
    jail(
        &[
            mount("hidden", "/etc/secret"),
            mount("hidden", "/srv/hidden"),
            mount("readonly", "/srv/fixed"),
            optional,
        ]
        .concat(),
    );
    machine.good(&["apply"]);
    let inside = |script: &str| machine.good(&["exec", "a", "--", "/bin/sh", "-c", script]);
    assert_eq!(inside("cat /etc/secret; ls -A /srv/hidden; cat /srv/fixed/file /srv/open"), "fo");
    let tried = "for f in /etc/secret /srv/hidden/new /srv/fixed/file /srv/fixed/new; do (echo x > $f) 2>/dev/null && echo $f; done; echo y > /srv/open; cat /srv/open";
    assert_eq!(inside(tried), "y\n");
    assert_eq!(inside("test -e /srv/absent || echo none"), "none\n");
    // What is to be protected and is not there, or is elsewhere, stops the start.
    for target in ["/srv/absent", "/srv/link/secret"] {
        jail(&mount("readonly", target));
        let said = machine.status(&["apply"], 1);
        assert!(said.contains(target), "{said}");
    }
}
