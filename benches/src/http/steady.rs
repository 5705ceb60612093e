//! Requests at a constant rate beside idle WebSockets, through homing and straight to the worker: the waits of an ordinary day.
//!
//! The loop is open: a request is due at its moment, whether the one before has been answered or not, and its wait is counted
//! from that moment. A pause of the proxy's is so seen by all that were due in it, and not by one.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::num::NonZeroU64;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, ensure};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{MESSAGE, MESSAGE_BYTES, peers, websocket_from};
use crate::report::{Bar, Case, Rounds};
use crate::worker::{Worker, raise_descriptors};

/// WebSockets that are open and silent.
const IDLE: usize = 10_000;
/// Descriptors of a process for other things than idle WebSockets.
const SPARE: usize = 400;
/// Requests per second, over all connections.
const RATE: u32 = 5_000;
/// Connections that ask, each from a thread that sleeps until its next moment.
const ASKERS: u32 = 50;
/// From the connections' being there to the first moment.
const HEAD_START: Duration = Duration::from_millis(20);
/// Addresses that clients come from, so that none runs out of ports: 127.0.2.1, .2, …
const SOURCES: usize = 32;

/// What one round says, in microseconds.
struct Waits {
    p50: f64,
    p99: f64,
}

pub async fn cases(rounds: Rounds) -> anyhow::Result<Vec<Case>> {
    let limit = raise_descriptors();
    // homing holds two for each, one on either side.
    let idle = IDLE.min(limit.saturating_sub(SPARE) / 2);
    if idle < IDLE {
        eprintln!("a process may have {limit} descriptors here: {idle} idle WebSockets in place of {IDLE}");
    }
    let worker = Worker::start()?;
    let homing = peers::homing(&[worker.address])?;
    let targets = [homing.address, worker.address];
    let mut open = Vec::new();
    for target in targets {
        for number in 0..idle {
            open.push(websocket_from(target, (number % SOURCES) as u8 + 1).await?);
        }
    }
    let mut waits = [const { Vec::new() }; 2];
    for _ in 0..rounds.count {
        // Interleaved: whatever else the machine does, it does to both.
        for (target, waits) in targets.into_iter().zip(&mut waits) {
            waits.push(tokio::task::spawn_blocking(move || ask_steadily(target, rounds.length)).await??);
        }
    }
    for socket in &mut open {
        socket.write_all(&MESSAGE).await.context("an idle WebSocket has broken")?;
        socket.read_exact(&mut [0; MESSAGE_BYTES]).await.context("an idle WebSocket has broken")?;
    }
    let [own, direct] = &waits;
    let case = |what: &str, of: fn(&Waits) -> f64, bar| {
        let values = |waits: &[Waits]| waits.iter().map(of).collect::<Vec<_>>();
        let name = format!("{what} at {RATE}/s, {idle} idle");
        Case::new(&name, &values(own), "us", "direct to the worker", &values(direct)).least().with_bar(bar)
    };
    Ok(vec![case("p50", |waits| waits.p50, None), case("p99", |waits| waits.p99, Some(Bar::Ratio(5.0)))])
}

fn ask_steadily(target: SocketAddr, length: Duration) -> anyhow::Result<Waits> {
    let ready = Barrier::new(ASKERS as usize);
    let ask = |number: u32| -> anyhow::Result<Vec<Duration>> {
        // By default the kernel wakes a sleeper up to 50 us late.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        let mut asker = Asker::connect(target, number)?;
        ready.wait();
        let start = Instant::now() + HEAD_START;
        let mut waits = Vec::new();
        for turn in 0.. {
            let due = Duration::from_secs(1) * (turn * ASKERS + number) / RATE;
            if due > length {
                break;
            }
            std::thread::sleep((start + due).saturating_duration_since(Instant::now()));
            asker.ask()?;
            waits.push((start + due).elapsed());
        }
        Ok(waits)
    };
    let mut waits = Vec::new();
    std::thread::scope(|scope| {
        let askers: Vec<_> = (0..ASKERS).map(|number| scope.spawn(move || ask(number))).collect();
        for asker in askers {
            waits.extend(asker.join().map_err(|_| anyhow!("an asker panicked"))??);
        }
        anyhow::Ok(())
    })?;
    ensure!(!waits.is_empty(), "nothing was asked");
    waits.sort_unstable();
    let at = |part: usize| waits[(waits.len() - 1) * part / 100].as_secs_f64() * 1e6;
    Ok(Waits { p50: at(50), p99: at(99) })
}

/// One connection, with the cookie that its first answer brought. Blocking: what is between it and the socket would be measured, too.
struct Asker {
    stream: BufReader<TcpStream>,
    request: String,
}

impl Asker {
    fn connect(target: SocketAddr, number: u32) -> anyhow::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        let source = Ipv4Addr::new(127, 0, 2, (number as usize % SOURCES) as u8 + 1);
        socket.bind(&SocketAddr::from((source, 0)).into())?;
        socket.connect(&target.into())?;
        socket.set_tcp_nodelay(true)?;
        let request = format!("GET /page?with=query HTTP/1.1\r\nHost: {target}\r\nAccept: */*\r\n");
        let mut asker = Self { stream: BufReader::new(socket.into()), request: format!("{request}\r\n") };
        if let Some(cookie) = asker.ask()? {
            asker.request = format!("{request}Cookie: {cookie}\r\n\r\n");
        }
        Ok(asker)
    }

    /// Asks, and reads the answer to its end; the cookie in it.
    fn ask(&mut self) -> anyhow::Result<Option<String>> {
        self.stream.get_mut().write_all(self.request.as_bytes())?;
        let mut line = String::new();
        let (mut length, mut cookie) = (None, None);
        self.stream.read_line(&mut line)?;
        ensure!(line.starts_with("HTTP/1.1 200"), "answered {line:?}");
        while line != "\r\n" {
            line.clear();
            ensure!(self.stream.read_line(&mut line)? > 0, "an answer broke off");
            match line.split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = Some(value.trim().parse::<u64>()?);
                }
                Some((name, value)) if name.eq_ignore_ascii_case("set-cookie") => {
                    cookie = value.split(';').next().map(str::to_owned);
                }
                _ => {}
            }
        }
        let length = length.context("an answer without a length")?;
        let read = std::io::copy(&mut self.stream.by_ref().take(length), &mut std::io::sink())?;
        ensure!(read == length, "an answer broke off");
        Ok(cookie)
    }
}
