//! `cargo xtask vm`: the same tests under other kernels, in virtual machines.

mod choice;
mod cost;
mod guest;
mod image;
mod kernels;

use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::bail;

use crate::run::{build_homing, target_dir};
use crate::setup;

use choice::{GUEST_LIMIT_MIN, TEST_LIMIT, TIER_GUEST_LIMIT, TIER_KERNELS, TIER_TESTS};
use cost::Counted;
use guest::{Became, Console, Machine};
use image::{Base, PROGRAMS, Suite};
use kernels::{Kernel, MODULES, SERIES, Series};

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
    /// No tests: count the instructions that packets and connections take, homing's and its peers', and compare them with
    /// vm-tests/cost.toml.
    #[arg(long, conflicts_with_all = ["all", "kernel", "filter"])]
    cost: bool,
    /// Write what is counted there in place of comparing it.
    #[arg(long, requires = "cost")]
    record: bool,
    /// What one kernel's tests may take together.
    #[arg(long, default_value_t = GUEST_LIMIT_MIN)]
    minutes: u64,
    /// Only tests whose suite and name, such as `e2e clients_over`, contain one of these.
    filter: Vec<String>,
}

/// What became of the tests under one kernel.
#[derive(Default)]
pub struct Outcome {
    kernel: String,
    pub passed: usize,
    pub failed: Vec<String>,
    pub skipped: Vec<String>,
    /// Tests of suites that are not for this kernel; see [`choice`].
    not_here: usize,
    took: Duration,
}

/// What is asked of each kernel.
struct Wanted<'a> {
    /// By suite and name.
    test: &'a (dyn Fn(&str) -> bool + Sync),
    /// Also under kernels that the suite is not for by [`choice`]: who names a test wants it.
    is_named: bool,
    limit: Duration,
}

pub fn vm(options: &Options) -> anyhow::Result<()> {
    if options.cost {
        if let Counted::NotComparable(why) = cost::cost(&cost::prepare(options.update)?, options.record)? {
            println!("SKIPPED {why}");
        }
        return Ok(());
    }
    let is_known = |name: &&String| SERIES.iter().any(|series| series.name == name.as_str());
    if let Some(unknown) = options.kernel.iter().find(|name| !is_known(name)) {
        bail!(
            "there is no series {unknown}; there are {}",
            SERIES.iter().map(|series| series.name).collect::<Vec<_>>().join(", ")
        );
    }
    let is_wanted = |series: &&Series| {
        options.all
            || options.kernel.iter().any(|name| name == series.name)
            || (options.kernel.is_empty() && TIER_KERNELS.contains(&series.name))
    };
    let is_meant = |test: &str| options.filter.is_empty() || options.filter.iter().any(|part| test.contains(part));
    let series: Vec<&Series> = SERIES.iter().filter(is_wanted).collect();
    setup::build_tools()?;
    setup::vm_tools()?;
    let limit = Duration::from_secs(options.minutes * 60);
    let wanted = Wanted { test: &is_meant, is_named: !options.filter.is_empty(), limit };
    let outcomes = run(&series, options.update, &wanted)?;
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
    let test = |test: &str| TIER_TESTS.contains(&test) && test.contains(filter);
    let mut outcomes = run(&series, false, &Wanted { test: &test, is_named: false, limit: TIER_GUEST_LIMIT })?;
    if "costs".contains(filter) {
        outcomes.push(tier_costs());
    }
    report(&outcomes);
    Ok(outcomes)
}

/// The costs, as one more test of the tier: a datapath that became slower fails on any machine.
fn tier_costs() -> Outcome {
    let start = Instant::now();
    let mut outcome = Outcome { kernel: "costs".to_owned(), ..Outcome::default() };
    match cost::prepare(false) {
        Err(error) => outcome.skipped.push(format!("what costs are counted with cannot be had: {error:#}")),
        Ok(kernel) => match cost::cost(&kernel, false) {
            Ok(Counted::Same) => outcome.passed += 1,
            Ok(Counted::NotComparable(why)) => outcome.skipped.push(why),
            Err(error) => outcome.failed.push(format!("{error:#}")),
        },
    }
    outcome.took = start.elapsed();
    outcome
}

