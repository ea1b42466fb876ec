//! Jails that move in one archive: all that is theirs comes over, and nothing of a damaged,
//! hostile or interrupted one is left.

use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::apply::SLEEP;
use crate::machine::{Machine, said};

/// What a jail writes to be recognised by: owners, a second name, a hole, a deleted and an emptied
/// directory of the layers, a FIFO, a link.
const WRITES: &str = "mkdir -p /srv/d; echo own > /srv/d/f; chown 33:34 /srv/d/f; chmod 4750 /srv/d/f; \
    ln /srv/d/f /srv/d/hard; ln -s ../f /srv/d//link; truncate -s 100M /srv/d/hole; echo end >> /srv/d/hole; \
    mkfifo /srv/d/fifo; rm -rf /etc/motd /opt; mkdir /opt; touch -d @1000000000.25 /srv/d";
/// What is seen of that.
const LOOK: &str = "cd /srv/d; stat -c '%n %F %u:%g %a %h' f hard link fifo .; stat -c %Y.%y . | cut -c1-13; \
    readlink link; du -k hole | cut -f1; tail -n1 hole; ls -d /etc/motd 2>&1; ls -A /opt";

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// stockade on the same machine, as if on another host: with directories of its own.
fn elsewhere(machine: &Machine, other: &Path, args: &[&str]) -> Vec<String> {
    std::fs::create_dir_all(other.join("etc/jails.d")).unwrap();
    // Other ids than those of the machine itself, in its pool.
    let ids = format!("[ids]\nfirst = {}\nranges = 8\n", machine.first_id + 100 * 65_536);
    let host = format!("cgroup = \"{}\"\n{ids}", machine.cgroup);
    std::fs::write(other.join("etc/stockade.toml"), host).unwrap();
    let mut words = vec![env!("CARGO_BIN_EXE_stockade").to_owned()];
    for (flag, directory) in [("config", "etc"), ("state", "state"), ("run", "run"), ("log", "log")] {
        words.push(format!("--{flag}-dir={}", other.join(directory).display()));
    }
    words.extend(args.iter().map(ToString::to_string));
    words
}

fn run(machine: &Machine, words: &[String]) -> Output {
    machine.outside(&words.iter().map(String::as_str).collect::<Vec<_>>())
}

