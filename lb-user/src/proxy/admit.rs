//! From a request to a place at a worker, at once or after a wait. Where that is, `place` decides.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::header::HeaderMap;
use lb_common::abi::BackendId;
use tokio::time::{Instant, timeout_at};

use super::Inner;
use super::answer::Refusal;
use super::counters::Counter;
use super::limits::{HELD_MAX, REFUSED_PAUSE};
use super::place::{Place, Visitor};
use crate::routing::{AppRoute, Notice, WorkerRoute};

/// How long one request still waits, over all its attempts; the clock starts with the first wait.
#[derive(Default)]
pub struct Patience(Option<Instant>);

impl Patience {
    fn deadline(&mut self, hold: Duration) -> Instant {
        *self.0.get_or_insert_with(|| Instant::now() + hold)
    }
}

impl Inner {
    /// A place for the visitor, held for if there is none yet. `cookies`: the request's headers as the client sent
    /// them. `shunned` just refused a connection: it gets no new client.
    pub(super) async fn admit(
        &self,
        visitor: Visitor,
        cookies: &HeaderMap,
        patience: &mut Patience,
        shunned: Option<BackendId>,
    ) -> Result<Place, Refusal> {
        let Some(route) = self.route(visitor.app) else {
            return Err(Refusal::NoWorker { hold: Duration::ZERO });
        };
        if let Some(place) = self.place(&route, visitor, cookies, shunned) {
            return Ok(place);
        }
        // Waiting is seldom, and kept out of what every request carries around.
        Box::pin(self.wait(route, visitor, cookies, patience, shunned)).await
    }

    async fn wait(
        &self,
        route: Arc<AppRoute>,
        visitor: Visitor,
        cookies: &HeaderMap,
        patience: &mut Patience,
        shunned: Option<BackendId>,
    ) -> Result<Place, Refusal> {
        self.check_failed(&route)?;
        self.check_full(&route)?;
        let deadline = patience.deadline(route.hold);
        drop(route);
        let _held = Held::new(&self.holding, visitor.app)
            .ok_or_else(|| self.refused(Counter::RefusedHeldFull, Refusal::HeldFull))?;
        self.counters.add(Counter::Held);
        let mut changes = self.routing.snapshots.clone();
        loop {
            // Looked at and marked as seen in one step, so that no change is slept through.
            let route = changes.borrow_and_update().apps.get(&visitor.app).map(Arc::clone);
            let Some(route) = route else { return Err(Refusal::NoWorker { hold: Duration::ZERO }) };
            if let Some(place) = self.place(&route, visitor, cookies, shunned) {
                return Ok(place);
            }
            self.check_failed(&route)?;
            self.check_full(&route)?;
            self.notify(Notice::Demand { app: visitor.app });
            let hold = route.hold;
            drop(route);
            if !matches!(timeout_at(deadline, changes.changed()).await, Ok(Ok(()))) {
                return Err(self.refused(Counter::RefusedNoWorker, Refusal::NoWorker { hold }));
            }
        }
    }

    /// After `backend` refused a connection: waits until control has taken it out, at most [`REFUSED_PAUSE`].
    pub(super) async fn await_departure(&self, app: u32, backend: BackendId, patience: &mut Patience) {
        let Some(hold) = self.route(app).map(|route| route.hold) else { return };
        let deadline = patience.deadline(hold).min(Instant::now() + REFUSED_PAUSE);
        let mut changes = self.routing.snapshots.clone();
        let gone =
            changes.wait_for(|snapshot| snapshot.apps.get(&app).is_none_or(|route| route.worker(backend).is_none()));
        // Gone or not, the caller chooses again.
        drop(timeout_at(deadline, gone).await);
    }

    pub(super) fn route(&self, app: u32) -> Option<Arc<AppRoute>> {
        self.routing.snapshots.borrow().apps.get(&app).map(Arc::clone)
    }

    pub(super) fn notify(&self, notice: Notice) {
        // Control must not slow requests down; a full queue says that it has been told already.
        if self.routing.notices.try_send(notice).is_err() {
            self.counters.add(Counter::NoticesDropped);
        }
    }

    fn check_failed(&self, route: &AppRoute) -> Result<(), Refusal> {
        let Some(reason) = &route.failed else { return Ok(()) };
        tracing::debug!(app = &*route.name, %reason, "request refused: the app has failed");
        Err(self.refused(Counter::RefusedFailed, Refusal::Failed))
    }

    /// Nobody has room: who is new need not wait where no worker will come.
    fn check_full(&self, route: &AppRoute) -> Result<(), Refusal> {
        let mut workers = route.workers.iter().filter(|worker| !worker.draining).peekable();
        if route.may_grow || workers.peek().is_none() || workers.any(WorkerRoute::has_room) {
            return Ok(());
        }
        tracing::debug!(app = &*route.name, "request refused: every worker is full");
        Err(self.refused(Counter::RefusedFull, Refusal::Full))
    }

    fn refused(&self, counter: Counter, refusal: Refusal) -> Refusal {
        self.counters.add(counter);
        refusal
    }
}

/// Requests that wait for a worker now, per app.
#[derive(Default)]
pub struct Holding(Mutex<HashMap<u32, usize>>);

impl Holding {
    pub fn of(&self, app: u32) -> usize {
        self.table().get(&app).copied().unwrap_or(0)
    }

    fn table(&self) -> MutexGuard<'_, HashMap<u32, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A held request, counted; at most [`HELD_MAX`] at once.
struct Held<'a> {
    holding: &'a Holding,
    app: u32,
}

impl<'a> Held<'a> {
    fn new(holding: &'a Holding, app: u32) -> Option<Self> {
        let mut table = holding.table();
        if table.values().sum::<usize>() >= HELD_MAX {
            return None;
        }
        *table.entry(app).or_insert(0) += 1;
        Some(Self { holding, app })
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(held) = self.holding.table().get_mut(&self.app) {
            *held -= 1;
        }
    }
}
