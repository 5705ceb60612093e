//! The listener: few connections, one request on each, little time for any. What is answered is the business of `answer`.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Sources;
use super::answer::{Shown, answer};
use super::history::History;
use crate::config;

/// Connections at once; more wait until one of these has ended.
const CONNECTIONS_MAX: usize = 32;
/// From the accepted connection to its end, whatever is still on its way.
const CONNECTION_TIME: Duration = Duration::from_secs(20);
/// For the request's head.
const HEAD_TIME: Duration = Duration::from_secs(5);
/// Of a request's head.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// After an accept that failed, as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

type Settings = watch::Receiver<config::Metrics>;

/// Until whoever changes the settings is gone; what is open then is answered to its end.
pub(super) async fn serve(listener: TcpListener, sources: Sources, mut settings: Settings) {
    let history = History::default();
    let mut remembering = JoinSet::new();
    remembering.spawn(history.clone().keep(sources.clone()));
    let shown = Shown { sources, history };
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
        let (shown, settings) = (shown.clone(), settings.clone());
        match accepted {
            Ok((place, stream)) => drop(open.spawn(async move {
                converse(stream, shown, settings).await;
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

async fn converse(stream: TcpStream, shown: Shown, settings: Settings) {
    let service = service_fn(move |request| {
        let (shown, settings) = (shown.clone(), settings.clone());
        async move {
            let settings = settings.borrow().clone();
            Ok::<_, Infallible>(answer(&request, &shown, &settings).await)
        }
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
