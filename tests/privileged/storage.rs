//! Where a jail's own files are, and that they stay within their limits.

use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::Value;

use crate::machine::{Machine, kill, wait_gone};

const IDLE: &str =
    "template = \"host\"\n[exec]\ncommand = [\"sleep\", \"infinity\"]\nstop_timeout = \"0s\"\n";
/// What is written when a limit is to be met.
const FULL: &str = "dd if=/dev/zero of=/root/big bs=1M count=2000 2>&1; sync; wc -c < /root/big";
const MIB: u64 = 1 << 20;

fn machine() -> Option<Machine> {
    Machine::new()
}

fn idle(more: &str) -> String {
    format!("{IDLE}{more}\n")
}

/// `show --json`'s word on the volume.
fn storage(machine: &Machine, name: &str) -> Value {
    let answer: Value = serde_json::from_str(&machine.good(&["show", "--json", name])).unwrap();
    answer["items"][0]["storage"].clone()
}

/// Megabytes that `df` inside shows as the size of the root.
fn df(machine: &Machine, name: &str) -> u64 {
    machine.inside(name, "df -B1 --output=size / | tail -1").trim().parse::<u64>().unwrap() / MIB
}

/// Fills the jail's root; the bytes that fitted in.
#[track_caller]
fn fill(machine: &Machine, name: &str) -> u64 {
    let said = machine.inside(name, FULL);
    assert!(said.contains("No space left") || said.contains("quota exceeded"), "{said}");
    let bytes: u64 = said.lines().last().unwrap().trim().parse().unwrap();
    // Two others go on.
    std::fs::write(machine.path().join("others"), vec![1; 1 << 20]).unwrap();
    machine.inside("other", "dd if=/dev/zero of=/root/more bs=1M count=3 2>/dev/null && rm /root/more");
    bytes
}

#[track_caller]
fn near(found: u64, wanted: u64) {
    assert!(found <= wanted && found * 10 >= wanted * 6, "{found} is not a little under {wanted}");
}

/// Loop devices of files below the machine's directory.
fn loops(machine: &Machine) -> Vec<String> {
    let entries = std::fs::read_dir("/sys/block").unwrap().filter_map(Result::ok);
    let files =
        entries.filter_map(|entry| std::fs::read_to_string(entry.path().join("loop/backing_file")).ok());
    files.filter(|file| file.starts_with(&*machine.path().to_string_lossy())).collect()
}

/// After its back-off.
fn comes_up(machine: &Machine, name: &str) {
    machine.wait_until("it is up again", || {
        machine.good(&["apply"]);
        machine.state_of(name) == "running"
    });
}

fn without(machine: &Machine, program: &str) {
    for directory in ["/usr/sbin", "/sbin", "/usr/bin", "/bin"] {
        let path = format!("{directory}/{program}");
        if Path::new(&path).exists() {
            let output = machine.outside(&["mount", "--bind", "/dev/null", &path]);
            assert!(output.status.success(), "{output:?}");
        }
    }
}

fn with(machine: &Machine, program: &str) {
    for directory in ["/usr/sbin", "/sbin", "/usr/bin", "/bin"] {
        // Only what was covered is uncovered.
        let _ = machine.outside(&["umount", &format!("{directory}/{program}")]);
    }
}

#[test]
fn memory_is_as_large_as_the_limits() {
    let Some(machine) = machine() else { return };
    machine.jail("other", IDLE);
    machine.jail("box", &idle("[limits]\ndisk = \"16M\"\ninodes = 60\n[root]\nstorage = \"tmpfs\""));
    machine.good(&["apply"]);
    assert_eq!(df(&machine, "box"), 16);
    near(fill(&machine, "box"), 16 * MIB);
    machine.inside("box", "rm /root/big");
    let many = machine.inside("box", "i=0; while touch /root/f$i 2>/dev/null; do i=$((i+1)); done; echo $i");
    assert!((30..60).contains(&many.trim().parse().unwrap()), "{many}");
    let shown = storage(&machine, "box");
    assert_eq!((shown["kind"].as_str(), shown["limit"].as_u64()), (Some("tmpfs"), Some(16 * MIB)), "{shown}");
    assert_eq!(shown["used_inodes"], 60, "{shown}");
    machine.status(&["plan"], 0);
    machine.jail("box", &idle("[limits]\ndisk = \"32M\"\ninodes = 60\n[root]\nstorage = \"tmpfs\""));
    assert!(machine.status(&["plan"], 4).contains("restart"));
}

