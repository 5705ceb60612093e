//! The XDP program by itself, on one packet again and again (BPF_PROG_TEST_RUN): what it takes of what a driver calls it with.

use super::lab::{enter, ip};
use super::say;
use crate::datapath::Single;

/// Runs of one subject. The kernel says their mean, rounded down.
const RUNS: u32 = 20_000;

pub fn measure() -> anyhow::Result<()> {
    // In a namespace of its own, as the benchmark wants it.
    ip("netns add program")?;
    enter("program", || {
        let mut single = Single::load()?;
        for name in single.names() {
            say(&format!("program, {name}"), single.nanoseconds(name, RUNS)?);
        }
        Ok(())
    })
}
