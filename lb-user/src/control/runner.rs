//! The one task that owns the state: turns what happens into events, and effects into what is done.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lb_common::abi::BackendId;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::certificates::Certificates;
use super::doors::Doors;
use super::fixed::{self, Fixed};
use super::fronts::Fronts;
use super::ghosts::Ghosts;
use super::last_output::LastOutput;
use super::launch::{Launcher, Message, Running};
use super::predecessor::{Elsewhere, Predecessor};
use super::remotes::{self, Remote};
use super::report::Reported;
use super::saver::Saver;
use super::snapshot::snapshot;
use super::state::{AppSpec, Kind, State};
use super::tally::Tallies;
use super::taps::Listeners;
use super::{Effect, Event, Severity, step};
use crate::admin::report::KernelPathStatus;
use crate::admin::server::Request;
use crate::config::{App, Config};
use crate::datapath::{Changes, Datapath};
use crate::metrics::Metrics;
use crate::output::{Keeper, Policy};
use crate::proxy::{CookieKeys, Proxy};
use crate::routing::{Bindings, Load, Notice, Snapshot};

/// Between looks at workers' connections.
const HOUSEKEEPING: Duration = Duration::from_millis(500);
/// Between scans for slots whose transition, and clients whose promotion, has ended, and for programs of others.
const SETTLE: Duration = Duration::from_secs(10);

/// What the runner is given: opened, bound and locked before it starts.
pub struct Parts {
    /// Where the configuration was read from.
    pub file: Option<PathBuf>,
    pub config: Config,
    pub keys: CookieKeys,
    pub kernel: Kernel,
    pub bindings: Arc<dyn Bindings>,
    pub snapshots: watch::Sender<Arc<Snapshot>>,
    pub notices: mpsc::Receiver<Notice>,
    pub requests: mpsc::Receiver<Request>,
    pub proxy: Proxy,
    /// One for each listen address.
    pub listeners: Vec<(SocketAddr, TcpListener)>,
    /// Where the homing that this one replaced says what it still serves.
    pub predecessor: Option<PathBuf>,
    /// Not configured yet.
    pub metrics: Metrics,
    /// For it, where one is wanted.
    pub metrics_listener: Option<TcpListener>,
}

