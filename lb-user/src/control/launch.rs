//! Workers' processes on control's behalf: started or adopted, watched until they accept connections, and until
//! they end.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lb_common::abi::BackendId;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::Signal;
use super::confinement::{Asked, Confinement, kill_tree, stop_signal};
use super::given::Given;
use super::listeners::Look;
use super::persist::SavedWorker;
use super::readiness::{self, Waiting};
use crate::address::Address;
use crate::config::{self, ListensOn, SendProxy};
use crate::datapath::Listener;
use crate::output::{self, stream::Place};
use crate::routing::Load;
use crate::worker::memory::Watch;
use crate::worker::probe::{self, Proof};
use crate::worker::spawn::SpawnError;
use crate::worker::{self, Entrance, Process, Spec, port, socket};

/// Messages under way from watchers to the runner; they wait when it is busy.
const MESSAGES_MAX: usize = 256;

/// An answer to a question of health that takes longer, or longer than to the next question, is none.
const HEALTH_PATIENCE: Duration = Duration::from_secs(5);
/// Questions without an answer in a row after which a worker gets no new clients.
const FAILURES_MAX: u32 = 3;

/// What a watcher saw.
pub(super) enum Message {
    /// The worker accepts connections, on these sockets.
    Ready { backend: BackendId, address: Address, listeners: Vec<Listener<OwnedFd>> },
    /// Sockets that a worker listens on after it became ready.
    Listeners { backend: BackendId, listeners: Vec<Listener<OwnedFd>> },
    /// It does not accept connections yet, for this reason.
    Waiting { backend: BackendId, why: String },
    Exited {
        backend: BackendId,
        /// When its end was seen.
        at: Instant,
        how: String,
        /// The last lines of its output.
        last_output: Vec<String>,
    },
    /// A ready worker has not answered for a while, or (`None`) does again.
    Unresponsive { backend: BackendId, reason: Option<String> },
    /// A remote host answered.
    Answers { backend: BackendId },
    /// A remote host did not answer.
    FellSilent { backend: BackendId, reason: String },
}

/// A worker, and where its output is.
struct Writer {
    /// APP/N.
    name: String,
    log: PathBuf,
    since: Place,
}

/// A process that runs. Dropping it ends its watchers, not the process.
pub(super) struct Running {
    pub(super) process: Arc<Process>,
    pub(super) address: Address,
    pub(super) incarnation: u64,
    /// Unix time, seconds.
    pub(super) started_at: u64,
    /// Where its output begins.
    output_since: Place,
    /// Stands for what it was given at its start, whatever is configured since.
    given: String,
    pub(super) load: Arc<Load>,
    /// Found, and not enlisted yet.
    pub(super) listeners: Vec<Listener<OwnedFd>>,
    /// Address families that its listening sockets take: IPv4, IPv6.
    pub(super) families: (bool, bool),
    /// Asks it to end.
    stop_signal: worker::Signal,
    asked: Asked,
    pub(super) look: Look,
    watchers: [AbortHandle; 2],
}

impl Running {
    pub(super) fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub(super) fn signal(&self, signal: Signal) {
        let signal = match signal {
            Signal::Terminate => {
                self.asked.set();
                self.stop_signal
            }
            Signal::Kill => worker::Signal::KILL,
        };
        kill_tree(&self.process, signal);
    }

    /// Looks for its listening sockets once more.
    pub(super) fn find_listeners(&mut self) {
        let found = self.address.port().and_then(|port| readiness::find(&self.process, port));
        self.listeners = found.unwrap_or_default();
    }

