//! The socket's asking side, for the command line.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::report::{Done, Failure, Status};
use super::server::Order;

/// How things are is told at once. It may take some seconds where millions of clients are to be counted.
const STATUS_PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error(
        "cannot reach homing on {path}: {error}; is it running? Another socket: --control-socket or HOMING_CONTROL_SOCKET"
    )]
    Unreachable { path: PathBuf, error: io::Error },
    #[error(
        "homing on {path} is there and has not answered for {waited_s} s: it is stopped (SIGSTOP), has no file descriptors left \
         (LimitNOFILE), or the machine is too busy for it"
    )]
    Silent { path: PathBuf, waited_s: u64 },
    #[error("{0}")]
    Refused(String),
    #[error("homing on {path} broke off its answer: {error}")]
    Broken { path: PathBuf, error: String },
}

/// GETs a JSON answer.
///
/// # Errors
/// Nobody answers, or homing refuses and says why.
pub async fn get<T: DeserializeOwned>(socket: &Path, path_and_query: &str) -> Result<T, AskError> {
    let body = ask(socket, hyper::Method::GET, path_and_query, Bytes::new()).await?;
    serde_json::from_slice(&body).map_err(|error| broken(socket, &error))
}

/// How things are; whom homing does not answer is told that, and does not wait for ever.
///
/// # Errors
/// As [`get`], or homing is silent.
pub async fn status(socket: &Path) -> Result<Status, AskError> {
    let silent = || AskError::Silent { path: socket.to_owned(), waited_s: STATUS_PATIENCE.as_secs() };
    tokio::time::timeout(STATUS_PATIENCE, get(socket, "/v1/status")).await.unwrap_or_else(|_| Err(silent()))
}

/// POSTs without a body.
///
/// # Errors
/// As [`get`].
pub async fn post(socket: &Path, path_and_query: &str) -> Result<(), AskError> {
    ask(socket, hyper::Method::POST, path_and_query, Bytes::new()).await.map(drop)
}

/// POSTs without a body, for a JSON answer.
///
/// # Errors
/// As [`get`].
pub async fn post_for<T: DeserializeOwned>(socket: &Path, path_and_query: &str) -> Result<T, AskError> {
    let body = ask(socket, hyper::Method::POST, path_and_query, Bytes::new()).await?;
    serde_json::from_slice(&body).map_err(|error| broken(socket, &error))
}

/// Gives an order; what was done, in words.
///
/// # Errors
/// As [`get`].
pub async fn order(socket: &Path, order: &Order) -> Result<String, AskError> {
    let body = serde_json::to_vec(order).map_err(|error| broken(socket, &error))?;
    let answer = ask(socket, hyper::Method::POST, "/v1/order", body.into()).await?;
    serde_json::from_slice(&answer).map(|Done { done }| done).map_err(|error| broken(socket, &error))
}

/// GETs an answer that goes on, line by line.
///
/// # Errors
/// As [`get`].
pub async fn lines(socket: &Path, path_and_query: &str) -> Result<Lines, AskError> {
    let body = begin(socket, hyper::Method::GET, path_and_query, Bytes::new()).await?;
    Ok(Lines { body, pending: Vec::new() })
}

/// An answer that goes on.
pub struct Lines {
    body: Incoming,
    /// What came without its end yet.
    pending: Vec<u8>,
}

impl Lines {
    /// The next line, without its end; `None`: homing says no more. Dropped before it is done, it has taken nothing away.
    pub async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(end) = self.pending.iter().position(|&byte| byte == b'\n') {
                let mut line: Vec<u8> = self.pending.drain(..=end).collect();
                line.pop();
                return Some(line);
            }
            // However it ends.
            let frame = self.body.frame().await?.ok()?;
            if let Ok(data) = frame.into_data() {
                self.pending.extend_from_slice(&data);
            }
        }
    }
}

async fn ask(socket: &Path, method: hyper::Method, path_and_query: &str, body: Bytes) -> Result<Bytes, AskError> {
    let answer = begin(socket, method, path_and_query, body).await?;
    answer.collect().await.map(|body| body.to_bytes()).map_err(|error| broken(socket, &error))
}

/// Asks, and gives the body of an answer that is no refusal.
async fn begin(socket: &Path, method: hyper::Method, path_and_query: &str, body: Bytes) -> Result<Incoming, AskError> {
    let stream =
        UnixStream::connect(socket).await.map_err(|error| AskError::Unreachable { path: socket.to_owned(), error })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(socket, &error))?;
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path_and_query)
        .header(hyper::header::HOST, "homing")
        .header(hyper::header::CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .map_err(|error| broken(socket, &error))?;
    let response = sender.send_request(request).await.map_err(|error| broken(socket, &error))?;
    if response.status().is_success() {
        return Ok(response.into_body());
    }
    let body = response.into_body().collect().await.map_err(|error| broken(socket, &error))?.to_bytes();
    let reason = serde_json::from_slice::<Failure>(&body)
        .map_or_else(|_| String::from_utf8_lossy(&body).into_owned(), |failure| failure.error);
    Err(AskError::Refused(reason))
}

fn broken(socket: &Path, error: &dyn std::error::Error) -> AskError {
    AskError::Broken { path: socket.to_owned(), error: error.to_string() }
}
