//! What control knows: apps, their workers' phases, their rings.

use std::sync::Arc;
use std::time::Duration;

use lb_common::abi::{BackendId, MAX_BACKENDS, Slot};
use lb_common::maglev::{self, Member};

use super::Moment;
use super::backends::Backends;
use super::step::FAILED_AGAIN;

/// Phases of a worker that are remembered.
const HISTORY_MAX: usize = 8;

/// Everything. Changed by [`super::step`] alone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    pub apps: Vec<App>,
    /// Set by the first stop; nothing is started any more.
    pub stopping: bool,
    /// Processes that may be starting at once, over all apps.
    pub starts_max: usize,
    pub(super) backends: Backends,
}

/// What control needs of an app's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct AppSpec {
    /// Its number in the datapath's tables, kept for as long as the app is known by its name.
    pub id: u32,
    pub name: String,
    pub min: u32,
    pub max: u32,
    /// Of one worker, beyond which it takes no new clients.
    pub max_connections: u32,
    /// The part of the running workers' connections above which one more is started, 0 to 1.
    pub load_factor: f64,
    /// From spawn to ready.
    pub start: Duration,
    /// A worker without connections is ended after this; `None`: never.
    pub idle: Option<Duration>,
    pub drain: Duration,
    /// From the polite signal to the other.
    pub stop: Duration,
    pub ring_len: u32,
    /// Remote hosts, in the order of the configuration.
    pub remotes: Vec<Remote>,
}

/// A remote host as a member of the ring.
#[derive(Clone, Debug, PartialEq)]
pub struct Remote {
    /// What places it on the ring: the same on every machine that knows the host.
    pub name: u64,
    pub weight: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub struct App {
    pub spec: AppSpec,
    /// Processes of this machine and remote hosts, by number, which none keeps after its end.
    pub workers: Vec<Worker>,
    pub ring: Arc<[Slot]>,
    /// When a slot last changed hands.
    pub ring_since: Moment,
    /// Raised by every restart: workers of an earlier one are to be replaced.
    pub revision: u32,
    /// How many replacements may be starting at once, while a restart is under way.
    pub restarting: Option<usize>,
    /// Why the last restart was stopped.
    pub restart_failed: Option<String>,
    /// It left the configuration; forgotten when its last worker has ended.
    pub removed: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Worker {
    /// `N` of `APP/N`.
    pub number: u32,
    pub kind: Kind,
    /// The process of now, or the last one; NONE before the first.
    pub backend: BackendId,
    pub phase: Phase,
    /// When it entered the phase.
    pub since: Moment,
    /// What it went through, the latest last: when it began, and the word for it with its reason.
    pub history: Vec<(Moment, String)>,
    /// Processes after the first.
    pub restarts: u32,
    /// Ends that nobody asked for, since it last was steady.
    pub crashes: u32,
    /// An operator drained it: it takes no new clients until that is taken back.
    pub drained: bool,
    /// What places a process on the ring; its successor inherits it.
    pub place: u64,
    /// The app's when it was started.
    pub revision: u32,
    /// Whose successor it is, from its start until it is ready.
    pub replaces: Option<BackendId>,
    /// Open now, on both paths, as last looked at.
    pub connections: u64,
    /// When it last had a connection, or became ready.
    pub used: Moment,
    /// It has as many connections as it may, or had a moment ago.
    pub full: bool,
    /// Why it is taken for unresponsive, if it is.
    pub unresponsive: Option<String>,
    /// Why it does not accept connections yet, while it starts.
    pub waiting: Option<String>,
}

/// Whose it is.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// A process that homing starts and ends.
    Process,
    /// A host that somebody else runs.
    Remote(Remote),
}

/// Where a worker is in its life.
#[derive(Clone, Debug, PartialEq)]
pub enum Phase {
    /// No process, none wanted.
    Stopped,
    /// To be started when fewer others are starting.
    Queued,
    /// Spawned; not accepting connections yet.
    Starting { deadline: Moment },
    /// Takes clients.
    Ready,
    /// Keeps its clients, takes no others. `idle`: because it had none; one that comes back makes it ready again.
    Draining { deadline: Moment, idle: bool },
    /// Its last connection is gone, and it can be chosen no more; who was under way to it is waited for until then.
    Leaving { until: Moment, idle: bool },
    /// Told to end; killed at the deadline. `then` says what follows the exit.
    Ending { kill_at: Moment, then: After },
    /// To be started again at `until`.
    Backoff { until: Moment, reason: String },
    /// Given up after a crash loop; a request tries again after `retry_at`.
    Failed { retry_at: Moment, reason: String },
    /// A remote host that does not answer; `None` before it was first asked.
    Silent { reason: Option<String> },
}

impl Phase {
    /// When something else follows at the latest; `None`: nothing has to.
    pub fn ends_at(&self) -> Option<Moment> {
        let at = match self {
            Self::Starting { deadline } | Self::Draining { deadline, .. } => deadline,
            Self::Leaving { until, .. } | Self::Backoff { until, .. } => until,
            Self::Ending { kill_at, .. } => kill_at,
            Self::Stopped | Self::Queued | Self::Ready | Self::Failed { .. } | Self::Silent { .. } => return None,
        };
        // A remote host drains until it is taken back.
        Some(*at).filter(|at| *at != Moment::MAX)
    }
}

/// What follows an end that homing asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum After {
    Stop,
    /// It did not become ready: as a crash, with this reason.
    Crash(String),
}

