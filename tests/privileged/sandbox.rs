//! What a jail has written, looked at, taken out and thrown away from outside.

use std::os::unix::fs::{MetadataExt, symlink};

use serde_json::Value;

use crate::apply::SLEEP;
use crate::machine::Machine;
use crate::templates::busybox_root;

/// A jail on a template with something of every kind to change.
fn jail(machine: &Machine, more: &str) {
    let base = machine.path().join("base");
    busybox_root(&base);
    let srv = base.join("srv");
    for directory in ["gone/inner", "opaque", "merged", "mode", "to-file", "renamed"] {
        std::fs::create_dir_all(srv.join(directory)).unwrap();
    }
    for file in [
        "changed",
        "same",
        "touched",
        "owned",
        "gone/file",
        "opaque/old",
        "opaque/both",
        "merged/old",
        "to-dir",
        "renamed/x",
    ] {
        std::fs::write(srv.join(file), format!("{file} of the template\n")).unwrap();
    }
    symlink("changed", srv.join("link")).unwrap();
    machine.write("templates/t/template.toml", &format!("[base]\ndirectory = '{}'\n", base.display()));
    machine.jail("a", &format!("template = 't'\n{more}[exec]\ncommand = ['/bin/sleep', '1000']\n"));
    machine.good(&["apply"]);
}

fn inside(machine: &Machine, name: &str, script: &str) -> String {
    let script = format!(
        "alias rm='busybox rm' mkdir='busybox mkdir' mv='busybox mv' ln='busybox ln' chmod='busybox chmod' chown='busybox chown' mkfifo='busybox mkfifo' cp='busybox cp'\n{script}"
    );
    machine.good(&["exec", name, "--", "/bin/sh", "-c", &script])
}

const CHANGES: &str = "cd /srv; echo more >> changed; echo new > new; mkdir -p dir/sub; echo x > dir/sub/x
rm -r gone; rm -r opaque; mkdir opaque; echo again > opaque/both; echo z > merged/new
chmod 700 mode; touch touched; chown 5:6 owned; rm to-dir; mkdir to-dir; echo i > to-dir/i
rm -r to-file; echo f > to-file; rm link; ln -s new link; ln -s /etc/passwd evil; mkfifo fifo
busybox mv renamed moved || (cp -r renamed moved; rm -r renamed); cat same > /dev/null; chmod 4755 new";

const DIFF: &str = "\
M /srv/changed
A /srv/dir/
A /srv/dir/sub/
A /srv/dir/sub/x
A /srv/evil
A /srv/fifo
D /srv/gone/
M /srv/link
A /srv/merged/new
M /srv/mode/  (metadata)
A /srv/moved/
A /srv/moved/x
A /srv/new
M /srv/opaque/both
D /srv/opaque/old
M /srv/owned  (metadata)
D /srv/renamed/
M /srv/to-dir/
A /srv/to-dir/i
M /srv/to-file
M /srv/touched  (metadata)
";

fn below_srv(text: &str) -> String {
    text.split_inclusive('\n').filter(|line| line.contains("/srv")).collect()
}

#[test]
fn every_kind_of_change_is_told_running_stopped_and_after_snapshots() {
    let Some(machine) = Machine::new() else { return };
    jail(&machine, "");
    let fresh = machine.good(&["diff", "a"]);
    assert_eq!(below_srv(&fresh), "", "{fresh}");
    inside(&machine, "a", CHANGES);
    assert_eq!(below_srv(&machine.good(&["diff", "a"])), DIFF, "running");
    machine.good(&["snapshot", "a", "s"]);
    assert_eq!(below_srv(&machine.good(&["diff", "a", "--from", "s"])), DIFF, "as it was");
    machine.good(&["stop", "a"]);
    assert_eq!(below_srv(&machine.good(&["diff", "a"])), DIFF, "stopped");
    machine.good(&["snapshot", "a", "t"]);
    assert_eq!(below_srv(&machine.good(&["diff", "a"])), DIFF, "set aside");
    let answer: Value = serde_json::from_str(&machine.good(&["diff", "a", "--json"])).unwrap();
    let owned = answer["items"].as_array().unwrap().iter().find(|item| item["path"] == "/srv/owned").unwrap();
    assert_eq!(
        (&owned["change"], &owned["metadata_only"], &owned["type"]),
        (&"M".into(), &true.into(), &"file".into())
    );
    machine.good(&["start", "a"]);
    inside(
        &machine,
        "a",
        "cd /srv; rm new; rm -r dir; echo 'gone/file of the template' > /dev/null; rm evil",
    );
    let now = below_srv(&machine.good(&["diff", "a"]));
    assert!(!now.contains("/srv/new") && !now.contains("/srv/dir") && now.contains("D /srv/gone/"), "{now}");
}

