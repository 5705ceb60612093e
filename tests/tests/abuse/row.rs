//! One abuse and what becomes of it.

use homing_tests::raw::{ENDLESS, Request, requests, statuses, text};

/// Follows each abuse on the same connection: it is answered exactly where homing was certain how long the abuse was, and
/// ends the connection.
pub const NEXT: &str = "GET /next HTTP/1.1\r\nHost: next\r\nConnection: close\r\n\r\n";

pub struct Row {
    pub name: &'static str,
    pub bytes: Vec<u8>,
    pub expected: Expected,
    /// Why homing passes it on where this peer refuses.
    pub excuses: Vec<(&'static str, &'static str)>,
}

pub enum Expected {
    /// Answered by homing with this status (0: with nothing), and the connection closed: who sends this may mean anything by what follows.
    Closed(u16),
    /// Answered by homing with this status; the request itself was understood.
    Answered(u16),
    /// The worker gets one request, with these header lines and not with these names, and this body.
    Passed { has: &'static [&'static str], lacks: &'static [&'static str], body: &'static str },
}

pub fn closed(name: &'static str, status: u16, bytes: impl Into<Vec<u8>>) -> Row {
    Row { name, bytes: bytes.into(), expected: Expected::Closed(status), excuses: Vec::new() }
}

pub fn answered(name: &'static str, status: u16, bytes: impl Into<Vec<u8>>) -> Row {
    Row { name, bytes: bytes.into(), expected: Expected::Answered(status), excuses: Vec::new() }
}

pub fn passed(name: &'static str, bytes: impl Into<Vec<u8>>) -> Row {
    let expected = Expected::Passed { has: &[], lacks: &[], body: "" };
    Row { name, bytes: bytes.into(), expected, excuses: Vec::new() }
}

/// A GET with these header lines.
pub fn get(headers: &str) -> String {
    format!("GET /x HTTP/1.1\r\nHost: a\r\n{headers}\r\n")
}

/// A POST with these header lines and this body.
pub fn post(headers: &str, body: &str) -> String {
    format!("POST /x HTTP/1.1\r\nHost: a\r\n{headers}\r\n{body}")
}

/// A POST in chunks.
pub fn chunked(body: &str) -> String {
    post("Transfer-Encoding: chunked\r\n", body)
}

impl Row {
    /// Header lines that the worker gets.
    pub fn has(mut self, lines: &'static [&'static str]) -> Self {
        if let Expected::Passed { has, .. } = &mut self.expected {
            *has = lines;
        }
        self
    }

    /// Names of headers that the worker does not get, and texts that are nowhere in its head.
    pub fn lacks(mut self, names: &'static [&'static str]) -> Self {
        if let Expected::Passed { lacks, .. } = &mut self.expected {
            *lacks = names;
        }
        self
    }

    pub fn body(mut self, text: &'static str) -> Self {
        if let Expected::Passed { body, .. } = &mut self.expected {
            *body = text;
        }
        self
    }

    pub fn although(mut self, peer: &'static str, why: &'static str) -> Self {
        self.excuses.push((peer, why));
        self
    }

    /// What goes over the wire.
    pub fn wire(&self) -> Vec<u8> {
        [&self.bytes, NEXT.as_bytes()].concat()
    }

    /// What is not as expected, if anything.
    pub fn judge(&self, answer: &str, worker: &[Vec<u8>]) -> Result<(), String> {
        let mut all = Vec::new();
        for bytes in worker {
            all.extend(requests(bytes).map_err(|error| format!("the worker cannot tell what it got: {error}"))?);
        }
        let hosts = all.iter().find(|request| request.values("host").len() != 1);
        if let Some(request) = hosts {
            return Err(format!("not one Host: {}", request.head));
        }
        let (next, own): (Vec<_>, Vec<_>) = all.iter().partition(|request| request.target() == "/next");
        if answer.ends_with(ENDLESS) {
            return Err(format!("waits for more: {answer:?}; the worker got {all:#?}"));
        }
        let statuses = statuses(answer);
        let (wanted, count_next) = match self.expected {
            Expected::Closed(0) => (vec![], 0),
            Expected::Closed(status) => (vec![status], 0),
            Expected::Answered(status) => (vec![status, 200], 1),
            Expected::Passed { .. } => (vec![200, 200], 1),
        };
        if statuses != wanted {
            return Err(format!("answered with {statuses:?}, not {wanted:?}: {answer:?}; the worker got {all:#?}"));
        }
        if next.len() != count_next {
            return Err(format!("what followed was passed on {} times, not {count_next}", next.len()));
        }
        match &self.expected {
            Expected::Passed { has, lacks, body } => judge_passed(&own, has, lacks, body),
            _ => match own.iter().find(|request| request.is_complete) {
                Some(request) => Err(format!("the worker got it: {request:#?}")),
                None => Ok(()),
            },
        }
    }
}

fn judge_passed(own: &[&Request], has: &[&str], lacks: &[&str], body: &str) -> Result<(), String> {
    let [request] = own else { return Err(format!("{} requests at the worker, not one: {own:#?}", own.len())) };
    if let Some(line) = has.iter().find(|line| !request.has(line) && !request.trailers.contains(**line)) {
        return Err(format!("the worker did not get {line:?}: {}", request.head));
    }
    let is_there = |name: &&&str| {
        !request.values(name).is_empty() || request.head.contains(**name) || request.trailers.contains(**name)
    };
    if let Some(name) = lacks.iter().find(is_there) {
        return Err(format!("the worker got {name:?}: {}", request.head));
    }
    if !request.is_complete || text(&request.body) != body {
        return Err(format!("the worker got the body {:?}, not {body:?}", text(&request.body)));
    }
    Ok(())
}

/// Whether a peer passed the abuse on: the worker got a whole request that is not the one that follows.
pub fn was_passed_on(worker: &[Vec<u8>]) -> bool {
    worker.iter().any(|bytes| match requests(bytes) {
        Ok(requests) => requests.iter().any(|request| request.is_complete && request.target() != "/next"),
        // A whole head that a strict server refuses has been passed on, too.
        Err(_) => true,
    })
}
