//! The last hour of each app, for the dashboard: who opens it wants to see what was before.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::Sources;
use super::answer::report;
use crate::admin::report::Status;

/// Between samples.
const INTERVAL: Duration = Duration::from_secs(10);
/// An hour of them.
const SAMPLES_MAX: usize = 360;
/// Apps that are remembered, the first ones of the configuration.
const APPS_MAX: usize = 64;

/// Clients, connections, and bytes of memory of one app.
type Values = [u64; 3];

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Sample {
    /// Unix time, seconds.
    at: u64,
    apps: BTreeMap<String, Values>,
}

#[derive(Clone, Default)]
pub(super) struct History(Arc<Mutex<VecDeque<Sample>>>);

impl History {
    /// Goes on for as long as control answers.
    pub(super) async fn keep(self, sources: Sources) {
        let mut ticks = tokio::time::interval(INTERVAL);
        loop {
            ticks.tick().await;
            if let Some(status) = report(&sources).await {
                let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
                self.add(at, &status);
            }
        }
    }

    fn add(&self, at: u64, status: &Status) {
        let apps = status.apps.iter().take(APPS_MAX).map(|app| {
            let memory = app.workers.iter().filter_map(|worker| worker.memory_bytes).sum();
            (app.name.clone(), [app.clients, app.connections, memory])
        });
        let apps = apps.collect();
        let mut samples = self.samples();
        if samples.len() >= SAMPLES_MAX {
            samples.pop_front();
        }
        samples.push_back(Sample { at, apps });
    }

    /// Those after that second.
    pub(super) fn since(&self, at: u64) -> Vec<Sample> {
        self.samples().iter().filter(|sample| sample.at > at).cloned().collect()
    }

    fn samples(&self) -> MutexGuard<'_, VecDeque<Sample>> {
        // A panic cannot leave it half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_is_kept_and_told_from_a_moment_on() {
        let history = History::default();
        let status = crate::metrics::render::tests::status();
        for at in 1..=400 {
            history.add(at, &status);
        }
        assert_eq!(history.since(0).len(), SAMPLES_MAX);
        let last = history.since(399);
        assert_eq!(last, [Sample { at: 400, apps: BTreeMap::from([("sales".to_owned(), [3, 5, 8_192])]) }]);
        assert_eq!(history.since(400), []);
    }
}
