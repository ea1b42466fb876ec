//! Which of an operation's thousands of cases are met.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{SystemTime, UNIX_EPOCH};

use super::FAULTS;
use super::calls;
use super::tracer::{Fault, Step};

/// Cases of one operation, where not all are asked for.
const SAMPLE: usize = 10;
/// Of that many, one is any call; the others change something that can be seen from outside.
const ANY: usize = 3;

pub type Case = (Step, Fault);

/// A step, and the place that the call is made from.
pub type Placed = (Step, String);

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Choice {
    /// A few; other ones each time, and the same ones for the same seed.
    Sample(u64),
    /// A kill at every step.
    Kills,
    /// Each fault at the first, the last and a middle one of the calls from each place, once in the
    /// whole sweep.
    Classes,
    /// The same without the kills.
    Errors,
    All,
}

pub fn number(name: &str) -> Option<usize> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not `{text}`")))
}

/// Said, so that it can be given again.
pub fn seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let given = number("STOCKADE_FAULTS_SEED").map(|seed| seed as u64);
    let seed = given.unwrap_or_else(|| u64::from(now.subsec_nanos()));
    eprintln!("faults: STOCKADE_FAULTS_SEED={seed}");
    seed
}

/// Where in which process's calls from one place a step stands.
pub type Class = (String, String, &'static str);

/// `known` are the classes met in other operations, to which those of this one are added.
pub fn of(choice: Choice, steps: &[Placed], operation: &str, known: &mut BTreeSet<Class>) -> Vec<Case> {
    let each = |faults: &'static [Fault], steps: Vec<Step>| -> Vec<Case> {
        steps.iter().flat_map(|step| faults.iter().map(|fault| (step.clone(), *fault))).collect()
    };
    let every = || steps.iter().map(|(step, _)| step.clone()).collect();
    let mut new = || {
        let classes = classes(steps).into_iter();
        classes.filter(|(class, _)| known.insert(class.clone())).map(|(_, step)| step).collect()
    };
    let chosen = match choice {
        Choice::Sample(seed) => return sample(&each(FAULTS, every()), seed, operation),
        Choice::Kills => each(&FAULTS[..1], every()),
        Choice::Classes => each(FAULTS, new()),
        Choice::Errors => each(&FAULTS[1..], new()),
        Choice::All => each(FAULTS, every()),
    };
    let most = number("STOCKADE_FAULTS_SAMPLE").unwrap_or(usize::MAX);
    if chosen.len() > most {
        in_order(&chosen, 0, operation).into_iter().take(most).collect()
    } else {
        chosen
    }
}

/// One step of each class.
pub fn classes(steps: &[Placed]) -> Vec<(Class, Step)> {
    let mut places: BTreeMap<(String, &str), Vec<&Step>> = BTreeMap::new();
    for (step, place) in steps {
        places.entry((role(&step.process), place)).or_default().push(step);
    }
    let stand = |((role, place), steps): ((String, &str), Vec<&Step>)| {
        let at = [("first", 0), ("last", steps.len() - 1), ("between", steps.len() / 2)];
        let at: BTreeMap<usize, &str> = at.into_iter().rev().map(|(name, index)| (index, name)).collect();
        let class = move |(index, name): (usize, &'static str)| {
            ((role.clone(), place.to_owned(), name), steps[index].clone())
        };
        at.into_iter().map(class).collect::<Vec<_>>()
    };
    places.into_iter().flat_map(stand).collect()
}

/// The same part in another jail's life is played by another child, or that jail's keeper.
fn role(process: &str) -> String {
    let word = |word: &str| match word.parse::<u32>() {
        Ok(_) => "#".to_owned(),
        Err(_) => word.split(' ').next().unwrap_or_default().to_owned(),
    };
    process.split('.').map(word).collect::<Vec<_>>().join(".")
}

/// Each case has its place by what it is, not by how many there are: that differs from run to run.
fn in_order(cases: &[Case], seed: u64, operation: &str) -> Vec<Case> {
    let place = |(step, fault): &Case| {
        let mut hasher = DefaultHasher::new();
        (seed, operation, step.to_string(), format!("{fault:?}")).hash(&mut hasher);
        hasher.finish()
    };
    let mut order = cases.to_vec();
    order.sort_by_cached_key(place);
    order
}

fn sample(cases: &[Case], seed: u64, operation: &str) -> Vec<Case> {
    let order = in_order(cases, seed, operation);
    let (changes, others): (Vec<Case>, Vec<Case>) =
        order.into_iter().partition(|(step, _)| calls::changes(step.call));
    let sample = number("STOCKADE_FAULTS_SAMPLE").unwrap_or(SAMPLE);
    let any = sample / ANY;
    let chosen = changes.into_iter().take(sample - any);
    chosen.chain(others.into_iter().take(any)).collect()
}
