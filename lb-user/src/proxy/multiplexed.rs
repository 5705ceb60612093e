//! HTTP/2 as clients of the HTTP path see it.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{Method, Request, Response, Version};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::ext::Protocol;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::limits::CLIENT_STALL;
use super::testing::*;
use super::{Counter, Shutdown};
use crate::config::{Affinity, Route};
use crate::routing::{AppRoute, Door, WorkerRoute};

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, std::convert::Infallible>;

async fn world_h2(app: AppRoute) -> World {
    let world = world(route(Affinity::Ip, vec![])).await;
    world.publish_door(Door::new([(0, &Route::default())], true).with_h2c(true), vec![app], &[]);
    world
}

/// A client of HTTP/2 that knows beforehand.
async fn connect(world: &World) -> SendRequest<Body> {
    let io = TokioIo::new(world.connect().await);
    let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn request(method: Method, target: &str) -> http::request::Builder {
    Request::builder().method(method).uri(format!("http://a.test{target}")).version(Version::HTTP_2)
}

fn nothing() -> Body {
    Empty::new().boxed_unsync()
}

async fn get(client: &mut SendRequest<Body>, target: &str) -> Response<Incoming> {
    let request = request(Method::GET, target).body(nothing()).unwrap();
    soon("an answer", client.send_request(request)).await.unwrap()
}

async fn text(response: Response<Incoming>) -> String {
    let bytes = soon("the body", response.into_body().collect()).await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn the_worker_sees_an_ordinary_request() {
    let workers = workers(1).await;
    let world = world_h2(route(Affinity::Ip, routes(&workers))).await;
    let mut client = connect(&world).await;
    let whole =
        request(Method::PUT, "/a%20b?q=1").header("cookie", "a=1").header("cookie", "b=2").header("te", "trailers");
    let answer = client.send_request(whole.body(Full::from("hello").boxed_unsync()).unwrap()).await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.headers().contains_key("x-hop")), (200, false));
    let seen = text(answer).await;
    for line in [
        "PUT /a%20b?q=1\n",
        "host: a.test\n",
        "cookie: a=1; b=2\n",
        "x-forwarded-for: 127.0.0.1\n",
        "te: trailers\n",
        "body \"hello\"\n",
    ] {
        assert!(seen.contains(line), "{line:?} is missing in {seen}");
    }
    let head = client.send_request(request(Method::HEAD, "/").body(nothing()).unwrap()).await.unwrap();
    assert!(head.headers().contains_key("content-length") && text(head).await.is_empty());
    for (bad, status) in [
        (request(Method::GET, "/").header("host", "b.test"), 400),
        (request(Method::GET, "/").header("expect", "cake"), 417),
        (request(Method::TRACE, "/"), 405),
    ] {
        let answer = client.send_request(bad.body(nothing()).unwrap()).await.unwrap();
        assert_eq!(answer.status(), status);
    }
    assert_eq!((world.count(Counter::Http2Connections), world.count(Counter::Connections)), (1, 1));
}

