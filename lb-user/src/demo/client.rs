//! A client of a stateful app that tests whether it keeps its worker: the standard sticky test.
//!
//! A page, a WebSocket on which the session is born, then [`CHECKS`] requests to a route that only the session's own
//! process answers, each on a connection of its own; and the WebSocket must have lasted.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use futures_util::{SinkExt as _, StreamExt as _};
use http::header::{ACCEPT, CONNECTION, COOKIE, HOST, SET_COOKIE};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use super::app::Hello;

/// Requests of one test.
pub const CHECKS: u32 = 100;
/// A whole test may take this long.
const DEADLINE: Duration = Duration::from_secs(60);

/// How the app speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// The built-in demo.
    Demo,
    /// The Shiny app in config/apps/shiny-python.
    Shiny,
}

/// Who asks, and what.
#[derive(Clone, Debug)]
pub struct Client {
    pub target: SocketAddr,
    /// Source address of every connection.
    pub from: Option<IpAddr>,
    pub dialect: Dialect,
    /// Whether cookies are kept, as a browser does.
    pub cookies: bool,
}

/// What a client saw.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcome {
    /// APP/N, or its process, as the app says.
    pub worker: Option<String>,
    /// The worker's process, where the app says.
    pub pid: Option<u32>,
    /// Whether the HTTP path forwarded, where the app says.
    pub forwarded: Option<bool>,
    pub ok: u32,
    pub failed: u32,
    /// Those of them that another process answered, which does not know the session.
    pub elsewhere: u32,
    /// What became of the first that failed.
    pub failure: Option<String>,
    pub error: Option<String>,
}

impl Outcome {
    pub fn passed(&self) -> bool {
        self.ok == CHECKS && self.error.is_none()
    }

    pub fn is_done(&self) -> bool {
        self.ok + self.failed == CHECKS || self.error.is_some()
    }
}

impl Client {
    /// Runs the test; `progress` is shown every change.
    pub async fn sticky_test(&self, progress: impl FnMut(&Outcome)) -> Outcome {
        let mut test = Test { client: self, cookies: Vec::new(), outcome: Outcome::default(), progress };
        let error = match tokio::time::timeout(DEADLINE, test.run()).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("{error:#}")),
            Err(_) => Some(format!("not finished after {} s", DEADLINE.as_secs())),
        };
        if error.is_some() {
            test.outcome.error = error;
            (test.progress)(&test.outcome);
        }
        test.outcome
    }

    async fn connect(&self) -> anyhow::Result<TcpStream> {
        let socket = if self.target.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(from) = self.from {
            socket.bind((from, 0).into()).with_context(|| format!("cannot connect from {from}"))?;
        }
        socket.connect(self.target).await.with_context(|| format!("cannot connect to {}", self.target))
    }
}

/// The part of a session that a test needs.
struct Session {
    /// Path and query of the check.
    route: String,
    worker: String,
    pid: Option<u32>,
    forwarded: Option<bool>,
}

struct Test<'a, P> {
    client: &'a Client,
    /// `name=value`, by name, the latest last.
    cookies: Vec<String>,
    outcome: Outcome,
    progress: P,
}

