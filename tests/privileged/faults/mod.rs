//! Faults at every step: each system call of each operation fails, is late, or is the last one of
//! its process. After each there is one clear message, `apply` converges, and nothing is left.
//!
//! The steps are not written down anywhere: a run without a fault counts them.
//!
//! `STOCKADE_FAULTS=all` meets every fault; otherwise it is a few of each operation, others each
//! time: `STOCKADE_FAULTS_SEED` is printed, and with the same one the same are chosen again.
//! `STOCKADE_FAULTS_ONLY` names one operation, or one case.

#![cfg(target_arch = "x86_64")]

mod calls;
mod files;
mod operations;
mod sample;
mod security;
mod tracer;

use std::collections::BTreeMap;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use nix::errno::Errno;

use crate::leak::{self, Snapshot};
use crate::machine::{Machine, said};
use operations::{Came, Operation};
use tracer::{Fault, Order, Step, Traced};

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

/// Not part of every run: which cases are met depends on how many steps there are, which depends on
/// the machine.
#[test]
#[ignore = "a sample of thousands of cases: tests/run faults"]
fn every_operation_survives_faults_at_every_step() {
    let Some(machine) = Machine::new() else { return };
    machine.host("[bridge.stockade0]\naddress = [\"10.77.0.1/24\"]\n");
    let only = std::env::var("STOCKADE_FAULTS_ONLY").unwrap_or_default();
    let seed = sample::seed();
    let is_wanted = |operation: &&Operation| {
        only.is_empty() || only == operation.name || only.starts_with(&format!("{}: ", operation.name))
    };
    let mut failures = Vec::new();
    for operation in operations::ALL.iter().chain(files::ALL).filter(is_wanted) {
        failures.extend(sweep(&machine, operation, &only, seed));
    }
    assert!(failures.is_empty(), "seed {seed}: {} failures:\n{}", failures.len(), failures.join("\n"));
}

/// All faults of one operation, or some; what did not go as promised.
fn sweep(machine: &Machine, operation: &Operation, only: &str, seed: u64) -> Vec<String> {
    reset(machine);
    // Layers and the bridge are made once for all jails.
    (operation.before)(machine);
    machine.good(&["apply"]);
    reset(machine);
    let clean = leak::look(machine);
    let steps = steps(machine, operation);
    let cases: Vec<(Step, Fault)> =
        steps.iter().flat_map(|step| FAULTS.iter().map(|fault| (step.clone(), *fault))).collect();
    let title = |(step, fault): &(Step, Fault)| format!("{}: {fault:?} at {step}", operation.name);
    let chosen: Vec<(Step, Fault)> = if only.len() > operation.name.len() {
        cases.iter().filter(|case| title(case) == only).cloned().collect()
    } else {
        sample::of(&cases, seed, operation.name)
    };
    eprintln!("{}: {} steps, {} cases, of which {}", operation.name, steps.len(), cases.len(), chosen.len());
    let mut failures = Vec::new();
    for case in &chosen {
        // What a check did not expect is a failure of this case like any other.
        let met = catch_unwind(AssertUnwindSafe(|| meet(machine, operation, &clean, case)));
        if let Err(why) = met.unwrap_or_else(|_| Err("a check panicked, see above".to_owned())) {
            eprintln!("FAILED {}: {why}", title(case));
            failures.push(format!("{}: {why}", title(case)));
            force(machine);
        }
    }
    failures
}

/// What happens every time: of two runs, the smaller count of each call.
fn steps(machine: &Machine, operation: &Operation) -> Vec<Step> {
    let count = || {
        (operation.before)(machine);
        let traced = run(machine, operation, None);
        assert_eq!(traced.status, Some(0), "{}: {}", operation.name, output(machine));
        reset(machine);
        traced.calls
    };
    let (first, second): (BTreeMap<_, u32>, _) = (count(), count());
    let always = |(key, count): (&(String, i64), &u32)| Some((key.clone(), *count.min(second.get(key)?)));
    let always = first.iter().filter_map(always);
    let step = |((process, call), count): ((String, i64), u32)| {
        (1..=count).map(move |number| Step { process: process.clone(), call, number })
    };
    always.flat_map(step).collect()
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
    tracer::run(Order { words: &words, running, stdout, stderr, fault, limit: LIMIT })
}

fn output(machine: &Machine) -> String {
    std::fs::read_to_string(machine.path().join("stderr")).unwrap_or_default()
}

/// One case from a clean machine to a clean machine.
fn meet(
    machine: &Machine,
    operation: &Operation,
    clean: &Snapshot,
    (step, fault): &(Step, Fault),
) -> Result<(), String> {
    let mut traced = attempt(machine, operation, step, *fault);
    for _ in 1..ATTEMPTS {
        if traced.fired {
            break;
        }
        reset_calmly(machine)?;
        traced = attempt(machine, operation, step, *fault);
    }
    if !traced.fired {
        return Err("the fault was not met".into());
    }
    let told = told(operation, &traced, *fault, &output(machine));
    converge(machine, operation, came(&traced, *fault))
        .map_err(|why| format!("{why}\nafter: {}", output(machine)))?;
    told?;
    reset_calmly(machine)?;
    let leaks = leak::compare(clean, machine);
    if leaks.is_empty() { Ok(()) } else { Err(format!("left behind: {}", leaks.join("; "))) }
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
        Some(3) if text.contains(": error: ") => Ok(()),
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
        machine.good(&["start", operation.jails[0]]);
    }
    // One whose init was killed waits for its back-off.
    let mut down = down(machine, operation);
    for _ in 0..BACK_OFFS {
        if down.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(150));
        machine.good(&["apply"]);
        down = self::down(machine, operation);
    }
    if !down.is_empty() {
        return Err(format!("after `apply`: {}: {}", down.join(", "), said(&output)));
    }
    let plan = machine.stockade(&["plan"]);
    if !plan.status.success() {
        return Err(format!("`apply` left something to do: {}{}", said(&output), said(&plan)));
    }
    (operation.after)(machine, came)
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
    machine.host("[bridge.stockade0]\naddress = [\"10.77.0.1/24\"]\n");
}
