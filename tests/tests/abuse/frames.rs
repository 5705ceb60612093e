//! Abuses of HTTP/2, each with what becomes of it: what h2spec asks (whose numbers are RFC 9113's sections), and what an HTTP/1
//! worker must never see. Each has a connection of its own.

use std::net::SocketAddr;
use std::time::Duration;

use homing_tests::frames::{
    CONTINUATION, Client, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PADDED, PING, PRIORITY, PUSH_PROMISE,
    RST_STREAM, Reaction, SETTINGS, WHOLE, WINDOW_UPDATE, block, frame,
};
use homing_tests::instance::{Homing, free_address};
use homing_tests::peers::{self, Speaks};
use homing_tests::raw::{Worker, exchange, requests, statuses, text};

use crate::{Beside, compare};

/// RFC 9113 section 7.
const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const COMPRESSION_ERROR: u32 = 9;
const ENHANCE_YOUR_CALM: u32 = 11;

/// h2 says PROTOCOL_ERROR of most things, where the document has a code of their own; either ends the connection.
fn or_protocol_error(code: u32) -> [u32; 2] {
    [code, PROTOCOL_ERROR]
}

/// What a client sends after its preface, and what becomes of it.
struct Row {
    name: &'static str,
    bytes: Vec<u8>,
    /// The connection or the stream is ended with one of these codes…
    codes: Vec<u32>,
    /// … or the stream is answered with this status.
    status: Option<u16>,
    /// Peers that refuse what homing serves, and why homing does all the same.
    excuses: Vec<(&'static str, &'static str)>,
}

impl Row {
    fn unlike(mut self, peer: &'static str, why: &'static str) -> Self {
        self.excuses.push((peer, why));
        self
    }
}

const NO_TRAILERS: &str = "nginx takes no trailers of requests by HTTP/2 at all, which RFC 9113 section 8.1 has";

fn refused(name: &'static str, codes: &[u32], frames: &[Vec<u8>]) -> Row {
    Row { name, bytes: frames.concat(), codes: codes.to_vec(), status: None, excuses: Vec::new() }
}

fn answered(name: &'static str, status: u16, frames: &[Vec<u8>]) -> Row {
    Row { name, bytes: frames.concat(), codes: Vec::new(), status: Some(status), excuses: Vec::new() }
}

/// A GET with these lines instead of or after its own.
fn lines(more: &[(&str, &str)]) -> Vec<u8> {
    let own = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/x")];
    let kept = own.into_iter().filter(|(name, _)| more.iter().all(|(other, _)| other != name));
    let mut all: Vec<_> = kept.collect();
    // Pseudo-headers go first.
    let at = all.len();
    for &line in more {
        let at = if line.0.starts_with(':') { at } else { all.len() };
        all.insert(at, line);
    }
    block(&all)
}

/// The whole request, refused or answered.
pub fn get(more: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, WHOLE, 1, &lines(more))
}

/// The head of a request whose body follows.
pub fn post(more: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, 1, &lines(&[&[(":method", "POST")], more].concat()))
}

fn setting(number: u16, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&number.to_be_bytes()[..], &value.to_be_bytes()].concat())
}

