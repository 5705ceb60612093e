//! The one task that owns the state: turns what happens into events, and effects into what is done.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lb_common::abi::{BackendId, SERVICE_HTTP_ONLY, Service, ServiceKey};
use lb_common::affinity;
use lb_common::maglev;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::launch::{Launcher, Message, Running};
use super::persist::Saved;
use super::snapshot::{Fixed, snapshot};
use super::state::{AppSpec, Phase, State};
use super::{Effect, Event, Severity, step};
use crate::admin::report::KernelPathStatus;
use crate::admin::server::Request;
use crate::config::{Affinity, Config};
use crate::datapath::Datapath;
use crate::proxy::{CookieKeys, Proxy};
use crate::routing::{Bindings, Notice, Snapshot};

/// Between looks at draining workers' connections.
const HOUSEKEEPING: Duration = Duration::from_millis(500);
/// Between scans for slots whose transition has ended.
const SETTLE: Duration = Duration::from_secs(10);

/// What the runner is given: opened, bound and locked before it starts.
pub struct Parts {
    pub config: Config,
    pub keys: CookieKeys,
    pub kernel: Kernel,
    pub bindings: Arc<dyn Bindings>,
    pub snapshots: watch::Sender<Arc<Snapshot>>,
    pub notices: mpsc::Receiver<Notice>,
    pub requests: mpsc::Receiver<Request>,
    pub proxy: Proxy,
}

/// The kernel path, or why there is none.
pub enum Kernel {
    On(Box<Datapath>),
    Off { reason: String },
}

impl Kernel {
    pub(super) fn datapath(&mut self) -> Option<&mut Datapath> {
        match self {
            Self::On(datapath) => Some(datapath),
            Self::Off { .. } => None,
        }
    }
}

pub struct Runner {
    pub(super) config: Config,
    pub(super) state: State,
    pub(super) fixed: Vec<Fixed>,
    pub(super) kernel: Kernel,
    pub(super) kernel_status: KernelPathStatus,
    pub(super) bindings: Arc<dyn Bindings>,
    pub(super) running: HashMap<BackendId, Running>,
    pub(super) proxy: Proxy,
    pub(super) started: Instant,
    launcher: Launcher,
    messages: mpsc::Receiver<Message>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    notices: mpsc::Receiver<Notice>,
    requests: mpsc::Receiver<Request>,
    /// Nothing is saved before all that could be adopted is: a crash in between must not forget the rest.
    adopting: bool,
    exiting: bool,
}

impl Runner {
    /// Adopts what an earlier run left, publishes services and rings, and starts what is missing.
    ///
    /// # Errors
    /// When the configuration asks for more than homing can hold, or the kernel refuses an entry.
    pub fn start(parts: Parts) -> anyhow::Result<Self> {
        let Parts { config, keys, kernel, bindings, snapshots, notices, requests, proxy } = parts;
        let specs: Vec<AppSpec> = config.apps.iter().map(spec).collect();
        let fixed = config.apps.iter().enumerate().map(|(number, app)| fix(number, app, &keys)).collect();
        let (launcher, messages) = Launcher::new(&config.homing, matches!(kernel, Kernel::On(_)));
        let kernel_status = super::report::kernel_status(&kernel);
        let mut runner = Self {
            state: State::new(specs)?,
            config,
            fixed,
            kernel,
            kernel_status,
            bindings,
            running: HashMap::new(),
            proxy,
            started: Instant::now(),
            launcher,
            messages,
            snapshots,
            notices,
            requests,
            adopting: true,
            exiting: false,
        };
        runner.publish_services()?;
        runner.adopt();
        runner.adopting = false;
        // Also where nothing is started: requests for an app without workers are held, not unknown.
        runner.publish_snapshot();
        runner.happen(Event::Boot);
        Ok(runner)
    }