#[tokio::test]
async fn http_2_without_tls_must_be_allowed() {
    let workers = workers(1).await;
    let world = world(route(Affinity::Ip, routes(&workers))).await;
    let mut client = connect(&world).await;
    assert!(soon("an end", client.send_request(request(Method::GET, "/").body(nothing()).unwrap())).await.is_err());
    let world = world_h2(route(Affinity::Ip, routes(&workers))).await;
    assert_eq!(world.get("").await.status(), 200, "HTTP/1.1 is understood all the same");
    let slow = async {
        let mut stream = world.connect().await;
        for byte in b"PUT / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" {
            stream.write_all(&[*byte]).await.unwrap();
        }
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    assert!(soon("an answer", slow).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn each_request_of_a_connection_has_an_affinity_of_its_own() {
    let workers = workers(2).await;
    let world = world_h2(route(Affinity::Cookie, routes(&workers))).await;
    let client = connect(&world).await;
    let users = (0..20).map(|_| {
        let mut client = client.clone();
        async move {
            let first = get(&mut client, "/").await;
            let cookie = first.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
            let again = request(Method::GET, "/").header("cookie", cookie).body(nothing()).unwrap();
            let again = client.send_request(again).await.unwrap();
            assert!(!again.headers().contains_key("set-cookie"));
            (Answer(text(first).await).worker(), Answer(text(again).await).worker())
        }
    });
    let seen = futures_util::future::join_all(users).await;
    assert!(seen.iter().all(|(first, again)| first == again), "{seen:?}");
    assert_eq!(seen.iter().filter(|(worker, _)| *worker == 0).count(), 10);
    assert_eq!(world.count(Counter::Connections), 1);
}

/// A WebSocket over a stream of this connection.
async fn websocket(
    client: &mut SendRequest<Body>,
) -> (WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>, Response<()>) {
    let connect = request(Method::CONNECT, "/websocket/")
        .extension(Protocol::from_static("websocket"))
        .header("sec-websocket-version", "13");
    let mut response = client.send_request(connect.body(nothing()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 200, "{response:?}");
    let upgraded = hyper::upgrade::on(&mut response).await.unwrap();
    let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await;
    (socket, response.map(drop))
}

#[tokio::test]
async fn a_websocket_is_a_stream_among_others() {
    let workers = workers(2).await;
    let world = world_h2(route(Affinity::Cookie, routes(&workers))).await;
    let mut client = connect(&world).await;
    let (mut socket, response) = websocket(&mut client).await;
    assert!(response.headers().contains_key("set-cookie"), "{response:?}");
    for gone in ["sec-websocket-accept", "upgrade", "connection"] {
        assert!(!response.headers().contains_key(gone), "{response:?}");
    }
    let (mut other, _) = websocket(&mut client).await;
    for size in [0, 1, 125, 70_000, 1_000_000] {
        let message = Message::binary(vec![7; size]);
        for socket in [&mut socket, &mut other] {
            socket.send(message.clone()).await.unwrap();
            assert_eq!(soon("the echo", socket.next()).await.unwrap().unwrap(), message);
        }
    }
    assert_eq!(get(&mut client, "/").await.status(), 200, "pages beside it");
    assert_eq!(world.proxy.open_tunnels(), 2);
    drop(other);
    until("the one that was dropped to end", || world.proxy.open_tunnels() == 1).await;
    socket.close(None).await.unwrap();
    while soon("the close", socket.next()).await.is_some_and(|message| message.is_ok()) {}
    drop(socket);
    until("the other to end", || world.proxy.open_tunnels() == 0).await;
    until("the load to be given back", || workers.iter().all(|w| w.route.load.open.count() == 0)).await;
}

#[tokio::test]
async fn a_worker_that_does_not_open_the_websocket_is_not_taken_for_one_that_does() {
    const WRONG: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                         sec-websocket-accept: x\r\n\r\n";
    for (answer, status) in [
        ("HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno", 403),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno", 502),
        (WRONG, 502),
    ] {
        let world = world_h2(route(Affinity::Ip, vec![raw_worker(0, move |_, _| answer).await])).await;
        let mut client = connect(&world).await;
        let connect = request(Method::CONNECT, "/").extension(Protocol::from_static("websocket"));
        let response = client.send_request(connect.body(nothing()).unwrap()).await.unwrap();
        assert_eq!(response.status(), status, "{answer}");
        assert_eq!(world.count(Counter::TunnelsOpened), 0);
    }
}

/// A worker whose connections the test holds itself.
async fn by_hand() -> (TcpListener, WorkerRoute) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let route = worker_at(0, listener.local_addr().unwrap());
    (listener, route)
}

#[tokio::test]
async fn bodies_stream_both_ways_and_trailers_survive() {
    let (listener, worker) = by_hand().await;
    let world = world_h2(route(Affinity::Ip, vec![worker])).await;
    let mut client = connect(&world).await;
    let (parts, receiver) = mpsc::unbounded_channel::<Bytes>();
    let frames = futures_util::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|bytes| (Ok(Frame::data(bytes)), receiver))
    });
    let upload =
        request(Method::POST, "/").header("te", "trailers").body(StreamBody::new(frames).boxed_unsync()).unwrap();
    let answer = tokio::spawn(async move { client.send_request(upload).await });
    let (mut worker, _) = soon("the worker's connection", listener.accept()).await.unwrap();
    let mut seen = String::new();
    for part in ["one", "two"] {
        parts.send(Bytes::from(part)).unwrap();
        while !seen.ends_with(&format!("\r\n{part}\r\n")) {
            seen.push(char::from(soon("a part", worker.read_u8()).await.unwrap()));
        }
    }
    // The answer begins before the upload has ended.
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n";
    worker.write_all(head.as_bytes()).await.unwrap();
    let mut body = soon("an early answer", answer).await.unwrap().unwrap().into_body();
    for part in ["three", "four"] {
        worker.write_all(format!("{:x}\r\n{part}\r\n", part.len()).as_bytes()).await.unwrap();
        let frame = soon("a part", body.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), part);
    }
    worker.write_all(b"0\r\nx-sum: 7\r\n\r\n").await.unwrap();
    let trailers = soon("the trailers", body.frame()).await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(trailers["x-sum"], "7");
}

