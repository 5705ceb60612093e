//! `cargo xtask test`: the tiers in order, each counted; what cannot run here is a counted skip with its reason.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::run::{at_root, build_homing, cargo, is_root, output, root, run, target_dir};
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
    /// What was not done, and why.
    skipped: Vec<String>,
    took: Duration,
}

impl Tier {
    fn new(name: &'static str) -> Self {
        Self { name, passed: 0, failed: 0, skipped: Vec::new(), took: Duration::ZERO }
    }
}

pub fn test(options: &Options) -> anyhow::Result<()> {
    let all = !(options.unit || options.kernel || options.e2e || options.apps || options.vm);
    let mut tiers = Vec::new();
    setup::build_tools()?;
    if all || options.unit {
        let unjudged = lints()?;
        let mut unit = tier("unit", &["test"], options)?;
        unit.skipped.extend(unjudged);
        tiers.push(unit);
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
        ("apps", options.apps, &["apps", "encrypted", "uploads", "uvicorn", "examples", "dashboard", "clients"]),
    ];
    for (name, is_wanted, files) in privileged {
        if !wanted(is_wanted) {
            continue;
        }
        if let Some(reason) = cannot_load_bpf() {
            println!("SKIPPED tier {name}: {reason}");
            tiers.push(Tier { skipped: vec![format!("all: {reason}")], ..Tier::new(name) });
            continue;
        }
        setup::test_tools()?;
        setup::libbpf_headers()?;
        if name == "e2e" {
            setup::promtool();
        }
        // Abuse is compared with what they do, and examples of theirs are tried.
        if ["e2e", "apps"].contains(&name)
            && let Err(error) = setup::peers()
        {
            println!("  {error:#}; going on without them");
        }
        if name == "apps" {
            setup::browser()?;
            setup::python_apps()?;
            setup::shiny_r()?;
            setup::load_tools();
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
    let mut tier = Tier::new("vm");
    match setup::vm_tools() {
        Err(error) => tier.skipped.push(format!("all: what boots other kernels cannot be had: {error:#}")),
        Ok(()) => {
            let outcomes = vm::tier(options.filter.as_deref().unwrap_or_default())?;
            for outcome in outcomes {
                tier.skipped.extend(outcome.skipped);
                tier.passed += outcome.passed;
                tier.failed += outcome.failed.len();
            }
        }
    }
    tier.took = start.elapsed();
    Ok(tier)
}

/// What is wrong with the text, before what is wrong with the program; why something of it was not judged.
fn lints() -> anyhow::Result<Option<String>> {
    cargo(["fmt", "--all", "--check"]).context("cargo fmt --all puts it right")?;
    cargo(["clippy", "--workspace", "--exclude", "lb-ebpf", "--all-targets", "--", "-D", "warnings"])?;
    tidy::tidy()?;
    dependencies()
}

/// The trees of the workspace and of the fuzzer, by cargo-deny; why something of them was not judged.
fn dependencies() -> anyhow::Result<Option<String>> {
    const TREES: [&str; 2] = ["Cargo.toml", "fuzz/Cargo.toml"];
    let deny = setup::deny()?;
    let ask = |manifest: &str| {
        let mut command = Command::new(&deny);
        command.args(["--manifest-path", manifest, "--config", "deny.toml", "--log-level", "error"]);
        command.current_dir(root());
        command
    };
    for tree in TREES {
        // Also crates that only other systems need: cargo-deny looks at all of them, and downloads nothing.
        let fetched = cargo(["fetch", "--quiet", "--locked", "--manifest-path", tree]);
        fetched.with_context(|| format!("cargo update --workspace --manifest-path {tree} puts it right"))?;
        run(ask(tree).args(["--offline", "check", "licenses", "bans", "sources"]))?;
    }
    if let Err(error) = output(ask(TREES[0]).args(["fetch", "db"])) {
        let error = error.to_string();
        let why = error.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        return Ok(Some(format!("known holes in dependencies: RustSec's database cannot be had: {why}")));
    }
    TREES.iter().try_for_each(|tree| run(ask(tree).args(["--offline", "check", "advisories"])))?;
    Ok(None)
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
    command.env("HOMING_PROMTOOL", setup::promtool_path()).env("HOMING_LOADTEST", setup::loadtest_path());
    // The same faults in the same order, so that what fails does so again; `cargo xtask chaos` draws its own.
    command.env("HOMING_CHAOS_SEED", "1");
    let skips = target_dir().join(format!("skips-{}", std::process::id()));
    command.env("HOMING_SKIPS", &skips);
    let mut child = command.stdout(Stdio::piped()).spawn().context("cargo cannot be run")?;
    let output = BufReader::new(child.stdout.take().context("stdout is piped")?);
    let mut tier = Tier::new(name);
    for line in output.lines() {
        let line = line?;
        println!("{line}");
        if let Some([passed, failed]) = counts(&line) {
            tier.passed += passed;
            tier.failed += failed;
        }
        tier.skipped.extend(ignored(&line));
    }
    let status = child.wait()?;
    if !status.success() && tier.failed == 0 {
        bail!("tier {name} did not run to its end: {status}");
    }
    if let Ok(told) = fs::read_to_string(&skips) {
        fs::remove_file(&skips)?;
        let told: Vec<Skip<'_>> = told.lines().filter_map(Skip::parse).collect();
        tier.passed -= told.iter().filter(|skip| skip.is_whole).count();
        tier.skipped.extend(told.iter().map(|skip| skip.what.to_owned()));
    }
    tier.took = start.elapsed();
    Ok(tier)
}

/// What `homing_tests::skips` tells.
#[derive(Debug, PartialEq)]
struct Skip<'a> {
    /// libtest counted the test as passed, and nothing of it was done.
    is_whole: bool,
    what: &'a str,
}

impl<'a> Skip<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (how_much, what) = line.split_once('\t')?;
        Some(Self { is_whole: how_much == "all", what })
    }
}

