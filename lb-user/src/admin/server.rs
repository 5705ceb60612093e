//! The socket's listening side.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;

use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net;
use std::path::Path;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use super::report::{Bound, Done, Failure, Handover, LiveQuery, Loads, OutputFile, Status, Trace, TraceQuery};
use crate::live::Listening;

/// A question to the task that owns the state.
#[derive(Debug)]
pub enum Request {
    Status(oneshot::Sender<Status>),
    /// The same, made a moment ago at most: for who asks again and again.
    Report(oneshot::Sender<Arc<Status>>),
    Trace {
        app: String,
        address: IpAddr,
        answer: oneshot::Sender<Result<Trace, String>>,
    },
    /// Decisions as they are made.
    Live {
        query: LiveQuery,
        answer: oneshot::Sender<Result<Listening, String>>,
    },
    /// Where the output of a worker, or of all of an app, is.
    Output {
        worker: String,
        answer: oneshot::Sender<Result<Vec<OutputFile>, String>>,
    },
    Stop {
        now: bool,
    },
    /// What another homing would take over.
    Handover(oneshot::Sender<Handover>),
    /// Another homing takes over: decide nothing any more. Refused at a bad moment, unless forced.
    Yield {
        force: bool,
        answer: oneshot::Sender<Result<Bound, String>>,
    },
    /// What a homing that was replaced still serves.
    Loads(oneshot::Sender<Loads>),
    /// The answer says what was done, or why nothing was.
    Order(Order, oneshot::Sender<Result<String, String>>),
}

/// Something to change.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    Drain {
        /// APP or APP/N.
        worker: String,
        /// Take a drain back.
        #[serde(default)]
        undo: bool,
    },
    Scale {
        app: String,
        min: u32,
        max: u32,
    },
    Restart {
        app: String,
        #[serde(default)]
        rolling: bool,
    },
    /// Read the configuration again.
    Reload,
    /// Seal cookies with a fresh key.
    RotateKeys,
}

/// Binds the socket, mode 0600, for a runtime. A socket that a dead homing left is replaced; one that answers is not.
///
/// # Errors
/// When another homing answers there, or the path cannot be made.
pub fn bind(path: &Path) -> io::Result<net::UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    if net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another homing answers on this socket"));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = net::UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers whoever asks before `ended`, and returns when they have their answers.
pub async fn serve(
    listener: UnixListener,
    requests: mpsc::Sender<Request>,
    ended: impl Future<Output = ()> + Send + 'static,
) {
    // It fails when the listener fails for good, which a unix socket's does not.
    let _ = axum::serve(Trusted(listener), router(requests)).with_graceful_shutdown(ended).await;
}

fn router(requests: mpsc::Sender<Request>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/trace", get(trace))
        .route("/v1/live", get(live))
        .route("/v1/output", get(output))
        .route("/v1/stop", post(stop))
        .route("/v1/order", post(order))
        .route("/v1/handover", get(handover))
        .route("/v1/yield", post(make_way))
        .route("/v1/loads", get(loads))
        .with_state(requests)
}

/// Accepts only who may give orders.
struct Trusted(UnixListener);

impl axum::serve::Listener for Trusted {
    type Io = UnixStream;
    type Addr = ();

