//! Several apps on one listener, as clients see them.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Counter;
use super::testing::*;
use crate::config::{Affinity, Cookie, Host, Protect, Rate, Route};
use crate::routing::AppRoute;

fn at_host(name: &str) -> Route {
    Route { hosts: vec![Host::Exact(name.to_owned())], ..Route::default() }
}

fn at_path(path: &str) -> Route {
    Route { path: path.to_owned(), ..Route::default() }
}

/// The app with this number, over one worker of the same number.
async fn app(number: u32, affinity: Affinity) -> AppRoute {
    let worker = worker(number).await;
    AppRoute { app: number, name: format!("app{number}").into(), ..route(affinity, vec![worker.route]) }
}

fn request(host: &str, target: &str, headers: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n")
}

#[tokio::test]
async fn the_host_tells_apps_apart() {
    let apps = vec![app(0, Affinity::Ip).await, app(1, Affinity::Ip).await];
    let world = world_of(&[at_host("sales.example.org"), at_host("stock.example.org")], apps).await;
    for (host, worker) in [("sales.example.org", 0), ("STOCK.example.org.:8080", 1)] {
        assert_eq!(Answer(world.raw(&request(host, "/", "")).await).worker(), worker, "{host}");
    }
    let nobody = Answer(world.raw(&request("other.example.org", "/", "")).await);
    assert_eq!((nobody.status(), world.count(Counter::RefusedNoApp)), (404, 1));
    assert!(nobody.0.ends_with("No app is served at this address.\n"), "{}", nobody.0);
}

#[tokio::test]
async fn workers_see_what_follows_the_path_unless_they_want_all_of_it() {
    let apps = vec![app(0, Affinity::Ip).await, app(1, Affinity::Ip).await];
    let whole = Route { strip_path: false, ..at_path("/whole") };
    let world = world_of(&[at_path("/sales"), whole], apps).await;
    for (target, seen) in [
        ("/sales/", "GET /\n"),
        ("/sales/a%20b/?q=/x", "GET /a%20b/?q=/x\n"),
        ("/%73ales//x", "GET //x\n"),
        ("/whole", "GET /whole\n"),
        ("/whole/x?q", "GET /whole/x?q\n"),
    ] {
        let answer = world.raw(&request("a", target, "X-Forwarded-Prefix: /evil\r\n")).await;
        let prefix = if target.contains("whole") { "GET" } else { "x-forwarded-prefix: /sales\n" };
        assert!(answer.contains(seen) && answer.contains(prefix) && !answer.contains("evil"), "{target}: {answer}");
    }
    let redirect = Answer(world.raw(&request("a", "/sales?q=1", "")).await);
    assert_eq!((redirect.status(), redirect.header("location")), (308, Some("/sales/?q=1")));
    for bad in ["/sales/../whole/", "/sales/%2e%2e/whole"] {
        assert_eq!(Answer(world.raw(&request("a", bad, "")).await).status(), 400, "{bad}");
    }
}

#[tokio::test]
async fn each_request_of_a_connection_goes_where_it_belongs() {
    let apps = vec![app(0, Affinity::Ip).await, app(1, Affinity::Ip).await];
    let world = world_of(&[at_path("/a"), at_path("/b")], apps).await;
    let mut client = world.connect().await;
    for (target, worker) in [("/a/", 0), ("/b/", 1), ("/a/", 0)] {
        client.write_all(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.unwrap();
        let mut seen = String::new();
        while !seen.ends_with("body \"\"\n") {
            seen.push(char::from(soon("an answer", client.read_u8()).await.unwrap()));
        }
        assert!(seen.contains(&format!("worker {worker}\n")), "{seen}");
    }
    assert_eq!((world.proxy.connections(0), world.proxy.connections(1)), (1, 1), "it counts for both");
    drop(client);
    until("both to forget it", || world.proxy.connections(0) + world.proxy.connections(1) == 0).await;
}

#[tokio::test]
async fn each_app_has_its_own_cookie_at_its_own_path() {
    let mut apps = vec![app(0, Affinity::Cookie).await, app(1, Affinity::Cookie).await];
    apps[1].cookie = Arc::new(Cookie { path: "/b".into(), ..Cookie::default() });
    let world = world_of(&[Route::default(), at_path("/b")], apps).await;
    let root = Answer(world.raw(&request("a", "/", "")).await);
    let below = Answer(world.raw(&request("a", "/b/", &root.cookie().unwrap())).await);
    assert!(root.header("set-cookie").unwrap().ends_with("; Path=/"), "{}", root.0);
    assert!(below.header("set-cookie").unwrap().ends_with("; Path=/b"), "{}", below.0);
    // A browser sends both below /b, the longer path first.
    let both = format!("{}; {}", below.cookie().unwrap().trim_end(), &root.cookie().unwrap()["Cookie: ".len()..]);
    assert_eq!(Answer(world.raw(&request("a", "/b/x", &both)).await).cookie(), None);
    assert_eq!(world.count(Counter::CookieKept), 1);
}

#[tokio::test]
async fn lists_and_rates_are_kept_from_a_connections_first_request_for_the_app() {
    let closed = Protect { deny: vec!["127.0.0.0/8".parse().unwrap()], ..Protect::default() };
    let slow = Protect { client: Some(Rate { per_second: 1, burst: 1 }), ..Protect::default() };
    let mut apps = vec![app(0, Affinity::Ip).await, app(1, Affinity::Ip).await, app(2, Affinity::Ip).await];
    (apps[1].protect, apps[2].protect) = (Some(Arc::new(closed)), Some(Arc::new(slow)));
    let world = world_of(&[Route::default(), at_path("/closed"), at_path("/slow")], apps).await;
    for (target, status) in [("/", 200), ("/closed/", 403), ("/slow/", 200), ("/slow/", 429), ("/", 200)] {
        assert_eq!(Answer(world.raw(&request("a", target, "")).await).status(), status, "{target}");
    }
    assert_eq!((world.count(Counter::Denied), world.count(Counter::ClientTooFast)), (1, 1));
}

#[tokio::test]
async fn an_app_that_is_added_is_served_on_connections_that_are_open() {
    let first = app(0, Affinity::Ip).await;
    let again = AppRoute { app: 0, ..route(Affinity::Ip, first.workers.clone()) };
    let world = world(first).await;
    let mut client = world.connect().await;
    let mut ask = async |target: &str| {
        client.write_all(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.unwrap();
        let mut seen = String::new();
        while !seen.ends_with("body \"\"\n") {
            seen.push(char::from(soon("an answer", client.read_u8()).await.unwrap()));
        }
        Answer(seen).worker()
    };
    assert_eq!(ask("/b/").await, 0);
    world.publish_all(&[Route::default(), at_path("/b")], vec![again, app(1, Affinity::Ip).await]);
    assert_eq!((ask("/b/").await, ask("/").await), (1, 0));
}
