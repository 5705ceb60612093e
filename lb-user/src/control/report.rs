//! What the control socket answers, read off the state.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lb_common::abi::{BackendId, PROMOTED_MAX, Service};
use tokio::time::Instant;

use super::launch::Running;
use super::runner::{Kernel, Runner};
use super::tally::Tally;
use crate::admin::report::{
    AppStatus, InterfaceStatus, KernelPathStatus, PastState, Status, TableStatus, WorkerStatus,
};
use crate::bindings::BINDINGS_MAX;
use crate::config::Affinity;
use crate::datapath::{Datapath, Mode};
use crate::proxy::limits::HELD_MAX;
use crate::routing::Load;

pub(super) fn kernel_status(kernel: &Kernel) -> KernelPathStatus {
    match kernel {
        Kernel::Off { reason } => KernelPathStatus {
            active: false,
            reason: Some(reason.clone()),
            interfaces: Vec::new(),
            other_lookups: Vec::new(),
        },
        Kernel::On(datapath) => KernelPathStatus {
            active: true,
            reason: None,
            other_lookups: datapath.other_lookups(),
            interfaces: datapath
                .attached()
                .iter()
                .map(|attached| InterfaceStatus {
                    name: attached.name.clone(),
                    mode: match attached.mode {
                        Mode::Native => "native",
                        Mode::Generic => "generic",
                        Mode::None => "none",
                    }
                    .to_owned(),
                    reason: attached.reason.clone(),
                    tc: Datapath::tc_programs(attached.index),
                })
                .collect(),
        },
    }
}

/// Who asks again and again is told what was so this long ago at most …
const REPORT_AGE_MIN: Duration = Duration::from_secs(1);
/// … or so many times as long as it took to look: it takes a fiftieth of control's time at most, and the walk through all
/// bindings none of it.
const REPORT_AGE_FACTOR: u32 = 50;

/// A report that is told again.
pub(super) struct Reported {
    at: Instant,
    took: Duration,
    status: Arc<Status>,
}

impl Runner {
    /// For metrics: however many ask, control's time is for its clients.
    pub(super) fn report(&mut self) -> Arc<Status> {
        let is_young =
            |last: &&Reported| last.at.elapsed() < REPORT_AGE_MIN.max(last.took.saturating_mul(REPORT_AGE_FACTOR));
        if let Some(last) = self.reported.as_ref().filter(is_young) {
            return Arc::clone(&last.status);
        }
        let begun = Instant::now();
        let tally = self.tallies.last(&self.bindings, self.services());
        let status = Arc::new(self.status_with(&tally));
        self.reported = Some(Reported { at: Instant::now(), took: begun.elapsed(), status: Arc::clone(&status) });
        status
    }

    pub(super) fn status(&mut self) -> Status {
        let tally = Tally::of(&*self.bindings, &self.services());
        self.status_with(&tally)
    }

