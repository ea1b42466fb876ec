//! What is done to jails while a fault is met; one line of [`ALL`] each, and of
//! [`super::files::ALL`].

use crate::machine::Machine;

/// What came of an operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Came {
    Done,
    Failed,
    /// It, or a process of it, could not clear away what it had begun.
    Killed,
}

pub struct Operation {
    pub name: &'static str,
    /// Brings a machine without jails to where the operation begins.
    pub before: fn(&Machine),
    pub words: fn(&Machine) -> Vec<String>,
    /// The exit status of one that failed.
    pub failed: i32,
    /// Jails that run by then, whose processes are watched too.
    pub running: &'static [&'static str],
    /// Jails that run when `apply` has followed.
    pub jails: &'static [&'static str],
    /// The first of them may be held by then: a person starts it.
    pub held: bool,
    /// What else holds then.
    pub after: fn(&Machine, Came) -> Result<(), String>,
}

pub const ALL: &[Operation] = &[
    Operation { before: defined, words: |m| m.words(&["apply"]), after: whole, ..of("start") },
    Operation {
        before: stopped,
        words: |m| m.words(&["start", "a"]),
        held: true,
        after: whole,
        ..of("start again")
    },
    Operation {
        before: up,
        words: |m| m.words(&["stop", "a"]),
        running: &["a"],
        held: true,
        after: whole,
        ..of("stop")
    },
    Operation {
        before: up,
        words: |m| m.words(&["restart", "a"]),
        running: &["a"],
        after: whole,
        ..of("restart")
    },
    Operation {
        before: changed,
        words: |m| m.words(&["apply"]),
        running: &["a"],
        after: other,
        ..of("live change")
    },
    Operation {
        before: up,
        words: |m| m.words(&["destroy", "--yes", "a"]),
        running: &["a"],
        after: whole,
        ..of("destroy")
    },
    Operation { before: changed, words: daemon, running: &["a"], after: other, ..of("adopt") },
    Operation {
        before: two,
        words: |m| m.words(&["apply"]),
        jails: &["a", "b"],
        after: whole,
        ..of("apply of two")
    },
    Operation {
        before: changed_two,
        words: |m| m.words(&["apply"]),
        running: &["a", "b"],
        jails: &["a", "b"],
        after: whole,
        ..of("restart of two")
    },
    Operation {
        before: |_| (),
        words: |m| m.words(&["run", "host", "--", "true"]),
        failed: 125,
        jails: &[],
        after: cleared,
        ..of("run")
    },
];

pub const fn of(name: &'static str) -> Operation {
    Operation {
        name,
        before: |_| (),
        words: |_| Vec::new(),
        failed: 1,
        running: &[],
        jails: &["a"],
        held: false,
        after: |_, _| Ok(()),
    }
}

/// Of everything a bit: a bridge, an address, a limit, hooks, a mount, a rendered file.
pub fn jail(machine: &Machine, memory: &str, address: &str, word: &str) {
    machine.write("templates/page/page.tera", "the word is {{ vars.word }}\n");
    let file = "[[file]]\nsource = 'page.tera'\ntarget = '/srv/page'\non_change = 'none'\n";
    machine.write("templates/page/template.toml", &format!("[base]\nhost = true\n{file}"));
    let base = machine.path().display();
    let hook = |name: &str| format!("{name} = ['echo {name} >> {base}/hooks']\n");
    let hooks: String = ["prestart", "poststop"].map(hook).concat();
    machine.jail(
        "a",
        &format!(
            "template = 'page'\n[exec]\ncommand = ['sleep', '1000']\nstop_timeout = '2s'\n{hooks}\
             [network]\nmode = 'vnet'\naddress = ['{address}/24']\n[limits]\nmemory = '{memory}'\n\
             [[mount]]\nsource = '{base}/shared'\ntarget = '/mnt'\n{RESTART}[vars]\nword = '{word}'\n"
        ),
    );
    std::fs::create_dir_all(machine.path().join("shared")).unwrap();
}

