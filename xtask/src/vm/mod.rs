//! `cargo xtask vm`: the same tests under other kernels, in virtual machines.

mod guest;
mod image;
mod kernels;

use std::time::{Duration, Instant};

use anyhow::bail;

use crate::run::target_dir;
use crate::setup;

use image::{Base, Suite};
use kernels::{Kernel, SERIES, Series};

/// What one test may take in a guest: some twenty times what it takes here.
const TEST_LIMIT: Duration = Duration::from_secs(150);
/// What all tests of one kernel may take.
const GUEST_LIMIT: Duration = Duration::from_secs(45 * 60);
/// What the tier's few tests may take under one kernel.
const TIER_GUEST_LIMIT: Duration = Duration::from_secs(150);
/// Two kernels that homing has a kernel path on, the oldest of them first.
const TIER_KERNELS: [&str; 2] = ["6.12", "6.18"];
/// What the tier asks of each of the two: that the programs load, read packets as user space does, and tell of what they do.
const TIER_TESTS: [&str; 3] = [
    "kernel every_fixture_is_read_alike_in_user_space_and_in_the_kernel",
    "kernel a_decision_is_told_to_who_listens_for_its_client_at_the_rate_that_was_asked_for",
    "kernel the_verifier_accepts_the_program_that_delivers_connections",
];

/// Suites that say something about a kernel, quick ones first.
const SUITES: [&str; 14] = [
    "kernel",
    "remote",
    "loaders",
    "e2e",
    "affinity",
    "devices",
    "promotion",
    "protection",
    "sockets",
    "successors",
    "backends",
    "tunnels",
    "modules",
    LACKING,
];

/// The suite for kernels without a kernel path, and for them alone.
const LACKING: &str = "lacking";

/// Tests that cannot run in a guest, and why.
const NOT_IN_A_GUEST: [(&str, &str); 1] =
    [("devices tcx_programs_of_another_are_named_in_both_directions_and_stay", "the guest has no python3")];

#[derive(clap::Args)]
pub struct Options {
    /// A series of kernels, such as 6.12; may be given more than once. Without any: those of
    /// `cargo xtask test --vm`.
    #[arg(long, conflicts_with = "all")]
    kernel: Vec<String>,
    /// All series.
    #[arg(long)]
    all: bool,
    /// Look for newer kernels of these series.
    #[arg(long)]
    update: bool,
    /// Only tests whose suite and name, such as `e2e clients_over`, contain this.
    filter: Option<String>,
}

/// What became of the tests under one kernel.
#[derive(Default)]
pub struct Outcome {
    kernel: String,
    pub passed: usize,
    pub failed: Vec<String>,
    pub skipped: Vec<String>,
    took: Duration,
}

pub fn vm(options: &Options) -> anyhow::Result<()> {
    let is_known = |name: &&String| SERIES.iter().any(|series| series.name == name.as_str());
    if let Some(unknown) = options.kernel.iter().find(|name| !is_known(name)) {
        bail!("there is no series {unknown}; there are {}", SERIES.map(|series| series.name).join(", "));
    }
    let is_wanted = |series: &&Series| {
        options.all
            || options.kernel.iter().any(|name| name == series.name)
            || (options.kernel.is_empty() && TIER_KERNELS.contains(&series.name))
    };
    let filter = options.filter.as_deref().unwrap_or_default();
    let series: Vec<&Series> = SERIES.iter().filter(is_wanted).collect();
    setup::build_tools()?;
    setup::vm_tools()?;
    let outcomes = run(&series, options.update, GUEST_LIMIT, &|test| test.contains(filter))?;
    report(&outcomes);
    let failed: usize = outcomes.iter().map(|outcome| outcome.failed.len()).sum();
    if failed > 0 {
        bail!("{failed} tests failed");
    }
    Ok(())
}

/// The tier of `cargo xtask test`: few tests under two kernels, in bounded time.
pub fn tier(filter: &str) -> anyhow::Result<Vec<Outcome>> {
    let series: Vec<&Series> = SERIES.iter().filter(|series| TIER_KERNELS.contains(&series.name)).collect();
    let outcomes = run(&series, false, TIER_GUEST_LIMIT, &|test| TIER_TESTS.contains(&test) && test.contains(filter))?;
    report(&outcomes);
    Ok(outcomes)
}