#[tokio::test]
async fn a_request_that_is_reset_is_taken_back_from_the_worker() {
    let (listener, worker) = by_hand().await;
    let load = worker.load.clone();
    let world = world_h2(route(Affinity::Ip, vec![worker])).await;
    let mut client = connect(&world).await;
    let waiting = client.send_request(request(Method::GET, "/").body(nothing()).unwrap());
    let waiting = tokio::spawn(waiting);
    let (mut worker, _) = soon("the worker's connection", listener.accept()).await.unwrap();
    waiting.abort();
    let mut rest = Vec::new();
    drop(soon("the worker to be told", worker.read_to_end(&mut rest)).await);
    until("the load to be given back", || load.open.count() == 0).await;
}

#[tokio::test]
async fn who_opens_streams_to_reset_them_is_sent_away() {
    let (_listener, worker) = by_hand().await;
    let world = world_h2(route(Affinity::Ip, vec![worker])).await;
    let (client, connection) = h2::client::handshake(world.connect().await).await.unwrap();
    let attack = async {
        let mut client = client.ready().await?;
        loop {
            let (_, mut stream) = client.send_request(Request::get("http://a/").body(()).unwrap(), true)?;
            stream.send_reset(h2::Reason::CANCEL);
            client = client.ready().await?;
            tokio::task::yield_now().await;
        }
    };
    let attacked: Result<(), h2::Error> = soon("an end", async {
        tokio::select! { ended = attack => ended, ended = connection => ended }
    })
    .await;
    drop(attacked);
    until("it to be counted", || world.count(Counter::Http2Broken) == 1).await;
}

