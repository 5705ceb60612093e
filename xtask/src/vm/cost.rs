//! `cargo xtask vm --cost`: the instructions that packets and connections take, counted in a virtual machine and compared
//! with what they took when the table was written. They are the same on any machine that runs it, so that a datapath that
//! became slower shows everywhere.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use crate::run::{cargo, root, target_dir};
use crate::setup;

use super::guest::{self, Console, Machine};
use super::image::Base;
use super::kernels::{COST_MODULES, Kernel, SERIES};

/// The series that costs are counted under.
const KERNEL: &str = "6.12";
/// What they were.
const TABLE: &str = "vm-tests/cost.toml";
/// By how much, of what it was, a cost may differ.
const TOLERANCE: f64 = 0.01;
/// The kernel says what a program takes in whole instructions.
const ROUNDING: f64 = 1.0;
/// What is shown beside homing and not held to the table: these programs are the host's, of whatever version.
const NOT_HELD: [&str; 2] = ["connection, HAProxy", "connection, nginx"];
/// What homing is to come to: (this, at most so much, of that). Both are counted in one run, so that they are judged under any kernel.
const BARS: [(&str, f64, &str); 5] = [
    ("connection, homing kernel path", 1.05, "connection, direct, XDP that passes all"),
    ("connection, homing kernel path without XDP", 1.05, "connection, direct"),
    ("packet, homing l2", 0.4, "packet, IPVS DR"),
    ("packet, homing ipip", 0.4, "packet, IPVS DR"),
    ("packet, homing gue", 0.4, "packet, IPVS DR"),
];
const LIMIT: Duration = Duration::from_secs(8 * 60);
const PROGRAMS: [&str; 12] =
    ["cat", "ethtool", "haproxy", "ip", "ipvsadm", "modprobe", "nft", "nginx", "nsenter", "sh", "sysctl", "tc"];
/// Where Debian has what nginx loads for TCP.
const NGINX_STREAM: &str = "usr/lib/nginx/modules/ngx_stream_module.so";

/// What was counted is what the table says.
pub enum Counted {
    Same,
    /// The table is another kernel's.
    NotComparable(String),
}

/// What costs are counted with, installed or fetched where it is missing.
pub fn prepare(update: bool) -> anyhow::Result<Kernel> {
    let series = SERIES.iter().find(|series| series.name == KERNEL).context("a series of that name")?;
    setup::build_tools()?;
    setup::vm_tools()?;
    setup::cost_peers()?;
    series.kernel(update)
}

/// Counts, and compares with the table; `record` writes it first.
pub fn cost(kernel: &Kernel, record: bool) -> anyhow::Result<Counted> {
    // Both at once: each by itself would build the same dependencies with other features.
    cargo(["build", "--release", "--package", "homing", "--package", "homing-bench"])?;
    let [homing, bench] = ["homing", "homing-bench"].map(|name| target_dir().join("release").join(name));
    let files =
        [(bench, PathBuf::from("bin/homing-bench")), (Path::new("/").join(NGINX_STREAM), PathBuf::from(NGINX_STREAM))];
    let base = Base::build(&homing, &PROGRAMS, &files)?;
    println!("== Linux {}: instructions", kernel.release);
    let initrd = base.with(kernel, &COST_MODULES, "run homing-bench cost\n")?;
    let log = target_dir().join("vm/cost.log");
    let said = guest::boot(kernel, &initrd, &Console { label: "cost", log: &log }, &Machine::Counting, LIMIT)?;
    if let Some(why) = said.broken {
        bail!("not all was counted: {why}; see {}", log.display());
    }
    ensure!(!said.costs.is_empty(), "nothing was counted; see {}", log.display());
    let path = root().join(TABLE);
    if record {
        fs::write(&path, written(&kernel.release, &said.costs)?)?;
        println!("written: {TABLE}");
    }
    let table: Table = Table::parse(&fs::read_to_string(&path).with_context(|| TABLE.to_owned())?)?;
    judge(&table, &kernel.release, &said.costs)
}

struct Table {
    kernel: String,
    costs: BTreeMap<String, f64>,
}

impl Table {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let table: toml::Table = text.parse().context(TABLE)?;
        let kernel = table.get("kernel").and_then(toml::Value::as_str).context("a kernel is named")?.to_owned();
        let costs = table.get("instructions").and_then(toml::Value::as_table).context("a table of instructions")?;
        let number = |value: &toml::Value| value.as_float().context("a number with a point");
        let costs = costs.iter().map(|(name, value)| Ok((name.clone(), number(value)?)));
        Ok(Self { kernel, costs: costs.collect::<anyhow::Result<_>>()? })
    }
}

fn written(kernel: &str, costs: &[(String, f64)]) -> anyhow::Result<String> {
    let mut text = format!(
        "# Instructions that a packet or a connection takes, counted under this kernel. Written by:\n\
         # cargo xtask vm --cost --record\nkernel = {kernel:?}\n\n[instructions]\n"
    );
    for (name, cost) in costs {
        writeln!(text, "{name:?} = {cost:.1}")?;
    }
    Ok(text)
}