/// These tests under these kernels. A kernel that cannot be had is a skip.
fn run(
    series: &[&Series],
    update: bool,
    limit: Duration,
    is_wanted: &dyn Fn(&str) -> bool,
) -> anyhow::Result<Vec<Outcome>> {
    // Before minutes of building: what cannot be had shows at once.
    let kernels: Vec<_> = series.iter().map(|series| (*series, series.kernel(update))).collect();
    let mut suites = image::suites(&SUITES)?;
    suites.retain(|suite| suite.tests.iter().any(|test| is_wanted(&format!("{} {test}", suite.name))));
    let base = Base::build(&suites)?;
    kernels.into_iter().map(|(series, kernel)| under(series, kernel, limit, &suites, &base, is_wanted)).collect()
}

fn under(
    series: &Series,
    kernel: anyhow::Result<Kernel>,
    limit: Duration,
    suites: &[Suite],
    base: &Base,
    is_wanted: &dyn Fn(&str) -> bool,
) -> anyhow::Result<Outcome> {
    let start = Instant::now();
    let mut outcome = Outcome { kernel: series.name.to_owned(), ..Outcome::default() };
    let kernel = match kernel {
        Ok(kernel) => kernel,
        Err(error) => {
            outcome.skipped.push(format!("all: the kernel cannot be had: {error:#}"));
            return Ok(outcome);
        }
    };
    outcome.kernel.clone_from(&kernel.release);
    let (apart, all): (Vec<&Suite>, Vec<&Suite>) = suites.iter().partition(|suite| suite.name == LACKING);
    let suites = if series.has_kernel_path {
        all
    } else {
        let count: usize = all.iter().map(|suite| suite.tests.len()).sum();
        outcome.skipped.push(format!("{count} tests of the kernel path: this kernel is too old for it"));
        apart
    };
    let named = suites.iter().flat_map(|suite| suite.tests.iter().map(move |test| format!("{} {test}", suite.name)));
    let mut planned = Vec::new();
    for test in named.filter(|test| is_wanted(test)) {
        match NOT_IN_A_GUEST.iter().find(|(name, _)| *name == test) {
            Some((_, reason)) => outcome.skipped.push(format!("{test}: {reason}")),
            None => planned.push(test),
        }
    }
    println!("== Linux {}: {} tests", kernel.release, planned.len());
    let plan = format!("{}\n{}\n", TEST_LIMIT.as_secs(), planned.join("\n"));
    let initrd = base.with(&kernel, &plan)?;
    let log = target_dir().join(format!("vm/{}.log", series.name));
    let mut said = guest::boot(&kernel, &initrd, &log, limit)?;
    for test in planned {
        match said.outcomes.remove(&test) {
            Some(None) => outcome.passed += 1,
            Some(Some(why)) => outcome.failed.push(format!("{test}: {why}")),
            None => {
                let why = said.broken.as_deref().unwrap_or("the guest ended before it");
                outcome.failed.push(format!("{test}: {why}; see {}", log.display()));
            }
        }
    }
    outcome.took = start.elapsed();
    Ok(outcome)
}

fn report(outcomes: &[Outcome]) {
    println!("\n{:<28} {:>7} {:>7} {:>8} {:>7}", "KERNEL", "PASSED", "FAILED", "SKIPPED", "TIME");
    for outcome in outcomes {
        let (failed, skipped, seconds) = (outcome.failed.len(), outcome.skipped.len(), outcome.took.as_secs());
        println!("{:<28} {:>7} {failed:>7} {skipped:>8} {seconds:>5} s", outcome.kernel, outcome.passed);
    }
    for outcome in outcomes {
        for failed in &outcome.failed {
            println!("FAILED  {}: {failed}", outcome.kernel);
        }
        for skipped in &outcome.skipped {
            println!("SKIPPED {}: {skipped}", outcome.kernel);
        }
    }
}
