//! From an accepted connection to its end: who it is, TLS if the door asks for it, and then HTTP.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use ipnet::IpNet;
use lb_common::tap::Rule;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::sleep;

use super::connection::Connection;
use super::counters::Counter;
use super::handshake::shake_hands;
use super::headers::Client;
use super::limits::{
    CLIENT_STALL, COMPLAINT_PAUSE, HEAD_READ_TIMEOUT, PREFACE_PAUSE, PROXY_HEADER_TIMEOUT, TCP_KEEPALIVE,
};
use super::listen::stopped;
use super::patience::timeout;
use super::serve::Settings;
use super::stream::ClientStream;
use super::{Inner, Shutdown, proxied};
use crate::routing::is_trusted;

/// What operators are told now and then, however often it happens.
#[derive(Default)]
pub struct Complaints(Mutex<Option<Instant>>);

impl Complaints {
    fn refused_proxy(&self, peer: IpAddr, error: &io::Error) {
        // A panic cannot leave a time half-written.
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|last| last.elapsed() >= COMPLAINT_PAUSE) {
            *last = Some(Instant::now());
            tracing::warn!(%peer, %error, "a connection to an app with proxy_protocol was refused; more may follow unsaid");
        }
    }
}

/// Somebody at a listener.
pub struct Arrival {
    pub stream: TcpStream,
    pub peer: SocketAddr,
    /// The listen address, as it is configured.
    pub address: SocketAddr,
    pub shutdown: watch::Receiver<Shutdown>,
    pub permit: OwnedSemaphorePermit,
}

/// Serves the connection to its end.
pub async fn welcome(proxy: Arc<Inner>, settings: Arc<Settings>, arrival: Arrival) {
    let mut shutdown = arrival.shutdown.clone();
    let entered = async {
        tokio::select! {
            entered = enter(&proxy, arrival) => entered,
            () = stopped(&mut shutdown) => Ok(None),
        }
    };
    match entered.await {
        Ok(Some((connection, stream, is_h2))) => settings.serve(&proxy, connection, stream, is_h2).await,
        Ok(None) => {}
        Err(error) => tracing::debug!(%error, "the client went away at once"),
    }
}

/// All that comes before HTTP, and whether that is HTTP/2. `None`: the client is not served.
async fn enter(proxy: &Arc<Inner>, arrival: Arrival) -> io::Result<Option<(Arc<Connection>, ClientStream, bool)>> {
    let Arrival { mut stream, peer, address, shutdown, permit } = arrival;
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(TCP_KEEPALIVE))?;
    SockRef::from(&stream).set_tcp_user_timeout(Some(CLIENT_STALL))?;
    // Control publishes what is behind an address before it opens it.
    let (door, trusted) = {
        let snapshot = proxy.routing.snapshots.borrow();
        (snapshot.doors.get(&address).map(Arc::clone).unwrap_or_default(), Arc::clone(&snapshot.trusted))
    };
    // An IPv4 client of a dual-stack listener is an IPv4 client.
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    let client = if door.proxy_protocol {
        match introduced(&mut stream, peer, &trusted).await {
            Ok(client) => client,
            Err(error) => {
                proxy.counters.add(Counter::ProxyRefused);
                proxy.complaints.refused_proxy(peer.ip(), &error);
                return Ok(None);
            }
        }
    } else {
        peer
    };
    let source = SocketAddr::new(client.ip().to_canonical(), client.port());
    let connection = Arc::new(Connection {
        proxy: Arc::clone(proxy),
        number: proxy.next_connection.fetch_add(1, Ordering::Relaxed),
        client: Client::new(source.ip(), door.tls.is_some()),
        source,
        speaks_for_others: is_trusted(&trusted, source.ip()).then_some(trusted),
        address,
        local: stream.local_addr()?,
        shutdown,
        entered: Arc::clone(&door),
        first: OnceLock::new(),
        others: Mutex::default(),
        _permit: permit,
    });
    // Where several apps are, or a proxy speaks for many, it is the first request that says whose the connection is.
    if let Some(app) = door.sole().filter(|_| connection.speaks_for_others.is_none())
        && let Err(refusal) = connection.join(app, &door, &connection.client)
        // Of too many connections the client is told with its first request.
        && refusal != Counter::RefusedConnections
    {
        let rule = match refusal {
            Counter::ClientTooFast => Rule::ClientTooFast,
            Counter::AppTooFast => Rule::AppTooFast,
            _ => Rule::Denied,
        };
        proxy.live.refused(&proxy.routing.snapshots.borrow(), app, (source.ip(), source.port()), rule);
        return Ok(None);
    }
    let stream = match &door.tls {
        Some(config) => {
            let client = connection.speaks_for_others.is_none().then_some(source.ip());
            shake_hands(proxy, Arc::clone(config), client, stream).await
        }
        None => Some(ClientStream::Plain(stream)),
    };
    let Some(stream) = stream else { return Ok(None) };
    let is_h2 = match &stream {
        ClientStream::Plain(stream) => door.h2c && begins_h2(stream).await?,
        stream => stream.has_agreed_on_h2(),
    };
    Ok(Some((connection, stream, is_h2)))
}

/// Whether the client speaks HTTP/2 without having asked (RFC 9113 section 3.3): no request begins as its preface does.
async fn begins_h2(stream: &TcpStream) -> io::Result<bool> {
    const PREFACE: &[u8] = b"PRI";
    let looking = async {
        loop {
            let mut seen = [0; PREFACE.len()];
            let there = stream.peek(&mut seen).await?;
            if there == 0 || seen[..there] != PREFACE[..there] {
                return Ok(false);
            }
            if there == PREFACE.len() {
                return Ok(true);
            }
            // The kernel tells of more only when something is taken.
            sleep(PREFACE_PAUSE).await;
        }
    };
    timeout(HEAD_READ_TIMEOUT, looking).await
}

/// Whom a trusted proxy speaks for on this connection.
async fn introduced(stream: &mut TcpStream, peer: SocketAddr, trusted: &[IpNet]) -> io::Result<SocketAddr> {
    if !is_trusted(trusted, peer.ip()) {
        return Err(io::Error::other("it is not among homing.trusted_proxies"));
    }
    let source = timeout(PROXY_HEADER_TIMEOUT, proxied::read(stream)).await?;
    Ok(source.unwrap_or(peer))
}
