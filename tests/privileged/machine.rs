//! A host of its own for one test: network and mount namespace, directories, cgroup and id pool,
//! so that nothing a test does meets the machine it runs on. When it is dropped everything in it
//! is ended, and what stockade has left behind fails the test.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::leak::{self, Snapshot};

/// The longest that one call of stockade may take.
const CALL_LIMIT: Duration = Duration::from_secs(90);
/// How often [`Machine::wait_until`] looks, and for how long.
const LOOK: Duration = Duration::from_millis(20);
const WAIT_LIMIT: Duration = Duration::from_secs(30);
/// Each machine has its own ids, far from the default pool, and by a lock not those of another that
/// is there at the same time, in whatever process: who has them is ended in the end.
const FIRST_ID: u32 = 2_000_027_648;
const RANGES: u32 = 128;
const POOLS: u32 = 256;

/// One machine at a time: the leak check counts things that the whole kernel shares.
static ONE: Mutex<()> = Mutex::new(());
static COUNT: AtomicU32 = AtomicU32::new(0);

/// Makes the namespaces habitable, says so, and lives until its stdin is closed.
const HOLD: &str = r#"set -e
cg="$1/cgroups"
mkdir "$cg"
mount --rbind /sys/fs/cgroup "$cg"
umount -R -l /sys
mount -t sysfs sysfs /sys
mount --move "$cg" /sys/fs/cgroup
rmdir "$cg"
ip link set lo up
echo ready
exec cat"#;

pub struct Machine {
    directory: tempfile::TempDir,
    holder: Child,
    pub cgroup: String,
    pub first_id: u32,
    ranges: u32,
    _pool: File,
    before: Snapshot,
    pub daemon: Option<Child>,
    _one: Option<MutexGuard<'static, ()>>,
}

impl Machine {
    /// None, said aloud, where the test cannot run; with `STOCKADE_TEST_MUST_RUN=1` that fails.
    pub fn new() -> Option<Self> {
        Self::several(1).pop()
    }