impl State {
    /// # Errors
    /// When the apps ask for more workers than the datapath has backends.
    pub fn new(specs: Vec<AppSpec>, starts_max: usize) -> Result<Self, TooManyWorkers> {
        check_workers(&specs)?;
        let apps = specs.into_iter().map(App::new).collect();
        Ok(Self { apps, stopping: false, starts_max, backends: Backends::default() })
    }

    /// Continues after the ids of an earlier run, whose entries the tables may still hold.
    pub fn resume_after(&mut self, last: impl IntoIterator<Item = BackendId>) {
        last.into_iter().for_each(|id| self.backends.seen(id));
    }

    /// The last id of every backend; what [`Self::resume_after`] wants next time.
    pub fn last_ids(&self) -> Vec<BackendId> {
        self.backends.last().collect()
    }

    /// The worker that this is now.
    pub fn worker(&self, backend: BackendId) -> Option<(usize, &Worker)> {
        self.apps.iter().enumerate().find_map(|(number, app)| Some((number, app.up(backend)?)))
    }

    /// Processes that are starting, over all apps.
    pub(super) fn starting(&self) -> usize {
        let workers = self.apps.iter().flat_map(|app| &app.workers);
        workers.filter(|worker| matches!(worker.phase, Phase::Starting { .. })).count()
    }

    /// When something falls due by itself.
    pub fn next_deadline(&self) -> Option<Moment> {
        let deadlines = self.apps.iter().flat_map(|app| {
            let reaps_after = app.reaps_after();
            app.workers.iter().filter_map(move |worker| worker.deadline(reaps_after))
        });
        deadlines.min()
    }
}

/// # Errors
/// When the apps ask for more workers than the datapath has backends.
pub fn check_workers(specs: &[AppSpec]) -> Result<(), TooManyWorkers> {
    let wanted: usize = specs.iter().map(|spec| spec.max as usize + spec.remotes.len()).sum();
    if wanted > MAX_BACKENDS as usize { Err(TooManyWorkers) } else { Ok(()) }
}

/// More workers configured than [`MAX_BACKENDS`].
#[derive(Debug, thiserror::Error)]
#[error(
    "the apps may run more than {MAX_BACKENDS} workers together, which is all that homing can steer; lower workers.max"
)]
pub struct TooManyWorkers;

impl App {
    pub(super) fn new(spec: AppSpec) -> Self {
        let processes = (0..spec.max).map(|number| Worker::new(number, Kind::Process));
        let hosts = (spec.max..).zip(&spec.remotes).map(|(n, remote)| Worker::new(n, Kind::Remote(remote.clone())));
        let workers = processes.chain(hosts).collect();
        let ring = vec![Slot::default(); spec.ring_len as usize].into();
        Self {
            spec,
            workers,
            ring,
            ring_since: Moment::ZERO,
            revision: 0,
            restarting: None,
            restart_failed: None,
            removed: false,
        }
    }

    pub fn worker(&self, number: u32) -> Option<&Worker> {
        self.workers.iter().find(|worker| worker.number == number)
    }

