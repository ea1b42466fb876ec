//! Files in and out of jails: what comes over, whose it is, and what a hostile jail can make of it.

use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::apply::SLEEP;
use crate::machine::{Machine, pid_of, said};

/// Copies in each direction while the jail swaps directories for links.
const RACES: usize = 40;
const BIG_BYTES: usize = 600 << 20;

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// A tree with a file of another user that runs as its owner, a second name of it, a link, a hole
/// and a FIFO.
fn source(machine: &Machine) -> std::path::PathBuf {
    let top = machine.path().join("d");
    std::fs::create_dir_all(top.join("sub")).unwrap();
    std::fs::write(top.join("sub/f"), "hello\n").unwrap();
    std::os::unix::fs::chown(top.join("sub/f"), Some(33), Some(34)).unwrap();
    std::fs::set_permissions(top.join("sub/f"), std::fs::Permissions::from_mode(0o4755)).unwrap();
    std::fs::hard_link(top.join("sub/f"), top.join("hard")).unwrap();
    symlink("/etc/shadow", top.join("link")).unwrap();
    let hole = std::fs::File::create(top.join("hole")).unwrap();
    hole.set_len(1 << 30).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, top.join("fifo"), rustix::fs::FileType::Fifo, 0o644.into(), 0)
        .unwrap();
    top
}

fn no_leftovers(directory: &Path) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(!name.to_string_lossy().starts_with(".stockade-"), "{}", name.display());
    }
}

#[test]
fn files_go_in_and_out_of_a_jail_up_or_down() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("a", SLEEP);
    machine.good(&["apply"]);
    let top = source(&machine);
    for round in ["up", "down"] {
        let output = machine.stockade(&["cp", &text(&top), "a:/srv"]);
        assert!(output.status.success() && said(&output).contains("left out: d/fifo"), "{}", said(&output));
        machine.good(&["cp", &text(&top.join("hard")), "a:/srv/named"]);
        let out = machine.path().join(round);
        machine.good(&["cp", "a:/srv/d", &text(&out)]);
        let contents = machine.path().join(format!("{round}-contents"));
        machine.status(&["cp", "a:/srv/.", &text(&contents)], 1);
        std::fs::create_dir(&contents).unwrap();
        machine.good(&["cp", "a:/srv/.", &text(&contents)]);
        assert!(contents.join("named").is_file() && contents.join("d/sub").is_dir());
        let file = std::fs::metadata(out.join("sub/f")).unwrap();
        assert_eq!((file.uid(), file.mode() & 0o7777, file.nlink()), (0, 0o755, 2), "{round}");
        assert_eq!(std::fs::metadata(out.join("hard")).unwrap().ino(), file.ino());
        assert_eq!(std::fs::read_link(out.join("link")).unwrap(), Path::new("/etc/shadow"));
        let hole = std::fs::metadata(out.join("hole")).unwrap();
        assert_eq!((hole.len(), hole.blocks()), (1 << 30, 0));
        let said = machine.status(&["cp", "a:/srv/nothing", &text(&out)], 1);
        assert!(said.contains("nothing: No such file"), "{said}");
        if round == "up" {
            machine.good(&["stop", "a"]);
        }
    }
    let said = machine.status(&["cp", &text(&top.join("hard")), "a:/usr/x"], 1);
    assert!(said.contains("Read-only"), "{said}");
    machine.good(&["start", "a"]);
    let seen =
        machine.inside("a", "cd /srv; stat -c '%n %u:%g %a' named d/hard; ls .stockade* 2>/dev/null || true");
    assert_eq!(seen, "named 0:0 755\nd/hard 0:0 755\n");
}

#[test]
fn owners_are_kept_where_that_is_asked_for() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("a", SLEEP);
    machine.jail("b", SLEEP);
    machine.good(&["apply"]);
    let top = source(&machine);
    let attribute = |path: &Path, value: &[u8]| {
        rustix::fs::setxattr(path, "user.note", value, rustix::fs::XattrFlags::empty()).unwrap();
    };
    attribute(&top.join("hard"), b"two\nlines=\0");
    machine.good(&["cp", "-a", &text(&top), "a:/srv"]);
    machine.good(&["cp", "-a", "a:/srv/d", "b:/opt/e"]);
    for (name, path) in [("a", "/srv/d"), ("b", "/opt/e")] {
        assert_eq!(machine.inside(name, &format!("stat -c '%u:%g %a' {path}/sub/f")), "33:34 4755\n");
        let root = format!("/proc/{}/root{path}/hard", machine.pid(name));
        let mut value = [0; 32];
        let length = rustix::fs::getxattr(&root, "user.note", &mut value).unwrap();
        assert_eq!(&value[..length], b"two\nlines=\0");
    }
    let said = machine.status(&["cp", "-a", "a:/srv/d", &text(&top)], 1);
    assert!(said.contains("--archive"), "{said}");
    for wrong in [["a:/srv", "a:/opt"], ["x", "y"], ["nope:/x", "y"]] {
        machine.status(&["cp", wrong[0], wrong[1]], 1);
    }
}