#[test]
fn an_image_is_filled_and_grown_and_shrunk() {
    let Some(machine) = machine() else { return };
    machine.jail("other", IDLE);
    machine.jail("box", &idle("[limits]\ndisk = \"32M\""));
    machine.good(&["apply"]);
    let shown = storage(&machine, "box");
    assert_eq!(
        (shown["kind"].as_str(), shown["file_system"].as_str()),
        (Some("image"), Some("ext4")),
        "{shown}"
    );
    assert!(shown["why"].as_str().unwrap().contains("project quota"), "{shown}");
    near(df(&machine, "box"), 32);
    near(fill(&machine, "box"), 32 * MIB);
    near(machine.ls()["box"]["disk"].as_u64().unwrap(), 32 * MIB);
    machine.jail("box", &idle("[limits]\ndisk = \"64M\""));
    machine.good(&["apply"]);
    machine.status(&["plan"], 0);
    near(df(&machine, "box"), 64);
    near(fill(&machine, "box"), 64 * MIB);
    machine.inside("box", "rm /root/big; echo kept > /root/kept");
    machine.jail("box", &idle("[limits]\ndisk = \"24M\""));
    assert!(machine.status(&["plan"], 4).contains("restart"), "an ext4 shrinks only while it is down");
    machine.good(&["apply"]);
    near(df(&machine, "box"), 24);
    assert_eq!(machine.inside("box", "cat /root/kept"), "kept\n");
    // The host sees nothing of it.
    let mounts = String::from_utf8(machine.outside(&["cat", "/proc/self/mountinfo"]).stdout).unwrap();
    assert!(!mounts.contains("/dev/loop"), "{mounts}");
    machine.good(&["destroy", "--yes", "box"]);
    machine.wait_until("the loop device is gone", || loops(&machine).is_empty());
    assert!(!machine.state().join("jails/box").exists());
}

/// A full image stays an image, and what a file system cannot is refused.
fn other_image(file_system: &str, hidden: &[&str], small: u64) {
    let Some(machine) = machine() else { return };
    for program in hidden {
        without(&machine, program);
    }
    machine.jail("other", IDLE);
    let limited = |mib: u64| idle(&format!("[limits]\ndisk = \"{mib}M\"\n[root]\nstorage = \"image\""));
    machine.jail("box", &limited(small));
    machine.good(&["apply"]);
    let shown = storage(&machine, "box");
    assert_eq!(shown["file_system"], file_system, "{shown}");
    let pid = machine.pid("box");
    machine.inside("box", "echo kept > /root/kept");
    machine.jail("box", &limited(small + 128));
    assert!(machine.status(&["plan"], 4).contains("live"));
    machine.good(&["apply"]);
    assert_eq!(machine.pid("box"), pid, "it was not restarted");
    near(df(&machine, "box"), small + 128);
    machine.jail("box", &limited(small));
    if file_system == "btrfs" {
        machine.good(&["apply"]);
        assert_eq!((machine.pid("box"), df(&machine, "box")), (pid, small));
    } else {
        assert!(machine.status(&["apply"], 1).contains("cannot shrink"));
        assert_eq!(machine.state_of("box"), "running");
    }
    let size = df(&machine, "box");
    near(fill(&machine, "box"), size * MIB);
    machine.jail("box", &limited(if file_system == "btrfs" { small } else { small + 128 }));
    assert_eq!(machine.inside("box", "cat /root/kept"), "kept\n");
    for program in hidden {
        with(&machine, program);
    }
    machine.good(&["stop", "box"]);
    machine.good(&["start", "box"]);
    assert_eq!(storage(&machine, "box")["file_system"], file_system);
    assert_eq!(machine.inside("box", "cat /root/kept"), "kept\n");
}

