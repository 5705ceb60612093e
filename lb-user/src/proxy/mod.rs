//! The HTTP path: client → homing → worker, for what an address cannot decide and for as long as no worker is there.
//!
//! Layers, in the order in which a request meets them: `listen` → `welcome` (`proxied`, `handshake`) → `serve` (hyper's server) →
//! `h2` → `check` → `trust` → `routing::Door` (host and path → app) → `headers` → `cookie` → `admit` (with `queue` for who waits) → `place` (with `session` for who
//! belongs where, `sessions` for what `learn` heard and `newcomers` for who has no cookie yet) → `upstream` (HTTP/1.1 to the worker) and `body`, or `tunnel`. `handle` strings them together, `answer`
//! has the words for every refusal. What is not here: which workers exist (`control` publishes that in
//! `crate::routing`) and how an address is placed (`lb_common::affinity`).

mod admit;
mod answer;
#[cfg(test)]
mod behind;
mod body;
#[cfg(test)]
mod bounded;
mod check;
mod connection;
mod cookie;
mod counters;
mod crowd;
#[cfg(test)]
mod encrypted;
mod entry;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing {
    pub use super::cookie::fuzz::cookie;
    pub use super::gate::fuzz::gate;
    pub use super::learn::fuzz::learn;
    pub use super::proxied::fuzz::proxied;
}
mod gate;
mod guard;
mod h2;
mod handle;
mod handshake;
mod headers;
mod keys;
mod learn;
pub mod limits;
mod listen;
#[cfg(test)]
mod lives;
#[cfg(test)]
mod logged;
#[cfg(test)]
mod moving;
#[cfg(test)]
mod multiplexed;
mod newcomers;
mod patience;
mod place;
mod proxied;
mod queue;
#[cfg(test)]
mod retries;
#[cfg(test)]
mod scenarios;
mod seldom;
mod serve;
mod session;
mod sessions;
#[cfg(test)]
mod sharing;
mod stream;
mod streams;
#[cfg(test)]
pub(crate) mod testing;
mod told;
#[cfg(test)]
mod traced;
mod trust;
mod tunnel;
#[cfg(test)]
mod turns;
mod upstream;
mod vacancies;
mod welcome;
#[cfg(test)]
mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use lb_common::abi::BackendId;
use tokio::sync::watch;

pub use counters::{Counter, Counters};
pub use keys::{CookieKeys, KEY_BYTES, KEY_FILE};

use crate::access::{self, AccessLog};
use crate::live::Live;
use crate::routing::RoutingHandle;
use crate::spans::{self, Spans};

/// A socket to serve, bound and listening.
pub struct Listener {
    /// Its address as it is configured, under which the snapshot says what is behind it.
    pub address: SocketAddr,
    pub socket: std::net::TcpListener,
}

/// What all listeners are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    Serving,
    /// Accept nothing, finish what is open, keep no connection alive. Tunnels stay.
    Draining,
    /// Break off everything, tunnels too.
    Now,
}

/// The HTTP path of all apps. Cheap to clone.
#[derive(Clone)]
pub struct Proxy(Arc<Inner>);

struct Inner {
    access: Option<Arc<AccessLog>>,
    spans: Option<Spans>,
    /// Who is told of decisions as they are made.
    live: Live,
    routing: RoutingHandle,
    keys: CookieKeys,
    counters: Arc<Counters>,
    upstreams: upstream::Upstreams,
    tunnels: tunnel::Tunnels,
    relays: tunnel::Relays,
    sessions: Arc<sessions::Sessions>,
    ids: headers::RequestIds,
    queues: queue::Queues,
    /// Open client connections by app.
    connections: connection::OpenConnections,
    /// The same by client, where that matters.
    crowds: crowd::Crowds,
    pace: guard::Pace,
    complaints: welcome::Complaints,
    handshakes: handshake::Handshakes,
    assigning: place::Assigning,
    fingerprints: newcomers::Fingerprints,
    /// The number of the next client connection.
    next_connection: AtomicU64,
}

impl Proxy {
    /// What is left to be sent of traces is, for a second at most. Blocks.
    pub fn finish(&self) {
        if let Some(spans) = &self.0.spans {
            spans.finish();
        }
    }

    /// # Errors
    /// When the access log cannot be opened.
    pub fn new(
        routing: RoutingHandle,
        keys: CookieKeys,
        access: Option<&access::Settings>,
        traces: Option<&spans::Settings>,
    ) -> io::Result<Self> {
        let counters = Arc::new(Counters::new());
        let counted = |counter| -> access::Dropped {
            let counters = Arc::clone(&counters);
            Arc::new(move |count| counters.add_many(counter, count))
        };
        let open = |settings| AccessLog::open(settings, counted(Counter::AccessLogDropped)).map(Arc::new);
        let access = access.map(open).transpose()?;
        let spans = traces.map(|settings| Spans::new(settings, counted(Counter::SpansDropped)));
        // Without random bytes request ids merely repeat after a restart.
        let ids = headers::RequestIds::new(getrandom::u64().unwrap_or_default());
        Ok(Self(Arc::new(Inner {
            access,
            spans,
            live: Live::default(),
            routing,
            keys,
            upstreams: upstream::Upstreams::new(Arc::clone(&counters)),
            counters,
            tunnels: tunnel::Tunnels::default(),
            relays: tunnel::Relays::default(),
            sessions: Arc::default(),
            ids,
            queues: queue::Queues::default(),
            connections: connection::OpenConnections::default(),
            crowds: crowd::Crowds::default(),
            pace: guard::Pace::default(),
            complaints: welcome::Complaints::default(),
            handshakes: handshake::Handshakes::default(),
            assigning: place::Assigning::default(),
            fingerprints: newcomers::Fingerprints::default(),
            next_connection: AtomicU64::new(0),
        })))
    }

    /// Serves the listener until `shutdown` says otherwise and its last connection is gone, or at once on
    /// [`Shutdown::Now`]. A dropped sender means the same.
    pub async fn serve(self, listener: Listener, shutdown: watch::Receiver<Shutdown>) -> io::Result<()> {
        listen::serve(self.0, listener, shutdown).await
    }

    pub fn open_tunnels(&self) -> usize {
        self.0.tunnels.open()
    }

    pub fn open_tunnels_at(&self, backend: BackendId) -> usize {
        self.0.tunnels.open_at(backend)
    }

    /// Requests of the app that are held for a worker now.
    pub fn held(&self, app: u32) -> usize {
        self.0.queues.of(app)
    }

    /// Client connections of the app that are open now.
    pub fn connections(&self, app: u32) -> usize {
        self.0.connections.of(app)
    }

    /// Those who are told of decisions, of this path's by itself.
    pub fn live(&self) -> &Live {
        &self.0.live
    }

    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }
}
