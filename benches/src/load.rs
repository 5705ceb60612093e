//! A small closed-loop load generator: a fixed number of clients, each with one request under way, on one thread.

use std::cell::Cell;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::ensure;
use bytes::Bytes;
use homing_tests::network::{Namespace, client_v4};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONNECTION, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustix::time::{ClockId, clock_gettime};
use tokio::net::TcpSocket;

/// Clients, each from an address of its own.
pub const CLIENTS: u8 = 16;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Connections {
    /// One for all of a client's requests.
    Kept,
    /// One for each request.
    New,
}

/// What the clients got, and what it took them.
pub struct Load {
    pub answered: u64,
    pub elapsed: Duration,
    /// CPU time of the thread, the kernel's for it included.
    pub cpu_s: f64,
}

/// Asks for so long, from a namespace.
pub fn ask(from: &Namespace, target: SocketAddr, how: Connections, length: Duration) -> anyhow::Result<Load> {
    from.enter(|| {
        let answered = Cell::new(0);
        let start = Instant::now();
        let clients = (1..=CLIENTS).map(|number| client(target, number, how, start + length, &answered));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(futures_util::future::try_join_all(clients))?;
        let elapsed = start.elapsed();
        ensure!(answered.get() > 0, "{target} answered nothing");
        let cpu = clock_gettime(ClockId::ThreadCPUTime);
        Ok(Load { answered: answered.get(), elapsed, cpu_s: cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9 })
    })
}

async fn client(
    target: SocketAddr,
    number: u8,
    how: Connections,
    end: Instant,
    answered: &Cell<u64>,
) -> anyhow::Result<()> {
    let mut kept = None;
    while Instant::now() < end {
        let mut sender = match kept.take() {
            Some(sender) => sender,
            None => connect(target, number).await?,
        };
        let mut request = Request::get("/").header(HOST, target.to_string());
        if how == Connections::New {
            request = request.header(CONNECTION, "close");
        }
        let response = sender.send_request(request.body(Empty::new())?).await?;
        ensure!(response.status() == StatusCode::OK, "{target} answered {}", response.status());
        response.into_body().collect().await?;
        answered.set(answered.get() + 1);
        if how == Connections::Kept {
            sender.ready().await?;
            kept = Some(sender);
        }
    }
    Ok(())
}

async fn connect(target: SocketAddr, number: u8) -> anyhow::Result<SendRequest<Empty<Bytes>>> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((client_v4(number), 0).into())?;
    let stream = socket.connect(target).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}
