//! `http`: homing's HTTP path beside nginx, HAProxy, Caddy and faucet, one worker thread each, in front of the same upstream.

pub mod peers;
mod steady;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper::header::{COOKIE, HOST, HeaderValue, SET_COOKIE};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::peers::Peer;
use crate::report::{Bar, Case, Rounds};
use crate::upstream;

/// Connections that ask at once, each with one request under way.
const CLIENTS: u8 = 32;
/// WebSockets that are open and silent.
const IDLE: usize = 2_000;
/// WebSockets that send at once, each waiting for its echo.
const TALKERS: usize = 32;
pub const MESSAGE_BYTES: usize = 64;
/// A text frame as a worker sends it, since these come back as they are: homing listens to a worker's first messages.
pub const MESSAGE: [u8; MESSAGE_BYTES] = {
    let mut message = [b'm'; MESSAGE_BYTES];
    (message[0], message[1]) = (0x81, MESSAGE_BYTES as u8 - 2);
    message
};

/// What one proxy did in one round.
#[derive(Clone, Copy, Default)]
struct Sample {
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
    /// Per 100,000 requests or messages.
    cpu_s: f64,
}

/// `only_steady`: homing alone, beside the worker itself.
pub fn run(rounds: Rounds, only_steady: bool) -> anyhow::Result<Vec<Case>> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let mut cases = if only_steady { Vec::new() } else { measure(rounds).await? };
        cases.extend(steady::cases(rounds).await?);
        Ok(cases)
    })
}

async fn measure(rounds: Rounds) -> anyhow::Result<Vec<Case>> {
    let upstream = upstream::start((Ipv4Addr::LOCALHOST, 0).into()).await?;
    let (peers, missing) = peers::start_all(upstream)?;
    for name in missing {
        eprintln!("not installed, so not measured: {name}");
    }
    // Before anything else has touched their memory.
    let mut idle = Vec::new();
    // Those who pass WebSockets on come first.
    for peer in peers.iter().filter(|peer| peers::passes_websockets(peer)) {
        idle.push(memory_per_idle(peer).await?);
    }
    let mut pages = vec![Vec::new(); peers.len()];
    let mut echoes = vec![Vec::new(); peers.len()];
    for _ in 0..rounds.count {
        // Interleaved: whatever else the machine does, it does to all of them.
        for (peer, samples) in peers.iter().zip(&mut pages) {
            samples.push(requests(peer, rounds.length).await?);
        }
        for (peer, samples) in peers.iter().zip(&mut echoes).take(idle.len()) {
            samples.push(messages(peer, rounds.length).await?);
        }
    }
    let mut cases = Vec::new();
    for (number, peer) in peers.iter().enumerate().skip(1) {
        let beside = |what: &str, unit, of: &dyn Fn(&Sample) -> f64, samples: &[Vec<Sample>]| {
            let values = |samples: &[Sample]| samples.iter().map(of).collect::<Vec<_>>();
            Case::new(
                &format!("{what}, {}", peer.name),
                &values(&samples[0]),
                unit,
                &peer.name,
                &values(&samples[number]),
            )
        };
        let is_nginx = peer.name == "nginx";
        let cpu = |what: &str, samples: &[Vec<Sample>]| beside(what, "s/100k", &|s| s.cpu_s, samples).least();
        cases.push(cpu("CPU per request", &pages).with_bar(is_nginx.then_some(Bar::Ratio(1.2))));
        cases.push(beside("requests", "1/s", &|s| s.per_second, &pages));
        cases.push(beside("p50", "us", &|s| s.p50_us, &pages));
        cases.push(beside("p99", "us", &|s| s.p99_us, &pages));
        if number >= idle.len() {
            continue;
        }
        cases.push(cpu("CPU per echo", &echoes).with_bar(is_nginx.then_some(Bar::Ratio(1.0))));
        cases.push(beside("echoes", "1/s", &|s| s.per_second, &echoes));
        let (own, its) = ([idle[0] / 1024.0], [idle[number] / 1024.0]);
        let bar = is_nginx.then_some(Bar::Value(5.0));
        cases.push(
            Case::new(&format!("memory per idle WebSocket, {}", peer.name), &own, "KB", &peer.name, &its).with_bar(bar),
        );
    }
    Ok(cases)
}

/// Asks for the same page for so long, with the cookie that the first answer brought.
async fn requests(peer: &Peer, length: Duration) -> anyhow::Result<Sample> {
    let (cpu, start) = (peer.cpu_seconds()?, Instant::now());
    let mut clients = JoinSet::new();
    for number in 1..=CLIENTS {
        clients.spawn(ask(peer.address, number, start + length));
    }
    let mut times = Vec::new();
    while let Some(client) = clients.join_next().await {
        times.extend(client??);
    }
    sample(times, start, peer.cpu_seconds()? - cpu)
}

