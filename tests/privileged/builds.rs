//! `[build]`: lines run in a jail whose writes become a layer.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::machine::Machine;
use crate::templates::busybox_root;

/// A template `b` on busybox that runs these lines.
pub fn template(machine: &Machine, lines: &[&str], more: &str) {
    let root = machine.path().join("root");
    if !root.exists() {
        busybox_root(&root);
    }
    let run: Vec<String> = lines.iter().map(|line| serde_json::Value::from(*line).to_string()).collect();
    let text =
        format!("[base]\ndirectory = \"{}\"\n[build]\nrun = [{}]\n{more}", root.display(), run.join(", "));
    machine.write("templates/b/template.toml", &text);
}

/// Whether a manifest is that of a layer which is there.
fn has_layer(machine: &Machine, manifest: &str) -> bool {
    machine.state().join("layers").join(manifest.trim_start_matches(".manifest-")).exists()
}

/// What lies in `layers/`, layers by the word.
pub fn layers(machine: &Machine) -> Vec<String> {
    let entries = std::fs::read_dir(machine.state().join("layers")).into_iter().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| {
            !name.starts_with(".lock-")
                && !name.starts_with(".failed-")
                && (!name.starts_with(".manifest-") || !has_layer(machine, name))
        })
        .map(|name| if name.starts_with("sha256-") { "layer".to_owned() } else { name })
        .collect();
    names.sort();
    names
}

/// The layers' directories, the newest first.
fn newest(machine: &Machine) -> PathBuf {
    let entries =
        std::fs::read_dir(machine.state().join("layers")).unwrap().map(|entry| entry.unwrap().path());
    let layers = entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("sha256-"));
    layers.filter(|path| path.join("etc/built").exists()).last().expect("the build's layer")
}

#[test]
fn what_lines_write_becomes_a_layer() {
    let Some(machine) = Machine::new() else { return };
    let lines = [
        "echo $A > /etc/built; id -u >> /etc/built; ls /sys/class/net 2>/dev/null >> /etc/built || true",
        "busybox rm /etc/motd",
        "busybox chown 33:44 /etc/built; busybox chmod 6755 /etc/built; echo said aloud",
    ];
    template(&machine, &lines, "env = { A = 'b' }\n");
    let said = machine.stockade(&["template", "build", "b"]);
    let said = crate::machine::said(&said);
    assert!(said.contains("build: said aloud") && said.contains("b: 2 layers, 2 built now"), "{said}");
    let built = std::fs::metadata(newest(&machine).join("etc/built")).unwrap();
    assert_eq!((built.uid(), built.gid(), built.permissions().mode() & 0o7777), (33, 44, 0o6755));
    let seen = machine.good(&["run", "b", "--", "/bin/sh", "-c", "cat /etc/built; ls /etc/motd 2>&1; true"]);
    assert!(seen.starts_with("b\n0\n") && seen.contains("No such file"), "{seen}");
    assert!(!seen.contains("eth0"), "{seen}");
    assert_eq!(layers(&machine), ["layer", "layer"]);
    assert!(machine.good(&["template", "build", "b"]).contains("2 layers, 0 built now"));
}

