//! Whether the leak check sees: one leak of each kind, made on purpose.

use std::collections::BTreeMap;
use std::process::{Child, Stdio};

use crate::apply::SLEEP;
use crate::leak::{self, Snapshot};
use crate::machine::Machine;

/// Adds a key to the process's own keyring, says so, and stays, for that goes with the process.
const KEY: &str = "my ($t, $d, $p) = qw(user leak x); syscall(248, $t, $d, $p, 1, -2) > 0 or die $!; $| = 1; print qq(ready\\n); sleep 1000";

fn found(machine: &Machine, before: &Snapshot) -> Vec<String> {
    leak::difference(before, &leak::look(machine))
}

/// The leaks of one script of the machine; the second takes them back.
fn check(machine: &Machine, kind: &str, make: &str, clear: &str) {
    let before = leak::look(machine);
    let shell = |script: &str| {
        let output = machine.outside(&["sh", "-ec", script]);
        assert!(output.status.success(), "{script}: {output:?}");
    };
    shell(make);
    let leaks = found(machine, &before);
    assert!(leaks.iter().any(|leak| leak.starts_with(&format!("{kind}: "))), "{kind} is not seen: {leaks:?}");
    shell(clear);
    machine.wait_until(kind, || found(machine, &before).is_empty());
}

