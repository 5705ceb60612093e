//! Messages on the wire, and tunnels: what passes, what ends here, what is refused.

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;

use super::testing::*;
use super::{Counter, Shutdown};
use crate::config::Affinity;

#[tokio::test]
async fn the_worker_sees_the_request_and_the_client_the_answer_without_hop_by_hop_headers() {
    let workers = workers(1).await;
    let world = world(route(Affinity::Ip, routes(&workers))).await;
    let request = "PUT /a%20b?q=1 HTTP/1.1\r\nHost: app:8080\r\nConnection: close, X-Gone, Cookie\r\nX-Gone: 1\r\n\
                   Cookie: a=1\r\nX-Forwarded-For: 6.6.6.6\r\nTransfer-Encoding: chunked\r\n\r\n\
                   3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    let answer = world.raw(request).await;
    for seen in [
        "PUT /a%20b?q=1\n",
        "host: app:8080\n",
        "cookie: a=1\n",
        "x-forwarded-for: 127.0.0.1\n",
        "forwarded: for=127.0.0.1;proto=http;host=\"app:8080\"\n",
        "body \"abcde\"\n",
        "x-kept: 1\r\n",
    ] {
        assert!(answer.contains(seen), "{seen:?} is missing in {answer}");
    }
    for gone in ["x-gone", "6.6.6.6", "x-hop"] {
        assert!(!answer.contains(gone), "{gone:?} must not pass: {answer}");
    }
}

#[tokio::test]
async fn bad_requests_are_answered_here() {
    let workers = workers(1).await;
    let world = world(route(Affinity::Ip, routes(&workers))).await;
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X-A: 1\r\n".repeat(120));
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX-A: {}\r\n\r\n", "x".repeat(40 * 1024));
    let cases = [
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a@b/c\r\n\r\n", 400),
        ("GET http://u@b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("get / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        ("CONNECT b:443 HTTP/1.1\r\nHost: b:443\r\n\r\n", 501),
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 204),
        ("PUT / HTTP/1.1\r\nHost: a\r\nExpect: cake\r\n\r\n", 417),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\nContent-Length: 1\r\n\r\nb", 400),
        (&many, 431),
        (&long, 431),
    ];
    for (request, expected) in cases {
        let closing = request.replacen("\r\n", "\r\nConnection: close\r\n", 1);
        let request = if request.contains("Upgrade") { request } else { &closing };
        let mut stream = world.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut status = [0; 12];
        soon(request, stream.read_exact(&mut status)).await.unwrap();
        assert_eq!(status, format!("HTTP/1.1 {expected}").as_bytes(), "{request:?}");
    }
    assert_eq!(world.count(Counter::UpstreamError), 0, "the worker is blamed for nothing");
}

#[tokio::test]
async fn two_framings_are_refused_with_all_that_follows() {
    let workers = workers(1).await;
    let world = world(route(Affinity::Ip, routes(&workers))).await;
    let good = "GET /a HTTP/1.1\r\nHost: a\r\n\r\n";
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
    let answer = world.raw(&format!("{good}{head}3\r\nabc\r\n0\r\n\r\n{good}")).await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 1, "what came before is served: {answer}");
    let refusal = answer.split("HTTP/1.1 400").nth(1).unwrap_or_else(|| panic!("not refused: {answer}"));
    assert!(refusal.contains("connection: close\r\n") && !refusal.contains("HTTP/1.1"), "{refusal}");
    assert_eq!(world.count(Counter::RefusedBadRequest), 1);
}

