//! `cargo xtask test`: the tiers in order, each counted; what cannot run here is a counted skip with its reason.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::run::{at_root, build_homing, cargo, is_root, root, run};
use crate::{setup, tidy, vm};

#[derive(clap::Args)]
pub struct Options {
    /// Lints, unit and property tests.
    #[arg(long)]
    unit: bool,
    /// Packets through the loaded programs. Needs root.
    #[arg(long)]
    kernel: bool,
    /// End to end in network namespaces. Needs root.
    #[arg(long)]
    e2e: bool,
    /// Real apps and a browser. Needs root.
    #[arg(long)]
    apps: bool,
    /// A few tests under the oldest and the newest kernel, in virtual machines (`cargo xtask vm --all` has all of them), and
    /// the instructions that packets and connections take.
    #[arg(long)]
    vm: bool,
    /// Only tests whose name contains this.
    filter: Option<String>,
}

/// One tier's counts.
struct Tier {
    name: &'static str,
    passed: usize,
    failed: usize,
    skipped: usize,
    /// Why, for what was skipped as a whole.
    reason: Option<String>,
    took: Duration,
}

pub fn test(options: &Options) -> anyhow::Result<()> {
    let all = !(options.unit || options.kernel || options.e2e || options.apps || options.vm);
    let mut tiers = Vec::new();
    setup::build_tools()?;
    if all || options.unit {
        lints()?;
        tiers.push(tier("unit", &["test"], options)?);
    }
    let wanted = |tier: bool| all || tier;
    let privileged: [(_, _, &[&str]); 3] = [
        ("kernel", options.kernel, &["kernel", "remote", "loaders"]),
        (
            "e2e",
            options.e2e,
            &[
                "e2e",
                "affinity",
                "refusals",
                "messages",
                "abuse",
                "backends",
                "tunnels",
                "promotion",
                "protection",
                "live",
                "devices",
                "changes",
                "successors",
                "front",
                "scheduling",
                "isolation",
                "privileges",
                "sockets",
                "output",
                "package",
                "restarts",
                "metrics",
                "systemd",
                "top",
                "chaos",
            ],
        ),
        ("apps", options.apps, &["apps", "encrypted", "uploads", "uvicorn", "examples", "dashboard"]),
    ];
    for (name, is_wanted, files) in privileged {
        if !wanted(is_wanted) {
            continue;
        }
        if let Some(reason) = cannot_load_bpf() {
            println!("SKIPPED tier {name}: {reason}");
            tiers.push(Tier { name, passed: 0, failed: 0, skipped: 1, reason: Some(reason), took: Duration::ZERO });
            continue;
        }
        setup::test_tools()?;
        setup::libbpf_headers()?;
        if name == "e2e" {
            setup::promtool();
        }
        if name == "apps" {
            setup::browser()?;
            setup::python_apps()?;
            setup::shiny_r()?;
        }
        let arguments = files.iter().flat_map(|file| ["--test", file]);
        let arguments: Vec<&str> =
            ["test", "--package", "homing-tests", "--features", "libbpf"].into_iter().chain(arguments).collect();
        tiers.push(tier(name, &arguments, options)?);
    }
    if wanted(options.vm) {
        tiers.push(other_kernels(options)?);
    }
    report(&tiers)
}

/// The tier of virtual machines. What cannot be had here, QEMU or a kernel, is a skip.
fn other_kernels(options: &Options) -> anyhow::Result<Tier> {
    println!("== vm");
    let start = Instant::now();
    let mut tier = Tier { name: "vm", passed: 0, failed: 0, skipped: 0, reason: None, took: Duration::ZERO };
    let mut skip = |reason: String| {
        println!("SKIPPED {reason}");
        tier.skipped += 1;
        tier.reason.get_or_insert(reason);
    };
    match setup::vm_tools() {
        Err(error) => skip(format!("what boots other kernels cannot be had: {error:#}")),
        Ok(()) => {
            let outcomes = vm::tier(options.filter.as_deref().unwrap_or_default())?;
            for outcome in outcomes {
                outcome.skipped.into_iter().for_each(&mut skip);
                tier.passed += outcome.passed;
                tier.failed += outcome.failed.len();
            }
        }
    }
    tier.took = start.elapsed();
    Ok(tier)
}

