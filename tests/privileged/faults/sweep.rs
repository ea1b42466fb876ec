//! Goes through the cases of one operation after the other, on several machines side by side, and
//! tells what came of them.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::operations::{self, Operation};
use super::sample::{self, Case, Choice, Class};
use super::{Met, files, force, meet, reset, steps};
use crate::leak::{self, Snapshot};
use crate::machine::Machine;

/// So many cases are met between two lines about how far it has come.
const PROGRESS: usize = 250;
/// A step that threads or timers have gone around is none; when it is more than one in so many cases,
/// the steps are not those of the operation.
const UNMET: usize = 20;

/// What one operation came to.
struct Line {
    title: String,
    steps: usize,
    classes: usize,
    cases: usize,
    unmet: usize,
    failures: Vec<String>,
    seconds: u64,
}

pub fn title(operation: &Operation, (step, fault): &Case) -> String {
    format!("{}: {fault:?} at {step}", operation.name)
}

pub fn all() -> impl Iterator<Item = &'static Operation> {
    operations::ALL.iter().chain(files::ALL)
}

/// Which cases of which operations are met, in this order.
fn rounds() -> Vec<(Choice, Vec<&'static Operation>)> {
    let jails = operations::ALL.iter();
    match std::env::var("STOCKADE_FAULTS").unwrap_or_default().as_str() {
        "sweep" => vec![
            (Choice::Kills, jails.clone().collect()),
            (Choice::Errors, jails.clone().collect()),
            (Choice::Classes, files::ALL.iter().collect()),
        ],
        "kills" => vec![(Choice::Kills, all().collect())],
        "errors" => vec![(Choice::Errors, all().collect())],
        "classes" => vec![(Choice::Classes, all().collect())],
        "all" => vec![(Choice::All, all().collect())],
        "" => vec![(Choice::Sample(sample::seed()), all().collect())],
        other => panic!("STOCKADE_FAULTS is sweep, kills, errors, classes or all, not `{other}`"),
    }
}

/// All that is asked for; what did not go as promised.
pub fn run(machines: &[Machine]) -> Vec<String> {
    let only = std::env::var("STOCKADE_FAULTS_ONLY").unwrap_or_default();
    let names: Vec<&str> = only.split(", ").filter(|name| !name.is_empty()).collect();
    let mut known = BTreeSet::new();
    let mut lines = Vec::new();
    if let Some((name, _)) = only.split_once(": ") {
        let operation = all().find(|operation| operation.name == name);
        let operation = operation.unwrap_or_else(|| panic!("there is no operation `{name}`"));
        lines.push(sweep(machines, operation, Choice::All, &mut known, &only));
    } else {
        for (choice, operations) in rounds() {
            let wanted = |operation: &&Operation| names.is_empty() || names.contains(&operation.name);
            let wanted = operations.into_iter().filter(wanted);
            lines.extend(wanted.map(|operation| sweep(machines, operation, choice, &mut known, "")));
        }
    }
    assert!(!lines.is_empty(), "there is no operation `{only}`");
    tell(&lines);
    lines.into_iter().flat_map(|line| line.failures).collect()
}

fn tell(lines: &[Line]) {
    eprintln!(
        "{:36} {:>6} {:>7} {:>6} {:>5} {:>6} {:>7}",
        "", "steps", "classes", "cases", "unmet", "failed", "seconds"
    );
    for Line { title, steps, classes, cases, unmet, failures, seconds } in lines {
        eprintln!("{title:36} {steps:6} {classes:7} {cases:6} {unmet:5} {:6} {seconds:7}", failures.len());
    }
    let sum = |number: fn(&Line) -> usize| lines.iter().map(number).sum::<usize>();
    let (cases, unmet, failed) =
        (sum(|line| line.cases), sum(|line| line.unmet), sum(|line| line.failures.len()));
    eprintln!("{cases} cases, of which {unmet} were not met and {failed} failed");
    for failure in lines.iter().flat_map(|line| &line.failures) {
        let case = failure.lines().next().unwrap_or_default();
        let case = case.split(" => ").next().unwrap_or_default();
        eprintln!("again: STOCKADE_FAULTS_ONLY='{case}' tests/run faults");
    }
}

fn sweep(
    machines: &[Machine],
    operation: &Operation,
    choice: Choice,
    known: &mut BTreeSet<Class>,
    only: &str,
) -> Line {
    let begun = Instant::now();
    let clean = prime(machines, operation);
    let steps = steps(&machines[0], operation);
    let mut cases = sample::of(choice, &steps, operation.name, known);
    cases.retain(|case| only.is_empty() || title(operation, case) == only);
    assert!(only.is_empty() || !cases.is_empty(), "there is no case `{only}`");
    let kind = format!("{choice:?}").to_lowercase();
    eprintln!("{}: {} steps, {} cases of {kind}", operation.name, steps.len(), cases.len());
    let (next, unmet) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let failures = Mutex::new(Vec::new());
    let work = |machine: &Machine, clean: &Snapshot| {
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            let done = next.load(Ordering::Relaxed);
            if done.is_multiple_of(PROGRESS) {
                eprintln!("{}: {done} of {}, {} s", operation.name, cases.len(), begun.elapsed().as_secs());
            }
            // What a check did not expect is a failure of this case like any other.
            let met = catch_unwind(AssertUnwindSafe(|| meet(machine, operation, clean, case)));
            match met.unwrap_or_else(|_| Err("a check panicked, see above".to_owned())) {
                Ok(Met::Good) => {}
                Ok(Met::Not) => {
                    eprintln!("not met: {}", title(operation, case));
                    unmet.fetch_add(1, Ordering::Relaxed);
                }
                Err(why) => {
                    let place = steps.iter().find(|(step, _)| *step == case.0).map_or("", |(_, place)| place);
                    let failure = format!("{} => {place}: {why}", title(operation, case));
                    eprintln!("FAILED {failure}");
                    failures.lock().unwrap().push(failure);
                    force(machine);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for (machine, clean) in machines.iter().zip(&clean) {
            let work = &work;
            scope.spawn(move || work(machine, clean));
        }
    });
    let (unmet, mut failures) = (unmet.into_inner(), failures.into_inner().unwrap());
    let most = if only.is_empty() { cases.len().div_ceil(UNMET) } else { 0 };
    if unmet > most {
        failures.push(format!("{} => {unmet} of {} faults were not met", operation.name, cases.len()));
    }
    Line {
        title: format!("{}, {kind}", operation.name),
        steps: steps.len(),
        classes: sample::classes(&steps).len(),
        cases: cases.len(),
        unmet,
        failures,
        seconds: begun.elapsed().as_secs(),
    }
}

/// Layers and the bridge are made once for all jails of a machine.
pub fn prime(machines: &[Machine], operation: &Operation) -> Vec<Snapshot> {
    let prime = |machine| {
        reset(machine);
        (operation.before)(machine);
        machine.good(&["apply"]);
        reset(machine);
        leak::look(machine)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = machines.iter().map(|machine| scope.spawn(move || prime(machine))).collect();
        threads.into_iter().map(|thread| thread.join().expect("the operation begins well")).collect()
    })
}