    /// The worker that is this process or host now, while it is up.
    pub(super) fn up(&self, backend: BackendId) -> Option<&Worker> {
        self.workers.iter().find(|worker| worker.backend == backend && worker.is_up())
    }

    /// The worker with this number, made if there is none.
    pub(super) fn process(&mut self, number: u32) -> &mut Worker {
        let at = self.workers.iter().position(|worker| worker.number == number).unwrap_or_else(|| {
            self.workers.push(Worker::new(number, Kind::Process));
            self.workers.sort_by_key(|worker| worker.number);
            self.workers.iter().position(|worker| worker.number == number).expect("just made")
        });
        &mut self.workers[at]
    }

    /// The lowest number that no worker has.
    pub(super) fn free_number(&self) -> u32 {
        (0..).find(|&number| self.worker(number).is_none()).expect("fewer workers than numbers")
    }

    /// Processes that have, or will have, their share of clients.
    pub(super) fn serving(&self) -> u32 {
        self.workers.iter().filter(|worker| worker.is_process() && worker.counts()).count() as u32
    }

    /// How long a worker may have no connections before it is ended; `None` while all of them are needed.
    pub(super) fn reaps_after(&self) -> Option<Duration> {
        self.spec.idle.filter(|_| !self.removed && self.serving() > self.spec.min)
    }

    /// Connections above which one more worker is started, while this many serve.
    pub(super) fn grows_above(&self, serving: u32) -> f64 {
        f64::from(serving) * f64::from(self.spec.max_connections) * self.spec.load_factor
    }

    /// Whether more workers take clients soon, or could be started.
    pub fn may_grow(&self) -> bool {
        let is_coming = |worker: &Worker| {
            matches!(worker.phase, Phase::Queued | Phase::Starting { .. } | Phase::Backoff { .. })
                || matches!(worker.phase, Phase::Silent { reason: None })
        };
        !self.removed && (self.workers.iter().any(is_coming) || self.serving() < self.spec.max)
    }

    /// The ring's owners by the workers that take clients now: those with room that respond, or else those with room.
    pub(super) fn owners(&self) -> Vec<BackendId> {
        let with_room = || self.workers.iter().filter(|worker| worker.phase == Phase::Ready && !worker.full);
        let responds = with_room().any(|worker| worker.unresponsive.is_none());
        let mut members: Vec<Member> = with_room()
            .filter(|worker| worker.unresponsive.is_none() || !responds)
            .map(|worker| match &worker.kind {
                Kind::Process => Member { name: worker.place, backend: worker.backend, weight: 1 },
                Kind::Remote(remote) => Member { name: remote.name, backend: worker.backend, weight: remote.weight },
            })
            .collect();
        // Not by number: a successor has another one, and its predecessor's turn.
        members.sort_by_key(|member| member.name);
        maglev::fill(self.ring.len() as u32, &members)
    }

    /// Why nobody will serve this app, when nobody will.
    pub fn failure(&self) -> Option<&str> {
        let is_coming = |worker: &Worker| {
            worker.is_up()
                || matches!(worker.phase, Phase::Queued | Phase::Backoff { .. } | Phase::Silent { reason: None })
        };
        if self.workers.iter().any(is_coming) {
            return None;
        }
        self.workers.iter().find_map(|worker| match &worker.phase {
            Phase::Failed { reason, .. } | Phase::Silent { reason: Some(reason) } => Some(reason.as_str()),
            _ => None,
        })
    }
}

impl Worker {
    pub(super) fn new(number: u32, kind: Kind) -> Self {
        Self {
            number,
            kind,
            backend: BackendId::NONE,
            phase: Phase::Stopped,
            since: Moment::ZERO,
            history: Vec::new(),
            restarts: 0,
            crashes: 0,
            drained: false,
            place: u64::from(number) + 1,
            revision: 0,
            replaces: None,
            connections: 0,
            used: Moment::ZERO,
            full: false,
            unresponsive: None,
            waiting: None,
        }
    }

    pub fn is_process(&self) -> bool {
        self.kind == Kind::Process
    }

