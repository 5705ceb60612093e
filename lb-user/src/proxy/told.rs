//! What is told of a request to who listens to decisions, and to the log of debugging. Kept only where there is somebody.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::HeaderValue;
use http::{Method, Request, StatusCode};

use super::Inner;
use super::answer::Refusal;
use super::connection::Connection;
use super::headers::Client;
use super::place::Rule;
use crate::live::line;
use crate::routing::AppRoute;

/// Where a request was placed.
pub struct Decision {
    pub worker: u32,
    pub rule: Rule,
    /// How long it waited for that place.
    pub held: Duration,
}

/// What became of a request.
pub struct Outcome {
    pub status: StatusCode,
    pub decision: Option<Decision>,
    /// Why homing answered.
    pub refusal: Option<Refusal>,
}

/// What is kept of a request until its answer has begun.
pub struct Told {
    since: Instant,
    /// Without the query: it is where people put secrets.
    path: String,
}

impl Told {
    /// `None`: nobody is told.
    pub fn begin<B>(proxy: &Inner, request: &Request<B>) -> Option<Self> {
        let is_told = tracing::enabled!(tracing::Level::DEBUG) || proxy.live.is_listening();
        is_told.then(|| Self { since: Instant::now(), path: request.uri().path().to_owned() })
    }

    /// `app`: whose request it is, by number and as it is now. `client`: with the request's id.
    pub fn tell(
        self,
        connection: &Connection,
        (client, id): (&Client, HeaderValue),
        app: Option<(u32, Arc<AppRoute>)>,
        method: &Method,
        outcome: &Outcome,
    ) {
        let name = app.as_ref().map(|(_, route)| Arc::clone(&route.name));
        let Outcome { status, decision, refusal } = outcome;
        let rule = decision.as_ref().map(|decision| decision.rule.name());
        let held_ms = decision.as_ref().map(|decision| millis(decision.held));
        connection.proxy.live.request(app.map(|(app, _)| app), client.address, || line::Request {
            time: line::now(),
            client: client.address,
            // Of who came through a proxy no port is known.
            port: (client.address == connection.source.ip()).then(|| connection.source.port()),
            app: name.as_deref().map(str::to_owned),
            path: "http".to_owned(),
            rule: rule.map(str::to_owned),
            worker: decision.as_ref().zip(name.as_ref()).map(|(decision, app)| format!("{app}/{}", decision.worker)),
            method: method.to_string(),
            target: self.path.clone(),
            status: status.as_u16(),
            held_ms,
            ms: millis(self.since.elapsed()),
            refused: refusal.as_ref().map(|refusal| refusal.name().to_owned()),
            request_id: String::from_utf8_lossy(id.as_bytes()).into_owned(),
        });
        tracing::debug!(
            app = name.as_deref().unwrap_or("(none)"),
            client = %client.address,
            %method,
            path = self.path,
            status = status.as_u16(),
            worker = decision.as_ref().map(|decision| decision.worker),
            rule,
            held_ms,
            refusal = refusal.as_ref().map(tracing::field::debug),
            ms = millis(self.since.elapsed()),
            "request"
        );
    }
}

/// To a thousandth.
fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}
