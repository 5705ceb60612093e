//! Abuses of HTTP/1.1, each with what becomes of it: `framing`, `chunks`, `heads`, `targets` and `hops` are the table; `frames` is
//! that of HTTP/2.
//! No case that nginx or HAProxy refuses is passed on, unless its row says why.

mod answers;
mod chunks;
mod frames;
mod framing;
mod heads;
mod hops;
mod row;
mod slow;
mod targets;

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;

use homing_tests::instance::{Homing, free_address};
use homing_tests::peers::{self, Peer, Speaks};
use homing_tests::raw::{Worker, connect, exchange, read_to_end, statuses, text};
use homing_tests::skips::skip;
use row::{Expected, NEXT, Row, post, was_passed_on};

fn rows() -> Vec<Row> {
    [framing::rows(), chunks::rows(), heads::rows(), targets::rows(), hops::rows()].into_iter().flatten().collect()
}

/// A homing before one worker of the test's own.
fn homing(worker: SocketAddr) -> (Homing, SocketAddr) {
    let listen = free_address();
    let app = format!(
        "[[app]]\nname = \"raw\"\nlisten = [\"{listen}\"]\naffinity = \"cookie\"\n\
         backends = [{{ address = \"{worker}\", forward = \"http\" }}]\n"
    );
    let homing = Homing::start_under(&[], "kernel_path = \"off\"", &app);
    homing.wait_for_workers(0, 1);
    (homing, listen)
}

#[test]
fn every_abuse_becomes_what_its_row_says() {
    let worker = Worker::start();
    let (_homing, listen) = homing(worker.address);
    worker.take();
    let rows = rows();
    let mut wrong = Vec::new();
    for row in &rows {
        let answer = exchange(listen, &row.wire());
        if let Err(what) = row.judge(&answer, &worker.take()) {
            wrong.push(format!("{}: {what}", row.name));
        }
    }
    assert!(rows.len() >= 60, "{} rows", rows.len());
    assert!(wrong.is_empty(), "{} of {} rows:\n\n{}", wrong.len(), rows.len(), wrong.join("\n\n"));
}

#[test]
fn a_withheld_body_is_asked_for_if_anybody_wants_it() {
    let worker = Worker::start();
    let (_homing, listen) = homing(worker.address);
    let expecting = post("Expect: 100-continue\r\nContent-Length: 3\r\n", "");
    let mut client = connect(listen);
    client.write_all(expecting.as_bytes()).expect("sent");
    let mut interim = [0; 25];
    client.read_exact(&mut interim).expect("an interim answer");
    assert_eq!(text(&interim), "HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(format!("abc{NEXT}").as_bytes()).expect("sent");
    assert_eq!(statuses(&read_to_end(&mut client)), [200, 200]);
    let refused = exchange(listen, expecting.replace("Host: a", "Host: a b").as_bytes());
    assert_eq!(statuses(&refused), [400], "without a word of the body, which does not come");
}

/// What a peer makes of a row, beside what homing does.
struct Beside {
    row: &'static str,
    /// Whether each lets it through.
    peer: bool,
    homing: bool,
    /// What the peer said.
    said: String,
    excuses: Vec<(&'static str, &'static str)>,
}

/// Shows where it differs from homing; fails where homing lets through what it refuses.
fn compare(name: &str, start: impl Fn(SocketAddr) -> Option<Peer>, ask: impl Fn(SocketAddr, &Worker) -> Vec<Beside>) {
    let worker = Worker::start();
    let Some(peer) = start(worker.address) else {
        skip(&format!("{name} is not installed"));
        return;
    };
    let mut laxer = Vec::new();
    for Beside { row, peer, homing, said, excuses } in ask(peer.address, &worker) {
        if peer == homing {
            continue;
        }
        let excuse = excuses.iter().find(|(peer, _)| *peer == name).map(|(_, why)| *why);
        let (its, ours) = if peer { ("lets it through", "refuses") } else { ("refuses", "lets it through") };
        println!("{row}: {name} {its} ({said}), homing {ours}. {}", excuse.unwrap_or_default());
        if homing && excuse.is_none() {
            laxer.push(row);
        }
    }
    assert!(laxer.is_empty(), "homing lets through what {name} refuses: {laxer:#?}");
}

fn ask(peer: SocketAddr, worker: &Worker) -> Vec<Beside> {
    let beside = |row: Row| {
        let answer = exchange(peer, &row.wire());
        Beside {
            row: row.name,
            peer: was_passed_on(&worker.take()),
            homing: matches!(row.expected, Expected::Passed { .. }),
            said: format!("{:?}", statuses(&answer)),
            excuses: row.excuses.to_vec(),
        }
    };
    rows().into_iter().map(beside).collect()
}

#[test]
fn nothing_that_nginx_refuses_is_passed_on() {
    compare("nginx", |upstream| peers::nginx(Speaks::Http1, upstream), ask);
}

#[test]
fn nothing_that_haproxy_refuses_is_passed_on() {
    compare("haproxy", |upstream| peers::haproxy(Speaks::Http1, upstream), ask);
}
