//! What control publishes and the HTTP path reads: an immutable picture of apps and workers, and two ways back
//! (a request for a worker, a report that one cannot be reached).
//!
//! Nothing here decides; `control` makes snapshots and `proxy` follows them.

mod door;
mod open;
mod times;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use lb_common::abi::{BackendId, Binding, BindingKey, Promotion, Service, Slot};
use lb_common::addr::Addr;
use lb_common::affinity::{self, Choice, Tables};
use tokio::sync::{mpsc, watch};

use crate::address::Address;
use crate::config::{Affinity, Cookie, Http, Protect, SendProxy};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use door::fuzz;
pub use door::{Door, Found, Lost};
pub use open::Open;
pub use times::{BOUNDS, Held, Histogram, Observed, Times};

/// All apps, as they are now.
#[derive(Clone, Default)]
pub struct Snapshot {
    /// By app number.
    pub apps: BTreeMap<u32, Arc<AppRoute>>,
    /// By listen address.
    pub doors: Arc<BTreeMap<SocketAddr, Arc<Door>>>,
    /// Proxies that are believed whom they speak for.
    pub trusted: Arc<[IpNet]>,
}

/// Whether this is one of these.
pub fn is_trusted(trusted: &[IpNet], address: IpAddr) -> bool {
    trusted.iter().any(|net| net.contains(&address))
}

/// One app, as it is now.
pub struct AppRoute {
    pub name: Arc<str>,
    /// Its number in the datapath's tables.
    pub app: u32,
    pub affinity: Affinity,
    pub cookie: Arc<Cookie>,
    /// Who is refused, if anybody is; where [`Door::guards`] is not set the kernel does it.
    pub protect: Option<Arc<Protect>>,
    /// Connections to its workers begin with a PROXY header.
    pub send_proxy: Option<SendProxy>,
    /// What its requests may be, and how long they may take.
    pub http: Arc<Http>,
    /// A request is held this long for a worker, at most.
    pub hold: Duration,
    /// Prefixes, seed and timeouts as the datapath has them.
    pub service: Service,
    pub ring: Arc<[Slot]>,
    /// Workers that can be sent requests: ready ones, and draining ones for whom they know.
    pub workers: Vec<WorkerRoute>,
    /// Whether more workers take clients soon, or may be started. Where not, who finds no room is refused at once.
    pub may_grow: bool,
    /// Why there will be no worker, when the app has failed: the reason that `homing status` prints.
    pub failed: Option<Arc<str>>,
    /// How long its requests wait and take.
    pub times: Arc<Times>,
}

#[derive(Clone)]
pub struct WorkerRoute {
    /// `N` of `APP/N`.
    pub number: u32,
    pub backend: BackendId,
    /// Random name of this very process; what a cookie names.
    pub incarnation: u64,
    /// Takes no new clients.
    pub draining: bool,
    /// Requests and tunnels that it may have in flight beside its kernel-path connections; who knows it comes in beyond.
    pub room: u32,
    pub address: Address,
    pub load: Arc<Load>,
}

impl WorkerRoute {
    /// Whether a new client may come to it, as far as its load goes.
    pub fn has_room(&self) -> bool {
        self.load.open.count() < self.room
    }

    pub fn takes_new_clients(&self) -> bool {
        !self.draining && self.has_room()
    }
}

/// What the HTTP path counts per worker process.
#[derive(Default)]
pub struct Load {
    pub open: Open,
    /// Clients ever assigned to it by cookie.
    pub assigned: AtomicU64,
    /// Requests ever forwarded to it.
    pub requests: AtomicU64,
    /// Its app's.
    pub times: Arc<Times>,
}

impl Load {
    /// Of a worker of the app whose times these are.
    pub fn counted_in(times: &Arc<Times>) -> Arc<Self> {
        Arc::new(Self { times: Arc::clone(times), ..Self::default() })
    }

    /// The worker began to answer a request that was sent at that moment.
    #[inline]
    pub fn answered(&self, sent: Instant) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.times.upstream.observe(sent.elapsed());
    }
}

