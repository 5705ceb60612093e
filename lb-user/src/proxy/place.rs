//! Where a request goes now: the rules in their order, by session, cookie or address, and the reservation. Waits for nothing.

use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use http::header::{HeaderMap, HeaderValue};
use lb_common::abi::{BackendId, BindingKey};
use lb_common::affinity::Choice;

use super::Inner;
use super::body::LoadGuard;
use super::cookie::{self, Presented};
use super::counters::Counter;
use super::newcomers::{Looks, Newcomers};
use super::session::{self, Pick};
use crate::config::Affinity;
use crate::routing::{AppRoute, Bind, WorkerRoute};

/// The client as affinity sees it.
#[derive(Clone, Copy)]
pub struct Visitor {
    pub app: u32,
    pub address: IpAddr,
    /// It came by TLS.
    pub is_secure: bool,
    /// Its connection's number, if that is its own.
    pub connection: Option<u64>,
    pub presented: Presented,
    /// Asks for a page of its own: whatever it gets begins anew.
    pub navigates: bool,
    /// Asks for something of a Shiny session that lives there.
    pub session: Option<BackendId>,
}

/// A worker, reserved. Holds no part of the snapshot: a tunnel may keep it for days.
pub struct Place {
    pub worker: WorkerRoute,
    pub rule: Rule,
    pub load: LoadGuard,
    pub set_cookie: Option<HeaderValue>,
    /// To be refreshed while a tunnel is open.
    pub tie: Tie,
    /// Until the answer's head, and its cookie, are on their way.
    _awaited: Option<Awaited>,
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
    Session,
    Ring,
    Bound,
    CookieNew,
    CookieKept,
    CookieRebound,
    PageJoined,
    PageFollowed,
}

impl Rule {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Ring => "ring",
            Self::Bound => "bound",
            Self::CookieNew => "cookie_new",
            Self::CookieKept => "cookie_kept",
            Self::CookieRebound => "cookie_rebound",
            Self::PageJoined => "page_joined",
            Self::PageFollowed => "page_followed",
        }
    }

    /// Whether nothing of the client is at the worker yet, as far as anybody knows.
    pub const fn is_new(self) -> bool {
        matches!(self, Self::CookieNew | Self::CookieRebound | Self::PageJoined | Self::PageFollowed)
    }

    const fn counter(self) -> Counter {
        match self {
            Self::Session => Counter::SessionKept,
            Self::Ring => Counter::AddressRing,
            Self::Bound => Counter::AddressBound,
            Self::CookieNew => Counter::CookieNew,
            Self::CookieKept => Counter::CookieKept,
            Self::CookieRebound => Counter::CookieRebound,
            Self::PageJoined => Counter::PageJoined,
            Self::PageFollowed => Counter::PageFollowed,
        }
    }
}

/// Newcomers, and the lock that is taken from looking for the least loaded worker to reserving a place there: two must
/// not both see the same free worker.
#[derive(Clone, Default)]
pub struct Assigning(Arc<Mutex<Newcomers>>);

