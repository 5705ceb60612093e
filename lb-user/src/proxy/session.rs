//! Which worker a client with, or without, a cookie belongs to. Pure; `admit` reserves and waits.

use std::sync::atomic::Ordering::Relaxed;

use lb_common::abi::BackendId;

use crate::routing::WorkerRoute;

/// A worker, and how the client came by it.
#[derive(Clone, Copy)]
pub enum Pick<'a> {
    /// The cookie names this live process, draining or not.
    Kept(&'a WorkerRoute),
    /// No cookie that counts.
    New(&'a WorkerRoute),
    /// The cookie names a process that is gone.
    Rebound(&'a WorkerRoute),
}

/// The worker for a client whose cookie names `incarnation`; `None` when no worker takes new clients, or has room for one.
/// `shunned` just refused a connection and gets no new client for now.
pub fn pick(workers: &[WorkerRoute], incarnation: Option<u64>, shunned: Option<BackendId>) -> Option<Pick<'_>> {
    let Some(incarnation) = incarnation else {
        return least_loaded(workers, shunned).map(Pick::New);
    };
    match workers.iter().find(|worker| worker.incarnation == incarnation) {
        Some(worker) => Some(Pick::Kept(worker)),
        None => least_loaded(workers, shunned).map(Pick::Rebound),
    }
}

fn least_loaded(workers: &[WorkerRoute], shunned: Option<BackendId>) -> Option<&WorkerRoute> {
    workers
        .iter()
        .filter(|worker| takes_clients(worker, shunned))
        .min_by_key(|worker| (worker.load.open.count(), worker.load.assigned.load(Relaxed)))
}

/// Whether a new client may go there.
pub fn takes_clients(worker: &WorkerRoute, shunned: Option<BackendId>) -> bool {
    worker.takes_new_clients() && Some(worker.backend) != shunned
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(number: u32, incarnation: u64, draining: bool) -> WorkerRoute {
        WorkerRoute {
            number,
            backend: BackendId::new(number, 1),
            incarnation,
            draining,
            room: u32::MAX,
            address: std::net::SocketAddr::from(([127, 0, 0, 1], 1)).into(),
            load: std::sync::Arc::default(),
        }
    }

    fn picked(pick: Option<Pick<'_>>) -> Option<(&'static str, u32)> {
        pick.map(|pick| match pick {
            Pick::Kept(worker) => ("kept", worker.number),
            Pick::New(worker) => ("new", worker.number),
            Pick::Rebound(worker) => ("rebound", worker.number),
        })
    }

    #[test]
    fn a_newcomer_gets_the_least_loaded_worker_that_is_not_draining() {
        let workers = [worker(0, 10, false), worker(1, 11, false), worker(2, 12, true)];
        workers[0].load.open.begin();
        workers[1].load.assigned.store(9, Relaxed);
        assert_eq!(picked(pick(&workers, None, None)), Some(("new", 1)), "open connections weigh first");
        workers[0].load.open.end();
        assert_eq!(picked(pick(&workers, None, None)), Some(("new", 0)), "then clients ever assigned");
        assert_eq!(picked(pick(&workers, None, Some(workers[0].backend))), Some(("new", 1)));
    }

    #[test]
    fn a_draining_worker_keeps_its_users_and_gets_no_others() {
        let workers = [worker(0, 10, true)];
        assert_eq!(picked(pick(&workers, Some(10), None)), Some(("kept", 0)));
        assert_eq!(picked(pick(&workers, None, None)), None);
        assert_eq!(picked(pick(&workers, Some(99), None)), None);
    }

    #[test]
    fn a_full_worker_keeps_its_users_and_gets_no_others() {
        let workers =
            [WorkerRoute { room: 2, ..worker(0, 10, false) }, WorkerRoute { room: 0, ..worker(1, 11, false) }];
        workers[0].load.open.begin();
        assert_eq!(picked(pick(&workers, None, None)), Some(("new", 0)), "one more has room");
        workers[0].load.open.begin();
        assert_eq!(picked(pick(&workers, None, None)), None);
        assert_eq!(picked(pick(&workers, Some(99), None)), None, "whose worker is gone is new here");
        assert_eq!(picked(pick(&workers, Some(10), None)), Some(("kept", 0)));
    }

    #[test]
    fn the_successor_of_a_dead_process_is_not_taken_for_it() {
        let workers = [worker(0, 20, false)];
        assert_eq!(picked(pick(&workers, Some(10), None)), Some(("rebound", 0)));
    }
}