    /// So many at once, at least one, for a test whose parts run side by side; none where it cannot run.
    pub fn several(count: usize) -> Vec<Self> {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("STOCKADE_TEST_MUST_RUN").is_none(), "this test needs root");
            eprintln!("SKIPPED: this test needs root");
            return Vec::new();
        }
        // A test that failed has cleaned up after itself; the next one may run.
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut machines: Vec<Self> = (1..count).map(|_| Self::make(None)).collect();
        // This one is dropped after the others.
        machines.push(Self::make(Some(one)));
        machines
    }

    fn make(one: Option<MutexGuard<'static, ()>>) -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = tempfile::Builder::new().prefix("stockade-test-").tempdir().unwrap();
        let holder = hold(directory.path());
        let (pool, lock) = pool(number);
        let mut machine = Self {
            cgroup: format!("stockade-test-{}-{number}", std::process::id()),
            first_id: FIRST_ID + pool * RANGES * 65_536,
            ranges: RANGES,
            _pool: lock,
            directory,
            holder,
            before: Snapshot::default(),
            daemon: None,
            _one: one,
        };
        machine.host("");
        machine.before = leak::look(&machine);
        machine
    }

    /// Writes stockade.toml with more lines of its own; tables only, for they come last.
    pub fn host(&self, more: &str) {
        let pool = format!("[ids]\nfirst = {}\nranges = {}\n", self.first_id, self.ranges);
        self.write("stockade.toml", &format!("cgroup = \"{}\"\n{pool}{more}\n", self.cgroup));
        std::fs::create_dir_all(self.config().join("jails.d")).unwrap();
    }

    /// For a thousand jails: ids above those of all other machines. There is one such pool.
    pub fn make_room(&mut self) {
        self.ranges = 1_024;
        self.first_id = FIRST_ID + POOLS * RANGES * 65_536;
        self.host("");
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn config(&self) -> PathBuf {
        self.path().join("etc")
    }

    pub fn state(&self) -> PathBuf {
        self.path().join("state")
    }

    pub fn run_dir(&self) -> PathBuf {
        self.path().join("run")
    }

    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.path().join("log").join(format!("{name}.log"))).unwrap_or_default()
    }

    pub fn holder(&self) -> u32 {
        self.holder.id()
    }

    /// The namespaces' first ids that a jail can have here, and one past the last.
    pub fn ids(&self) -> std::ops::Range<u32> {
        self.first_id..self.first_id + self.ranges * 65_536
    }

    /// A file below the configuration directory.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.config().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub fn jail(&self, name: &str, text: &str) {
        self.write(&format!("jails.d/{name}.toml"), text);
    }

    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.config().join(format!("jails.d/{name}.toml"))).unwrap();
    }

    /// nsenter(1) and the words that make a command run on this machine.
    pub fn enter(&self) -> Vec<String> {
        let pid = self.holder.id();
        let to = |kind: &str, ns: &str| format!("--{kind}=/proc/{pid}/ns/{ns}");
        vec!["nsenter".into(), to("net", "net"), to("mount", "mnt"), "--".into()]
    }

    /// stockade with these arguments on this machine, as words for whoever starts it.
    pub fn words(&self, args: &[&str]) -> Vec<String> {
        let mut words = self.enter();
        words.push(env!("CARGO_BIN_EXE_stockade").into());
        for (flag, directory) in [("config", "etc"), ("state", "state"), ("run", "run"), ("log", "log")] {
            words.push(format!("--{flag}-dir={}", self.path().join(directory).display()));
        }
        words.extend(args.iter().map(ToString::to_string));
        words
    }

    /// stockade with these arguments, not started yet; its pid will be the child's.
    pub fn command(&self, args: &[&str]) -> Command {
        let words = self.words(args);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stdin(Stdio::null()).env("NO_COLOR", "1");
        command
    }

    /// The words of a shell that call stockade on this machine.
    pub fn shell_words(&self, args: &[&str]) -> String {
        let quoted = |word: &String| format!("'{}'", word.replace('\'', r"'\''"));
        self.words(args).iter().map(quoted).collect::<Vec<_>>().join(" ")
    }

    /// Runs stockade to its end; one that hangs is killed and fails the test.
    pub fn stockade(&self, args: &[&str]) -> Output {
        self.stockade_with(args, b"")
    }

    pub fn stockade_with(&self, args: &[&str], input: &[u8]) -> Output {
        run(&self.words(args), input)
    }

    /// A program of the machine itself, in its namespaces.
    pub fn outside(&self, argv: &[&str]) -> Output {
        let mut words = self.enter();
        words.extend(argv.iter().map(ToString::to_string));
        run(&words, b"")
    }

    /// stdout of a call that must exit with 0.
    pub fn good(&self, args: &[&str]) -> String {
        self.status(args, 0)
    }

    /// The same of one that may take longer.
    pub fn good_within(&self, args: &[&str], limit: Duration) {
        let output = run_within(&self.words(args), b"", limit);
        assert!(output.status.success(), "{}", said(&output));
    }

    /// stdout and stderr of a call that must exit with `status`.
    #[track_caller]
    pub fn status(&self, args: &[&str], status: i32) -> String {
        let output = self.stockade(args);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(status), "stockade {}:\n{said}", args.join(" "));
        if status == 0 { String::from_utf8_lossy(&output.stdout).into_owned() } else { said }
    }

    /// What a command inside `name` prints; it must exit with 0.
    #[track_caller]
    pub fn inside(&self, name: &str, script: &str) -> String {
        self.good(&["exec", name, "--", "sh", "-c", script])
    }

    /// The items of `ls --json`, by name.
    pub fn ls(&self) -> BTreeMap<String, Value> {
        let answer: Value = serde_json::from_str(&self.good(&["ls", "--json"])).unwrap();
        let items = answer["items"].as_array().expect("`ls --json` has items").clone();
        items.into_iter().map(|item| (item["name"].as_str().unwrap_or_default().to_owned(), item)).collect()
    }

    pub fn state_of(&self, name: &str) -> String {
        let state = self.ls().get(name).map(|item| item["state"].as_str().unwrap_or_default().to_owned());
        state.unwrap_or_else(|| "absent".to_owned())
    }

    #[track_caller]
    pub fn pid(&self, name: &str) -> i32 {
        let pid = self.ls()[name]["pid"].as_i64().expect("the jail runs");
        i32::try_from(pid).unwrap()
    }

    /// The record that the jail was started with.
    pub fn record(&self, name: &str) -> Value {
        let path = self.run_dir().join("jails").join(name).join("record.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    /// Waits for something that another process does.
    #[track_caller]
    #[allow(clippy::unused_self)] // It reads as what the machine is to become.
    pub fn wait_until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let end = Instant::now() + WAIT_LIMIT;
        while !done() {
            assert!(Instant::now() < end, "not so after {WAIT_LIMIT:?}: {what}");
            std::thread::sleep(LOOK);
        }
    }

    /// The machine's cgroup in every hierarchy.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        leak::hierarchies()
            .iter()
            .map(|mount| mount.join(&self.cgroup))
            .filter(|path| path.is_dir())
            .collect()
    }

    /// What a file of a jail's cgroup says, whichever hierarchy has it.
    pub fn cgroup_file(&self, name: &str, file: &str) -> Option<String> {
        let mut paths = self.cgroups().into_iter().map(|parent| parent.join(name).join(file));
        paths.find_map(|path| std::fs::read_to_string(path).ok()).map(|text| text.trim().to_owned())
    }

    /// Takes every jail down as a user would: without definitions nothing is to be up.
    fn wind_down(&mut self) -> Result<(), String> {
        self.end_daemon();
        self.host("");
        let jails = self.config().join("jails.d");
        std::fs::remove_dir_all(&jails).map_err(|error| error.to_string())?;
        std::fs::create_dir(&jails).map_err(|error| error.to_string())?;
        let output = self.stockade(&["apply"]);
        if output.status.success() { Ok(()) } else { Err(said(&output)) }
    }

    pub fn end_daemon(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // One that has died already is as good.
            let _ = rustix::process::kill_process(pid_of(&daemon), rustix::process::Signal::TERM);
            daemon.wait().unwrap();
        }
    }

    /// Ends every process of the machine and removes its cgroups, by force.
    pub fn end_all(&self) {
        for pid in leak::processes(self).into_keys() {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                // Gone in the meantime is as good.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let end = Instant::now() + Duration::from_secs(5);
        while !leak::processes(self).is_empty() && Instant::now() < end {
            std::thread::sleep(LOOK);
        }
        self.cgroups().iter().for_each(|path| remove_cgroup(path));
    }

    fn clear(&mut self) {
        self.end_all();
        drop(self.holder.stdin.take());
        self.holder.wait().unwrap();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let wound = self.wind_down();
        let leaks = leak::compare(&self.before, self);
        self.clear();
        if std::thread::panicking() {
            return;
        }
        assert_eq!(wound, Ok(()), "the last apply, without any definition");
        assert!(leaks.is_empty(), "left behind:\n  {}", leaks.join("\n  "));
    }
}

