//! What keeps workers together and apart, on control's behalf: their cgroups with their bounds, made, found again and
//! cleared away.

use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::persist::SavedWorker;
use crate::admin::report::{IsolationStatus, WayStatus};
use crate::config::isolation::StopSignal;
use crate::config::{self, Isolation};
use crate::worker::cgroup::{Cgroups, Group, Way};
use crate::worker::memory::{self, Watch};
use crate::worker::spawn::mark;
use crate::worker::{Kin, Process, Signal};

/// Looks at what is left of an ended worker: at first often.
const CLEAR_MIN: Duration = Duration::from_millis(1);
/// The same while they take the time they were given.
const OTHERS_MAX: Duration = Duration::from_millis(50);
const CLEAR_MAX: Duration = Duration::from_millis(500);
/// A process that waits for a disk or a network file system may not die at once; what is left is told after this.
const CLEAR_LIMIT: Duration = Duration::from_secs(60);
/// At the end homing waits this long for what is left.
const FINISH_LIMIT: Duration = Duration::from_secs(5);

pub(super) struct Confinement {
    cgroups: Cgroups,
    /// Held by every task that clears up after a worker; nothing is sent.
    busy: Option<mpsc::Sender<Infallible>>,
    weak: mpsc::WeakSender<Infallible>,
    /// Ends when nobody clears any more.
    cleared: mpsc::Receiver<Infallible>,
    memory_told: Once,
    cpu_told: Once,
}

/// Clears up after a worker.
#[derive(Clone)]
pub(super) struct Clearing {
    /// Weak: who only may have to clear one day is not waited for.
    busy: mpsc::WeakSender<Infallible>,
}

impl Confinement {
    pub(super) fn open(homing: &config::Homing) -> Self {
        let (busy, cleared) = mpsc::channel(1);
        let cgroups = Cgroups::open(&homing.state_dir, homing.cgroups == config::Cgroups::Preferred);
        Self {
            cgroups,
            weak: busy.downgrade(),
            busy: Some(busy),
            cleared,
            memory_told: Once::new(),
            cpu_told: Once::new(),
        }
    }

    pub(super) fn clearing(&self) -> Clearing {
        Clearing { busy: self.weak.clone() }
    }

    /// A new worker's own groups with their bounds, and who has to keep its memory in them.
    pub(super) fn make(&self, app: &config::App, number: u32, incarnation: u64) -> (Option<Group>, Watch) {
        let Isolation { memory_max, cpu_weight, .. } = app.isolation;
        let name = format!("{}.{number}.{incarnation:016x}", app.name);
        let group = self.cgroups.make(&name, memory_max.is_some(), cpu_weight.is_some()).unwrap_or_else(|error| {
            tracing::warn!(app = %app.name, worker = number, %error, "no cgroup could be made for it; started without");
            None
        });
        let watch = self.bound(app, number, group.as_ref());
        (group, watch)
    }

    /// How the processes of an earlier run's worker are recognised.
    pub(super) fn find(&self, saved: &SavedWorker) -> Kin {
        Kin { group: self.cgroups.of(saved.pid), mark: mark(&saved.app, saved.number, &saved.address) }
    }

    /// Bounds the groups as the app says; what the kernel does not keep is said.
    pub(super) fn bound(&self, app: &config::App, number: u32, group: Option<&Group>) -> Watch {
        let Isolation { memory_max: max, cpu_weight, .. } = app.isolation;
        let refused = |what: &str, error: io::Error| {
            tracing::warn!(app = %app.name, worker = number, %error, "the kernel does not keep its {what}");
        };
        let by_kernel = match group.filter(|group| group.has_memory()) {
            Some(group) => group.limit_memory(max).map_err(|error| refused("memory_max; homing does", error)).is_ok(),
            None => false,
        };
        if let (Some(_), Way::None { why }) = (max, &self.cgroups.memory_way) {
            let every_ms = memory::INTERVAL.as_millis();
            self.memory_told
                .call_once(|| tracing::warn!(every_ms, "homing itself keeps memory_max, by polling: {why}"));
        }
        match (cpu_weight, group.filter(|group| group.has_cpu()), &self.cgroups.cpu_way) {
            (Some(weight), Some(group), _) => {
                let _ = group.weigh_cpu(weight).map_err(|error| refused("cpu_weight", error));
            }
            (Some(_), None, Way::None { why }) => {
                self.cpu_told.call_once(|| tracing::warn!("cpu_weight is without effect: {why}"));
            }
            _ => {}
        }
        Watch { max, by_kernel }
    }