/// What [`Bindings::bind`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bind {
    /// The client was bound to that backend already, or could not be bound.
    Kept,
    /// It was bound to nobody.
    New,
    /// It was bound to another backend.
    Moved,
}

impl Bind {
    /// After `former`, the binding to `backend`.
    pub fn of(former: Option<BackendId>, backend: BackendId) -> Self {
        match former {
            None => Self::New,
            Some(former) if former == backend => Self::Kept,
            Some(_) => Self::Moved,
        }
    }
}

/// Client → backend bindings of address affinity, and which clients are promoted, wherever they are kept (BPF maps, or
/// memory without these).
pub trait Bindings: Send + Sync {
    fn get(&self, key: &BindingKey) -> Option<Binding>;
    /// Binds the client to `backend`, or refreshes the binding. Cheap enough to call once a request.
    fn bind(&self, key: &BindingKey, backend: BackendId) -> Bind;
    /// Binds the client as it was bound in another table, whose clock is the same. What is known here is newer.
    fn inherit(&self, key: &BindingKey, backend: BackendId, seen_s: u32);
    /// Promotes the client as it was elsewhere.
    fn inherit_promotion(&self, key: &BindingKey, promotion: Promotion);
    /// All bindings, in no order; those written meanwhile may be missing.
    fn all(&self) -> Vec<(BindingKey, Binding)>;
    /// The client's promotion, if its users are told apart by cookie.
    fn promotion(&self, key: &BindingKey) -> Option<Promotion>;
    /// Promotes the client, or says that one of its users was seen. Past [`lb_common::abi::PROMOTED_MAX`] clients
    /// nothing happens.
    fn promote(&self, key: &BindingKey);
    /// Ends the client's promotion.
    fn demote(&self, key: &BindingKey);
    /// All promotions, in no order; those written meanwhile may be missing.
    fn promotions(&self) -> Vec<(BindingKey, Promotion)>;
    /// Seconds of CLOCK_MONOTONIC, as all of these are stamped.
    fn now_s(&self) -> u32;
}

/// What the HTTP path tells control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A request is held because no worker can take it.
    Demand { app: u32 },
    /// A connection to the worker was refused or broke before an answer.
    Unreachable { backend: BackendId },
}

/// The HTTP path's connection to the rest of homing. Cheap to clone.
#[derive(Clone)]
pub struct RoutingHandle {
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    pub notices: mpsc::Sender<Notice>,
    pub bindings: Arc<dyn Bindings>,
}

impl AppRoute {
    /// The datapath's own decision for this address, made in user space over the same tables.
    pub fn choose(&self, bindings: &dyn Bindings, address: IpAddr) -> Choice {
        // What the kernel leaves to the HTTP path is decided here by address all the same.
        let service = Service { flags: 0, ..self.service };
        affinity::choose(&RouteTables { route: self, bindings }, &service, Addr::from(address))
    }

    /// The key under which the client with this address is bound.
    pub fn binding_key(&self, address: IpAddr) -> BindingKey {
        BindingKey { client: affinity::client_of(&self.service, Addr::from(address)), app: self.app, reserved: 0 }
    }

    pub fn worker(&self, backend: BackendId) -> Option<&WorkerRoute> {
        self.workers.iter().find(|worker| worker.backend == backend)
    }
}

struct RouteTables<'a> {
    route: &'a AppRoute,
    bindings: &'a dyn Bindings,
}

impl Tables for RouteTables<'_> {
    fn slot(&self, _app: u32, index: u32) -> Option<Slot> {
        self.route.ring.get(index as usize).copied()
    }

    fn binding(&self, key: &BindingKey) -> Option<Binding> {
        self.bindings.get(key)
    }

    fn is_live(&self, backend: BackendId) -> bool {
        self.route.worker(backend).is_some()
    }

    fn now_s(&self) -> u32 {
        self.bindings.now_s()
    }
}