/// A pool that nobody else has, for as long as the file is open.
fn pool(number: u32) -> (u32, File) {
    let free = |step: u32| {
        let pool = std::process::id().wrapping_add(number + step) % POOLS;
        let path = std::env::temp_dir().join(format!("stockade-test-pool-{pool}"));
        let file = File::options().write(true).create(true).truncate(false).open(path).unwrap();
        file.try_lock().is_ok().then_some((pool, file))
    };
    (0..POOLS).find_map(free).expect("fewer tests run than there are pools")
}

fn hold(directory: &Path) -> Child {
    let mut holder = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private", "sh", "-c", HOLD, "hold"])
        .arg(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("unshare(1) is installed");
    let mut line = String::new();
    let stdout = holder.stdout.take().expect("stdout is piped");
    BufReader::new(stdout).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n", "the namespaces could not be made");
    holder
}

fn remove_cgroup(path: &Path) {
    let below = std::fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
    for entry in below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_cgroup(&entry.path());
    }
    // What cannot be removed has been reported as left behind already.
    let _ = std::fs::remove_dir(path);
}

fn run(words: &[String], input: &[u8]) -> Output {
    run_within(words, input, CALL_LIMIT)
}

fn run_within(words: &[String], input: &[u8], limit: Duration) -> Output {
    let mut command = assert_cmd::Command::new(&words[0]);
    command.args(&words[1..]).env("NO_COLOR", "1").timeout(limit);
    command.write_stdin(input).output().unwrap()
}

pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

pub fn pid_of(child: &Child) -> rustix::process::Pid {
    rustix::process::Pid::from_child(child)
}

/// Sends a signal to a process of the machine.
pub fn kill(pid: i32, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Waits for the end of a process, by pidfd: it need not be a child.
pub fn wait_gone(pid: i32) {
    let Some(pid) = rustix::process::Pid::from_raw(pid) else { return };
    let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else { return };
    let mut fds = [rustix::event::PollFd::from_borrowed_fd(pidfd.as_fd(), rustix::event::PollFlags::IN)];
    let limit = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
    assert_ne!(rustix::event::poll(&mut fds, Some(&limit)).unwrap(), 0, "process {pid:?} does not end");
}
