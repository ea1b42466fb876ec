//! What is the same in several layers is kept once, where the file system can.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use crate::machine::{Machine, said};

const SAME_BYTES: usize = 3 << 20;
const DISK_BYTES: u64 = 400 << 20;

fn command(words: &[&str]) {
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", said(&output));
}

/// Two layers with a file in common, files of the same size that differ, and small ones.
fn two_layers(machine: &Machine) {
    for name in ["one", "two"] {
        let base = machine.path().join(name);
        std::fs::create_dir_all(base.join("sub")).unwrap();
        let same: Vec<u8> = (0..=250_u8).cycle().take(SAME_BYTES).collect();
        std::fs::write(base.join("same"), &same).unwrap();
        std::fs::write(base.join("sub/other"), name.repeat(SAME_BYTES / 3)).unwrap();
        std::fs::write(base.join("small"), "the same\n").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", base.join("link")).unwrap();
        let text = format!("[base]\ndirectory = '{}'\n", base.display());
        machine.write(&format!("templates/{name}/template.toml"), &text);
        machine.good(&["template", "build", name]);
    }
}

/// The same with the state directory on a file system of that kind.
fn on(kind: &str, make: &[&str]) -> Option<(Machine, String, String)> {
    let machine = Machine::new()?;
    let image = machine.path().join("image");
    std::fs::File::create(&image).unwrap().set_len(DISK_BYTES).unwrap();
    let mut words = make.to_vec();
    let path = image.display().to_string();
    words.push(&path);
    command(&words);
    let state = machine.state();
    std::fs::create_dir_all(&state).unwrap();
    let mounted = machine.outside(&["mount", "-t", kind, "-o", "loop", &path, &state.display().to_string()]);
    assert!(mounted.status.success(), "{}", said(&mounted));
    two_layers(&machine);
    let dry = machine.good(&["gc", "--dedup", "-n"]);
    let done = machine.good(&["gc", "--dedup"]);
    assert_eq!(
        machine.good(&["gc", "--dedup"]),
        done.replace("Shared 1 ", "Shared 0 ").replace("3M saved", "0B saved"),
        "once is enough"
    );
    Some((machine, dry, done))
}

fn check(kind: &str, make: &[&str]) {
    let Some((machine, dry, done)) = on(kind, make) else { return };
    assert!(dry.starts_with("Would share 1 of 4 files, 3"), "{dry}");
    assert!(done.starts_with("Shared 1 of 4 files, 3"), "{done}");
    let layers = machine.state().join("layers");
    let find = machine.outside(&[
        "sh",
        "-c",
        &format!("cd {} && filefrag -v */same | grep -c shared", layers.display()),
    ]);
    assert_eq!(String::from_utf8_lossy(&find.stdout).trim(), "2", "{}", said(&find));
    let compared = machine.outside(&[
        "sh",
        "-c",
        &format!("cd {} && cmp */same && ! cmp -s */sub/other", layers.display()),
    ]);
    assert!(compared.status.success(), "{}", said(&compared));
    machine.outside(&["umount", &machine.state().display().to_string()]);
}

#[test]
fn btrfs_keeps_the_same_file_once() {
    check("btrfs", &["mkfs.btrfs", "-q"]);
}

#[test]
fn xfs_keeps_the_same_file_once() {
    check("xfs", &["mkfs.xfs", "-q", "-m", "reflink=1"]);
}

#[test]
fn where_blocks_cannot_be_shared_that_is_said() {
    let Some(machine) = Machine::new() else { return };
    let Ok(place) = std::fs::metadata(machine.path()) else { return };
    two_layers(&machine);
    let output = machine.stockade(&["gc", "--dedup"]);
    // The machine's own file system; btrfs and xfs have tests of their own.
    if can_share(machine.path()) {
        return assert!(output.status.success(), "{}", said(&output));
    }
    assert_eq!(output.status.code(), Some(1), "on device {}", place.dev());
    assert!(
        said(&output).contains("cannot share blocks") && said(&output).contains("reflink=1"),
        "{}",
        said(&output)
    );
}

fn can_share(directory: &Path) -> bool {
    let (one, other) = (directory.join("reflink-1"), directory.join("reflink-2"));
    std::fs::write(&one, vec![1; 4096]).unwrap();
    let output = Command::new("cp").arg("--reflink=always").args([&one, &other]).output().unwrap();
    output.status.success()
}
