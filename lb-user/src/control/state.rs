//! What control knows: apps, their workers' phases, their rings.

use std::sync::Arc;
use std::time::Duration;

use lb_common::abi::{BackendId, Slot};
use lb_common::maglev::{self, Member};

use super::Moment;
use super::backends::Backends;

/// Everything. Changed by [`super::step`] alone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    pub apps: Vec<App>,
    /// Set by the first stop; nothing is started any more.
    pub stopping: bool,
    pub(super) backends: Backends,
}

/// What control needs of an app's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct AppSpec {
    pub name: String,
    pub min: u32,
    pub max: u32,
    /// From spawn to ready.
    pub start: Duration,
    pub drain: Duration,
    pub ring_len: u32,
    /// Remote hosts, in the order of the configuration; numbered after the workers.
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
    /// By number: processes of this machine, then remote hosts.
    pub workers: Vec<Worker>,
    pub ring: Arc<[Slot]>,
    /// When a slot last changed hands.
    pub ring_since: Moment,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Worker {
    /// `N` of `APP/N`.
    pub number: u32,
    pub kind: Kind,
    /// Its place in the datapath, kept over its generations.
    pub index: u32,
    /// The process of now, or the last one; NONE before the first.
    pub backend: BackendId,
    pub phase: Phase,
    /// When it entered the phase.
    pub since: Moment,
    /// Processes after the first.
    pub restarts: u32,
    /// Ends that nobody asked for, since it last was steady.
    pub crashes: u32,
    /// An operator drained it: it takes no new clients until that is taken back.
    pub drained: bool,
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
    /// Spawned; not accepting connections yet.
    Starting { deadline: Moment },
    /// Takes clients.
    Ready,
    /// Keeps its clients, takes no others.
    Draining { deadline: Moment },
    /// Told to end; killed at the deadline. `then` says what follows the exit.
    Ending { kill_at: Moment, then: After },
    /// To be started again at `until`.
    Backoff { until: Moment, reason: String },
    /// Given up after a crash loop; a request tries again after `retry_at`.
    Failed { retry_at: Moment, reason: String },
    /// A remote host that does not answer; `None` before it was first asked.
    Silent { reason: Option<String> },
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
    pub fn new(specs: Vec<AppSpec>) -> Result<Self, TooManyWorkers> {
        let mut backends = Backends::default();
        let mut apps = Vec::with_capacity(specs.len());
        for spec in specs {
            let processes = (0..spec.max).map(|_| Kind::Process);
            let workers = (0..)
                .zip(processes.chain(spec.remotes.iter().cloned().map(Kind::Remote)))
                .map(|(number, kind)| Some(Worker::new(number, kind, backends.reserve()?)))
                .collect::<Option<Vec<_>>>()
                .ok_or(TooManyWorkers)?;
            let ring = vec![Slot::default(); spec.ring_len as usize].into();
            apps.push(App { spec, workers, ring, ring_since: Moment::ZERO });
        }
        Ok(Self { apps, stopping: false, backends })
    }

    /// Continues after the ids of an earlier run, whose entries the tables may still hold.
    pub fn resume_after(&mut self, last: impl IntoIterator<Item = BackendId>) {
        last.into_iter().for_each(|id| self.backends.seen(id));
    }

    /// Gives the worker this index; whoever had it gets the worker's. A process keeps its id when the
    /// configuration around it has changed.
    pub(super) fn take_index(&mut self, app: usize, number: u32, index: u32) {
        let former = self.apps[app].workers[number as usize].index;
        if let Some(holder) = self.apps.iter_mut().flat_map(|app| &mut app.workers).find(|worker| worker.index == index)
        {
            holder.index = former;
        }
        self.apps[app].workers[number as usize].index = index;
    }

    /// The last id of every backend; what [`Self::resume_after`] wants next time.
    pub fn last_ids(&self) -> Vec<BackendId> {
        self.backends.last().collect()
    }

    /// The worker that this is now.
    pub fn worker(&self, backend: BackendId) -> Option<(usize, &Worker)> {
        self.apps
            .iter()
            .enumerate()
            .find_map(|(app, a)| Some((app, a.workers.iter().find(|w| w.backend == backend && w.is_up())?)))
    }

    /// When something falls due by itself.
    pub fn next_deadline(&self) -> Option<Moment> {
        self.apps.iter().flat_map(|app| &app.workers).filter_map(Worker::deadline).min()
    }
}