#[test]
fn an_image_of_xfs_grows_live() {
    other_image("xfs", &["mkfs.ext4"], 320);
}

#[test]
fn an_image_of_btrfs_grows_and_shrinks_live() {
    other_image("btrfs", &["mkfs.ext4", "mkfs.xfs"], 256);
}

#[test]
fn no_loop_device_outlives_its_jail() {
    let Some(machine) = machine() else { return };
    machine.jail("box", &idle("[limits]\ndisk = \"16M\"\n[root]\nstorage = \"image\""));
    machine.good(&["apply"]);
    assert_eq!(loops(&machine).len(), 1);
    let keeper = i32::try_from(machine.record("box")["keeper"]["pid"].as_i64().unwrap()).unwrap();
    machine.inside("box", "echo kept > /root/kept; sync");
    kill(keeper, Signal::KILL);
    wait_gone(keeper);
    // It goes on without its keeper, is cleared away and comes up on the same image: by one device.
    comes_up(&machine, "box");
    assert_eq!(machine.inside("box", "cat /root/kept"), "kept\n");
    machine.wait_until("one loop device", || loops(&machine).len() == 1);
    let (keeper, init) = (machine.record("box")["keeper"]["pid"].clone(), machine.pid("box"));
    kill(i32::try_from(keeper.as_i64().unwrap()).unwrap(), Signal::KILL);
    kill(init, Signal::KILL);
    wait_gone(init);
    machine.wait_until("no loop device", || loops(&machine).is_empty());
    comes_up(&machine, "box");
    assert_eq!(machine.inside("box", "cat /root/kept"), "kept\n");
    machine.good(&["stop", "box"]);
    machine.wait_until("no loop device", || loops(&machine).is_empty());
}

/// A tree of everything that is not to be lost.
const THINGS: &str = "cd /root; echo file > file; chown 33:44 file; chmod 4750 file; ln file second; \
    ln -s /etc/passwd link; mkfifo fifo; mkdir -p deep/er; touch -d '2001-02-03 04:05:06' deep; rmdir /srv; rm /etc/hosts";
const SEEN: &str = "cd /root; stat -c '%n %a %u %g %h %F' file second link fifo deep/er; stat -c %Y deep; \
    test -e /srv || echo no srv; test -e /etc/hosts || echo no hosts; cat file; ls -a /root | tr '\\n' ' '";

#[test]
fn a_jails_files_move_along() {
    let Some(machine) = machine() else { return };
    let stored = |kind: &str| idle(&format!("[root]\nstorage = \"{kind}\""));
    machine.jail("box", &stored("overlay"));
    machine.good(&["apply"]);
    machine.inside("box", THINGS);
    let before = machine.inside("box", SEEN);
    assert!(before.contains("no srv\nno hosts\n") && before.contains("file 4750 33 44 2"), "{before}");
    for kind in ["image", "directory", "overlay", "directory", "image", "overlay"] {
        machine.jail("box", &stored(kind));
        assert!(machine.status(&["plan"], 4).contains(&format!(" to {kind}")));
        machine.good(&["apply"]);
        machine.status(&["plan"], 0);
        assert_eq!(storage(&machine, "box")["kind"], kind);
        assert_eq!(machine.inside("box", SEEN), before, "after the move to {kind}");
    }
    let left = std::fs::read_dir(machine.state().join("jails/box")).unwrap();
    let mut left: Vec<String> = left.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    assert_eq!(left, ["range", "upper", "volume.json", "work"]);
}