/// Nobody but the worker knows what it is, before it has answered.
#[tokio::test]
async fn what_a_client_sends_before_the_101_is_the_workers_if_it_switches_and_else_a_request() {
    let ask = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: greet\r\n\r\n";
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let world = world(route(Affinity::Ip, vec![worker_at(0, listener.local_addr().unwrap())])).await;
    for (early, answer, then) in [
        ("x\n\nx", "101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: greet", "x\n\nx"),
        ("x\n\nx", "403 Forbidden\r\ncontent-length: 0", ""),
        ("GET /b HTTP/1.1\r\nHost: a\r\n\r\n", "403 Forbidden\r\ncontent-length: 0", "GET /b HTTP/1.1\r\n"),
    ] {
        let mut client = world.connect().await;
        client.write_all(format!("{ask}{early}").as_bytes()).await.unwrap();
        let (mut worker, _) = soon("a connection", listener.accept()).await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"\r\n\r\n") {
            seen.push(soon("the request", worker.read_u8()).await.unwrap());
        }
        worker.write_all(format!("HTTP/1.1 {answer}\r\n\r\n").as_bytes()).await.unwrap();
        if then.is_empty() {
            let mut answers = String::new();
            soon("two answers", client.read_to_string(&mut answers)).await.unwrap();
            assert!(answers.contains("403 Forbidden") && answers.contains("400 Bad Request"), "{answers}");
        } else {
            // A request for something else may have a connection of its own.
            let mut worker = if then.starts_with("GET") { listener.accept().await.unwrap().0 } else { worker };
            let mut rest = vec![0; then.len()];
            soon("what came early", worker.read_exact(&mut rest)).await.unwrap();
            assert_eq!(String::from_utf8(rest).unwrap(), then);
        }
    }
    assert_eq!(world.count(Counter::TunnelsOpened), 1);
}

#[tokio::test]
async fn an_absolute_target_wins_and_http_1_0_is_served() {
    let workers = workers(1).await;
    let world = world(route(Affinity::Ip, routes(&workers))).await;
    let answer = world.raw("GET http://b/p?q HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(answer.contains("GET /p?q\n") && answer.contains("host: b\n"), "{answer}");
    let old = world.raw("GET /p HTTP/1.0\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 200") && old.contains(&format!("host: {}\n", world.address)), "{old}");
}

#[tokio::test]
async fn an_answer_streams_as_it_is_made() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let world = world(route(Affinity::Ip, vec![worker_at(0, listener.local_addr().unwrap())])).await;
    let mut client = world.connect().await;
    client.write_all(b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let (mut worker, _) = soon("the worker's connection", listener.accept()).await.unwrap();
    worker.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n").await.unwrap();
    for n in 0..3 {
        // The next event is made only after the client has seen this one.
        worker.write_all(format!("data: {n}\n\n").as_bytes()).await.unwrap();
        let mut seen = String::new();
        while !seen.contains(&format!("data: {n}\n\n")) {
            seen.push(char::from(soon("an event", client.read_u8()).await.unwrap()));
        }
    }
    let load = world.proxy.0.route(0).unwrap().workers[0].load.clone();
    assert_eq!(load.open.count(), 1, "a streaming answer is an open request");
    drop(client);
    until("the load to be given back", || load.open.count() == 0).await;
    let mut rest = Vec::new();
    drop(soon("the worker to be told", worker.read_to_end(&mut rest)).await);
}

#[tokio::test]
async fn trailers_survive() {
    let answer =
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n1\r\na\r\n0\r\nx-sum: 7\r\n\r\n";
    let world = world(route(Affinity::Ip, vec![raw_worker(0, move |_, _| answer).await])).await;
    assert!(world.get("TE: trailers\r\n").await.0.ends_with("0\r\nx-sum: 7\r\n\r\n"));
}

#[tokio::test]
async fn a_worker_that_talks_nonsense_is_a_502() {
    for nonsense in
        ["nonsense\r\n\r\n", "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n"]
    {
        let world = world(route(Affinity::Ip, vec![raw_worker(0, move |_, _| nonsense).await])).await;
        assert_eq!(world.get("").await.status(), 502, "{nonsense}");
        assert_eq!(world.count(Counter::UpstreamError), 1);
    }
}

#[tokio::test]
async fn a_websocket_is_tunnelled_with_its_cookie_on_the_101() {
    let workers = workers(2).await;
    let world = world(route(Affinity::Cookie, routes(&workers))).await;
    let url = format!("ws://{}/websocket/", world.address);
    let (mut socket, response) = client_async(&url, world.connect().await).await.unwrap();
    assert_eq!(response.status(), 101);
    let cookie = response.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    for size in [0, 1, 125, 70_000, 1_000_000] {
        let message = Message::binary(vec![7; size]);
        socket.send(message.clone()).await.unwrap();
        assert_eq!(soon("the echo", socket.next()).await.unwrap().unwrap(), message);
    }
    assert_eq!(world.proxy.open_tunnels(), 1);
    let host = workers.iter().find(|w| w.route.load.open.count() == 1).expect("a tunnel is open load");
    assert_eq!(world.proxy.open_tunnels_at(host.route.backend), 1);
    let page = world.get(&format!("Cookie: {cookie}\r\n")).await;
    assert_eq!(page.worker(), host.route.number, "the page joins its socket");
    socket.close(None).await.unwrap();
    while soon("the close", socket.next()).await.is_some() {}
    drop(socket);
    until("the tunnel to be forgotten", || world.proxy.open_tunnels() == 0).await;
    until("the load to be given back", || host.route.load.open.count() == 0).await;
    assert_eq!((world.count(Counter::TunnelsOpened), world.count(Counter::TunnelsClosed)), (1, 1));
}

