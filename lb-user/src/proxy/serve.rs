//! HTTP on a client's stream until its end: both versions, their settings, and what is said when homing leaves.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::StatusCode;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::answer::Refusal;
use super::body::Beside;
use super::connection::Connection;
use super::counters::Counter;
use super::entry::Entry;
use super::gate::{Answering, Gate, Unclear};
use super::handle::handle;
use super::limits::{
    BUFFER_BYTES_MAX, H2_CONNECTION_WINDOW_BYTES, H2_IDLE, H2_PENDING_RESETS_MAX, H2_PING_INTERVAL, H2_PING_TIMEOUT,
    H2_RESETS_MAX, H2_SEND_BUFFER_BYTES, H2_STREAM_WINDOW_BYTES, H2_STREAMS_MAX, HEAD_BYTES_MAX, HEAD_READ_TIMEOUT,
};
use super::listen::{leaving, stopped};
use super::patience::PatientTimer;
use super::seldom::unless;
use super::stream::ClientStream;
use super::streams::{Offered, Streams};
use super::{Inner, Shutdown};

/// hyper's, for all connections of a listener.
pub struct Settings {
    http1: http1::Builder,
}

impl Settings {
    pub fn new() -> Self {
        let mut http1 = http1::Builder::new();
        http1
            .timer(PatientTimer)
            .header_read_timeout(HEAD_READ_TIMEOUT)
            .max_header_size(HEAD_BYTES_MAX)
            .max_buf_size(BUFFER_BYTES_MAX);
        Self { http1 }
    }

    fn h2(streams: Streams) -> http2::Builder<Streams> {
        let mut http2 = http2::Builder::new(streams);
        http2
            .timer(PatientTimer)
            .max_concurrent_streams(H2_STREAMS_MAX)
            .max_header_list_size(HEAD_BYTES_MAX as u32)
            .max_pending_accept_reset_streams(H2_PENDING_RESETS_MAX)
            .max_local_error_reset_streams(H2_RESETS_MAX)
            .initial_stream_window_size(H2_STREAM_WINDOW_BYTES)
            .initial_connection_window_size(H2_CONNECTION_WINDOW_BYTES)
            .max_send_buf_size(H2_SEND_BUFFER_BYTES)
            .keep_alive_interval(H2_PING_INTERVAL)
            .keep_alive_timeout(H2_PING_TIMEOUT)
            .enable_connect_protocol();
        http2
    }

    pub async fn serve(&self, proxy: &Inner, connection: Arc<Connection>, stream: ClientStream, is_h2: bool) {
        if is_h2 {
            Self::http2(proxy, connection, stream).await;
        } else {
            self.http1(proxy, connection, stream).await;
        }
    }

    async fn http1(&self, proxy: &Inner, connection: Arc<Connection>, stream: ClientStream) {
        let (shutdown, client) =
            (connection.shutdown.clone(), (connection.client.address, connection.client.is_secure));
        let talk = Arc::new(Talk::default());
        let told = Arc::clone(&talk);
        let (stream, judgement) = Gate::new(stream);
        let service = service_fn(move |mut request: http::Request<Incoming>| {
            let (connection, talk) = (Arc::clone(&connection), Arc::clone(&told));
            let (answering, is_bad) = judgement.begin();
            talk.begins(&request);
            if is_bad {
                request.extensions_mut().insert(Unclear);
            }
            async move {
                let response = handle(connection, request).await;
                if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                    answering.switch();
                }
                talk.is_asked.store(false, Ordering::Relaxed);
                Ok::<_, Infallible>(response.map(|body| body.beside(answering)))
            }
        });
        let served = self.http1.serve_connection(TokioIo::new(stream), service).with_upgrades();
        if let Err(error) = run(served, talk, shutdown).await {
            // hyper has answered a bad head itself.
            if error.is_parse() {
                refused(proxy, client, &error);
            }
            tracing::debug!(%error, "client connection ended");
        }
    }

    /// Streams, also those of WebSockets, end by themselves after a GOAWAY: which is said when homing leaves, and to who
    /// asks for nothing any more.
    async fn http2(proxy: &Inner, connection: Arc<Connection>, stream: ClientStream) {
        let mut shutdown = connection.shutdown.clone();
        let (told, asked) = watch::channel(Asked::default());
        let told = Arc::new(told);
        let service = service_fn(move |request: http::Request<Incoming>| {
            let (connection, busy) = (Arc::clone(&connection), Busy::new(&told));
            async move {
                let response = handle(connection, request).await;
                drop(busy);
                Ok::<_, Infallible>(response.map(Offered::new))
            }
        });
        proxy.counters.add(Counter::Http2Connections);
        let streams = Streams::new(&proxy.counters);
        let mut served = pin!(Self::h2(streams.clone()).serve_connection(TokioIo::new(stream), service));
        let mut ended = tokio::select! {
            ended = served.as_mut() => Some(ended),
            () = leaving(&mut shutdown) => None,
            () = idle(asked.clone()) => None,
        };
        if ended.is_none() && asked.borrow().ever {
            served.as_mut().graceful_shutdown();
            ended = tokio::select! {
                ended = served => Some(ended),
                () = stopped(&mut shutdown) => None,
                () = streams.are_over() => None,
            };
        }
        if let Some(Err(error)) = ended {
            proxy.counters.add(Counter::Http2Broken);
            tracing::debug!(%error, "HTTP/2 connection ended");
        }
    }
}

