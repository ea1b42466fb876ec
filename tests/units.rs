//! The files for systemd in `etc/`, read by systemd's own programs where they are installed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("etc").join(name)
}

/// Nothing, aloud, when the program is not there.
fn output(command: &mut Command) -> Option<Output> {
    match command.output() {
        Ok(output) => Some(output),
        Err(e) => {
            eprintln!("skipped: {}: {e}", command.get_program().display());
            None
        }
    }
}

#[test]
fn the_units_are_understood() {
    let dir = tempfile::tempdir().unwrap();
    let units = ["stockade.service", "stockade-shutdown.service"];
    for name in units {
        let unit = fs::read_to_string(shipped(name)).unwrap();
        // The program must exist to be verified.
        fs::write(dir.path().join(name), unit.replace("/usr/sbin/stockade ", "/bin/true ")).unwrap();
    }
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no"]).args(units.map(|name| dir.path().join(name)));
    let Some(output) = output(&mut verify) else { return };
    let said = String::from_utf8_lossy(&output.stderr);
    let complaints: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("stockade"))
        // Known since systemd 254.
        .filter(|line| !line.contains("'DelegateSubgroup'"))
        .collect();
    assert!(output.status.success() && complaints.is_empty(), "{said}");
}

#[test]
fn the_unit_keeps_what_jails_depend_on() {
    let unit = fs::read_to_string(shipped("stockade.service")).unwrap();
    let lines: Vec<&str> = unit.lines().collect();
    for line in [
        "Type=notify",
        "NotifyAccess=main",
        "KillMode=process",
        "Delegate=yes",
        // Where `limits` looks for our own processes.
        "DelegateSubgroup=daemon",
        "OOMPolicy=continue",
        "TasksMax=infinity",
        "Restart=on-failure",
    ] {
        assert!(lines.contains(&line), "{line}");
    }
    // Each of these would reach into jails or hide their mounts; the unit says why.
    for key in ["Private", "Protect", "Restrict", "SystemCall", "NoNewPrivileges", "RuntimeDirectory"] {
        let set = lines.iter().find(|line| line.starts_with(key) && line.contains('='));
        assert_eq!(set, None, "{key}");
    }
}

#[test]
fn the_jails_stop_after_the_daemon_and_by_a_command_that_there_is() {
    let unit = fs::read_to_string(shipped("stockade-shutdown.service")).unwrap();
    // Started before it, and so stopped after it.
    assert!(unit.lines().any(|line| line == "Before=stockade.service"));
    let stop = unit.lines().find_map(|line| line.strip_prefix("ExecStop=/usr/sbin/stockade ")).unwrap();
    let words = std::iter::once("stockade").chain(stop.split(' '));
    assert!(<stockade::cli::Line as clap::Parser>::try_parse_from(words).is_ok(), "{stop}");
}

#[test]
fn the_directories_are_closed() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("etc")).unwrap();
    fs::write(root.path().join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
    fs::write(root.path().join("etc/group"), "root:x:0:\nadm:x:4:\n").unwrap();
    let mut create = Command::new("systemd-tmpfiles");
    create.arg("--create").arg(format!("--root={}", root.path().display())).arg(shipped("stockade.tmpfiles"));
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can give directories away");
        return;
    }
    let Some(output) = output(&mut create) else { return };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for (path, mode) in [("run/stockade", 0o711), ("var/lib/stockade", 0o700), ("var/log/stockade", 0o750)] {
        let found = fs::metadata(root.path().join(path)).unwrap().permissions().mode();
        assert_eq!(found & 0o7777, mode, "{path}");
    }
}
