//! What is done to a jail's own files and to templates while a fault is met; one line of [`ALL`]
//! each. Whatever fails, a jail has its files of before or those of after, and never half of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::operations::{Came, Operation, RESTART, jail, of, up, whole};
use crate::machine::{Machine, said};

pub const ALL: &[Operation] = &[
    Operation { before: down, words: snapshot, held: true, after: kept, ..of("snapshot") },
    Operation { before: first, words: snapshot, running: &["a"], after: kept, ..of("live snapshot") },
    Operation { before: earlier, words: snapshot, running: &["a"], after: kept_both, ..of("later snapshot") },
    Operation {
        before: second,
        words: |m| m.words(&["rollback", "a", "s", "--yes"]),
        running: &["a"],
        after: rolled_back,
        ..of("rollback")
    },
    Operation { before: first, words: clone, running: &["a"], after: cloned, ..of("clone") },
    Operation {
        before: first,
        words: |m| m.words(&["export", "a", &text(&out(m).join("a.tar.zst"))]),
        running: &["a"],
        after: exported,
        ..of("export")
    },
    Operation {
        before: archived,
        words: |m| m.words(&["import", &text(&archive(m)), "b", "--trust"]),
        jails: &[],
        after: imported,
        ..of("import")
    },
    Operation { before: tar, words: build, after: built, ..of("template of tar") },
    Operation { before: lines, words: build, after: built, ..of("template of lines") },
    Operation {
        before: down,
        words: |m| m.words(&["commit", "a", "u"]),
        held: true,
        after: committed,
        ..of("commit")
    },
    Operation {
        before: first,
        words: |m| m.words(&["recover", "a", "/srv/own", "--to", &text(&out(m))]),
        running: &["a"],
        after: recovered,
        ..of("recover")
    },
    Operation {
        before: first,
        words: |m| m.words(&["cp", "a:/srv/own", &text(&out(m))]),
        running: &["a"],
        after: taken_out,
        ..of("cp out")
    },
    Operation {
        before: first,
        words: |m| m.words(&["cp", &text(&brought(m)), "a:/srv"]),
        running: &["a"],
        after: taken_in,
        ..of("cp in")
    },
    Operation { before: littered, words: |m| m.words(&["gc"]), after: cleared, ..of("gc") },
    Operation {
        before: |m| moves(m, "directory"),
        words: |m| m.words(&["apply"]),
        running: &["a"],
        after: |m, _| moved(m, "directory"),
        ..of("move to a directory")
    },
    Operation {
        before: |m| moves(m, "image"),
        words: |m| m.words(&["apply"]),
        running: &["a"],
        after: |m, _| moved(m, "image"),
        ..of("move to an image")
    },
];

/// After so long a snapshot can tell whether a file has changed since.
const SETTLED: std::time::Duration = std::time::Duration::from_millis(80);

/// What the jail has written, by path.
type Tree = BTreeMap<String, String>;

fn tree(files: &[(&str, &str)]) -> Tree {
    files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
}

fn one() -> Tree {
    tree(&[("deep/file", "one"), ("first", "1"), ("last", "one")])
}

fn two() -> Tree {
    tree(&[("deep/file", "two"), ("last", "two"), ("second", "2")])
}

/// The files below a directory, each with its text.
fn read(top: &Path) -> Tree {
    let mut all = Tree::new();
    let mut directories = vec![top.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                directories.push(path);
            } else {
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                all.insert(path.strip_prefix(top).unwrap().display().to_string(), text);
            }
        }
    }
    all
}

fn is(what: &str, found: &Tree, wanted: &[Tree]) -> Result<(), String> {
    if wanted.contains(found) { Ok(()) } else { Err(format!("{what} has {found:?}")) }
}

/// What a running jail has below a path; nothing of one that has ended.
fn seen(machine: &Machine, name: &str, path: &str) -> Tree {
    let pid = machine.ls()[name]["pid"].as_i64();
    pid.map_or_else(Tree::new, |pid| read(&PathBuf::from(format!("/proc/{pid}/root{path}"))))
}