    /// Serves until everything has ended; then takes the kernel path down.
    ///
    /// # Errors
    /// When pins could not be removed.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        let mut settling = tokio::time::interval(SETTLE);
        while !self.exiting {
            let due = self.state.next_deadline().map(|at| self.started + at);
            tokio::select! {
                Some(message) = self.messages.recv() => self.receive(message),
                Some(notice) = self.notices.recv() => self.notice(notice),
                Some(request) = self.requests.recv() => self.answer(request),
                () = sleep_until(due) => self.happen(Event::Tick),
                _ = housekeeping.tick() => self.look_at_draining(),
                _ = settling.tick() => self.look_at_transitions(),
                Some(()) = terminate.recv() => self.stop(false),
                Some(()) = interrupt.recv() => self.stop(false),
            }
        }
        Saved::remove(&self.config.homing.state_dir);
        if let Kernel::On(datapath) = self.kernel {
            datapath.close()?;
        }
        Ok(())
    }

    /// The first time drains, the second ends.
    fn stop(&mut self, now: bool) {
        let now = now || self.state.stopping;
        tracing::info!(
            "{}",
            if now { "stopping at once" } else { "draining, then stopping; asked again it stops at once" }
        );
        self.happen(Event::Stop { now });
    }

    fn receive(&mut self, message: Message) {
        match message {
            Message::Ready { backend, listeners } => {
                if let Some(running) = self.running.get_mut(&backend) {
                    running.listeners = listeners;
                }
                self.happen(Event::Ready { backend });
            }
            Message::Exited { backend, how } => {
                self.running.remove(&backend);
                self.happen(Event::Exited { backend, how });
            }
        }
    }

    fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::Demand { app } => self.happen(Event::Demand { app: app as usize }),
            // Its exit, if that is why, arrives by itself.
            Notice::Unreachable { backend } => tracing::debug!(?backend, "a worker refused a connection"),
        }
    }

    fn answer(&mut self, request: Request) {
        match request {
            Request::Status(answer) => drop(answer.send(self.status())),
            Request::Trace { app, address, answer } => drop(answer.send(self.trace(&app, address))),
            Request::Stop { now } => self.stop(now),
        }
    }

    /// One event and all that follows from it.
    fn happen(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        let mut changed = false;
        while let Some(event) = events.pop_front() {
            let (state, effects) = step(std::mem::take(&mut self.state), event, self.started.elapsed());
            self.state = state;
            changed |= !effects.is_empty();
            for effect in effects {
                events.extend(self.perform(effect));
            }
        }
        if changed {
            self.publish_snapshot();
            if !self.adopting {
                self.save();
            }
        }
    }

    fn publish_snapshot(&self) {
        let next = snapshot(&self.state, &self.config.apps, &self.fixed, &self.running);
        self.snapshots.send_replace(Arc::new(next));
    }

    /// Does what was decided; what goes wrong comes back as an event.
    fn perform(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Spawn { app, number, backend } => {
                let config = &self.config.apps[app];
                let taken = self.running.values().map(|running| running.address.port()).collect();
                match self.launcher.spawn(config, number, backend, &taken) {
                    Ok(running) => {
                        tracing::info!(app = %config.name, worker = number, pid = running.pid(), "started a worker");
                        self.running.insert(backend, running);
                    }
                    Err(reason) => return Some(Event::NotStarted { backend, reason }),
                }
            }
            Effect::Enlist { backend } => {
                let running = self.running.get_mut(&backend)?;
                // Dropped here: a duplicate that stayed open would outlive the worker.
                let listeners = std::mem::take(&mut running.listeners);
                running.families = listeners.iter().fold((false, false), |(v4, v6), l| (v4 | l.v4, v6 | l.v6));
                self.table("enlist a worker", |datapath| datapath.enlist(backend, &listeners));
            }
            Effect::Retire { backend } => self.table("retire a worker", |datapath| datapath.retire(backend)),
            Effect::PublishRing { app } => {
                let ring = Arc::clone(&self.state.apps[app].ring);
                self.table("publish a ring", |datapath| datapath.publish_ring(app as u32, &ring));
            }
            Effect::Signal { backend, signal } => {
                if let Some(running) = self.running.get(&backend) {
                    running.signal(signal);
                }
            }
            Effect::Say { severity, app, number, text } => {
                let app = &self.config.apps[app].name;
                let output = self.launcher.log_file(app, number);
                match severity {
                    Severity::Warning => tracing::warn!(%app, worker = number, output = %output.display(), "{text}"),
                    Severity::Error => tracing::error!(%app, worker = number, output = %output.display(), "{text}"),
                }
            }
            Effect::Exit => self.exiting = true,
        }
        None
    }

    /// A map operation that fails leaves the HTTP path to serve: it is said, and serving goes on.
    fn table(&mut self, what: &str, change: impl FnOnce(&mut Datapath) -> Result<(), crate::datapath::TableError>) {
        if let Some(Err(error)) = self.kernel.datapath().map(change) {
            tracing::error!(%error, "the kernel did not {what}; its clients are served on the HTTP path");
        }
    }

    fn publish_services(&mut self) -> anyhow::Result<()> {
        let services: Vec<_> = self
            .config
            .apps
            .iter()
            .zip(&self.fixed)
            .flat_map(|(app, fixed)| {
                app.listen.iter().map(|at| (ServiceKey::tcp(at.ip().into(), at.port()), fixed.service))
            })
            .collect();
        if let Some(datapath) = self.kernel.datapath() {
            datapath.publish_services(&services)?;
        }
        Ok(())
    }

    /// Takes over the workers, rings and ids that an earlier run left.
    fn adopt(&mut self) {
        let saved = Saved::read(&self.config.homing.state_dir);
        self.state.resume_after(saved.last_ids.iter().map(|&id| BackendId(id)));
        for (number, app) in self.state.apps.iter_mut().enumerate() {
            let same_app = saved.apps.get(number) == Some(&app.spec.name);
            let ring = self.kernel.datapath().and_then(|datapath| datapath.ring(number as u32));
            if let (true, Some(ring)) = (same_app, ring)
                && ring.len() == app.ring.len()
            {
                app.ring = ring.into();
            }
        }
        let mut adopted = Vec::new();
        for worker in &saved.workers {
            let app = self.config.apps.iter().position(|app| app.name == worker.app && app.command == worker.command);
            let wanted = app.filter(|&app| worker.number < self.config.apps[app].workers.max);
            let backend = BackendId(worker.backend);
            match self.launcher.adopt(worker, backend, wanted.is_some()) {
                Some(running) => {
                    tracing::info!(app = %worker.app, worker = worker.number, pid = worker.pid, "adopted a worker");
                    self.running.insert(backend, running);
                    adopted.push(backend);
                    let app = wanted.expect("only wanted workers are adopted");
                    self.happen(Event::Adopted { app, number: worker.number, backend });
                }
                None => tracing::info!(app = %worker.app, worker = worker.number, "a worker of the last run is gone"),
            }
        }
        self.table("forget the last run's workers", |datapath| datapath.retire_others(&adopted));
    }

    fn save(&self) {
        let workers = self
            .state
            .apps
            .iter()
            .zip(&self.config.apps)
            .flat_map(|(app, config)| app.workers.iter().map(move |worker| (worker, config)))
            .filter_map(|(worker, config)| {
                Some(self.running.get(&worker.backend)?.saved(config, worker.number, worker.backend))
            })
            .collect();
        let apps = self.config.apps.iter().map(|app| app.name.clone()).collect();
        let saved = Saved::new(&self.state.last_ids(), apps, workers);
        if let Err(error) = saved.write(&self.config.homing.state_dir) {
            tracing::error!(%error, "the state could not be saved; workers will not be adopted if homing ends now");
        }
    }

    /// The picture as it was last published.
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshots.borrow())
    }

    /// Connections that keep a worker busy, on both paths.
    pub(super) fn connections(&mut self, backend: BackendId) -> u64 {
        let http = self.running.get(&backend).map_or(0, |running| running.load.open.load(Ordering::Relaxed));
        let kernel = self.kernel.datapath().map_or(0, |datapath| datapath.live(backend).connections);
        kernel + u64::from(http)
    }

    fn look_at_draining(&mut self) {
        let draining: Vec<BackendId> = self
            .state
            .apps
            .iter()
            .flat_map(|app| &app.workers)
            .filter(|worker| matches!(worker.phase, Phase::Draining { .. }))
            .map(|worker| worker.backend)
            .collect();
        for backend in draining {
            if self.connections(backend) == 0 {
                self.happen(Event::Idle { backend });
            }
        }
    }

    fn look_at_transitions(&mut self) {
        let in_transition = |app: &super::App| app.ring.iter().any(|slot| !slot.previous.is_none());
        let apps: Vec<usize> = (0..self.state.apps.len()).filter(|&app| in_transition(&self.state.apps[app])).collect();
        if apps.is_empty() {
            return;
        }
        let bindings = self.bindings.all();
        let now_s = self.bindings.now_s();
        for app in apps {
            let service = &self.fixed[app].service;
            let ring = &self.state.apps[app].ring;
            let mut held: Vec<u32> = bindings
                .iter()
                .filter(|(key, binding)| {
                    key.app as usize == app
                        && self.state.worker(binding.backend).is_some()
                        && affinity::is_fresh(service, binding, now_s)
                })
                .map(|(key, binding)| (affinity::slot_of(service, key.client), binding.backend))
                .filter(|&(slot, backend)| ring[slot as usize].current != backend)
                .map(|(slot, _)| slot)
                .collect();
            held.sort_unstable();
            held.dedup();
            self.happen(Event::Settled { app, held });
        }
    }
}

fn spec(app: &crate::config::App) -> AppSpec {
    AppSpec {
        name: app.name.clone(),
        min: app.workers.min,
        max: app.workers.max,
        start: app.timeouts.start,
        drain: app.timeouts.drain,
        ring_len: maglev::ring_len(app.workers.max),
    }
}

fn fix(number: usize, app: &crate::config::App, keys: &CookieKeys) -> Fixed {
    /// Bits of an address in its IPv4-mapped form before the IPv4 part.
    const V4_OFFSET: u16 = 96;
    Fixed {
        service: Service {
            seed: keys.derive(&format!("ring {}", app.name)),
            app: number as u32,
            ring_len: maglev::ring_len(app.workers.max),
            flags: if app.affinity == Affinity::Cookie { SERVICE_HTTP_ONLY } else { 0 },
            v4_bits: V4_OFFSET + u16::from(app.client.ipv4),
            v6_bits: u16::from(app.client.ipv6),
            affinity_s: u32::try_from(app.timeouts.affinity.as_secs()).unwrap_or(u32::MAX),
            reserved: 0,
        },
        cookie: Arc::new(app.cookie.clone()),
        name: app.name.as_str().into(),
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