fn connections() -> Vec<Row> {
    let plain = lines(&[]);
    let protocol = [PROTOCOL_ERROR];
    let size = or_protocol_error(FRAME_SIZE_ERROR);
    let compression = or_protocol_error(COMPRESSION_ERROR);
    let flow = or_protocol_error(FLOW_CONTROL_ERROR);
    vec![
        refused("4.2: a frame that is too long", &size, &[post(&[]), frame(DATA, END_STREAM, 1, &[0; 16_385])]),
        refused("4.3: a block that cannot be decoded", &compression, &[frame(HEADERS, WHOLE, 1, &[0x80])]),
        refused("4.3: an index that names nothing", &compression, &[frame(HEADERS, WHOLE, 1, &[0xc6])]),
        refused("4.3: a head that does not end (CVE-2024-27316)", &[ENHANCE_YOUR_CALM], &{
            let pieces = (0..1_000).map(|_| frame(CONTINUATION, 0, 1, &block(&[("x", "1")])));
            std::iter::once(frame(HEADERS, END_STREAM, 1, &plain)).chain(pieces).collect::<Vec<_>>()
        }),
        refused("5.1: DATA on an idle stream", &protocol, &[frame(DATA, END_STREAM, 1, b"x")]),
        refused("5.1: RST_STREAM on an idle stream", &protocol, &[frame(RST_STREAM, 0, 1, &[0; 4])]),
        refused("5.1: WINDOW_UPDATE on an idle stream", &protocol, &[frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])]),
        refused("5.1: CONTINUATION on an idle stream", &protocol, &[frame(CONTINUATION, WHOLE, 1, &plain)]),
        refused("5.1.1: an even stream", &protocol, &[frame(HEADERS, WHOLE, 2, &plain)]),
        refused(
            "5.1.1: a stream below one before",
            &or_protocol_error(STREAM_CLOSED),
            &[frame(HEADERS, WHOLE, 5, &plain), frame(HEADERS, WHOLE, 1, &plain)],
        ),
        refused("6.1: DATA on stream 0", &protocol, &[frame(DATA, END_STREAM, 0, b"x")]),
        refused(
            "6.1: padding beyond the frame",
            &protocol,
            &[post(&[]), frame(DATA, END_STREAM | PADDED, 1, &[9, b'x'])],
        ),
        refused("6.2: HEADERS on stream 0", &protocol, &[frame(HEADERS, WHOLE, 0, &plain)]),
        refused(
            "6.2: another frame within a head",
            &protocol,
            &[frame(HEADERS, END_STREAM, 1, &plain[..8]), frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 9])],
        ),
        refused(
            "6.2: another stream's CONTINUATION",
            &protocol,
            &[frame(HEADERS, END_STREAM, 1, &plain[..8]), frame(CONTINUATION, END_HEADERS, 3, &plain[8..])],
        ),
        refused("6.3: PRIORITY on stream 0", &protocol, &[frame(PRIORITY, 0, 0, &[0, 0, 0, 1, 9])]),
        refused("6.4: RST_STREAM on stream 0", &protocol, &[frame(RST_STREAM, 0, 0, &[0; 4])]),
        refused("6.4: a short RST_STREAM", &size, &[post(&[]), frame(RST_STREAM, 0, 1, &[0; 3])]),
        refused("6.5: SETTINGS on a stream", &protocol, &[frame(SETTINGS, 0, 1, &[])]),
        refused("6.5: SETTINGS that say yes and something", &size, &[frame(SETTINGS, 1, 0, &[0; 6])]),
        refused("6.5: a setting cut short", &size, &[frame(SETTINGS, 0, 0, &[0, 3, 0])]),
        refused("6.5.2: ENABLE_PUSH of 2", &protocol, &[setting(2, 2)]),
        refused("6.5.2: a window beyond the largest", &flow, &[setting(4, 1 << 31)]),
        refused("6.5.2: frames below the smallest", &protocol, &[setting(5, 16_383)]),
        refused("6.5.2: frames beyond the largest", &protocol, &[setting(5, 1 << 24)]),
        refused("6.6: PUSH_PROMISE of a client", &protocol, &[frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2])]),
        refused("6.7: PING on a stream", &protocol, &[frame(PING, 0, 1, &[0; 8])]),
        refused("6.7: a short PING", &size, &[frame(PING, 0, 0, &[0; 6])]),
        refused("6.8: GOAWAY on a stream", &protocol, &[frame(GOAWAY, 0, 1, &[0; 8])]),
        refused("6.9: an empty WINDOW_UPDATE", &protocol, &[frame(WINDOW_UPDATE, 0, 0, &[0; 4])]),
        refused("6.9: a short WINDOW_UPDATE", &size, &[frame(WINDOW_UPDATE, 0, 0, &[0, 0, 1])]),
        refused(
            "6.9.1: a window that overflows",
            &flow,
            &[0, 1].map(|_| frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff])),
        ),
    ]
}

