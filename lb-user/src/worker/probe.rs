//! Whether a worker answers: by a connection, or a GET. That the answer comes from the worker and not from a stranger on
//! its port is not known here: see `listener::find`.

use std::io;
use std::iter;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{self, Instant};

use crate::address::{Address, Stream};
use crate::config::{Health, SendProxy};
use crate::introduction::introduce_self;
use crate::trouble::is_want;

/// Pauses before probes, and how many of each: short while an app that starts fast may be ready, then ever longer. Denser
/// than Shiny Server's (50 to 500 ms): a request is held for them, and a refused connection costs nothing.
const FIRST_DELAYS_MS: [(usize, u64); 5] = [(5, 10), (10, 20), (50, 40), (30, 100), (20, 250)];
const LATER_DELAY_MS: u64 = 500;
/// One probe's time. An app may build its whole first page for it.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// More than any answer's head; the body is not read.
const ANSWER_BUFFER_BYTES: usize = 64 * 1024;

/// What counts as an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// A connection is taken. Who listens by itself does so when it is ready.
    Connection,
    /// A connection is taken and, when nothing comes on it, closed: of a socket that listened before the worker was
    /// there, the kernel takes connections for it.
    Closing,
    /// GET of this path is answered 2xx or 3xx.
    Get(String),
    /// The same, with a PROXY header before it.
    GetIntroduced(String, SendProxy),
}

impl Proof {
    /// What the configuration asks of who opens a listening socket.
    pub fn of(health: &Health, send_proxy: Option<SendProxy>) -> Self {
        match (health.path.clone(), send_proxy) {
            (None, _) => Self::Connection,
            (Some(path), None) => Self::Get(path),
            (Some(path), Some(version)) => Self::GetIntroduced(path, version),
        }
    }

    /// What it asks of who was passed one.
    pub fn of_passed(health: &Health, send_proxy: Option<SendProxy>) -> Self {
        match Self::of(health, send_proxy) {
            Self::Connection => Self::Closing,
            asked => asked,
        }
    }
}

/// Why a worker does not count as ready.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    #[error("nothing accepts connections on {address}: {source}")]
    Connect { address: Address, source: io::Error },
    #[error("{address} was closed before anybody accepted: {source}")]
    Closed { address: Address, source: io::Error },
    #[error("GET {path} on {address} was answered {status}, not 2xx or 3xx")]
    Status { address: Address, path: String, status: StatusCode },
    #[error("GET {path} on {address} got no HTTP answer: {source}")]
    Http { address: Address, path: String, source: hyper::Error },
    #[error("health path `{path}` cannot be asked for: {source}")]
    Path { path: String, source: http::Error },
    #[error("{address} did not answer within {} s", after.as_secs_f32())]
    Slow { address: Address, after: Duration },
}

impl NotReady {
    /// Whether homing could not even ask, for want of file descriptors or memory: that says nothing of the worker.
    pub fn is_own_want(&self) -> bool {
        matches!(self, Self::Connect { source, .. } if is_want(source))
    }
}

/// The time was up; says what the last probe met.
#[derive(Debug, thiserror::Error)]
#[error("not ready within {} s: {last}", limit.as_secs_f32())]
pub struct Expired {
    pub limit: Duration,
    pub last: NotReady,
}

/// Pauses before each probe, without end.
pub fn probe_delays() -> impl Iterator<Item = Duration> {
    let first = FIRST_DELAYS_MS.into_iter().flat_map(|(count, pause)| iter::repeat_n(pause, count));
    first.chain(iter::repeat(LATER_DELAY_MS)).map(Duration::from_millis)
}

/// Probes until the worker answers, for `limit` at most.
pub async fn ready(address: &Address, proof: &Proof, limit: Duration) -> Result<(), Expired> {
    let end = Instant::now() + limit;
    let mut last = NotReady::Slow { address: address.clone(), after: limit };
    for delay in probe_delays() {
        if Instant::now() + delay >= end {
            break;
        }
        time::sleep(delay).await;
        let allowed = PROBE_TIMEOUT.min(end.saturating_duration_since(Instant::now()));
        match probe(address, proof, allowed).await {
            Ok(()) => return Ok(()),
            Err(error) => last = error,
        }
    }
    time::sleep_until(end).await;
    Err(Expired { limit, last })
}

/// One probe.
pub async fn probe(address: &Address, proof: &Proof, allowed: Duration) -> Result<(), NotReady> {
    let attempt = async {
        let refused = |source| NotReady::Connect { address: address.clone(), source };
        let mut stream = address.connect().await.map_err(refused)?;
        match proof {
            Proof::Connection => Ok(()),
            Proof::Closing => {
                let closed = |source| NotReady::Closed { address: address.clone(), source };
                stream.shutdown().await.map_err(closed)?;
                // Closed, or a word first: both are the worker's.
                stream.read(&mut [0]).await.map(drop).map_err(closed)
            }
            Proof::Get(path) => get(stream, address, path).await,
            Proof::GetIntroduced(path, version) => {
                stream.write_all(&introduce_self(*version)).await.map_err(refused)?;
                get(stream, address, path).await
            }
        }
    };
    let slow = || NotReady::Slow { address: address.clone(), after: allowed };
    time::timeout(allowed, attempt).await.unwrap_or_else(|_| Err(slow()))
}

async fn get(stream: Stream, address: &Address, path: &str) -> Result<(), NotReady> {
    let request = Request::get(path)
        .header(header::HOST, address.host())
        .header(header::USER_AGENT, concat!("homing/", env!("CARGO_PKG_VERSION"), " (health)"))
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|source| NotReady::Path { path: path.to_owned(), source })?;
    let http_error = |source| NotReady::Http { address: address.clone(), path: path.to_owned(), source };
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(ANSWER_BUFFER_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(http_error)?;
    let answer = sender.send_request(request);
    tokio::pin!(answer, connection);
    let answer = tokio::select! {
        // The answer first: it may come together with the connection's end.
        biased;
        answer = &mut answer => answer,
        _ = &mut connection => answer.await,
    };
    let status = answer.map_err(http_error)?.status();
    if status.is_success() || status.is_redirection() {
        return Ok(());
    }
    Err(NotReady::Status { address: address.clone(), path: path.to_owned(), status })
}

#[cfg(test)]
mod tests;
