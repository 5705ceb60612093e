//! What a client of the HTTP path meets where an app bounds it: sizes, rates, times, and a queue in its order.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::Counter;
use super::testing::*;
use crate::config::{Affinity, ErrorPage, Http, Rate};
use crate::routing::{AppRoute, WorkerRoute};

/// Far longer than anything here takes; what ends by it has hung.
const LONG: Duration = Duration::from_secs(3_600);
/// Passes before anything is done about it.
const SHORT: Duration = Duration::from_millis(30);

fn bounded(http: Http, workers: Vec<WorkerRoute>) -> AppRoute {
    AppRoute { http: Arc::new(http), ..route(Affinity::Cookie, workers) }
}

async fn text(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    drop(soon("an answer", stream.read_to_string(&mut text)).await);
    text
}

/// All of an answer on a connection that is kept.
async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon("a head", stream.read_u8()).await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_whether_it_says_so_or_not() {
    let workers = workers(1).await;
    let world = world(bounded(Http { body_max: Some(10), ..Http::default() }, routes(&workers))).await;
    let post = |framing: &str, body: &str| {
        format!("POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{framing}\r\n\r\n{body}")
    };
    let chunked = |size: usize| format!("{size:x}\r\n{}\r\n0\r\n\r\n", "x".repeat(size));
    for (framing, body, status) in [
        ("Content-Length: 10", "0123456789".to_owned(), 200),
        ("Content-Length: 11", "0123456789a".to_owned(), 413),
        // Not a byte of it is waited for.
        ("Content-Length: 99999999999999999999", String::new(), 400),
        ("Content-Length: 9999999999999", String::new(), 413),
        ("Transfer-Encoding: chunked", chunked(10), 200),
        ("Transfer-Encoding: chunked", chunked(11), 413),
    ] {
        let answer = Answer(world.raw(&post(framing, &body)).await);
        assert_eq!(answer.status(), status, "{framing} {body}: {}", answer.0);
    }
    assert_eq!(world.count(Counter::RefusedTooLarge), 3);
    assert_eq!(world.count(Counter::UpstreamError), 0, "the worker is not to blame");
}