/// What is wrong with the text, before what is wrong with the program.
fn lints() -> anyhow::Result<()> {
    cargo(["fmt", "--all", "--check"]).context("cargo fmt --all puts it right")?;
    cargo(["clippy", "--workspace", "--exclude", "lb-ebpf", "--all-targets", "--", "-D", "warnings"])?;
    tidy::tidy()?;
    // Also crates that only other systems need: cargo-deny looks at all of them, and downloads nothing.
    cargo(["fetch", "--quiet", "--locked"])?;
    let mut deny = Command::new(setup::deny()?);
    run(deny.args(["--offline", "--log-level", "error", "check", "licenses", "bans", "sources"]).current_dir(root()))
}

/// Why no test that loads programs can run here, if none can.
fn cannot_load_bpf() -> Option<String> {
    if !is_root() {
        return Some("needs root, for eBPF and network namespaces".to_owned());
    }
    let has_btf = std::path::Path::new("/sys/kernel/btf/vmlinux").exists();
    (!has_btf).then(|| "this kernel has no BTF".to_owned())
}

/// Runs a tier's tests, shows their output as it comes, and counts.
fn tier(name: &'static str, arguments: &[&str], options: &Options) -> anyhow::Result<Tier> {
    println!("== {name}");
    let start = Instant::now();
    let homing = build_homing()?;
    let mut command = at_root("cargo", arguments);
    command.args(["--no-fail-fast", "--"]).args(&options.filter);
    command.env("HOMING_BIN", homing).env("HOMING_VENVS", setup::venvs());
    command.env("HOMING_PROMTOOL", setup::promtool_path());
    // The same faults in the same order, so that what fails does so again; `cargo xtask chaos` draws its own.
    command.env("HOMING_CHAOS_SEED", "1");
    let mut child = command.stdout(Stdio::piped()).spawn().context("cargo cannot be run")?;
    let output = BufReader::new(child.stdout.take().context("stdout is piped")?);
    let mut tier = Tier { name, passed: 0, failed: 0, skipped: 0, reason: None, took: Duration::ZERO };
    for line in output.lines() {
        let line = line?;
        println!("{line}");
        if let Some([passed, failed, ignored]) = counts(&line) {
            tier.passed += passed;
            tier.failed += failed;
            tier.skipped += ignored;
        }
    }
    let status = child.wait()?;
    if !status.success() && tier.failed == 0 {
        bail!("tier {name} did not run to its end: {status}");
    }
    tier.took = start.elapsed();
    Ok(tier)
}

/// Passed, failed and ignored of libtest's closing line.
fn counts(line: &str) -> Option<[usize; 3]> {
    let rest = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let mut numbers = rest.split("; ").map(|part| part.split(' ').next().and_then(|number| number.parse().ok()));
    Some([numbers.next()??, numbers.next()??, numbers.next()??])
}

fn report(tiers: &[Tier]) -> anyhow::Result<()> {
    println!("\n{:<8} {:>7} {:>7} {:>8} {:>7}", "TIER", "PASSED", "FAILED", "SKIPPED", "TIME");
    for tier in tiers {
        let reason = tier.reason.as_deref().unwrap_or_default();
        let seconds = tier.took.as_secs();
        println!("{:<8} {:>7} {:>7} {:>8} {seconds:>5} s  {reason}", tier.name, tier.passed, tier.failed, tier.skipped);
    }
    let sum = |part: fn(&Tier) -> usize| tiers.iter().map(part).sum::<usize>();
    let (passed, failed, skipped) = (sum(|t| t.passed), sum(|t| t.failed), sum(|t| t.skipped));
    println!("\n{passed} passed, {failed} failed, {skipped} skipped");
    if failed > 0 {
        bail!("{failed} tests failed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_closing_line_of_libtest_is_counted() {
        let line = "test result: FAILED. 133 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.2s";
        assert_eq!(super::counts(line), Some([133, 2, 1]));
        assert_eq!(super::counts("test bindings::tests::x ... ok"), None);
    }
}