#[test]
fn a_build_that_fails_leaves_no_layer() {
    let Some(machine) = Machine::new() else { return };
    for (lines, expect) in [
        (vec!["echo first", "echo the reason >&2; exit 3"], "the reason"),
        (vec!["exit 4", "echo never"], "exec.start `exit 4`"),
        (vec!["/nowhere/x"], "/nowhere/x"),
    ] {
        template(&machine, &lines, "");
        let said = machine.status(&["template", "build", "b"], 1);
        assert!(said.contains(expect) && !said.contains("build: never"), "{said}");
        assert_eq!(layers(&machine), ["layer"], "the base alone");
    }
    // What was told is of templates that nobody wants any more.
    let gone = machine.good(&["gc"]);
    assert_eq!(gone.matches("build failure").count(), 2, "{gone}");
    template(&machine, &["busybox sleep 1000"], "timeout = '1s'\n");
    let said = machine.status(&["template", "build", "b"], 1);
    assert!(said.contains("it takes too long"), "{said}");
    machine.jail("a", "template = \"b\"\nexec.command = [\"/bin/sleep\", \"1000\"]\n");
    let said = machine.status(&["apply"], 1);
    assert!(said.contains("a: ") && said.contains("it takes too long"), "{said}");
    assert_eq!(layers(&machine), ["layer"]);
    let told = machine.good(&["status"]);
    let why = "a: failed: its template `b` could not be built: ";
    assert!(told.contains(why) && told.contains("it takes too long"), "{told}");
    template(&machine, &["true"], "");
    machine.good(&["apply"]);
    assert!(!machine.good(&["status"]).contains("could not be built"));
}