#[track_caller]
fn good(output: &Output) -> String {
    assert!(output.status.success(), "{}", said(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Everything below the directories of state and definitions that an import could have left.
fn left(machine: &Machine) -> Vec<PathBuf> {
    let mut left = Vec::new();
    for below in ["state/jails", "state/ids", "etc/jails.d", "etc/templates", "run/locks"] {
        let entries = std::fs::read_dir(machine.path().join(below)).into_iter().flatten();
        left.extend(entries.map(|entry| entry.unwrap().path()));
    }
    left.sort();
    left
}

fn exported(machine: &Machine) -> PathBuf {
    machine.write("templates/t/template.toml", "[base]\nhost = true\n");
    machine.write("templates/t/files/etc/own", "of the template\n");
    machine.jail("a", &SLEEP.replace("\"host\"", "\"t\""));
    machine.good(&["apply"]);
    machine.inside("a", WRITES);
    let file = machine.path().join("a.tar.zst");
    machine.good(&["export", "a", &text(&file)]);
    file
}

#[test]
fn a_jail_moves_through_a_pipe_with_all_that_is_its_own() {
    let Some(machine) = Machine::new() else { return };
    exported(&machine);
    let here = machine.inside("a", LOOK);
    let other = machine.path().join("other");
    let import = elsewhere(&machine, &other, &["import", "-", "a2"]);
    let quoted: Vec<String> = import.iter().map(|word| format!("'{word}'")).collect();
    let line = format!("{} | {}", machine.shell_words(&["export", "a"]), quoted.join(" "));
    let piped = Command::new("sh").args(["-c", &line]).output().unwrap();
    assert!(piped.status.success() && said(&piped).contains("paused for 0."), "{}", said(&piped));
    assert_eq!(machine.state_of("a"), "running");
    good(&run(&machine, &elsewhere(&machine, &other, &["apply"])));
    let there = good(&run(&machine, &elsewhere(&machine, &other, &["exec", "a2", "--", "sh", "-c", LOOK])));
    assert_eq!(there, here);
    assert!(here.contains("33:34 4750 2") && here.contains("cannot access"), "{here}");
    let template = ["exec", "a2", "--", "cat", "/etc/own"];
    assert_eq!(good(&run(&machine, &elsewhere(&machine, &other, &template))), "of the template\n");
    good(&run(&machine, &elsewhere(&machine, &other, &["destroy", "--yes", "a2"])));
}

#[test]
fn a_thick_root_and_an_image_move_too() {
    let Some(machine) = Machine::new() else { return };
    for (name, storage) in [("a", "directory"), ("b", "image")] {
        machine.jail(name, &format!("{SLEEP}[root]\nstorage = '{storage}'\n"));
        machine.good(&["apply"]);
        machine.inside(name, "echo own > /srv/f; chown 5:6 /srv/f; rm -rf /opt");
        let (file, copy) = (machine.path().join(format!("{name}.tar.zst")), format!("{name}2"));
        machine.good(&["export", name, &text(&file)]);
        machine.good(&["import", &text(&file), &copy]);
        machine.good(&["apply"]);
        let seen = machine.inside(&copy, "cat /srv/f; stat -c %u:%g /srv/f; ls -d /opt 2>&1 || true");
        assert!(seen.starts_with("own\n5:6\n") && seen.contains("cannot access"), "{storage}: {seen}");
    }
}

/// Over what a snapshot has set aside: names taken away and taken again, as another kind too.
const OVER: &str = "cd /srv; rm d/f; rm -rf e; mkdir e; echo new > e/new; mkdir /etc/motd; echo x > /etc/motd/x; \
    echo n > /opt/n; rm -rf dir; echo file > dir; rm file; mkdir file; echo y > file/y; rm back; echo more >> d/hard";
const UNDER: &str =
    "cd /srv; mkdir e dir; echo old > e/old; echo d > dir/d; echo f > file; echo b > back; echo k > keep";
const ALL: &str =
    "cd /srv; find /srv /opt /etc/motd 2>&1 | sort; cat e/* dir* file* d/hard /opt/* keep 2>&1 || true";

#[test]
fn a_jail_on_snapshots_moves_whole_and_so_does_a_snapshot() {
    let Some(machine) = Machine::new() else { return };
    let file = exported(&machine);
    machine.inside("a", UNDER);
    let then = machine.inside("a", ALL) + &machine.inside("a", LOOK);
    // A snapshot of a jail that is down sets its files aside.
    machine.good(&["stop", "a"]);
    machine.good(&["snapshot", "a", "one"]);
    machine.good(&["start", "a"]);
    machine.inside("a", OVER);
    machine.good(&["stop", "a"]);
    machine.good(&["snapshot", "a", "two"]);
    machine.good(&["start", "a"]);
    machine.inside("a", "mkdir /srv/back; echo z > /srv/e/z");
    let now = machine.inside("a", ALL);
    machine.good(&["export", "a", &text(&file)]);
    machine.good(&["import", &text(&file), "b"]);
    let old = machine.path().join("old.tar.zst");
    machine.good(&["export", "--snapshot", "one", "a", &text(&old)]);
    let said = machine.good(&["import", "-n", &text(&old), "c"]);
    assert!(said.contains("snapshot one"), "{said}");
    machine.good(&["import", &text(&old), "c"]);
    machine.good(&["apply"]);
    assert_eq!(machine.inside("b", ALL), now);
    assert_eq!(machine.inside("c", ALL) + &machine.inside("c", LOOK), then);
    assert!(
        machine.status(&["export", "--snapshot", "on", "a", &text(&old)], 1).contains("did you mean `one`")
    );
}

#[test]
fn what_is_no_archive_is_called_that() {
    let Some(machine) = Machine::new() else { return };
    let file = exported(&machine);
    let place = text(&machine.path().join("etc"));
    let definition = text(&machine.path().join("etc/jails.d/a.toml"));
    for (args, why) in [
        (["import", &definition, "b"], "it is not an archive of a jail"),
        (["import", &place, "b"], "etc is a directory"),
        (["export", "a", &place], "etc is a directory"),
        (["import", &text(&file), "a"], "stockade: import a: a jail named a is defined"),
    ] {
        let said = machine.status(&args, 1);
        assert!(said.contains(why), "{why}: {said}");
    }
}

#[test]
fn other_programs_read_an_archive() {
    let Some(machine) = Machine::new() else { return };
    let file = exported(&machine);
    let out = machine.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let tar = Command::new("tar").arg("-C").arg(&out).args(["--zstd", "-xf"]).arg(&file).status().unwrap();
    assert!(tar.success());
    assert_eq!(std::fs::read_to_string(out.join("writes/upper/srv/d/f")).unwrap(), "own\n");
    let hole = std::fs::read(out.join("writes/upper/srv/d/hole")).unwrap();
    assert_eq!((hole.len(), &hole[hole.len() - 4..]), ((100 << 20) + 4, &b"end\n"[..]));
}

#[test]
fn a_dry_run_says_what_would_be_and_writes_nothing() {
    let Some(machine) = Machine::new() else { return };
    let file = exported(&machine);
    let before = left(&machine);
    let said = machine.status(&["import", "--dry-run", &text(&file)], 1);
    assert!(said.contains("a jail named a is defined") && said.contains("files of a jail named a"), "{said}");
    let said = machine.good(&["import", "-n", &text(&file), "b"]);
    assert!(said.contains("jails.d/b.toml") && !said.contains("conflict"), "{said}");
    let items: Value =
        serde_json::from_str(&machine.good(&["import", "-n", "--json", &text(&file), "b"])).unwrap();
    assert_eq!((&items["items"][0]["name"], &items["items"][0]["imported"]), (&"b".into(), &false.into()));
    machine.status(&["import", &text(&file)], 1);
    machine.write("templates/t/files/etc/own", "changed\n");
    let said = machine.status(&["import", &text(&file), "b"], 1);
    assert!(said.contains("template named t is there, and not the same"), "{said}");
    let other = machine.path().join("other");
    let there = good(&run(&machine, &elsewhere(&machine, &other, &["import", "-n", &text(&file)])));
    assert!(
        there.contains("needs") && there.contains("template build t") && there.contains("templates/t"),
        "{there}"
    );
    assert_eq!(left(&machine), before);
}

#[test]
fn what_is_damaged_or_cut_off_leaves_nothing() {
    let Some(machine) = Machine::new() else { return };
    let file = exported(&machine);
    let whole = std::fs::read(&file).unwrap();
    let before = left(&machine);
    let plain = zstd::decode_all(whole.as_slice()).unwrap();
    let check = |bytes: &[u8], what: &str| {
        let output = machine.stockade_with(&["import", "-", "b"], bytes);
        assert_eq!(output.status.code(), Some(1), "{what}: {}", said(&output));
        assert_eq!(left(&machine), before, "{what}");
    };
    for part in [0, 1, whole.len() / 3, whole.len() / 2, whole.len() - 20, whole.len() - 1] {
        check(&whole[..part], &format!("cut off after {part} of {}", whole.len()));
        let mut changed = whole.clone();
        changed[part] ^= 0x10;
        check(&changed, &format!("changed at {part}"));
    }
    // What the frame's own checksum does not see: changed and cut off before it was compressed.
    let packed = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    let at = plain.windows(4).position(|four| four == b"own\n").unwrap();
    let mut changed = plain.clone();
    changed[at] = b'O';
    check(&packed(&changed), "a changed file");
    let checksum = plain.windows(9).rposition(|name| name == b"checksum\0").unwrap();
    check(&packed(&plain[..checksum]), "without its checksum");
    check(&packed(&plain[..at / 512 * 512]), "without its end");
    machine.good(&["import", &text(&file), "b"]);
}

#[test]
fn an_import_that_is_killed_is_swept() {
    let Some(machine) = Machine::new() else { return };
    let file = exported(&machine);
    // Enough of it that a part of it can be unpacked before the end has come.
    machine.inside("a", "head -c 4000000 /dev/urandom > /srv/random");
    machine.good(&["export", "a", &text(&file)]);
    let whole = std::fs::read(&file).unwrap();
    let before = left(&machine);
    for sweep in [&["gc"][..], &["import", "-n", &text(&file), "c"]] {
        let mut import = machine
            .command(&["import", "-", "b"])
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut input = import.stdin.take().unwrap();
        input.write_all(&whole[..whole.len() - 10]).unwrap();
        input.flush().unwrap();
        let half = machine.state().join("jails/.importing-b/upper/srv/d");
        machine.wait_until("the import has begun", || half.exists());
        let busy = machine.good(&["gc", "-n"]);
        assert!(!busy.contains("half import"), "one that goes on is no garbage: {busy}");
        import.kill().unwrap();
        import.wait().unwrap();
        assert!(half.exists());
        machine.good(sweep);
        machine.good(&["gc"]);
        assert_eq!(left(&machine), before);
    }
    // Killed when all was there but the definition.
    machine.good(&["import", &text(&file), "b"]);
    std::fs::write(machine.state().join("jails/b/importing"), "").unwrap();
    machine.remove("b");
    machine.good(&["gc"]);
    assert!(!machine.state().join("jails/b").exists());
    machine.good(&["gc"]);
    assert_eq!(left(&machine), before);
}

/// A jail on a chain of templates, whose base is a directory that other hosts do not have.
fn on_a_chain(machine: &Machine) -> PathBuf {
    let base = machine.path().join("base");
    crate::templates::busybox_root(&base);
    std::fs::create_dir(base.join("srv")).unwrap();
    std::fs::write(base.join("srv/su"), "x").unwrap();
    std::os::unix::fs::chown(base.join("srv/su"), Some(5), Some(6)).unwrap();
    std::fs::set_permissions(base.join("srv/su"), PermissionsExt::from_mode(0o4750)).unwrap();
    std::fs::hard_link(base.join("srv/su"), base.join("srv/hard")).unwrap();
    let old = std::fs::File::options().write(true).open(base.join("etc/motd")).unwrap();
    old.set_modified(std::time::UNIX_EPOCH - std::time::Duration::from_millis(1500)).unwrap();
    machine.write(
        "templates/bottom/template.toml",
        &format!(
            "[base]\ndirectory = '{}'\n[build]\nrun = [\"rm /etc/passwd\", \"echo built > /srv/built\"]\n",
            base.display()
        ),
    );
    machine.write("templates/bottom/hello.tera", "hello from {{ name }}\n");
    let file = "[[file]]\nsource = 'hello.tera'\ntarget = '/srv/hello'\nmode = '0640'\ngroup = 7\non_change = { reload = ['true'] }\n";
    let bottom = machine.path().join("etc/templates/bottom/template.toml");
    let whole = std::fs::read_to_string(&bottom).unwrap() + file;
    std::fs::write(&bottom, whole).unwrap();
    machine.write("templates/top/template.toml", "[base]\ntemplate = 'bottom'\n");
    machine.write("templates/top/files/srv/copied", "copied\n");
    machine.jail("a", "template = 'top'\n[exec]\ncommand = ['/bin/sleep', '1000']\n");
    machine.good(&["apply"]);
    machine.inside("a", "echo own > /srv/own; busybox rm /srv/built");
    let file = machine.path().join("full.tar.zst");
    machine.good(&["export", "--full", "a", &text(&file)]);
    file
}

const STANDS: &str = "cd /srv; busybox stat -c '%n %a %u:%g %h' *; busybox stat -c '%n %Y' copied hard own /etc/motd; cat own copied hello; ls /etc";

fn layers(state: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(state.join("layers")).unwrap().map(|entry| entry.unwrap().path());
    let mut layers: Vec<PathBuf> =
        entries.filter(|path| !path.file_name().unwrap().to_string_lossy().starts_with(".lock-")).collect();
    layers.sort();
    layers
}

#[test]
fn a_full_archive_needs_nothing_of_its_new_host() {
    let Some(machine) = Machine::new() else { return };
    let file = on_a_chain(&machine);
    let here = machine.inside("a", STANDS);
    assert!(here.contains("su 4750 5:6 2") && here.contains("/etc/motd -2"), "{here}");
    std::fs::rename(machine.path().join("base"), machine.path().join("gone")).unwrap();
    let other = machine.path().join("other");
    let there = |args: &[&str]| good(&run(&machine, &elsewhere(&machine, &other, args)));
    let said = there(&["import", "-n", &text(&file)]);
    assert!(said.contains("brings    layer sha256-") && !said.contains("needs"), "{said}");
    assert!(said.contains("templates/imported-a") && !said.contains("templates/top"), "{said}");
    there(&["import", &text(&file)]);
    there(&["apply"]);
    assert_eq!(there(&["exec", "a", "--", "sh", "-c", STANDS]), here);
    there(&["check"]);
    let verified = there(&["template", "verify"]);
    assert!(verified.lines().count() == 3 && verified.lines().all(|line| line.ends_with("as it was made")));
    // Nobody's layers but those that are named after what is in them, and they are found again.
    let before = layers(&other.join("state"));
    let own = layers(&machine.state());
    assert!(before.iter().all(|layer| own.iter().all(|other| other.file_name() != layer.file_name())));
    let items: Value = serde_json::from_str(&there(&["import", "--json", &text(&file), "b"])).unwrap();
    let brought = items["items"][0]["layers"].as_array().unwrap().clone();
    assert!(brought.len() == 3 && brought.iter().all(|layer| layer["here"] == true), "{brought:?}");
    there(&["apply"]);
    let b = there(&["exec", "b", "--", "sh", "-c", STANDS]);
    assert_eq!(b, here.replace("from a", "from b"));
    assert_eq!(layers(&other.join("state")), before);
    there(&["destroy", "--yes", "a"]);
    std::fs::remove_file(other.join("etc/jails.d/a.toml")).unwrap();
    assert!(!there(&["gc", "-n"]).contains("layer"), "a template that cannot build them keeps them");
    there(&["destroy", "--yes", "b"]);
    // Beside the jail it comes from it is only another one, also with the templates of this host.
    machine.good(&["import", &text(&file), "c"]);
    std::fs::rename(machine.path().join("gone"), machine.path().join("base")).unwrap();
    machine.good(&["import", "--without-layers", &text(&file), "d"]);
    machine.good(&["apply"]);
    assert_eq!(machine.inside("c", STANDS), here.replace("from a", "from c"));
    assert_eq!(machine.inside("d", STANDS), here.replace("from a", "from d"));
}

#[test]
fn devices_of_layers_go_along_where_their_template_asks_for_them() {
    let Some(machine) = Machine::new() else { return };
    let base = machine.path().join("base");
    crate::templates::busybox_root(&base);
    let nodes = "cd \"$1\" && mkdir srv && mknod -m 600 srv/c c 5 1 && mknod srv/b b 8 0 && mkfifo srv/p && tar -cf \"$2\" .";
    let archive = machine.path().join("base.tar");
    let made = Command::new("sh").args(["-c", nodes, "sh"]).arg(&base).arg(&archive).status().unwrap();
    assert!(made.success());
    let text_of = |devices: bool| format!("[base]\ntar = '{}'\ndevices = {devices}\n", archive.display());
    machine.write("templates/t/template.toml", &text_of(true));
    machine.jail("a", "template = 't'\n[exec]\ncommand = ['/bin/sleep', '1000']\n");
    machine.good(&["apply"]);
    let stat = "busybox stat -c '%n %F %t:%T %a %h' /srv/*";
    let here = machine.inside("a", stat);
    assert!(
        here.contains("/srv/b block special file 8:0 ")
            && here.contains("/srv/c character special file 5:1 600 "),
        "{here}"
    );
    let file = machine.path().join("full.tar.zst");
    let whole = |output: &Output| output.status.success() && !said(output).contains("left out");
    assert!(whole(&machine.stockade(&["export", "--full", "a", &text(&file)])));
    let other = machine.path().join("other");
    let there = |args: &[&str]| run(&machine, &elsewhere(&machine, &other, args));
    let refused = said(&there(&["import", &text(&file), "e"]));
    assert!(refused.contains("device nodes in its layers") && refused.contains("--trust"), "{refused}");
    assert!(good(&there(&["import", "-n", &text(&file), "e"])).contains("device nodes in its layers"));
    assert!(whole(&there(&["import", "--trust", &text(&file), "e"])));
    good(&there(&["apply"]));
    assert_eq!(good(&there(&["exec", "e", "--", "sh", "-c", stat])), here);
    let opened = said(&there(&["exec", "e", "--", "sh", "-c", "cat /srv/c"]));
    assert!(opened.contains("Permission denied"), "{opened}");
    assert!(good(&there(&["template", "verify"])).contains("as it was made"));
    // It is found again by what is in it.
    assert!(good(&there(&["import", "--trust", "--json", &text(&file), "f"])).contains("\"here\": true"));
    good(&there(&["destroy", "--yes", "e", "f"]));
    // A socket is nothing without who listens.
    let upper = machine.state().join("jails/a/upper");
    let _listener = std::os::unix::net::UnixListener::bind(upper.join("run.sock")).unwrap();
    let named = said(&machine.stockade(&["export", "--full", "a", &text(&file)]));
    assert!(named.contains("left out: writes/upper/run.sock: "), "{named}");
    // A template that does not ask for them has none to give.
    machine.write("templates/t/template.toml", &text_of(false));
    machine.good(&["apply"]);
    machine.good(&["export", "--full", "a", &text(&file)]);
    good(&there(&["import", &text(&file), "g"]));
    good(&there(&["destroy", "--yes", "g"]));
}

#[test]
fn layers_of_a_snapshot_and_of_the_host_base_stand_alone_too() {
    let Some(machine) = Machine::new() else { return };
    let file = exported(&machine);
    machine.inside("a", "echo then > /srv/when");
    machine.good(&["snapshot", "a", "s"]);
    machine.inside("a", "echo now > /srv/when");
    machine.write("templates/t/files/etc/own", "changed since\n");
    machine.good(&["export", "--full", "--snapshot", "s", "a", &text(&file)]);
    let said = machine.good(&["import", &text(&file), "b"]);
    assert!(!said.contains("needs"), "{said}");
    machine.good(&["apply"]);
    assert_eq!(
        machine.inside("b", "cat /etc/own /srv/when; ls /usr/bin/env"),
        "of the template\nthen\n/usr/bin/env\n"
    );
    machine.jail("p", "path = '/srv'\n[exec]\ncommand = ['sleep', '1']\n");
    assert!(
        machine.status(&["export", "--full", "p", &text(&file)], 1).contains("is a directory of this host")
    );
}

/// The archive with the first of each of these texts, of the same length, changed, and all of its
/// sums right again.
fn forged(archive: &[u8], changes: &[(&str, &str)]) -> Vec<u8> {
    let mut plain = zstd::decode_all(archive).unwrap();
    for (from, to) in changes {
        assert_eq!(from.len(), to.len());
        let at = plain.windows(from.len()).position(|text| text == from.as_bytes()).expect(from);
        plain[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    let mut at = 0;
    while !plain[at..].starts_with(b"checksum\0") {
        let mut header = tar::Header::new_old();
        header.as_mut_bytes().copy_from_slice(&plain[at..at + 512]);
        header.set_cksum();
        plain[at..at + 512].copy_from_slice(header.as_bytes());
        at += 512 + usize::try_from(header.entry_size().unwrap()).unwrap().next_multiple_of(512);
    }
    let digest = stockade::template::hex(blake3::hash(&plain[..at]).as_bytes());
    plain[at + 512..at + 512 + 64].copy_from_slice(digest.as_bytes());
    zstd::encode_all(plain.as_slice(), 1).unwrap()
}

#[test]
fn a_layer_is_what_it_says_or_does_not_come() {
    let Some(machine) = Machine::new() else { return };
    let file = on_a_chain(&machine);
    let whole = std::fs::read(&file).unwrap();
    let everything = |machine: &Machine| (left(machine), layers(&machine.state()));
    let before = everything(&machine);
    let plain = String::from_utf8_lossy(&zstd::decode_all(whole.as_slice()).unwrap()).into_owned();
    let content = plain.split("\"content\": \"").nth(1).unwrap()[..71].to_owned();
    let of_a = layers(&machine.state()).pop().unwrap().file_name().unwrap().to_string_lossy().into_owned();
    let nonsense = format!("sha256-/..{}", "a".repeat(61));
    for (changes, why) in [
        (&[("from the base\n", "from the evil\n")][..], "and should have sha256-"),
        // A layer that a template of this host builds is nobody's to ask for, or to replace.
        (&[(content.as_str(), of_a.as_str())][..], "and should have sha256-"),
        (&[(content.as_str(), nonsense.as_str())][..], "names no layer"),
        (&[("layers/1\0", "layers/9\0")][..], "it is of no layer of the jail"),
        (&[("layers/1\0", "layers/x\0")][..], "not part of an archive"),
        (&[("files/0\0", "files/1\0")][..], "out of its order"),
        (&[("\"/srv/hello\"", "\"/srv/../et\"")][..], "must not go through"),
    ] {
        let output = machine.stockade_with(&["import", "-", "b"], &forged(&whole, changes));
        assert!(output.status.code() == Some(1) && said(&output).contains(why), "{why}: {}", said(&output));
        assert_eq!(everything(&machine), before, "{why}");
    }
    machine.good(&["import", &text(&file), "b"]);
}

#[test]
fn a_full_import_that_is_killed_leaves_half_layers_to_the_next() {
    let Some(machine) = Machine::new() else { return };
    let base = machine.path().join("base");
    std::fs::create_dir_all(&base).unwrap();
    let random = std::fs::File::create(base.join("random")).unwrap();
    std::io::copy(
        &mut std::io::Read::take(std::fs::File::open("/dev/urandom").unwrap(), 4 << 20),
        &mut &random,
    )
    .unwrap();
    let file = on_a_chain(&machine);
    let whole = std::fs::read(&file).unwrap();
    let everything = |machine: &Machine| (left(machine), layers(&machine.state()));
    let before = everything(&machine);
    for sweep in [&["gc"][..], &["import", "-n", &text(&file), "c"]] {
        let mut import = machine.command(&["import", "-", "b"]);
        let mut import = import.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut input = import.stdin.take().unwrap();
        input.write_all(&whole[..whole.len() - 10]).unwrap();
        input.flush().unwrap();
        let half =
            |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(".building-import-");
        machine.wait_until("layers have begun", || layers(&machine.state()).iter().any(half));
        assert!(!machine.good(&["gc", "-n"]).contains("half"), "one that goes on is no garbage");
        import.kill().unwrap();
        import.wait().unwrap();
        assert!(layers(&machine.state()).iter().any(half));
        assert_eq!(machine.good(&["apply"]), "No changes.\n");
        machine.good(sweep);
        machine.good(&["gc"]);
        assert_eq!(everything(&machine), before);
    }
    machine.good(&["import", &text(&file), "b"]);
    machine.good(&["apply"]);
    assert_eq!(machine.state_of("b"), "running");
}

/// One hostile archive: the manifest and definition of a good one, and then `parts`. The manifest
/// counts none of them: a jail may begin to write when it has been counted.
fn hostile(definition: &str, parts: &[(tar::Header, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let manifest = "{\"schema\":1,\"version\":\"0\\u001b[31m\",\"name\":\"b\",\"templates\":[\"t\"],\"layers\":[],\
        \"storage\":\"overlay\",\"first_id\":0,\"snapshot\":null,\"writes\":true,\"entries\":0,\"bytes\":0}";
    for (name, text) in [("manifest.json", manifest), ("definition.toml", definition)] {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, text.as_bytes()).unwrap();
    }
    for (header, contents) in parts {
        builder.append(header, *contents).unwrap();
    }
    let so_far = builder.get_ref().clone();
    let digest = stockade::template::hex(blake3::hash(&so_far).as_bytes());
    let mut header = tar::Header::new_gnu();
    header.set_size(65);
    builder.append_data(&mut header, "checksum", format!("{digest}\n").as_bytes()).unwrap();
    zstd::encode_all(builder.into_inner().unwrap().as_slice(), 1).unwrap()
}

fn part(path: &str, kind: tar::EntryType, link: &str, id: u64) -> (tar::Header, &'static [u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o6755);
    header.set_uid(id);
    header.set_gid(id);
    header.set_mtime(1);
    let contents: &[u8] = if kind == tar::EntryType::Regular { b"x" } else { b"" };
    header.set_size(contents.len() as u64);
    header.set_device_major(8).unwrap();
    header.set_device_minor(0).unwrap();
    let old = header.as_old_mut();
    old.name[..path.len()].copy_from_slice(path.as_bytes());
    old.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    (header, contents)
}

/// Entries, and why they are refused.
type Refused<'r> = (&'r [(tar::Header, &'r [u8])], &'r str);

#[test]
fn a_hostile_archive_does_not_leave_its_place() {
    use tar::EntryType::{Block, Directory, Link, Regular, Symlink};
    let Some(machine) = Machine::new() else { return };
    exported(&machine);
    let victim = machine.path().join("victim");
    std::fs::create_dir(&victim).unwrap();
    let before = left(&machine);
    let out = text(&victim);
    let definition = "template = 'host'\n[exec]\ncommand = ['sleep', '1']\n";
    let refused: &[Refused<'_>] = &[
        (&[part("writes/upper/../../../x", Regular, "", 0)], ".."),
        (&[part("/etc/x", Regular, "", 0)], "not part of an archive"),
        (&[part("writes/upper/x", Regular, "", 70_000)], "outside of a jail's ids"),
        (&[part("templates/other/x", Regular, "", 0)], "no template of the jail"),
        (&[part("writes/upper/x", Link, "/etc/passwd", 0)], "another part of the archive"),
        (&[part("writes/upper/x", Link, "writes/upper/../../y", 0)], ".."),
        (&[part("writes/root/x", Regular, "", 0)], "another storage"),
        (
            &[
                part("writes/upper/l", Symlink, "/", 0),
                part("writes/upper/l/x/y/", Directory, "", 0),
                part("templates/t/x", Regular, "", 0),
            ],
            "too late",
        ),
    ];
    let through = [part("writes/upper/l", Symlink, &out, 0), part("writes/upper/l/x", Regular, "", 5)];
    for (parts, why) in refused.iter().chain([&(&through[..], "l: File exists")]) {
        let output = machine.stockade_with(&["import", "-", "b"], &hostile(definition, parts));
        assert!(output.status.code() == Some(1) && said(&output).contains(why), "{why}: {}", said(&output));
        assert_eq!(left(&machine), before, "{why}");
    }
    let hook = format!("template = 'host'\n[exec]\ncommand = ['true']\nprestart = ['touch {out}/x']\n");
    let output = machine.stockade_with(&["import", "-", "b"], &hostile(&hook, &[]));
    assert!(
        said(&output).contains("exec.prestart") && said(&output).contains("--trust"),
        "{}",
        said(&output)
    );
    assert_eq!(left(&machine), before);
    // A device is left out, and the ids that run as their owner are the jail's.
    let parts = [part("writes/upper/f", Regular, "", 5), part("writes/upper/sda", Block, "", 0)];
    let output = machine.stockade_with(&["import", "-", "b"], &hostile(definition, &parts));
    assert!(output.status.success() && said(&output).contains("left out: sda"), "{}", said(&output));
    assert!(!said(&output).contains('\u{1b}'));
    assert_eq!(std::fs::read_dir(&victim).unwrap().count(), 0);
    let upper = machine.state().join("jails/b/upper");
    let file = std::fs::metadata(upper.join("f")).unwrap();
    assert!(machine.ids().contains(&file.uid()) && file.uid() % 65_536 == machine.first_id % 65_536 + 5);
    assert!(!upper.join("sda").exists());
}
