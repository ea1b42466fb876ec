//! The leak check: what the host has before a test, it has after it, and nothing more.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::machine::Machine;

/// The kernel drops links, mounts and keys of dead namespaces a while later, from work queues.
const SETTLE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);

/// Each kind of thing there is, with the names of all that exist.
#[derive(Default)]
pub struct Snapshot(BTreeMap<&'static str, BTreeSet<String>>);

pub fn look(machine: &Machine) -> Snapshot {
    let holder = machine.holder().to_string();
    let mut all = BTreeMap::new();
    all.insert("mount of the machine", mounts(&holder));
    all.insert("mount of the real host", mounts_of(machine));
    all.insert("cgroup", machine.cgroups().iter().flat_map(|path| below(path)).collect());
    all.extend(network(machine));
    all.insert("loop device", loops(machine.path()));
    all.insert("key of a jail's user", keys(machine));
    all.insert("file of the run directory", run_files(machine));
    all.insert("temporary file", temporaries(machine));
    all.insert("lock without a jail", locks(machine));
    all.insert("id range without a jail", ids(machine));
    all.insert("half-made layer", layers(machine));
    all.insert("snapshot that is half made, or nobody's", changes(machine));
    let ours = processes(machine);
    all.insert("held namespace", ours.keys().flat_map(|pid| held(*pid, is_namespace)).collect());
    all.insert("held terminal", ours.keys().flat_map(|pid| held(*pid, is_terminal)).collect());
    all.insert("process", ours.into_values().collect());
    if let Some(daemon) = &machine.daemon {
        add_process(&mut all, daemon.id());
    }
    Snapshot(all)
}

/// What one process that goes on has open, and its threads.
pub fn add_process(all: &mut BTreeMap<&'static str, BTreeSet<String>>, pid: u32) {
    all.insert("descriptor of the daemon", counted(descriptors(pid.cast_signed())));
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let name = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("comm")).ok();
    all.insert("thread of the daemon", counted(threads.filter_map(name).collect()));
}

/// Equal ones told apart by number: how many there are is what counts.
fn counted(names: Vec<String>) -> BTreeSet<String> {
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    let mut next = |name: String| {
        let count = counts.entry(name.clone()).or_default();
        *count += 1;
        format!("{} {count}", name.trim())
    };
    names.into_iter().map(&mut next).collect()
}

/// Where each descriptor of a process leads to.
fn descriptors(pid: i32) -> Vec<String> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let link = |entry: std::fs::DirEntry| Some(std::fs::read_link(entry.path()).ok()?.display().to_string());
    // Inode numbers of pipes and sockets differ from look to look.
    let anonymous = |link: String| match link.split_once(":[") {
        Some((kind @ ("pipe" | "socket"), _)) => kind.to_owned(),
        _ => link,
    };
    entries.filter_map(link).map(anonymous).collect()
}

fn held(pid: i32, wanted: fn(&str) -> bool) -> Vec<String> {
    let links = descriptors(pid).into_iter().filter(|link| wanted(link));
    links.map(|link| format!("{link} by process {pid}")).collect()
}

fn is_namespace(link: &str) -> bool {
    let kinds = ["net", "mnt", "pid", "user", "ipc", "uts", "cgroup", "time"];
    link.split_once(":[").is_some_and(|(kind, _)| kinds.contains(&kind))
}

fn is_terminal(link: &str) -> bool {
    link.contains("/ptmx") || link.contains("/pts/")
}

/// What is there now and was not there before, each with its kind; waits for the kernel to settle.
pub fn compare(before: &Snapshot, machine: &Machine) -> Vec<String> {
    let end = Instant::now() + SETTLE;
    loop {
        let leaks = difference(before, &look(machine));
        if leaks.is_empty() || Instant::now() >= end {
            return leaks;
        }
        std::thread::sleep(LOOK);
    }
}

pub fn difference(before: &Snapshot, after: &Snapshot) -> Vec<String> {
    let new = after.0.iter().flat_map(|(kind, names)| {
        let known = before.0.get(kind);
        let unknown = move |name: &&String| known.is_none_or(|known| !known.contains(*name));
        names.iter().filter(unknown).map(move |name| format!("{kind}: {name}"))
    });
    new.collect()
}

