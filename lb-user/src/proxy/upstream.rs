//! Requests to workers and their answers, in HTTP/1.1: one pool of connections per worker process, and what a failure
//! means for the request.
//!
//! Our own, not hyper's client: that moves each message through a task and channels of its own, which was a fifth of what a
//! request cost (docs/decisions/0033). A pool per incarnation cannot hand out a predecessor's connection, and a refused
//! request comes back whole to be placed elsewhere. Syntax is httparse's, as it is hyper's.

mod connection;
mod framing;
mod head;
mod pool;
mod sending;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use http::{Request, Response};
use tokio::io::AsyncWriteExt as _;
use tokio::time::sleep;

pub use connection::Arriving;

use super::body::{Fault, RequestBody};
use super::counters::{Counter, Counters};
use super::limits::{ACCEPT_PAUSE, CONNECT_TIMEOUT};
use super::patience::timeout;
use crate::address::{Address, Stream};
use crate::routing::{Snapshot, WorkerRoute};
use crate::trouble::{Trouble, is_want};
use connection::{Unanswered, exchange};
use pool::Pool;
use sending::Sending;

/// The connection that a request is sent on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum On {
    /// An idle one, if there is one.
    Any,
    New,
    /// A new one, which the request may take over.
    Own,
}

/// Why there is no answer.
pub enum SendError {
    /// No connection could be made; the request has not been touched.
    Refused { request: Box<Request<RequestBody>>, error: io::Error },
    /// The connection broke before an answer, with the request under way: which is here again if it was sent once, nothing
    /// was answered and to send it once more does no harm (RFC 9110 section 9.2.2).
    Broke { error: Failed, request: Option<Box<Request<RequestBody>>> },
    /// It is the client's body; the worker is not to blame.
    ClientBody(Fault),
}

/// What is wrong with an answer, or with the connection that it should come on.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    #[error("the worker closed the connection before the end of its answer")]
    Ended,
    #[error("the worker sent {0}")]
    Malformed(&'static str),
    #[error("the connection to the worker broke")]
    Io(#[source] io::Error),
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
    /// Connections for which something is lacking.
    trouble: Mutex<Trouble>,
}

impl Upstreams {
    pub fn new(counters: Arc<Counters>) -> Self {
        Self { pools: RwLock::default(), counters, trouble: Mutex::default() }
    }

    /// Sends the request to the worker.
    pub async fn send(
        &self,
        worker: &WorkerRoute,
        introduction: Option<&Introduction>,
        request: Request<RequestBody>,
        on: On,
    ) -> Result<Response<Arriving>, SendError> {
        let (parts, body) = request.into_parts();
        let mut sending = Box::new(Sending::new(&parts, body));
        let key = (worker.incarnation, introduction.map(|introduction| introduction.client));
        let pool = (on != On::Own).then(|| self.pool(key));
        let mut is_first = true;
        if let Some(pool) = pool.as_ref().filter(|_| on == On::Any)
            && let Some(stream) = pool.take()
        {
            // An idle connection may be closed by the worker in this very moment.
            match exchange(stream, &parts.method, sending, Some(Arc::clone(pool)), &self.counters).await {
                Ok(response) => return Ok(response),
                Err((unsent, Unanswered::Silence(_))) if unsent.may_start_anew() => sending = unsent.anew(),
                Err((_, unanswered)) => return Err(unanswered.error(None)),
            }
            is_first = false;
        }
        let stream = match Box::pin(self.connect(&worker.address, introduction)).await {
            Ok(stream) => stream,
            Err(error) => {
                let request = Box::new(Request::from_parts(parts, sending.into_body()));
                return Err(SendError::Refused { request, error });
            }
        };
        if !is_first {
            // Where nobody takes it, whoever asks may: that counts it then.
            self.counters.add(Counter::Retried);
        }
        let answered = exchange(stream, &parts.method, sending, pool, &self.counters).await;
        answered.map_err(|(unsent, unanswered)| {
            let may_be_sent_again = is_first && unsent.may_start_anew();
            unanswered.error(may_be_sent_again.then(|| Box::new(Request::from_parts(parts, unsent.into_body()))))
        })
    }

    /// Closes what has been idle too long and forgets workers that are gone.
    pub fn sweep(&self, snapshot: &Snapshot) {
        let lives = |incarnation: &u64| {
            snapshot.apps.values().any(|app| app.workers.iter().any(|worker| worker.incarnation == *incarnation))
        };
        let mut pools = self.pools.write().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|(incarnation, client), pool| {
            pool.sweep();
            // Clients come and go. A connection that is in use comes back to the pool that it was taken from.
            lives(incarnation) && (client.is_none() || !pool.is_empty() || Arc::strong_count(pool) > 1)
        });
    }

    /// Connections that the next request would find.
    #[cfg(test)]
    pub fn ready(&self) -> usize {
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        pools.values().map(|pool| pool.ready()).sum()
    }

    /// A connection. Where homing lacks what it takes, that is waited for, as where connections are accepted.
    async fn connect(&self, address: &Address, introduction: Option<&Introduction>) -> io::Result<Stream> {
        let connected = async {
            let mut stream = loop {
                match address.connect().await {
                    Err(error) if is_want(&error) => {
                        self.counters.add(Counter::NoDescriptors);
                        self.tell(&error);
                    }
                    connected => break connected?,
                }
                sleep(ACCEPT_PAUSE).await;
            };
            if let Some(introduction) = introduction {
                stream.write_all(&introduction.header).await?;
            }
            io::Result::Ok(stream)
        };
        timeout(CONNECT_TIMEOUT, connected).await
    }

    fn tell(&self, error: &io::Error) {
        if self.trouble.lock().unwrap_or_else(PoisonError::into_inner).is_news(Instant::now()) {
            tracing::warn!(%error, "cannot connect to workers: raise the limit of open files (LimitNOFILE) if it is that");
        }
    }

    fn pool(&self, key: PoolKey) -> Arc<Pool> {
        if let Some(pool) = self.pools.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Arc::clone(pool);
        }
        let mut pools = self.pools.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(pools.entry(key).or_default())
    }
}

impl Unanswered {
    /// `request`: if it may be sent again.
    fn error(self, request: Option<Box<Request<RequestBody>>>) -> SendError {
        match self {
            Self::Silence(error) => SendError::Broke { error, request },
            Self::Broken(error) => SendError::Broke { error, request: None },
            Self::Body(fault) => SendError::ClientBody(fault),
        }
    }
}
