//! Listeners and the client connections on them: accepting, hyper's settings, and the end of all of it.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{interval, sleep};

use super::connection::Connection;
use super::counters::Counter;
use super::handle::handle;
use super::headers::Client;
use super::limits::{
    ACCEPT_PAUSE, BUFFER_BYTES_MAX, CONNECTIONS_MAX, HEAD_BYTES_MAX, HEAD_READ_TIMEOUT, HEADERS_MAX, POOL_SWEEP,
    TCP_KEEPALIVE,
};
use super::{Inner, Listener, Shutdown};

/// Serves a listener until it is shut down and its last connection and tunnel are gone.
pub async fn serve(proxy: Arc<Inner>, listener: Listener, mut shutdown: watch::Receiver<Shutdown>) -> io::Result<()> {
    let address = listener.address;
    listener.socket.set_nonblocking(true)?;
    let socket = TcpListener::from_std(listener.socket)?;
    let settings = settings();
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut sweep = interval(POOL_SWEEP);
    let mut told = shutdown.clone();
    let mut leaving = pin!(leaving(&mut told));
    loop {
        let accepted = async {
            let permit = Arc::clone(&permits).acquire_owned().await.expect("the semaphore is never closed");
            (socket.accept().await, permit)
        };
        tokio::select! {
            (accepted, permit) = accepted => match accepted {
                Ok((stream, peer)) => {
                    let shutdown = shutdown.clone();
                    if let Err(error) = start(&proxy, &settings, address, stream, peer, shutdown, permit) {
                        tracing::debug!(%peer, %error, "the client went away at once");
                    }
                }
                Err(error) => refused_accept(&error).await,
            },
            _ = sweep.tick() => {
                let snapshot = Arc::clone(&proxy.routing.snapshots.borrow());
                proxy.upstreams.sweep(&snapshot);
            }
            () = &mut leaving => break,
        }
    }
    // From here on the kernel refuses new clients, unless control keeps the socket for a successor.
    drop(socket);
    tokio::select! {
        _ = permits.acquire_many(CONNECTIONS_MAX as u32) => {}
        () = stopped(&mut shutdown) => {}
    }
    Ok(())
}

/// Completes when nothing new is wanted.
async fn leaving(shutdown: &mut watch::Receiver<Shutdown>) {
    // An error: whoever could tell us is gone, and so is the service.
    drop(shutdown.wait_for(|state| *state != Shutdown::Serving).await);
}

/// Completes when everything must end.
pub async fn stopped(shutdown: &mut watch::Receiver<Shutdown>) {
    drop(shutdown.wait_for(|state| *state == Shutdown::Now).await);
}

fn settings() -> http1::Builder {
    let mut settings = http1::Builder::new();
    settings
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_READ_TIMEOUT)
        .max_headers(HEADERS_MAX)
        .max_header_size(HEAD_BYTES_MAX)
        .max_buf_size(BUFFER_BYTES_MAX);
    settings
}

fn start(
    proxy: &Arc<Inner>,
    settings: &http1::Builder,
    address: SocketAddr,
    stream: TcpStream,
    peer: SocketAddr,
    shutdown: watch::Receiver<Shutdown>,
    permit: OwnedSemaphorePermit,
) -> io::Result<()> {
    proxy.counters.add(Counter::Connections);
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(TCP_KEEPALIVE))?;
    // Control publishes what is behind an address before it opens it.
    let door = proxy.routing.snapshots.borrow().doors.get(&address).map(Arc::clone).unwrap_or_default();
    let connection = Arc::new(Connection {
        proxy: Arc::clone(proxy),
        // An IPv4 client of a dual-stack listener is an IPv4 client.
        client: Client::new(peer.ip().to_canonical()),
        address,
        local: stream.local_addr()?,
        shutdown: shutdown.clone(),
        entered: Arc::clone(&door),
        first: OnceLock::new(),
        others: Mutex::default(),
        _permit: permit,
    });
    // Where several apps are it is the first request that says whose the connection is.
    if let Some(app) = door.sole()
        && connection.join(app, &door).is_err()
    {
        return Ok(());
    }
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
    let served = settings.serve_connection(TokioIo::new(stream), service).with_upgrades();
    tokio::spawn(run(Arc::clone(proxy), served, talk, shutdown));
    Ok(())
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
    proxy: Arc<Inner>,
    served: http1::UpgradeableConnection<TokioIo<TcpStream>, S>,
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

/// Why `accept` failed decides whether it pays to go on at once.
async fn refused_accept(error: &io::Error) {
    let of_one_client = [io::ErrorKind::ConnectionAborted, io::ErrorKind::ConnectionReset, io::ErrorKind::Interrupted];
    if of_one_client.contains(&error.kind()) {
        return;
    }
    if may_warn() {
        tracing::warn!(%error, "cannot accept connections: raise the limit of open files (LimitNOFILE) if it is that");
    }
    sleep(ACCEPT_PAUSE).await;
}

/// At most one warning in [`WARNING_PAUSE`] failures: they come ten a second.
fn may_warn() -> bool {
    static FAILURES: AtomicUsize = AtomicUsize::new(0);
    FAILURES.fetch_add(1, Ordering::Relaxed).is_multiple_of(WARNING_PAUSE)
}

/// Failures of `accept` per warning: one a minute.
const WARNING_PAUSE: usize = (Duration::from_secs(60).as_millis() / ACCEPT_PAUSE.as_millis()) as usize;
