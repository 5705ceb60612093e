//! A connection that switched protocols: bytes both ways until both ends are done. Holds no buffer while it is idle.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use lb_common::abi::BackendId;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep, timeout};

use super::connection::Connection;
use super::counters::{Counter, Counters};
use super::entry::Entry;
use super::gate::Gate;
use super::learn::{Heard, Learner};
use super::limits::{HANDOFF_TIMEOUT, SILENCE_PARTS, TUNNEL_CHUNK_BYTES, TUNNEL_HALF_CLOSED, TUNNEL_REBIND};
use super::listen::stopped;
use super::place::Place;
use super::seldom::unless;
use super::stream::ClientStream;
use crate::address::Stream;
use crate::config::Http;

/// Open tunnels per backend. hyper forgets a connection once it is upgraded; draining must not.
#[derive(Default)]
pub struct Tunnels(Mutex<HashMap<BackendId, usize>>);

impl Tunnels {
    pub fn open(&self) -> usize {
        self.table().values().sum()
    }

    pub fn open_at(&self, backend: BackendId) -> usize {
        self.table().get(&backend).copied().unwrap_or(0)
    }

    fn table(&self) -> MutexGuard<'_, HashMap<BackendId, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One open tunnel in the registry.
struct Registered<'a> {
    tunnels: &'a Tunnels,
    counters: &'a Counters,
    backend: BackendId,
}

impl<'a> Registered<'a> {
    fn new(tunnels: &'a Tunnels, counters: &'a Counters, backend: BackendId) -> Self {
        *tunnels.table().entry(backend).or_insert(0) += 1;
        counters.add(Counter::TunnelsOpened);
        Self { tunnels, counters, backend }
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        let mut table = self.tunnels.table();
        if let Some(open) = table.get_mut(&self.backend) {
            *open -= 1;
            if *open == 0 {
                table.remove(&self.backend);
            }
        }
        self.counters.add(Counter::TunnelsClosed);
    }
}

/// Runs a tunnel from the worker's 101 to its end. The client's half becomes free when the 101 has been written.
pub async fn run(
    connection: Arc<Connection>,
    app: u32,
    place: Place,
    mut entry: Option<Entry>,
    client: OnUpgrade,
    worker: Option<(Stream, Bytes)>,
) {
    let inner = &connection.proxy;
    let Place { worker: route, load: _load, tie, .. } = place;
    let Some((mut worker, to_client)) = worker else {
        return tracing::error!("tunnel not opened: a request that switches protocols had a body");
    };
    let client = match timeout(HANDOFF_TIMEOUT, client).await {
        Ok(Ok(upgraded)) => upgraded,
        Ok(Err(error)) => return tracing::debug!(%error, "tunnel not opened: the client went away"),
        Err(_) => return tracing::debug!("tunnel not opened: the 101 was not taken in time"),
    };
    // A stream of an HTTP/2 connection has no socket of its own, and no gate before it.
    let (client, to_worker) = match under::<Gate<ClientStream>>(client) {
        Ok((gate, to_worker)) => (gate.into_inner(), to_worker),
        Err(stream) => (Some(ClientStream::Multiplexed(TokioIo::new(stream))), Bytes::new()),
    };
    let Some(mut client) = client else {
        return tracing::debug!("tunnel not opened: the client did not wait for the 101");
    };
    let backend = route.backend;
    drop(route);
    let _registered = Registered::new(&inner.tunnels, &inner.counters, backend);
    let mut shutdown = connection.shutdown.clone();
    let mut learner = Learner::default();
    // For as long as the tunnel is open.
    let mut living = None;
    let ear = |said: &[u8]| match learner.hear(said) {
        Heard::Little => true,
        Heard::Session(id) => {
            living = Some(inner.sessions.learn(app, &id, backend));
            inner.counters.add(Counter::SessionsLearnt);
            false
        }
        Heard::Enough => false,
    };
    let traffic = Traffic::default();
    let silence = inner.route(app).and_then(|route| Silence::of(&route.http, &traffic));
    let mut ended = pin!(async {
        tokio::select! {
            biased;
            ended = copy(&mut client, &mut worker, to_worker, to_client, &traffic, Some(Box::new(ear))) => ended,
            // Seldom, and kept out of what every tunnel carries around.
            () = Silence::fell(silence.map(|silence| Box::pin(silence.falls()))) => {
                inner.counters.add(Counter::TunnelsSilent);
                Ok(())
            }
        }
    });
    let mut stopped = pin!(stopped(&mut shutdown));
    let has_news = |_: &_| connection.shutdown.has_changed().unwrap_or(true);
    let end = unless(ended.as_mut(), stopped.as_mut(), has_news);
    if let Some(Err(error)) = refreshed(end, || inner.refresh(tie, backend)).await {
        tracing::debug!(%error, backend = backend.0, "tunnel broke");
    }
    if let Some(entry) = &mut entry {
        entry.bytes = traffic.from_worker.load(Ordering::Relaxed);
    }
}