#[test]
fn recover_brings_files_out_and_never_reads_or_writes_the_host() {
    let Some(machine) = Machine::new() else { return };
    jail(&machine, "");
    inside(&machine, "a", CHANGES);
    let secret = machine.path().join("secret");
    std::fs::write(&secret, "of the host").unwrap();
    let host = secret.display();
    inside(
        &machine,
        "a",
        &format!(
            "cd /srv; ln -s {host} out; ln -s /.. up; ln -s {} dirs; ln -s / root",
            machine.path().display()
        ),
    );
    machine.good(&["snapshot", "a", "s"]);
    let to = machine.path().join("to");
    std::fs::create_dir(&to).unwrap();
    let place = to.display().to_string();
    let recover = |args: &[&str], status: i32| {
        let all: Vec<&str> =
            ["recover", "a", "--to", &place].into_iter().chain(args.iter().copied()).collect();
        machine.status(&all, status)
    };
    recover(&["/srv/new", "/srv/dir", "/srv/same", "srv/../srv/changed"], 0);
    let read = |name: &str| std::fs::read_to_string(to.join(name)).unwrap();
    assert_eq!((read("new"), read("dir/sub/x")), ("new\n".to_owned(), "x\n".to_owned()));
    assert_eq!(read("same"), "same of the template\n", "the layers are there too");
    let new = std::fs::metadata(to.join("new")).unwrap();
    assert_eq!((new.uid(), new.mode() & 0o7777), (0, 0o755), "of the host's root, without its set-id bit");
    // Links that lead out lead nowhere.
    for path in ["/srv/out", "/srv/fifo"] {
        recover(&[path], 0);
        assert!(!to.join(path.rsplit('/').next().unwrap()).exists(), "{path}");
    }
    for path in ["/srv/dirs/secret", "/srv/up/secret", "/..", "/srv/up/../..", "/proc/self/root/etc/passwd"] {
        recover(&[path], 1);
    }
    recover(&["/srv/root/srv/to-dir"], 0);
    assert_eq!(read("to-dir/i"), "i\n", "links inside are followed inside");
    assert!(recover(&["/srv/new"], 1).contains("already"), "nothing is overwritten");
    inside(&machine, "a", "rm /srv/new");
    std::fs::remove_file(to.join("new")).unwrap();
    recover(&["/srv/new"], 1);
    recover(&["/srv/new", "--from", "s"], 0);
    assert_eq!(read("new"), "new\n");
    recover(&["/srv", "--as-is"], 0);
    assert_eq!(std::fs::read_link(to.join("srv/out")).unwrap(), secret);
    assert_eq!(std::fs::metadata(to.join("srv/owned")).unwrap().uid(), 5);
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), "of the host");
}

#[test]
fn a_sandbox_forgets_what_was_written_at_its_stop_and_falls_back_to_its_base() {
    let Some(machine) = Machine::new() else { return };
    machine.jail("a", SLEEP);
    machine.good(&["apply"]);
    machine.inside("a", "echo base > /srv/base");
    machine.good(&["snapshot", "a", "clean"]);
    machine.good(&["rollback", "a", "clean", "--yes", "--discard"]);
    machine.jail("a", &SLEEP.replace("[exec]", "root.on_stop = 'discard'\n[exec]"));
    machine.good(&["apply"]);
    machine.inside("a", "echo dirt > /srv/dirt; rm /srv/base");
    assert!(machine.good(&["diff", "a"]).contains("A /srv/dirt"));
    machine.good(&["restart", "a"]);
    assert_eq!(machine.inside("a", "cat /srv/*"), "base\n");
}

