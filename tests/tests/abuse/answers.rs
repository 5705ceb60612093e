//! Abuses by a worker: what clients get of them, and that nobody gets another's.

use homing_tests::raw::{Answer, Worker, exchange, statuses};

use crate::homing;
use crate::row::NEXT;

/// A worker's answer, and the statuses that its client gets: of this request and, if the connection is still good, of the
/// next one.
struct Case {
    name: &'static str,
    answer: String,
    statuses: &'static [u16],
    /// What the client must and must not get.
    has: &'static str,
    lacks: &'static str,
}

fn case(name: &'static str, answer: impl Into<String>, statuses: &'static [u16]) -> Case {
    Case { name, answer: answer.into(), statuses, has: "", lacks: "evil" }
}

impl Case {
    fn has(self, has: &'static str) -> Self {
        Self { has, ..self }
    }
}

fn ok(headers: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{headers}\r\n{body}")
}

const BAD: &[u16] = &[502, 200];
const GOOD: &[u16] = &[200, 200];
/// The client must see that something is missing.
const CUT: &[u16] = &[200];

fn cases() -> Vec<Case> {
    vec![
        case("nothing", "", BAD),
        case("no HTTP", "evil\r\n\r\n", BAD),
        case("another protocol", "ICY 200 OK\r\nContent-Length: 4\r\n\r\nevil", BAD),
        case("HTTP/2.0", "HTTP/2.0 200 OK\r\nContent-Length: 4\r\n\r\nevil", BAD),
        case("a status of two digits", "HTTP/1.1 20 OK\r\nContent-Length: 4\r\n\r\nevil", BAD),
        case("a status of letters", "HTTP/1.1 2xx OK\r\nContent-Length: 4\r\n\r\nevil", BAD),
        case("a status below 100", "HTTP/1.1 099 OK\r\nContent-Length: 4\r\n\r\nevil", BAD),
        case("half a head", "HTTP/1.1 200 OK\r\nX: evil", BAD),
        case("CL and TE", ok("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "2\r\nok\r\n0\r\n\r\n"), GOOD)
            .has("2\r\nok\r\n0\r\n\r\n"),
        case("two CL, different", ok("Content-Length: 2\r\nContent-Length: 4\r\n", "evil"), BAD),
        case("two CL in one line", ok("Content-Length: 2, 4\r\n", "evil"), BAD),
        case("CL -1", ok("Content-Length: -1\r\n", "evil"), BAD),
        case("CL +4", ok("Content-Length: +4\r\n", "evil"), BAD),
        case("CR in a value", ok("X: 1\rSet-Cookie: evil=1\r\nContent-Length: 0\r\n", ""), BAD),
        case("NUL in a value", ok("X: \0evil\r\nContent-Length: 0\r\n", ""), BAD),
        case("a folded value", ok("X: 1\r\n evil\r\nContent-Length: 0\r\n", ""), BAD),
        case("a blank before the colon", ok("X : evil\r\nContent-Length: 0\r\n", ""), BAD),
        case("a line without a colon", ok("evil\r\nContent-Length: 0\r\n", ""), BAD),
        case("an empty name", ok(": evil\r\nContent-Length: 0\r\n", ""), BAD),
        case("a head of 40 KB", ok(&format!("X: evil{}\r\n", "x".repeat(40 * 1024)), ""), BAD),
        case("101 headers", ok(&"X: evil\r\n".repeat(101), ""), BAD),
        case("101 unasked", "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nevil", BAD),
        case(
            "1000 interim answers",
            "HTTP/1.1 103 Early Hints\r\nLink: </evil>\r\n\r\n".repeat(1000) + &ok("Content-Length: 2\r\n", "ok"),
            GOOD,
        ),
        case("an interim answer and no other", "HTTP/1.1 103 Early Hints\r\n\r\n", BAD),
        case("a body longer than its length", ok("Content-Length: 2\r\n", "okevil"), GOOD),
        case("a body shorter than its length", ok("Content-Length: 4\r\n", "ok"), CUT),
        case("a body without a length", ok("", "ok"), GOOD).has("2\r\nok\r\n0\r\n\r\n"),
        case("a chunked body that ends early", ok("Transfer-Encoding: chunked\r\n", "2\r\nok\r\n"), CUT),
        case("a chunk of no size", ok("Transfer-Encoding: chunked\r\n", "2\r\nok\r\nx\r\nevil"), CUT),
        case("a chunk longer than its size", ok("Transfer-Encoding: chunked\r\n", "2\r\nokevil\r\n0\r\n\r\n"), CUT),
        case("data behind the last chunk", ok("Transfer-Encoding: chunked\r\n", "2\r\nok\r\n0\r\n\r\nevil"), GOOD),
        case("204 with a body", "HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\nevil", &[204, 200]),
        case("304 with a body", "HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\nevil", &[304, 200]),
        case("a second answer", ok("Content-Length: 2\r\n", "ok") + &ok("Content-Length: 4\r\n", "evil"), GOOD),
        case(
            "headers between neighbours",
            {
                ok(
                    "Connection: X-Mine, Set-Cookie\r\nX-Mine: evil\r\nKeep-Alive: evil\r\nProxy-Authenticate: evil\r\n\
                Upgrade: evil\r\nSet-Cookie: good=1\r\nContent-Length: 2\r\n",
                    "ok",
                )
            },
            GOOD,
        )
        .has("set-cookie: good=1\r\n"),
    ]
}

#[test]
fn every_bad_answer_becomes_what_its_row_says() {
    let worker = Worker::start();
    let (_homing, listen) = homing(worker.address);
    let mut wrong = Vec::new();
    let request = format!("GET /x HTTP/1.1\r\nHost: a\r\n\r\n{NEXT}");
    for case in cases() {
        worker.says(Answer { bytes: case.answer.into_bytes(), keeps_open: false });
        let answer = exchange(listen, request.as_bytes());
        let is_right = statuses(&answer) == case.statuses && answer.contains(case.has) && !answer.contains(case.lacks);
        if !is_right {
            wrong.push(format!("{}: {:?}: {answer:?}", case.name, statuses(&answer)));
        }
    }
    assert!(wrong.is_empty(), "{} rows:\n\n{}", wrong.len(), wrong.join("\n\n"));
}

#[test]
fn nobody_gets_what_a_worker_says_behind_anothers_answer() {
    let worker = Worker::start();
    let (_homing, listen) = homing(worker.address);
    let evil = ok("Content-Length: 4\r\n", "evil");
    for method in ["GET", "HEAD"] {
        for good in [
            ok("Content-Length: 2\r\n", "ok"),
            ok("Transfer-Encoding: chunked\r\n", "2\r\nok\r\n0\r\n\r\n"),
            "HTTP/1.1 204 No Content\r\n\r\n".to_owned(),
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n".to_owned(),
        ] {
            worker.says(Answer { bytes: format!("{good}{evil}").into_bytes(), keeps_open: true });
            let first =
                exchange(listen, format!("{method} /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").as_bytes());
            assert_eq!(statuses(&first).len(), 1, "{method} {good:?}: {first:?}");
            let other = exchange(listen, NEXT.as_bytes());
            assert!(other.ends_with("\r\n\r\nok") && !other.contains("evil"), "{method} {good:?}: {other:?}");
        }
    }
}
