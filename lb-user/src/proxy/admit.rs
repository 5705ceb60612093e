//! From a request to a place at a worker: by cookie or address, at once or after a wait. Reserves before it is used.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::header::{HeaderMap, HeaderValue};
use lb_common::abi::{BackendId, BindingKey};
use lb_common::affinity::Choice;
use tokio::time::{Instant, timeout_at};

use super::Inner;
use super::answer::Refusal;
use super::body::LoadGuard;
use super::cookie::{self, Presented};
use super::counters::Counter;
use super::limits::{HELD_MAX, REFUSED_PAUSE};
use super::session::{self, Pick};
use crate::config::Affinity;
use crate::routing::{AppRoute, Notice, WorkerRoute};

/// The client as affinity sees it.
#[derive(Clone, Copy)]
pub struct Visitor {
    pub app: u32,
    pub address: IpAddr,
    /// It came by TLS.
    pub is_secure: bool,
    pub presented: Presented,
    /// Asks for a page of its own: whatever it gets begins anew.
    pub navigates: bool,
}

/// A worker, reserved. Holds no part of the snapshot: a tunnel may keep it for days.
pub struct Place {
    pub worker: WorkerRoute,
    pub rule: Rule,
    pub load: LoadGuard,
    pub set_cookie: Option<HeaderValue>,
    /// To be refreshed while a tunnel is open.
    pub tie: Tie,
}

/// What keeps the client where it is, beside a cookie.
#[derive(Clone, Copy)]
pub enum Tie {
    None,
    /// It is bound by its address.
    Binding(BindingKey),
    /// It is promoted, for as long as its users are seen.
    Promotion(BindingKey),
}

/// Which rule placed a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    Ring,
    Bound,
    CookieNew,
    CookieKept,
    CookieRebound,
}

impl Rule {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::Bound => "bound",
            Self::CookieNew => "cookie_new",
            Self::CookieKept => "cookie_kept",
            Self::CookieRebound => "cookie_rebound",
        }
    }

    const fn counter(self) -> Counter {
        match self {
            Self::Ring => Counter::AddressRing,
            Self::Bound => Counter::AddressBound,
            Self::CookieNew => Counter::CookieNew,
            Self::CookieKept => Counter::CookieKept,
            Self::CookieRebound => Counter::CookieRebound,
        }
    }
}

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

    fn place(
        &self,
        route: &AppRoute,
        visitor: Visitor,
        cookies: &HeaderMap,
        shunned: Option<BackendId>,
    ) -> Option<Place> {
        let place = match route.affinity {
            Affinity::Ip => self.place_by_address(route, visitor.address),
            Affinity::Cookie => self.place_by_cookie(route, visitor, cookies, shunned),
            Affinity::Auto => self.place_by_either(route, visitor, cookies, shunned),
        }?;
        self.counters.add(place.rule.counter());
        Some(place)
    }

    fn place_by_address(&self, route: &AppRoute, address: IpAddr) -> Option<Place> {
        let bindings = &*self.routing.bindings;
        let choice = route.choose(bindings, address);
        let rule = match choice {
            Choice::Ring(_) => Rule::Ring,
            Choice::Bound(_) => Rule::Bound,
            Choice::HttpOnly | Choice::Promoted | Choice::NoWorker => return None,
        };
        let worker = route.worker(choice.backend()?)?.clone();
        let load = LoadGuard::new(&worker.load);
        // Before the request is sent, so that the client's next one finds it even if the ring changes meanwhile.
        let binding = route.binding_key(address);
        bindings.bind(&binding, worker.backend);
        Some(Place { worker, rule, load, set_cookie: None, tie: Tie::Binding(binding) })
    }

    fn place_by_cookie(
        &self,
        route: &AppRoute,
        visitor: Visitor,
        cookies: &HeaderMap,
        shunned: Option<BackendId>,
    ) -> Option<Place> {
        let incarnation = match visitor.presented {
            Presented::Incarnation(incarnation) => Some(incarnation),
            Presented::Absent | Presented::Invalid => None,
        };
        // A known user of a live worker moves nothing and needs no lock.
        if let Some(Pick::Kept(worker)) = incarnation.and_then(|_| session::pick(&route.workers, incarnation, None)) {
            let load = LoadGuard::new(&worker.load);
            return Some(Place {
                worker: worker.clone(),
                rule: Rule::CookieKept,
                load,
                set_cookie: None,
                tie: Tie::None,
            });
        }
        let (worker, rule, load) = {
            // One at a time from looking to reserving: two newcomers must not both see the same free worker.
            let _one = self.assigning.lock().unwrap_or_else(PoisonError::into_inner);
            let (worker, rule) = match session::pick(&route.workers, incarnation, shunned)? {
                Pick::Kept(worker) => (worker, Rule::CookieKept),
                Pick::New(worker) => (worker, Rule::CookieNew),
                Pick::Rebound(worker) => (worker, Rule::CookieRebound),
            };
            worker.load.assigned.fetch_add(1, Ordering::Relaxed);
            (worker.clone(), rule, LoadGuard::new(&worker.load))
        };
        let set_cookie =
            cookie::set(&self.keys, &route.cookie, visitor.is_secure, &route.name, worker.incarnation, cookies);
        Some(Place { worker, rule, load, set_cookie, tie: Tie::None })
    }

    /// By cookie where that tells more than the address: a promoted client is many users. One of them who comes with a
    /// page to ask for, or whose worker is gone, begins anew; who was there before the promotion goes on by address.
    fn place_by_either(
        &self,
        route: &AppRoute,
        visitor: Visitor,
        cookies: &HeaderMap,
        shunned: Option<BackendId>,
    ) -> Option<Place> {
        let key = route.binding_key(visitor.address);
        let bindings = &*self.routing.bindings;
        let is_known = matches!(visitor.presented, Presented::Incarnation(_));
        if bindings.promotion(&key).is_none() || !(is_known || visitor.navigates) {
            return self.place_by_address(route, visitor.address);
        }
        let place = self.place_by_cookie(route, visitor, cookies, shunned)?;
        let tie = Tie::Promotion(key);
        self.refresh(tie, place.worker.backend);
        Some(Place { tie, ..place })
    }

    /// Says that the client is there.
    pub(super) fn refresh(&self, tie: Tie, backend: BackendId) {
        let bindings = &*self.routing.bindings;
        match tie {
            Tie::None => {}
            Tie::Binding(key) => bindings.bind(&key, backend),
            Tie::Promotion(key) if bindings.promotion(&key).is_some_and(|at| at.seen_s == bindings.now_s()) => {}
            Tie::Promotion(key) => bindings.promote(&key),
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
        let has_room = |worker: &WorkerRoute| worker.load.open.load(Ordering::Relaxed) < worker.room;
        if route.may_grow || workers.peek().is_none() || workers.any(has_room) {
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