/// Gives a jail's file attributes as the jail itself would; says how a layer has them.
fn with_attributes(file: &std::path::Path, first_id: u32) -> [(&'static str, Vec<u8>); 3] {
    let capability =
        |revision: u32| [revision.to_le_bytes(), 0x400_u32.to_le_bytes(), [0; 4], [0; 4], [0; 4]].concat();
    let list = |id: u32| {
        let entries =
            [(1_u16, 7_u16, u32::MAX), (2, 4, id), (4, 5, u32::MAX), (16, 5, u32::MAX), (32, 5, u32::MAX)];
        let entry = |(tag, mode, id): (u16, u16, u32)| {
            [&tag.to_le_bytes()[..], &mode.to_le_bytes(), &id.to_le_bytes()].concat()
        };
        [2_u32.to_le_bytes().to_vec(), entries.map(entry).concat()].concat()
    };
    let own = [&capability(0x0300_0000)[..], &first_id.to_le_bytes()].concat();
    let here = [
        ("system.posix_acl_access", list(first_id + 33)),
        ("security.capability", own),
        ("user.note", b"kept".to_vec()),
    ];
    for (name, value) in &here {
        rustix::fs::setxattr(file, *name, value, rustix::fs::XattrFlags::empty()).expect(name);
    }
    let there = [list(33), capability(0x0200_0000), b"kept".to_vec()];
    let mut there = there.into_iter();
    here.map(|(name, _)| (name, there.next().unwrap()))
}

#[test]
fn what_was_tried_out_becomes_a_template() {
    let Some(machine) = Machine::new() else { return };
    jail(&machine, "");
    inside(&machine, "a", CHANGES);
    let upper = machine.state().join("jails/a/upper");
    let first_id = std::fs::metadata(&upper).unwrap().uid();
    let attributes = with_attributes(&upper.join("srv/new"), first_id);
    assert!(machine.status(&["commit", "a", "u"], 1).contains("it runs"));
    machine.good(&["snapshot", "a", "s"]);
    machine.good(&["commit", "a", "u", "--from", "s"]);
    let look = "cd /srv; cat changed new dir/sub/x opaque/both merged/* to-dir/i to-file moved/x same; ls -a; ls -a opaque; stat -c '%n %u:%g %a %Y' *";
    let stat = |name: &str| inside(&machine, name, &look.replace("stat", "busybox stat"));
    machine.jail("b", "template = 'u'\n[exec]\ncommand = ['/bin/sleep', '1000']\n");
    machine.good(&["apply"]);
    assert_eq!(stat("b"), stat("a"));
    let layers = std::fs::read_dir(machine.state().join("layers")).unwrap();
    let new = layers.map(|layer| layer.unwrap().path().join("srv/new")).find(|new| new.exists()).unwrap();
    for (name, value) in attributes {
        let mut found = vec![0; 100];
        let length = rustix::fs::getxattr(&new, name, found.as_mut_slice()).expect(name);
        assert_eq!(found[..length], value, "{name}");
    }
    assert_eq!(below_srv(&machine.good(&["diff", "b"])), "", "it is all the template's");
    assert!(machine.status(&["commit", "a", "u", "--from", "s"], 1).contains("exists"));
    // One upon the other, of a jail that is stopped.
    inside(&machine, "b", "rm /srv/new; echo b > /srv/b");
    machine.good(&["stop", "b"]);
    machine.good(&["commit", "b", "v"]);
    assert_eq!(
        machine.good(&["run", "v", "--", "/bin/sh", "-c", "cat /srv/b; ls /srv/new 2>/dev/null || true"]),
        "b\n"
    );
}