/// The test that libtest says it leaves out, and why if the test says so.
fn ignored(line: &str) -> Option<String> {
    let (name, why) = line.strip_prefix("test ")?.split_once(" ... ignored")?;
    Some(format!("{name}: {}", why.strip_prefix(", ").unwrap_or("ignored")))
}

/// Passed and failed of libtest's closing line.
fn counts(line: &str) -> Option<[usize; 2]> {
    let rest = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let mut numbers = rest.split("; ").map(|part| part.split(' ').next().and_then(|number| number.parse().ok()));
    Some([numbers.next()??, numbers.next()??])
}

fn report(tiers: &[Tier]) -> anyhow::Result<()> {
    println!("\n{:<8} {:>7} {:>7} {:>8} {:>7}", "TIER", "PASSED", "FAILED", "SKIPPED", "TIME");
    for Tier { name, passed, failed, skipped, took } in tiers {
        println!("{name:<8} {passed:>7} {failed:>7} {:>8} {:>5} s", skipped.len(), took.as_secs());
    }
    println!();
    for (tier, skipped) in tiers.iter().flat_map(|tier| tier.skipped.iter().map(move |skipped| (tier.name, skipped))) {
        println!("SKIPPED {tier}: {skipped}");
    }
    let sum = |part: fn(&Tier) -> usize| tiers.iter().map(part).sum::<usize>();
    let (passed, failed, skipped) = (sum(|t| t.passed), sum(|t| t.failed), sum(|t| t.skipped.len()));
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    if failed > 0 {
        bail!("{failed} tests failed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_line_of_libtest_is_counted() {
        let line = "test result: FAILED. 133 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.2s";
        assert_eq!(counts(line), Some([133, 2]));
        assert_eq!(counts("test bindings::tests::x ... ok"), None);
    }

    #[test]
    fn what_is_left_out_is_named_with_its_reason() {
        assert_eq!(ignored("test a::b ... ignored, too slow").as_deref(), Some("a::b: too slow"));
        assert_eq!(ignored("test a::b ... ignored").as_deref(), Some("a::b: ignored"));
        assert_eq!(ignored("test a::b ... ok"), None);
        let skip = |is_whole, what| Some(Skip { is_whole, what });
        assert_eq!(Skip::parse("all\ta: no cgroups here"), skip(true, "a: no cgroups here"));
        assert_eq!(Skip::parse("part\ta: no zsh here"), skip(false, "a: no zsh here"));
    }
}
