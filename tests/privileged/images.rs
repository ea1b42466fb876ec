//! Images that other tools have made.

use std::path::Path;
use std::process::Command;

use crate::machine::Machine;
use crate::templates::busybox_root;

/// A tool that tests/run installs.
#[track_caller]
fn tool(words: &[&str]) {
    let output = Command::new(words[0]).args(&words[1..]).output();
    let output = output.unwrap_or_else(|error| panic!("{}: {error}: tests/run installs it", words[0]));
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A layout of three layers: busybox, a second motd, and no motd at all.
fn layout(machine: &Machine) -> String {
    let root = machine.path().join("root");
    busybox_root(&root);
    std::fs::write(machine.path().join("motd"), "second\n").unwrap();
    let layout = machine.path().join("layout").display().to_string();
    let image = format!("{layout}:it");
    tool(&["umoci", "init", "--layout", &layout]);
    tool(&["umoci", "new", "--image", &image]);
    tool(&["umoci", "insert", "--image", &image, &root.display().to_string(), "/"]);
    tool(&[
        "umoci",
        "insert",
        "--image",
        &image,
        &machine.path().join("motd").display().to_string(),
        "/etc/motd",
    ]);
    tool(&["umoci", "insert", "--image", &image, "--whiteout", "/etc/passwd"]);
    let line = "echo i am $A; id -u; pwd; exec sleep 1000";
    tool(&[
        "umoci",
        "config",
        "--image",
        &image,
        "--config.user",
        "33:33",
        "--config.env",
        "A=b",
        "--config.workingdir",
        "/tmp",
        "--config.entrypoint",
        "/bin/sh",
        "--config.cmd",
        "-c",
        "--config.cmd",
        line,
    ]);
    layout
}

fn template(machine: &Machine, name: &str, path: &Path) {
    let text = format!("[base]\noci = \"{}\"\n", path.display());
    machine.write(&format!("templates/{name}/template.toml"), &text);
}

#[test]
fn an_image_made_by_other_tools_runs_what_it_says() {
    let Some(machine) = Machine::new() else { return };
    let layout = layout(&machine);
    template(&machine, "layout", Path::new(&layout));
    let archive = machine.path().join("oci.tar");
    tool(&[
        "skopeo",
        "copy",
        "-q",
        &format!("oci:{layout}:it"),
        &format!("oci-archive:{}:it", archive.display()),
    ]);
    template(&machine, "archive", &archive);
    let saved = machine.path().join("docker.tar");
    tool(&[
        "skopeo",
        "copy",
        "-q",
        &format!("oci:{layout}:it"),
        &format!("docker-archive:{}:it:1", saved.display()),
    ]);
    template(&machine, "docker", &saved);
    for name in ["layout", "archive", "docker"] {
        machine.jail(name, &format!("template = \"{name}\"\n"));
    }
    machine.good(&["apply"]);
    for name in ["layout", "archive", "docker"] {
        machine.wait_until("it has said all", || machine.log(name).lines().count() >= 3);
        let log = machine.log(name);
        let said: Vec<&str> =
            log.lines().filter_map(|line| line.split_once(' ')).map(|(_, text)| text).collect();
        assert_eq!(said, ["i am b", "33", "/tmp"], "{name}");
        assert_eq!(machine.inside(name, "cat /etc/motd; ls /etc"), "second\nmotd\n", "{name}");
        assert!(machine.good(&["show", name]).contains("exec.user                33:33"), "{name}");
    }
    // The layout's layers are the archive's; the docker archive has them unpacked.
    let layers = std::fs::read_dir(machine.state().join("layers")).unwrap();
    let layers =
        layers.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("sha256-"));
    assert_eq!(layers.count(), 6);
    assert_eq!(machine.good(&["apply"]), "No changes.\n");
}
