//! A connection that switched protocols: bytes both ways until both ends are done. Holds no buffer while it is idle.
//!
//! `copy` passes bytes between any two streams, for the task of this tunnel. Two plain sockets are lent to a `relay` for as long as
//! messages are small and are taken at once, which is nearly always.

#[cfg(test)]
mod carried;
mod copy;
mod lending;
mod relay;
mod silence;

use std::collections::HashMap;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use lb_common::abi::BackendId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Sleep, sleep, timeout};

use self::copy::{CLIENT, Ear, Stopped, Traffic, WORKER, copy};
pub use self::relay::Relays;
use self::silence::Silence;
use super::connection::Connection;
use super::counters::{Counter, Counters};
use super::entry::Entry;
use super::gate::Gate;
use super::learn::{Heard, Learner};
use super::limits::{HANDOFF_TIMEOUT, TUNNEL_REBIND};
use super::listen::stopped;
use super::place::Place;
use super::seldom::unless;
use super::stream::{ClientStream, Multiplexed};
use super::streams::Tunnelled;
use crate::address::Stream;

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

/// Runs a tunnel from the worker's 101 to its end. The client's half becomes free when the 101 has been written; if it is a stream
/// of HTTP/2, that is told of the tunnel's end.
pub async fn run(
    connection: Arc<Connection>,
    app: u32,
    place: Place,
    mut entry: Option<Entry>,
    (client, tunnelled): (OnUpgrade, Option<Tunnelled>),
    worker: Option<(Stream, Bytes)>,
) {
    let inner = &connection.proxy;
    let Place { worker: route, load: _load, tie, .. } = place;
    let Some((worker, to_client)) = worker else {
        return tracing::error!("tunnel not opened: a request that switches protocols had a body");
    };
    let client = match timeout(HANDOFF_TIMEOUT, client).await {
        Ok(Ok(upgraded)) => upgraded,
        Ok(Err(error)) => return tracing::debug!(%error, "tunnel not opened: the client went away"),
        Err(_) => return tracing::debug!("tunnel not opened: the 101 was not taken in time"),
    };
    // A stream of an HTTP/2 connection has no socket of its own, and no gate before it.
    let (client, to_worker) = match under::<Gate<ClientStream>>(client) {
        Ok((gate, read)) => {
            // hyper may have looked once more between the worker's 101 and its own end.
            let (client, kept) = gate.into_inner();
            (client, if read.is_empty() { kept } else { [read, kept].concat().into() })
        }
        Err(stream) => (ClientStream::Multiplexed(Multiplexed::new(stream, tunnelled)), Bytes::new()),
    };
    let backend = route.backend;
    drop(route);
    let _registered = Registered::new(&inner.tunnels, &inner.counters, backend);
    let mut shutdown = connection.shutdown.clone();
    // For as long as the tunnel is open.
    let mut living = None;
    let (sessions, counters, known) = (&inner.sessions, &inner.counters, &mut living);
    // Has the learner to itself: what that holds goes with it.
    let mut learner = Learner::default();
    let mut ear = Ear::new(move |said| match learner.hear(said) {
        Heard::Little => true,
        Heard::Session(id) => {
            *known = Some(sessions.learn(app, &id, backend));
            counters.add(Counter::SessionsLearnt);
            false
        }
        Heard::Enough => false,
    });
    let traffic = Arc::<Traffic>::default();
    traffic.count(CLIENT, to_worker.len());
    traffic.count(WORKER, to_client.len());
    let ear = (to_client.is_empty() || ear.hears(&to_client)).then_some(ear);
    let silence = inner.route(app).and_then(|route| Silence::of(&route.http, &traffic));
    let mut ended = pin!(async {
        tokio::select! {
            biased;
            ended = carry(&inner.relays, client, worker, [to_client, to_worker], &traffic, ear) => ended,
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
        entry.bytes = traffic.of(WORKER);
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

/// Passes bytes on until there are no more, by whoever does it best at the time.
async fn carry(
    relays: &Relays,
    mut client: ClientStream,
    mut worker: Stream,
    mut pending: [Bytes; 2],
    traffic: &Arc<Traffic>,
    mut ear: Option<Ear<'_>>,
) -> io::Result<()> {
    let mut may_rest = matches!(client, ClientStream::Plain(_));
    loop {
        let stopped = copy(&mut client, &mut worker, pending, traffic, &mut ear, may_rest).await?;
        let ClientStream::Plain(plain) = client else { return Ok(()) };
        if stopped == Stopped::Ended {
            return Ok(());
        }
        let ends = [Stream::Tcp(plain).unwatch()?, worker.unwatch()?];
        let ends = match relays.lend(ends, Arc::clone(traffic)) {
            Ok(lent) => {
                let returned =
                    lent.returned().await.ok_or_else(|| io::Error::other("the thread for tunnels is gone"))?;
                returned.result?;
                pending = returned.pending;
                returned.ends
            }
            Err(ends) => {
                (may_rest, pending) = (false, Default::default());
                ends
            }
        };
        let [own, its] = ends;
        let Stream::Tcp(plain) = own.watch()? else { unreachable!("a client comes by TCP") };
        (client, worker) = (ClientStream::Plain(plain), its.watch()?);
    }
}

/// The stream under an upgraded connection, and what had been read from it beyond the head.
fn under<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(upgraded: Upgraded) -> Result<(S, Bytes), Upgraded> {
    let parts = upgraded.downcast::<TokioIo<S>>()?;
    Ok((parts.io.into_inner(), parts.read_buf))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    #[tokio::test(start_paused = true)]
    async fn a_binding_is_refreshed_for_as_long_as_the_tunnel_is_open() {
        let refreshed_times = Cell::new(0);
        refreshed(sleep(TUNNEL_REBIND * 5 / 2), || refreshed_times.set(refreshed_times.get() + 1)).await;
        assert_eq!(refreshed_times.get(), 2);
    }
}
