//! What homing counts, in `homing status` and for Prometheus: it only grows. The kernel's counters are pinned, and do so from one
//! homing to the next; all others do while it is the same process.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};

use homing_tests::instance::Homing;
use homing_tests::network::Namespace;
use homing_tests::session::Client;
use lb_common::abi::Counter;
use serde_json::Value;

/// In homing's namespace.
pub const METRICS: &str = "127.0.0.1:9180";
/// Of one process of a worker, and begins anew with the next.
const OF_A_PROCESS: &str = "homing_worker_requests_total";

pub struct Counted {
    pid: u64,
    status: BTreeMap<String, u64>,
    /// Samples that must not fall.
    samples: BTreeMap<String, f64>,
}

impl Counted {
    pub fn of(homing: &Homing, server: &Namespace) -> Self {
        let status = homing.status();
        Self {
            pid: status["pid"].as_u64().expect("a process"),
            status: counters(&status),
            samples: rising(&scrape(server)),
        }
    }

    /// What fell since then.
    pub fn fallen_since(&self, before: &Self) -> Vec<String> {
        let mut fallen = kernels_fallen(&before.status, &self.status);
        if self.pid == before.pid {
            fallen.extend(fallen_among(&before.status, &self.status, |_| true));
            fallen.extend(fallen_among(&before.samples, &self.samples, |name| !name.starts_with(OF_A_PROCESS)));
        }
        fallen
    }
}

/// The counters of a status.
pub fn counters(status: &Value) -> BTreeMap<String, u64> {
    let counters = status["counters"].as_object().expect("counters");
    counters.iter().map(|(name, value)| (name.clone(), value.as_u64().expect("a number"))).collect()
}

/// The kernel's counters that are lower than they were, or missing.
pub fn kernels_fallen(before: &BTreeMap<String, u64>, now: &BTreeMap<String, u64>) -> Vec<String> {
    let kernels: BTreeSet<&str> = Counter::ALL.iter().map(|counter| counter.name()).collect();
    let missing = kernels.iter().filter(|name| !now.contains_key(**name)).map(|name| format!("{name} is missing"));
    missing.chain(fallen_among(before, now, |name| kernels.contains(name))).collect()
}

fn fallen_among<T: PartialOrd + std::fmt::Display>(
    before: &BTreeMap<String, T>,
    now: &BTreeMap<String, T>,
    is_meant: impl Fn(&str) -> bool,
) -> Vec<String> {
    let meant = before.iter().filter(|(name, _)| is_meant(name));
    // Samples go with the app or worker that they are of.
    let both = meant.filter_map(|(name, before)| Some((name, before, now.get(name)?)));
    both.filter(|(_, before, now)| now < before)
        .map(|(name, before, now)| format!("{name} went from {before} to {now}"))
        .collect()
}

/// What Prometheus is told.
pub fn scrape(server: &Namespace) -> String {
    let target: SocketAddr = METRICS.parse().expect("an address");
    let client = Client { namespace: Some(server), from: Ipv4Addr::LOCALHOST.into(), target };
    let answer = client.get("/metrics").expect("metrics are served");
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.body
}

/// A sample's value; none where it is not there.
pub fn sample(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?.parse().ok()
}

/// All samples of counters and histograms.
fn rising(text: &str) -> BTreeMap<String, f64> {
    let kinds: BTreeMap<&str, &str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let rises = |sample: &str| {
        let family = sample.split('{').next().unwrap_or_default();
        let stem = ["_bucket", "_sum", "_count"].iter().find_map(|end| family.strip_suffix(end));
        kinds.get(family) == Some(&"counter") || stem.is_some_and(|stem| kinds.get(stem) == Some(&"histogram"))
    };
    let samples = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
    samples
        .filter(|(sample, _)| rises(sample))
        .filter_map(|(sample, value)| Some((sample.to_owned(), value.parse().ok()?)))
        .collect()
}

#[test]
fn what_falls_is_named_and_gauges_may() {
    let text = "# TYPE a counter\na{b=\"c d\"} 3\n# TYPE g gauge\ng 9\n# TYPE h histogram\nh_sum 1.5\nh_count 2\n";
    let samples = rising(text);
    assert_eq!(samples.keys().map(String::as_str).collect::<Vec<_>>(), ["a{b=\"c d\"}", "h_count", "h_sum"]);
    let lower = BTreeMap::from([("h_sum".to_owned(), 1.0)]);
    assert_eq!(fallen_among(&samples, &lower, |_| true), ["h_sum went from 1.5 to 1"]);
    assert_eq!(sample(text, "h_count"), Some(2.0));
}