async fn ask(target: SocketAddr, number: u8, end: Instant) -> anyhow::Result<Vec<Duration>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(connect(target, number).await?)).await?;
    tokio::spawn(connection);
    let mut cookie: Option<HeaderValue> = None;
    let mut times = Vec::new();
    while Instant::now() < end {
        let request = Request::get("/page?with=query")
            .header(HOST, target.to_string())
            .header("user-agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/156.0 Safari/537.36")
            .header("accept", "*/*")
            .header("accept-language", "en-US,en;q=0.9")
            .header("accept-encoding", "gzip, deflate");
        let request = cookie.iter().fold(request, |request, cookie| request.header(COOKIE, cookie));
        let since = Instant::now();
        let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
        ensure!(response.status() == StatusCode::OK, "{target} answered {}", response.status());
        if let Some(set) = response.headers().get(SET_COOKIE) {
            cookie = Some(HeaderValue::from_str(set.to_str()?.split(';').next().context("a pair")?)?);
        }
        response.into_body().collect().await?;
        times.push(since.elapsed());
        sender.ready().await?;
    }
    Ok(times)
}

/// Sends messages over open WebSockets for so long, each after the echo of the one before.
async fn messages(peer: &Peer, length: Duration) -> anyhow::Result<Sample> {
    let mut sockets = Vec::new();
    for _ in 0..TALKERS {
        sockets.push(websocket(peer.address).await?);
    }
    let (cpu, start) = (peer.cpu_seconds()?, Instant::now());
    let mut talkers = JoinSet::new();
    for socket in sockets {
        talkers.spawn(talk(socket, start + length));
    }
    let mut times = Vec::new();
    while let Some(talker) = talkers.join_next().await {
        times.extend(talker??);
    }
    sample(times, start, peer.cpu_seconds()? - cpu)
}

async fn talk(mut socket: TcpStream, end: Instant) -> anyhow::Result<Vec<Duration>> {
    let mut echo = [0; MESSAGE_BYTES];
    let mut times = Vec::new();
    while Instant::now() < end {
        let since = Instant::now();
        socket.write_all(&MESSAGE).await?;
        socket.read_exact(&mut echo).await?;
        times.push(since.elapsed());
    }
    Ok(times)
}

fn sample(mut times: Vec<Duration>, start: Instant, cpu: f64) -> anyhow::Result<Sample> {
    ensure!(!times.is_empty(), "nothing was answered");
    let elapsed = start.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |part: usize| times[(times.len() - 1) * part / 100].as_secs_f64() * 1e6;
    let count = times.len() as f64;
    Ok(Sample { per_second: count / elapsed, p50_us: at(50), p99_us: at(99), cpu_s: cpu / count * 1e5 })
}

/// Bytes that an open, silent WebSocket takes.
async fn memory_per_idle(peer: &Peer) -> anyhow::Result<f64> {
    // What is made once is made now.
    drop(websocket(peer.address).await?);
    let before = peer.memory_bytes()?;
    let mut sockets = Vec::new();
    for number in 0..IDLE {
        let mut socket = websocket(peer.address).await?;
        let greeting = greeting(number);
        socket.write_all(&greeting).await?;
        socket.read_exact(&mut vec![0; greeting.len()]).await?;
        sockets.push(socket);
    }
    Ok(peer.memory_bytes()?.saturating_sub(before) as f64 / IDLE as f64)
}

/// What a Shiny session begins with, each with an id of its own, which homing remembers.
fn greeting(number: usize) -> Vec<u8> {
    let text = format!("{{\"config\":{{\"sessionId\":\"{number:032x}\"}}}}");
    [&[0x81, text.len() as u8], text.as_bytes()].concat()
}

async fn websocket(target: SocketAddr) -> anyhow::Result<TcpStream> {
    websocket_from(target, 1).await
}

pub async fn websocket_from(target: SocketAddr, number: u8) -> anyhow::Result<TcpStream> {
    let mut socket = connect(target, number).await?;
    let request = format!(
        "GET /websocket/ HTTP/1.1\r\nHost: {target}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    socket.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.context("the answer to an upgrade")?);
    }
    ensure!(head.starts_with(b"HTTP/1.1 101"), "{target} answered {}", String::from_utf8_lossy(&head));
    Ok(socket)
}

async fn connect(target: SocketAddr, number: u8) -> anyhow::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::new(127, 0, 2, number), 0).into())?;
    let stream = socket.connect(target).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
