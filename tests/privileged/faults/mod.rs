//! Faults at every step: each system call of each operation fails, is late, or is the last one of
//! its process. After each there is one clear message, `apply` converges, and nothing is left.
//!
//! The steps are not written down anywhere: a run without a fault counts them.
//!
//! Which steps and faults is said by `STOCKADE_FAULTS`: `kills` is a kill at every step, `errors` all
//! other faults at the first, the last and a middle one of the calls from each place, where a place that
//! two operations share is met in the first of them; `classes` is the same with the kills. `sweep` is
//! kills and errors of what is done to jails, and classes of what is done to files, and `all` is every
//! fault at every step. Otherwise it is a few of each operation, others each time: the
//! `STOCKADE_FAULTS_SEED` is printed, and with the same one the same are chosen again.
//!
//! `STOCKADE_FAULTS_ONLY` names operations, with commas between them, or one case;
//! `STOCKADE_FAULTS_SAMPLE` says how many of an operation are met at most, and
//! `STOCKADE_FAULTS_MACHINES` how many are met side by side.

#![cfg(target_arch = "x86_64")]

mod calls;
mod files;
mod once;
mod operations;
mod places;
mod sample;
mod security;
mod sweep;
mod tracer;

use std::fs::File;
use std::time::Duration;

use nix::errno::Errno;

use crate::leak::{self, Snapshot};
use crate::machine::{Machine, said};
use operations::{Came, Operation};
use sample::{Case, Placed};
use tracer::{Fault, Order, Step, Traced};

/// Machines side by side, of each core: much of a case is waiting for the kernel.
const A_CORE: usize = 2;
const HOST: &str = "[bridge.stockade0]\naddress = [\"10.77.0.1/24\"]\n";
/// The kill is the first.
const FAULTS: &[Fault] = &[
    Fault::Kill,
    Fault::Error(Errno::ENOSPC),
    Fault::Error(Errno::EIO),
    Fault::Error(Errno::EMFILE),
    Fault::Error(Errno::ENOMEM),
    Fault::Error(Errno::EBUSY),
    Fault::Error(Errno::EINTR),
    Fault::Error(Errno::EPERM),
    Fault::Delay,
];
/// The longest that one operation may take, whatever fails: all that it waits for has a limit.
const LIMIT: Duration = Duration::from_secs(45);
/// How often a case is begun anew where threads or timers have gone another way than when the steps
/// were counted, and its own was not among them.
const ATTEMPTS: usize = 4;
/// How a shell says that what it ran was killed.
const KILLED: i32 = 128 + 9;
/// How often `apply` is called again for a jail that has died.
const BACK_OFFS: usize = 10;
const BACK_OFF: Duration = Duration::from_millis(150);

