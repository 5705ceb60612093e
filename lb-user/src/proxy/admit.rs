//! From a request to a place at a worker, at once or after a wait. Where that is, `place` decides.

use std::sync::Arc;
use std::time::Duration;

use http::header::HeaderMap;
use lb_common::abi::BackendId;
use tokio::time::{Instant, timeout_at};

use super::Inner;
use super::answer::Refusal;
use super::counters::Counter;
use super::limits::REFUSED_PAUSE;
use super::place::{Place, Visitor};
use crate::routing::{AppRoute, Held, Notice, WorkerRoute};

/// How long one request has waited, over all its attempts.
#[derive(Default)]
pub struct Patience {
    /// When it first had to.
    since: Option<Instant>,
    held: Duration,
}

impl Patience {
    /// When the first wait began, which may be this one.
    fn since(&mut self) -> Instant {
        *self.since.get_or_insert_with(Instant::now)
    }

    /// Waits for it, and adds that up.
    async fn wait_for<T>(&mut self, what: impl Future<Output = T>) -> T {
        let begun = Instant::now();
        let waited = what.await;
        self.held += begun.elapsed();
        waited
    }

    /// Spent in queues and on workers that are just leaving.
    pub const fn held(&self) -> Duration {
        self.held
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
        let since = patience.since();
        Box::pin(patience.wait_for(self.wait(route, visitor, cookies, since, shunned))).await
    }

    async fn wait(
        &self,
        route: Arc<AppRoute>,
        visitor: Visitor,
        cookies: &HeaderMap,
        since: Instant,
        shunned: Option<BackendId>,
    ) -> Result<Place, Refusal> {
        self.check_failed(&route)?;
        let (ready, room) = (since + route.hold, since + route.http.full);
        if is_full(&route) && route.http.full.is_zero() {
            tracing::debug!(app = &*route.name, "request refused: every worker is full");
            return Err(self.refused(Counter::RefusedFull, Refusal::Full));
        }
        let turn = self.queues.join(visitor.app, route.http.queue, route.binding_key(visitor.address).client);
        let turn = turn.ok_or_else(|| self.refused(Counter::RefusedHeldFull, Refusal::HeldFull))?;
        let _held = Held::in_times(&route.times);
        drop(route);
        self.counters.add(Counter::Held);
        let mut changes = self.routing.snapshots.clone();
        loop {
            // Looked at and marked as seen in one step, so that no change is slept through.
            let route = changes.borrow_and_update().apps.get(&visitor.app).map(Arc::clone);
            let Some(route) = route else { return Err(Refusal::NoWorker { hold: Duration::ZERO }) };
            let loads = route.workers.iter().map(|worker| &worker.load);
            let look = match turn.look(loads, || self.place(&route, visitor, cookies, shunned)) {
                Ok(place) => return Ok(place),
                Err(look) => look,
            };
            if turn.is_over() {
                return Err(self.refused(Counter::RefusedHeldFull, Refusal::HeldFull));
            }
            self.check_failed(&route)?;
            self.notify(Notice::Demand { app: visitor.app });
            let (deadline, counter, refusal) = if is_full(&route) {
                (room, Counter::RefusedFull, Refusal::Full)
            } else {
                (ready, Counter::RefusedNoWorker, Refusal::NoWorker { hold: route.hold })
            };
            drop(route);
            if !matches!(timeout_at(deadline, look.again(changes.changed())).await, Ok(Ok(()))) {
                return Err(self.refused(counter, refusal));
            }
        }
    }

    /// After `backend` refused a connection: waits until control has taken it out, at most [`REFUSED_PAUSE`].
    pub(super) async fn await_departure(&self, app: u32, backend: BackendId, patience: &mut Patience) {
        let Some(hold) = self.route(app).map(|route| route.hold) else { return };
        let deadline = (patience.since() + hold).min(Instant::now() + REFUSED_PAUSE);
        let mut changes = self.routing.snapshots.clone();
        let gone =
            changes.wait_for(|snapshot| snapshot.apps.get(&app).is_none_or(|route| route.worker(backend).is_none()));
        // Gone or not, the caller chooses again.
        drop(patience.wait_for(timeout_at(deadline, gone)).await);
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

    fn refused(&self, counter: Counter, refusal: Refusal) -> Refusal {
        self.counters.add(counter);
        refusal
    }
}

/// Nobody has room, and no worker with more of it will come.
fn is_full(route: &AppRoute) -> bool {
    let mut workers = route.workers.iter().filter(|worker| !worker.draining).peekable();
    !route.may_grow && workers.peek().is_some() && !workers.any(WorkerRoute::has_room)
}