fn streams() -> Vec<Row> {
    let protocol = [PROTOCOL_ERROR];
    let closed = or_protocol_error(STREAM_CLOSED);
    let data = |flags, bytes: &[u8]| frame(DATA, flags, 1, bytes);
    vec![
        refused("5.1: DATA behind the end of a stream", &closed, &[get(&[]), data(END_STREAM, b"x")]),
        refused("5.1: HEADERS behind the end of a stream", &closed, &[get(&[]), get(&[])]),
        refused(
            "6.9: an empty WINDOW_UPDATE on a stream",
            &protocol,
            &[post(&[]), frame(WINDOW_UPDATE, 0, 1, &[0; 4])],
        ),
        refused(
            "8.1: trailers that do not end the stream",
            &protocol,
            &[post(&[]), frame(HEADERS, END_HEADERS, 1, &block(&[("x", "1")]))],
        ),
        refused(
            "8.1.1: a body longer than said",
            &protocol,
            &[post(&[("content-length", "1")]), data(END_STREAM, b"xy")],
        ),
        refused(
            "8.1.1: a body shorter than said",
            &protocol,
            &[post(&[("content-length", "3")]), data(END_STREAM, b"xy")],
        ),
        refused("8.1.1: a body that was said and does not come", &protocol, &[get(&[("content-length", "1")])]),
        refused("8.2: a name in upper case", &protocol, &[get(&[("X-Big", "1")])]),
        refused("8.2.1: a name with a blank", &protocol, &[get(&[("x y", "1")])]),
        refused("8.2.1: a name with a line's end", &protocol, &[get(&[("x\r\ny", "1")])]),
        refused("8.2.1: a name with a colon", &protocol, &[get(&[("x:y", "1")])]),
        refused("8.2.1: an empty name", &protocol, &[get(&[("", "1")])]),
        refused("8.2.1: a value with a line's end", &protocol, &[get(&[("x", "1\r\nTransfer-Encoding: chunked")])]),
        refused("8.2.1: a value with LF", &protocol, &[get(&[("x", "1\ny: 2")])]),
        refused("8.2.1: a value with NUL", &protocol, &[get(&[("x", "1\0")])]),
        refused("8.2.2: connection", &protocol, &[get(&[("connection", "keep-alive")])]),
        refused("8.2.2: keep-alive", &protocol, &[get(&[("keep-alive", "5")])]),
        refused(
            "8.2.2: transfer-encoding",
            &protocol,
            &[post(&[("transfer-encoding", "chunked")]), data(END_STREAM, b"0\r\n\r\n")],
        ),
        refused("8.2.2: upgrade", &protocol, &[get(&[("upgrade", "websocket")])]),
        refused("8.2.2: te other than trailers", &protocol, &[get(&[("te", "gzip")])]),
        refused("8.3: an unknown pseudo-header", &protocol, &[get(&[(":who", "me")])]),
        refused("8.3: an answer's pseudo-header", &protocol, &[get(&[(":status", "200")])]),
        refused(
            "8.3: a pseudo-header behind another header",
            &protocol,
            &[frame(
                HEADERS,
                WHOLE,
                1,
                &block(&[(":method", "GET"), (":scheme", "http"), ("x", "1"), (":path", "/x")]),
            )],
        ),
        refused(
            "8.3.1: no method",
            &protocol,
            &[frame(HEADERS, WHOLE, 1, &block(&[(":scheme", "http"), (":authority", "a"), (":path", "/")]))],
        ),
        refused(
            "8.3.1: no scheme",
            &protocol,
            &[frame(HEADERS, WHOLE, 1, &block(&[(":method", "GET"), (":authority", "a"), (":path", "/")]))],
        ),
        refused(
            "8.3.1: no path",
            &protocol,
            &[frame(HEADERS, WHOLE, 1, &block(&[(":method", "GET"), (":scheme", "http"), (":authority", "a")]))],
        ),
        refused("8.3.1: an empty path", &protocol, &[get(&[(":path", "")])]),
        refused("8.3.1: two methods", &protocol, &[get(&[(":method", "GET"), (":method", "PUT")])]),
        refused("8.3.1: two paths", &protocol, &[get(&[(":path", "/x"), (":path", "/y")])]),
        refused("8.3.1: a method with a line in it", &protocol, &[get(&[(":method", "GET / HTTP/1.1\r\nX:")])]),
        refused("8.3.1: a path with a line in it", &protocol, &[get(&[(":path", "/ HTTP/1.1\r\nX: 1\r\n\r\nGET /")])]),
        refused("8.3.1: a path with a blank", &protocol, &[get(&[(":path", "/x HTTP/1.1")])]),
        refused("8.3.1: an authority with a blank", &protocol, &[get(&[(":authority", "a b")])]),
    ]
}

/// What must be borne, and what homing refuses in words of HTTP.
fn answers() -> Vec<Row> {
    let plain = lines(&[]);
    vec![
        answered("4.1: a frame of an unknown type", 200, &[frame(0xee, 0xff, 0, b"what"), get(&[])]),
        answered("4.1: unknown flags", 200, &[frame(HEADERS, WHOLE | 0x10 | 0x80, 1, &plain)]),
        answered(
            "4.3: a head in three pieces",
            200,
            &[
                frame(HEADERS, END_STREAM, 1, &plain[..1]),
                frame(CONTINUATION, 0, 1, &plain[1..9]),
                frame(CONTINUATION, END_HEADERS, 1, &plain[9..]),
            ],
        ),
        answered(
            "8.1: trailers with a pseudo-header",
            200,
            &[post(&[]), frame(HEADERS, WHOLE, 1, &block(&[(":method", "GET")]))],
        )
        .unlike("nginx", NO_TRAILERS)
        .unlike("haproxy", "h2 drops it with the trailers' own block: neither homing nor a worker sees it"),
        answered("6.5: an unknown setting", 200, &[setting(0xff, 1), get(&[])]),
        answered(
            "8.1: trailers",
            200,
            &[post(&[]), frame(DATA, 0, 1, b"x"), frame(HEADERS, WHOLE, 1, &block(&[("x", "1")]))],
        )
        .unlike("nginx", NO_TRAILERS),
        answered(
            "8.1.1: a body as long as said",
            200,
            &[post(&[("content-length", "1")]), frame(DATA, END_STREAM, 1, b"x")],
        ),
        answered(
            "8.1.1: a body's length said twice",
            400,
            &[post(&[("content-length", "1"), ("content-length", "1")]), frame(DATA, END_STREAM, 1, b"x")],
        ),
        answered("a host that is not the authority", 400, &[get(&[("host", "b")])]),
        answered("TRACE", 405, &[get(&[(":method", "TRACE")])]),
        answered("an expectation that nobody knows", 417, &[get(&[("expect", "cake")])]),
    ]
}

