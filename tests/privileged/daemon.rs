//! `daemon`: follows the files, adopts what runs, repairs what others changed, restarts what died.

use std::fs::File;
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;

use rustix::process::Signal;

use crate::apply::{SLEEP, with_a_rendered_file};
use crate::machine::{Machine, kill, pid_of, wait_gone};

/// A page with a variable, rendered into a jail with an address and a limit.
const WEB: &str = r#"template = "page"
[exec]
command = ["sleep", "1000"]
[network]
mode = "vnet"
address = ["10.77.0.10/24"]
[limits]
memory = "64M"
[vars]
word = "one"
"#;

fn site(machine: &Machine) {
    machine.host("[bridge.stockade0]\naddress = [\"10.77.0.1/24\"]\n");
    machine.write("templates/page/page.tera", "the word is {{ vars.word }}\n");
    machine.write(
        "templates/page/template.toml",
        "[base]\nhost = true\n[[file]]\nsource = \"page.tera\"\ntarget = \"/srv/page\"\non_change = \"none\"\n",
    );
    machine.jail("web", WEB);
}

/// Starts a daemon that writes its log beside the configuration.
pub fn start(machine: &mut Machine, environment: &[(&str, &str)]) {
    let log = File::options().create(true).append(true).open(machine.path().join("daemon.log")).unwrap();
    let mut command = machine.command(&["daemon"]);
    command.envs(environment.iter().copied()).stdout(Stdio::null()).stderr(log);
    machine.daemon = Some(command.spawn().unwrap());
}

pub fn log(machine: &Machine) -> String {
    std::fs::read_to_string(machine.path().join("daemon.log")).unwrap_or_default()
}

pub fn signal(machine: &Machine, signal: Signal) {
    let daemon = machine.daemon.as_ref().expect("a daemon was started");
    rustix::process::kill_process(pid_of(daemon), signal).unwrap();
}

pub fn wait_running(machine: &Machine, name: &str) {
    machine.wait_until(&format!("{name} runs"), || machine.state_of(name) == "running");
}

/// The keeper's pid of the jail's record.
fn keeper(machine: &Machine, name: &str) -> i32 {
    i32::try_from(machine.record(name)["keeper"]["pid"].as_i64().unwrap()).unwrap()
}

#[test]
fn a_jail_that_dies_while_its_file_has_errors_runs_again_as_before() {
    let Some(mut machine) = Machine::new() else { return };
    let good = with_a_rendered_file(&machine);
    machine.jail("web", &good);
    start(&mut machine, &[]);
    wait_running(&machine, "web");
    machine.jail("web", &format!("{good}two\n"));
    machine.wait_until("it is told", || log(&machine).contains("web.toml:11:4: "));
    let (first, fail) = (machine.pid("web"), machine.path().join("fail"));
    // Its hook fails at first, which is not the end of it either.
    std::fs::write(&fail, "").unwrap();
    kill(first, Signal::KILL);
    machine.wait_until("it fails", || log(&machine).contains("error: web: "));
    std::fs::remove_file(&fail).unwrap();
    signal(&machine, Signal::HUP);
    wait_running(&machine, "web");
    assert_ne!(machine.pid("web"), first);
    assert_eq!(machine.good(&["exec", "web", "--", "cat", "/srv/word"]), "one\n");
    let said = log(&machine);
    assert!(said.contains("web: started: as it ran before: ") && said.contains("web.toml:11:4: "), "{said}");
    let second = machine.pid("web");
    machine.jail("web", &good);
    machine.wait_until("it is told", || log(&machine).contains("without errors again"));
    assert_eq!(machine.pid("web"), second, "mended, it is what runs");
}

#[test]
fn the_machine_follows_the_files() {
    let Some(mut machine) = Machine::new() else { return };
    site(&machine);
    machine.jail("db", SLEEP);
    start(&mut machine, &[]);
    wait_running(&machine, "web");
    wait_running(&machine, "db");
    let pid = machine.pid("web");
    machine.jail("web", &WEB.replace("one", "two"));
    machine.wait_until("the variable is followed", || machine.inside("web", "cat /srv/page").contains("two"));
    machine.write("templates/page/page.tera", "now {{ vars.word }}\n");
    machine.wait_until("the text is followed", || machine.inside("web", "cat /srv/page") == "now two\n");
    machine.jail("web", &WEB.replace("one", "two").replace("64M", "48M"));
    let limit =
        || machine.cgroup_file("web", "memory.limit_in_bytes").or(machine.cgroup_file("web", "memory.max"));
    machine.wait_until("the limit is followed", || limit() == Some((48 << 20).to_string()));
    machine.jail("web", &format!("{WEB}nonsense"));
    machine.wait_until("the fault is told", || log(&machine).contains("web.toml:"));
    machine.remove("db");
    machine.wait_until("a removed file is followed", || machine.state_of("db") == "stopped");
    signal(&machine, Signal::HUP);
    machine.wait_until("it has looked again", || log(&machine).contains("reload\n"));
    machine.jail("web", &WEB.replace("one", "three"));
    machine.wait_until("the mended file is followed", || {
        machine.inside("web", "cat /srv/page").contains("three")
    });
    assert_eq!(machine.pid("web"), pid, "nothing of this is a restart");
    assert_eq!(log(&machine).matches("web.toml:").count(), 1, "told once: {}", log(&machine));
}

