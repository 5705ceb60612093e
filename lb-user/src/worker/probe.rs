//! Whether a worker answers: a TCP connect, or a GET. That the answer comes from the worker and not from a stranger on
//! its port is not known here: see `listener::find`.

use std::io;
use std::iter;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{self, Instant};

use crate::config::Health;

/// Pauses before the first probes: short while an app that starts fast may be ready, then ever longer.
const FIRST_DELAYS_MS: [u64; 12] = [50, 50, 100, 100, 100, 100, 100, 200, 200, 300, 300, 300];
const LATER_DELAY_MS: u64 = 500;
/// One probe's time. An app may build its whole first page for it.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// More than any answer's head; the body is not read.
const ANSWER_BUFFER_BYTES: usize = 64 * 1024;

/// Why a worker does not count as ready.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    #[error("nothing accepts connections on {address}: {source}")]
    Connect { address: SocketAddr, source: io::Error },
    #[error("GET {path} on {address} was answered {status}, not 2xx or 3xx")]
    Status { address: SocketAddr, path: String, status: StatusCode },
    #[error("GET {path} on {address} got no HTTP answer: {source}")]
    Http { address: SocketAddr, path: String, source: hyper::Error },
    #[error("health path `{path}` cannot be asked for: {source}")]
    Path { path: String, source: http::Error },
    #[error("{address} did not answer within {} s", after.as_secs_f32())]
    Slow { address: SocketAddr, after: Duration },
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
    FIRST_DELAYS_MS.into_iter().chain(iter::repeat(LATER_DELAY_MS)).map(Duration::from_millis)
}

/// Probes until the worker answers, for `limit` at most.
pub async fn ready(address: SocketAddr, health: &Health, limit: Duration) -> Result<(), Expired> {
    let end = Instant::now() + limit;
    let mut last = NotReady::Slow { address, after: limit };
    for delay in probe_delays() {
        if Instant::now() + delay >= end {
            break;
        }
        time::sleep(delay).await;
        let allowed = PROBE_TIMEOUT.min(end.saturating_duration_since(Instant::now()));
        match probe(address, health, allowed).await {
            Ok(()) => return Ok(()),
            Err(error) => last = error,
        }
    }
    time::sleep_until(end).await;
    Err(Expired { limit, last })
}

/// One probe.
pub async fn probe(address: SocketAddr, health: &Health, allowed: Duration) -> Result<(), NotReady> {
    let attempt = async {
        let stream = TcpStream::connect(address).await.map_err(|source| NotReady::Connect { address, source })?;
        match &health.path {
            Some(path) => get(stream, address, path).await,
            None => Ok(()),
        }
    };
    time::timeout(allowed, attempt).await.unwrap_or(Err(NotReady::Slow { address, after: allowed }))
}

async fn get(stream: TcpStream, address: SocketAddr, path: &str) -> Result<(), NotReady> {
    let request = Request::get(path)
        .header(header::HOST, address.to_string())
        .header(header::USER_AGENT, concat!("homing/", env!("CARGO_PKG_VERSION"), " (health)"))
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|source| NotReady::Path { path: path.to_owned(), source })?;
    let http_error = |source| NotReady::Http { address, path: path.to_owned(), source };
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
    Err(NotReady::Status { address, path: path.to_owned(), status })
}

#[cfg(test)]
mod tests;