/// Says all, and fails where a cost is not what it was, or over its bar.
fn judge(table: &Table, kernel: &str, costs: &[(String, f64)]) -> anyhow::Result<Counted> {
    let is_comparable = table.kernel == kernel;
    let seen: BTreeMap<&str, f64> = costs.iter().map(|(name, cost)| (name.as_str(), *cost)).collect();
    let mut wrong = Vec::new();
    println!("\n{:<44} {:>12} {:>12} {:>8}", "INSTRUCTIONS", "EXPECTED", "SEEN", "CHANGE");
    for (name, cost) in costs {
        let Some(&expected) = table.costs.get(name) else {
            println!("{name:<44} {:>12} {cost:>12.1}", "-");
            wrong.push(format!("{name}: not in {TABLE}; `cargo xtask vm --cost --record` writes it"));
            continue;
        };
        let change = cost / expected - 1.0;
        println!("{name:<44} {expected:>12.1} {cost:>12.1} {:>+7.2} %", change * 100.0);
        let is_held = is_comparable && !NOT_HELD.iter().any(|free| name.starts_with(free));
        if is_held && change.abs() > TOLERANCE && (cost - expected).abs() > ROUNDING {
            wrong.push(format!("{name}: {expected:.1} instructions expected, {cost:.1} seen"));
        }
    }
    for name in table.costs.keys().filter(|name| !seen.contains_key(name.as_str())) {
        wrong.push(format!("{name}: in {TABLE}, and was not counted"));
    }
    let mut over = Vec::new();
    for (name, bar, of) in BARS {
        let (Some(cost), Some(base)) = (seen.get(name), seen.get(of)) else {
            wrong.push(format!("{name} of {of}: not both were counted"));
            continue;
        };
        let ratio = cost / base;
        let line = format!("{name}: {ratio:.4} x {of}, {} {bar} x", if ratio <= bar { "within" } else { "OVER" });
        println!("{line}");
        if ratio > bar {
            over.push(line);
        }
    }
    if wrong.is_empty() && over.is_empty() && is_comparable {
        return Ok(Counted::Same);
    }
    if wrong.is_empty() && over.is_empty() {
        let of = &table.kernel;
        return Ok(Counted::NotComparable(format!("costs: {TABLE} is of Linux {of}, and this is {kernel}")));
    }
    for what in wrong.iter().chain(&over) {
        println!("FAILED {what}");
    }
    if wrong.is_empty() {
        bail!("{} costs are over what homing promises", over.len());
    }
    bail!("{} costs are not what they should be; a change that is meant goes into the table with --record", wrong.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: &str = "6.12.1";

    fn costs() -> Vec<(String, f64)> {
        let costs = [
            ("connection, homing kernel path", 124.0),
            ("connection, homing kernel path without XDP", 104.0),
            ("connection, direct", 100.0),
            ("connection, direct, XDP that passes all", 120.0),
            ("connection, nginx stream", 300.0),
            ("packet, homing l2", 390.0),
            ("packet, homing ipip", 400.0),
            ("packet, homing gue", 400.0),
            ("packet, IPVS DR", 1000.0),
        ];
        costs.map(|(name, cost)| (name.to_owned(), cost)).to_vec()
    }

    fn judged(kernel: &str, name: &str, cost: f64) -> anyhow::Result<Counted> {
        let table = Table::parse(&written(KERNEL, &costs())?)?;
        let mut costs = costs();
        costs.iter_mut().filter(|entry| entry.0 == name).for_each(|entry| entry.1 = cost);
        judge(&table, kernel, &costs)
    }

    #[test]
    fn what_is_written_is_read_and_found_the_same() {
        assert!(matches!(judged(KERNEL, "", 0.0), Ok(Counted::Same)));
    }

    #[test]
    fn one_in_a_hundred_is_no_change_and_more_is_one_either_way() {
        assert!(judged(KERNEL, "packet, homing l2", 393.0).is_ok());
        assert!(judged(KERNEL, "packet, homing l2", 399.0).is_err());
        assert!(judged(KERNEL, "packet, homing l2", 380.0).is_err());
    }

    #[test]
    fn another_kernel_is_compared_with_no_table_and_held_to_the_bars() {
        assert!(matches!(judged("6.12.2", "packet, homing l2", 300.0), Ok(Counted::NotComparable(_))));
        assert!(judged("6.12.2", "packet, homing l2", 410.0).is_err());
    }

    #[test]
    fn programs_of_the_host_may_change() {
        assert!(judged(KERNEL, "connection, nginx stream", 400.0).is_ok());
    }

    #[test]
    fn what_was_not_counted_is_missed() {
        let table = Table::parse(&written(KERNEL, &costs()).expect("text")).expect("a table");
        assert!(judge(&table, KERNEL, &costs()[1..]).is_err());
    }
}
