//! `cost`: what packets and connections take in a virtual machine that counts instructions (QEMU's icount): every nanosecond
//! of its clock is one instruction of its only CPU, whatever machine it runs on. `cargo xtask vm --cost` boots it and
//! judges what this says.
//!
//! Nothing here waits while it measures: a CPU that sleeps would be counted as one that works.

mod balancer;
mod connections;
mod forwarding;
mod generator;
mod lab;
mod program;

pub use connections::serve as worker;

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, ensure};

/// How far a step of the loop may be from a whole number of instructions: the machine's own clock ticks meanwhile.
const CLOCK_TOLERANCE: f64 = 0.02;
/// How often the same is counted: what the kernel does now and then, of itself, is not in the least of these.
const ROUNDS: u32 = 4;

/// What was measured so far. The console is the one device whose interrupts come when it pleases the host: nothing is said
/// before all is done.
static COSTS: Mutex<Vec<(String, f64)>> = Mutex::new(Vec::new());

fn say(name: &str, instructions: f64) {
    COSTS.lock().unwrap_or_else(PoisonError::into_inner).push((name.to_owned(), instructions));
}

pub fn run() -> anyhow::Result<()> {
    check_clock()?;
    let lab = lab::Lab::new()?;
    // All of them, whatever becomes of one: a run takes minutes.
    let parts = [
        program::measure().context("the XDP program by itself"),
        forwarding::measure(&lab).context("packets that are forwarded"),
        connections::measure(&lab).context("connections"),
    ];
    // Each on its own line, behind a mark that the host looks for.
    for (name, instructions) in COSTS.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        println!("@@ COST {instructions:.1} {name}");
    }
    let failed: Vec<String> = parts.into_iter().filter_map(|part| Some(format!("{:#}", part.err()?))).collect();
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
}

/// A step of a loop takes a whole number of instructions, so here a whole number of nanoseconds. Elsewhere this measures
/// nothing.
fn check_clock() -> anyhow::Result<()> {
    const STEPS: u64 = 20_000_000;
    let start = Instant::now();
    for step in 0..STEPS {
        std::hint::black_box(step);
    }
    let per_step = start.elapsed().as_nanos() as f64 / STEPS as f64;
    ensure!(
        per_step > 1.5 && (per_step - per_step.round()).abs() < CLOCK_TOLERANCE,
        "a step takes {per_step:.3} ns, so the clock counts no instructions: this is for cargo xtask vm --cost alone"
    );
    Ok(())
}
