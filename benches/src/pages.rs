//! The report in docs/benchmarks: what a run of all benchmarks measured, on what, and how to do it again. Markdown, and a picture
//! of each benchmark.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;
use serde::Deserialize;

use crate::picture;
use crate::report::{Case, machine};

/// In the order of the report.
pub const BENCHMARKS: [&str; 4] = ["datapath", "path", "http", "sessions"];

#[derive(Deserialize)]
struct Measured {
    cases: Vec<Case>,
}

/// `from` has a NAME.json of each; the report goes to `to`. `command` is what ran them.
pub fn write(from: &Path, to: &Path, command: &str) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    let mut page = format!(
        "# Measured\n\nWritten by `{command}`; what each case means is told in [Benchmarks](../benchmarks.md). Values are medians of \
         interleaved rounds, and those of CPU time the least of all rounds; in brackets the least and the most. A ratio is value by \
         baseline, taken in the same rounds.\n\n| | |\n| --- | --- |\n"
    );
    for (what, is) in around() {
        let _ = writeln!(page, "| {what} | {is} |");
    }
    for name in BENCHMARKS {
        let file = from.join(format!("{name}.json"));
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let Measured { cases } = serde_json::from_str(&text).with_context(|| file.display().to_string())?;
        std::fs::write(to.join(format!("{name}.svg")), picture::ratios(&cases))?;
        let _ = write!(
            page,
            "\n## `cargo xtask bench {name}`\n\n![ratios to the baselines]({name}.svg)\n\n{}",
            table(&cases)
        );
    }
    Ok(std::fs::write(to.join("measured.md"), page)?)
}

fn table(cases: &[Case]) -> String {
    let mut out =
        "| case | value | baseline | unit | ratio | promised |\n| --- | --- | --- | --- | --- | --- |\n".to_owned();
    let of = |value: f64, [least, most]: [f64; 2]| format!("{} ({} to {})", short(value), short(least), short(most));
    for case in cases {
        let (value, baseline) = (of(case.value, case.range), of(case.baseline_value, case.baseline_range));
        let (unit, verdict) = (&case.unit, case.verdict());
        let _ = writeln!(out, "| {} | {value} | {baseline} | {unit} | {:.2} | {verdict} |", case.name, case.ratio);
    }
    out
}

/// Three digits of those that count.
fn short(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The machine, and what was measured on it.
fn around() -> Vec<(&'static str, String)> {
    let line_of = |file: &str, mark: &str| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(mark)).and_then(|line| line.split_once(':'));
        line.map_or("unknown".to_owned(), |(_, value)| value.trim().to_owned())
    };
    let homing = std::env::var("HOMING_BIN").unwrap_or_default();
    let python = std::env::var("HOMING_VENVS").unwrap_or_default() + "/shiny-python/bin/python";
    let shiny = "import shiny, sys; print('Python', sys.version.split()[0] + ', Shiny', shiny.__version__)";
    let r = "cat(R.version.string, ', Shiny ', as.character(packageVersion('shiny')), sep = '')";
    vec![
        ("day", says(&["date", "--utc", "+%F"])),
        ("commit", says(&["git", "describe", "--always", "--dirty"])),
        ("machine", machine()),
        ("processor", line_of("/proc/cpuinfo", "model name")),
        ("memory", line_of("/proc/meminfo", "MemTotal")),
        ("load of the last 1, 5 and 15 minutes", load()),
        ("homing", says(&[&homing, "--version"])),
        ("nginx", says(&["/usr/sbin/nginx", "-v"])),
        ("HAProxy", says(&["/usr/sbin/haproxy", "-v"])),
        ("Caddy", says(&["/usr/bin/caddy", "version"])),
        ("faucet", says(&[&std::env::var("HOMING_FAUCET").unwrap_or_default(), "--version"])),
        ("nftables", says(&["/usr/sbin/nft", "--version"])),
        ("Shiny for Python", says(&[&python, "-c", shiny])),
        ("Shiny for R", says(&["Rscript", "-e", r])),
        ("Shiny Server", candidate("shiny-server")),
    ]
}

fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(", ")
}

/// The version that the package sources of this machine have, which is what would be installed.
fn candidate(package: &str) -> String {
    let policy = Command::new("apt-cache").args(["policy", package]).output().map(|output| output.stdout);
    let policy = String::from_utf8_lossy(&policy.unwrap_or_default()).into_owned();
    let line = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    line.unwrap_or("not to be had").to_owned()
}

/// The first line that a program prints.
fn says(words: &[&str]) -> String {
    let Ok(output) = Command::new(words[0]).args(&words[1..]).output() else { return "not installed".to_owned() };
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).lines().next().unwrap_or("says nothing").trim().to_owned()
}