/// How a run ended.
pub enum Ended {
    /// Everything has.
    Stopped,
    /// Another homing has taken over.
    Replaced(Box<Predecessor>),
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
    pub(super) file: Option<PathBuf>,
    pub(super) keys: CookieKeys,
    /// Its apps stand in the order of the state's, removed ones among them while they have workers.
    pub(super) config: Config,
    pub(super) state: State,
    pub(super) fixed: Vec<Fixed>,
    /// What is behind each listen address.
    pub(super) fronts: Fronts,
    pub(super) certificates: Certificates,
    pub(super) kernel: Kernel,
    pub(super) kernel_status: KernelPathStatus,
    pub(super) bindings: Arc<dyn Bindings>,
    pub(super) running: HashMap<BackendId, Running>,
    pub(super) remotes: HashMap<BackendId, Remote>,
    pub(super) proxy: Proxy,
    pub(super) doors: Doors,
    pub(super) metrics: Metrics,
    /// What metrics were last told.
    pub(super) reported: Option<Reported>,
    pub(super) tallies: Tallies,
    pub(super) listeners: Listeners,
    /// What homings that were replaced still serve.
    elsewhere: Elsewhere,
    /// Connections of the kernel path, and on both paths, as last looked at.
    pub(super) by_kernel: HashMap<BackendId, u64>,
    pub(super) loads: Vec<(BackendId, u64)>,
    pub(super) ghosts: Ghosts,
    /// Apps whose ring the kernel has not taken: an earlier one decides there.
    pub(super) stale_rings: BTreeSet<u32>,
    pub(super) started: Instant,
    pub(super) launcher: Launcher,
    pub(super) saver: Saver,
    /// Keeps workers' output within its limits.
    pub(super) keeper: Keeper,
    /// As the keeper was last told.
    policy: Policy,
    pub(super) last_output: LastOutput,
    messages: mpsc::Receiver<Message>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    notices: mpsc::Receiver<Notice>,
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) restart_files: super::reload::RestartFiles,
    /// By app: whether the HTTP path may hold connections of a service that is otherwise remote backends' alone.
    pub(super) sockets: Vec<bool>,
    /// By app: whether it did not when last looked at.
    pub(super) calm: Vec<bool>,
    /// Connections that had found no socket of their worker when last looked at.
    pub(super) missed: u64,
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
        let Parts { file, config, keys, mut kernel, bindings, snapshots, notices, requests, proxy, .. } = parts;
        let Parts { listeners, predecessor, metrics, metrics_listener, .. } = parts;
        let (saver, found) = Saver::open(&config.homing.state_dir);
        let ids = super::reload::number(&config.apps, &found.numbers());
        let has_kernel = matches!(kernel, Kernel::On(_));
        let numbered = || ids.iter().zip(&config.apps);
        let specs: Vec<AppSpec> = numbered().map(|(&id, app)| fixed::spec(id, app)).collect();
        let fixed = numbered().map(|(&id, app)| fixed::fix(id, app, &keys)).collect();
        let (launcher, messages) = Launcher::new(&config.homing, has_kernel);
        let kernel_status = super::report::kernel_status(&kernel);
        let sockets = vec![true; config.apps.len()];
        let elsewhere = Elsewhere::watch(&config.homing.state_dir, predecessor);
        let mut runner = Self {
            state: State::new(specs, config.homing.starts_at_once as usize)?,
            file,
            keys,
            saver,
            keeper: Keeper::start(Policy::of(&config)),
            policy: Policy::of(&config),
            last_output: LastOutput::default(),
            config,
            fixed,
            fronts: Fronts::default(),
            certificates: Certificates::new().map_err(anyhow::Error::msg)?,
            kernel_status,
            bindings,
            running: HashMap::new(),
            remotes: HashMap::new(),
            doors: Doors::new(proxy.clone()),
            metrics,
            reported: None,
            tallies: Tallies::default(),
            listeners: Listeners::new(proxy.live().clone(), &mut kernel, snapshots.subscribe()),
            kernel,
            elsewhere,
            proxy,
            by_kernel: HashMap::new(),
            loads: Vec::new(),
            ghosts: Ghosts::default(),
            stale_rings: BTreeSet::new(),
            started: Instant::now(),
            launcher,
            messages,
            snapshots,
            notices,
            requests,
            restart_files: HashMap::new(),
            calm: vec![false; sockets.len()],
            sockets,
            missed: 0,
            adopting: true,
            exiting: false,
        };
        if let Some(why) = runner.certificates.fit(&runner.config.apps).into_iter().next() {
            anyhow::bail!(why);
        }
        runner.look_at_fronts();
        runner.publish_protection()?;
        runner.publish_services()?;
        runner.adopt(found);
        runner.adopting = false;
        // Also where nothing is started: requests for an app without workers are held, not unknown.
        runner.publish_snapshot();
        runner.happen(Event::Boot);
        runner.open_doors(listeners)?;
        runner.metrics.configure(runner.config.homing.metrics.as_ref(), metrics_listener)?;
        Ok(runner)
    }

    /// Serves until everything has ended, then takes the kernel path down; or until another homing takes over. `requesters`:
    /// for who asks after that.
    ///
    /// # Errors
    /// When pins could not be removed.
    pub async fn run(mut self, requesters: mpsc::Sender<Request>) -> anyhow::Result<Ended> {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        let mut settling = tokio::time::interval(SETTLE);
        let changes = match Changes::watch() {
            Ok(changes) => Some(changes).filter(|_| self.kernel.datapath().is_some()),
            Err(error) => {
                tracing::warn!(%error, "no news of interfaces; they stay as they are until homing is started again");
                None
            }
        };
        let mut hangup = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup())?;
        while !self.exiting {
            let due = self.state.next_deadline().map(|at| self.started + at);
            tokio::select! {
                Some(message) = self.messages.recv() => self.receive(message),
                Some(notice) = self.notices.recv() => self.notice(notice),
                Some(request) = self.requests.recv() => match request {
                    Request::Yield { force, answer } => match self.busy().filter(|_| !force) {
                        Some(why) => drop(answer.send(Err(why))),
                        None => {
                            self.save();
                            self.saver.settle().await;
                            let _ = answer.send(Ok(self.bound().await));
                            return Ok(Ended::Replaced(Box::new(self.yielded(requesters))));
                        }
                    },
                    request => self.answer(request),
                },
                () = sleep_until(due) => self.happen(Event::Tick),
                _ = housekeeping.tick() => {
                    self.look_at_loads();
                    self.look_at_sockets();
                    self.look_at_rings();
                    self.look_at_listeners();
                    self.look_at_restart_files();
                    self.look_at_certificates(false);
                    self.look_at_listeners_to_decisions();
                }
                _ = settling.tick() => {
                    self.look_at_transitions();
                    self.look_at_promotions();
                    self.look_at_groups();
                    self.look_at_others();
                    self.look_at_ghosts();
                    if self.saver.is_behind() {
                        self.save();
                    }
                }
                () = changed(changes.as_ref()) => self.look_at_interfaces(),
                Some(()) = terminate.recv() => self.stop(false),
                Some(()) = interrupt.recv() => self.stop(false),
                Some(()) = hangup.recv() => self.hang_up(),
            }
        }
        self.doors.end().await;
        self.launcher.confinement.finish().await;
        self.saver.finish().await;
        if let Kernel::On(datapath) = self.kernel {
            datapath.close()?;
        }
        Ok(Ended::Stopped)
    }

    /// The first time drains, the second ends.
    pub(super) fn stop(&mut self, now: bool) {
        let now = now || self.state.stopping;
        tracing::info!(
            "{}",
            if now { "stopping at once" } else { "draining, then stopping; asked again it stops at once" }
        );
        self.happen(Event::Stop { now });
    }

    fn receive(&mut self, message: Message) {
        match message {
            Message::Ready { backend, address, listeners } => {
                if let Some(running) = self.running.get_mut(&backend) {
                    running.address = address;
                    running.listeners = listeners;
                }
                self.happen(Event::Ready { backend });
            }
            Message::Listeners { backend, listeners } => self.found_listeners(backend, &listeners),
            Message::Waiting { backend, why } => self.happen(Event::Waiting { backend, why }),
            Message::Exited { backend, at, how, last_output } => {
                self.running.remove(&backend);
                self.exited(backend, at, how, last_output);
                if let Some(datapath) = self.kernel.datapath() {
                    datapath.forget(backend);
                    self.ghosts.forget(backend);
                }
            }
            Message::Answers { backend } => self.happen(Event::Answers { backend }),
            Message::Unresponsive { backend, reason } => self.happen(Event::Unresponsive { backend, reason }),
            Message::FellSilent { backend, reason } => self.happen(Event::FellSilent { backend, reason }),
        }
    }

    fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::Demand { app } => {
                if let Some(app) = self.place(app) {
                    self.happen(Event::Demand { app });
                }
            }
            // Its exit, if that is why, arrives by itself.
            Notice::Unreachable { backend } => tracing::debug!(?backend, "a worker refused a connection"),
        }
    }

    /// One event and all that follows from it.
    pub(super) fn happen(&mut self, event: Event) {
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
            self.say_whose_output_is_kept();
            if !self.adopting {
                self.save();
            }
        }
    }

    fn say_whose_output_is_kept(&mut self) {
        let mut policy = Policy::of(&self.config);
        for app in &self.state.apps {
            let processes = app.workers.iter().filter(|worker| worker.is_process());
            processes.for_each(|worker| policy.know(&app.spec.name, worker.number));
        }
        if policy != self.policy {
            self.keeper.set(policy.clone());
            self.policy = policy;
        }
    }

    pub(super) fn publish_snapshot(&self) {
        let Self { state, config, fixed, running, remotes, by_kernel, fronts, .. } = self;
        let next = snapshot(state, config, fixed, running, remotes, by_kernel, fronts);
        self.snapshots.send_replace(Arc::new(next));
    }

    /// Does what was decided; what goes wrong comes back as an event.
    fn perform(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Spawn { app, number, backend } => {
                let config = &self.config.apps[app];
                let taken = self.running.values().filter_map(|running| running.address.port()).collect();
                match self.launcher.spawn(config, number, backend, &taken) {
                    Ok(mut running) => {
                        running.load = Load::counted_in(&self.fixed[app].times);
                        tracing::info!(app = %config.name, worker = number, pid = running.pid(), "started a worker");
                        self.running.insert(backend, running);
                    }
                    Err(reason) => return Some(Event::NotStarted { backend, reason }),
                }
            }
            Effect::Watch { app, number, backend } => {
                let &App { ref backends, ref health, send_proxy, .. } = &self.config.apps[app];
                let Kind::Remote(wanted) = &self.state.apps[app].worker(number)?.kind else { return None };
                let remote = backends.iter().find(|backend| remotes::member(backend).name == wanted.name)?;
                let mut remote = Remote::watch(remote, health, send_proxy, backend, self.launcher.messages());
                remote.load = Load::counted_in(&self.fixed[app].times);
                self.remotes.insert(backend, remote);
            }
            Effect::Unwatch { backend } => drop(self.remotes.remove(&backend)),
            Effect::Enlist { backend } if self.remotes.contains_key(&backend) => {
                let remote = self.remotes.get_mut(&backend)?;
                let host = remote.address.ip();
                let obstacle = self.kernel.datapath().and_then(|datapath| datapath.obstacle(host));
                let entry = remote.backend(backend, obstacle);
                self.table("enlist a backend", |datapath| datapath.enlist_remote(entry));
            }
            Effect::Enlist { backend } => {
                let app = self.app_of(backend)?;
                let running = self.running.get_mut(&backend)?;
                if running.listeners.is_empty() && self.launcher.finds_listeners() {
                    running.find_listeners();
                }
                // Dropped here: a duplicate that stayed open would outlive the worker.
                let listeners = std::mem::take(&mut running.listeners);
                running.listens(&listeners);
                self.table("enlist a worker", |datapath| datapath.enlist(backend, app, &listeners));
            }
            Effect::Retire { backend } => self.table("retire a worker", |datapath| datapath.retire(backend)),
            Effect::PublishRing { app } => {
                // Before the first connection falls to the HTTP path.
                if !self.sockets[app] && self.state.apps[app].ring.iter().any(|slot| slot.current.is_none()) {
                    self.look_at_sockets();
                }
                self.publish_ring(app);
            }
            Effect::Signal { backend, signal } => {
                if let Some(running) = self.running.get(&backend) {
                    running.signal(signal);
                }
            }
            Effect::Say { severity, app, number, text } => {
                let app = &self.config.apps[app].name;
                let output = self.launcher.log_file(app, number);
                let output = output.display();
                let last_output = self.last_output.of_the_end().map(tracing::field::debug);
                match severity {
                    Severity::Info => tracing::info!(%app, worker = number, "{text}"),
                    Severity::Warning => tracing::warn!(%app, worker = number, %output, last_output, "{text}"),
                    Severity::Error => tracing::error!(%app, worker = number, %output, last_output, "{text}"),
                }
            }
            Effect::Forget { app } => self.forget(app),
            Effect::Exit => self.exiting = true,
        }
        None
    }

    /// A map operation that fails leaves the HTTP path to serve: it is said, and serving goes on.
    pub(super) fn table(
        &mut self,
        what: &str,
        change: impl FnOnce(&mut Datapath) -> Result<(), crate::datapath::TableError>,
    ) {
        if let Some(Err(error)) = self.kernel.datapath().map(change) {
            tracing::error!(%error, "the kernel did not {what}; its clients are served on the HTTP path");
        }
    }

    /// The picture as it was last published.
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshots.borrow())
    }

    /// Connections that keep a worker busy: on the kernel path, and on both.
    pub(super) fn connections(&mut self, backend: BackendId) -> (u64, u64) {
        let http = self
            .running
            .get(&backend)
            .map_or(0, |running| running.load.open.count() + self.elsewhere.open(running.incarnation));
        let kernel = self.real_connections(backend);
        (kernel, kernel + u64::from(http))
    }

    /// Where the app with this number stands.
    pub(super) fn place(&self, id: u32) -> Option<usize> {
        self.state.apps.iter().position(|app| app.spec.id == id)
    }

    /// Where each app stands, by its number: for who asks more than once.
    pub(super) fn places(&self) -> HashMap<u32, usize> {
        self.state.apps.iter().enumerate().map(|(place, app)| (app.spec.id, place)).collect()
    }
}

/// Completes when links or addresses have changed; never without news of them.
async fn changed(changes: Option<&Changes>) {
    if let Some(changes) = changes
        && changes.next().await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