#[test]
fn a_daemon_that_goes_stops_nothing_and_the_next_one_adopts() {
    let Some(mut machine) = Machine::new() else { return };
    machine.jail("a", SLEEP);
    start(&mut machine, &[]);
    wait_running(&machine, "a");
    let pid = machine.pid("a");
    for by in [Signal::KILL, Signal::TERM] {
        signal(&machine, by);
        machine.daemon.take().unwrap().wait().unwrap();
        assert_eq!(machine.state_of("a"), "running", "after {by:?}");
        start(&mut machine, &[]);
        machine.jail("b", SLEEP);
        wait_running(&machine, "b");
        machine.remove("b");
        machine.wait_until("b is gone", || machine.state_of("b") == "stopped");
    }
    assert_eq!(machine.pid("a"), pid);
}

#[test]
fn what_others_changed_is_put_back() {
    let Some(mut machine) = Machine::new() else { return };
    site(&machine);
    start(&mut machine, &[]);
    wait_running(&machine, "web");
    let pid = machine.pid("web").to_string();
    let links = String::from_utf8(machine.outside(&["ip", "-o", "link"]).stdout).unwrap();
    let link = links.split([' ', '@']).find(|word| word.starts_with("sj")).unwrap().to_owned();
    let shell = |script: &str| {
        let output = machine.outside(&["sh", "-ec", script]);
        assert!(output.status.success(), "{script}: {output:?}");
    };
    let limit = machine
        .cgroups()
        .into_iter()
        .flat_map(|cgroup| ["memory.limit_in_bytes", "memory.max"].map(|file| cgroup.join("web").join(file)))
        .find(|path| path.exists())
        .unwrap();
    for (what, by) in [
        ("network.bridge", format!("ip link set {link} nomaster")),
        ("network.bridge", "ip link delete stockade0".to_owned()),
        ("network.address", format!("nsenter -t {pid} -n ip address flush dev eth0")),
        ("limits.memory", format!("echo 32M > {}", limit.display())),
        ("/srv/page", format!("echo other > /proc/{pid}/root/srv/page")),
    ] {
        let before = log(&machine).matches(what).count();
        shell(&by);
        machine.status(&["plan"], 4);
        signal(&machine, Signal::HUP);
        machine.wait_until(&by, || log(&machine).matches(what).count() > before);
        machine.wait_until("nothing is left to repair", || machine.stockade(&["plan"]).status.success());
    }
    machine.good(&["freeze", "web"]);
    machine.status(&["plan"], 0);
    machine.good(&["thaw", "web"]);
    assert_eq!(machine.pid("web").to_string(), pid, "nothing of this is a restart: {}", log(&machine));
}

#[test]
fn a_jail_that_died_is_restarted_and_one_that_keeps_dying_is_left() {
    let Some(mut machine) = Machine::new() else { return };
    let restart = |policy: &str| format!("[restart]\npolicy = \"{policy}\"\ndelay = \"100ms\"\nmax = 2\n");
    let run = |command: &str, policy: &str| {
        format!("template = \"host\"\n[exec]\ncommand = [\"sh\", \"-c\", \"{command}\"]\n{}", restart(policy))
    };
    machine.jail("steady", &format!("{SLEEP}{}", restart("on-failure")));
    machine.jail("once", &run("exit 1", "no"));
    machine.jail("well", &run("exit 0", "on-failure"));
    machine.jail("badly", &run("exit 3", "on-failure"));
    start(&mut machine, &[]);
    wait_running(&machine, "steady");
    kill(machine.pid("steady"), Signal::KILL);
    machine.wait_until("the loop is noticed", || machine.state_of("badly") == "crash-loop");
    wait_running(&machine, "steady");
    let ls = machine.ls();
    assert_eq!((ls["badly"]["restarts"].as_u64(), ls["badly"]["exit"]["code"].as_i64()), (Some(3), Some(3)));
    assert_eq!(log(&machine).matches("badly: main process ended").count(), 3, "{}", log(&machine));
    for (name, state) in [("once", "failed"), ("well", "stopped")] {
        assert_eq!(ls[name]["state"], state, "{name}");
        assert_eq!(log(&machine).matches(&format!("{name}: main process ended")).count(), 1, "{name}");
    }
    // The keeper's end is the one that nobody tells of.
    let orphan = machine.pid("steady");
    kill(keeper(&machine, "steady"), Signal::KILL);
    machine.wait_until("it is seen", || machine.state_of("steady") == "orphaned");
    signal(&machine, Signal::HUP);
    wait_running(&machine, "steady");
    wait_gone(orphan);
    // A changed definition is tried anew.
    machine.jail("badly", &format!("{SLEEP}{}", restart("on-failure")));
    wait_running(&machine, "badly");
    assert_eq!(machine.ls()["badly"]["restarts"], 0);
}

