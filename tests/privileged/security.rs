//! What a jail's program has and can do: field notes on escapes, each tried in a real jail.

use crate::apply::SLEEP;
use crate::machine::{Machine, said};

/// Makes the call and prints its errno's name, or what it returned.
const CALL: &str = "use POSIX (); my $r = syscall(shift(@ARGV) + 0, map { /^[-0-9]+$/ ? $_ + 0 : $_ } @ARGV); \
    print $r == -1 ? (grep { $!{$_} } keys %!)[0] : \"done\"";

/// System calls that need no privilege outside a jail, or that root has; x86-64 and arm64 numbers.
#[rustfmt::skip]
const DENIED: &[(&str, i64, i64, &[&str])] = &[
    ("unshare of a user namespace", 272, 97, &["268435456"]),
    ("unshare of a mount namespace", 272, 97, &["131072"]),
    ("mount", 165, 40, &["none", "/tmp", "tmpfs", "0", "0"]),
    ("umount2", 166, 39, &["/proc/keys", "2"]),
    ("pivot_root", 155, 41, &["/tmp", "/tmp"]),
    ("keyctl", 250, 219, &["0", "-3", "0"]),
    ("add_key", 248, 217, &["user", "x", "y", "1", "-3"]),
    ("bpf", 321, 280, &["0", "0", "0"]),
    ("perf_event_open", 298, 241, &["0", "0", "-1", "-1", "0"]),
    ("userfaultfd", 323, 282, &["0"]),
    ("open_by_handle_at", 304, 265, &["0", "0", "0"]),
    ("io_uring_setup", 425, 425, &["1", "0"]),
    ("init_module", 175, 105, &["0", "0", "0"]),
    ("kexec_load", 246, 104, &["0", "0", "0", "0"]),
    ("reboot", 169, 142, &["0", "0", "0", "0"]),
    ("swapon", 167, 224, &["/etc/passwd", "0"]),
    ("settimeofday", 170, 170, &["0", "0"]),
    ("quotactl", 179, 60, &["0", "0", "0", "0"]),
    ("setns", 308, 268, &["0", "0"]),
    ("process_vm_writev", 311, 271, &["1", "0", "0", "0", "0", "0"]),
];

fn jail(machine: &Machine) {
    machine.jail("a", SLEEP);
    machine.good(&["apply"]);
}

#[test]
fn dangerous_system_calls_are_refused() {
    let Some(machine) = Machine::new() else { return };
    jail(&machine);
    for (name, x86, arm, arguments) in DENIED {
        let number = if cfg!(target_arch = "x86_64") { x86 } else { arm }.to_string();
        let args =
            [&["exec", "a", "--", "perl", "-MErrno", "-e", CALL, number.as_str()][..], arguments].concat();
        let output = machine.stockade(&args);
        let answer = said(&output);
        assert!(matches!(answer.as_str(), "EPERM" | "ENOSYS"), "{name}: {answer}");
    }
}

#[test]
fn nothing_is_pushed_into_a_terminal() {
    let Some(machine) = Machine::new() else { return };
    jail(&machine);
    // TIOCSTI and TIOCLINUX, also with bits above 32 that ioctl(2) ignores.
    let script = "for my $n (0x5412, 0x541c, 0x100005412) { my $c = 'x'; \
        print((syscall(16, 0, $n, $c) == -1 && $!{EPERM}) ? 'no ' : \"YES $! \") }";
    let inner = machine.shell_words(&["exec", "a", "--", "perl", "-MErrno", "-e", script]);
    let output = assert_cmd::Command::new("script").args(["-qec", &inner, "/dev/null"]).output().unwrap();
    assert!(said(&output).contains("no no no "), "{}", said(&output));
}