/// Bytes that came from either end.
#[derive(Default)]
struct Traffic {
    from_client: AtomicU64,
    from_worker: AtomicU64,
}

/// So many more. Only the tunnel's own task writes, so that this is no atomic addition.
fn count(bytes: &AtomicU64, more: usize) {
    bytes.store(bytes.load(Ordering::Relaxed) + more as u64, Ordering::Relaxed);
}

/// The silences that a tunnel is ended for.
struct Silence<'a> {
    traffic: &'a Traffic,
    /// Of both ends.
    idle: Option<Duration>,
    /// Of the client.
    read: Option<Duration>,
}

impl<'a> Silence<'a> {
    fn of(http: &Http, traffic: &'a Traffic) -> Option<Self> {
        let silence = Self { traffic, idle: http.websocket_idle, read: http.websocket_read };
        (silence.idle.is_some() || silence.read.is_some()).then_some(silence)
    }

    async fn fell(falls: Option<impl Future<Output = ()>>) {
        match falls {
            Some(falls) => falls.await,
            None => std::future::pending().await,
        }
    }

    /// Completes when one of them has lasted long enough, or up to one part in [`SILENCE_PARTS`] longer.
    async fn falls(self) {
        let Self { traffic, idle, read } = self;
        let client = || traffic.from_client.load(Ordering::Relaxed);
        let both = || (client(), traffic.from_worker.load(Ordering::Relaxed));
        tokio::select! {
            () = lasts(idle, both) => {}
            () = lasts(read, client) => {}
        }
    }
}

/// Completes when what `look` sees has not changed for so long.
async fn lasts<T: PartialEq>(silence: Option<Duration>, look: impl Fn() -> T) {
    let Some(silence) = silence else { return std::future::pending().await };
    let mut seen = look();
    let mut parts = 0;
    while parts < SILENCE_PARTS {
        sleep(silence / SILENCE_PARTS).await;
        let now = look();
        parts = if now == seen { parts + 1 } else { 0 };
        seen = now;
    }
}

/// Waits for `end`, and calls `refresh` every [`TUNNEL_REBIND`] until then.
async fn refreshed<T>(end: impl Future<Output = T>, refresh: impl Fn()) -> T {
    let mut end = pin!(end);
    loop {
        if let Some(ended) = unless(end.as_mut(), pin!(sleep(TUNNEL_REBIND)), Sleep::is_elapsed).await {
            return ended;
        }
        refresh();
    }
}

/// The stream under an upgraded connection, and what had been read from it beyond the head.
fn under<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(upgraded: Upgraded) -> Result<(S, Bytes), Upgraded> {
    let parts = upgraded.downcast::<TokioIo<S>>()?;
    Ok((parts.io.into_inner(), parts.read_buf))
}

/// Copies both ways until both directions have ended, or one broke, or one has ended and the other goes on for longer
/// than [`TUNNEL_HALF_CLOSED`]. `to_worker` and `to_client` go first. `ear` hears what the worker says.
async fn copy<A, B>(
    client: &mut A,
    worker: &mut B,
    to_worker: Bytes,
    to_client: Bytes,
    traffic: &Traffic,
    mut ear: Option<Ear<'_>>,
) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    ear = ear.and_then(|mut ear| (to_client.is_empty() || ear(&to_client)).then_some(ear));
    count(&traffic.from_client, to_worker.len());
    count(&traffic.from_worker, to_client.len());
    let mut forth = Flow { pending: to_worker, state: State::Reading, bytes: &traffic.from_client, ear: None };
    let mut back = Flow { pending: to_client, state: State::Reading, bytes: &traffic.from_worker, ear };
    let mut poll = |cx: &mut Context<'_>, both: bool| {
        let forth = forth.poll(cx, client, worker)?.is_ready();
        let back = back.poll(cx, worker, client)?.is_ready();
        if (forth && back) || (!both && (forth || back)) { Poll::Ready(io::Result::Ok(())) } else { Poll::Pending }
    };
    poll_fn(|cx| poll(cx, false)).await?;
    timeout(TUNNEL_HALF_CLOSED, poll_fn(|cx| poll(cx, true))).await.unwrap_or(Ok(()))
}

/// Hears what is read, until it says false.
type Ear<'a> = Box<dyn FnMut(&[u8]) -> bool + Send + 'a>;

/// One direction of a tunnel.
struct Flow<'a> {
    /// Read but not yet written.
    pending: Bytes,
    state: State,
    /// Counts what comes.
    bytes: &'a AtomicU64,
    ear: Option<Ear<'a>>,
}

#[derive(PartialEq, Eq)]
enum State {
    Reading,
    /// The reader is at its end; the writer must be told.
    Ending,
    Done,
}

