//! A daemon in a process of its own, with real signals and a service manager's socket.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::*;

/// Long enough for a loaded machine; only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long an idle daemon is looked at.
const IDLE: Duration = Duration::from_secs(3);

#[test]
fn the_status_is_one_line() {
    let failure = (JailName::new("web").unwrap(), "x".to_owned());
    for (up, failures, diagnostics, expect) in [
        (12, 1, 0, "12 jails up, 1 failed"),
        (1, 0, 0, "1 jail up"),
        (0, 0, 1, "0 jails up, 1 diagnostic"),
        (3, 2, 2, "3 jails up, 2 failed, 2 diagnostics"),
    ] {
        let (failures, diagnostics) = (vec![failure.clone(); failures], vec![String::new(); diagnostics]);
        let report = PassReport { diagnostics, failures, up, ..PassReport::default() };
        assert_eq!(status_line(&Ok(report)), expect);
    }
    let failed = anyhow::anyhow!("denied\n").context("read /etc");
    assert_eq!(status_line(&Err(failed)), "read /etc: denied");
}

const BASE: &str = "STOCKADE_TEST_BASE";

/// Not a test: the daemon that the tests below start. Its pass writes down that it ran, and fails
/// as long as there is a file `fail`.
#[test]
#[ignore = "started by the other tests"]
fn child() {
    let Some(base) = std::env::var_os(BASE).map(PathBuf::from) else { return };
    let path = |name: &str| base.join(name);
    let paths = Paths { config: path("etc"), state: path("state"), run: path("run"), log: path("log") };
    let mut count = 0;
    let mut pass = |_: Asked<'_>| {
        count += 1;
        fs::write(path("passes"), count.to_string())?;
        let mut report = PassReport { up: 2, ..PassReport::default() };
        if path("fail").exists() {
            report.failures.push((JailName::new("web").expect("a good name"), "no\nbridge".into()));
        }
        Ok(report)
    };
    let options = Options { log: Destination::Stderr, rescan: RESCAN };
    let outcome = run(&paths, options, &|_| Command::new("true"), &mut pass);
    if let Err(e) = outcome {
        eprintln!("{e:#}");
        std::process::exit(1);
    }
}

struct Rig {
    base: tempfile::TempDir,
    manager: UnixDatagram,
}

struct Daemon(Child);

impl Rig {
    fn new() -> Self {
        let base = tempfile::tempdir().unwrap();
        fs::create_dir_all(base.path().join("etc/jails.d")).unwrap();
        let manager = UnixDatagram::bind(base.path().join("notify")).unwrap();
        manager.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { base, manager }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.base.path().join(name)
    }

    fn start(&self, log: &str, environment: &[(&str, &str)]) -> Daemon {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "daemon::tests::child", "--ignored", "--nocapture"]);
        command.env(BASE, self.base.path()).env("NOTIFY_SOCKET", self.path("notify"));
        command.envs(environment.iter().copied()).stdout(Stdio::null());
        Daemon(command.stderr(fs::File::create(self.path(log)).unwrap()).spawn().unwrap())
    }

    /// The next message to the service manager that has `text`, whole.
    fn told(&self, text: &str) -> String {
        let mut buffer = [0; 4096];
        loop {
            let count = self.manager.recv(&mut buffer).unwrap_or_else(|e| panic!("no {text}: {e}"));
            let message = String::from_utf8_lossy(&buffer[..count]).into_owned();
            if message.contains(text) {
                return message;
            }
        }
    }

    fn passes(&self) -> u64 {
        fs::read_to_string(self.path("passes")).unwrap_or_default().parse().unwrap_or_default()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap()
    }
}