#[test]
fn a_program_has_no_more_rights_than_the_profile() {
    let Some(machine) = Machine::new() else { return };
    machine
        .jail("a", "template = 'host'\nexec.command = ['sh', '-c', 'cat /proc/self/status; sleep 1000']\n");
    machine.good(&["apply"]);
    machine.wait_until("it has spoken", || machine.log("a").contains("Seccomp_filters"));
    let log = machine.log("a");
    let exec = machine.inside("a", "cat /proc/self/status");
    let run = machine.good(&["run", "host", "--", "cat", "/proc/self/status"]);
    for (who, status) in [("program", log), ("exec", exec), ("run", run)] {
        let has = |line: &str| status.contains(line);
        for (set, bits) in
            [("Inh", 0u64), ("Prm", 0x8004_01fb), ("Eff", 0x8004_01fb), ("Bnd", 0x8004_01fb), ("Amb", 0)]
        {
            let line = format!("Cap{set}:\t{bits:016x}");
            assert!(has(&line), "{who}: no {line} in\n{status}");
        }
        assert!(has("NoNewPrivs:\t1") && has("Seccomp:\t2") && has("Seccomp_filters:\t1"), "{who}: {status}");
        assert!(has("Uid:\t0\t0\t0\t0"), "{who}: {status}");
        let groups =
            status.lines().find_map(|line| line.split_once("Groups:\t")).map(|(_, rest)| rest.trim());
        assert!(matches!(groups, Some("" | "0")), "{who}: {groups:?}");
    }
    let outside = std::fs::read_to_string(format!("/proc/{}/status", machine.pid("a"))).unwrap();
    let uid = machine.record("a")["first_id"].as_u64().unwrap();
    assert!(outside.contains(&format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}")), "{outside}");
    assert!(machine.ids().contains(&u32::try_from(uid).unwrap()));
}

#[test]
fn no_descriptor_of_the_host_comes_along() {
    let Some(machine) = Machine::new() else { return };
    let list = "ls -l /proc/self/fd; readlink /proc/self/cwd; echo end";
    machine.jail("a", &format!("template = 'host'\nexec.command = ['sh', '-c', '{list}; sleep 1000']\n"));
    machine.good(&["apply"]);
    machine.wait_until("it has spoken", || machine.log("a").contains("end"));
    for (who, text) in [
        ("program", machine.log("a")),
        ("exec", machine.inside("a", list)),
        ("run", machine.good(&["run", "host", "--", "sh", "-c", list])),
    ] {
        let open: Vec<&str> = text.lines().filter(|line| line.contains(" -> ")).collect();
        // 0, 1, 2, and the directory that ls itself reads.
        assert_eq!(open.len(), 4, "{who}: {text}");
        assert!(open[3].contains("/fd"), "{who}: {text}");
        assert!(text.lines().any(|line| line == "/" || line.ends_with(" /")), "{who}: {text}");
    }
}

#[test]
fn what_leads_out_is_masked_or_read_only() {
    let Some(machine) = Machine::new() else { return };
    jail(&machine);
    let refused = |script: &str| {
        let output = machine.stockade(&["exec", "a", "--", "sh", "-c", script]);
        assert!(!output.status.success(), "this went well: {script}\n{}", said(&output));
    };
    for path in ["/proc/kcore", "/proc/keys", "/proc/kallsyms", "/proc/timer_list", "/proc/interrupts"] {
        let read = machine.stockade(&[
            "exec",
            "a",
            "--",
            "sh",
            "-c",
            &format!("head -c 9 {path} 2>/dev/null | wc -c"),
        ]);
        assert!(said(&read).trim().ends_with('0'), "{path}: {}", said(&read));
    }
    for path in ["/sys/firmware", "/sys/kernel/debug", "/sys/kernel/security", "/proc/acpi"] {
        assert_eq!(machine.inside("a", &format!("ls -A {path} 2>/dev/null | wc -l")).trim(), "0", "{path}");
    }
    refused("echo 1 > /proc/sys/kernel/sysrq");
    refused("echo '|/x' > /proc/sys/kernel/core_pattern");
    refused("echo b > /proc/sysrq-trigger");
    refused("echo x > /sys/kernel/uevent_helper");
    refused("mkdir /sys/fs/cgroup/escape || mkdir /sys/fs/cgroup/memory/escape");
    refused("echo 1 > /proc/irq/default_smp_affinity");
    refused("cat /proc/1/exe > /dev/null");
    refused("cat /proc/1/environ | grep .");
    refused("ls /proc/1/root/");
    refused("ls /proc/1/fd/ | grep .");
    refused("echo > /usr/bin/env");
    refused("mount -o remount,rw /usr");
    refused("mknod /tmp/disk b 8 0");
    refused("chroot /usr/.. true && mknod /srv/x c 1 1");
    refused("test -e /dev/kmsg -o -e /dev/mem -o -e /dev/vda -o -e /dev/sda -o -e /dev/fuse");
    refused("kill -9 1 && sleep 0.2 && ! kill -0 1");
    assert_eq!(machine.state_of("a"), "running");
}

#[test]
fn a_directory_moved_from_under_a_mount_is_no_way_out() {
    let Some(machine) = Machine::new() else { return };
    let shared = machine.path().join("shared");
    std::fs::create_dir_all(shared.join("inner/deep")).unwrap();
    let mount = format!("[[mount]]\nsource = \"{}\"\ntarget = \"/srv\"\n", shared.join("inner").display());
    machine.jail("a", &format!("{SLEEP}{mount}"));
    machine.good(&["apply"]);
    let script = "cd /srv/deep && echo ready && while [ ! -e /tmp/go ]; do sleep 0.05; done; \
        ls ../../../../../../.. 2>&1 | tr '\\n' ' '; ls -d ../../../../root/.. 2>&1";
    let mut inside = machine.command(&["exec", "a", "--", "sh", "-c", script]);
    let inside = inside.stdout(std::process::Stdio::piped()).spawn().unwrap();
    machine.wait_until("it is there", || {
        machine.inside("a", "for d in /proc/[0-9]*; do readlink $d/cwd; done").contains("/srv/deep")
    });
    // Now `deep` has no way up to the mount that it was entered by.
    std::fs::rename(shared.join("inner/deep"), shared.join("deep")).unwrap();
    machine.inside("a", "touch /tmp/go");
    let output = inside.wait_with_output().unwrap();
    let seen = said(&output);
    assert!(!seen.contains("home") && !seen.contains("etc") && !seen.contains("usr"), "{seen}");
}

#[test]
fn a_mount_target_that_is_a_symbolic_link_stays_inside() {
    let Some(machine) = Machine::new() else { return };
    let (base, away, source) =
        (machine.path().join("base"), machine.path().join("away"), machine.path().join("source"));
    for directory in [&base, &away, &source] {
        std::fs::create_dir(directory).unwrap();
    }
    std::fs::write(source.join("here"), "").unwrap();
    for name in ["usr", "proc", "sys", "dev", "tmp", "run", "etc"] {
        std::fs::create_dir(base.join(name)).unwrap();
    }
    std::os::unix::fs::symlink(&away, base.join("data")).unwrap();
    std::fs::create_dir_all(base.join("bin")).unwrap();
    std::fs::copy("/bin/busybox", base.join("bin/busybox")).unwrap();
    let text = format!(
        "path = '{}'\nexec.command = ['/bin/busybox', 'sleep', '1000']\n[[mount]]\nsource = '{}'\ntarget = '/data'\n",
        base.display(),
        source.display()
    );
    machine.jail("a", &text);
    // Refused or kept inside, as the runtime likes; never outside.
    machine.stockade(&["apply"]);
    assert_eq!(std::fs::read_dir(&away).unwrap().count(), 0, "nothing is made outside");
    let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", machine.holder())).unwrap();
    assert!(!mounts.contains("/away "), "nothing is mounted outside");
}

#[test]
fn hostile_roots_are_refused_or_harmless() {
    let Some(machine) = Machine::new() else { return };
    let victim = machine.path().join("victim");
    std::fs::create_dir(&victim).unwrap();
    std::fs::write(victim.join("file"), "precious").unwrap();
    let cases =
        [("proc", "proc"), ("sys", "sys"), ("dev", "dev"), ("etc", "etc"), ("tmp", "tmp"), ("run", "run")];
    for (number, (name, link)) in cases.iter().enumerate() {
        let base = machine.path().join(format!("base-{number}"));
        std::fs::create_dir_all(base.join("bin")).unwrap();
        std::fs::copy("/bin/busybox", base.join("bin/busybox")).unwrap();
        for directory in
            ["usr", "proc", "sys", "dev", "tmp", "run", "etc"].iter().filter(|other| *other != link)
        {
            std::fs::create_dir(base.join(directory)).unwrap();
        }
        std::os::unix::fs::symlink(&victim, base.join(link)).unwrap();
        let template = format!("[base]\ndirectory = '{}'\n", base.display());
        machine.write(&format!("templates/t{number}/template.toml"), &template);
        let output = machine.stockade(&["run", &format!("t{number}"), "--", "/bin/busybox", "ls", "/"]);
        let files: Vec<_> =
            std::fs::read_dir(&victim).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(files, ["file"], "{name}: {}", said(&output));
        assert_eq!(std::fs::read_to_string(victim.join("file")).unwrap(), "precious");
        let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", machine.holder())).unwrap();
        assert!(!mounts.contains("/victim "), "{name}: nothing is mounted outside");
    }
}

#[test]
fn jails_cannot_reach_each_others_files_or_processes() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("a", SLEEP);
    machine.jail("b", SLEEP);
    machine.good(&["apply"]);
    machine.inside("a", "echo secret > /srv/secret; chmod 644 /srv/secret");
    let pid = machine.pid("a");
    for script in ["cat /srv/secret", &format!("kill -0 {pid}"), &format!("ls /proc/{pid}/root/srv")] {
        let output = machine.stockade(&["exec", "b", "--", "sh", "-c", script]);
        assert!(!output.status.success(), "{script}: {}", said(&output));
    }
    let first = |name: &str| machine.record(name)["first_id"].as_u64().unwrap();
    assert!(first("a").abs_diff(first("b")) >= 65_536);
}