#[tokio::test]
async fn draining_says_goaway_and_lets_streams_end() {
    let workers = workers(1).await;
    let world = world_h2(route(Affinity::Ip, routes(&workers))).await;
    let mut client = connect(&world).await;
    let (mut socket, _) = websocket(&mut client).await;
    world.shutdown.send_replace(Shutdown::Draining);
    soon("the connection to take no more", async {
        while client.send_request(request(Method::GET, "/").body(nothing()).unwrap()).await.is_ok() {}
    })
    .await;
    socket.send(Message::text("still here")).await.unwrap();
    assert_eq!(soon("the echo", socket.next()).await.unwrap().unwrap(), Message::text("still here"));
    assert!(!world.served.is_finished(), "the listener waits for its stream");
    world.shutdown.send_replace(Shutdown::Now);
    assert!(!matches!(soon("the end", socket.next()).await, Some(Ok(_))));
    soon("the listener's end", world.served).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_asks_for_nothing_ends() {
    let world = world_h2(route(Affinity::Ip, vec![])).await;
    let mut silent = world.connect().await;
    silent.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
    let mut rest = Vec::new();
    drop(silent.read_to_end(&mut rest).await);
    let (client, connection) = h2::client::handshake(world.connect().await).await.unwrap();
    drop(connection.await);
    drop(client);
    assert_eq!(world.count(Counter::Http2Connections), 2);
}

/// Lets hours pass in steps in which what is on its way arrives.
fn tick() {
    tokio::spawn(async {
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
}

/// A client that takes so many bytes of what a stream brings, and answers all pings.
async fn shut(world: &World, window: u32) -> (h2::client::SendRequest<Bytes>, JoinHandle<Result<(), h2::Error>>) {
    let mut client = h2::client::Builder::new();
    let (client, connection) = client.initial_window_size(window).handshake(world.connect().await).await.unwrap();
    let connection = tokio::spawn(connection);
    (client.ready().await.unwrap(), connection)
}

/// Each held its worker's slot for ever.
#[tokio::test(start_paused = true)]
async fn a_stream_of_which_its_client_takes_nothing_is_ended_and_no_other() {
    tick();
    let (listener, worker) = by_hand().await;
    let load = worker.load.clone();
    let world = world_h2(route(Affinity::Ip, vec![worker])).await;
    let (mut client, _connection) = shut(&world, 0).await;
    let mut ask = async |answer: &str| {
        let (response, _) = client.send_request(Request::get("http://a/").body(()).unwrap(), true).unwrap();
        let (mut worker, _) = listener.accept().await.unwrap();
        worker.write_all(answer.as_bytes()).await.unwrap();
        (response.await.unwrap().into_body(), worker)
    };
    let long = format!("HTTP/1.1 200 OK\r\ncontent-length: 99999\r\n\r\n{}", "x".repeat(50_000));
    let whole = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwhole";
    let (mut stalled, mut its_worker) = ask(&long).await;
    let (mut last, _) = ask(whole).await;
    let (silent, other_worker) = ask("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n").await;
    let begun = tokio::time::Instant::now();
    drop(timeout(CLIENT_STALL * 2, its_worker.read_to_end(&mut Vec::new())).await.expect("the end of what stalled"));
    assert!(begun.elapsed() >= CLIENT_STALL - Duration::from_secs(1), "{:?}", begun.elapsed());
    for body in [&mut stalled, &mut last] {
        assert_eq!(body.data().await.unwrap().unwrap_err().reason(), Some(h2::Reason::CANCEL));
    }
    tokio::time::sleep(CLIENT_STALL * 2).await;
    assert_eq!((load.open.count(), world.count(Counter::Http2Stalled)), (1, 2), "a worker may be silent for hours");
    drop((silent, other_worker));
}

/// The last of it was in memory for as long as the client answered pings.
#[tokio::test(start_paused = true)]
async fn a_connection_ends_whose_client_does_not_take_the_last_of_its_answers() {
    tick();
    let worker = raw_worker(0, |_, _| "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwhole").await;
    let load = worker.load.clone();
    let world = world_h2(route(Affinity::Ip, vec![worker])).await;
    let (mut client, connection) = shut(&world, 1).await;
    let (response, _) = client.send_request(Request::get("http://a/").body(()).unwrap(), true).unwrap();
    let body = response.await.unwrap().into_body();
    assert_eq!(load.open.count(), 0, "the worker has done its part");
    drop(timeout(CLIENT_STALL * 3, connection).await.expect("an end"));
    drop((body, client));
}

/// One connection is one browser's, whatever comes on it.
#[tokio::test]
async fn ten_cold_tabs_over_one_connection_get_one_worker() {
    let workers = workers(4).await;
    let world = world_h2(route(Affinity::Cookie, routes(&workers))).await;
    let client = connect(&world).await;
    let tabs = (0..10).map(|_| {
        let mut client = client.clone();
        let page = request(Method::GET, "/").header("accept", "text/html").header("user-agent", "browser");
        let page = page.body(nothing()).unwrap();
        async move { Answer(text(client.send_request(page).await.unwrap()).await).worker() }
    });
    let got = futures_util::future::join_all(tabs).await;
    assert!(got.iter().all(|worker| *worker == got[0]), "{got:?}");
    assert_eq!((world.count(Counter::CookieNew), world.count(Counter::PageJoined)), (1, 9));
}

/// hyper took it whole, and nobody looked whether it went on.
#[tokio::test(start_paused = true)]
async fn an_answer_in_one_piece_of_which_its_client_takes_a_byte_is_ended_while_its_connection_goes_on() {
    tick();
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 2000\r\n\r\n{}", "x".repeat(2000)).leak();
    let worker = raw_worker(0, |_, _| answer).await;
    let world = world_h2(route(Affinity::Ip, vec![worker])).await;
    let (mut client, _connection) = shut(&world, 1).await;
    let mut ask = || client.send_request(Request::get("http://a/").body(()).unwrap(), true).unwrap().0;
    let mut stalled = ask().await.unwrap().into_body();
    assert_eq!(stalled.data().await.unwrap().unwrap().len(), 1);
    let mut others = Vec::new();
    for _ in 0..20 {
        tokio::time::sleep(CLIENT_STALL / 16).await;
        others.push(ask().await.unwrap());
    }
    assert_eq!(stalled.data().await.unwrap().unwrap_err().reason(), Some(h2::Reason::CANCEL));
}

/// It was waited for without end, and had its worker's slot for as long.
#[tokio::test(start_paused = true)]
async fn a_websocket_whose_client_takes_nothing_is_ended_when_its_worker_has_said_all_or_says_more() {
    for says_more in [false, true] {
        tick();
        let (listener, worker) = by_hand().await;
        let load = worker.load.clone();
        let world = world_h2(route(Affinity::Ip, vec![worker])).await;
        let (mut client, _connection) = shut(&world, 0).await;
        let connect = Request::builder().method(Method::CONNECT).uri("http://a/websocket/");
        let connect = connect.extension(h2::ext::Protocol::from_static("websocket"));
        let connect = connect.header("sec-websocket-version", "13").body(()).unwrap();
        let (response, _to_worker) = client.send_request(connect, false).unwrap();
        let (worker, _) = listener.accept().await.unwrap();
        let worker = tokio::spawn(async move {
            let mut worker = tokio_tungstenite::accept_async(worker).await.unwrap();
            worker.send(Message::text("all there is")).await.unwrap();
            while says_more && worker.send(Message::text("more")).await.is_ok() {}
        });
        let mut body = response.await.unwrap().into_body();
        assert_eq!(load.open.count(), 1);
        let end = timeout(CLIENT_STALL * 2, body.data()).await.expect("an end");
        assert_eq!(end.unwrap().unwrap_err().reason(), Some(h2::Reason::CANCEL));
        assert_eq!((load.open.count(), world.count(Counter::Http2Stalled)), (0, 1));
        worker.await.unwrap();
        // Nothing is left of it that the connection would wait for.
        world.shutdown.send_replace(Shutdown::Draining);
        timeout(CLIENT_STALL, world.served).await.expect("the listener's end").unwrap().unwrap();
    }
}
