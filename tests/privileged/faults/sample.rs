//! Which of an operation's thousands of cases are met: other ones each time, and the same ones for
//! the same seed.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{SystemTime, UNIX_EPOCH};

use super::calls;
use super::tracer::{Fault, Step};

/// Cases of one operation, where not all are asked for.
const SAMPLE: usize = 10;
/// Of that many, one is any call; the others change something that can be seen from outside.
const ANY: usize = 3;

pub type Case = (Step, Fault);

pub fn number(name: &str) -> Option<usize> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not `{text}`")))
}

pub fn asks_for_all() -> bool {
    std::env::var("STOCKADE_FAULTS").is_ok_and(|value| value == "all")
}

/// Said, so that it can be given again.
pub fn seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let given = number("STOCKADE_FAULTS_SEED").map(|seed| seed as u64);
    let seed = given.unwrap_or_else(|| u64::from(now.subsec_nanos()));
    eprintln!("faults: STOCKADE_FAULTS_SEED={seed}");
    seed
}

/// Each case has its place by what it is, not by how many there are: that differs from run to run.
pub fn of(cases: &[Case], seed: u64, operation: &str) -> Vec<Case> {
    if asks_for_all() {
        return cases.to_vec();
    }
    let place = |(step, fault): &Case| {
        let mut hasher = DefaultHasher::new();
        (seed, operation, step.to_string(), format!("{fault:?}")).hash(&mut hasher);
        hasher.finish()
    };
    let mut order = cases.to_vec();
    order.sort_by_cached_key(place);
    let (changes, others): (Vec<Case>, Vec<Case>) =
        order.into_iter().partition(|(step, _)| calls::changes(step.call));
    let sample = number("STOCKADE_FAULTS_SAMPLE").unwrap_or(SAMPLE);
    let any = sample / ANY;
    let chosen = changes.into_iter().take(sample - any);
    let chosen: Vec<Case> = chosen.chain(others.into_iter().take(any)).collect();
    chosen
}