/// Mount point, kind and source of every mount; numbers of mounts differ from look to look.
fn mounts(pid: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    let line = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let kind = words.iter().position(|word| *word == "-").map_or(0, |at| at + 1);
        Some(format!("{} on {} type {}", words.get(kind + 1)?, words.get(4)?, words.get(kind)?))
    };
    text.lines().filter_map(line).collect()
}

/// What of the machine is mounted outside it. The real host has others at work.
fn mounts_of(machine: &Machine) -> BTreeSet<String> {
    let own = machine.path().display().to_string();
    let is_ours = |mount: &String| mount.contains(&own) || mount.starts_with("stockade ");
    mounts("self").into_iter().filter(is_ours).collect()
}

/// The mount points of all cgroup hierarchies.
pub fn hierarchies() -> Vec<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let point = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        after.starts_with("cgroup").then(|| before.split(' ').nth(4).map(PathBuf::from))?
    };
    text.lines().filter_map(point).collect()
}

/// Directories below, not the top itself: that one is for all jails and stays.
fn below(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| entry.path().display().to_string()).collect()
}

/// Processes in the machine's namespaces or cgroups, or with ids of its pool; never the holder,
/// nor the test's own helpers.
pub fn processes(machine: &Machine) -> BTreeMap<i32, String> {
    let namespace = |pid: &str, kind: &str| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
    let holder = machine.holder().to_string();
    let (net, mount) = (namespace(&holder, "net"), namespace(&holder, "mnt"));
    let entries = std::fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let numbers = names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    let ours = |pid: &String| {
        let text = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let inside = |kind: &str, own: &Option<PathBuf>| own.is_some() && namespace(pid, kind) == *own;
        let cgroup = format!("/{}/", machine.cgroup);
        *pid != holder
            && (inside("net", &net)
                || inside("mnt", &mount)
                || text("cgroup").contains(&cgroup)
                || users(&text("status")).any(|user| machine.ids().contains(&user)))
    };
    let name = |pid: String| {
        let words = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let shown = if words.is_empty() { state } else { words.replace('\0', " ") };
        Some((pid.parse().ok()?, format!("{pid} {shown}")))
    };
    numbers.filter(ours).filter_map(name).collect()
}

/// Real, effective, saved and file system user. The owner of the directory in /proc is none of
/// them when a process may not be dumped.
fn users(status: &str) -> impl Iterator<Item = u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    line.split_whitespace().filter_map(|user| user.parse().ok())
}

/// The machine's links, addresses, routes and rules, all by one shell.
fn network(machine: &Machine) -> BTreeMap<&'static str, BTreeSet<String>> {
    let script = "for kind in link addr route; do ip -j $kind show; done; echo; nft list ruleset";
    let output = machine.outside(&["sh", "-c", script]);
    let mut objects = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Vec<Value>>();
    let mut of = |kind| ip(kind, &objects.next().expect("ip(8) answers").expect("ip(8) writes JSON"));
    let kinds = [("link", of("link")), ("address", of("addr")), ("route", of("route"))];
    let rules = String::from_utf8_lossy(&output.stdout[objects.byte_offset()..]);
    let rules = rules.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
    kinds.into_iter().chain([("nft rule", rules)]).collect()
}

/// One kind of ip(8)'s objects, each as its JSON without what changes by itself.
fn ip(kind: &str, all: &[Value]) -> BTreeSet<String> {
    // A bridge is the host's, not a jail's: it stays for the next one.
    let bridge = |item: &Value| ["ifname", "dev"].iter().any(|key| item[key] == "stockade0");
    all.iter().filter(|item| !bridge(item)).map(|item| object(kind, item)).collect()
}

fn object(kind: &str, item: &Value) -> String {
    let keys: &[&str] = match kind {
        "route" => &["dst", "gateway", "dev"],
        "addr" => &["ifname", "addr_info"],
        _ => &["ifname", "link_type", "address"],
    };
    keys.iter().map(|key| item[key].to_string()).collect::<Vec<_>>().join(" ")
}