fn has(machine: &Machine, name: &str, wanted: &[Tree]) -> Result<(), String> {
    is(name, &seen(machine, name, "/srv/own"), wanted)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Where things are brought out of jails to.
fn out(machine: &Machine) -> PathBuf {
    machine.path().join("out")
}

fn empty(directory: &Path) {
    // Not there is as good.
    let _ = std::fs::remove_dir_all(directory);
    std::fs::create_dir_all(directory).unwrap();
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn write(machine: &Machine, tree: &Tree) {
    let lines = tree.iter().map(|(path, text)| format!("printf %s '{text}' > {path}; "));
    machine.inside(
        "a",
        &format!("rm -rf /srv/own; mkdir -p /srv/own/deep; cd /srv/own; {}", lines.collect::<String>()),
    );
}

fn first(machine: &Machine) {
    empty(&out(machine));
    up(machine);
    write(machine, &one());
}

fn down(machine: &Machine) {
    // Of the last case.
    let _ = std::fs::remove_dir_all(machine.config().join("templates/u"));
    first(machine);
    machine.good(&["stop", "a"]);
}

/// An error with what was said, unless it went well.
fn good(machine: &Machine, args: &[&str]) -> Result<String, String> {
    let output = machine.stockade(args);
    if output.status.success() { Ok(said(&output)) } else { Err(format!("{args:?}: {}", said(&output))) }
}

fn ensure(holds: bool, what: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what.to_owned()) }
}

fn snapshot(machine: &Machine) -> Vec<String> {
    machine.words(&["snapshot", "a", "s"])
}

fn labels(machine: &Machine) -> Vec<String> {
    let answer: Value = serde_json::from_str(&machine.good(&["snapshot", "--list", "a", "--json"])).unwrap();
    let label = |item: &Value| item["label"].as_str().unwrap().to_owned();
    answer["items"].as_array().unwrap().iter().map(label).collect()
}

/// The jail has its files, and so has a snapshot that is there.
fn kept(machine: &Machine, came: Came) -> Result<(), String> {
    has(machine, "a", &[one()])?;
    let is_listed = labels(machine).contains(&"s".to_owned());
    ensure(is_listed || came != Came::Done, "no snapshot after a success")?;
    if is_listed {
        write(machine, &two());
        good(machine, &["rollback", "a", "s", "--yes", "--discard"])?;
        has(machine, "a", &[one()]).map_err(|why| format!("of the snapshot: {why}"))?;
    }
    whole(machine, came)
}

/// The next snapshot is only of what has changed since one that was taken long enough after its files.
fn earlier(machine: &Machine) {
    first(machine);
    write(machine, &two());
    std::thread::sleep(SETTLED);
    machine.good(&["snapshot", "a", "earlier"]);
    machine
        .inside("a", "cd /srv/own; rm second; printf one > last; printf one > deep/file; printf 1 > first");
}

fn kept_both(machine: &Machine, came: Came) -> Result<(), String> {
    kept(machine, came)?;
    good(machine, &["rollback", "a", "earlier", "--yes", "--discard"])?;
    has(machine, "a", &[two()]).map_err(|why| format!("of the earlier snapshot: {why}"))
}

fn second(machine: &Machine) {
    first(machine);
    machine.good(&["snapshot", "a", "s"]);
    write(machine, &two());
}

fn rolled_back(machine: &Machine, came: Came) -> Result<(), String> {
    let found = seen(machine, "a", "/srv/own");
    is("a", &found, &[one(), if came == Came::Done { one() } else { two() }])?;
    if found == one() {
        // What it had is not lost, nor is what it was put back to.
        good(machine, &["rollback", "a", "before-rollback", "--yes", "--discard"])?;
        has(machine, "a", &[two()])?;
    }
    good(machine, &["rollback", "a", "s", "--yes"])?;
    has(machine, "a", &[one()])?;
    whole(machine, came)
}

fn clone(machine: &Machine) -> Vec<String> {
    machine.words(&["clone", "a", "b", "--address", "10.77.0.12/24"])
}

fn is_defined(machine: &Machine, name: &str) -> bool {
    machine.config().join(format!("jails.d/{name}.toml")).exists()
}

/// The new jail is there as a whole, or nothing of it.
fn is_whole_or_absent(machine: &Machine, came: Came, name: &str) -> Result<(), String> {
    if came != Came::Done {
        // What was cut off, or could not be removed, is cleared away by whoever looks next.
        good(machine, &["gc"])?;
    }
    if is_defined(machine, name) {
        ensure(machine.state_of(name) == "running", &format!("{name} is {}", machine.state_of(name)))?;
        return has(machine, name, &[one()]);
    }
    ensure(came != Came::Done, &format!("no {name} after a success"))?;
    let left = names(&machine.state().join("jails"));
    ensure(!left.iter().any(|left| left.contains(name)), &format!("of {name} there are {left:?}"))
}

fn cloned(machine: &Machine, came: Came) -> Result<(), String> {
    has(machine, "a", &[one()])?;
    is_whole_or_absent(machine, came, "b")?;
    whole(machine, came)
}

