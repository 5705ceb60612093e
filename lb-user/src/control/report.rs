//! What the control socket answers, read off the state.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lb_common::abi::{BackendId, Binding, BindingKey, PROMOTED_MAX, Service};
use lb_common::addr::Addr;
use lb_common::affinity::{self, Choice};
use tokio::time::Instant;

use super::launch::Running;
use super::runner::{Kernel, Runner};
use super::tally::Tally;
use crate::admin::report::{
    AppStatus, BindingReport, InterfaceStatus, KernelPathStatus, PastState, Status, TableStatus, Trace, WorkerStatus,
};
use crate::admin::unknown_app;
use crate::bindings::BINDINGS_MAX;
use crate::config::{self, Affinity, Forward};
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
            memory_bytes: running.map(|running| running.process.memory_bytes()),
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

    /// Where this address goes now, decided by the datapath's own function over the tables of this moment.
    pub(super) fn trace(&mut self, name: &str, address: IpAddr) -> Result<Trace, String> {
        let Some(app) = self.config.apps.iter().position(|app| app.name == name) else {
            return Err(unknown_app(name, self.config.apps.iter().map(|app| app.name.as_str())));
        };
        let route = std::sync::Arc::clone(&self.snapshot().apps[&self.state.apps[app].spec.id]);
        let service = self.fixed[app].service;
        let client = affinity::client_of(&service, Addr::from(address));
        let slot_number = affinity::slot_of(&service, client);
        let slot = route.ring[slot_number as usize];
        let key = BindingKey { client, app: service.app, reserved: 0 };
        let binding = self.bindings.get(&key);
        let by_cookie = self.config.apps[app].affinity == Affinity::Cookie;
        let promotion = self.bindings.promotion(&key).filter(|_| route.affinity == Affinity::Auto);
        let choice = match promotion {
            _ if by_cookie => Choice::HttpOnly,
            Some(_) => Choice::Promoted,
            None => route.choose(&*self.bindings, address),
        };
        let worker = choice.backend().and_then(|backend| self.id(backend));
        let takes_family = choice.backend().is_some_and(|backend| self.takes_directly(backend, address));
        let is_denied = self.config.apps[app].protect.is_denied(address);
        let has_kernel_path = self.config.apps[app].has_kernel_path();
        let by_kernel = self.kernel_status.active && takes_family && has_kernel_path;
        let prefix = prefix(&self.config.apps[app].client, client);
        let mut steps = vec![format!("client: {address} counts as {prefix}")];
        let mut would_change = Vec::new();
        if is_denied {
            steps.push("denied by the app's lists: its new connections are refused".to_owned());
            would_change.push("protect.allow and protect.deny in the app's configuration".to_owned());
        } else if let Some(promotion) = promotion {
            let ago = self.bindings.now_s().wrapping_sub(promotion.seen_s);
            steps.push(format!(
                "promoted: more than {} connections at once; the HTTP path tells its users apart by cookie, one of them was \
                 seen {ago} s ago",
                service.promote_above
            ));
            let by_address = route.choose(&*self.bindings, address).backend().and_then(|backend| self.id(backend));
            let by_address = by_address.unwrap_or_else(|| "nobody".to_owned());
            steps
                .push(format!("a request without a cookie that asks for no page goes by the address: to {by_address}"));
            would_change.push("none of its users is seen for timeouts.affinity".to_owned());
        } else if by_cookie {
            steps.push("affinity is by cookie: the HTTP path decides, an address does not".to_owned());
            would_change.push("affinity = \"ip\" in the app's configuration".to_owned());
        } else {
            let owner = self.id(slot.current).unwrap_or_else(|| "nobody".to_owned());
            steps.push(format!("ring: slot {slot_number} of {}, owned by {owner}", route.ring.len()));
            if slot.previous.is_none() {
                steps.push("the slot is stable: bindings are not asked".to_owned());
            } else {
                steps.push("the slot is in transition: a live binding goes before the ring".to_owned());
            }
            steps.push(match &binding {
                Some(binding) => self.binding_in_words(binding),
                None => "binding: none".to_owned(),
            });
            steps.push(self.delivery(choice, by_kernel, worker.as_deref()));
            would_change.push(match choice {
                Choice::Bound(_) => {
                    "the bound worker ends, or the client stays away beyond timeouts.affinity".to_owned()
                }
                Choice::Ring(_) => "the worker ends or is drained; the client then keeps its next worker".to_owned(),
                Choice::NoWorker | Choice::HttpOnly | Choice::Promoted => "a worker becomes ready".to_owned(),
            });
            if !by_kernel && choice.backend().is_some() {
                would_change.push(
                    if self.kernel_status.active && self.config.apps[app].has_workers_on_unix_sockets() {
                        "workers on ports, `{port}` in place of `{socket}`, are reached by the kernel path".to_owned()
                    } else if self.kernel_status.active && !has_kernel_path {
                        "an address of the app's own, without `hosts`, `path` and `tls`, has the kernel path".to_owned()
                    } else if self.kernel_status.active {
                        "a worker that listens on this address family too goes by the kernel path".to_owned()
                    } else {
                        format!("the kernel path: {}", self.kernel_status.reason.as_deref().unwrap_or("off"))
                    },
                );
            }
        }
        Ok(Trace {
            app: name.to_owned(),
            address,
            client: prefix,
            path: if is_denied {
                "none"
            } else if by_kernel {
                "kernel"
            } else {
                "http"
            }
            .to_owned(),
            rule: match choice {
                _ if is_denied => "denied",
                Choice::Ring(_) => "ring",
                Choice::Bound(_) => "bound",
                Choice::HttpOnly => "cookie",
                Choice::Promoted => "promoted",
                Choice::NoWorker => "no_worker",
            }
            .to_owned(),
            worker: worker.filter(|_| !is_denied),
            slot: (!by_cookie && promotion.is_none()).then_some(slot_number),
            ring_len: route.ring.len() as u32,
            in_transition: !slot.previous.is_none(),
            binding: binding.map(|binding| BindingReport {
                worker: self.id(binding.backend),
                connections: binding.connections,
                seen_seconds_ago: self.bindings.now_s().wrapping_sub(binding.seen_s),
                live: route.worker(binding.backend).is_some(),
            }),
            steps,
            would_change,
        })
    }

    fn binding_in_words(&self, binding: &Binding) -> String {
        let ago = self.bindings.now_s().wrapping_sub(binding.seen_s);
        match self.id(binding.backend) {
            Some(worker) => format!("binding: {worker}, {} connections, last seen {ago} s ago", binding.connections),
            None => format!("binding: a worker that is gone, last seen {ago} s ago; it does not count"),
        }
    }

    fn delivery(&self, choice: Choice, by_kernel: bool, worker: Option<&str>) -> String {
        match (choice.backend(), by_kernel) {
            (Some(backend), true) => match self.remotes.get(&backend) {
                Some(remote) => format!(
                    "delivery: XDP forwards every packet to {} at {} ({})",
                    worker.unwrap_or("the backend"),
                    remote.address,
                    remote.forward.name()
                ),
                None => format!("delivery: the kernel hands the connection to {}", worker.unwrap_or("the worker")),
            },
            (Some(backend), false) if self.remotes.contains_key(&backend) => {
                format!("delivery: the HTTP path forwards to {}", worker.unwrap_or("the backend"))
            }
            (Some(backend), false) if self.is_on_unix_socket(backend) => format!(
                "delivery: {} listens on a unix socket, so the HTTP path forwards to it",
                worker.unwrap_or("the worker")
            ),
            (Some(backend), false) if self.is_http_only(backend) => format!(
                "delivery: the HTTP path forwards to {}; it ends TLS, or reads whose a request is",
                worker.unwrap_or("the worker")
            ),
            (Some(_), false) if self.kernel_status.active => format!(
                "delivery: {} does not listen on this address family, so the HTTP path forwards to it",
                worker.unwrap_or("the worker")
            ),
            (Some(_), false) => format!("delivery: the HTTP path forwards to {}", worker.unwrap_or("the worker")),
            (None, _) => "delivery: the HTTP path holds the request until a worker is ready".to_owned(),
        }
    }

    /// Whether the kernel can bring a connection from this address to the backend.
    fn takes_directly(&self, backend: BackendId, address: IpAddr) -> bool {
        if let Some(remote) = self.remotes.get(&backend) {
            return remote.forward != Forward::Http;
        }
        self.running.get(&backend).is_some_and(|running| {
            let (v4, v6) = running.families;
            if Addr::from(address).is_v4() { v4 } else { v6 }
        })
    }

    fn is_http_only(&self, backend: BackendId) -> bool {
        self.state.worker(backend).is_some_and(|(app, _)| self.config.apps[app].http_only().is_some())
    }

    fn is_on_unix_socket(&self, backend: BackendId) -> bool {
        self.running.get(&backend).is_some_and(|running| running.address.port().is_none())
    }

    /// APP/N of the worker that this is.
    fn id(&self, backend: BackendId) -> Option<String> {
        let (app, worker) = self.state.worker(backend)?;
        Some(format!("{}/{}", self.config.apps[app].name, worker.number))
    }
}

fn prefix(config: &config::Client, client: Addr) -> String {
    let bits = if client.is_v4() { config.ipv4 } else { config.ipv6 };
    format!("{}/{bits}", IpAddr::from(client))
}