#[tokio::test]
async fn what_a_worker_says_right_after_its_101_is_not_lost() {
    let eager = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: greet\r\n\r\nhello";
    let world = world(route(Affinity::Ip, vec![raw_worker(0, move |_, _| eager).await])).await;
    let mut client = world.connect().await;
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: greet\r\n\r\n").await.unwrap();
    let mut seen = String::new();
    while !seen.ends_with("\r\n\r\nhello") {
        seen.push(char::from(soon("the greeting", client.read_u8()).await.unwrap()));
    }
    assert!(seen.contains("upgrade: greet\r\n") && seen.contains("connection: upgrade\r\n"), "{seen}");
}

#[tokio::test]
async fn a_browser_without_cookies_finds_the_worker_of_its_shiny_session() {
    let workers = workers(4).await;
    let world = world(route(Affinity::Cookie, routes(&workers))).await;
    let id = "e5c1a8f0a3b24c5d8e9f0123456789ab";
    let url = format!("ws://{}/websocket/", world.address);
    let (mut socket, _) = client_async(&url, world.connect().await).await.unwrap();
    let host = workers.iter().find(|w| w.route.load.open.count() == 1).expect("a tunnel is open load");
    // This worker echoes: so it says what Shiny would.
    socket.send(Message::text(format!("{{\"config\":{{\"sessionId\":\"{id}\"}}}}"))).await.unwrap();
    soon("the echo", socket.next()).await.unwrap().unwrap();
    let ask = async |path: &str| {
        Answer(world.raw(&format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).await)
    };
    for _ in 0..8 {
        let answer = ask(&format!("/session/{id}/download/x")).await;
        assert_eq!((answer.worker(), answer.cookie()), (host.route.number, None));
    }
    assert_eq!((world.count(Counter::SessionsLearnt), world.count(Counter::SessionKept)), (1, 8));
    ask("/session/00000000000000000000000000000000/download/x").await;
    assert_eq!(world.count(Counter::CookieNew), 2, "whose session is unknown is as anybody");
    world.publish(route(Affinity::Cookie, vec![]));
    world.publish(route(Affinity::Cookie, routes(&workers[..1])));
    let gone = ask(&format!("/session/{id}/download/x")).await;
    assert_eq!(gone.status(), 200, "its worker may be gone: then whoever is there says so");
}

#[tokio::test]
async fn a_worker_may_refuse_to_switch() {
    let refusal = "HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno";
    let world = world(route(Affinity::Ip, vec![raw_worker(0, move |_, _| refusal).await])).await;
    let error = client_async(format!("ws://{}/", world.address), world.connect().await).await.unwrap_err();
    assert!(error.to_string().contains("403"), "{error}");
    assert_eq!(world.count(Counter::TunnelsOpened), 0);
}

#[tokio::test]
async fn draining_leaves_tunnels_open_and_now_ends_them() {
    let workers = workers(1).await;
    let world = world(route(Affinity::Ip, routes(&workers))).await;
    let url = format!("ws://{}/", world.address);
    let (mut socket, _) = client_async(&url, world.connect().await).await.unwrap();
    world.shutdown.send_replace(Shutdown::Draining);
    socket.send(Message::text("still here")).await.unwrap();
    assert_eq!(soon("the echo", socket.next()).await.unwrap().unwrap(), Message::text("still here"));
    assert!(!world.served.is_finished(), "the listener waits for its tunnel");
    world.shutdown.send_replace(Shutdown::Now);
    let end = soon("the tunnel's end", socket.next()).await;
    assert!(!matches!(end, Some(Ok(_))), "{end:?}");
    soon("the listener's end", world.served).await.unwrap().unwrap();
}