/// These tests under these kernels. A kernel that cannot be had is a skip.
fn run(series: &[&Series], update: bool, wanted: &Wanted<'_>) -> anyhow::Result<Vec<Outcome>> {
    // Before minutes of building: what cannot be had shows at once.
    let kernels: Vec<_> = series.iter().map(|series| (*series, series.kernel(update))).collect();
    let mut suites = image::suites(&choice::suites())?;
    suites.retain(|suite| suite.tests.iter().any(|test| (wanted.test)(&format!("{} {test}", suite.name))));
    let files: Vec<_> = suites.iter().map(Suite::file).collect();
    let base = Base::build(&build_homing()?, &PROGRAMS, &files)?;
    // A guest takes one processor; each processor takes the next kernel when it is done with one.
    let waiting = Mutex::new(kernels.into_iter().enumerate());
    let done = Mutex::new(BTreeMap::new());
    let work = || {
        // Not `while let`, which would keep the lock as long as the guest runs.
        loop {
            let next = waiting.lock().expect("nobody panics with it").next();
            let Some((at, (series, kernel))) = next else { return };
            let outcome = under(series, kernel, &suites, &base, wanted);
            done.lock().expect("nobody panics with it").insert(at, outcome);
        }
    };
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    std::thread::scope(|scope| (0..processors).for_each(|_| drop(scope.spawn(work))));
    done.into_inner().expect("nobody panics with it").into_values().collect()
}

fn under(
    series: &Series,
    kernel: anyhow::Result<Kernel>,
    suites: &[Suite],
    base: &Base,
    wanted: &Wanted<'_>,
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
    let mut planned = Vec::new();
    for suite in suites {
        let named = suite.tests.iter().map(|test| format!("{} {test}", suite.name));
        let tests: Vec<String> = named.filter(|test| (wanted.test)(test)).collect();
        if !choice::runs(&suite.name, series, wanted.is_named) {
            outcome.not_here += tests.len();
            continue;
        }
        for test in tests {
            match choice::reason_against(&test, series) {
                Some(reason) => outcome.skipped.push(format!("{test}: {reason}")),
                None => planned.push(test),
            }
        }
    }
    println!("== Linux {}: {} tests", kernel.release, planned.len());
    if planned.is_empty() {
        return Ok(outcome);
    }
    let plan = format!("{}\n{}\n", TEST_LIMIT.as_secs(), planned.join("\n"));
    let initrd = base.with(&kernel, &MODULES, &plan)?;
    let log = target_dir().join(format!("vm/{}.log", series.name));
    let console = Console { label: series.name, log: &log };
    let mut said = guest::boot(&kernel, &initrd, &console, &Machine::Quick, wanted.limit)?;
    for test in planned {
        match said.outcomes.remove(&test) {
            Some(Became::Passed) => outcome.passed += 1,
            Some(Became::Skipped(why)) => outcome.skipped.push(format!("{test}: {why}")),
            Some(Became::Failed(why)) => outcome.failed.push(format!("{test}: {why}")),
            None => {
                let why = said.broken.as_deref().unwrap_or("the guest said nothing of it");
                outcome.failed.push(format!("{test}: {why}; see {}", log.display()));
            }
        }
    }
    outcome.skipped.append(&mut said.left_out);
    outcome.took = start.elapsed();
    Ok(outcome)
}

fn report(outcomes: &[Outcome]) {
    println!("\n{:<28} {:>7} {:>7} {:>8} {:>9} {:>7}", "KERNEL", "PASSED", "FAILED", "SKIPPED", "ELSEWHERE", "TIME");
    for outcome in outcomes {
        let (failed, skipped, seconds) = (outcome.failed.len(), outcome.skipped.len(), outcome.took.as_secs());
        println!(
            "{:<28} {:>7} {failed:>7} {skipped:>8} {:>9} {seconds:>5} s",
            outcome.kernel, outcome.passed, outcome.not_here
        );
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
