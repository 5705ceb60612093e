//! One user of the demo app, held open: a WebSocket with its session, and further requests when the test says so.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use homing::demo::app::Hello;
use socket2::{Domain, Socket, Type};
use tokio_tungstenite::tungstenite::{self, Message, WebSocket};

use crate::network::Namespace;

/// Longer than an answer takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where a client is and where it connects to.
#[derive(Clone, Copy)]
pub struct Client<'a> {
    /// `None`: this namespace.
    pub namespace: Option<&'a Namespace>,
    pub from: IpAddr,
    pub target: SocketAddr,
}

/// An open session.
pub struct Session<'a> {
    client: Client<'a>,
    socket: WebSocket<TcpStream>,
    pub hello: Hello,
    /// The `NAME=VALUE` that came with the upgrade, where clients are kept by one.
    cookie: Option<String>,
}

/// An HTTP answer.
#[derive(Debug, PartialEq)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

impl<'a> Client<'a> {
    pub fn connect(&self) -> io::Result<TcpStream> {
        let connect = || {
            let socket = Socket::new(Domain::for_address(self.target), Type::STREAM, None)?;
            socket.bind(&SocketAddr::from((self.from, 0)).into())?;
            socket.connect_timeout(&self.target.into(), PATIENCE)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(socket.into())
        };
        match self.namespace {
            Some(namespace) => namespace.enter(connect),
            None => connect(),
        }
    }

    /// GET on a connection of its own.
    pub fn get(&self, route: &str) -> io::Result<Answer> {
        get_on(&mut self.connect()?, route, "")
    }

    /// Opens a WebSocket, on which a session is born.
    pub fn open(self) -> Session<'a> {
        let stream = self.connect().expect("the service can be reached");
        let url = format!("ws://{}/websocket/", self.target);
        let (mut socket, upgrade) = tungstenite::client(url, stream).expect("the worker upgrades");
        let cookie = upgrade.headers().get("set-cookie").map(|set| {
            let set = set.to_str().expect("a cookie is text");
            set.split(';').next().unwrap_or(set).to_owned()
        });
        let hello = match socket.read().expect("the app speaks first") {
            Message::Text(text) => serde_json::from_str(&text).expect("the app says who it is"),
            other => panic!("the app said {other:?}"),
        };
        Session { client: self, socket, hello, cookie }
    }
}

/// The last GET on a connection, with these further header lines.
pub fn get_on(stream: &mut TcpStream, route: &str, lines: &str) -> io::Result<Answer> {
    let target = stream.peer_addr()?;
    write!(stream, "GET {route} HTTP/1.1\r\nHost: {target}\r\n{lines}Connection: close\r\n\r\n")?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| io::Error::other(format!("no HTTP answer: {text:?}")))?;
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned();
    Ok(Answer { status, body })
}

impl Session<'_> {
    /// A ping there and back on the open WebSocket.
    pub fn is_alive(&mut self) -> bool {
        self.socket.send(Message::Ping("are you there".into())).is_ok()
            && matches!(self.socket.read(), Ok(Message::Pong(_)))
    }

    /// The session's own route on a new connection, with the cookie if there is one: 200 in its process, 404 in any other.
    pub fn check(&self) -> io::Result<Answer> {
        let cookie = self.cookie.iter().map(|cookie| format!("Cookie: {cookie}\r\n")).collect::<String>();
        get_on(&mut self.client.connect()?, &format!("/session/{}/check", self.hello.session), &cookie)
    }
}
