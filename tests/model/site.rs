//! The host that the steps are done to, and the comparison of what is on it with the model.

use std::collections::BTreeMap;
use std::fs::{DirEntry, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use proptest_state_machine::StateMachineTest;
use rustix::process::Signal;
use serde_json::Value;

use crate::editors::{self, Style};
use crate::machine::{Machine, kill, pid_of, said, wait_gone};
use crate::model::{Definition, Last, Model, NAMES, Running};
use crate::steps::{Rules, Step};

/// The longest that the machine may take to become what the model says.
const CONVERGE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(10);
/// The small disk with the state directory.
const DISK: &str = "size=24m,nr_inodes=4k,mode=700";
/// How many events the kernel keeps; each file of a flood is three and more.
const QUEUE: &str = "/proc/sys/fs/inotify/max_queued_events";
/// What a jail has when nobody says.
const PROCESSES: u32 = 2048;
/// How far the clock is set back.
const AN_HOUR_MS: i64 = 3_600_000;

pub struct Site {
    machine: Machine,
    /// The instance that the model named, and its process.
    known: BTreeMap<usize, (u32, i32)>,
    steps: Vec<Step>,
}

impl StateMachineTest for Site {
    type SystemUnderTest = Self;
    type Reference = Rules;

    fn init_test(_: &Model) -> Self {
        let machine = Machine::new().expect("this test needs root");
        machine.host("");
        std::fs::create_dir_all(machine.state()).unwrap();
        let state = machine.state().display().to_string();
        let mounted = machine.outside(&["mount", "-t", "tmpfs", "-o", DISK, "tmpfs", &state]);
        assert!(mounted.status.success(), "{}", said(&mounted));
        for directory in ["store", "etc/templates/page"] {
            std::fs::create_dir_all(machine.path().join(directory)).unwrap();
        }
        let mut site = Self { machine, known: BTreeMap::new(), steps: Vec::new() };
        site.template(Style::InPlace, TEMPLATE);
        site.page(Style::InPlace, 0);
        site.start_daemon();
        site
    }

    fn apply(mut site: Self, model: &Model, step: Step) -> Self {
        site.steps.push(step.clone());
        site.act(model, step);
        site.converge(model);
        site
    }

    /// Everything goes as a user would have it go; then the machine's own leak check.
    fn teardown(mut site: Self, model: Model) {
        if model.full {
            site.free_disk();
        }
        site.machine.end_daemon();
        site.host(Style::InPlace, "");
        site.template(Style::InPlace, TEMPLATE);
        for name in NAMES {
            editors::remove(&site.file(name));
        }
        let gone = site.machine.stockade(&["apply"]);
        assert!(gone.status.success(), "the last apply: {}", said(&gone));
        let left: Vec<_> = std::fs::read_dir(site.machine.run_dir().join("jails"))
            .unwrap()
            .flatten()
            .filter(|entry| entry.path().is_dir())
            .collect();
        if !left.is_empty() {
            let files =
                |entry: &DirEntry| format!("{}: {:?}", entry.path().display(), editors::names(&entry.path()));
            let left: Vec<String> = left.iter().map(files).collect();
            site.fail(&format!("the last apply leaves {left:?}"));
        }
        let kept: Vec<&str> =
            NAMES.into_iter().filter(|name| site.disk().join("jails").join(name).exists()).collect();
        if !kept.is_empty() {
            // Its locks go with a jail's files, which are out of sight below.
            site.machine.good(&[&["destroy", "--yes"], kept.as_slice()].concat());
        }
        let jails = site.machine.config().join("jails.d");
        if jails.is_symlink() {
            std::fs::remove_file(&jails).unwrap();
            std::fs::create_dir(&jails).unwrap();
        }
        let state = site.machine.state().display().to_string();
        let unmounted = site.machine.outside(&["umount", &state]);
        assert!(unmounted.status.success(), "{}", said(&unmounted));
    }
}

const TEMPLATE: &str =
    "[base]\nhost = true\n[[file]]\nsource = \"page.tera\"\ntarget = \"/srv/page\"\non_change = \"none\"\n";

impl Site {
    fn file(&self, name: &str) -> PathBuf {
        self.machine.config().join("jails.d").join(format!("{name}.toml"))
    }

    fn write(&self, at: usize, text: &str, style: Style) {
        editors::edit(&self.file(NAMES[at]), text, style);
    }

    fn host(&self, style: Style, more: &str) {
        // The machine's own text, for its ids and cgroup.
        let path = self.machine.config().join("stockade.toml");
        let whole = std::fs::read_to_string(&path).unwrap();
        let own = whole.split("[defaults]").next().unwrap().trim_end_matches("nonsense = [\n");
        editors::edit(&path, &format!("{own}{more}"), style);
    }

    fn template(&self, style: Style, text: &str) {
        editors::edit(&self.machine.config().join("templates/page/template.toml"), text, style);
    }

    fn page(&self, style: Style, page: u8) {
        let text = format!("page {page} of {{{{ vars.word }}}}\n");
        editors::edit(&self.machine.config().join("templates/page/page.tera"), &text, style);
    }

    fn act(&mut self, model: &Model, step: Step) {
        match step {
            Step::Write(at, new, style) => self.write(at, &new.text(), style),
            Step::Break(at, text, style) => self.write(at, text, style),
            Step::Remove(at) => editors::remove(&self.file(NAMES[at])),
            Step::SetAside(at) => {
                let file = self.file(NAMES[at]);
                std::fs::rename(&file, file.with_extension("toml.bak")).unwrap();
            }
            Step::Rename(from, to) => {
                std::fs::rename(self.file(NAMES[from]), self.file(NAMES[to])).unwrap();
            }
            Step::Swap(edits, how) => {
                let name = |at: usize| format!("{}.toml", NAMES[at]);
                let changes: Vec<_> =
                    edits.iter().map(|(at, new)| (name(*at), new.as_ref().map(Definition::text))).collect();
                let directory = self.machine.config().join("jails.d");
                editors::swap(
                    &directory,
                    &self.machine.path().join("store"),
                    &changes,
                    how,
                    self.steps.len(),
                );
            }
            Step::Batch(edits, style) => {
                for (at, new) in edits {
                    self.write(at, &new.text(), style);
                }
            }
            Step::Page(page, style) => {
                self.template(style, TEMPLATE);
                self.page(style, page);
            }
            Step::BreakTemplate(style) => self.template(style, "[base\n"),
            Step::Defaults(None, style) => self.host(style, ""),
            Step::Defaults(Some(most), style) => {
                self.host(style, &format!("[defaults]\nlimits.processes = {most}\n"));
            }
            Step::BreakHost(style) => self.host(style, "nonsense = [\n"),
            _ => self.act_on_jails(model, step),
        }
    }

    fn act_on_jails(&mut self, model: &Model, step: Step) {
        match step {
            Step::Stop(at) => self.by_hand(&["stop", NAMES[at]], !model.broken(at)),
            Step::Start(at) => self.by_hand(&["start", NAMES[at]], true),
            Step::Restart(at) => self.by_hand(&["restart", NAMES[at]], true),
            Step::Apply => self.by_hand(&["apply"], false),
            Step::Reload => self.reload(),
            Step::KillInit(at) => kill(self.process(at, "init"), Signal::KILL),
            Step::KillInitInTheFuture(at) => self.kill_init_in_the_future(model, at),
            Step::KillKeeper(at) => {
                let keeper = self.process(at, "keeper");
                kill(keeper, Signal::KILL);
                wait_gone(keeper);
                self.reload();
            }
            Step::KillDaemon => self.kill_daemon(),
            Step::KillAmid(at, new, ms) => {
                self.write(at, &new.text(), Style::Rename);
                std::thread::sleep(Duration::from_millis(ms));
                self.kill_daemon();
                self.start_daemon();
            }
            Step::EndDaemon => self.machine.end_daemon(),
            Step::StartDaemon => self.start_daemon(),
            Step::Flood(at, new) => self.flood(at, &new.text()),
            Step::DriftLimit(at) => self.drift_limit(at),
            Step::DriftFile(at) => {
                std::fs::write(page_of(self.process(at, "init")), "of somebody else\n").unwrap();
                self.reload();
            }
            Step::SetClock(hours) => self.set_clock(hours),
            Step::FillDisk => self.fill_disk(),
            Step::FreeDisk => {
                self.free_disk();
                // What had to wait is done when this ends: not every restart shows from inside.
                self.by_hand(&["apply"], false);
            }
            other => unreachable!("{other:?} is an edit"),
        }
    }

    /// With the daemon, which is asked to look again: what a verb changes rings no bell.
    fn by_hand(&mut self, words: &[&str], sure: bool) {
        let output = self.machine.stockade(words);
        if sure && !output.status.success() {
            self.fail(&format!("{words:?}: {}", said(&output)));
        }
        self.reload();
    }

    fn start_daemon(&mut self) {
        let started = self.log().matches("daemon started").count();
        let path = self.machine.path().join("daemon.log");
        let log = File::options().create(true).append(true).open(path).unwrap();
        let daemon = self.machine.command(&["daemon"]).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.machine.daemon = Some(daemon);
        let is_up = || self.log().matches("daemon started").count() > started;
        self.machine.wait_until("the daemon starts", is_up);
    }

    fn kill_daemon(&mut self) {
        let mut daemon = self.machine.daemon.take().expect("a daemon runs");
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    fn signal_daemon(&self, signal: Signal) {
        if let Some(daemon) = &self.machine.daemon {
            rustix::process::kill_process(pid_of(daemon), signal).unwrap();
        }
    }

    fn reload(&self) {
        self.signal_daemon(Signal::HUP);
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.machine.path().join("daemon.log")).unwrap_or_default()
    }

    /// While it cannot read them, more happens than the kernel keeps for it.
    fn flood(&self, at: usize, text: &str) {
        self.signal_daemon(Signal::STOP);
        let jails = self.machine.config().join("jails.d");
        let queue: u32 = std::fs::read_to_string(QUEUE).unwrap().trim().parse().unwrap();
        for number in 0..queue / 2 {
            let path = jails.join(format!(".flood-{number}"));
            std::fs::write(&path, "").unwrap();
            std::fs::remove_file(&path).unwrap();
        }
        self.write(at, text, Style::Rename);
        self.signal_daemon(Signal::CONT);
    }

    fn kill_init_in_the_future(&self, model: &Model, at: usize) {
        kill(self.process(at, "init"), Signal::KILL);
        let path = self.machine.run_dir().join("jails").join(format!("{}.restarts", NAMES[at]));
        let again = model.jails[at].running.is_some() && model.daemon;
        let end = Instant::now() + Duration::from_secs(2);
        while again && Instant::now() < end {
            let text = std::fs::read(&path).unwrap_or_default();
            let mut counted: Value = serde_json::from_slice(&text).unwrap_or_default();
            let waits = counted["restarts"]["not_before_ms"].as_u64().filter(|at| *at > now_ms());
            if let Some(not_before) = waits {
                counted["restarts"]["not_before_ms"] = not_before.saturating_add_signed(AN_HOUR_MS).into();
                editors::edit(&path, &counted.to_string(), Style::Rename);
                return self.reload();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The clock itself is the whole machine's. What a jump changes is how far from now the times
    /// are that were written down.
    fn set_clock(&self, hours: i64) {
        for name in NAMES {
            let lock = self.machine.run_dir().join("locks").join(name);
            let Ok(lock) = File::open(lock) else { continue };
            // Nobody writes the record meanwhile.
            rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
            let path = self.machine.run_dir().join("jails").join(name).join("record.json");
            let Ok(text) = std::fs::read(&path) else { continue };
            let mut record: Value = serde_json::from_slice(&text).unwrap();
            let started = record["started_ms"].as_u64().expect("a record has the time of its start");
            record["started_ms"] = started.saturating_sub_signed(hours * AN_HOUR_MS).into();
            editors::edit(&path, &record.to_string(), Style::Rename);
        }
        self.reload();
    }

    fn drift_limit(&self, at: usize) {
        let files = ["memory.limit_in_bytes", "memory.max"];
        let below = |cgroup: PathBuf| files.map(|file| cgroup.join(NAMES[at]).join(file));
        let file = self.machine.cgroups().into_iter().flat_map(below).find(|file| file.exists()).unwrap();
        std::fs::write(file, (12 << 20).to_string()).unwrap();
        self.reload();
    }

    /// The machine's mounts, seen from here.
    fn disk(&self) -> PathBuf {
        let state = self.machine.state();
        Path::new("/proc")
            .join(self.machine.holder().to_string())
            .join("root")
            .join(state.strip_prefix("/").unwrap())
    }

    fn fill_disk(&self) {
        let fill = self.disk().join(".fill");
        std::fs::create_dir(&fill).unwrap();
        while std::fs::write(fill.join("bytes"), vec![1; 64 << 20]).is_ok() {}
        let mut number = 0;
        while std::fs::write(fill.join(number.to_string()), "").is_ok() {
            number += 1;
        }
    }

    fn free_disk(&self) {
        std::fs::remove_dir_all(self.disk().join(".fill")).unwrap();
    }

    fn record(&self, at: usize) -> Option<Value> {
        let path = self.machine.run_dir().join("jails").join(NAMES[at]).join("record.json");
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    fn process(&self, at: usize, role: &str) -> i32 {
        let record = self.record(at).expect("a jail that runs has a record");
        i32::try_from(record[role]["pid"].as_i64().unwrap()).unwrap()
    }

    /// The jail's first process, if it is alive.
    fn init(&self, at: usize) -> Option<i32> {
        let init = self.record(at)?["init"].clone();
        let pid = i32::try_from(init["pid"].as_i64()?).ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        let alive = fields[0] != "Z" && fields[19].parse().ok() == init["start_time"].as_u64();
        alive.then_some(pid)
    }

    fn converge(&mut self, model: &Model) {
        let end = Instant::now() + CONVERGE;
        let mut differences = self.differences(model);
        while !differences.is_empty() {
            if Instant::now() > end {
                let shown = self.machine.stockade(&["ls"]);
                let plan = self.machine.stockade(&["plan"]);
                let found = format!("{}\n{}{}", differences.join("\n"), said(&shown), said(&plan));
                self.fail(&format!("not so after {CONVERGE:?}: {found}"));
            }
            std::thread::sleep(LOOK);
            differences = self.differences(model);
        }
    }

    fn fail(&self, what: &str) -> ! {
        let steps: Vec<String> = self.steps.iter().map(|step| format!("{step:?}")).collect();
        panic!("{what}\nafter these steps:\n{}\nthe daemon's log:\n{}", steps.join("\n"), self.log());
    }

    fn differences(&mut self, model: &Model) -> Vec<String> {
        let mut differences = Vec::new();
        for (at, jail) in model.jails.iter().enumerate() {
            let is_unknown = jail.last == Last::Unknown && jail.running.is_none();
            if model.full && jail.doubtful || is_unknown && model.broken(at) {
                continue;
            }
            let found = match (&jail.running, self.init(at)) {
                (None, None) => Ok(()),
                (None, Some(pid)) => Err(format!("must be down, and runs as {pid}")),
                (Some(wanted), pid) => self.compare(at, wanted, pid, jail.doubtful),
            };
            differences.extend(found.err().map(|what| format!("{}: {what}", NAMES[at])));
        }
        differences
    }

    fn compare(
        &mut self,
        at: usize,
        wanted: &Running,
        pid: Option<i32>,
        doubtful: bool,
    ) -> Result<(), String> {
        let known = self.known.get(&at).copied();
        if let Some((instance, known)) = known
            && instance == wanted.instance
            && !doubtful
        {
            let same = pid == Some(known);
            if !same {
                self.fail(&format!("{}: was {known}, is {pid:?}, and nothing of it is a restart", NAMES[at]));
            }
        }
        let pid = pid.ok_or("must run, and does not")?;
        // A start that is cut before is taken back.
        if self.record(at).is_none_or(|record| record["phase"] != "up") {
            return Err("must have been started whole".to_owned());
        }
        if let Some((instance, known)) = known
            && (instance != wanted.instance && !doubtful && known == pid)
        {
            return Err(format!("must be another process than {known}"));
        }
        self.look_inside(at, wanted, pid)?;
        self.known.insert(at, (wanted.instance, pid));
        Ok(())
    }

    fn look_inside(&self, at: usize, wanted: &Running, pid: i32) -> Result<(), String> {
        let given = &wanted.given;
        let sleeps = given.definition.sleeps().to_string();
        expect("argument", main_argument(pid).as_deref(), Some(&sleeps))?;
        expect("hostname", hostname(pid).as_deref(), Some(&format!("h{}", given.definition.hostname)))?;
        // What a template of before has left in the jail's own files is nobody's business.
        let page = given.page.as_ref().and_then(|_| std::fs::read_to_string(page_of(pid)).ok());
        expect("page", page.as_deref(), given.page.as_deref())?;
        let memory = self.limit(at, "memory.limit_in_bytes").or(self.limit(at, "memory.max"));
        expect(
            "memory",
            memory.as_deref(),
            given.definition.memory.map(|m| (m << 20).to_string()).as_deref(),
        )?;
        let most = self.limit(at, "pids.max");
        expect("processes", most.as_deref(), Some(&given.processes.unwrap_or(PROCESSES).to_string()))
    }

    /// What a limit's file says, unless that is no limit.
    fn limit(&self, at: usize, file: &str) -> Option<String> {
        let text = self.machine.cgroup_file(NAMES[at], file)?;
        // v1 has no word for it: the largest number of pages there is.
        (text != "max" && text.len() < 19).then_some(text)
    }
}

fn expect(what: &str, found: Option<&str>, wanted: Option<&str>) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("{what} must be {wanted:?}, is {found:?}")) }
}

fn page_of(init: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{init}/root/srv/page"))
}

/// What the jail's main process, the child of its init, was told.
fn main_argument(init: i32) -> Option<String> {
    let children = std::fs::read_to_string(format!("/proc/{init}/task/{init}/children")).ok()?;
    let child = children.split_whitespace().next()?;
    let words = std::fs::read_to_string(format!("/proc/{child}/cmdline")).ok()?;
    words.split('\0').nth(1).map(str::to_owned)
}

/// As the jail sees it, from a thread that goes there.
fn hostname(pid: i32) -> Option<String> {
    let ask = move || {
        let namespace = File::open(format!("/proc/{pid}/ns/uts")).ok()?;
        let kind = Some(rustix::thread::LinkNameSpaceType::HostNameAndNISDomainName);
        rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).ok()?;
        Some(rustix::system::uname().nodename().to_string_lossy().into_owned())
    };
    std::thread::spawn(ask).join().unwrap()
}

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}
