//! Connections to workers: one pool per worker process, and what a failure means for the request.
//!
//! hyper's own connection under a pool of our own, not hyper-util's pooled client: a pool per incarnation cannot hand
//! out a predecessor's connection, a refused request comes back whole to be placed elsewhere, and nothing is boxed,
//! spawned or allocated per request.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

use super::body::{Fault, Passage, RequestBody};
use super::counters::{Counter, Counters};
use super::limits::{BUFFER_BYTES_MAX, CONNECT_TIMEOUT, HEAD_BYTES_MAX, POOL_IDLE_MAX, POOL_IDLE_TIMEOUT};
use crate::address::Address;
use crate::routing::{Snapshot, WorkerRoute};

/// Why there is no answer.
pub enum SendError {
    /// No connection could be made; the request has not been touched.
    Refused { request: Box<Request<RequestBody>>, error: io::Error },
    /// The connection broke before an answer, with the request under way.
    Broke(hyper::Error),
    /// It is the client's body; the worker is not to blame.
    ClientBody(Fault),
}

/// Whom a worker is told, at the beginning of a connection, that it is for: nobody else's request may come on it.
pub struct Introduction {
    pub client: SocketAddr,
    /// What tells it.
    pub header: Vec<u8>,
}

/// An incarnation, and the client whose connections these are where the worker is told.
type PoolKey = (u64, Option<SocketAddr>);

/// All pools.
pub struct Upstreams {
    pools: RwLock<HashMap<PoolKey, Arc<Pool>>>,
    counters: Arc<Counters>,
}

#[derive(Default)]
struct Pool {
    idle: Mutex<Vec<Idle>>,
}

struct Idle {
    sender: SendRequest<RequestBody>,
    since: Instant,
}

/// A connection in use, to be given back when the answer has been read to its end; dropped, it is closed.
pub struct Lease {
    sender: SendRequest<RequestBody>,
    /// None for a connection that was made for one request only.
    pool: Option<Arc<Pool>>,
    counters: Arc<Counters>,
}

impl Lease {
    pub(super) fn release(self) {
        if let Some(pool) = &self.pool {
            pool.put(self.sender);
        }
    }

    pub(super) fn broke(self) {
        self.counters.add(Counter::UpstreamBroke);
    }
}

impl Upstreams {
    pub fn new(counters: Arc<Counters>) -> Self {
        Self { pools: RwLock::default(), counters }
    }