#[test]
fn a_killed_build_is_done_again_and_two_at_once_are_one() {
    let Some(machine) = Machine::new() else { return };
    template(&machine, &["echo started", "busybox sleep 2", "echo x > /etc/built"], "");
    let start = || {
        let mut command = machine.command(&["template", "build", "b"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut first = start();
    let is_building = || layers(&machine).iter().any(|name| name.ends_with("-aside"));
    machine.wait_until("the lines run", || is_building() && !crate::leak::processes(&machine).is_empty());
    std::thread::sleep(std::time::Duration::from_millis(300));
    first.kill().unwrap();
    first.wait().unwrap();
    machine.wait_until("the jail died with it", || crate::leak::processes(&machine).is_empty());
    let (one, two) = (start(), start());
    let outputs = [one, two].map(|child| child.wait_with_output().unwrap());
    let said: String = outputs.iter().map(crate::machine::said).collect();
    assert!(outputs.iter().all(|output| output.status.success()), "{said}");
    assert_eq!(said.matches("build: started").count(), 1, "{said}");
    assert_eq!(said.matches("template b: waiting for another build of this layer").count(), 1, "{said}");
    assert_eq!(layers(&machine), ["layer", "layer"]);
    machine.good(&["gc"]);
}

#[test]
fn a_build_reaches_the_host_no_further_than_a_jail() {
    let Some(machine) = Machine::new() else { return };
    let lines = [
        "id -u > /etc/built; cat /proc/self/uid_map >> /etc/built",
        "busybox mknod /etc/sda b 8 0 || echo no node >> /etc/built",
        "busybox mount -t tmpfs none /mnt 2>/dev/null || echo no mount >> /etc/built",
        "busybox mkdir /etc/d; busybox mkfifo /etc/d/f; busybox ln /etc/built /etc/d/second",
        "busybox grep -c . /proc/net/route >> /etc/built; exit 0",
    ];
    template(&machine, &lines, "");
    machine.good(&["template", "build", "b"]);
    let layer = newest(&machine);
    let said = std::fs::read_to_string(layer.join("etc/built")).unwrap();
    assert!(said.contains("no node") && said.contains("no mount") && said.ends_with("1\n"), "{said}");
    let map: Vec<&str> = said.lines().nth(1).unwrap().split_whitespace().collect();
    assert!(
        map[0] == "0" && map[1].parse::<u32>().unwrap() >= machine.first_id && map[2] == "65536",
        "{said}"
    );
    let found = std::fs::metadata(layer.join("etc/d/second")).unwrap();
    assert_eq!((found.uid(), found.nlink()), (0, 2));
}

#[test]
fn a_layer_that_has_changed_is_named() {
    let Some(machine) = Machine::new() else { return };
    template(&machine, &["echo x > /etc/built", "busybox rm /etc/motd"], "");
    machine.good(&["template", "build", "b"]);
    let shown = machine.good(&["template", "show", "b"]);
    assert!(shown.contains("run echo x > /etc/built") && shown.contains("directory "), "{shown}");
    assert_eq!(machine.good(&["template", "verify"]).matches("as it was made").count(), 2);
    machine.good(&["run", "b", "--", "/bin/sh", "-c", ":"]);
    assert_eq!(machine.good(&["template", "verify", "b"]).matches("as it was made").count(), 2);
    std::fs::write(newest(&machine).join("etc/built"), "y\n").unwrap();
    let said = machine.status(&["template", "verify"], 1);
    assert!(said.contains("/etc/built: time "), "{said}");
    let json: serde_json::Value =
        serde_json::from_slice(&machine.stockade(&["template", "verify", "--json"]).stdout).unwrap();
    let good = json["items"].as_array().unwrap().iter().filter(|item| item["good"] == true);
    assert_eq!((json["kind"].as_str(), good.count()), (Some("layers"), 1));
    std::fs::remove_dir_all(machine.config().join("templates/b")).unwrap();
    machine.good(&["template", "gc"]);
    assert_eq!(layers(&machine), [""; 0], "manifests go with their layers");
}

/// A host for programs that make a Debian: none of its own is found, but the scripts of the test.
struct Programs<'m> {
    machine: &'m Machine,
    hidden: Vec<String>,
}

const PLACES: [&str; 5] = ["/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
const SCRIPTS: &str = "/usr/local/sbin";
const BINFMT: &str = "/proc/sys/fs/binfmt_misc";

impl<'m> Programs<'m> {
    fn new(machine: &'m Machine) -> Self {
        let mut programs = Self { machine, hidden: Vec::new() };
        programs.mount(&["-t", "tmpfs", "scripts", SCRIPTS]);
        programs.mount(&["-t", "tmpfs", "binfmt", BINFMT]);
        for name in ["mmdebstrap", "debootstrap"] {
            for place in PLACES {
                let path = format!("{place}/{name}");
                let is_there = machine.outside(&["test", "-f", &path]).status.success();
                if is_there {
                    programs.mount(&["--bind", "/dev/null", &path]);
                }
            }
        }
        programs
    }

    fn mount(&mut self, words: &[&str]) {
        let mounted = self.machine.outside(&[&["mount"], words].concat());
        assert!(mounted.status.success(), "{mounted:?}");
        self.hidden.push((*words.last().unwrap()).to_owned());
    }

    /// A file that the machine alone sees.
    fn write(&self, path: &str, text: &str) {
        let script = "printf %s \"$1\" > \"$0\"; chmod 755 \"$0\"";
        let written = self.machine.outside(&["sh", "-ec", script, path, text]);
        assert!(written.status.success(), "{written:?}");
    }

    /// Puts what a template is made of in place of a Debian; `line` goes before.
    fn script(&self, name: &str, line: &str) {
        let root = self.machine.path().join("root");
        if !root.exists() {
            busybox_root(&root);
        }
        let root = root.display();
        let make = match name {
            "mmdebstrap" => format!("tar -C {root} -c ."),
            _ => format!(
                "for t; do case $t in /*) mkdir $t; cp -a {root}/. $t; echo \"$*\" > $t/etc/args;; esac; done"
            ),
        };
        self.write(&format!("{SCRIPTS}/{name}"), &format!("#!/bin/sh -e\n{line}\n{make}\n"));
    }
}

impl Drop for Programs<'_> {
    fn drop(&mut self) {
        for path in self.hidden.iter().rev() {
            // What a build that was just killed still holds goes with it.
            self.machine.outside(&["umount", "--lazy", path]);
        }
    }
}

fn debian(machine: &Machine, more: &str) {
    let text = format!("[base]\ndebootstrap = {{ suite = 'trixie'{more} }}\n");
    machine.write("templates/b/template.toml", &text);
}

#[test]
fn debootstrap_takes_the_place_of_mmdebstrap() {
    let Some(machine) = Machine::new() else { return };
    let programs = Programs::new(&machine);
    debian(
        &machine,
        ", include = ['nginx'], components = ['main', 'contrib'], mirror = 'http://127.0.0.1/d'",
    );
    let said = machine.status(&["template", "build", "b"], 1);
    assert!(said.contains("neither mmdebstrap nor debootstrap is installed"), "{said}");
    programs.script("debootstrap", "echo I: Retrieving; echo W: odd >&2");
    let said = machine.stockade(&["template", "build", "b"]);
    let said = crate::machine::said(&said);
    assert!(said.contains("template b: debootstrap: I: Retrieving") && said.contains("W: odd"), "{said}");
    let seen = machine.good(&["run", "b", "--", "/bin/cat", "/etc/args", "/etc/motd"]);
    let (args, motd) = seen.split_once('\n').unwrap();
    assert!(args.starts_with("--include=nginx --components=main,contrib trixie /"), "{args}");
    assert!(args.ends_with("/root http://127.0.0.1/d") && motd == "from the base\n", "{seen}");
    debian(&machine, ", variant = 'apt'");
    let said = machine.status(&["template", "build", "b"], 1);
    assert!(said.contains("debootstrap knows no variant `apt`: install mmdebstrap"), "{said}");
    debian(&machine, "");
    programs.script("debootstrap", "echo E: no such suite; exit 1");
    let said = machine.status(&["template", "build", "b"], 1);
    assert!(said.contains("debootstrap: exit status: 1: E: no such suite"), "{said}");
    assert_eq!(layers(&machine), ["layer"]);
}

#[test]
fn programs_of_another_architecture_need_an_interpreter() {
    let Some(machine) = Machine::new() else { return };
    let programs = Programs::new(&machine);
    let (arch, qemu) = if cfg!(target_arch = "x86_64") { ("arm64", "aarch64") } else { ("amd64", "x86_64") };
    programs.script(
        "mmdebstrap",
        &format!("for a; do [ $a != --architectures={arch} ] || said=1; done; [ \"$said\" ]"),
    );
    debian(&machine, &format!(", arch = '{arch}'"));
    machine.jail("a", "template = 'b'\nexec.command = ['/bin/sleep', '1000']\n");
    let refused = |said: &str| {
        let fault = format!("base.debootstrap.arch: it is for {arch}, this host is ");
        assert!(said.contains(&fault) && said.contains("template.toml:2:"), "{said}");
        assert!(said.contains(&format!("no qemu-{qemu} is registered: install qemu-user-static")), "{said}");
    };
    refused(&machine.status(&["plan"], 3));
    refused(&machine.status(&["template", "build", "b"], 3));
    // One that is not held open would not be found inside a jail.
    let entry = format!("{BINFMT}/qemu-{qemu}");
    programs.write(&entry, "enabled\ninterpreter /usr/bin/qemu\nflags: OC\n");
    refused(&machine.status(&["apply"], 3));
    assert!(
        crate::machine::said(&machine.stockade(&["doctor"])).contains("remedy: install qemu-user-static")
    );
    programs.write(&entry, "enabled\ninterpreter /usr/bin/qemu\nflags: OCF\n");
    assert!(crate::machine::said(&machine.stockade(&["doctor"])).contains(&format!("  {arch} beside ")));
    machine.good(&["apply"]);
    assert_eq!(machine.state_of("a"), "running");
    // Without the interpreter the definition is wrong again, and the last apply would say so.
    std::fs::remove_dir_all(machine.config().join("templates/b")).unwrap();
    machine.remove("a");
    machine.good(&["apply"]);
}

/// A program of another architecture, as far as the kernel looks at it.
fn foreign_program(file: &Path) {
    let machine = if cfg!(target_arch = "x86_64") { 183 } else { 62 };
    let ident = [b"\x7fELF\x02\x01\x01", &[0; 9][..]].concat();
    let head = [&ident[..], &[2, 0, machine, 0, 1, 0, 0, 0], &[0; 40]].concat();
    // What `sh` leads to stays as it is.
    let _ = std::fs::remove_file(file);
    std::fs::write(file, head).unwrap();
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_base_of_another_architecture_is_told_of() {
    let Some(machine) = Machine::new() else { return };
    let (arch, qemu) = if cfg!(target_arch = "x86_64") { ("arm64", "aarch64") } else { ("amd64", "x86_64") };
    let is_told = |said: &str, place: &str| {
        let head = format!("it is for {arch}, this host is ");
        let remedy = format!("no qemu-{qemu} is registered: install qemu-user-static");
        assert!(said.contains(place) && said.contains(&head) && said.contains(&remedy), "{said}");
    };
    let root = machine.path().join("root");
    busybox_root(&root);
    foreign_program(&root.join("bin/sh"));
    machine.write("templates/b/template.toml", &format!("[base]\ndirectory = '{}'\n", root.display()));
    machine.jail("a", "template = 'b'\nexec.command = ['/bin/sleep', '1000']\n");
    let said = machine.status(&["plan"], 3);
    is_told(&said, "template.toml:2:1: error: ");
    is_told(&said, "root: bin/sh: ");
    // An archive is not looked into before it is unpacked: its programs tell.
    let archive = machine.path().join("root.tar");
    let tar = Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&archive).arg(".").status();
    assert!(tar.unwrap().success());
    let base = format!("[base]\ntar = '{}'\n", archive.display());
    machine.write("templates/b/template.toml", &format!("{base}[build]\nrun = ['true']\n"));
    is_told(&machine.status(&["apply"], 1), "execute /bin/sh: ");
    machine.write("templates/b/template.toml", &base);
    machine.jail("a", "template = 'b'\nexec.command = ['sh']\n");
    is_told(&machine.status(&["apply"], 1), "a: execute sh: ");
    is_told(&machine.status(&["run", "b", "--", "/bin/sh"], 126), "execute /bin/sh: ");
    // So it is of a jail without a template, and of a script.
    let script = root.join("bin/script");
    foreign_program(&script);
    std::fs::write(&script, "#! /bin/sh -e\ntrue\n").unwrap();
    machine.jail("a", &format!("path = '{}'\nexec.command = ['/bin/script']\n", root.display()));
    is_told(&machine.status(&["apply"], 1), "a: execute /bin/script: ");
    // What is no program at all is not taken for one.
    std::fs::write(&script, "true\n").unwrap();
    let said = machine.status(&["apply"], 1);
    assert!(said.contains("a: execute /bin/script: Exec format error"), "{said}");
}

/// Begins what builds template `b`, and waits until a program of it runs.
fn begin(machine: &Machine, args: &[&str]) -> std::process::Child {
    let mut command = machine.command(args);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let is_building = || layers(machine).iter().any(|name| name.ends_with("-aside"));
    machine.wait_until("it builds", || is_building() && !crate::leak::processes(machine).is_empty());
    std::thread::sleep(std::time::Duration::from_millis(300));
    child
}

fn build_cgroups(machine: &Machine) -> usize {
    let below = |parent: PathBuf| std::fs::read_dir(parent).into_iter().flatten().flatten();
    let all = machine.cgroups().into_iter().flat_map(below);
    all.filter(|entry| entry.file_name().to_string_lossy().starts_with("build-")).count()
}

/// Whatever builds and however it is ended: nothing is left, and the next one does it all.
fn end_and_do_again(machine: &Machine, built: usize, slow: &dyn Fn(), fast: &dyn Fn()) {
    use rustix::process::{Signal, kill_process};
    for (verb, status) in
        [(&["template", "build", "b"][..], 1), (&["apply"], 1), (&["run", "b", "--", "true"], 125)]
    {
        for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
            slow();
            let child = begin(machine, verb);
            kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
            let output = child.wait_with_output().unwrap();
            let said = crate::machine::said(&output);
            machine.wait_until("its processes are gone", || crate::leak::processes(machine).is_empty());
            if signal == Signal::KILL {
                // Nobody was there to clear it: the next one does, whatever it is about.
                machine.good(&["apply", "--only", "other"]);
            } else {
                assert_eq!(output.status.code(), Some(status), "{verb:?} {signal:?}: {said}");
                assert_eq!(said.matches("interrupted; clearing up").count(), 1, "{verb:?}: {said}");
            }
            assert_eq!(layers(machine), vec!["layer"; built], "{verb:?} {signal:?}: {said}");
            assert_eq!(build_cgroups(machine), 0, "{verb:?} {signal:?}: {said}");
        }
    }
    fast();
    machine.good(&["apply"]);
    assert_eq!(layers(machine), vec!["layer"; built + 1]);
}

#[test]
fn what_is_interrupted_leaves_nothing_and_is_done_anew() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("other", "template = 'host'\nenabled = false\nexec.command = ['true']\n");
    machine.jail("a", "template = 'b'\nexec.command = ['/bin/sleep', '1000']\n");
    let slow = || template(&machine, &["echo begun", "busybox sleep 1000"], "");
    // Made beforehand, so that what is left is easily counted.
    template(&machine, &["exit 1"], "");
    machine.status(&["template", "build", "b"], 1);
    end_and_do_again(&machine, 1, &slow, &|| template(&machine, &["echo x > /etc/built"], ""));
    machine.good(&["stop", "a"]);
    machine.remove("a");
    machine.good(&["apply"]);
    machine.good(&["destroy", "--yes", "a"]);
    machine.good(&["gc"]);
}