/// What an HTTP/2 connection is asked for.
#[derive(Clone, Copy, Default)]
struct Asked {
    /// Requests whose answer has not begun.
    open: usize,
    ever: bool,
}

/// One request, until its answer begins or it is reset.
struct Busy(Arc<watch::Sender<Asked>>);

impl Busy {
    fn new(told: &Arc<watch::Sender<Asked>>) -> Self {
        told.send_modify(|asked| *asked = Asked { open: asked.open + 1, ever: true });
        Self(Arc::clone(told))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.send_modify(|asked| asked.open -= 1);
    }
}

/// Completes when nothing has been asked for [`H2_IDLE`].
async fn idle(mut asked: watch::Receiver<Asked>) {
    loop {
        if asked.borrow_and_update().open > 0 {
            // An error: nobody can ask any more, and the connection's own end is near.
            if asked.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        } else if timeout(H2_IDLE, asked.changed()).await.is_err() {
            return;
        }
    }
}

/// How far a connection is.
#[derive(Default)]
struct Talk {
    /// A request has come and is not answered yet.
    is_asked: AtomicBool,
    begun: Notify,
}

impl Talk {
    fn begins(&self, request: &http::Request<Incoming>) {
        // A connection that changes its protocol needs no end, and hyper would write `close` where `upgrade` must stand.
        if !request.headers().contains_key(http::header::UPGRADE) {
            self.is_asked.store(true, Ordering::Relaxed);
            self.begun.notify_waiters();
        }
    }
}

/// Counts and tells what hyper refused.
fn refused(proxy: &Inner, client: (IpAddr, bool), error: &hyper::Error) {
    proxy.counters.add(Counter::Requests);
    proxy.counters.add(Counter::RefusedBadRequest);
    if let Some(log) = &proxy.access {
        let (status, why) = match error.is_parse_too_large() {
            true => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, Refusal::HeadTooLarge),
            false => (StatusCode::BAD_REQUEST, Refusal::Bad("its head cannot be read")),
        };
        Entry::tell_unread(log, client, proxy.ids.value(proxy.ids.number()), status, why.name());
    }
}

async fn run<S>(
    served: http1::UpgradeableConnection<TokioIo<Gate<ClientStream>>, S>,
    talk: Arc<Talk>,
    mut shutdown: watch::Receiver<Shutdown>,
) -> hyper::Result<()>
where
    S: hyper::service::HttpService<Incoming, ResBody = Beside<Answering>>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut served = pin!(served);
    let told = shutdown.clone();
    let has_news = |_: &_| told.has_changed().unwrap_or(true);
    let mut ended = unless(served.as_mut(), pin!(leaving(&mut shutdown)), has_news).await;
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
    ended.unwrap_or(Ok(()))
}
