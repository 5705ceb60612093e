//! How long things take, for metrics: histograms that a request can afford.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Upper bounds of the buckets; beyond the last there is one more. From a loopback answer to two starts that took all their time.
pub const BOUNDS: [Duration; 17] = [
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2_500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2_500),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_secs(60),
    Duration::from_secs(120),
];

/// The same in nanoseconds, which are compared in one step.
const BOUNDS_NS: [u64; BOUNDS.len()] = {
    let mut ns = [0; BOUNDS.len()];
    let mut index = 0;
    while index < ns.len() {
        ns[index] = BOUNDS[index].as_nanos() as u64;
        index += 1;
    }
    ns
};

/// Counts by duration: two relaxed additions each, no lock, no allocation.
#[derive(Debug, Default)]
pub struct Histogram {
    /// What took at most as long as the bound of the same index, and longer than the one before it.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum_ns: AtomicU64,
}

/// A histogram at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// By bound, what took at most that long; the last counts all.
    pub up_to: [u64; BOUNDS.len() + 1],
    pub sum: Duration,
}

impl Histogram {
    #[inline]
    pub fn observe(&self, took: Duration) {
        // Five centuries of them.
        let ns = took.as_nanos() as u64;
        let bucket = BOUNDS_NS.partition_point(|bound| *bound < ns);
        // Statistics: no other memory is published by them.
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// The count is that of the buckets, so that they never contradict each other.
    pub fn now(&self) -> Observed {
        let mut total = 0;
        let up_to = self.buckets.each_ref().map(|bucket| {
            total += bucket.load(Ordering::Relaxed);
            total
        });
        Observed { up_to, sum: Duration::from_nanos(self.sum_ns.load(Ordering::Relaxed)) }
    }
}

/// An app's, for as long as homing knows it.
#[derive(Debug, Default)]
pub struct Times {
    /// Requests that waited for a worker: until they had one, or gave up.
    pub held: Histogram,
    /// From a request on its way to a worker until the head of the answer.
    pub upstream: Histogram,
    /// From a connection that a worker refused until its request had a place again.
    pub retried: Histogram,
    /// From the seen end of a worker that had clients until these were others'.
    pub failover: Histogram,
    /// Workers that ended unasked, or were not ready in time.
    pub failures: AtomicU64,
}

/// A request that is held. Dropped, it is held no longer, for whatever reason.
pub struct Held {
    times: Arc<Times>,
    since: Instant,
}

impl Held {
    pub fn in_times(times: &Arc<Times>) -> Self {
        Self { times: Arc::clone(times), since: Instant::now() }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.times.held.observe(self.since.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_bucket_and_the_last_counts_all() {
        let histogram = Histogram::default();
        for took in [Duration::ZERO, BOUNDS[0], BOUNDS[0] + Duration::from_nanos(1), Duration::from_secs(3_600)] {
            histogram.observe(took);
        }
        let Observed { up_to, sum } = histogram.now();
        assert_eq!((up_to[0], up_to[1], up_to[16], up_to[17]), (2, 3, 3, 4));
        assert_eq!(sum, Duration::from_secs(3_600) + BOUNDS[0] * 2 + Duration::from_nanos(1));
    }

    #[test]
    fn bounds_grow() {
        assert!(BOUNDS.is_sorted_by(|a, b| a < b));
    }
}