/// What is brought out of a jail is there as a whole or not at all.
fn leaves_no_part(machine: &Machine, came: Came, name: &str) -> Result<bool, String> {
    let names = names(&out(machine));
    let is_there = names.contains(&name.to_owned());
    ensure(is_there || came != Came::Done, "nothing there after a success")?;
    let parts = names.len() - usize::from(is_there);
    ensure(parts == 0 || came == Came::Killed, &format!("there are {names:?}"))?;
    Ok(is_there)
}

fn exported(machine: &Machine, came: Came) -> Result<(), String> {
    has(machine, "a", &[one()])?;
    whole(machine, came)?;
    if leaves_no_part(machine, came, "a.tar.zst")? {
        good(machine, &["destroy", "--yes", "a"])?;
        machine.remove("a");
        good(machine, &["import", &text(&out(machine).join("a.tar.zst")), "--trust"])?;
        good(machine, &["apply"])?;
        has(machine, "a", &[one()]).map_err(|why| format!("imported: {why}"))?;
        whole(machine, came)?;
    }
    Ok(())
}

fn archive(machine: &Machine) -> PathBuf {
    machine.path().join("archive.tar.zst")
}

/// A jail that was exported and destroyed; once for all cases.
fn archived(machine: &Machine) {
    if archive(machine).exists() {
        return;
    }
    first(machine);
    machine.good(&["export", "a", &text(&archive(machine))]);
    machine.good(&["destroy", "--yes", "a"]);
    machine.remove("a");
}

fn imported(machine: &Machine, came: Came) -> Result<(), String> {
    is_whole_or_absent(machine, came, "b")
}

const TEMPLATE: &str = "templates/t/template.toml";

/// A jail on a template that is not built yet; the layers of the last one go.
fn on_template(machine: &Machine, base: &str) {
    let layers = machine.state().join("layers");
    for name in names(&layers) {
        if layers.join(&name).join("etc/number").exists() {
            std::fs::remove_dir_all(layers.join(&name)).unwrap();
            let _ = std::fs::remove_file(layers.join(format!(".manifest-{name}")));
        }
    }
    machine.write(TEMPLATE, base);
    let command = "[exec]\ncommand = ['/bin/sleep', '1000']\n";
    machine.jail("a", &format!("template = 't'\n{command}{RESTART}"));
}

/// Each template is another one, or its layer would be there already.
fn next(machine: &Machine) -> String {
    let next = (number(machine).parse::<u32>().unwrap_or(0) + 1).to_string();
    std::fs::write(machine.path().join("number"), &next).unwrap();
    next
}

fn number(machine: &Machine) -> String {
    std::fs::read_to_string(machine.path().join("number")).unwrap_or_default()
}