/// Not part of every run: which cases are met depends on how many steps there are, which depends on
/// the machine.
#[test]
#[ignore = "a sample of thousands of cases: tests/run faults"]
fn every_operation_survives_faults_at_every_step() {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let machines = Machine::several(sample::number("STOCKADE_FAULTS_MACHINES").unwrap_or(cores * A_CORE));
    if machines.is_empty() {
        return;
    }
    for machine in &machines {
        machine.host(HOST);
    }
    let failures = sweep::run(&machines);
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// What happens every time, with the places of the first time: of two runs, the smaller count of each
/// call.
fn steps(machine: &Machine, operation: &Operation) -> Vec<Placed> {
    let count = || {
        (operation.before)(machine);
        let traced = run(machine, operation, None);
        assert_eq!(traced.status, Some(0), "{}: {}", operation.name, output(machine));
        reset(machine);
        traced.calls
    };
    let (first, second) = (count(), count());
    let step = |((process, call), places): ((String, i64), Vec<String>)| {
        let most = second.get(&(process.clone(), call)).map_or(0, Vec::len);
        let step = move |(index, place)| (Step { process: process.clone(), call, number: index + 1 }, place);
        places.into_iter().take(most).enumerate().map(step)
    };
    first.into_iter().flat_map(step).collect()
}

fn run(machine: &Machine, operation: &Operation, fault: Option<(Step, Fault)>) -> Traced {
    let mut running = Vec::new();
    for name in operation.running {
        for whose in ["keeper", "init"] {
            let pid = machine.record(name)[whose]["pid"].as_i64().expect("a pid");
            running.push((i32::try_from(pid).unwrap(), format!("{whose} {name}")));
        }
    }
    let file = |name: &str| File::create(machine.path().join(name)).unwrap();
    let words = (operation.words)(machine);
    let (stdout, stderr) = (file("stdout"), file("stderr"));
    tracer::run(Order { words: &words, own: machine.path(), running, stdout, stderr, fault, limit: LIMIT })
}

fn output(machine: &Machine) -> String {
    std::fs::read_to_string(machine.path().join("stderr")).unwrap_or_default()
}

enum Met {
    Good,
    /// The step was not made this time.
    Not,
}

/// One case from a clean machine to a clean machine.
fn meet(
    machine: &Machine,
    operation: &Operation,
    clean: &Snapshot,
    (step, fault): &Case,
) -> Result<Met, String> {
    let mut traced = attempt(machine, operation, step, *fault);
    for _ in 1..ATTEMPTS {
        if traced.fired {
            break;
        }
        reset_calmly(machine)?;
        traced = attempt(machine, operation, step, *fault);
    }
    if !traced.fired {
        reset_calmly(machine)?;
        return Ok(Met::Not);
    }
    let told = told(operation, &traced, *fault, &output(machine));
    converge(machine, operation, came(&traced, *fault))
        .map_err(|why| format!("{why}\nafter: {}", output(machine)))?;
    told?;
    reset_calmly(machine)?;
    let leaks = leak::compare(clean, machine);
    if leaks.is_empty() { Ok(Met::Good) } else { Err(format!("left behind: {}", leaks.join("; "))) }
}

fn attempt(machine: &Machine, operation: &Operation, step: &Step, fault: Fault) -> Traced {
    (operation.before)(machine);
    run(machine, operation, Some((step.clone(), fault)))
}

fn came(traced: &Traced, fault: Fault) -> Came {
    match traced.status {
        Some(0) => Came::Done,
        _ if fault == Fault::Kill => Came::Killed,
        _ => Came::Failed,
    }
}

/// Exit status and message: nothing went wrong, or one line for each jail says what.
fn told(operation: &Operation, traced: &Traced, fault: Fault, text: &str) -> Result<(), String> {
    let is_note = |line: &str| {
        ["it is still defined in", "is still there: apply", "layers are left alone"]
            .iter()
            .any(|note| line.contains(note))
    };
    let lines: Vec<&str> =
        text.lines().filter(|line| line.starts_with("stockade: ") && !is_note(line)).collect();
    let bad = |why: &str| Err(format!("{why}: status {:?}, said {text:?}", traced.status));
    let most = operation.jails.len().max(1);
    match traced.status {
        // The standard library takes it for impossible that what it has between itself and a child
        // cannot be read: how execve(2) went, and what the child writes. A release ends of
        // it; here the other threads may go on waiting.
        _ if text.contains("/library/std/src/sys/process/") => Ok(()),
        _ if traced.hung => bad("it hung"),
        // The crate that watches files takes it for impossible that its own thread is not there or
        // cannot be woken. The daemon ends of it, and is started again.
        _ if text.contains("/notify-") && text.contains("inotify.rs") => Ok(()),
        _ if text.contains("panicked") || text.contains("RUST_BACKTRACE") => bad("it panicked"),
        None | Some(KILLED) if fault == Fault::Kill => Ok(()),
        Some(0) if lines.is_empty() => Ok(()),
        Some(0) => bad("an error without a status"),
        _ if fault == Fault::Delay => bad("late is no failure"),
        // A file of the configuration could not be read.
        Some(3) if text.contains(": error: ") || text.contains(": its file has errors: ") => Ok(()),
        Some(status) if status != operation.failed => bad("not the status of a failure"),
        _ if lines.is_empty() => bad("no message"),
        _ if lines.len() > most => bad("too many messages"),
        _ if lines.iter().any(|line| !is_clear(line)) => bad("no clear message"),
        _ => Ok(()),
    }
}

/// `stockade: what: why`, with a verb and its object.
fn is_clear(line: &str) -> bool {
    let said = line.trim_start_matches("stockade: ");
    said.contains(' ') && said.len() > 10 && !said.contains("called `") && !said.contains("  ")
}

/// What a person does next, and the daemon by itself: `apply`, until there is nothing to do.
fn converge(machine: &Machine, operation: &Operation, came: Came) -> Result<(), String> {
    let output = machine.stockade(&["apply"]);
    if !output.status.success() {
        return Err(format!("`apply` failed: {}", said(&output)));
    }
    if operation.held {
        // What does not run for all that is seen below: one that is just about to end waits for its
        // back-off.
        machine.stockade(&["start", operation.jails[0]]);
    }
    // One whose init was killed waits for its back-off, and may be about to end only when it is looked
    // at first.
    for _ in 0..BACK_OFFS {
        let plan = machine.stockade(&["plan"]);
        let is_up = down(machine, operation).is_empty();
        match (plan.status.success(), is_up) {
            (true, true) => match (operation.after)(machine, came) {
                // It may have been about to end.
                Err(_) if !down(machine, operation).is_empty() => {}
                done => return done,
            },
            (false, true) => {
                return Err(format!("`apply` left something to do: {}{}", said(&output), said(&plan)));
            }
            (_, false) => {}
        }
        std::thread::sleep(BACK_OFF);
        machine.good(&["apply"]);
    }
    Err(format!("after `apply`: {}: {}", down(machine, operation).join(", "), said(&output)))
}

/// Jails that are not as they should be, with their states.
fn down(machine: &Machine, operation: &Operation) -> Vec<String> {
    let states = machine.ls();
    let state = |name: &str| states.get(name).map_or("absent", |item| item["state"].as_str().unwrap());
    let names = operation.jails.iter();
    let jails = names.map(|name| (name, state(name)));
    jails.filter(|(_, state)| *state != "running").map(|(name, state)| format!("{name} is {state}")).collect()
}

fn definitions(machine: &Machine) -> Vec<String> {
    let entries = std::fs::read_dir(machine.config().join("jails.d")).unwrap();
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    // What a killed clone was about to write is no definition.
    let names = entries.map(name).filter(|name| !name.starts_with('.'));
    names.map(|name| name.trim_end_matches(".toml").to_owned()).collect()
}

/// Destroys every jail, with the means that a user has.
fn reset_calmly(machine: &Machine) -> Result<(), String> {
    let names = definitions(machine);
    let mut args = vec!["destroy", "--yes"];
    args.extend(names.iter().map(String::as_str));
    if !names.is_empty() {
        let output = machine.stockade(&args);
        if !output.status.success() {
            return Err(format!("`destroy` failed: {}", said(&output)));
        }
    }
    for name in names {
        machine.remove(&name);
    }
    let jails = machine.state().join("jails");
    let left: Vec<_> = std::fs::read_dir(&jails).into_iter().flatten().flatten().map(|e| e.path()).collect();
    if left.is_empty() { Ok(()) } else { Err(format!("`destroy` has left {left:?}")) }
}

fn reset(machine: &Machine) {
    reset_calmly(machine).unwrap();
}

/// After a failure: the next case is to begin from nothing again.
fn force(machine: &Machine) {
    machine.end_all();
    for directory in
        ["jails.d", "../run", "../state/jails", "../state/ids", "../state/changes", "../state/pending"]
    {
        // Not there is as good.
        let _ = std::fs::remove_dir_all(machine.config().join(directory));
    }
    let templates = machine.config().join("templates");
    for entry in std::fs::read_dir(&templates).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with('.') {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    machine.host(HOST);
}
