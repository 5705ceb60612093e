//! One person at a Shiny app: the page with its files, the session, and what is asked of it.

use std::collections::VecDeque;
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
use serde_json::Value;
use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

/// Requests to what only the session's process knows, each on a connection of its own.
const CHECKS: u32 = 3;
/// From one question to the session to the next.
const PAUSE: Duration = Duration::from_secs(2);
/// What an Ethernet cable carries, since people have one: the loopback device's segments are of 64 KiB.
const SEGMENT_BYTES: u32 = 1_448;
/// For everything but the questions.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct User {
    target: SocketAddr,
    number: u8,
    from: IpAddr,
    keeps_cookies: bool,
    speech: Speech,
    cookie: Option<String>,
}

/// How messages are carried.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Speech {
    /// As Shiny's own, one in each frame.
    Plain,
    /// As Shiny Server's, which counts them so that a session may go on over another connection: `N#CHANNEL|m|MESSAGE` in SockJS's frames.
    SockJs,
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
    pub fn new(target: SocketAddr, number: u8, keeps_cookies: bool, speech: Speech) -> Self {
        let from = if keeps_cookies { Ipv4Addr::LOCALHOST } else { Ipv4Addr::new(127, 0, 3, number) };
        Self { target, number, from: from.into(), keeps_cookies, speech, cookie: None }
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
        let (mut session, route) = self.open_session().await.context("the session")?;
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
            session.ask(tag).await.context("the open session")?;
            // From when it was due: a pause is felt by all that were due in it.
            seen.trips.push(due.elapsed());
        }
        Ok(())
    }

    /// The page and its files, on one connection as long as the server keeps it.
    async fn load_page(&mut self) -> anyhow::Result<()> {
        let mut connection = self.connect_http().await?;
        let page = self.get(&mut connection, "/").await?;
        let page = String::from_utf8_lossy(&page).into_owned();
        let files: Vec<&str> = [" src=\"", " href=\""]
            .iter()
            .flat_map(|mark| page.split(*mark).skip(1))
            .filter_map(|rest| rest.split('"').next())
            .filter(|file| !file.contains(':') && [".js", ".css"].iter().any(|kind| file.ends_with(kind)))
            .collect();
        ensure!(files.len() >= 7, "a page of Shiny's has scripts and styles, this has {files:?}");
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
        if connection.ready().await.is_err() {
            // Closed behind the last answer; a browser opens another, too.
            *connection = self.connect_http().await?;
        }
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
    async fn open_session(&mut self) -> anyhow::Result<(Session, String)> {
        let stream = self.connect().await?;
        let path = match self.speech {
            Speech::Plain => "/websocket/".to_owned(),
            // Of a tab, of no server in particular, of this connection.
            Speech::SockJs => format!("/__sockjs__/n=user{:014}/000/user{0:04}/websocket", self.number),
        };
        let mut request = format!("ws://{}{path}", self.target).into_client_request()?;
        if let Some(cookie) = &self.cookie {
            request.headers_mut().insert(COOKIE, cookie.try_into()?);
        }
        let (socket, response) = tokio_tungstenite::client_async(request, stream).await?;
        self.keep_cookie(response.headers())?;
        let mut session = Session { socket, speech: self.speech, said: 0, heard: 0, waiting: VecDeque::new() };
        if self.speech == Speech::SockJs {
            session.say('o', "").await?;
        }
        session.next().await?;
        session.say('m', r#"{"method":"init","data":{}}"#).await?;
        loop {
            if let Some(url) = session.next().await?["custom"]["sticky-test"]["url"].as_str() {
                return Ok((session, format!("/{url}")));
            }
        }
    }

    async fn connect(&self) -> anyhow::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        SockRef::from(&socket).set_tcp_mss(SEGMENT_BYTES)?;
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

/// An open session of Shiny's.
struct Session {
    socket: WebSocketStream<TcpStream>,
    speech: Speech,
    /// Messages either way, which SockJS's are counted by.
    said: u32,
    heard: u32,
    /// Come in one frame with one that has been taken.
    waiting: VecDeque<String>,
}

impl Session {
    /// What every Shiny app answers of itself: where to upload no files.
    async fn ask(&mut self, tag: u32) -> anyhow::Result<()> {
        if self.speech == Speech::SockJs {
            // As its own client does about every two seconds.
            self.send(&format!("ACK {:X}", self.heard)).await?;
        }
        self.say('m', &format!(r#"{{"method":"uploadInit","args":[[]],"tag":{tag}}}"#)).await?;
        while self.next().await?["response"]["tag"] != tag {}
        Ok(())
    }

    async fn say(&mut self, kind: char, message: &str) -> anyhow::Result<()> {
        match self.speech {
            Speech::Plain => Ok(self.socket.send(Message::text(message)).await?),
            Speech::SockJs => {
                let numbered = format!("{:X}#0|{kind}|{message}", self.said);
                self.said += 1;
                self.send(&numbered).await
            }
        }
    }

    async fn send(&mut self, message: &str) -> anyhow::Result<()> {
        Ok(self.socket.send(Message::text(serde_json::to_string(&[message])?)).await?)
    }

    /// The next message of Shiny's own.
    async fn next(&mut self) -> anyhow::Result<Value> {
        loop {
            if let Some(message) = self.waiting.pop_front() {
                // `ACK N` has none.
                let Some((_, message)) = message.split_once("|m|") else { continue };
                self.heard += 1;
                return Ok(serde_json::from_str(message)?);
            }
            let text = match self.socket.next().await.context("the app closed the WebSocket")?? {
                Message::Text(text) => text,
                Message::Close(_) => bail!("the app closed the WebSocket"),
                _ => continue,
            };
            match (self.speech, text.split_at_checked(1)) {
                (Speech::Plain, _) => return Ok(serde_json::from_str(&text)?),
                (Speech::SockJs, Some(("a", messages))) => self.waiting = serde_json::from_str(messages)?,
                (Speech::SockJs, Some(("o" | "h", ""))) => {}
                (Speech::SockJs, _) => bail!("Shiny Server said {text}"),
            }
        }
    }
}
