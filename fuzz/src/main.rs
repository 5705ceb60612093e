//! One program for all targets of `homing::fuzzing`; the environment says which. `cargo xtask fuzz` runs it.
#![no_main]

use std::sync::LazyLock;

use homing::fuzzing::{self, Target};

/// Which target is meant.
const VARIABLE: &str = "HOMING_FUZZ_TARGET";

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var(VARIABLE).unwrap_or_default();
    fuzzing::TARGETS.iter().find(|target| target.name == name).unwrap_or_else(|| {
        let names: Vec<_> = fuzzing::TARGETS.iter().map(|target| target.name).collect();
        eprintln!("{VARIABLE} names a target: {}", names.join(", "));
        std::process::exit(2)
    })
});

libfuzzer_sys::fuzz_target!(init: { LazyLock::force(&TARGET); }, |bytes: &[u8]| (TARGET.run)(bytes));
