//! One person at a Shiny app: the page with its files, the session, and what is asked of it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{ACCEPT, COOKIE, HOST, SET_COOKIE};
use hyper::{HeaderMap, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

/// Requests to what only the session's process knows, each on a connection of its own.
const CHECKS: u32 = 3;
/// From one question to the session to the next.
const PAUSE: Duration = Duration::from_secs(2);
/// For everything but the questions.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct User {
    target: SocketAddr,
    number: u8,
    from: IpAddr,
    keeps_cookies: bool,
    cookie: Option<String>,
}

/// What a user saw.
#[derive(Default)]
pub struct Seen {
    /// From the first connection to the last file.
    pub page: Option<Duration>,
    /// From the WebSocket's connection to the app's first word of its own.
    pub session: Option<Duration>,
    /// Questions to the session and their answers.
    pub trips: Vec<Duration>,
    /// Why the session was lost, if it was.
    pub lost: Option<String>,
}

impl User {
    pub fn new(target: SocketAddr, number: u8, keeps_cookies: bool) -> Self {
        let from = if keeps_cookies { Ipv4Addr::LOCALHOST } else { Ipv4Addr::new(127, 0, 3, number) };
        Self { target, number, from: from.into(), keeps_cookies, cookie: None }
    }

    /// Comes at its moment; uses the app from another one on, for so long.
    pub async fn visit(mut self, arrival: Instant, use_from: Instant, length: Duration) -> Seen {
        tokio::time::sleep_until(arrival.into()).await;
        let mut seen = Seen::default();
        let patience = PATIENCE + use_from.saturating_duration_since(arrival) + length;
        seen.lost = match tokio::time::timeout(patience, self.come(&mut seen, use_from, length)).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("{error:#}")),
            Err(_) => Some(format!("not finished after {} s", patience.as_secs())),
        };
        seen
    }

    async fn come(&mut self, seen: &mut Seen, use_from: Instant, length: Duration) -> anyhow::Result<()> {
        let since = Instant::now();
        self.load_page().await.context("the page")?;
        seen.page = Some(since.elapsed());
        let since = Instant::now();
        let (mut socket, route) = self.open_session().await.context("the session")?;
        seen.session = Some(since.elapsed());
        for _ in 0..CHECKS {
            let mut connection = self.connect_http().await?;
            self.get(&mut connection, &route).await.context("a request of the session")?;
        }
        tokio::time::sleep_until(use_from.into()).await;
        for tag in 0.. {
            // Not all in the same moment.
            let due = use_from + PAUSE * tag + PAUSE * u32::from(self.number) / 256;
            if due >= use_from + length {
                break;
            }
            tokio::time::sleep_until(due.into()).await;
            ask(&mut socket, tag).await.context("the open session")?;
            // From when it was due: a pause is felt by all that were due in it.
            seen.trips.push(due.elapsed());
        }
        Ok(())
    }

    /// The page and its files, on one connection.
    async fn load_page(&mut self) -> anyhow::Result<()> {
        let mut connection = self.connect_http().await?;
        let page = self.get(&mut connection, "/").await?;
        let page = String::from_utf8_lossy(&page).into_owned();
        let files: Vec<&str> = [" src=\"", " href=\""]
            .iter()
            .flat_map(|mark| page.split(*mark).skip(1))
            .filter_map(|rest| rest.split('"').next())
            .filter(|file| file.starts_with("lib/"))
            .collect();
        ensure!(files.len() >= 10, "a page of Shiny's has scripts, this has {files:?}");
        for file in files {
            self.get(&mut connection, &format!("/{file}")).await.with_context(|| file.to_owned())?;
        }
        Ok(())
    }

    async fn get(&mut self, connection: &mut SendRequest<Empty<Bytes>>, route: &str) -> anyhow::Result<Bytes> {
        // As a browser says whether it wants a page or a part of one.
        let accept = if route == "/" { "text/html,*/*;q=0.8" } else { "*/*" };
        let request = Request::get(route).header(HOST, self.target.to_string()).header(ACCEPT, accept);
        let request = self.cookie.iter().fold(request, |request, cookie| request.header(COOKIE, cookie));
        connection.ready().await?;
        let response = connection.send_request(request.body(Empty::new())?).await?;
        ensure!(response.status() == StatusCode::OK, "{route} was answered {}", response.status());
        self.keep_cookie(response.headers())?;
        Ok(response.into_body().collect().await?.to_bytes())
    }

    fn keep_cookie(&mut self, headers: &HeaderMap) -> anyhow::Result<()> {
        if let Some(set) = headers.get(SET_COOKIE).filter(|_| self.keeps_cookies) {
            self.cookie = set.to_str()?.split(';').next().map(str::to_owned);
        }
        Ok(())
    }

    /// The server speaks first, the client says `init`, the app's own message has the route.
    async fn open_session(&mut self) -> anyhow::Result<(WebSocketStream<TcpStream>, String)> {
        let stream = self.connect().await?;
        let mut request = format!("ws://{}/websocket/", self.target).into_client_request()?;
        if let Some(cookie) = &self.cookie {
            request.headers_mut().insert(COOKIE, cookie.try_into()?);
        }
        let (mut socket, response) = tokio_tungstenite::client_async(request, stream).await?;
        self.keep_cookie(response.headers())?;
        next(&mut socket).await?;
        socket.send(Message::text(r#"{"method":"init","data":{}}"#)).await?;
        loop {
            if let Some(url) = next(&mut socket).await?["custom"]["sticky-test"]["url"].as_str() {
                return Ok((socket, format!("/{url}")));
            }
        }
    }

    async fn connect(&self) -> anyhow::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((self.from, 0).into())?;
        let stream = socket.connect(self.target).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn connect_http(&self) -> anyhow::Result<SendRequest<Empty<Bytes>>> {
        let (sender, connection) = http1::handshake(TokioIo::new(self.connect().await?)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// What every Shiny app answers of itself: where to upload no files.
async fn ask(socket: &mut WebSocketStream<TcpStream>, tag: u32) -> anyhow::Result<()> {
    socket.send(Message::text(format!(r#"{{"method":"uploadInit","args":[[]],"tag":{tag}}}"#))).await?;
    while next(socket).await?["response"]["tag"] != tag {}
    Ok(())
}

async fn next(socket: &mut WebSocketStream<TcpStream>) -> anyhow::Result<serde_json::Value> {
    loop {
        match socket.next().await.context("the app closed the WebSocket")?? {
            Message::Text(text) => return Ok(serde_json::from_str(&text)?),
            Message::Close(_) => bail!("the app closed the WebSocket"),
            _ => {}
        }
    }
}
