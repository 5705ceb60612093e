//! Requests and answers that are long, late or broken off: that bytes move, and whoever waits for them is woken.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::Counter;
use super::limits::UPLOAD_STALL;
use super::testing::*;
use crate::config::Affinity;
use crate::routing::WorkerRoute;

/// More than all socket buffers on the way take.
const LONG: usize = 32 * 1024 * 1024;

/// A worker whose connections a test serves itself.
async fn listening() -> (TcpListener, WorkerRoute) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let route = worker_at(0, listener.local_addr().unwrap());
    (listener, route)
}

async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("a head"));
    }
    String::from_utf8(head).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_reaches_its_worker_while_the_client_takes_nothing_of_the_answer() {
    let (listener, worker) = listening().await;
    let world = world(route(Affinity::Ip, vec![worker])).await;
    let serve = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        head(&mut stream).await;
        let (mut reads, mut writes) = stream.into_split();
        let answering = tokio::spawn(async move {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {LONG}\r\n\r\n");
            writes.write_all(head.as_bytes()).await.unwrap();
            drop(writes.write_all(&vec![b'a'; LONG]).await);
        });
        let mut body = vec![0; LONG];
        reads.read_exact(&mut body).await.unwrap();
        assert!(!answering.is_finished(), "the answer is longer than what the way takes");
        answering.abort();
    };
    let ask = async {
        let mut client = world.connect().await;
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {LONG}\r\n\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        client.write_all(&vec![b'q'; LONG]).await.unwrap();
        client
    };
    soon("all of the body", async { tokio::join!(serve, ask) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_answers_arrive_whole_at_a_client_that_takes_its_time_and_leave_their_connection_usable() {
    let (listener, worker) = listening().await;
    let world = world(route(Affinity::Ip, vec![worker])).await;
    // One connection for all of them, or the last would wait in vain.
    let serve = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        head(&mut stream).await;
        stream.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {LONG}\r\n\r\n").as_bytes()).await.unwrap();
        stream.write_all(&vec![b'a'; LONG]).await.unwrap();
        head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
        for _ in 0..LONG / 1024 {
            stream.write_all(b"400\r\n").await.unwrap();
            stream.write_all(&[b'b'; 1024]).await.unwrap();
            stream.write_all(b"\r\n").await.unwrap();
        }
        stream.write_all(b"0\r\n\r\n").await.unwrap();
        head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    });
    for (letter, length) in [(b'a', LONG), (b'b', LONG), (b'c', 0)] {
        let mut client = world.connect().await;
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(client.read_u8().await.unwrap());
        }
        // Until whoever writes has found all buffers full once.
        tokio::task::yield_now().await;
        answer.clear();
        soon("the rest", client.read_to_end(&mut answer)).await.unwrap();
        assert_eq!(answer.iter().filter(|byte| **byte == letter).count(), length);
    }
    serve.await.unwrap();
}