/// A jail whose init was killed is started again, and not given up.
pub const RESTART: &str = "[restart]\npolicy = 'always'\ndelay = '100ms'\nmax = 1000\n";

fn defined(machine: &Machine) {
    jail(machine, "64M", "10.77.0.9", "one");
}

pub fn up(machine: &Machine) {
    defined(machine);
    machine.good(&["apply"]);
}

pub fn stopped(machine: &Machine) {
    up(machine);
    machine.good(&["stop", "a"]);
}

fn changed(machine: &Machine) {
    up(machine);
    jail(machine, "48M", "10.77.0.10", "two");
}

fn beside(machine: &Machine, colour: &str) {
    let text = format!(
        "template = 'host'\ndepend = ['a']\npersist = true\n[exec]\nstart = ['true']\nenv = {{ COLOUR = '{colour}' }}\n{RESTART}"
    );
    machine.jail("b", &text);
}

fn two(machine: &Machine) {
    defined(machine);
    beside(machine, "red");
}

fn changed_two(machine: &Machine) {
    up(machine);
    beside(machine, "red");
    machine.good(&["apply"]);
    beside(machine, "blue");
    let text = std::fs::read_to_string(machine.config().join("jails.d/a.toml")).unwrap();
    machine.jail("a", &text.replace("'1000'", "'1001'"));
}

/// A daemon that finds a definition changed, and is ended when it has followed.
fn daemon(machine: &Machine) -> Vec<String> {
    let script = "log=$1; shift; \"$@\" 2> $log & p=$!; \
        for i in $(seq 40); do grep -q 'a: updated' $log && break; kill -0 $p || break; sleep 0.05; done; \
        kill -TERM $p 2>/dev/null; wait $p; s=$?; cat $log >&2; exit $s";
    let log = machine.path().join("daemon.log").display().to_string();
    let mut words = vec!["sh".to_owned(), "-c".into(), script.into(), "sh".into(), log];
    words.extend(machine.words(&["daemon"]));
    words
}

pub fn whole(machine: &Machine, _: Came) -> Result<(), String> {
    holds(machine, "64M", "10.77.0.9", "one")
}

fn other(machine: &Machine, _: Came) -> Result<(), String> {
    holds(machine, "48M", "10.77.0.10", "two")
}

/// The first pass may come before a killed command's jail has died with it; then it lives.
fn cleared(machine: &Machine, _: Came) -> Result<(), String> {
    machine.wait_until("the jail dies", || crate::leak::processes(machine).is_empty());
    let output = machine.stockade(&["apply"]);
    if output.status.success() { Ok(()) } else { Err(crate::machine::said(&output)) }
}

/// The running jail is as the definition says, in the kernel's own words.
fn holds(machine: &Machine, memory: &str, address: &str, word: &str) -> Result<(), String> {
    let bytes = memory.trim_end_matches('M').parse::<u64>().unwrap() << 20;
    let limit = machine.cgroup_file("a", "memory.limit_in_bytes").or(machine.cgroup_file("a", "memory.max"));
    let pid = machine.ls()["a"]["pid"].as_i64().ok_or("a does not run")?.to_string();
    let inside = machine.outside(&[
        "nsenter",
        "-t",
        &pid,
        "-n",
        "-m",
        "sh",
        "-c",
        "ip -o -4 a; cat /srv/page; ls -d /mnt",
    ]);
    let seen = crate::machine::said(&inside);
    let expect = [format!("inet {address}/24"), format!("the word is {word}\n"), "/mnt\n".into()];
    match expect.iter().find(|text| !seen.contains(*text)) {
        Some(missing) => Err(format!("no {missing:?} inside: {seen}")),
        None if limit != Some(bytes.to_string()) => Err(format!("the memory limit is {limit:?}")),
        None => Ok(()),
    }
}