#[test]
fn a_move_that_is_cut_off_is_made_again() {
    let Some(machine) = machine() else { return };
    let stored = |kind: &str| idle(&format!("[root]\nstorage = \"{kind}\""));
    machine.jail("box", &stored("overlay"));
    machine.good(&["apply"]);
    machine.inside("box", "mkdir /root/many; cd /root/many; for i in $(seq 3000); do echo $i > $i; done");
    for (round, kind) in ["image", "directory", "overlay", "image"].into_iter().enumerate() {
        machine.jail("box", &stored(kind));
        for delay_ms in [40, 90, 160] {
            let mut apply = machine.command(&["apply"]).spawn().unwrap();
            std::thread::sleep(std::time::Duration::from_millis(delay_ms + 7 * round as u64));
            // One that was faster is as good.
            let _ = apply.kill();
            apply.wait().unwrap();
        }
        machine.good(&["apply"]);
        assert_eq!(storage(&machine, "box")["kind"], kind);
        assert_eq!(
            machine.inside("box", "cat /root/many/* | sort -n | md5sum; ls /root/many | wc -l"),
            machine.inside("box", "seq 3000 | md5sum; echo 3000"),
            "after the move to {kind}"
        );
        let left = std::fs::read_dir(machine.state().join("jails/box")).unwrap();
        let left: Vec<PathBuf> = left.map(|entry| entry.unwrap().path()).collect();
        let is_left = |path: &&PathBuf| path.extension().is_some_and(|end| end == "new");
        assert_eq!(left.iter().find(is_left), None, "{left:?}");
    }
}

/// The state directory on a btrfs of its own, counting simply if the kernel can.
pub fn on_btrfs(machine: &Machine, simple: bool) {
    let script = r#"set -e
truncate -s 1G "$1/disk"
mkfs.btrfs -q -f "$1/disk"
mkdir "$1/state"
mount -o loop "$1/disk" "$1/state"
rm "$1/disk"
if [ "$2" = simple ]; then
    perl -e 'sysopen(F, $ARGV[0], 0200000) or die; my $b = pack("QQ", 4, 0); ioctl(F, 0xc0109428, $b) or die "$!"' "$1/state"
else
    btrfs quota enable "$1/state"
    btrfs quota rescan -w "$1/state" >/dev/null
fi"#;
    let path = machine.path().display().to_string();
    let output =
        machine.outside(&["sh", "-c", script, "make", &path, if simple { "simple" } else { "groups" }]);
    assert!(output.status.success(), "{output:?}");
}

pub fn subvolumes(machine: &Machine) -> String {
    let state = machine.state().display().to_string();
    String::from_utf8(machine.outside(&["btrfs", "subvolume", "list", &state]).stdout).unwrap()
}

fn subvolume_is_limited(simple: bool) {
    let Some(machine) = machine() else { return };
    on_btrfs(&machine, simple);
    machine.jail("other", IDLE);
    machine.jail("box", &idle("[limits]\ndisk = \"32M\""));
    machine.good(&["apply"]);
    assert_eq!(storage(&machine, "box")["kind"], "btrfs");
    near(fill(&machine, "box"), 32 * MIB);
    let pid = machine.pid("box");
    machine.jail("box", &idle("[limits]\ndisk = \"64M\""));
    assert!(machine.status(&["plan"], 4).contains("live"));
    machine.good(&["apply"]);
    assert_eq!(machine.pid("box"), pid);
    near(fill(&machine, "box"), 64 * MIB);
    near(machine.ls()["box"]["disk"].as_u64().unwrap(), 64 * MIB);
    machine.outside(&[
        "sh",
        "-c",
        "for group in $(btrfs qgroup show --raw \"$1\" | awk '$1 ~ /\\// { print $1 }'); do btrfs qgroup limit none $group \"$1\"; done",
        "limit",
        &machine.state().display().to_string(),
    ]);
    assert!(machine.status(&["plan"], 4).contains("limits.disk"), "a limit taken away by hand is found");
    machine.good(&["apply"]);
    machine.status(&["plan"], 0);
    machine.jail("box", &idle("[root]\nstorage = \"overlay\""));
    machine.good(&["apply"]);
    near(machine.inside("box", "wc -c < /root/big").trim().parse().unwrap(), 64 * MIB);
    assert!(!subvolumes(&machine).contains("box"));
    machine.jail("box", &idle("[root]\nstorage = \"btrfs\""));
    machine.good(&["apply"]);
    assert!(subvolumes(&machine).contains("box"));
    machine.good(&["destroy", "--yes", "box"]);
    assert_eq!(storage(&machine, "other")["kind"], "btrfs", "without a limit too");
    machine.remove("box");
    machine.remove("other");
    machine.good(&["apply"]);
    machine.good(&["destroy", "--yes", "other"]);
    assert_eq!(subvolumes(&machine), "");
    let state = machine.state().display().to_string();
    machine.wait_until("the file system is free", || machine.outside(&["umount", &state]).status.success());
}