    /// Ends what workers of earlier runs left that nobody has taken over.
    pub(super) fn reap<'p>(&self, adopted: impl Iterator<Item = &'p Process>) {
        let kept: Vec<&Group> = adopted.filter_map(|process| process.kin().group.as_ref()).collect();
        for group in self.cgroups.leftovers(&kept) {
            match group.kill() {
                Ok(0) => {}
                Ok(count) => {
                    tracing::info!(count, group = group.name(), "ended processes that a worker of an earlier run left");
                }
                Err(error) => tracing::warn!(%error, "what a worker of an earlier run left could not be ended"),
            }
            self.clearing().until(move || {
                let is_gone = group.remove();
                if !is_gone {
                    let _ = group.kill();
                }
                is_gone
            });
        }
    }

    /// Waits for the last processes of ended workers.
    pub(super) async fn finish(&mut self) {
        self.busy = None;
        let _ = tokio::time::timeout(FINISH_LIMIT, self.cleared.recv()).await;
        self.cgroups.close();
    }

    pub(super) fn status(&self) -> IsolationStatus {
        let way = |way: &Way, instead: &str| match way {
            Way::Group(version) => WayStatus { by: version.name().to_owned(), reason: None },
            Way::None { why } => WayStatus { by: instead.to_owned(), reason: Some(why.clone()) },
        };
        IsolationStatus {
            processes: way(&self.cgroups.tree_way, "proc"),
            memory: way(&self.cgroups.memory_way, "polling"),
            cpu: way(&self.cgroups.cpu_way, "none"),
            polling_ms: memory::INTERVAL.as_millis() as u64,
        }
    }
}

/// Whether a worker was asked to end.
#[derive(Clone, Default)]
pub(super) struct Asked(Arc<AtomicBool>);

impl Asked {
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// The first process may be a shell that ends before the server it has started: who was asked to end may take the
    /// time that control gives. SIGKILL, to all, ends it.
    pub(super) async fn wait_for_others(&self, process: &Process) {
        let mut pause = CLEAR_MIN;
        while self.0.load(Ordering::Relaxed) && process.members().is_ok_and(|members| !members.is_empty()) {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(OTHERS_MAX);
        }
    }
}

impl Clearing {
    /// Ends what an ended worker left, and removes its groups.
    pub(super) fn after(&self, process: Arc<Process>) {
        self.until(move || {
            let is_cleared = process.is_cleared();
            if !is_cleared {
                kill_tree(&process, Signal::KILL);
            }
            is_cleared
        });
    }

    /// Asks until it is so, in a task of its own.
    fn until(&self, mut is_cleared: impl FnMut() -> bool + Send + 'static) {
        let busy = self.busy.upgrade();
        tokio::spawn(async move {
            let end = Instant::now() + CLEAR_LIMIT;
            let mut pause = CLEAR_MIN;
            while !is_cleared() {
                if Instant::now() > end {
                    let waited_s = CLEAR_LIMIT.as_secs();
                    tracing::warn!(waited_s, "processes of an ended worker are still there after SIGKILL");
                    break;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(CLEAR_MAX);
            }
            drop(busy);
        });
    }
}

pub(super) fn stop_signal(app: &config::App) -> Signal {
    match app.isolation.stop_signal {
        StopSignal::Term => Signal::TERM,
        StopSignal::Int => Signal::INT,
        StopSignal::Quit => Signal::QUIT,
        StopSignal::Hup => Signal::HUP,
    }
}

pub(super) fn kill_tree(process: &Process, signal: Signal) {
    if let Err(error) = process.kill_tree(signal) {
        tracing::warn!(pid = process.pid(), ?signal, %error, "a worker could not be signalled");
    }
}