#[tokio::test]
async fn a_head_that_is_too_large_for_the_app_is_refused() {
    let workers = workers(1).await;
    let world = world(bounded(Http { head_max: Some(200), ..Http::default() }, routes(&workers))).await;
    assert_eq!(world.get(&format!("X-Long: {}\r\n", "x".repeat(100))).await.status(), 200);
    let answer = world.get(&format!("X-Long: {}\r\n", "x".repeat(200))).await;
    assert_eq!((answer.status(), world.count(Counter::RefusedTooLarge)), (431, 1));
    let answer = world.raw(&format!("GET /{} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "x".repeat(200))).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[tokio::test]
async fn a_client_that_falls_silent_in_the_midst_of_its_body_is_given_up() {
    let workers = workers(1).await;
    let world = world(bounded(Http { body: Some(SHORT), ..Http::default() }, routes(&workers))).await;
    for begun in ["Content-Length: 5\r\n\r\nab", "Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n"] {
        let mut client = world.connect().await;
        client.write_all(format!("POST / HTTP/1.1\r\nHost: a\r\n{begun}").as_bytes()).await.unwrap();
        let answer = text(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("connection: close"), "{answer}");
    }
    assert_eq!((world.count(Counter::RefusedBodySlow), world.count(Counter::UpstreamError)), (2, 0));
    until("the load to be given back", || workers[0].route.load.open.count() == 0).await;
}

#[tokio::test]
async fn a_worker_that_does_not_answer_in_time_ends_in_504() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = worker_at(0, listener.local_addr().unwrap());
    let world = world(bounded(Http { response: Some(SHORT), ..Http::default() }, vec![silent])).await;
    let answer = world.get("Accept: application/json\r\n").await;
    assert_eq!((answer.status(), answer.header("content-type")), (504, Some("application/problem+json")));
    assert!(answer.header("x-request-id").is_some(), "{}", answer.0);
    assert_eq!(world.count(Counter::UpstreamTimeout), 1);
    // What was asked for in vain is taken back.
    let (mut asked, _) = soon("the request", listener.accept()).await.unwrap();
    drop(text(&mut asked).await);
}

#[tokio::test]
async fn an_app_has_as_many_connections_as_it_may_and_says_so_to_the_next() {
    let workers = workers(1).await;
    let world = world(bounded(Http { max_connections: Some(1), ..Http::default() }, routes(&workers))).await;
    let mut first = world.connect().await;
    first.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(head(&mut first).await.starts_with("HTTP/1.1 200"));
    let second = world.get("Accept: text/html\r\n").await;
    assert_eq!(
        (second.status(), second.header("refresh"), second.header("connection")),
        (503, Some("5"), Some("close"))
    );
    drop(first);
    until("the first one's end", || world.proxy.0.connections.of(0) == 0).await;
    assert_eq!(world.get("").await.status(), 200);
}

#[tokio::test]
async fn a_client_that_asks_too_fast_is_told_when_to_come_again() {
    let workers = workers(1).await;
    let rate = Some(Rate { per_second: 1, burst: 3 });
    let world = world(bounded(Http { rate, ..Http::default() }, routes(&workers))).await;
    let mut client = world.connect().await;
    for status in [200, 200, 200, 429] {
        let close = if status == 429 { "Connection: close\r\n" } else { "" };
        client.write_all(format!("HEAD / HTTP/1.1\r\nHost: a\r\n{close}\r\n").as_bytes()).await.unwrap();
        let head = head(&mut client).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{head}");
        assert_eq!(head.contains("retry-after: 5"), status == 429, "{head}");
    }
    assert_eq!(world.count(Counter::RefusedRate), 1);
}

/// A worker with room for one, a request that takes it, and the connection to the worker.
async fn taken(http: Http) -> (World, TcpStream, TcpStream) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let worker = WorkerRoute { room: 1, ..worker_at(0, listener.local_addr().unwrap()) };
    let world = world(AppRoute { may_grow: false, ..bounded(http, vec![worker]) }).await;
    let mut inside = world.connect().await;
    inside.write_all(b"GET /inside HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let (mut at_worker, _) = soon("the request", listener.accept()).await.unwrap();
    assert!(head(&mut at_worker).await.contains("/inside"));
    (world, inside, at_worker)
}

const DONE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

#[tokio::test]
async fn who_finds_no_room_waits_for_it_and_is_served_in_order() {
    let (world, mut inside, mut at_worker) = taken(Http { full: LONG, ..Http::default() }).await;
    let mut waiting = Vec::new();
    for number in 0..5 {
        let mut client = world.connect().await;
        client.write_all(format!("GET /{number} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.unwrap();
        until("one more in the queue", || world.proxy.held(0) == number + 1).await;
        waiting.push(client);
    }
    at_worker.write_all(DONE).await.unwrap();
    assert!(head(&mut inside).await.starts_with("HTTP/1.1 200"));
    for (number, mut client) in waiting.into_iter().enumerate() {
        let asked = head(&mut at_worker).await;
        assert!(asked.starts_with(&format!("GET /{number} ")), "out of turn: {asked}");
        at_worker.write_all(DONE).await.unwrap();
        assert!(head(&mut client).await.starts_with("HTTP/1.1 200"));
    }
    assert_eq!((world.proxy.held(0), world.count(Counter::Held)), (0, 5));
}

#[tokio::test]
async fn who_gives_up_waiting_leaves_the_queue_to_those_behind() {
    let (world, mut inside, mut at_worker) = taken(Http { full: LONG, ..Http::default() }).await;
    let mut waiting = Vec::new();
    for number in 0..3 {
        let mut client = world.connect().await;
        // The first one is about to ask for more.
        let more = if number == 0 { "G" } else { "" };
        client.write_all(format!("GET /{number} HTTP/1.1\r\nHost: a\r\n\r\n{more}").as_bytes()).await.unwrap();
        until("one more in the queue", || world.proxy.held(0) == number + 1).await;
        waiting.push(client);
    }
    // It watches for all of them.
    drop(waiting.remove(0));
    until("its place to be left", || world.proxy.held(0) == 2).await;
    at_worker.write_all(DONE).await.unwrap();
    head(&mut inside).await;
    assert!(head(&mut at_worker).await.starts_with("GET /1 "));
}

#[tokio::test]
async fn who_has_all_places_of_a_full_queue_gives_one_to_another_client() {
    let (world, mut inside, mut at_worker) = taken(Http { full: LONG, queue: 2, ..Http::default() }).await;
    let mut greedy = Vec::new();
    for number in 0..2 {
        let mut client = world.connect().await;
        client.write_all(format!("GET /{number} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.unwrap();
        until("one more in the queue", || world.proxy.held(0) == number + 1).await;
        greedy.push(client);
    }
    let other = TcpSocket::new_v4().unwrap();
    other.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = other.connect(world.address).await.unwrap();
    other.write_all(b"GET /other HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(head(&mut greedy[1]).await.starts_with("HTTP/1.1 503"));
    assert_eq!((world.proxy.held(0), world.count(Counter::RefusedHeldFull)), (2, 1));
    for asked in ["GET /0 ", "GET /other "] {
        at_worker.write_all(DONE).await.unwrap();
        assert!(head(&mut at_worker).await.starts_with(asked), "{asked}");
    }
    head(&mut inside).await;
}

#[tokio::test]
async fn who_waits_too_long_for_room_and_whom_the_queue_does_not_take_are_told() {
    let (world, _inside, _at_worker) = taken(Http { full: SHORT, queue: 1, ..Http::default() }).await;
    let answer = world.get("").await;
    assert!(answer.status() == 503 && answer.0.contains("as many users as it can serve"), "{}", answer.0);
    assert_eq!(world.count(Counter::RefusedFull), 1);

    let (world, _inside, _at_worker) = taken(Http { full: LONG, queue: 1, ..Http::default() }).await;
    let mut first = world.connect().await;
    first.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    until("a full queue", || world.proxy.held(0) == 1).await;
    let answer = world.get("").await;
    assert!(answer.status() == 503 && answer.0.contains("Too many requests are waiting"), "{}", answer.0);
    assert_eq!(world.count(Counter::RefusedHeldFull), 1);

    let (world, _inside, _at_worker) = taken(Http { full: Duration::ZERO, ..Http::default() }).await;
    assert_eq!((world.get("").await.status(), world.count(Counter::Held)), (503, 0), "nobody waits");
}

#[tokio::test]
async fn an_app_refuses_in_its_own_words() {
    let page = ErrorPage::parse("<p>{{app}} is closed: {{message}} ({{request_id}})</p>").unwrap();
    let http = Http { error_page: Some(Arc::new(page)), ..Http::default() };
    let world = world(AppRoute { failed: Some("exit status 3".into()), ..bounded(http, vec![]) }).await;
    let answer = world.get("Accept: text/html\r\n").await;
    let id = answer.header("x-request-id").unwrap();
    let expected = format!("<p>sales is closed: App sales cannot be started at the moment. ({id})</p>");
    assert!(answer.0.ends_with(&expected), "{}", answer.0);
    assert!(!world.get("").await.0.contains("<p>"), "a program gets a line");
}

#[tokio::test]
async fn a_silent_websocket_is_ended_where_that_is_asked_for() {
    for (http, ends) in [
        (Http { websocket_idle: Some(SHORT), ..Http::default() }, true),
        (Http { websocket_read: Some(SHORT), ..Http::default() }, true),
        (Http::default(), false),
    ] {
        let workers = workers(1).await;
        let world = world(bounded(http, routes(&workers))).await;
        let mut client = world.connect().await;
        let open = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        client.write_all(open.as_bytes()).await.unwrap();
        assert!(head(&mut client).await.starts_with("HTTP/1.1 101"));
        if ends {
            assert_eq!(text(&mut client).await, "");
            assert_eq!(world.count(Counter::TunnelsSilent), 1);
        } else {
            until("the tunnel", || world.proxy.open_tunnels() == 1).await;
            let silence = tokio::time::timeout(SHORT * 4, client.read_u8()).await;
            assert!(silence.is_err(), "it was ended unasked");
        }
    }
}