#[test]
fn a_subvolume_keeps_its_limit() {
    subvolume_is_limited(false);
}

#[test]
fn a_subvolume_keeps_its_limit_by_simple_quotas() {
    subvolume_is_limited(true);
}

#[test]
fn what_nothing_here_can_keep_is_refused() {
    let Some(machine) = machine() else { return };
    machine.jail("other", IDLE);
    machine.jail("files", &idle("[limits]\ninodes = 100"));
    machine.jail("plain", &idle("[limits]\ndisk = \"1G\"\n[root]\nstorage = \"overlay\""));
    machine.jail("tiny", &idle("[limits]\ndisk = \"1M\""));
    let said = machine.status(&["apply"], 1);
    for line in ["files  limits.inodes: ", "plain  limits.disk: ", "tiny  limits.disk: "] {
        assert!(said.contains(line), "{line} in {said}");
    }
    assert!(said.contains("prjquota") || said.contains("has no project quotas"), "{said}");
    assert_eq!(machine.state_of("files"), "config-error");
    assert_eq!(machine.state_of("other"), "running");
}

/// As under systemd, where each mount passes on what is mounted below it.
#[test]
fn on_shared_mounts_nothing_of_a_jail_comes_out() {
    let Some(machine) = machine() else { return };
    let shared = machine.outside(&["mount", "--make-rshared", "/"]);
    assert!(shared.status.success(), "{shared:?}");
    machine.jail("thick", &idle("[root]\nstorage = \"directory\""));
    machine.good(&["apply"]);
    let copy = machine.path().join("copy").display().to_string();
    let thick = machine.state().join("jails/thick/root").display().to_string();
    assert!(machine.outside(&["cp", "-a", &thick, &copy]).status.success());
    let own_usr = "[[mount]]\nsource = \"/usr\"\ntarget = \"/usr\"\noptions = [\"ro\", \"rbind\"]\n";
    machine.jail("path", &idle(own_usr).replace("template = \"host\"", &format!("path = \"{copy}\"")));
    machine.jail("image", &idle("[limits]\ndisk = \"16M\""));
    machine.write("templates/two/template.toml", "[base]\nhost = true\n");
    machine.write("templates/two/files/srv/own", "a second layer\n");
    machine.jail("two", &idle("").replace("template = \"host\"", "template = \"two\""));
    machine.good(&["apply"]);
    assert_eq!(machine.record("two")["layers"].as_array().map(Vec::len), Some(2));
    for name in ["thick", "path", "image", "two"] {
        assert_eq!(machine.inside(name, "echo in > /root/x; cat /root/x"), "in\n");
    }
    machine.jail("image", &idle("[root]\nstorage = \"directory\""));
    machine.good(&["apply"]);
    assert_eq!(machine.inside("image", "cat /root/x"), "in\n");
    let mounts = String::from_utf8(machine.outside(&["cat", "/proc/self/mountinfo"]).stdout).unwrap();
    let below = machine.path().display().to_string();
    assert!(!mounts.contains(&below), "{mounts}");
}
