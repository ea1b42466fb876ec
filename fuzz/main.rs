//! One program for all targets of `stockade::fuzzing`; `STOCKADE_FUZZ_TARGET` names the one.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use stockade::fuzzing::{TARGETS, Target};

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("STOCKADE_FUZZ_TARGET").unwrap_or_default();
    let found = TARGETS.iter().find(|(known, _)| *known == name);
    found.unwrap_or_else(|| panic!("STOCKADE_FUZZ_TARGET={name} is no target")).1
});

fuzz_target!(|data: &[u8]| TARGET(data));
