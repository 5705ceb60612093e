//! The socket's asking side, for the command line.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::report::{Done, Failure};
use super::server::Order;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error(
        "cannot reach homing on {path}: {error}; is it running? Another socket: --control-socket or HOMING_CONTROL_SOCKET"
    )]
    Unreachable { path: PathBuf, error: io::Error },
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

async fn ask(socket: &Path, method: hyper::Method, path_and_query: &str, body: Bytes) -> Result<Bytes, AskError> {
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
    let is_success = response.status().is_success();
    let body = response.into_body().collect().await.map_err(|error| broken(socket, &error))?.to_bytes();
    if is_success {
        return Ok(body);
    }
    let reason = serde_json::from_slice::<Failure>(&body)
        .map_or_else(|_| String::from_utf8_lossy(&body).into_owned(), |failure| failure.error);
    Err(AskError::Refused(reason))
}

fn broken(socket: &Path, error: &dyn std::error::Error) -> AskError {
    AskError::Broken { path: socket.to_owned(), error: error.to_string() }
}