    fn status_with(&mut self, tally: &Tally) -> Status {
        let Tally { clients, bound, promoted } = tally;
        let mut counters: BTreeMap<String, u64> = BTreeMap::new();
        if let Some(Ok(kernel)) = self.kernel.datapath().map(|datapath| datapath.counters()) {
            counters.extend(kernel.into_iter().map(|(name, value)| (name.to_owned(), value)));
            counters.insert("closed_untold".to_owned(), self.ghosts.found());
        }
        counters.extend(self.proxy.counters().iter().map(|(counter, value)| (counter.name().to_owned(), value)));
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            kernel_path: self.kernel_status.clone(),
            isolation: self.launcher.confinement.status(),
            unsaved: self.saver.unsaved().map(str::to_owned),
            apps: (0..self.state.apps.len()).map(|app| self.app_status(app, clients, promoted)).collect(),
            tables: self.tables(*bound, promoted.values().sum()),
            counters,
        }
    }

    fn tables(&self, bindings: u64, promotions: u64) -> Vec<TableStatus> {
        let room = match self.kernel {
            Kernel::On(_) => u64::from(self.config.homing.bindings),
            Kernel::Off { .. } => BINDINGS_MAX as u64,
        };
        let held = self.state.apps.iter().map(|app| self.proxy.held(app.spec.id) as u64).sum();
        let table = |name: &str, used, room| TableStatus { name: name.to_owned(), used, room };
        vec![
            table("bindings", bindings, room),
            table("promotions", promotions, u64::from(PROMOTED_MAX)),
            table("held_requests", held, HELD_MAX as u64),
        ]
    }

    fn services(&self) -> HashMap<u32, Service> {
        self.fixed.iter().map(|fixed| (fixed.service.app, fixed.service)).collect()
    }

    fn app_status(&mut self, app: usize, clients: &HashMap<BackendId, u64>, promoted: &HashMap<u32, u64>) -> AppStatus {
        let workers: Vec<WorkerStatus> = (0..self.state.apps[app].workers.len())
            .map(|at| self.worker_status(app, at, clients))
            // Of those that are not there, the ones that somebody may miss.
            .filter(|worker| worker.state != "stopped" || worker.restarts > 0 || worker.reason.is_some())
            .collect();
        let (config, state) = (&self.config.apps[app], &self.state.apps[app]);
        AppStatus {
            name: config.name.clone(),
            listen: config.listen.iter().map(ToString::to_string).collect(),
            listen_udp: config.listen_udp.iter().map(ToString::to_string).collect(),
            affinity: config.affinity.name().to_owned(),
            path: self.path_of(app).to_owned(),
            state: self.app_state(app, &workers).to_owned(),
            clients: workers.iter().map(|worker| worker.clients).sum(),
            connections: workers.iter().map(|worker| worker.connections).sum(),
            promoted_addresses: promoted.get(&state.spec.id).copied().unwrap_or(0),
            queued: self.proxy.held(state.spec.id) as u64,
            http_connections: self.proxy.connections(state.spec.id) as u64,
            min: state.spec.min,
            max: state.spec.max,
            restarting: state.restarting.is_some(),
            restart_failed: state.restart_failed.clone(),
            workers,
        }
    }

    fn path_of(&self, app: usize) -> &'static str {
        let config = &self.config.apps[app];
        if !self.kernel_status.active || config.affinity == Affinity::Cookie {
            return "http";
        }
        match (config.has_kernel_path(), config.needs_http_path()) {
            (false, _) => "http",
            (true, true) => "both",
            (true, false) => "kernel",
        }
    }

    fn app_state(&self, app: usize, workers: &[WorkerStatus]) -> &'static str {
        if self.state.stopping {
            "stopping"
        } else if workers.iter().any(|worker| worker.state == "ready") {
            "ready"
        } else if self.state.apps[app].failure().is_some() {
            "failed"
        } else if workers.iter().any(|worker| worker.state == "starting" || worker.state == "backoff") {
            "starting"
        } else {
            "idle"
        }
    }

    fn worker_status(&mut self, app: usize, at: usize, clients: &HashMap<BackendId, u64>) -> WorkerStatus {
        let worker = self.state.apps[app].workers[at].clone();
        let (connections_kernel, connections) = self.connections(worker.backend);
        let running = self.running.get(&worker.backend);
        let remote = self.remotes.get(&worker.backend);
        let address = running.map(|running| running.address.to_string());
        let load = running.map(|running| &running.load).or(remote.map(|remote| &remote.load));
        let count = |of: fn(&Load) -> &AtomicU64| load.map_or(0, |load| of(load).load(Ordering::Relaxed));
        let (requests, assigned) = (count(|load| &load.requests), count(|load| &load.assigned));
        let bound = clients.get(&worker.backend).copied().unwrap_or(0);
        let id = format!("{}/{}", self.config.apps[app].name, worker.number);
        let drained = (worker.drained && worker.state_name() == "stopped")
            .then(|| format!("drained by an operator; homing undrain {id} takes that back"));
        WorkerStatus {
            pid: running.map(Running::pid),
            state: worker.state_name().to_owned(),
            reason: worker.reason().map(str::to_owned).or_else(|| remote?.obstacle.clone()).or(drained),
            ends_within_seconds: worker.phase.ends_at().map(|at| at.saturating_sub(self.started.elapsed()).as_secs()),
            last_output: self.last_output.of(&self.config.apps[app].name, worker.number).to_vec(),
            generation: worker.backend.generation(),
            clients: match self.config.apps[app].affinity_in_force() {
                Affinity::Ip => bound,
                Affinity::Cookie => assigned,
                Affinity::Auto => bound + assigned,
            },
            connections,
            connections_kernel,
            requests,
            restarts: worker.restarts,
            unresponsive: worker.is_unresponsive(),
            memory_bytes: running.map(|running| running.process.memory_bytes()),
            memory_kills: running.and_then(|running| running.process.memory_kills()).map(|kills| kills.count),
            address: address.or_else(|| remote.map(|remote| remote.address.to_string())),
            started_at: running.map(|running| running.started_at),
            history: worker.history.iter().map(|(at, state)| self.past(*at, state)).collect(),
            id,
        }
    }

    fn past(&self, at: super::Moment, state: &str) -> PastState {
        let ago = self.started.elapsed().saturating_sub(at);
        let at = std::time::SystemTime::now().checked_sub(ago).unwrap_or(std::time::UNIX_EPOCH);
        let at = at.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        PastState { at, state: state.to_owned() }
    }

    /// APP/N of the worker that this is.
    pub(super) fn id(&self, backend: BackendId) -> Option<String> {
        let (app, worker) = self.state.worker(backend)?;
        Some(format!("{}/{}", self.config.apps[app].name, worker.number))
    }
}
