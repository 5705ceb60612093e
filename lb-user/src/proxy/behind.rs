//! Behind a proxy, as its clients see it: whom it is believed to speak for.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::Counter;
use super::testing::*;
use crate::config::{Affinity, Protect, Route, SendProxy};
use crate::routing::{AppRoute, Bindings, Door};

const TRUSTED: &[&str] = &["127.0.0.0/8", "10.0.0.0/8"];

/// One app, alone on its address.
fn door() -> Door {
    Door::new([(0, &Route::default())], false)
}

async fn behind(app: AppRoute, door: Door, trusted: &[&str]) -> World {
    let world = world(route(Affinity::Ip, vec![])).await;
    world.publish_door(door, vec![app], trusted);
    world
}

#[tokio::test]
async fn a_trusted_proxy_is_believed_and_nobody_else() {
    let workers = workers(1).await;
    let lines = "X-Forwarded-For: 6.6.6.6, 192.0.2.7\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: outer.test\r\n\
                 X-Request-Id: mine\r\nX-Forwarded-Prefix: /outer\r\n";
    let believed = behind(route(Affinity::Cookie, routes(&workers)), door(), TRUSTED).await.get(lines).await;
    for seen in [
        "x-forwarded-for: 192.0.2.7, 127.0.0.1\n",
        "x-forwarded-proto: https\n",
        "x-forwarded-host: outer.test\n",
        "x-forwarded-prefix: /outer\n",
        "x-request-id: mine\n",
        "forwarded: for=192.0.2.7;proto=https;host=\"outer.test\", for=127.0.0.1\n",
    ] {
        assert!(believed.0.contains(seen), "{seen:?} is missing in {}", believed.0);
    }
    assert!(!believed.0.contains("6.6.6.6"), "{}", believed.0);
    assert!(believed.header("set-cookie").unwrap().contains("; Secure"));

    let stranger = behind(route(Affinity::Cookie, routes(&workers)), door(), &["10.0.0.0/8"]).await.get(lines).await;
    assert!(stranger.0.contains("x-forwarded-for: 127.0.0.1\n"), "{}", stranger.0);
    for forged in ["192.0.2.7", "https", "outer", "mine"] {
        assert!(!stranger.0.contains(forged), "{forged}: {}", stranger.0);
    }
}

#[tokio::test]
async fn affinity_and_lists_are_by_the_client_that_the_proxy_names() {
    let workers = workers(1).await;
    let deny = Protect { deny: vec!["192.0.2.66/32".parse().unwrap()], ..Protect::default() };
    let app = AppRoute { protect: Some(Arc::new(deny)), ..route(Affinity::Ip, routes(&workers)) };
    let world = behind(app, door(), TRUSTED).await;
    assert_eq!(world.get("X-Forwarded-For: 192.0.2.7\r\n").await.status(), 200);
    let key = route(Affinity::Ip, vec![]).binding_key("192.0.2.7".parse().unwrap());
    assert!(world.bindings.get(&key).is_some(), "bound by its own address");
    assert!(world.bindings.get(&route(Affinity::Ip, vec![]).binding_key(world.client())).is_none());
    assert_eq!(world.get("X-Forwarded-For: 192.0.2.66\r\n").await.status(), 403);
    assert_eq!(world.count(Counter::Denied), 1);
}