thread_local! {
    /// Data is in here only within one poll; what cannot be written at once moves to the flow that it belongs to.
    static CHUNK: RefCell<Box<[u8]>> = RefCell::new(vec![0; TUNNEL_CHUNK_BYTES].into());
}

impl Flow<'_> {
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            while self.pending.has_remaining() {
                match ready!(Pin::new(&mut *to).poll_write(cx, &self.pending))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    written => self.pending.advance(written),
                }
            }
            match self.state {
                State::Reading => {
                    // Frees what a burst left behind: an empty slice still owns its allocation.
                    self.pending = Bytes::new();
                    ready!(CHUNK.with_borrow_mut(|chunk| self.pass_chunk(cx, chunk, from, to)))?;
                }
                State::Ending => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.state = State::Done;
                }
                State::Done => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Reads once and writes what it can.
    fn pass_chunk<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        chunk: &mut [u8],
        from: &mut R,
        to: &mut W,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut read = ReadBuf::new(chunk);
        ready!(Pin::new(from).poll_read(cx, &mut read))?;
        let data = read.filled();
        if data.is_empty() {
            self.state = State::Ending;
            return Poll::Ready(Ok(()));
        }
        count(self.bytes, data.len());
        if self.ear.as_mut().is_some_and(|ear| !ear(data)) {
            self.ear = None;
        }
        let written = match Pin::new(to).poll_write(cx, data) {
            Poll::Ready(written) => written?,
            Poll::Pending => 0,
        };
        if written < data.len() {
            self.pending = Bytes::copy_from_slice(&data[written..]);
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::Instant;

    #[tokio::test]
    async fn bytes_pass_both_ways_through_pipes_smaller_than_a_chunk() {
        let (mut client, mut client_side) = duplex(7);
        let (mut worker, mut worker_side) = duplex(5);
        let tunnel = tokio::spawn(async move {
            let (early, greeting) = (Bytes::from_static(b"early "), Bytes::from_static(b"greeting "));
            copy(&mut client_side, &mut worker_side, early, greeting, &Traffic::default(), None).await
        });
        let sent: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
        let upload = sent.clone();
        let client = tokio::spawn(async move {
            let mut answer = String::new();
            client.write_all(&upload).await.unwrap();
            client.shutdown().await.unwrap();
            client.read_to_string(&mut answer).await.unwrap();
            answer
        });
        let mut received = Vec::new();
        worker.read_to_end(&mut received).await.unwrap();
        assert_eq!(&received[..6], b"early ");
        assert_eq!(&received[6..], sent);
        worker.write_all(b"after the client's end").await.unwrap();
        worker.shutdown().await.unwrap();
        assert_eq!(client.await.unwrap(), "greeting after the client's end");
        tunnel.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_half_closed_tunnel_ends_after_its_time() {
        let (mut client, mut client_side) = duplex(64);
        let (_silent, mut worker_side) = duplex(64);
        client.shutdown().await.unwrap();
        copy(&mut client_side, &mut worker_side, Bytes::new(), Bytes::new(), &Traffic::default(), None).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_silence_is_told_from_a_pause_to_a_sixteenth() {
        const IDLE: Duration = Duration::from_secs(160);
        let traffic = Traffic::default();
        let http = |idle, read| Http { websocket_idle: idle, websocket_read: read, ..Http::default() };
        assert!(Silence::of(&http(None, None), &traffic).is_none());
        let speaks = async |bytes: &AtomicU64, pauses: u32| {
            for _ in 0..pauses {
                sleep(IDLE * 15 / 16).await;
                count(bytes, 1);
            }
            std::future::pending::<()>().await;
        };
        for (idle, read, who) in [
            (Some(IDLE), None, &traffic.from_worker),
            (Some(IDLE), None, &traffic.from_client),
            (None, Some(IDLE), &traffic.from_client),
        ] {
            let begun = Instant::now();
            tokio::select! {
                () = speaks(who, 3) => {}
                () = Silence::of(&http(idle, read), &traffic).unwrap().falls() => {}
            }
            let lasted = begun.elapsed() - IDLE * 45 / 16;
            assert!(lasted >= IDLE && lasted <= IDLE * 17 / 16, "{lasted:?}");
        }
        // A worker that goes on speaking does not stand for its client.
        let begun = Instant::now();
        tokio::select! {
            () = speaks(&traffic.from_worker, u32::MAX) => {}
            () = Silence::of(&http(Some(IDLE), Some(IDLE)), &traffic).unwrap().falls() => {}
        }
        assert!(begun.elapsed() <= IDLE * 17 / 16);
    }

    #[tokio::test(start_paused = true)]
    async fn a_binding_is_refreshed_for_as_long_as_the_tunnel_is_open() {
        let refreshed_times = Cell::new(0);
        refreshed(sleep(TUNNEL_REBIND * 5 / 2), || refreshed_times.set(refreshed_times.get() + 1)).await;
        assert_eq!(refreshed_times.get(), 2);
    }
}