    async fn accept(&mut self) -> (UnixStream, ()) {
        loop {
            let (stream, _) = axum::serve::Listener::accept(&mut self.0).await;
            if is_allowed(&stream) {
                return (stream, ());
            }
            tracing::warn!("a process of another user was refused on the control socket");
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Root, or the user homing runs as.
fn is_allowed(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == rustix::process::geteuid().as_raw())
}

type Requests = State<mpsc::Sender<Request>>;

/// Puts a question to the task that owns the state; `None`: it has ended.
async fn ask<T>(State(requests): Requests, question: impl FnOnce(oneshot::Sender<T>) -> Request) -> Option<T> {
    let (answer, answered) = oneshot::channel();
    requests.send(question(answer)).await.ok()?;
    answered.await.ok()
}

fn said(answer: Option<impl IntoResponse>) -> Response {
    answer.map_or_else(ending, IntoResponse::into_response)
}

/// `refusal`: the status of an answer that says why not.
fn said_or_refused<T>(
    answer: Option<Result<T, String>>,
    refusal: StatusCode,
    done: impl FnOnce(T) -> Response,
) -> Response {
    match answer {
        Some(Err(error)) => (refusal, Json(Failure { error })).into_response(),
        answer => said(answer.and_then(Result::ok).map(done)),
    }
}

async fn status(requests: Requests) -> Response {
    said(ask(requests, Request::Status).await.map(Json))
}

async fn trace(requests: Requests, Query(TraceQuery { app, client: address }): Query<TraceQuery>) -> Response {
    let answer = ask(requests, |answer| Request::Trace { app, address, answer }).await;
    said_or_refused(answer, StatusCode::NOT_FOUND, |trace| Json(trace).into_response())
}

/// A line for each decision, until either side has had enough.
async fn live(requests: Requests, Query(query): Query<LiveQuery>) -> Response {
    let answer = ask(requests, |answer| Request::Live { query, answer }).await;
    said_or_refused(answer, StatusCode::CONFLICT, |listening| {
        let lines = futures_util::stream::unfold(listening, async |mut listening| {
            let line = listening.next().await?;
            let mut text = serde_json::to_vec(&line).expect("texts and numbers are JSON");
            text.push(b'\n');
            Some((Ok::<_, io::Error>(Bytes::from(text)), listening))
        });
        Body::from_stream(lines).into_response()
    })
}

#[derive(Deserialize)]
struct OutputQuery {
    /// APP or APP/N.
    worker: String,
}

async fn output(requests: Requests, Query(OutputQuery { worker }): Query<OutputQuery>) -> Response {
    let answer = ask(requests, |answer| Request::Output { worker, answer }).await;
    said_or_refused(answer, StatusCode::NOT_FOUND, |files| Json(files).into_response())
}

async fn order(requests: Requests, Json(order): Json<Order>) -> Response {
    let answer = ask(requests, |answer| Request::Order(order, answer)).await;
    said_or_refused(answer, StatusCode::CONFLICT, |done| Json(Done { done }).into_response())
}

async fn handover(requests: Requests) -> Response {
    said(ask(requests, Request::Handover).await.map(Json))
}

async fn loads(requests: Requests) -> Response {
    said(ask(requests, Request::Loads).await.map(Json))
}

#[derive(Deserialize)]
struct YieldQuery {
    #[serde(default)]
    force: bool,
}

async fn make_way(requests: Requests, Query(YieldQuery { force }): Query<YieldQuery>) -> Response {
    let answer = ask(requests, |answer| Request::Yield { force, answer }).await;
    said_or_refused(answer, StatusCode::CONFLICT, |bound| Json(bound).into_response())
}

#[derive(Deserialize)]
struct StopQuery {
    #[serde(default)]
    now: bool,
}

async fn stop(State(requests): Requests, Query(StopQuery { now }): Query<StopQuery>) -> Response {
    said(requests.send(Request::Stop { now }).await.ok().map(|()| StatusCode::ACCEPTED))
}

fn ending() -> Response {
    let failure = Failure { error: "homing is ending".to_owned() };
    (StatusCode::SERVICE_UNAVAILABLE, Json(failure)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::client;

    #[tokio::test]
    async fn a_homing_that_ends_as_soon_as_it_has_yielded_has_said_so() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("control.sock");
        let listener = UnixListener::from_std(bind(&path).expect("it can be bound")).expect("in a runtime");
        let (sender, mut requests) = mpsc::channel(1);
        let (end, ended) = oneshot::channel::<()>();
        let serving = tokio::spawn(serve(listener, sender, async { drop(ended.await) }));
        let asked = path.clone();
        let asking = tokio::spawn(async move { client::post_for::<Bound>(&asked, "/v1/yield").await });
        let Some(Request::Yield { answer, .. }) = requests.recv().await else { panic!("it was asked to yield") };
        answer.send(Ok(Bound::default())).expect("somebody waits for it");
        drop(end);
        serving.await.expect("it returns");
        // As the end of the process does.
        drop(requests);
        assert!(net::UnixStream::connect(&path).is_err(), "nobody listens any more");
        asking.await.expect("it is done").expect("an answer");
    }
}