    /// A process that runs, or a host that answers.
    pub fn is_up(&self) -> bool {
        match self.phase {
            Phase::Starting { .. }
            | Phase::Ready
            | Phase::Draining { .. }
            | Phase::Leaving { .. }
            | Phase::Ending { .. } => true,
            Phase::Stopped | Phase::Queued | Phase::Backoff { .. } | Phase::Failed { .. } | Phase::Silent { .. } => {
                false
            }
        }
    }

    /// Whether clients that know it may still reach it.
    pub fn takes_bound_clients(&self) -> bool {
        matches!(self.phase, Phase::Ready | Phase::Draining { .. })
    }

    /// Whether it stands for one of the app's workers: it has a share of clients, will have it, or lost it by an
    /// operator's word. Who replaces another does not count beside it.
    pub(super) fn counts(&self) -> bool {
        let is_wanted = match self.phase {
            Phase::Queued
            | Phase::Starting { .. }
            | Phase::Ready
            | Phase::Backoff { .. }
            | Phase::Failed { .. }
            | Phase::Ending { then: After::Crash(_), .. } => true,
            Phase::Stopped
            | Phase::Draining { .. }
            | Phase::Leaving { .. }
            | Phase::Ending { then: After::Stop, .. }
            | Phase::Silent { .. } => false,
        };
        (is_wanted && self.replaces.is_none()) || self.drained
    }

    /// Since when it is a process without connections that takes clients.
    pub(super) fn idle_since(&self) -> Option<Moment> {
        let is_idle = self.is_process() && self.phase == Phase::Ready && self.connections == 0;
        is_idle.then_some(self.used)
    }

    /// `reaps_after`: the app's [`App::reaps_after`].
    fn deadline(&self, reaps_after: Option<Duration>) -> Option<Moment> {
        match self.phase {
            Phase::Draining { deadline: Moment::MAX, .. } => None,
            Phase::Starting { deadline } | Phase::Draining { deadline, .. } => Some(deadline),
            Phase::Leaving { until, .. } => Some(until),
            Phase::Ending { kill_at, .. } => Some(kill_at),
            Phase::Backoff { until, .. } => Some(until),
            Phase::Ready => Some(self.idle_since()? + reaps_after?),
            Phase::Failed { retry_at, .. } => Some(retry_at + FAILED_AGAIN),
            Phase::Stopped | Phase::Queued | Phase::Silent { .. } => None,
        }
    }

    pub(super) fn enter(&mut self, phase: Phase, now: Moment) {
        self.phase = phase;
        self.since = now;
        self.history.push((
            now,
            match self.reason() {
                Some(reason) => format!("{}: {reason}", self.state_name()),
                None => self.state_name().to_owned(),
            },
        ));
        if self.history.len() > HISTORY_MAX {
            self.history.remove(0);
        }
    }

    /// The word for it in `homing status`.
    pub fn state_name(&self) -> &'static str {
        match self.phase {
            Phase::Stopped => "stopped",
            Phase::Queued | Phase::Starting { .. } => "starting",
            Phase::Ready => "ready",
            Phase::Draining { .. } | Phase::Leaving { .. } | Phase::Ending { .. } => "draining",
            Phase::Silent { reason: None } => "starting",
            Phase::Backoff { .. } | Phase::Silent { .. } => "backoff",
            Phase::Failed { .. } => "failed",
        }
    }

    /// It takes clients, and has not answered for a while.
    pub const fn is_unresponsive(&self) -> bool {
        matches!(self.phase, Phase::Ready) && self.unresponsive.is_some()
    }

    /// The reason behind the state, where there is one.
    pub fn reason(&self) -> Option<&str> {
        match &self.phase {
            Phase::Backoff { reason, .. } | Phase::Failed { reason, .. } => Some(reason),
            Phase::Silent { reason } => reason.as_deref(),
            Phase::Starting { .. } => self.waiting.as_deref(),
            Phase::Ending { then: After::Crash(reason), .. } => Some(reason),
            Phase::Queued => Some("waits until fewer others are starting"),
            Phase::Draining { idle: true, .. } | Phase::Leaving { idle: true, .. } => Some("idle"),
            Phase::Ready if self.is_unresponsive() => self.unresponsive.as_deref(),
            Phase::Ready if self.full => Some("full: takes no new clients"),
            _ => None,
        }
    }
}
