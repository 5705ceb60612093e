//! What is asked for on the listener, by whom, and the answer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::access::{self, Denied};
use super::history::{History, Sample};
use super::{Sources, page, render, text};
use crate::admin::report::{Done, Failure, Status};
use crate::admin::server::{self, Order};
use crate::config;

/// For control's report, or what it says to an order.
const CONTROL_TIME: Duration = Duration::from_secs(5);

const READS: [Method; 2] = [Method::GET, Method::HEAD];

pub(super) type Answer = Response<Full<Bytes>>;

/// What there is to show. Cheap to clone.
#[derive(Clone)]
pub(super) struct Shown {
    pub(super) sources: Sources,
    pub(super) history: History,
}

/// Of every answer: nothing of it is kept, guessed about, or shown in another site's page.
const HEADERS: [(HeaderName, &str); 4] = [
    (CACHE_CONTROL, "no-store"),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("referrer-policy"), "no-referrer"),
];

pub(super) async fn answer(request: &Request<Incoming>, shown: &Shown, settings: &config::Metrics) -> Answer {
    let mut answer = match answer_or_refuse(request, shown, settings).await {
        Ok(answer) => answer,
        Err(refusal) => *refusal,
    };
    for (name, value) in HEADERS {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer
}

async fn answer_or_refuse(
    request: &Request<Incoming>,
    shown: &Shown,
    settings: &config::Metrics,
) -> Result<Answer, Box<Answer>> {
    let (headers, token) = (request.headers(), settings.token.as_ref());
    let path = request.uri().path();
    if let Some(part) = page::part(path) {
        // Nothing of the page is secret; it asks for the token itself.
        if token.is_none() {
            access::check(headers, None).map_err(denied)?;
        }
        check_form(request, &READS)?;
        return Ok(page::answer(part));
    }
    access::check(headers, token).map_err(denied)?;
    match path {
        "/metrics" => {
            check_form(request, &READS)?;
            let status = report(&shown.sources).await.ok_or_else(busy)?;
            let snapshot = Arc::clone(&shown.sources.snapshots.borrow());
            Ok(with_type(text::CONTENT_TYPE, render::render(&status, &snapshot)))
        }
        "/api/status" => {
            check_form(request, &READS)?;
            status(shown, request.uri().query().unwrap_or_default(), settings.actions).await
        }
        "/api/drain" | "/api/undrain" | "/api/restart" if settings.actions => {
            check_form(request, &[Method::POST])?;
            access::check_origin(headers).map_err(denied)?;
            act(&shown.sources, path, request.uri().query().unwrap_or_default()).await
        }
        _ => {
            let words = "there is nothing here; the dashboard is at /, metrics are at /metrics\n";
            Err(Box::new(plain(StatusCode::NOT_FOUND, words)))
        }
    }
}

fn denied(Denied { status, why }: Denied) -> Box<Answer> {
    let mut answer = plain(status, why);
    if status == StatusCode::UNAUTHORIZED {
        answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"homing\""));
    }
    Box::new(answer)
}

/// Whether who asks does it as one does here.
fn check_form(request: &Request<Incoming>, methods: &[Method]) -> Result<(), Box<Answer>> {
    if !methods.contains(request.method()) {
        let allowed = methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
        let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, format!("{allowed} alone is understood here\n"));
        answer.headers_mut().extend(HeaderValue::try_from(allowed).ok().map(|allowed| (ALLOW, allowed)));
        return Err(Box::new(answer));
    }
    if !request.body().is_end_stream() {
        return Err(Box::new(plain(StatusCode::PAYLOAD_TOO_LARGE, "requests have no body here\n")));
    }
    Ok(())
}

#[derive(Deserialize)]
struct StatusQuery {
    /// Unix time, seconds: samples after that.
    #[serde(default)]
    since: u64,
}

/// What the dashboard draws.
#[derive(Serialize)]
struct Picture<'a> {
    status: &'a Status,
    history: Vec<Sample>,
    /// Whether it may give orders.
    actions: bool,
}

async fn status(shown: &Shown, query: &str, actions: bool) -> Result<Answer, Box<Answer>> {
    let StatusQuery { since } = understood(query)?;
    let status = report(&shown.sources).await.ok_or_else(busy)?;
    Ok(json(StatusCode::OK, &Picture { status: &status, history: shown.history.since(since), actions }))
}

#[derive(Deserialize)]
struct OrderQuery {
    /// APP or APP/N.
    worker: Option<String>,
    app: Option<String>,
}

/// An order, as on the control socket.
async fn act(sources: &Sources, path: &str, query: &str) -> Result<Answer, Box<Answer>> {
    let order = match (path, understood(query)?) {
        ("/api/drain", OrderQuery { worker: Some(worker), app: None }) => Order::Drain { worker, undo: false },
        ("/api/undrain", OrderQuery { worker: Some(worker), app: None }) => Order::Drain { worker, undo: true },
        ("/api/restart", OrderQuery { worker: None, app: Some(app) }) => Order::Restart { app, rolling: true },
        _ => {
            let words = "write ?worker=APP/N for drain and undrain, ?app=APP for restart\n";
            return Err(Box::new(plain(StatusCode::BAD_REQUEST, words)));
        }
    };
    tracing::info!(?order, "an order by the dashboard");
    let done = ask(sources, |answer| server::Request::Order(order, answer)).await.ok_or_else(busy)?;
    Ok(match done {
        Ok(done) => json(StatusCode::OK, &Done { done }),
        Err(error) => json(StatusCode::CONFLICT, &Failure { error }),
    })
}

fn understood<T: for<'de> Deserialize<'de>>(query: &str) -> Result<T, Box<Answer>> {
    serde_urlencoded::from_str(query)
        .map_err(|error| Box::new(plain(StatusCode::BAD_REQUEST, format!("the query is not understood: {error}\n"))))
}

/// `None`: control is busy, or has ended.
pub(super) async fn report(sources: &Sources) -> Option<Arc<Status>> {
    ask(sources, server::Request::Report).await
}

async fn ask<T>(sources: &Sources, question: impl FnOnce(oneshot::Sender<T>) -> server::Request) -> Option<T> {
    let asked = async {
        let (answer, answered) = oneshot::channel();
        sources.requests.send(question(answer)).await.ok()?;
        answered.await.ok()
    };
    timeout(CONTROL_TIME, asked).await.ok().flatten()
}

fn busy() -> Box<Answer> {
    let mut answer = plain(StatusCode::SERVICE_UNAVAILABLE, "homing is busy, or about to end; try again\n");
    answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    Box::new(answer)
}

fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => {
            let mut answer = with_type("application/json", body);
            *answer.status_mut() = status;
            answer
        }
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    let mut answer = with_type("text/plain; charset=utf-8", text);
    *answer.status_mut() = status;
    answer
}

pub(super) fn with_type(content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}