impl Daemon {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    /// How often its threads went to sleep of their own accord.
    fn sleeps(&self) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.0.id())).unwrap();
        tasks
            .map(|task| {
                let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
                let line = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
                line.unwrap().trim().parse::<u64>().unwrap()
            })
            .sum()
    }

    fn end(mut self) -> ExitStatus {
        self.0.wait().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Ended already, unless the test has failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_life_from_ready_to_stop() {
    let rig = Rig::new();
    let daemon = rig.start("log", &[]);
    assert_eq!(rig.told("READY=1"), "READY=1\nSTATUS=2 jails up\n");
    assert_eq!(rig.passes(), 1);

    fs::write(rig.path("etc/jails.d/web.toml"), "").unwrap();
    rig.told("STATUS=2 jails up");
    let after_edit = rig.passes();
    assert!(after_edit > 1);

    exits::leave(&rig.path("run"), &JailName::new("db").unwrap()).unwrap();
    rig.told("STATUS=2 jails up");
    let later = rig.passes();
    assert!(later > after_edit);
    assert_eq!(fs::read_dir(rig.path("run/exits")).unwrap().count(), 0);

    daemon.signal(Signal::HUP);
    assert!(rig.told("RELOADING=1").contains("\nMONOTONIC_USEC="));
    rig.told("READY=1");
    assert!(rig.passes() > later);

    daemon.signal(Signal::TERM);
    rig.told("STOPPING=1");
    assert!(daemon.end().success());
    let log = rig.log();
    for line in
        ["daemon started", "db: main process ended", "reload", "daemon stopped, jails stay as they are"]
    {
        assert_eq!(log.matches(line).count(), 1, "{line}: {log}");
    }
}

#[test]
fn an_idle_daemon_sleeps() {
    let rig = Rig::new();
    let daemon = rig.start("log", &[]);
    rig.told("READY=1");
    // The first look may still see it go to sleep after that message.
    let asleep = (0..3).any(|_| {
        let before = daemon.sleeps();
        std::thread::sleep(IDLE);
        daemon.sleeps() == before
    });
    assert!(asleep, "it woke up while nothing happened");
    assert_eq!(rig.passes(), 1);
    daemon.signal(Signal::INT);
    assert!(daemon.end().success());
}

#[test]
fn failures_are_tried_again_and_said_once() {
    let rig = Rig::new();
    fs::write(rig.path("fail"), "").unwrap();
    let daemon = rig.start("log", &[]);
    assert_eq!(rig.told("READY=1"), "READY=1\nSTATUS=2 jails up, 1 failed\n");
    wait_until("two more tries", || rig.passes() >= 3);
    fs::remove_file(rig.path("fail")).unwrap();
    assert_eq!(rig.told("jails up\n"), "STATUS=2 jails up\n");
    let log = rig.log();
    assert_eq!(log.matches("error: web: no\\nbridge").count(), 1, "{log}");
    wait_until("the good news", || rig.log().contains("web: no failure any more"));
    daemon.signal(Signal::TERM);
    assert!(daemon.end().success());
}

#[test]
fn there_is_one_daemon_until_it_is_killed() {
    let rig = Rig::new();
    let first = rig.start("log", &[]);
    rig.told("READY=1");
    let second = rig.start("second", &[]);
    assert_eq!(second.end().code(), Some(1));
    let message = fs::read_to_string(rig.path("second")).unwrap();
    assert!(message.contains(&format!("process {} holds", first.0.id())), "{message}");

    first.signal(Signal::KILL);
    assert!(!first.end().success());
    let third = rig.start("log", &[]);
    rig.told("READY=1");
    third.signal(Signal::TERM);
    assert!(third.end().success());
}

#[test]
fn the_watchdog_is_fed_while_idle() {
    let rig = Rig::new();
    let daemon = rig.start("log", &[("WATCHDOG_USEC", "400000")]);
    rig.told("READY=1");
    for _ in 0..4 {
        assert_eq!(rig.told("WATCHDOG=1"), "WATCHDOG=1\nEXTEND_TIMEOUT_USEC=400000\n");
    }
    assert_eq!(rig.passes(), 1);
    daemon.signal(Signal::TERM);
    assert!(daemon.end().success());
}
