//! The stateful app: a session is born on a WebSocket and lives in this process alone, as a Shiny session does.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use axum::Router;
use axum::extract::connect_info::Connected;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{ConnectInfo, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::serve::IncomingStream;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, UnixListener};

/// Sessions that one process holds; further ones are refused.
const SESSIONS_MAX: usize = 10_000;
/// A session outlives its WebSocket by this, so that a check under way is not cut off.
const LINGER: Duration = Duration::from_secs(15);

/// What a new session is told over its WebSocket.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// 32 hexadecimal digits.
    pub session: String,
    /// APP/N.
    pub worker: String,
    pub pid: u32,
    /// Who the worker's socket says is there: the client itself, or homing's HTTP path. Unspecified on a unix socket.
    pub peer: SocketAddr,
    pub forwarded: bool,
}

/// Session → when its WebSocket closed; `None` while it is open.
type Sessions = Arc<Mutex<HashMap<String, Option<Instant>>>>;

/// Where it listens.
pub enum Place {
    Port(SocketAddr),
    Socket(PathBuf),
    /// On the socket that it was passed.
    Passed,
}

/// Who is at the other end of a connection.
#[derive(Clone, Copy)]
struct Peer(SocketAddr);

impl Connected<IncomingStream<'_, TcpListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        Self(*stream.remote_addr())
    }
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(_: IncomingStream<'_, UnixListener>) -> Self {
        Self((Ipv4Addr::UNSPECIFIED, 0).into())
    }
}

/// Serves until the process ends.
///
/// # Errors
/// When the place cannot be had.
pub async fn serve(place: Place) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/", get(page))
        .route("/health", get(|| async { "ok\n" }))
        .route("/websocket/", get(websocket))
        .route("/session/{id}/check", get(check))
        .with_state(Sessions::default())
        .into_make_service_with_connect_info::<Peer>();
    match place {
        Place::Port(address) => axum::serve(TcpListener::bind(address).await?, router).await?,
        Place::Socket(path) => axum::serve(UnixListener::bind(path)?, router).await?,
        Place::Passed => {
            let listener = crate::sys::passed_socket().context("no socket was passed (LISTEN_FDS, LISTEN_PID)")?;
            listener.set_nonblocking(true)?;
            axum::serve(TcpListener::from_std(listener)?, router).await?;
        }
    }
    Ok(())
}

async fn page() -> Html<&'static str> {
    Html(include_str!("page.html"))
}

async fn websocket(
    State(sessions): State<Sessions>,
    ConnectInfo(Peer(peer)): ConnectInfo<Peer>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    let Some(session) = open(&sessions) else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many sessions in this worker").into_response();
    };
    let hello = Hello {
        session,
        worker: worker(),
        pid: std::process::id(),
        peer,
        forwarded: headers.contains_key("x-forwarded-for"),
    };
    upgrade.on_upgrade(move |socket| live(socket, hello, sessions))
}

/// A session for as long as its WebSocket.
async fn live(mut socket: WebSocket, hello: Hello, sessions: Sessions) {
    let text = serde_json::to_string(&hello).expect("plain data");
    if socket.send(Message::text(text)).await.is_ok() {
        while let Some(Ok(_)) = socket.recv().await {}
    }
    lock(&sessions).insert(hello.session, Some(Instant::now()));
}

/// 200 in the process of the session, 404 in any other. Each on a connection of its own: a kept one would always
/// come to the same process and prove nothing.
async fn check(State(sessions): State<Sessions>, Path(id): Path<String>) -> Response {
    let is_here = lock(&sessions).contains_key(&id);
    let status = if is_here { StatusCode::OK } else { StatusCode::NOT_FOUND };
    let headers = [(header::CACHE_CONTROL, "no-store"), (header::CONNECTION, "close")];
    (status, headers, worker()).into_response()
}

fn open(sessions: &Sessions) -> Option<String> {
    let mut sessions = lock(sessions);
    sessions.retain(|_, closed| closed.is_none_or(|at| at.elapsed() < LINGER));
    if sessions.len() >= SESSIONS_MAX {
        return None;
    }
    let session = format!("{:016x}{:016x}", getrandom::u64().ok()?, getrandom::u64().ok()?);
    sessions.insert(session.clone(), None);
    Some(session)
}

fn worker() -> String {
    std::env::var("HOMING_WORKER").unwrap_or_else(|_| format!("pid {}", std::process::id()))
}

fn lock(sessions: &Sessions) -> std::sync::MutexGuard<'_, HashMap<String, Option<Instant>>> {
    sessions.lock().unwrap_or_else(PoisonError::into_inner)
}