impl Assigning {
    fn lock(&self) -> MutexGuard<'_, Newcomers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A page that a browser without a cookie waits for.
struct Awaited {
    assigning: Assigning,
    looks: Looks,
    backend: BackendId,
}

impl Drop for Awaited {
    fn drop(&mut self) {
        self.assigning.lock().answered(self.looks, self.backend, Instant::now());
    }
}

impl Place {
    fn at(worker: &WorkerRoute, rule: Rule) -> Self {
        let load = LoadGuard::new(&worker.load);
        Self { worker: worker.clone(), rule, load, set_cookie: None, tie: Tie::None, _awaited: None }
    }
}

impl Inner {
    /// `None`: nobody can take the request now. `headers`: as the client sent them. `shunned` just refused a connection:
    /// it gets no new client.
    pub(super) fn place(
        &self,
        route: &AppRoute,
        visitor: Visitor,
        headers: &HeaderMap,
        shunned: Option<BackendId>,
    ) -> Option<Place> {
        let home = visitor.session.and_then(|backend| route.worker(backend));
        let place = match (home, route.affinity) {
            (Some(worker), _) => Some(Place::at(worker, Rule::Session)),
            (None, Affinity::Ip) => self.place_by_address(route, visitor.address),
            (None, Affinity::Cookie) => self.place_by_cookie(route, visitor, headers, shunned),
            (None, Affinity::Auto) => self.place_by_either(route, visitor, headers, shunned),
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
        let worker = route.worker(choice.backend()?)?;
        // Before the request is sent, so that the client's next one finds it even if the ring changes meanwhile.
        let tie = Tie::Binding(route.binding_key(address));
        self.refresh(tie, worker.backend);
        Some(Place { tie, ..Place::at(worker, rule) })
    }

    fn place_by_cookie(
        &self,
        route: &AppRoute,
        visitor: Visitor,
        headers: &HeaderMap,
        shunned: Option<BackendId>,
    ) -> Option<Place> {
        let incarnation = visitor.presented.incarnation();
        let cookie = |worker: &WorkerRoute| {
            cookie::set(&self.keys, &route.cookie, visitor.is_secure, &route.name, worker.incarnation, headers)
        };
        // A known user of a live worker moves nothing and needs no lock.
        if let Some(Pick::Kept(worker)) = incarnation.and_then(|_| session::pick(&route.workers, incarnation, None)) {
            let is_aging = matches!(visitor.presented, Presented::Aging(_));
            let set_cookie = is_aging.then(|| cookie(worker)).flatten();
            return Some(Place { set_cookie, ..Place::at(worker, Rule::CookieKept) });
        }
        let key = route.binding_key(visitor.address);
        let looks = self.fingerprints.of(&key, headers, incarnation, visitor.connection);
        let mut place = self.assign(route, incarnation, looks, visitor.navigates, shunned)?;
        place.set_cookie = cookie(&place.worker);
        Some(place)
    }

    /// For who comes without a cookie, or whose worker is gone.
    fn assign(
        &self,
        route: &AppRoute,
        incarnation: Option<u64>,
        looks: Option<Looks>,
        navigates: bool,
        shunned: Option<BackendId>,
    ) -> Option<Place> {
        let now = Instant::now();
        let mut newcomers = self.assigning.lock();
        let awaited = |looks: Looks, backend| Awaited { assigning: self.assigning.clone(), looks, backend };
        if let (Some(looks), false) = (looks, navigates) {
            let page = newcomers.follow(looks, now).and_then(|backend| route.worker(backend));
            if let Some(worker) = page.filter(|worker| Some(worker.backend) != shunned) {
                return Some(Place::at(worker, Rule::PageFollowed));
            }
        }
        let page = looks.filter(|_| navigates);
        let takes_clients =
            |backend| route.worker(backend).is_some_and(|worker| session::takes_clients(worker, shunned));
        let joined = page.and_then(|looks| newcomers.join(looks, now, takes_clients));
        let (worker, rule) = match joined.and_then(|backend| route.worker(backend)) {
            Some(worker) => (worker, Rule::PageJoined),
            None => match session::pick(&route.workers, incarnation, shunned)? {
                Pick::Kept(worker) => (worker, Rule::CookieKept),
                Pick::New(worker) => (worker, Rule::CookieNew),
                Pick::Rebound(worker) => (worker, Rule::CookieRebound),
            },
        };
        if let (Some(looks), None) = (page, joined) {
            newcomers.found(looks, worker.backend, now);
        }
        worker.load.assigned.fetch_add(1, Ordering::Relaxed);
        Some(Place { _awaited: page.map(|looks| awaited(looks, worker.backend)), ..Place::at(worker, rule) })
    }

    /// By cookie where that tells more than the address: a promoted client is many users. One of them who comes with a
    /// page to ask for, or whose worker is gone, begins anew; who was there before the promotion goes on by address.
    fn place_by_either(
        &self,
        route: &AppRoute,
        visitor: Visitor,
        headers: &HeaderMap,
        shunned: Option<BackendId>,
    ) -> Option<Place> {
        let key = route.binding_key(visitor.address);
        let bindings = &*self.routing.bindings;
        let is_known = visitor.presented.incarnation().is_some();
        if bindings.promotion(&key).is_none() || !(is_known || visitor.navigates) {
            return self.place_by_address(route, visitor.address);
        }
        let place = self.place_by_cookie(route, visitor, headers, shunned)?;
        let tie = Tie::Promotion(key);
        self.refresh(tie, place.worker.backend);
        Some(Place { tie, ..place })
    }

    /// Says that the client is there.
    pub(super) fn refresh(&self, tie: Tie, backend: BackendId) {
        let bindings = &*self.routing.bindings;
        match tie {
            Tie::None => {}
            Tie::Binding(key) => match bindings.bind(&key, backend) {
                Bind::Kept => {}
                Bind::New => self.counters.add(Counter::BindingNew),
                Bind::Moved => self.counters.add(Counter::BindingMoved),
            },
            Tie::Promotion(key) if bindings.promotion(&key).is_some_and(|at| at.seen_s == bindings.now_s()) => {}
            Tie::Promotion(key) => bindings.promote(&key),
        }
    }
}