impl<P: FnMut(&Outcome)> Test<'_, P> {
    async fn run(&mut self) -> anyhow::Result<()> {
        let status = self.get("/").await.context("GET /")?;
        if status != StatusCode::OK {
            bail!("GET / was answered {status}");
        }
        let (mut socket, session) = self.open_session().await.context("WebSocket")?;
        self.outcome.worker = Some(session.worker);
        self.outcome.pid = session.pid;
        self.outcome.forwarded = session.forwarded;
        for _ in 0..CHECKS {
            match self.get(&session.route).await {
                Ok(StatusCode::OK) => self.outcome.ok += 1,
                failed => {
                    self.outcome.failed += 1;
                    self.outcome.elsewhere += u32::from(matches!(failed, Ok(StatusCode::NOT_FOUND)));
                    let why = || failed.map_or_else(|error| format!("{error:#}"), |status| status.to_string());
                    self.outcome.failure.get_or_insert_with(why);
                }
            }
            (self.progress)(&self.outcome);
        }
        // The built-in app has nothing else to say; what a Shiny session says is for its own client to judge.
        if matches!(self.client.dialect, Dialect::Demo) {
            answers(&mut socket).await.context("the WebSocket did not last")?;
        }
        Ok(())
    }

    /// One request on a connection of its own.
    async fn get(&mut self, route: &str) -> anyhow::Result<StatusCode> {
        let stream = self.client.connect().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let mut request = Request::get(route).header(HOST, self.client.target.to_string()).header(CONNECTION, "close");
        // As a browser says whether it wants a page or a part of one.
        request = request.header(ACCEPT, if route == "/" { "text/html,*/*;q=0.8" } else { "*/*" });
        if !self.cookies.is_empty() {
            request = request.header(COOKIE, self.cookies.join("; "));
        }
        let response = sender.send_request(request.body(Empty::<bytes::Bytes>::new())?).await?;
        let status = response.status();
        self.keep_cookies(response.headers());
        response.into_body().collect().await?;
        connection.abort();
        Ok(status)
    }

    async fn open_session(&mut self) -> anyhow::Result<(WebSocketStream<TcpStream>, Session)> {
        let stream = self.client.connect().await?;
        let mut request = format!("ws://{}/websocket/", self.client.target).into_client_request()?;
        if !self.cookies.is_empty() {
            request.headers_mut().insert(COOKIE, self.cookies.join("; ").try_into()?);
        }
        let (mut socket, response) = tokio_tungstenite::client_async(request, stream).await?;
        self.keep_cookies(response.headers());
        let session = match self.client.dialect {
            Dialect::Demo => {
                let hello: Hello = serde_json::from_str(&next_text(&mut socket).await?)?;
                Session {
                    route: format!("/session/{}/check", hello.session),
                    worker: hello.worker,
                    pid: Some(hello.pid),
                    forwarded: Some(hello.forwarded),
                }
            }
            Dialect::Shiny => shiny_session(&mut socket).await?,
        };
        Ok((socket, session))
    }

    fn keep_cookies(&mut self, headers: &HeaderMap) {
        if !self.client.cookies {
            return;
        }
        for cookie in headers.get_all(SET_COOKIE) {
            let Some(pair) = cookie.to_str().ok().and_then(|text| text.split(';').next()) else { continue };
            let name = pair.split('=').next().unwrap_or_default();
            self.cookies.retain(|kept| kept.split('=').next() != Some(name));
            self.cookies.push(pair.to_owned());
        }
    }
}

/// Shiny: the server speaks first, the client says `init`, the app's custom message has the route.
async fn shiny_session(socket: &mut WebSocketStream<TcpStream>) -> anyhow::Result<Session> {
    next_text(socket).await?;
    socket.send(Message::text(r#"{"method":"init","data":{}}"#)).await?;
    loop {
        let message: serde_json::Value = serde_json::from_str(&next_text(socket).await?)?;
        let test = &message["custom"]["sticky-test"];
        if let (Some(url), Some(worker)) = (test["url"].as_str(), test["worker"].as_u64()) {
            return Ok(Session {
                route: format!("/{url}"),
                worker: format!("pid {worker}"),
                pid: u32::try_from(worker).ok(),
                forwarded: None,
            });
        }
    }
}

/// Whether a ping comes back.
async fn answers(socket: &mut WebSocketStream<TcpStream>) -> anyhow::Result<()> {
    socket.send(Message::Ping(bytes::Bytes::from_static(b"there?"))).await?;
    loop {
        match socket.next().await.ok_or_else(|| anyhow!("the app closed the WebSocket"))?? {
            Message::Pong(_) => return Ok(()),
            Message::Close(_) => bail!("the app closed the WebSocket"),
            _ => {}
        }
    }
}

async fn next_text(socket: &mut WebSocketStream<TcpStream>) -> anyhow::Result<String> {
    loop {
        match socket.next().await.ok_or_else(|| anyhow!("the app closed the WebSocket"))?? {
            Message::Text(text) => return Ok(text.to_string()),
            Message::Close(_) => bail!("the app closed the WebSocket"),
            _ => {}
        }
    }
}
