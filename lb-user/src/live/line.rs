//! What a listener is told, a JSON object a line: `homing trace --live --json` is this, field by field.

use std::net::IpAddr;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// One line; `kind` says which.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Line {
    Connection(Connection),
    Request(Request),
    Missed(Missed),
    /// Nothing has happened. Homing is there; so, it finds out, is the listener. Not shown.
    #[cfg_attr(test, schemars(skip))]
    Alive,
}

/// A decision on a new connection, by the kernel's programs, or at the door of the HTTP path where there are none.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Connection {
    /// RFC 3339, UTC.
    pub time: String,
    /// The peer.
    pub client: IpAddr,
    /// The peer's.
    pub port: u16,
    /// As it is configured.
    pub app: String,
    /// kernel; http, where the HTTP path goes on with it; none, where it is refused.
    pub path: String,
    /// ring, bound, cookie, promoted, no_worker, no_socket, denied, client_too_fast or app_too_fast.
    pub rule: String,
    /// APP/N.
    pub worker: Option<String>,
}

/// A request of the HTTP path whose answer has begun.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Request {
    /// RFC 3339, UTC.
    pub time: String,
    /// The peer, or whom a trusted proxy speaks for.
    pub client: IpAddr,
    /// Unknown of those whom a proxy speaks for.
    pub port: Option<u16>,
    /// Whose request it is, if it is any's.
    pub app: Option<String>,
    /// http.
    pub path: String,
    /// Which rule chose the worker, as in the access log.
    pub rule: Option<String>,
    /// APP/N.
    pub worker: Option<String>,
    /// As the client sent it.
    pub method: String,
    /// Without the query: it is where people put secrets.
    pub target: String,
    /// Of the answer.
    pub status: u16,
    /// How long it waited for a worker.
    pub held_ms: Option<f64>,
    /// From its head to its answer's.
    pub ms: f64,
    /// Why homing itself answered, as in the access log.
    pub refused: Option<String>,
    /// As the worker was told it, `X-Request-Id`.
    pub request_id: String,
}

/// Decisions that were not told.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Missed {
    /// RFC 3339, UTC.
    pub time: String,
    /// Since the last such line.
    pub decisions: u64,
}

/// This moment, to the millisecond, and always as long.
pub fn now() -> String {
    let now = OffsetDateTime::from(SystemTime::now());
    let (year, month, day) = (now.year(), u8::from(now.month()), now.day());
    let (hour, minute, second, millis) = (now.hour(), now.minute(), now.second(), now.millisecond());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}
