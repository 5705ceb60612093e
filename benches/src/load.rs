//! A small closed-loop load generator: a fixed number of clients, each with one request under way.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONNECTION, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpSocket;

/// Clients, each from an address of its own (127.0.2.1, .2, …).
const CLIENTS: u8 = 16;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Connections {
    /// One for all of a client's requests.
    Kept,
    /// One for each request.
    New,
}

/// Answered requests per second.
pub async fn requests_per_second(
    target: SocketAddr,
    path: &str,
    how: Connections,
    length: Duration,
) -> anyhow::Result<f64> {
    let answered = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for number in 1..=CLIENTS {
        let (answered, path) = (Arc::clone(&answered), path.to_owned());
        clients.spawn(async move { client(target, &path, number, how, start + length, &answered).await });
    }
    while let Some(client) = clients.join_next().await {
        client??;
    }
    Ok(answered.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64())
}

async fn client(
    target: SocketAddr,
    path: &str,
    number: u8,
    how: Connections,
    end: Instant,
    answered: &AtomicU64,
) -> anyhow::Result<()> {
    let mut kept = None;
    while Instant::now() < end {
        let mut sender = match kept.take() {
            Some(sender) => sender,
            None => connect(target, number).await?,
        };
        let mut request = Request::get(path).header(HOST, target.to_string());
        if how == Connections::New {
            request = request.header(CONNECTION, "close");
        }
        let response = sender.send_request(request.body(Empty::new())?).await?;
        ensure!(response.status() == StatusCode::OK, "{target} answered {}", response.status());
        response.into_body().collect().await?;
        answered.fetch_add(1, Ordering::Relaxed);
        if how == Connections::Kept {
            sender.ready().await?;
            kept = Some(sender);
        }
    }
    Ok(())
}

async fn connect(target: SocketAddr, number: u8) -> anyhow::Result<SendRequest<Empty<Bytes>>> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::new(127, 0, 2, number), 0).into())?;
    let stream = socket.connect(target).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}