#[test]
fn what_belongs_to_the_daemon_does_not_reach_jails_and_hooks() {
    let Some(mut machine) = Machine::new() else { return };
    let manager = UnixDatagram::bind(machine.path().join("notify")).unwrap();
    manager.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    let base = machine.path().display().to_string();
    machine.jail(
        "a",
        &format!(
            "template = \"host\"\n[exec]\nprestart = [\"env > {base}/hook; grep SigIgn /proc/self/status >> {base}/hook\"]\n\
             command = [\"sh\", \"-c\", \"env; grep SigIgn /proc/self/status; exec sleep 1000\"]\n"
        ),
    );
    let socket = format!("{base}/notify");
    start(
        &mut machine,
        &[
            ("NOTIFY_SOCKET", &socket),
            ("WATCHDOG_USEC", "30000000"),
            ("JOURNAL_STREAM", "1:2"),
            ("SECRET", "x"),
        ],
    );
    let mut buffer = [0; 4096];
    let length = manager.recv(&mut buffer).unwrap();
    let mut told = String::from_utf8_lossy(&buffer[..length]).into_owned();
    while !told.contains("READY=1") {
        let length = manager.recv(&mut buffer).unwrap();
        told = String::from_utf8_lossy(&buffer[..length]).into_owned();
    }
    assert_eq!(told, "READY=1\nSTATUS=1 jail up\n");
    machine.wait_until("the jail has spoken", || machine.log("a").contains("SigIgn"));
    let inside = machine.log("a");
    let hook = std::fs::read_to_string(machine.path().join("hook")).unwrap();
    for text in [&inside, &hook] {
        let ignored = text.lines().find_map(|line| line.split("SigIgn:\t").nth(1)).unwrap();
        let pipe = 1 << (Signal::PIPE.as_raw() - 1);
        assert_eq!(u64::from_str_radix(ignored, 16).unwrap() & pipe, 0, "{text}");
        for name in ["NOTIFY_SOCKET", "WATCHDOG", "JOURNAL_STREAM", "SECRET", "STOCKADE_CONFIG"] {
            assert!(!text.contains(name), "{name}: {text}");
        }
    }
}

/// Lines that have come in, until one holds `text`.
fn hear(server: &UnixDatagram, text: &str) -> String {
    let mut buffer = [0; 16 << 10];
    loop {
        let length =
            server.recv(&mut buffer).unwrap_or_else(|error| panic!("no line with {text:?}: {error}"));
        let line = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if line.contains(text) {
            return line;
        }
    }
}

#[test]
fn syslog_may_restart_and_what_rings_no_bell_is_found_within_a_minute() {
    let Some(mut machine) = Machine::new() else { return };
    // A /dev of the machine's own, for the host's is no place for a test's server.
    let dev = machine.path().join("dev");
    let nodes = "m=$0; mkdir $m; for n in null:3 zero:5 full:7 random:8 urandom:9; do \
        mknod -m 666 $m/${n%:*} c 1 ${n#*:}; done; mknod -m 666 $m/tty c 5 0; mount --bind $m /dev";
    let made = machine.outside(&["sh", "-ec", nodes, &dev.display().to_string()]);
    assert!(made.status.success(), "{made:?}");
    let serve = || {
        // Not there the first time.
        let _ = std::fs::remove_file(dev.join("log"));
        let server = UnixDatagram::bind(dev.join("log")).unwrap();
        server.set_read_timeout(Some(std::time::Duration::from_secs(90))).unwrap();
        server
    };
    let server = serve();
    machine.jail("a", &format!("{SLEEP}[limits]\nmemory = \"64M\"\n"));
    start(&mut machine, &[]);
    hear(&server, "a: started");
    drop(server);
    machine.jail("b", SLEEP);
    wait_running(&machine, "b");
    let server = serve();
    machine.jail("c", SLEEP);
    hear(&server, "c: started");
    let limit = machine
        .cgroups()
        .into_iter()
        .flat_map(|cgroup| ["memory.limit_in_bytes", "memory.max"].map(|file| cgroup.join("a").join(file)))
        .find(|path| path.exists())
        .unwrap();
    std::fs::write(limit, "32M").unwrap();
    let changed = std::time::Instant::now();
    let line = hear(&server, "a: repaired");
    assert!(line.contains("limits.memory"), "{line}");
    assert!(changed.elapsed() < std::time::Duration::from_secs(75), "{:?}", changed.elapsed());
    machine.end_daemon();
    // The keepers still have its null open.
    let freed = machine.outside(&["umount", "--lazy", "/dev"]);
    assert!(freed.status.success(), "{freed:?}");
}
