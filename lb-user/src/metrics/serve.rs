//! The listener: few connections, one request on each, little time for any.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::access::{self, Denied};
use super::{Sources, render, text};
use crate::admin::report::Status;
use crate::admin::server;
use crate::config;

/// Connections at once; more wait until one of these has ended.
const CONNECTIONS_MAX: usize = 32;
/// From the accepted connection to its end, whatever is still on its way.
const CONNECTION_TIME: Duration = Duration::from_secs(20);
/// For the request's head.
const HEAD_TIME: Duration = Duration::from_secs(5);
/// Of a request's head.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// For control's report.
const REPORT_TIME: Duration = Duration::from_secs(5);
/// After an accept that failed, as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

type Answer = Response<Full<Bytes>>;
type Settings = watch::Receiver<config::Metrics>;

/// Until whoever changes the settings is gone; what is open then is answered to its end.
pub(super) async fn serve(listener: TcpListener, sources: Sources, mut settings: Settings) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut open = JoinSet::new();
    let accept = async || {
        let place = Arc::clone(&places).acquire_owned().await.map_err(std::io::Error::other)?;
        listener.accept().await.map(|(stream, _)| (place, stream))
    };
    loop {
        let accepted = tokio::select! {
            accepted = accept() => accepted,
            () = gone(&mut settings) => break,
        };
        let (sources, settings) = (sources.clone(), settings.clone());
        match accepted {
            Ok((place, stream)) => drop(open.spawn(async move {
                converse(stream, sources, settings).await;
                drop(place);
            })),
            Err(error) => {
                tracing::warn!(%error, "the metrics listener could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        while open.try_join_next().is_some() {}
    }
    drop(listener);
    while open.join_next().await.is_some() {}
}

/// Completes when nobody changes the settings any more.
async fn gone(settings: &mut Settings) {
    while settings.changed().await.is_ok() {}
}

async fn converse(stream: TcpStream, sources: Sources, settings: Settings) {
    let service = service_fn(move |request| {
        let (sources, settings) = (sources.clone(), settings.clone());
        async move { Ok::<_, Infallible>(answer(&request, &sources, &settings).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .keep_alive(false)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    // Who broke off, or reads too slowly, hears no more.
    let _ = timeout(CONNECTION_TIME, connection).await;
}

async fn answer(request: &Request<Incoming>, sources: &Sources, settings: &Settings) -> Answer {
    let token = settings.borrow().token;
    let mut answer = match request.uri().path() {
        "/metrics" => match refusal(request, token.as_ref(), &[Method::GET, Method::HEAD]) {
            Some(refusal) => refusal,
            None => metrics(sources).await,
        },
        _ => plain(StatusCode::NOT_FOUND, "there is nothing here; metrics are at /metrics\n"),
    };
    for (name, value) in HEADERS {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer
}

/// Of every answer: nothing of it is kept, guessed about, or shown in another site's page.
const HEADERS: [(HeaderName, &str); 3] = [
    (CACHE_CONTROL, "no-store"),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// For who may not ask, or does not ask as one does here.
fn refusal(request: &Request<Incoming>, token: Option<&super::Token>, methods: &[Method]) -> Option<Answer> {
    if let Err(Denied { status, why }) = access::check(request.headers(), token) {
        let mut answer = plain(status, why);
        if status == StatusCode::UNAUTHORIZED {
            answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"homing\""));
        }
        return Some(answer);
    }
    if !methods.contains(request.method()) {
        let allowed = methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
        let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, format!("{allowed} alone are understood here\n"));
        answer.headers_mut().extend(HeaderValue::try_from(allowed).ok().map(|allowed| (ALLOW, allowed)));
        return Some(answer);
    }
    let has_body = !request.body().is_end_stream();
    has_body.then(|| plain(StatusCode::PAYLOAD_TOO_LARGE, "requests have no body here\n"))
}

async fn metrics(sources: &Sources) -> Answer {
    let Some(status) = report(sources).await else { return busy() };
    let snapshot = Arc::clone(&sources.snapshots.borrow());
    with_type(text::CONTENT_TYPE, render::render(&status, &snapshot))
}

/// `None`: control is busy, or has ended.
async fn report(sources: &Sources) -> Option<Arc<Status>> {
    let ask = async {
        let (answer, answered) = oneshot::channel();
        sources.requests.send(server::Request::Report(answer)).await.ok()?;
        answered.await.ok()
    };
    timeout(REPORT_TIME, ask).await.ok().flatten()
}

fn busy() -> Answer {
    let mut answer = plain(StatusCode::SERVICE_UNAVAILABLE, "homing is busy, or about to end; try again\n");
    answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    answer
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    let mut answer = with_type("text/plain; charset=utf-8", text);
    *answer.status_mut() = status;
    answer
}

fn with_type(content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}