#[tokio::test]
async fn the_redirect_to_an_apps_path_knows_the_outer_prefix() {
    let workers = workers(1).await;
    let at_sales = Route { path: "/sales".into(), ..Route::default() };
    let world = behind(route(Affinity::Ip, routes(&workers)), Door::new([(0, &at_sales)], true), TRUSTED).await;
    let ask = |target: &str| {
        format!("GET {target} HTTP/1.1\r\nHost: a\r\nX-Forwarded-Prefix: /outer\r\nConnection: close\r\n\r\n")
    };
    let moved = Answer(world.raw(&ask("/sales?q")).await);
    assert_eq!((moved.status(), moved.header("location")), (308, Some("/outer/sales/?q")));
    let page = world.raw(&ask("/sales/x")).await;
    assert!(page.contains("GET /x\n") && page.contains("x-forwarded-prefix: /outer/sales\n"), "{page}");
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn a_proxy_header_names_the_client_and_may_name_a_trusted_proxy_in_turn() {
    let workers = workers(1).await;
    let world = behind(route(Affinity::Ip, routes(&workers)), door().with_proxy_protocol(true), TRUSTED).await;
    let forwarded = GET.replace("Host: a\r\n", "Host: a\r\nX-Forwarded-For: 192.0.2.8\r\n");
    for (header, request, seen) in [
        ("PROXY TCP4 192.0.2.7 10.0.0.1 4660 80\r\n", GET, "x-forwarded-for: 192.0.2.7\n"),
        ("PROXY TCP4 192.0.2.7 10.0.0.1 4660 80\r\n", &forwarded, "x-forwarded-for: 192.0.2.7\n"),
        ("PROXY TCP4 10.1.1.1 10.0.0.1 4660 80\r\n", &forwarded, "x-forwarded-for: 192.0.2.8, 10.1.1.1\n"),
        ("PROXY UNKNOWN\r\n", GET, "x-forwarded-for: 127.0.0.1\n"),
    ] {
        let answer = world.raw(&format!("{header}{request}")).await;
        assert!(answer.contains(seen), "{header}: {answer}");
    }
}

#[tokio::test]
async fn without_a_proxy_header_or_without_trust_nobody_gets_in() {
    let workers = workers(1).await;
    let door = || door().with_proxy_protocol(true);
    let world = behind(route(Affinity::Ip, routes(&workers)), door(), TRUSTED).await;
    for (number, opening) in [(1, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"), (2, "PROXY TCP4 nonsense\r\n")] {
        assert_eq!(world.raw(opening).await, "");
        assert_eq!(world.count(Counter::ProxyRefused), number);
    }
    world.publish_door(door(), vec![route(Affinity::Ip, routes(&workers))], &["10.0.0.0/8"]);
    assert_eq!(world.raw(&format!("PROXY TCP4 10.9.9.9 10.0.0.1 1 2\r\n{GET}")).await, "");
    assert_eq!((world.count(Counter::ProxyRefused), world.count(Counter::Requests)), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn a_proxy_header_that_does_not_come_is_not_waited_for_long() {
    let world = behind(route(Affinity::Ip, vec![]), door().with_proxy_protocol(true), TRUSTED).await;
    let mut stream = world.connect().await;
    stream.write_all(b"PROXY TCP4 192.0.2.7").await.unwrap();
    assert_eq!(stream.read(&mut [0; 16]).await.unwrap_or(0), 0);
    assert_eq!(world.count(Counter::ProxyRefused), 1);
}

#[tokio::test]
async fn workers_are_told_whom_a_connection_is_for_and_it_is_for_nobody_else() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let worker = worker_at(0, listener.local_addr().unwrap());
    let app = AppRoute { send_proxy: Some(SendProxy::V1), ..route(Affinity::Ip, vec![worker]) };
    let world = behind(app, door(), TRUSTED).await;
    let serve = async {
        let mut lines = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (line, told) = tokio::sync::oneshot::channel();
            lines.push(told);
            tokio::spawn(async move {
                let mut head = String::new();
                let mut line = Some(line);
                while let Ok(byte) = stream.read_u8().await {
                    head.push(char::from(byte));
                    if head.ends_with("\r\n") && line.is_some() {
                        drop(line.take().unwrap().send(std::mem::take(&mut head)));
                    } else if head.ends_with("\r\n\r\n") {
                        head.clear();
                        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nworker 0\n").await.unwrap();
                    }
                }
            });
            if lines.len() == 3 {
                return futures_util::future::join_all(lines).await;
            }
        }
    };
    let ask = async {
        for (client, ready) in [("192.0.2.7", 1), ("192.0.2.8", 2), ("192.0.2.7", 2)] {
            assert_eq!(world.get(&format!("X-Forwarded-For: {client}\r\n")).await.status(), 200);
            until("its connection can be used again", || world.proxy.0.upstreams.ready() == ready).await;
        }
        // A client of its own: by its port, too.
        assert_eq!(world.get("").await.status(), 200);
    };
    let (lines, ()) = soon("three connections", async { tokio::join!(serve, ask) }).await;
    let port = world.address.port();
    let lines: Vec<String> = lines.into_iter().map(Result::unwrap).collect();
    assert_eq!(lines[0], format!("PROXY TCP4 192.0.2.7 127.0.0.1 0 {port}\r\n"));
    assert_eq!(lines[1], format!("PROXY TCP4 192.0.2.8 127.0.0.1 0 {port}\r\n"));
    assert!(
        lines[2].starts_with("PROXY TCP4 127.0.0.1 127.0.0.1 "),
        "the connection for the first was used again: {lines:?}"
    );
}