fn rows() -> Vec<Row> {
    [connections(), streams(), answers()].into_iter().flatten().collect()
}

/// A homing that takes HTTP/2 without TLS, before one worker of the test's own.
pub fn homing(worker: SocketAddr) -> (Homing, SocketAddr) {
    let listen = free_address();
    let app = format!(
        "[[app]]\nname = \"raw\"\nlisten = [\"{listen}\"]\naffinity = \"cookie\"\nh2c = true\n\
         backends = [{{ address = \"{worker}\", forward = \"http\" }}]\n"
    );
    let homing = Homing::start_under(&[], "kernel_path = \"off\"", &app);
    homing.wait_for_workers(0, 1);
    (homing, listen)
}

fn judge(row: &Row, reaction: &Reaction) -> Result<(), String> {
    let is_right = match reaction {
        Reaction::GoAway(code) | Reaction::Reset(code) => row.codes.contains(code),
        Reaction::Answered(status) => row.status == Some(*status),
        Reaction::Closed => false,
    };
    if is_right { Ok(()) } else { Err(format!("{}: {reaction:?}, not {:?} {:?}", row.name, row.codes, row.status)) }
}

#[test]
fn every_abuse_of_http_2_becomes_what_its_row_says() {
    let worker = Worker::start();
    let (_homing, listen) = homing(worker.address);
    worker.take();
    let rows = rows();
    let mut wrong = Vec::new();
    for row in &rows {
        let mut client = Client::connect(listen);
        client.send(&row.bytes);
        let reaction = client.reaction(1);
        drop(client);
        wrong.extend(judge(row, &reaction).err());
    }
    // Whatever came of them: what a worker gets can be read in one way, as one request.
    for bytes in worker.take() {
        let seen = requests(&bytes);
        assert!(seen.as_ref().is_ok_and(|requests| requests.len() == 1), "{seen:?}: {}", text(&bytes));
    }
    assert!(wrong.is_empty(), "{} of {} rows:\n\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    assert!(Client::connect(listen).is_alive(*b"at last!"), "nobody else has noticed");
}

/// A peer that takes its time over what it refuses has not answered it.
const PEERS_TIME: Duration = Duration::from_secs(2);

fn ask(peer: SocketAddr, _: &Worker) -> Vec<Beside> {
    let beside = |row: Row| {
        let mut client = Client::connect(peer).patient_for(PEERS_TIME);
        client.send(&row.bytes);
        let reaction = client.reaction(1);
        Beside {
            row: row.name,
            peer: reaction == Reaction::Answered(200),
            homing: row.status == Some(200),
            said: format!("{reaction:?}"),
            excuses: row.excuses,
        }
    };
    rows().into_iter().map(beside).collect()
}

#[test]
fn nothing_that_nginx_refuses_by_http_2_is_served() {
    compare("nginx", |upstream| peers::nginx(Speaks::Http2, upstream), ask);
}

#[test]
fn nothing_that_haproxy_refuses_by_http_2_is_served() {
    compare("haproxy", |upstream| peers::haproxy(Speaks::Http2, upstream), ask);
}

#[test]
fn what_begins_like_http_2_and_is_not_is_http_1() {
    let worker = Worker::start();
    let (_homing, listen) = homing(worker.address);
    // The method PRI on a target that only OPTIONS may have, or no request at all.
    for preface in ["PRI * HTTP/2.0\r\n\r\nSM\r\n\rx", "PRI * HTTP/2.1\r\n\r\nSM\r\n\r\n", "INVALID PREFACE\r\n\r\n"] {
        let answer = exchange(listen, preface.as_bytes());
        assert!(statuses(&answer).iter().all(|&status| status == 400), "{preface:?}: {answer}");
    }
}