    /// Sends the request to the worker, on an idle connection if there is one.
    pub async fn send(
        &self,
        worker: &WorkerRoute,
        introduction: Option<&Introduction>,
        mut request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Lease), SendError> {
        let pool = self.pool((worker.incarnation, introduction.map(|introduction| introduction.client)));
        let passage = request.body().passage();
        if let Some(mut sender) = pool.take() {
            // An idle connection may be closed by the worker in this very moment. What was not sent comes back from
            // hyper; what was sent is repeated only if that does no harm (RFC 9110 section 9.2.2).
            let spare = repeatable(&request);
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((response, self.lease(sender, Some(pool)))),
                Err(mut error) => match error.take_message().or(spare) {
                    Some(unsent) => request = unsent,
                    None => return Err(blame(error.into_error(), passage.as_deref())),
                },
            }
            self.counters.add(Counter::Retried);
        }
        let mut sender = match Box::pin(connect(&worker.address, introduction, false)).await {
            Ok(sender) => sender,
            Err(error) => return Err(SendError::Refused { request: Box::new(request), error }),
        };
        match sender.try_send_request(request).await {
            Ok(response) => Ok((response, self.lease(sender, Some(pool)))),
            Err(error) => Err(blame(error.into_error(), passage.as_deref())),
        }
    }

    /// Sends a request that may take its connection over: on one of its own.
    pub async fn send_alone(
        &self,
        worker: &WorkerRoute,
        introduction: Option<&Introduction>,
        request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Lease), SendError> {
        let mut sender = match Box::pin(connect(&worker.address, introduction, true)).await {
            Ok(sender) => sender,
            Err(error) => return Err(SendError::Refused { request: Box::new(request), error }),
        };
        match sender.try_send_request(request).await {
            Ok(response) => Ok((response, self.lease(sender, None))),
            Err(error) => Err(SendError::Broke(error.into_error())),
        }
    }

    /// Closes what has been idle too long and forgets workers that are gone.
    pub fn sweep(&self, snapshot: &Snapshot) {
        let lives = |incarnation: &u64| {
            snapshot.apps.values().any(|app| app.workers.iter().any(|worker| worker.incarnation == *incarnation))
        };
        let mut pools = self.pools.write().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|(incarnation, client), pool| {
            let mut idle = pool.idle();
            idle.retain(Idle::is_usable);
            // Clients come and go. A connection that is in use comes back to the pool that it was taken from.
            lives(incarnation) && (client.is_none() || !idle.is_empty() || Arc::strong_count(pool) > 1)
        });
    }

    /// Connections that the next request would find.
    #[cfg(test)]
    pub fn ready(&self) -> usize {
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        let ready =
            |pool: &Arc<Pool>| pool.idle().iter().filter(|idle| idle.is_usable() && idle.sender.is_ready()).count();
        pools.values().map(ready).sum()
    }

    fn lease(&self, sender: SendRequest<RequestBody>, pool: Option<Arc<Pool>>) -> Lease {
        Lease { sender, pool, counters: Arc::clone(&self.counters) }
    }

    fn pool(&self, key: PoolKey) -> Arc<Pool> {
        if let Some(pool) = self.pools.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Arc::clone(pool);
        }
        let mut pools = self.pools.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(pools.entry(key).or_default())
    }
}

impl Pool {
    /// The connection that was used last, so that those in excess grow old. One whose request body is still on its
    /// way is left until it is ready.
    fn take(&self) -> Option<SendRequest<RequestBody>> {
        let mut idle = self.idle();
        let ready = idle.iter().rposition(|idle| idle.is_usable() && idle.sender.is_ready())?;
        Some(idle.remove(ready).sender)
    }

    fn put(&self, sender: SendRequest<RequestBody>) {
        let mut idle = self.idle();
        if idle.len() < POOL_IDLE_MAX && !sender.is_closed() {
            idle.push(Idle { sender, since: Instant::now() });
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Idle {
    fn is_usable(&self) -> bool {
        !self.sender.is_closed() && self.since.elapsed() < POOL_IDLE_TIMEOUT
    }
}

async fn connect(
    address: &Address,
    introduction: Option<&Introduction>,
    upgradeable: bool,
) -> io::Result<SendRequest<RequestBody>> {
    let connected = async {
        let mut stream = address.connect().await?;
        if let Some(introduction) = introduction {
            stream.write_all(&introduction.header).await?;
        }
        io::Result::Ok(stream)
    };
    let stream = match timeout(CONNECT_TIMEOUT, connected).await {
        Ok(connected) => connected?,
        Err(_) => return Err(io::ErrorKind::TimedOut.into()),
    };
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(BUFFER_BYTES_MAX)
        .max_header_size(HEAD_BYTES_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    // An error of the connection reaches the request that it belongs to; without one it means nothing.
    if upgradeable {
        tokio::spawn(async move { drop(connection.with_upgrades().await) });
    } else {
        tokio::spawn(async move { drop(connection.await) });
    }
    Ok(sender)
}

/// A copy of the request if it may be sent twice.
fn repeatable(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    let idempotent =
        matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE);
    if !idempotent || !request.body().is_empty() {
        return None;
    }
    let mut copy = Request::new(RequestBody::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

fn blame(error: hyper::Error, passage: Option<&Passage>) -> SendError {
    match passage.and_then(Passage::fault) {
        Some(fault) => SendError::ClientBody(fault),
        None => SendError::Broke(error),
    }
}
