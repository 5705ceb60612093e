//! `cargo xtask fuzz`: libFuzzer on the readers of what strangers send. See docs/decisions/0021.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::run::{at_root, cargo, host, root, run, target_dir};
use crate::setup;

/// Those of the HTTP path, which read what any client sends.
const HTTP_PATH: [&str; 5] = ["cookie", "door", "gate", "learn", "proxied"];
/// Begins also with the packets that the tests send through user space and kernel.
const PACKETS: &str = "packets";
/// What `homing::fuzzing` looks at.
const VARIABLE: &str = "HOMING_FUZZ_TARGET";

/// What libFuzzer needs to see where a run came: all of it stable, so that the compiler that builds homing does.
const COVERAGE: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    // Counters of several units would be merged by name.
    "-Ccodegen-units=1",
];
/// Longer than any buffer that is looked at.
const INPUT_BYTES_MAX: u32 = 12 * 1024;
/// One input may take this long, and this much memory, on a busy machine.
const INPUT_SECONDS_MAX: u32 = 10;
const MEMORY_MB_MAX: u32 = 1_024;

#[derive(clap::Args)]
pub struct Options {
    /// Seconds of fuzzing, shared by the targets.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// All targets, not only those of the HTTP path.
    #[arg(long, conflicts_with = "targets")]
    all: bool,
    /// Only these, by their folders in fuzz/corpus.
    targets: Vec<String>,
}

pub fn fuzz(options: &Options) -> anyhow::Result<()> {
    let known = targets()?;
    let targets: Vec<&str> = match &options.targets[..] {
        [] if options.all => known.iter().map(String::as_str).collect(),
        [] => HTTP_PATH.to_vec(),
        named => named.iter().map(String::as_str).collect(),
    };
    if let Some(unknown) = targets.iter().find(|target| !known.iter().any(|name| name == *target)) {
        bail!("no target is called {unknown}; there are: {}", known.join(", "));
    }
    setup::build_tools()?;
    setup::cpp_compiler()?;
    let program = build()?;
    if targets.contains(&PACKETS) {
        fixtures()?;
    }
    let seconds = (options.seconds / targets.len() as u32).max(1);
    let failed: Vec<&str> = targets
        .into_iter()
        .filter(|target| {
            println!("== fuzz {target}, {seconds} s");
            let result = run_target(&program, target, seconds);
            result.inspect_err(|error| eprintln!("{error:#}")).is_err()
        })
        .collect();
    if failed.is_empty() {
        return Ok(());
    }
    bail!(
        "found something in {}; when it is mended, keep the input that libFuzzer wrote as fuzz/corpus/TARGET/WHAT-IT-WAS",
        failed.join(", ")
    )
}

fn targets() -> anyhow::Result<Vec<String>> {
    let corpus = root().join("fuzz/corpus");
    let entries = fs::read_dir(&corpus).with_context(|| corpus.display().to_string())?;
    let mut names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort_unstable();
    Ok(names)
}

/// With overflow checks and debug assertions, in a target directory of its own: these flags are nobody else's.
fn build() -> anyhow::Result<PathBuf> {
    let host = host()?;
    let mut command = at_root("cargo", ["build", "--release", "--locked", "--manifest-path", "fuzz/Cargo.toml"]);
    // Named, so that build scripts and macros are not watched.
    command.args(["--target", &host]);
    command.env("CARGO_TARGET_DIR", folder()).env("CARGO_ENCODED_RUSTFLAGS", COVERAGE.join("\x1f"));
    run(&mut command)?;
    Ok(folder().join(host).join("release/fuzz"))
}

fn folder() -> PathBuf {
    target_dir().join("fuzz")
}

/// Writes the fixtures where [`run_target`] begins.
fn fixtures() -> anyhow::Result<()> {
    let folder = begin(PACKETS)?;
    cargo(["run", "--quiet", "--package", "homing-tests", "--example", "fixtures", "--", &folder.to_string_lossy()])
}

/// The folder of this machine's that a target begins with, beside those of its corpus.
fn begin(target: &str) -> anyhow::Result<PathBuf> {
    let own = folder().join("corpus").join(target);
    fs::create_dir_all(&own).with_context(|| own.display().to_string())?;
    Ok(own)
}

/// What is found anew goes to a folder of this machine's, and is where the next run begins.
fn run_target(program: &Path, target: &str, seconds: u32) -> anyhow::Result<()> {
    let own = begin(target)?;
    let found = folder().join("found").join(target);
    fs::create_dir_all(&found).with_context(|| found.display().to_string())?;
    let mut command = Command::new(program);
    command.arg(&own).arg(root().join("fuzz/corpus").join(target)).env(VARIABLE, target);
    command.arg(format!("-artifact_prefix={}/", found.display()));
    command.arg(format!("-max_total_time={seconds}")).arg(format!("-max_len={INPUT_BYTES_MAX}"));
    command.arg(format!("-timeout={INPUT_SECONDS_MAX}")).arg(format!("-rss_limit_mb={MEMORY_MB_MAX}"));
    let words = root().join("fuzz/words").join(target);
    if words.exists() {
        command.arg(format!("-dict={}", words.display()));
    }
    run(command.args(["-print_final_stats=1", "-verbosity=0"]))
}