fn tar(machine: &Machine) {
    let root = machine.path().join("root");
    if !root.exists() {
        crate::templates::busybox_root(&root);
        std::fs::create_dir(root.join("srv")).unwrap();
    }
    let number = next(machine);
    std::fs::write(root.join("etc/number"), &number).unwrap();
    std::fs::write(root.join("srv/last"), &number).unwrap();
    let archive = machine.path().join("base.tar");
    let (from, to) = (text(&root), text(&archive));
    // In this order: what is cut off ends before srv.
    let parts = ["bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "usr", "srv"];
    let words: Vec<&str> = ["tar", "-C", &from, "-cf", &to].into_iter().chain(parts).collect();
    let output = machine.outside(&words);
    assert!(output.status.success(), "{}", said(&output));
    on_template(machine, &format!("[base]\ntar = '{}'\n", archive.display()));
}

fn lines(machine: &Machine) {
    let number = next(machine);
    let lines = format!("['echo -n {number} > /etc/number', 'echo -n {number} > /srv/last']");
    on_template(machine, &format!("[base]\nhost = true\n[build]\nrun = {lines}\n"));
}

fn build(machine: &Machine) -> Vec<String> {
    machine.words(&["template", "build", "t"])
}

/// The jail stands on all of the layer.
fn built(machine: &Machine, _: Came) -> Result<(), String> {
    let number = number(machine);
    let root = PathBuf::from(format!("/proc/{}/root", machine.pid("a")));
    for file in ["etc/number", "srv/last"] {
        let found = std::fs::read_to_string(root.join(file)).unwrap_or_default();
        ensure(found == number, &format!("{file} of the layer is {found:?}, not {number}"))?;
    }
    good(machine, &["template", "verify", "t"]).map(drop)
}

fn committed(machine: &Machine, came: Came) -> Result<(), String> {
    has(machine, "a", &[one()])?;
    let templates = names(&machine.config().join("templates"));
    let is_there = templates.contains(&"u".to_owned());
    ensure(is_there || came != Came::Done, "no template after a success")?;
    if came != Came::Done {
        good(machine, &["gc"])?;
    }
    if is_there {
        let script = "cd /srv/own && cat deep/file first last";
        let set = "vars.word=one";
        let text = good(machine, &["run", "--set", set, "u", "--", "sh", "-c", script])?;
        ensure(text == "one1one", &format!("the template has {text:?}"))?;
    } else {
        // What a person does next.
        good(machine, &["commit", "a", "u", "--from", "s"]).or_else(|_| {
            good(machine, &["snapshot", "a", "s"])?;
            good(machine, &["commit", "a", "u", "--from", "s"])
        })?;
    }
    whole(machine, came)
}

/// What is recovered is there as a whole or not at all, and a person can try again.
fn recovered(machine: &Machine, came: Came) -> Result<(), String> {
    has(machine, "a", &[one()])?;
    if !leaves_no_part(machine, came, "own")? {
        good(machine, &["recover", "a", "/srv/own", "--to", &text(&out(machine))])?;
    }
    is("what came out", &read(&out(machine).join("own")), &[one()])?;
    whole(machine, came)
}

/// Each file is there as a whole or not at all, and a person can try again.
fn copied(
    machine: &Machine,
    came: Came,
    wanted: &Tree,
    again: &[&str],
    look: &dyn Fn() -> Tree,
) -> Result<(), String> {
    has(machine, "a", &[one()])?;
    let found = look();
    if came == Came::Done {
        is("the copy", &found, std::slice::from_ref(wanted))?;
    }
    let is_whole = |(path, text): (&String, &String)| {
        wanted.get(path) == Some(text) || came == Came::Killed && path.contains(".stockade-")
    };
    ensure(found.iter().all(is_whole), &format!("there is a part of a file: {found:?}"))?;
    good(machine, again)?;
    let again = look().into_iter().filter(|(path, _)| !path.contains(".stockade-")).collect();
    is("the second copy", &again, std::slice::from_ref(wanted))?;
    whole(machine, came)
}

fn taken_out(machine: &Machine, came: Came) -> Result<(), String> {
    let to = text(&out(machine));
    copied(machine, came, &one(), &["cp", "a:/srv/own", &to], &|| read(&out(machine).join("own")))
}

fn brought(machine: &Machine) -> PathBuf {
    let directory = machine.path().join("in");
    for (path, text) in two() {
        let path = directory.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    directory
}

fn taken_in(machine: &Machine, came: Came) -> Result<(), String> {
    let from = text(&brought(machine));
    copied(machine, came, &two(), &["cp", &from, "a:/srv"], &|| seen(machine, "a", "/srv/in"))
}

/// A layer that nothing uses, and the notes of a jail that is no more.
fn littered(machine: &Machine) {
    lines(machine);
    machine.good(&["template", "build", "t"]);
    first(machine);
    std::fs::remove_dir_all(machine.config().join("templates/t")).unwrap();
    for file in ["locks/gone", "locks/gone.up", "exits/gone"] {
        std::fs::write(machine.run_dir().join(file), "").unwrap();
    }
    for cgroup in machine.cgroups() {
        std::fs::create_dir_all(cgroup.join("gone")).unwrap();
    }
}

fn cleared(machine: &Machine, came: Came) -> Result<(), String> {
    has(machine, "a", &[one()])?;
    good(machine, &["gc"])?;
    let again = good(machine, &["gc"])?;
    ensure(again.contains("Nothing to remove"), &format!("a second gc: {again}"))?;
    whole(machine, came)
}

fn moves(machine: &Machine, to: &str) {
    let store = |kind: &str| {
        jail(machine, "64M", "10.77.0.9", "one");
        let file = machine.config().join("jails.d/a.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        machine.jail("a", &text.replace("[exec]", &format!("root.storage = '{kind}'\n[exec]")));
    };
    store("overlay");
    machine.good(&["apply"]);
    write(machine, &one());
    store(to);
}

fn moved(machine: &Machine, to: &str) -> Result<(), String> {
    has(machine, "a", &[one()])?;
    let answer: Value = serde_json::from_str(&machine.good(&["show", "--json", "a"])).unwrap();
    let kind = &answer["items"][0]["storage"]["kind"];
    ensure(kind == to, &format!("it is kept by {kind}"))?;
    whole(machine, Came::Done)
}
