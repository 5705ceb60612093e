//! From an accepted connection to its end: who it is, TLS if the door asks for it, and then HTTP.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use ipnet::IpNet;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, watch};
use tokio::time::timeout;

use super::connection::Connection;
use super::counters::Counter;
use super::handle::handle;
use super::handshake::shake_hands;
use super::headers::Client;
use super::limits::{
    BUFFER_BYTES_MAX, COMPLAINT_PAUSE, HEAD_BYTES_MAX, HEAD_READ_TIMEOUT, HEADERS_MAX, PROXY_HEADER_TIMEOUT,
    TCP_KEEPALIVE,
};
use super::listen::{leaving, stopped};
use super::stream::ClientStream;
use super::{Inner, Shutdown, proxied};
use crate::routing::is_trusted;

/// hyper's, for all connections of a listener.
pub struct Settings(http1::Builder);

impl Settings {
    pub fn new() -> Self {
        let mut http1 = http1::Builder::new();
        http1
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_READ_TIMEOUT)
            .max_headers(HEADERS_MAX)
            .max_header_size(HEAD_BYTES_MAX)
            .max_buf_size(BUFFER_BYTES_MAX);
        Self(http1)
    }
}

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
        Ok(Some((connection, stream))) => serve(&proxy, &settings, connection, stream).await,
        Ok(None) => {}
        Err(error) => tracing::debug!(%error, "the client went away at once"),
    }
}

/// All that comes before HTTP. `None`: the client is not served.
async fn enter(proxy: &Arc<Inner>, arrival: Arrival) -> io::Result<Option<(Arc<Connection>, ClientStream)>> {
    let Arrival { mut stream, peer, address, shutdown, permit } = arrival;
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(TCP_KEEPALIVE))?;
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
    let address_of_client = client.ip().to_canonical();
    let connection = Arc::new(Connection {
        proxy: Arc::clone(proxy),
        client: Client::new(address_of_client, door.tls.is_some()),
        speaks_for_others: is_trusted(&trusted, address_of_client).then_some(trusted),
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
        && connection.join(app, &door, &connection.client).is_err()
    {
        return Ok(None);
    }
    let stream = match &door.tls {
        None => Some(ClientStream::Plain(stream)),
        Some(config) => shake_hands(proxy, Arc::clone(config), stream).await,
    };
    Ok(stream.map(|stream| (connection, stream)))
}

/// Whom a trusted proxy speaks for on this connection.
async fn introduced(stream: &mut TcpStream, peer: SocketAddr, trusted: &[IpNet]) -> io::Result<SocketAddr> {
    if !is_trusted(trusted, peer.ip()) {
        return Err(io::Error::other("it is not among homing.trusted_proxies"));
    }
    let source = timeout(PROXY_HEADER_TIMEOUT, proxied::read(stream)).await.map_err(io::Error::from)??;
    Ok(source.unwrap_or(peer))
}

async fn serve(proxy: &Inner, settings: &Settings, connection: Arc<Connection>, stream: ClientStream) {
    let shutdown = connection.shutdown.clone();
    let talk = Arc::new(Talk::default());
    let told = Arc::clone(&talk);
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let (connection, talk) = (Arc::clone(&connection), Arc::clone(&told));
        talk.begins(&request);
        async move {
            let response = handle(connection, request).await;
            talk.is_asked.store(false, Ordering::Relaxed);
            Ok::<_, Infallible>(response)
        }
    });
    let served = settings.0.serve_connection(TokioIo::new(stream), service).with_upgrades();
    run(proxy, served, talk, shutdown).await;
}

/// How far a connection is.
#[derive(Default)]
struct Talk {
    /// A request has come and is not answered yet.
    is_asked: AtomicBool,
    begun: Notify,
}

impl Talk {
    fn begins(&self, request: &http::Request<hyper::body::Incoming>) {
        // A connection that changes its protocol needs no end, and hyper would write `close` where `upgrade` must stand.
        if !request.headers().contains_key(http::header::UPGRADE) {
            self.is_asked.store(true, Ordering::Relaxed);
            self.begun.notify_waiters();
        }
    }
}

async fn run<S>(
    proxy: &Inner,
    served: http1::UpgradeableConnection<TokioIo<ClientStream>, S>,
    talk: Arc<Talk>,
    mut shutdown: watch::Receiver<Shutdown>,
) where
    S: hyper::service::HttpService<hyper::body::Incoming, ResBody = super::body::ResponseBody>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut served = pin!(served);
    let mut ended = tokio::select! {
        ended = served.as_mut() => Some(ended),
        () = leaving(&mut shutdown) => None,
    };
    if ended.is_none() && !talk.is_asked.load(Ordering::Relaxed) {
        // Not at once: hyper closes a connection that waits for a request, and that may be on its way. The next one is
        // the last, or the connection ends as any that asks for nothing.
        ended = tokio::select! {
            biased;
            () = talk.begun.notified() => None,
            ended = served.as_mut() => Some(ended),
            () = stopped(&mut shutdown) => None,
        };
    }
    if ended.is_none() {
        served.as_mut().graceful_shutdown();
        ended = tokio::select! {
            ended = served => Some(ended),
            () = stopped(&mut shutdown) => None,
        };
    }
    if let Some(Err(error)) = ended {
        // hyper has answered a bad head itself: 400, 414 or 431.
        if error.is_parse() {
            proxy.counters.add(Counter::Requests);
            proxy.counters.add(Counter::RefusedBadRequest);
        }
        tracing::debug!(%error, "client connection ended");
    }
}