#[test]
fn a_jail_is_not_pinned_to_its_callers_cpu() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("a", SLEEP);
    let all = machine.good(&["run", "host", "--", "nproc"]);
    let pinned = |args: &[&str]| {
        let line = format!("taskset -c 0 {}", machine.shell_words(args));
        let output = std::process::Command::new("sh").args(["-c", &line]).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(pinned(&["run", "host", "--", "nproc"]), all);
    pinned(&["apply"]);
    assert_eq!(machine.inside("a", "nproc"), all);
    assert_eq!(pinned(&["exec", "a", "--", "nproc"]), all);
}

#[test]
fn a_spoilt_passwd_names_nobody_and_keeps_nobody_out() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("a", SLEEP);
    machine.good(&["apply"]);
    let spoil = |how: &str| {
        let pid = machine.pid("a");
        let script = format!("cd /proc/{pid}/root/etc && rm -f passwd && {how}");
        assert!(machine.outside(&["sh", "-c", &script]).status.success(), "{how}");
    };
    let long = "printf 'late:x:5:5::/:/bin/sh\\n' > passwd && head -c 1048576 /dev/zero >> passwd";
    for (how, why) in [
        ("mkfifo passwd", "not a regular file"),
        ("ln -s /proc/1/environ passwd", "Permission denied"),
        ("ln -s /dev/zero passwd", "not a regular file"),
        (long, "larger than 1048576 bytes"),
    ] {
        spoil(how);
        let said = machine.status(&["exec", "-u", "late", "a", "--", "true"], 125);
        assert!(said.contains(why), "{how}: {said}");
        machine.good(&["exec", "a", "--", "true"]);
    }
}