/// Loop devices with a file below `directory`.
fn loops(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir("/sys/block").into_iter().flatten().filter_map(Result::ok);
    let file = |entry: std::fs::DirEntry| {
        std::fs::read_to_string(entry.path().join("loop/backing_file"))
            .ok()
            .filter(|file| file.starts_with(&*directory.to_string_lossy()))
    };
    entries.filter_map(file).collect()
}

/// Keys that users of the machine's id pool own: session keyrings of jails, say.
fn keys(machine: &Machine) -> BTreeSet<String> {
    let text = std::fs::read_to_string("/proc/key-users").unwrap_or_default();
    let ours = |line: &&str| {
        let user = line.split(':').next().and_then(|user| user.trim().parse().ok());
        user.is_some_and(|user| machine.ids().contains(&user))
    };
    text.lines().filter(ours).map(str::to_owned).collect()
}

fn run_files(machine: &Machine) -> BTreeSet<String> {
    ["jails", "exits"].iter().flat_map(|directory| entries(&machine.run_dir().join(directory))).collect()
}

/// What was to be renamed once it was whole.
fn temporaries(machine: &Machine) -> BTreeSet<String> {
    let (run, state) = (machine.run_dir(), machine.state());
    let mut directories = vec![run.clone(), state.clone(), run.join("locks")];
    directories.push(machine.config().join("templates"));
    directories.extend(entries(&run.join("jails")).into_iter().map(PathBuf::from));
    directories.extend(entries(&state.join("jails")).into_iter().map(PathBuf::from));
    let files = directories.iter().flat_map(|directory| entries(directory));
    files.filter(|path| path.contains("/.")).collect()
}

/// Of an instance whose jail has neither files nor a record.
fn locks(machine: &Machine) -> BTreeSet<String> {
    let is_there = |name: &str| {
        [machine.state(), machine.run_dir()].iter().any(|of| of.join("jails").join(name).exists())
    };
    let jail = |path: &String| path.rsplit('/').next()?.strip_suffix(".up").map(str::to_owned);
    let locks = entries(&machine.run_dir().join("locks")).into_iter();
    locks.filter(|path| jail(path).is_some_and(|name| !is_there(&name))).collect()
}

fn entries(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().display().to_string()).collect()
}

/// Id ranges whose jail keeps no files; a jail that does keeps its range, and the numbered ones
/// of `run` are used again.
fn ids(machine: &Machine) -> BTreeSet<String> {
    let entries = std::fs::read_dir(machine.state().join("ids")).into_iter().flatten();
    let free = |entry: std::io::Result<std::fs::DirEntry>| {
        let name = std::fs::read_link(entry.ok()?.path()).ok()?;
        let kept = machine.state().join("jails").join(&name).exists();
        (!kept && !name.to_string_lossy().starts_with(".run-")).then(|| name.display().to_string())
    };
    entries.filter_map(free).collect()
}

/// Anything among the layers that has not got its final name.
fn layers(machine: &Machine) -> BTreeSet<String> {
    let names = below(&machine.state().join("layers"));
    names.into_iter().filter(|path| !path.contains("/layers/sha256-")).collect()
}

/// Pending operations, and changes that are half made or that no jail and no snapshot names.
fn changes(machine: &Machine) -> BTreeSet<String> {
    let names = |path: PathBuf| {
        let entries = std::fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let mut books = String::new();
    for jail in names(machine.state().join("jails")) {
        for book in names(jail.join("snapshots")).into_iter().chain([jail.join("base.json")]) {
            books += &std::fs::read_to_string(book).unwrap_or_default();
        }
    }
    let lost = |path: &PathBuf| {
        let id = path.file_name().unwrap_or_default().to_string_lossy();
        let is_whole = ["upper", "volume", "root"].iter().any(|part| path.join(part).is_dir());
        id != ".lock" && !(is_whole && books.contains(&format!("\"{id}\"")))
    };
    let changes = names(machine.state().join("changes")).into_iter().filter(lost);
    changes.chain(names(machine.state().join("pending"))).map(|path| path.display().to_string()).collect()
}
