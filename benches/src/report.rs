//! What a benchmark says: medians over interleaved rounds, and their ratio to a baseline of the same run.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::ensure;
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy)]
pub struct Rounds {
    pub count: usize,
    pub length: Duration,
}

/// One measured case beside its baseline.
#[derive(Serialize, Deserialize)]
pub struct Case {
    pub name: String,
    pub value: f64,
    pub unit: String,
    pub baseline: String,
    pub baseline_value: f64,
    /// `value / baseline_value`.
    pub ratio: f64,
    /// The least and the most of all rounds.
    pub range: [f64; 2],
    pub baseline_range: [f64; 2],
    /// What it must keep.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bar: Option<Bar>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bar {
    Ratio(f64),
    RatioAtLeast(f64),
    Value(f64),
}

impl Case {
    /// Medians of both, taken in the same rounds.
    pub fn new(name: &str, values: &[f64], unit: &str, baseline: &str, baseline_values: &[f64]) -> Self {
        let (value, baseline_value) = (median(values), median(baseline_values));
        Self {
            name: name.to_owned(),
            value,
            unit: unit.to_owned(),
            baseline: baseline.to_owned(),
            baseline_value,
            ratio: value / baseline_value,
            range: range(values),
            baseline_range: range(baseline_values),
            bar: None,
        }
    }

    pub fn with_bar(self, bar: Option<Bar>) -> Self {
        Self { bar, ..self }
    }

    /// The least of all rounds in place of the medians, for what others on the machine can only add to.
    pub fn least(self) -> Self {
        let ([value, _], [baseline_value, _]) = (self.range, self.baseline_range);
        Self { value, baseline_value, ratio: value / baseline_value, ..self }
    }

    fn is_over(&self) -> bool {
        // What could not be measured is within nothing.
        !match self.bar {
            None => true,
            Some(Bar::Ratio(bar)) => self.ratio <= bar,
            Some(Bar::RatioAtLeast(bar)) => self.ratio >= bar,
            Some(Bar::Value(bar)) => self.value <= bar,
        }
    }

    fn excess(&self) -> String {
        let Self { name, value, unit, baseline, baseline_value, ratio, .. } = self;
        format!("{name}: {value:.1} {unit}, {ratio:.3} x {baseline} ({baseline_value:.1}): {}", self.verdict())
    }

    pub fn verdict(&self) -> String {
        let bar = match self.bar {
            None => return String::new(),
            Some(Bar::Ratio(bar)) => format!("{bar} x"),
            Some(Bar::RatioAtLeast(bar)) => format!("at least {bar} x"),
            Some(Bar::Value(bar)) => format!("{bar} {}", self.unit),
        };
        format!("{} {bar}", if self.is_over() { "OVER" } else { "within" })
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn range(values: &[f64]) -> [f64; 2] {
    [values.iter().copied().fold(f64::INFINITY, f64::min), values.iter().copied().fold(f64::NEG_INFINITY, f64::max)]
}

pub fn table(cases: &[Case]) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{:<38} {:>12} {:>12} {:<11} {:>6}  BAR", "CASE", "VALUE", "BASELINE", "UNIT", "RATIO");
    for case in cases {
        let _ = writeln!(
            out,
            "{:<38} {:>12.1} {:>12.1} {:<11} {:>6.3}  {}",
            case.name,
            case.value,
            case.baseline_value,
            case.unit,
            case.ratio,
            case.verdict()
        );
    }
    out.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Fails with a line for each case that is over its bar.
pub fn judge(cases: &[Case]) -> anyhow::Result<()> {
    let over: Vec<String> = cases.iter().filter(|case| case.is_over()).map(Case::excess).collect();
    ensure!(over.is_empty(), "{} of {} cases are over what is promised\n{}", over.len(), cases.len(), over.join("\n"));
    Ok(())
}

pub fn json(cases: &[Case]) -> serde_json::Result<String> {
    #[derive(Serialize)]
    struct Report<'a> {
        machine: String,
        cases: &'a [Case],
    }
    serde_json::to_string_pretty(&Report { machine: machine(), cases })
}

/// Kernel, processor and memory.
pub fn machine() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("Linux {}, {} cores, {}", kernel.trim(), cores, std::env::consts::ARCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(value: f64, bar: Option<Bar>) -> Case {
        Case::new("case", &[value], "us", "direct", &[100.0]).with_bar(bar)
    }

    #[test]
    fn what_is_over_its_bar_fails_by_name() {
        let within =
            [case(105.0, None), case(105.0, Some(Bar::Ratio(1.05))), case(97.0, Some(Bar::RatioAtLeast(0.97)))];
        assert!(judge(&within).is_ok());
        let over = [case(106.0, Some(Bar::Ratio(1.05))), case(f64::NAN, Some(Bar::Value(5.0)))];
        let said = judge(&over).expect_err("both are over").to_string();
        assert!(said.contains("case: 106.0 us, 1.060 x direct (100.0): OVER 1.05 x"), "{said}");
        assert!(said.starts_with("2 of 2"), "{said}");
    }
}