#[test]
fn a_debootstrap_that_is_interrupted_leaves_nothing() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("other", "template = 'host'\nenabled = false\nexec.command = ['true']\n");
    machine.jail("a", "template = 'b'\nexec.command = ['/bin/sleep', '1000']\n");
    let programs = Programs::new(&machine);
    debian(&machine, "");
    let slow = || programs.script("mmdebstrap", "mount -t tmpfs none /mnt; sleep 1000 & wait");
    end_and_do_again(&machine, 0, &slow, &|| programs.script("mmdebstrap", ""));
}

#[test]
fn who_waits_for_a_build_sees_that_it_goes_on() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("a", "template = 'b'\nexec.command = ['/bin/sleep', '1000']\n");
    let lines = |number: u32| template(&machine, &[&format!("echo {number}; busybox sleep 2")], "");
    lines(1);
    let said = crate::machine::said(&machine.stockade(&["apply"]));
    for line in [
        "+ a  its template `b` is built first",
        "template b: building run echo 1",
        "template b: built in 2 s",
    ] {
        assert_eq!(said.matches(line).count(), 1, "{line}: {said}");
    }
    assert!(said.contains("a: started\n") && !said.contains("build: 1"), "{said}");
    lines(2);
    let output = machine.stockade(&["apply", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(json["kind"] == "plan" && output.stderr.is_empty(), "{output:?}");
    // On a terminal, one line for as long as it lasts.
    lines(3);
    let words = machine.shell_words(&["apply"]);
    let output = assert_cmd::Command::new("script").args(["-qec", &words, "/dev/null"]).output().unwrap();
    let said = crate::machine::said(&output);
    assert!(said.contains(" template b: build: 3 ") && said.contains("template b: built in 2 s"), "{said:?}");
    // What takes no time is not spoken of.
    template(&machine, &["echo 4"], "");
    let said = crate::machine::said(&machine.stockade(&["apply"]));
    assert!(!said.contains("template b: b"), "{said}");
}

#[test]
fn lines_reach_the_network_where_they_are_let() {
    let Some(machine) = Machine::new() else { return };
    let page = machine.path().join("page");
    std::fs::write(&page, "from the host\n").unwrap();
    let serve = "busybox httpd -f -p 127.0.0.1:8080 -h \"$0\"";
    let mut words = machine.enter();
    words.extend(["sh".into(), "-c".into(), format!("exec {serve}"), machine.path().display().to_string()]);
    let mut server = std::process::Command::new(&words[0]).args(&words[1..]).spawn().unwrap();
    let line = "cat /etc/resolv.conf > /etc/built 2>&1; busybox wget -q -O - http://127.0.0.1:8080/page >> /etc/built";
    template(&machine, &[line], "");
    let said = machine.status(&["template", "build", "b"], 1);
    assert!(said.contains("wget"), "{said}");
    template(&machine, &[line], "network = true\n");
    let built = machine.stockade(&["template", "build", "b"]);
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(built.status.success(), "{}", crate::machine::said(&built));
    let layer = newest(&machine);
    let seen = std::fs::read_to_string(layer.join("etc/built")).unwrap();
    assert!(seen.ends_with("from the host\n") && seen.len() > "from the host\n".len(), "{seen}");
    assert!(!layer.join("etc/resolv.conf").exists(), "lent, and taken back");
}

/// The machine has no network; the host has. `before` is done in a mount namespace of its own.
fn build_with_network(machine: &Machine, template: &str, before: &str) {
    let directory = |flag: &str, name: &str| format!("--{flag}-dir={}", machine.path().join(name).display());
    let built = std::process::Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-ec", &format!("{before}; exec \"$@\""), "sh"])
        .arg(env!("CARGO_BIN_EXE_stockade"))
        .args(
            [("config", "etc"), ("state", "state"), ("run", "run"), ("log", "log")]
                .map(|(f, n)| directory(f, n)),
        )
        .args(["template", "build", template])
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", crate::machine::said(&built));
}