#[test]
fn a_frozen_jail_is_not_entered_and_can_be_stopped() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("a", &format!("{SLEEP}stop = ['true']\n"));
    machine.good(&["apply"]);
    machine.good(&["freeze", "a"]);
    let said = machine.status(&["exec", "a", "--", "true"], 125);
    assert_eq!(said, "stockade: a: it is frozen, `stockade thaw a` lets it go on\n");
    machine.good(&["stop", "a"]);
    assert_eq!(machine.state_of("a"), "stopped");
}

#[test]
fn ids_of_files_do_not_change_with_the_pool() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("a", SLEEP);
    machine.good(&["apply"]);
    let first = |machine: &Machine| machine.record("a")["first_id"].clone();
    let (pid, before) = (machine.pid("a"), first(&machine));
    let pool = |number: u32| format!("cgroup = '{}'\n[ids]\nfirst = {number}\n", machine.cgroup);
    machine.write("stockade.toml", &pool(65_536));
    for verb in [vec!["apply"], vec!["restart", "a"]] {
        let said = machine.status(&verb, 1);
        assert!(said.contains("set `ids.first` back"), "{said}");
        assert_eq!((machine.pid("a"), first(&machine)), (pid, before.clone()), "{verb:?}");
    }
    machine.host("");
    machine.good(&["restart", "a"]);
    assert_eq!(first(&machine), before);
}
