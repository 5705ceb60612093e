//! What workers wrote last before they ended without being asked to: for `homing status` and for homing's own log.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use lb_common::abi::BackendId;

use super::runner::Runner;
use super::{Event, Phase};

/// By app and number: one process's last lines, until the next one ends.
#[derive(Default)]
pub(super) struct LastOutput {
    of_workers: HashMap<(String, u32), Vec<String>>,
    /// While the end of a process is dealt with: its lines.
    of_the_end: Vec<String>,
}

impl LastOutput {
    pub(super) fn of(&self, app: &str, number: u32) -> &[String] {
        self.of_workers.get(&(app.to_owned(), number)).map_or(&[], Vec::as_slice)
    }

    /// Of the process whose end is being dealt with, if it wrote anything.
    pub(super) fn of_the_end(&self) -> Option<&[String]> {
        Some(self.of_the_end.as_slice()).filter(|lines| !lines.is_empty())
    }
}

impl Runner {
    /// A process has ended, with these last lines.
    pub(super) fn exited(&mut self, backend: BackendId, at: Instant, how: String, lines: Vec<String>) {
        let place = self.state.worker(backend);
        let times = place.and_then(|(app, _)| {
            let had_clients = self.state.apps[app].ring.iter().any(|slot| slot.current == backend);
            Some((Arc::clone(&self.fixed.get(app)?.times), had_clients))
        });
        let place = place.map(|(app, worker)| (self.state.apps[app].spec.name.clone(), worker.number));
        self.last_output.of_the_end = lines;
        self.happen(Event::Exited { backend, how });
        if let Some((times, true)) = &times {
            times.failover.observe(at.elapsed());
        }
        let lines = std::mem::take(&mut self.last_output.of_the_end);
        let Some(key) = place else { return };
        let app = self.state.apps.iter().find(|app| app.spec.name == key.0);
        match app.and_then(|app| app.worker(key.1)).map(|worker| &worker.phase) {
            Some(Phase::Backoff { .. } | Phase::Failed { .. }) => {
                if let Some((times, _)) = &times {
                    times.failures.fetch_add(1, Ordering::Relaxed);
                }
                self.last_output.of_workers.insert(key, lines)
            }
            _ => self.last_output.of_workers.remove(&key),
        };
    }
}
