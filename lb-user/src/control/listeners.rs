//! Listening sockets that workers open after they became ready, in place of one that they closed or beside it: found when
//! the kernel misses one, and enlisted. Until then connections fall to the HTTP path.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use lb_common::abi::{BackendId, Counter, FAMILY_V4, FAMILY_V6};
use socket2::SockRef;
use tokio::time::Instant;

use super::launch::{Message, Running};
use super::readiness;
use super::runner::Runner;
use crate::datapath::Listener;

/// Between looks that find nothing new: doubled each time, for each reads all of /proc.
const PAUSE_MIN: Duration = Duration::from_millis(400);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// When a worker's listening sockets are looked for again.
#[derive(Debug)]
pub(super) struct Look {
    due: Instant,
    pause: Duration,
    /// Further sockets may take the same connections (SO_REUSEPORT): which of them comes and goes, nobody tells.
    is_group: bool,
}

impl Default for Look {
    fn default() -> Self {
        Self { due: Instant::now(), pause: PAUSE_MIN, is_group: false }
    }
}

impl Look {
    /// At once, and often at first.
    fn anew(&mut self, now: Instant) {
        (self.due, self.pause) = (now, PAUSE_MIN);
    }

    /// Whether it is time; then the next is later.
    fn begin(&mut self, now: Instant) -> bool {
        let is_due = now >= self.due;
        if is_due {
            self.due = now + self.pause;
            self.pause = PAUSE_MAX.min(self.pause * 2);
        }
        is_due
    }
}

impl Running {
    /// What its listening sockets are to the kernel path, as they are enlisted.
    pub(super) fn listens(&mut self, listeners: &[Listener<OwnedFd>]) {
        self.families = listeners.iter().fold((false, false), |(v4, v6), l| (v4 | l.v4, v6 | l.v6));
        let may_share = |listener: &Listener<OwnedFd>| SockRef::from(&listener.socket).reuse_port().unwrap_or(false);
        self.look.is_group = listeners.iter().any(may_share);
    }
}

impl Runner {
    /// Looks again at workers whose sockets are not all there, once a connection has fallen through for that reason.
    pub(super) fn look_at_listeners(&mut self) {
        let Some(datapath) = self.kernel.datapath() else { return };
        let missed = datapath.counter(Counter::LookupNoSocket);
        if std::mem::replace(&mut self.missed, missed) == missed {
            return;
        }
        let enlisted = datapath.enlisted();
        let now = Instant::now();
        for backend in self.listening() {
            let Some(running) = self.running.get_mut(&backend) else { continue };
            let has = |family| enlisted.contains(&(backend, family));
            let (v4, v6) = (has(FAMILY_V4), has(FAMILY_V6));
            if (running.families.0 && !v4) || (running.families.1 && !v6) {
                running.look.anew(now);
            }
            running.families = (v4, v6);
            if !(v4 && v6) && running.look.begin(now) {
                self.look_for_listeners(backend);
            }
        }
    }

    /// Looks again at workers whose sockets are groups.
    pub(super) fn look_at_groups(&self) {
        let is_group = |backend: &BackendId| self.running.get(backend).is_some_and(|running| running.look.is_group);
        self.listening().into_iter().filter(is_group).for_each(|backend| self.look_for_listeners(backend));
    }

    /// The workers that connections are handed to.
    fn listening(&self) -> Vec<BackendId> {
        let workers = self.state.apps.iter().flat_map(|app| &app.workers);
        workers.filter(|worker| worker.takes_bound_clients()).map(|worker| worker.backend).collect()
    }

    /// Reads /proc beside the runner, which gets [`Message::Listeners`].
    fn look_for_listeners(&self, backend: BackendId) {
        let Some(running) = self.running.get(&backend) else { return };
        let Some(port) = running.address.port() else { return };
        let process = Arc::clone(&running.process);
        let messages = self.launcher.messages();
        tokio::spawn(async move {
            let listeners = readiness::find(&process, port).unwrap_or_default();
            if !listeners.is_empty() {
                let _ = messages.send(Message::Listeners { backend, listeners }).await;
            }
        });
    }

    /// Enlists what a look has found. A worker that has been retired meanwhile stays so.
    pub(super) fn found_listeners(&mut self, backend: BackendId, listeners: &[Listener<OwnedFd>]) {
        let takes_clients = self.state.worker(backend).is_some_and(|(_, worker)| worker.takes_bound_clients());
        let Some(app) = self.app_of(backend) else { return };
        let Some(running) = self.running.get_mut(&backend).filter(|_| takes_clients) else { return };
        let before = running.families;
        running.listens(listeners);
        if running.families != before {
            tracing::info!(pid = running.pid(), "a worker opened its listening socket anew; the kernel path has it");
            running.look.anew(Instant::now());
        }
        self.table("enlist a worker", |datapath| datapath.enlist(backend, app, listeners));
    }

    /// The number by which the kernel's tables know the worker's app.
    pub(super) fn app_of(&self, backend: BackendId) -> Option<u32> {
        let (app, _) = self.state.worker(backend)?;
        Some(self.fixed[app].service.app)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_is_due_at_once_then_after_pauses_that_double_and_at_once_again_after_a_loss() {
        let start = Instant::now();
        let mut look = Look { due: start, ..Look::default() };
        let mut at = start;
        for pause_ms in [400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000] {
            assert!(look.begin(at));
            let pause = Duration::from_millis(pause_ms);
            assert!(!look.begin(at + pause - Duration::from_millis(1)), "{pause:?} are not over");
            at += pause;
        }
        look.anew(at);
        assert!(look.begin(at));
        assert!(look.begin(at + PAUSE_MIN));
    }
}