#[test]
fn a_tar_stream_goes_in_and_out() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("a", SLEEP);
    machine.good(&["apply"]);
    let top = source(&machine);
    let tar = Command::new("tar").arg("-C").arg(&top).args(["-cf", "-", "sub", "link"]).output().unwrap();
    let output = machine.stockade_with(&["cp", "-", "a:/srv"], &tar.stdout);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(machine.inside("a", "cat /srv/sub/f; stat -c %u:%a /srv/sub/f"), "hello\n0:755\n");
    let stream = machine.stockade(&["cp", "a:/srv/sub", "-"]).stdout;
    let mut list =
        Command::new("tar").args(["-tf", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    list.stdin.take().unwrap().write_all(&stream).unwrap();
    assert_eq!(String::from_utf8_lossy(&list.wait_with_output().unwrap().stdout), "sub\nsub/f\n");
    // A stream that leads out of the directory ends the copy.
    let output = machine.stockade_with(&["cp", "-", "a:/srv"], &escaping());
    assert!(!output.status.success() && said(&output).contains(".."), "{}", said(&output));
    let output = machine.stockade_with(&["cp", "-", "a:/srv"], &tar.stdout[..700]);
    assert!(!output.status.success(), "a stream that was cut off: {}", said(&output));
    assert_eq!(machine.inside("a", "ls -A /srv | sort"), "link\nsub\n");
}

fn escaping() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    header.set_mode(0o644);
    header.as_old_mut().name[..6].copy_from_slice(b"../../");
    header.as_old_mut().name[6] = b'x';
    header.set_cksum();
    builder.append(&header, &b"x"[..]).unwrap();
    builder.into_inner().unwrap()
}

/// The jail's own process swaps a directory for a link to a directory of the host, and back, as
/// fast as it can. Whatever a copy makes of that, it stays in the jail.
#[test]
fn a_jail_that_swaps_its_directories_leads_nobody_out() {
    let Some(machine) = Machine::new() else { return };
    let victim = machine.path().join("victim");
    std::fs::create_dir(&victim).unwrap();
    std::fs::write(victim.join("f"), "the host's\n").unwrap();
    let script = format!(
        "mkdir -p /srv/d/sub; echo mine > /srv/d/f; echo mine > /srv/d/sub/f; cd /srv; \
         while :; do mv d e; ln -s {0} d; rm d; mv e d; mv d/sub d/gone; ln -s {0} d/sub; rm d/sub; mv d/gone d/sub; done",
        victim.display()
    );
    machine.jail("a", &format!("template = 'host'\n[exec]\ncommand = ['sh', '-c', \"{script}\"]\n"));
    machine.good(&["apply"]);
    machine.wait_until("the jail has its files", || {
        machine.stockade(&["exec", "a", "--", "test", "-e", "/srv/d/sub/f"]).status.success()
    });
    let own = machine.path().join("own");
    std::fs::create_dir_all(own.join("sub")).unwrap();
    std::fs::write(own.join("sub/planted"), "x").unwrap();
    let (mut out_well, mut in_well) = (0, 0);
    for round in 0..RACES {
        let out = machine.path().join(format!("out{round}"));
        out_well += usize::from(machine.stockade(&["cp", "a:/srv/d", &text(&out)]).status.success());
        in_well +=
            usize::from(machine.stockade(&["cp", &text(&own.join("sub")), "a:/srv/d/"]).status.success());
        let is_directory = |path: &Path| std::fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
        // A link comes over as a link; what counts is what was read through one.
        for directory in [out.clone(), out.join("sub")].iter().take_while(|path| is_directory(path)) {
            let found = std::fs::read_to_string(directory.join("f")).unwrap_or_default();
            assert!(!found.contains("the host's"), "{found}");
        }
    }
    let names: Vec<_> = std::fs::read_dir(&victim).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["f"]);
    assert!(out_well > 0 && in_well > 0, "some copies go well: {out_well} out, {in_well} in of {RACES}");
}

#[test]
fn an_interrupted_copy_leaves_no_half_file() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("a", SLEEP);
    machine.good(&["apply"]);
    let big = machine.path().join("big");
    let chunk = vec![7_u8; 1 << 20];
    let mut file = std::fs::File::create(&big).unwrap();
    (0..BIG_BYTES >> 20).for_each(|_| file.write_all(&chunk).unwrap());
    let target = machine.path().join("target");
    std::fs::create_dir(&target).unwrap();
    let srv = format!("/proc/{}/root/srv", machine.pid("a"));
    machine.good(&["cp", &text(&big), "a:/srv/whole"]);
    for (from, to, place) in [
        (text(&big), "a:/srv/half".to_owned(), srv.clone()),
        ("a:/srv/whole".into(), text(&target.join("half")), text(&target)),
    ] {
        let mut copy = machine.command(&["cp", &from, &to]).stderr(Stdio::null()).spawn().unwrap();
        let begun = || {
            std::fs::read_dir(&place)
                .unwrap()
                .any(|entry| entry.unwrap().file_name().to_string_lossy().starts_with(".stockade-"))
        };
        machine.wait_until("the copy has begun", begun);
        rustix::process::kill_process(pid_of(&copy), rustix::process::Signal::INT).unwrap();
        assert!(!copy.wait().unwrap().success());
        machine.wait_until("the other side has cleared away", || !begun());
        assert!(!Path::new(&place).join("half").exists());
    }
    no_leftovers(&target);
}