/// The same mirror by way of the other program.
#[test]
#[ignore = "needs Debian's mirror: tests/run debian"]
fn a_debian_is_made_without_mmdebstrap_as_well() {
    let Some(machine) = Machine::new() else { return };
    machine.write(
        "templates/deb/template.toml",
        "[base]\ndebootstrap = { suite = 'trixie', variant = 'minbase' }\n",
    );
    build_with_network(&machine, "deb", "mount --bind /dev/null \"$(command -v mmdebstrap)\"");
    let script = "id -u; dpkg --audit; stat -c %a:%U /usr/bin/su /tmp; ls /var/lib/dpkg/info/libc6*.list";
    let seen = machine.good(&["run", "deb", "--", "/bin/sh", "-c", script]);
    assert!(seen.starts_with("0\n4755:root\n1777:root\n/var/lib/dpkg/info/libc6"), "{seen}");
}

/// Downloads some 60 MB from Debian's mirror, so it is a stage of its own in tests/run.
#[test]
#[ignore = "needs Debian's mirror: tests/run debian"]
fn a_debian_from_debootstrap_serves_its_page() {
    let Some(machine) = Machine::new() else { return };
    let text = "[base]\ndebootstrap = { suite = \"trixie\", variant = \"minbase\", include = [\"nginx\"] }\n\
                [build]\nrun = [\"apt-get clean\", \"rm -rf /var/lib/apt/lists/*\"]\n\
                [[file]]\nsource = \"index.html.tera\"\ntarget = \"/var/www/html/index.html\"\n";
    machine.write("templates/deb/template.toml", text);
    machine.write("templates/deb/index.html.tera", "hello from {{ name }}\n");
    build_with_network(&machine, "deb", "true");
    machine
        .jail("web", "template = \"deb\"\nexec.command = [\"/usr/sbin/nginx\", \"-g\", \"daemon off;\"]\n");
    machine.good(&["apply"]);
    let ask = "exec 3<>/dev/tcp/127.0.0.1/80 && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3";
    let page = || machine.stockade(&["exec", "web", "--", "bash", "-c", ask]);
    machine.wait_until("nginx answers", || page().status.success());
    let page = crate::machine::said(&page());
    assert!(page.contains("hello from web"), "{page}");
    let owners = "stat -c %U /usr/bin/su /var/mail /var/log/nginx; stat -c %a /usr/bin/su";
    assert_eq!(machine.inside("web", owners), "root\nroot\nroot\n4755\n");
    assert_eq!(machine.good(&["template", "verify", "deb"]).matches("as it was made").count(), 2);
}