/// The same of a program that stays until it is killed; it says `ready` when it has done it.
fn check_held(machine: &Machine, kind: &str, program: &[&str]) {
    let before = leak::look(machine);
    let mut words = machine.enter();
    words.extend(program.iter().map(ToString::to_string));
    let mut child: Child = std::process::Command::new(&words[0])
        .args(&words[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stdout = child.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
    assert_eq!(line.trim(), "ready", "{kind}");
    let leaks = found(machine, &before);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(leaks.iter().any(|leak| leak.starts_with(&format!("{kind}: "))), "{kind} is not seen: {leaks:?}");
    machine.wait_until(kind, || found(machine, &before).is_empty());
}

#[test]
fn a_leak_of_each_kind_is_seen() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("a", SLEEP);
    machine.write("templates/t/template.toml", "[base]\nhost = true\n");
    machine.good(&["apply"]);
    let base = machine.path().display().to_string();
    let cgroup = machine.cgroups()[0].display().to_string();
    for (kind, make, clear) in [
        ("mount of the machine", "mount -t tmpfs leak $0/etc/jails.d", "umount $0/etc/jails.d"),
        (
            "mount of the machine",
            "touch $0/ns; mount --bind /proc/self/ns/uts $0/ns",
            "umount $0/ns; rm $0/ns",
        ),
        ("cgroup", "mkdir $1/leak", "rmdir $1/leak"),
        ("link", "ip link add leak0 type veth peer leak1", "ip link delete leak0"),
        ("address", "ip address add 192.0.2.1/32 dev lo", "ip address delete 192.0.2.1/32 dev lo"),
        ("route", "ip route add 198.51.100.0/24 dev lo", "ip route delete 198.51.100.0/24"),
        ("nft rule", "nft add table inet leak", "nft delete table inet leak"),
        (
            "loop device",
            "truncate -s 1M $0/disk; losetup -f $0/disk",
            "losetup -d $(losetup -nO NAME -j $0/disk); rm $0/disk",
        ),
        ("file of the run directory", "mkdir $0/run/jails/leak", "rmdir $0/run/jails/leak"),
        ("file of the run directory", "touch $0/run/exits/leak", "rm $0/run/exits/leak"),
        ("temporary file", "touch $0/run/jails/a/.record.json.7", "rm $0/run/jails/a/.record.json.7"),
        ("id range without a jail", "ln -s leak $0/state/ids/77", "rm $0/state/ids/77"),
        ("temporary file", "touch $0/etc/templates/.leak", "rm $0/etc/templates/.leak"),
        ("lock without a jail", "touch $0/run/locks/leak.up", "rm $0/run/locks/leak.up"),
        (
            "snapshot that is half made, or nobody's",
            "mkdir -p $0/state/changes/leak/upper",
            "rm -r $0/state/changes/leak",
        ),
        (
            "snapshot that is half made, or nobody's",
            "mkdir -p $0/state/pending; touch $0/state/pending/leak",
            "rm $0/state/pending/leak",
        ),
        ("half-made layer", "mkdir $0/state/layers/.leak", "rmdir $0/state/layers/.leak"),
    ] {
        let filled = |script: &str| script.replace("$0", &base).replace("$1", &cgroup);
        check(&machine, kind, &filled(make), &filled(clear));
    }
    let id = machine.first_id.to_string();
    let perl = ["setpriv", "--reuid", id.as_str(), "--clear-groups", "perl", "-e", KEY];
    let wait = "echo ready; exec sleep 1000";
    check_held(&machine, "process", &["sh", "-c", wait]);
    check_held(&machine, "process", &["setpriv", "--reuid", &id, "--clear-groups", "sh", "-c", wait]);
    check_held(&machine, "key of a jail's user", &perl);
    check_held(&machine, "held namespace", &["sh", "-c", &format!("exec 9< /proc/self/ns/net; {wait}")]);
    check_held(&machine, "held terminal", &["sh", "-c", &format!("exec 9<> /dev/ptmx; {wait}")]);
}

#[test]
fn a_mount_on_the_real_host_is_seen() {
    let Some(machine) = Machine::new() else { return };
    let before = leak::look(&machine);
    let place = machine.path().join("here");
    std::fs::create_dir(&place).unwrap();
    let no_data: Option<&str> = None;
    nix::mount::mount(Some("leak"), &place, Some("tmpfs"), nix::mount::MsFlags::empty(), no_data).unwrap();
    let leaks = found(&machine, &before);
    nix::mount::umount(&place).unwrap();
    assert!(leaks.iter().any(|leak| leak.starts_with("mount of the real host: ")), "{leaks:?}");
    assert!(found(&machine, &before).is_empty());
}

#[test]
fn descriptors_and_threads_are_counted() {
    let look = || {
        let mut all = BTreeMap::new();
        leak::add_process(&mut all, std::process::id());
        all
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("leak");
    let first = std::fs::File::create(&path).unwrap();
    let before = look();
    let second = first.try_clone().unwrap();
    let (stop, wait) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::Builder::new().name("leak".into()).spawn(move || wait.recv()).unwrap();
    let after = look();
    let new = |kind: &str| after[kind].difference(&before[kind]).cloned().collect::<Vec<_>>().join(" ");
    assert!(new("descriptor of the daemon").contains(&format!("{} 2", path.display())));
    assert!(new("thread of the daemon").contains("leak"));
    drop((second, stop));
    let _ = thread.join();
}

#[test]
fn the_daemon_keeps_nothing_of_jails_that_came_and_went() {
    let Some(mut machine) = Machine::new() else { return };
    machine.host("[bridge.stockade0]\naddress = [\"10.77.0.1/24\"]\n");
    let vnet = |last: u32| format!("{SLEEP}[network]\nmode = 'vnet'\naddress = ['10.77.0.{last}/24']\n");
    machine.jail("a", &vnet(9));
    machine.daemon = Some(machine.command(&["daemon"]).stderr(Stdio::null()).spawn().unwrap());
    machine.wait_until("the first is up", || machine.state_of("a") == "running");
    let round = |machine: &Machine, number: u32| {
        machine.jail("b", &vnet(10 + number));
        machine.wait_until("it is up", || machine.state_of("b") == "running");
        machine.remove("b");
        machine.wait_until("it is gone", || machine.state_of("b") == "stopped");
        machine.good(&["destroy", "--yes", "b"]);
    };
    round(&machine, 0);
    let settled = || leak::look(&machine);
    let before = settled();
    for number in 1..6 {
        round(&machine, number);
    }
    let leaks = leak::compare(&before, &machine);
    assert!(leaks.is_empty(), "{leaks:?}");
}
