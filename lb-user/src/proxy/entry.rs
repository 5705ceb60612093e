//! A request's line in the access log, and its span, filled while the request is served. Exists only where there is a log, or
//! the request is traced.

use std::net::IpAddr;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::header::{HOST, HeaderMap, HeaderName, HeaderValue, REFERER, USER_AGENT};
use http::request::Parts;
use http::uri::Authority;
use http::{Method, StatusCode, Version};

use crate::access::{AccessLog, Fate, Line};
use crate::spans::Span;

/// What nginx writes where the client was gone before its answer.
const CLIENT_GONE: u16 = 499;

/// Written, and sent, when it is dropped.
pub struct Entry {
    log: Option<Arc<AccessLog>>,
    /// Ended by drop alone.
    span: Option<Span>,
    began: Instant,
    /// Taken by drop alone.
    line: Option<Box<Line>>,
}

impl Entry {
    /// For a request whose head has come. `version`: as the client speaks it.
    pub fn begin(
        log: Option<&Arc<AccessLog>>,
        span: Option<Span>,
        client: (IpAddr, bool),
        parts: &Parts,
        version: Version,
        id: HeaderValue,
    ) -> Self {
        let (client, is_secure) = client;
        let target = match parts.uri.path_and_query() {
            Some(target) if log.is_some_and(|log| log.wants_query()) => target.as_str(),
            Some(target) => target.path(),
            // CONNECT names a machine and no path (RFC 9112 section 3.2.3).
            None => parts.uri.authority().map_or("", Authority::as_str),
        };
        let line = Line {
            began: SystemTime::now(),
            took: Duration::ZERO,
            client,
            is_secure,
            method: parts.method.clone(),
            version,
            host: copy(&parts.headers, HOST),
            target: target.to_owned(),
            referer: copy(&parts.headers, REFERER),
            user_agent: copy(&parts.headers, USER_AGENT),
            id,
            app: None,
            status: CLIENT_GONE,
            bytes: 0,
            fate: Fate::Abandoned,
        };
        Self { log: log.cloned(), span, began: Instant::now(), line: Some(Box::new(line)) }
    }

    /// Of a request whose head could not be read: `status` has been answered, and `why`.
    pub fn tell_unread(
        log: &AccessLog,
        client: (IpAddr, bool),
        id: HeaderValue,
        status: StatusCode,
        why: &'static str,
    ) {
        let (client, is_secure) = client;
        log.write(Line {
            began: SystemTime::now(),
            took: Duration::ZERO,
            client,
            is_secure,
            method: Method::default(),
            version: Version::HTTP_11,
            host: None,
            target: String::new(),
            referer: None,
            user_agent: None,
            id,
            app: None,
            status: status.as_u16(),
            bytes: 0,
            fate: Fate::Refused(why),
        });
    }

    /// Tells the worker of the span.
    pub fn tell(&self, headers: &mut HeaderMap) {
        if let Some(span) = &self.span {
            span.tell(headers);
        }
    }
}

/// Not a part of the buffer that the head was read into: a tunnel may be open for days.
fn copy(headers: &HeaderMap, name: HeaderName) -> Option<HeaderValue> {
    headers.get(name).and_then(|value| HeaderValue::from_bytes(value.as_bytes()).ok())
}

impl Deref for Entry {
    type Target = Line;

    fn deref(&self) -> &Line {
        self.line.as_deref().expect("taken by drop alone")
    }
}

impl DerefMut for Entry {
    fn deref_mut(&mut self) -> &mut Line {
        self.line.as_deref_mut().expect("taken by drop alone")
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(mut line) = self.line.take() {
            line.took = self.began.elapsed();
            if let Some(span) = self.span.take() {
                span.end(&line);
            }
            if let Some(log) = &self.log {
                log.write(*line);
            }
        }
    }
}
