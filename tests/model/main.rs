//! The model test: a real daemon with real jails on a host of its own, random steps (edits in every
//! style of editors, kills, stops by hand, lost events, a full disk), and after each of them the
//! comparison with [`model::Model`], which knows nothing but the rules.
//!
//! `STOCKADE_MODEL_STEPS` says how many steps (60), `STOCKADE_MODEL_SEED` which ones: the seed is
//! printed first, and with the same one the same steps come again. What fails is made shorter
//! before it is printed.

mod editors;
// They are the other tests' too, which use all of them.
#[allow(dead_code)]
#[path = "../privileged/leak.rs"]
mod leak;
#[allow(dead_code)]
#[path = "../privileged/machine.rs"]
mod machine;
mod model;
mod site;
mod steps;

use proptest::test_runner::{Config, RngSeed, TestRunner};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};

use site::Site;
use steps::Rules;

/// Steps on one host; then it is left, with the leak check, and the next one made.
const STEPS_EACH: u32 = 50;
const STEPS: u32 = 60;
/// For making a failure shorter: each try is a new host.
const SHRINKS: u32 = 20;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number, not `{text}`")))
}

fn seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    number("STOCKADE_MODEL_SEED").unwrap_or_else(|| u64::from(now.subsec_nanos()))
}

#[test]
#[ignore = "random steps: tests/run model"]
fn the_machine_is_what_the_model_says() {
    let steps = number("STOCKADE_MODEL_STEPS").map_or(STEPS, |steps| u32::try_from(steps).unwrap());
    let seed = seed();
    eprintln!("model: {steps} steps, STOCKADE_MODEL_SEED={seed}");
    let each = steps.min(STEPS_EACH) as usize;
    let config = Config {
        cases: steps.div_ceil(STEPS_EACH),
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        max_shrink_iters: number("STOCKADE_MODEL_SHRINKS").map_or(SHRINKS, |n| u32::try_from(n).unwrap()),
        ..Config::default()
    };
    let run = |(model, steps, seen)| {
        Site::test_sequential(config.clone(), model, steps, seen);
        Ok(())
    };
    let strategy = Rules::sequential_strategy(each..=each);
    if let Err(error) = TestRunner::new(config.clone()).run(&strategy, run) {
        panic!("STOCKADE_MODEL_SEED={seed}: {error}");
    }
}