    pub(super) fn saved(&self, app: &str, worker: &super::Worker) -> SavedWorker {
        let backend = worker.backend;
        SavedWorker {
            app: app.to_owned(),
            number: worker.number,
            place: worker.place,
            drained: worker.drained,
            draining: !matches!(worker.phase, super::Phase::Starting { .. } | super::Phase::Ready),
            backend: backend.0,
            pid: self.pid(),
            start_time: self.process.start_time(),
            address: self.address.clone(),
            incarnation: self.incarnation,
            started_at: self.started_at,
            output_since: self.output_since,
            given: self.given.clone(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.watchers.iter().for_each(AbortHandle::abort);
    }
}

pub(super) struct Launcher {
    log_dir: PathBuf,
    run_dir: PathBuf,
    /// Whether listening sockets are wanted for the kernel path.
    find_listeners: bool,
    messages: mpsc::Sender<Message>,
    pub(super) confinement: Confinement,
}

impl Launcher {
    pub(super) fn new(homing: &config::Homing, find_listeners: bool) -> (Self, mpsc::Receiver<Message>) {
        let (messages, receiver) = mpsc::channel(MESSAGES_MAX);
        let confinement = Confinement::open(homing);
        let (log_dir, run_dir) = (homing.log_dir.clone(), homing.run_dir.clone());
        (Self { log_dir, run_dir, find_listeners, messages, confinement }, receiver)
    }

    pub(super) fn finds_listeners(&self) -> bool {
        self.find_listeners
    }

    /// Where watchers send what they see.
    pub(super) fn messages(&self) -> mpsc::Sender<Message> {
        self.messages.clone()
    }

    /// Where a worker's output goes.
    pub(super) fn log_file(&self, app: &str, number: u32) -> PathBuf {
        output::name::live(&self.log_dir, app, number)
    }

    /// Starts a worker and its watchers.
    ///
    /// # Errors
    /// Why it could not be started, as a phrase after "worker N".
    pub(super) fn spawn(
        &self,
        app: &config::App,
        number: u32,
        backend: BackendId,
        ports_taken: &BTreeSet<u16>,
    ) -> Result<Running, String> {
        let incarnation = getrandom::u64().map_err(|error| format!("could not be named: {error}"))?;
        let entrance = self
            .entrance(app, number, incarnation, ports_taken)
            .map_err(|error| format!("could not be given a port: {error}"))?;
        let address = entrance.address();
        let spec = Spec {
            app: app.name.clone(),
            number,
            command: app.command.clone(),
            directory: app.directory.clone(),
            user: app.user.clone(),
            env: app.env.clone(),
            isolation: app.isolation.clone(),
            entrance,
            log: self.log_file(&app.name, number),
        };
        let output_since = output::last::mark(&spec.log);
        let (group, watch) = self.confinement.make(app, number, incarnation);
        let (spawned, watch) = match worker::spawn(&spec, group) {
            Err(SpawnError::Group { source, .. }) => {
                tracing::warn!(app = %app.name, worker = number, error = %source, "it could not join its cgroup; started without");
                (worker::spawn(&spec, None), Watch { by_kernel: false, ..watch })
            }
            outcome => (outcome, watch),
        };
        let spawned = spawned.map_err(|error| format!("could not be started: {error}"))?;
        let process = Process::new(spawned).map_err(|error| format!("could not be watched: {error}"))?;
        let process = Arc::new(process);
        let asked = Asked::default();
        let worker = Writer { name: format!("{}/{number}", app.name), log: spec.log, since: output_since };
        let waiting = Waiting {
            backend,
            process: Arc::clone(&process),
            address: address.clone(),
            proof: match app.listens_on {
                ListensOn::Passed => Proof::of_passed(&app.health, app.send_proxy),
                ListensOn::Port | ListensOn::Socket => Proof::of(&app.health, app.send_proxy),
            },
            find_listeners: self.find_listeners,
        };
        let watchers = [
            self.watch_exit(backend, Arc::clone(&process), address.clone(), watch, asked.clone(), worker),
            self.watch_readiness(waiting, app),
        ];
        let started_at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Ok(Running {
            process,
            address,
            incarnation,
            started_at,
            output_since,
            given: Given::by(app).fingerprint(incarnation),
            load: Arc::default(),
            listeners: Vec::new(),
            families: (false, false),
            stop_signal: stop_signal(app),
            asked,
            look: Look::default(),
            watchers,
        })
    }

    /// Takes over a worker of an earlier run, if it still is that process and accepts connections. One that is
    /// no `app` wants any more is ended.
    pub(super) fn adopt(&self, saved: &SavedWorker, backend: BackendId, app: Option<&config::App>) -> Option<Running> {
        let kin = self.confinement.find(saved);
        let address = saved.address.clone();
        let Some(process) = Process::adopt(saved.pid, saved.start_time, kin).ok().flatten() else {
            socket::remove(&address);
            return None;
        };
        let process = Arc::new(process);
        let found = address.port().filter(|_| self.find_listeners).and_then(|port| readiness::find(&process, port));
        let is_listening = found.as_ref().map_or_else(|| address.is_listening(), |found| !found.is_empty());
        let Some(app) = app.filter(|_| is_listening) else {
            kill_tree(&process, worker::Signal::KILL);
            socket::remove(&address);
            self.confinement.clearing().after(process);
            return None;
        };
        let listeners = found.unwrap_or_default();
        let watch = self.confinement.bound(app, saved.number, process.kin().group.as_ref());
        let asked = Asked::default();
        let worker = Writer {
            name: format!("{}/{}", saved.app, saved.number),
            log: self.log_file(&saved.app, saved.number),
            since: saved.output_since,
        };
        let exit = self.watch_exit(backend, Arc::clone(&process), address.clone(), watch, asked.clone(), worker);
        let health = watch_health(self.messages(), backend, address.clone(), app.health.clone(), app.send_proxy);
        let health = tokio::spawn(health).abort_handle();
        Some(Running {
            process,
            address,
            incarnation: saved.incarnation,
            started_at: saved.started_at,
            output_since: saved.output_since,
            given: saved.given.clone(),
            load: Arc::default(),
            listeners,
            families: (false, false),
            look: Look::default(),
            stop_signal: stop_signal(app),
            asked,
            watchers: [exit, health],
        })
    }

    /// What a new worker is given to listen on.
    fn entrance(
        &self,
        app: &config::App,
        number: u32,
        incarnation: u64,
        ports_taken: &BTreeSet<u16>,
    ) -> io::Result<Entrance> {
        match app.listens_on {
            ListensOn::Port => port::pick(ports_taken).map(Entrance::Port),
            ListensOn::Passed => port::listen(ports_taken),
            ListensOn::Socket => {
                socket::remove_stale(&self.run_dir, &app.name, number);
                Ok(Entrance::Socket(socket::path(&self.run_dir, &app.name, number, incarnation)))
            }
        }
    }

    fn watch_exit(
        &self,
        backend: BackendId,
        process: Arc<Process>,
        address: Address,
        watch: Watch,
        asked: Asked,
        worker: Writer,
    ) -> AbortHandle {
        let messages = self.messages.clone();
        let clearing = self.confinement.clearing();
        let watcher = tokio::spawn(async move {
            let how = watch.until_end(&process, |said| tracing::warn!(worker = %worker.name, "{said}")).await;
            let at = Instant::now();
            asked.wait_for_others(&process).await;
            // What the worker started goes with it; nobody else would end it.
            kill_tree(&process, worker::Signal::KILL);
            socket::remove(&address);
            clearing.after(process);
            // Written a moment ago, so it is in memory; another thread would take longer, while clients wait for another worker.
            let last_output = output::last::lines(&worker.log, worker.since);
            let _ = messages.send(Message::Exited { backend, at, how, last_output }).await;
        });
        watcher.abort_handle()
    }

    fn watch_readiness(&self, waiting: Waiting, app: &config::App) -> AbortHandle {
        let (health, send_proxy) = (app.health.clone(), app.send_proxy);
        let messages = self.messages.clone();
        let watcher = tokio::spawn(async move {
            let backend = waiting.backend;
            // Control's own deadline ends this task.
            if let Some(address) = waiting.watch(messages.clone()).await {
                watch_health(messages, backend, address, health, send_proxy).await;
            }
        });
        watcher.abort_handle()
    }
}

/// Says when a worker that is ready does not answer any more, and when it does again. Without a path to ask for there is
/// nothing to learn: the kernel takes connections for a worker that hangs.
async fn watch_health(
    messages: mpsc::Sender<Message>,
    backend: BackendId,
    address: Address,
    health: config::Health,
    send_proxy: Option<SendProxy>,
) {
    if health.path.is_none() {
        return;
    }
    let proof = Proof::of(&health, send_proxy);
    let mut failures = 0;
    loop {
        tokio::time::sleep(health.interval).await;
        let asked = probe::probe(&address, &proof, HEALTH_PATIENCE.min(health.interval)).await;
        let reason = match asked {
            Ok(()) if failures >= FAILURES_MAX => None,
            Ok(()) => {
                failures = 0;
                continue;
            }
            Err(error) if error.is_own_want() => continue,
            Err(error) => {
                failures += 1;
                if failures != FAILURES_MAX {
                    continue;
                }
                Some(format!("it did not answer {FAILURES_MAX} times in a row: {error}"))
            }
        };
        failures = if reason.is_some() { failures } else { 0 };
        if messages.send(Message::Unresponsive { backend, reason }).await.is_err() {
            return;
        }
    }
}