/// The rest of the body belongs to no other request, and is not lost either.
#[tokio::test]
async fn a_body_that_is_longer_than_its_answer_goes_on_and_leaves_the_connection_usable() {
    let (listener, worker) = listening().await;
    let world = world(route(Affinity::Ip, vec![worker])).await;
    let mut client = world.connect().await;
    client.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").await.unwrap();
    let (mut stream, _) = soon("a connection", listener.accept()).await.unwrap();
    head(&mut stream).await;
    stream.write_all(b"HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\nok") {
        answer.push(soon("the answer", client.read_u8()).await.unwrap());
    }
    client.write_all(b"2\r\nde\r\n0\r\n\r\n").await.unwrap();
    let mut body = [0; 20];
    soon("the rest of the body", stream.read_exact(&mut body)).await.unwrap();
    assert_eq!(&body, b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
    until("the connection is idle", || world.proxy.0.upstreams.ready() == 1).await;
    let again = world.get("");
    let serve = async {
        head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    };
    assert_eq!(soon("the next answer", async { tokio::join!(again, serve) }).await.0.status(), 204);
}

/// Its connection, and what of it was in memory, stayed for as long as the client and the worker did.
#[tokio::test(start_paused = true)]
async fn an_upload_that_its_worker_has_answered_and_does_not_read_is_given_up() {
    tokio::spawn(async {
        loop {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    });
    let (listener, worker) = listening().await;
    let world = world(route(Affinity::Ip, vec![worker])).await;
    let (mut reads, mut writes) = world.connect().await.into_split();
    let upload = tokio::spawn(async move {
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {LONG}\r\n\r\n");
        writes.write_all(head.as_bytes()).await.unwrap();
        writes.write_all(&vec![b'q'; LONG]).await
    });
    let (mut stream, _) = listener.accept().await.unwrap();
    head(&mut stream).await;
    stream.write_all(b"HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
    let begun = tokio::time::Instant::now();
    let patience = UPLOAD_STALL * 3;
    assert!(tokio::time::timeout(patience, upload).await.expect("an end").unwrap().is_err(), "LONG does not fit");
    assert!(begun.elapsed() >= UPLOAD_STALL, "{:?}", begun.elapsed());
    drop(reads.read_to_end(&mut Vec::new()).await);
}

#[tokio::test]
async fn a_connection_that_its_worker_has_closed_costs_no_request_anything() {
    let (listener, closing) = listening().await;
    let world = world(route(Affinity::Ip, vec![closing])).await;
    let serve = tokio::spawn(async move {
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().await.unwrap();
            head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nworker 0\n").await.unwrap();
        }
    });
    assert_eq!(world.get("").await.status(), 200);
    until("the worker's end is seen", || world.proxy.0.upstreams.ready() == 0).await;
    // Not to be sent twice, and it is not.
    let answer = world.raw("POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(world.count(Counter::UpstreamError), 0);
    serve.await.unwrap();
}

#[tokio::test]
async fn a_client_that_goes_takes_its_request_with_it() {
    let (listener, worker) = listening().await;
    let world = world(route(Affinity::Ip, vec![worker])).await;
    for request in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nx",
        // Each hid it that the client had gone.
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n\r",
        "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\nGET / HTTP/1.1\r\n",
    ] {
        for answer in ["", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nwork"] {
            let mut client = world.connect().await;
            client.write_all(request.as_bytes()).await.unwrap();
            let (mut stream, _) = soon("a connection of its own", listener.accept()).await.unwrap();
            head(&mut stream).await;
            stream.write_all(answer.as_bytes()).await.unwrap();
            if !answer.is_empty() {
                client.read_u8().await.unwrap();
            }
            drop(client);
            let mut rest = Vec::new();
            // A reset is an end, too.
            drop(soon("the end", stream.read_to_end(&mut rest)).await);
        }
    }
}

/// Each is kept back until the one before it is answered.
#[tokio::test]
async fn requests_that_are_sent_at_once_are_answered_in_their_order() {
    let workers = workers(1).await;
    let world = world(route(Affinity::Ip, routes(&workers))).await;
    let mut all = String::new();
    for number in 0..100 {
        let body = "x".repeat(number * 50);
        match number % 3 {
            0 => all += &format!("GET /{number} HTTP/1.1\r\nHost: a\r\n\r\n"),
            1 => all += &format!("PUT /{number} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len()),
            _ => {
                let head = format!("PUT /{number} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
                all += &format!("{head}{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
            }
        }
    }
    all += "GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    for size in [all.len(), 1_000, 1] {
        let client = world.connect().await;
        let (mut reads, mut writes) = client.into_split();
        let sending = async {
            for piece in all.as_bytes().chunks(size) {
                writes.write_all(piece).await.unwrap();
            }
        };
        let mut answers = String::new();
        soon("the answers", async { tokio::join!(sending, reads.read_to_string(&mut answers)) }).await.1.unwrap();
        let asked: Vec<_> =
            answers.lines().filter(|line| line.starts_with("GET /") || line.starts_with("PUT /")).collect();
        assert_eq!(asked.len(), 101, "in pieces of {size}");
        assert!((0..100).zip(&asked).all(|(number, line)| line[5..] == number.to_string()), "{asked:?}");
    }
}