/// More workers configured than [`lb_common::abi::MAX_BACKENDS`].
#[derive(Debug, thiserror::Error)]
#[error(
    "the apps may run more than {} workers together, which is all that homing can steer; lower workers.max",
    lb_common::abi::MAX_BACKENDS
)]
pub struct TooManyWorkers;

impl App {
    /// The ring's owners by the workers that take clients now.
    pub(super) fn owners(&self) -> Vec<BackendId> {
        let members: Vec<Member> = self
            .workers
            .iter()
            .filter(|worker| worker.phase == Phase::Ready)
            .map(|worker| match &worker.kind {
                Kind::Process => Member { name: u64::from(worker.number) + 1, backend: worker.backend, weight: 1 },
                Kind::Remote(remote) => Member { name: remote.name, backend: worker.backend, weight: remote.weight },
            })
            .collect();
        maglev::fill(self.spec.ring_len, &members)
    }

    /// Why nobody will serve this app, when nobody will.
    pub fn failure(&self) -> Option<&str> {
        let is_coming = |worker: &Worker| {
            worker.is_up() || matches!(worker.phase, Phase::Backoff { .. } | Phase::Silent { reason: None })
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
    fn new(number: u32, kind: Kind, index: u32) -> Self {
        Self {
            number,
            kind,
            index,
            backend: BackendId::NONE,
            phase: Phase::Stopped,
            since: Moment::ZERO,
            restarts: 0,
            crashes: 0,
            drained: false,
        }
    }

    pub fn is_process(&self) -> bool {
        self.kind == Kind::Process
    }

    /// A process that runs, or a host that answers.
    pub fn is_up(&self) -> bool {
        match self.phase {
            Phase::Starting { .. } | Phase::Ready | Phase::Draining { .. } | Phase::Ending { .. } => true,
            Phase::Stopped | Phase::Backoff { .. } | Phase::Failed { .. } | Phase::Silent { .. } => false,
        }
    }

    /// Whether clients that know it may still reach it.
    pub fn takes_bound_clients(&self) -> bool {
        matches!(self.phase, Phase::Ready | Phase::Draining { .. })
    }

    fn deadline(&self) -> Option<Moment> {
        match self.phase {
            Phase::Draining { deadline: Moment::MAX } => None,
            Phase::Starting { deadline } | Phase::Draining { deadline } => Some(deadline),
            Phase::Ending { kill_at, .. } => Some(kill_at),
            Phase::Backoff { until, .. } => Some(until),
            Phase::Stopped | Phase::Ready | Phase::Failed { .. } | Phase::Silent { .. } => None,
        }
    }

    /// The word for it in `homing status`.
    pub fn state_name(&self) -> &'static str {
        match self.phase {
            Phase::Stopped => "stopped",
            Phase::Starting { .. } => "starting",
            Phase::Ready => "ready",
            Phase::Draining { .. } | Phase::Ending { .. } => "draining",
            Phase::Silent { reason: None } => "starting",
            Phase::Backoff { .. } | Phase::Silent { .. } => "backoff",
            Phase::Failed { .. } => "failed",
        }
    }

    /// The reason behind the state, where there is one.
    pub fn reason(&self) -> Option<&str> {
        match &self.phase {
            Phase::Backoff { reason, .. } | Phase::Failed { reason, .. } => Some(reason),
            Phase::Silent { reason } => reason.as_deref(),
            Phase::Ending { then: After::Crash(reason), .. } => Some(reason),
            _ => None,
        }
    }
}
