//! `[build]`: lines run in a jail whose writes become a layer.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Stdio;

use crate::machine::Machine;
use crate::templates::busybox_root;

/// A template `b` on busybox that runs these lines.
fn template(machine: &Machine, lines: &[&str], more: &str) {
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
fn layers(machine: &Machine) -> Vec<String> {
    let entries = std::fs::read_dir(machine.state().join("layers")).into_iter().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| {
            !name.starts_with(".lock-") && (!name.starts_with(".manifest-") || !has_layer(machine, name))
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
    template(&machine, &["busybox sleep 1000"], "timeout = '1s'\n");
    let said = machine.status(&["template", "build", "b"], 1);
    assert!(said.contains("it takes too long"), "{said}");
    machine.jail("a", "template = \"b\"\nexec.command = [\"/bin/sleep\", \"1000\"]\n");
    let said = machine.status(&["apply"], 1);
    assert!(said.contains("a: ") && said.contains("it takes too long"), "{said}");
    assert_eq!(layers(&machine), ["layer"]);
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
    // The machine has no network; the host has.
    let directory = |flag: &str, name: &str| format!("--{flag}-dir={}", machine.path().join(name).display());
    let flags = [
        directory("config", "etc"),
        directory("state", "state"),
        directory("run", "run"),
        directory("log", "log"),
    ];
    let built = std::process::Command::new(env!("CARGO_BIN_EXE_stockade"))
        .args(flags)
        .args(["template", "build", "deb"])
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", crate::machine::said(&built));
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
