//! Requests that are sent once more: which, where to, and how often at most.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;

use lb_common::abi::BackendId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::Counter;
use super::testing::*;
use crate::config::Affinity;
use crate::routing::Notice;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nworker 0\n";
const CLOSING: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 9\r\n\r\nworker 0\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi";

#[tokio::test]
async fn a_newcomer_whose_worker_refuses_is_served_by_another() {
    let workers = workers(2).await;
    let mut all = routes(&workers);
    all[0].address = nobody().await.into();
    let world = world(route(Affinity::Cookie, all)).await;
    let answer = world.get("Cookie: a=1\r\n").await;
    assert_eq!((answer.status(), answer.worker()), (200, 1));
    assert_eq!(world.notice().await, Notice::Unreachable { backend: BackendId::new(0, 1) });
    assert!(answer.0.contains("cookie: a=1\n"), "the app's cookie survives the retry: {}", answer.0);
    let cookie = answer.cookie().expect("of the worker that answered");
    assert_eq!(world.get(&cookie).await.worker(), 1);
    assert_eq!((world.count(Counter::Retried), world.count(Counter::UpstreamRefused)), (1, 1));
}

#[tokio::test]
async fn a_known_user_whose_worker_refuses_waits_for_control_to_replace_it() {
    for affinity in [Affinity::Ip, Affinity::Cookie] {
        let workers = workers(1).await;
        let world = world(route(affinity, routes(&workers))).await;
        let cookie = world.get("").await.cookie().unwrap_or_default();
        let mut moved = routes(&workers);
        moved[0].address = nobody().await.into();
        // The same process, as far as control knows, but its pooled connections are none of this one's.
        let mut gone = moved.clone();
        gone[0].incarnation = 5;
        world.publish(route(affinity, gone));
        let cookies = format!("{cookie}Cookie: a=1\r\n");
        let (answer, ()) = tokio::join!(world.get(&cookies), async {
            assert_eq!(world.notice().await, Notice::Unreachable { backend: BackendId::new(0, 1) });
            let mut restarted = routes(&workers);
            restarted[0].backend = BackendId::new(0, 2);
            world.publish(route(affinity, restarted));
        });
        assert_eq!((answer.status(), answer.worker()), (200, 0));
        // By address homing has no cookie to hide, and lost the app's own.
        assert!(answer.0.contains("cookie: a=1\n"), "the app's cookie survives the retry: {}", answer.0);
    }
}

#[tokio::test]
async fn two_refusals_are_enough() {
    let nobody = worker_at(0, nobody().await);
    let other = worker_at(1, nobody.address.clone());
    let world = world(route(Affinity::Cookie, vec![nobody, other])).await;
    let answer = world.get("").await;
    assert_eq!((answer.status(), answer.header("retry-after")), (503, Some("5")));
    assert_eq!(world.count(Counter::UpstreamRefused), 2);
}

#[tokio::test]
async fn an_idle_connection_that_the_worker_just_closed_costs_a_get_nothing() {
    // Answers once per connection and hangs up on the second request, as if its keep-alive had just run out.
    let worker = raw_worker(0, |_, request| if request == 0 { OK } else { "" }).await;
    let world = world(route(Affinity::Ip, vec![worker])).await;
    for _ in 0..3 {
        assert_eq!(world.get("").await.status(), 200);
    }
    assert_eq!((world.count(Counter::Retried), world.count(Counter::UpstreamError)), (2, 0));
}

/// It was counted twice: when the idle connection ended, and when nobody took the next one.
#[tokio::test]
async fn a_get_whose_worker_dies_and_refuses_is_counted_once() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let worker = worker_at(0, listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 4096];
        assert!(stream.read(&mut request).await.unwrap() > 0);
        stream.write_all(OK.as_bytes()).await.unwrap();
        assert!(stream.read(&mut request).await.unwrap() > 0);
    });
    let world = world(route(Affinity::Ip, vec![worker])).await;
    assert_eq!(world.get("").await.status(), 200);
    assert_eq!(world.get("").await.status(), 503);
    assert_eq!((world.count(Counter::Retried), world.count(Counter::UpstreamRefused)), (1, 2));
}

#[tokio::test]
async fn what_is_not_safe_to_repeat_is_not_repeated() {
    let worker = raw_worker(0, |_, request| if request == 0 { OK } else { "" }).await;
    let world = world(route(Affinity::Ip, vec![worker])).await;
    assert_eq!(world.get("").await.status(), 200);
    let answer = world.raw(POST).await;
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    assert_eq!((world.count(Counter::Retried), world.count(Counter::UpstreamError)), (0, 1));
    assert_eq!(world.notice().await, Notice::Unreachable { backend: BackendId::new(0, 1) });
}

/// A newcomer's was answered with 502, although another worker was there.
#[tokio::test]
async fn a_get_that_its_worker_takes_and_does_not_answer_is_served_by_another() {
    let other = worker(1).await;
    let dies = raw_worker(0, |_, _| "").await;
    let world = world(route(Affinity::Cookie, vec![dies, other.route])).await;
    let answer = world.get("Cookie: a=1\r\n").await;
    assert_eq!((answer.status(), answer.worker()), (200, 1));
    assert!(answer.0.contains("cookie: a=1\n"), "the app's cookie survives the retry: {}", answer.0);
    assert_eq!(world.get(&answer.cookie().expect("of the worker that answered")).await.worker(), 1);
    assert_eq!((world.count(Counter::Retried), world.count(Counter::UpstreamError)), (1, 1));
    let answer = world.raw(POST).await;
    assert!(answer.starts_with("HTTP/1.1 502"), "who knows what a form has done? {answer}");
    assert_eq!((world.count(Counter::Retried), world.count(Counter::UpstreamError)), (1, 2));
}

#[tokio::test]
async fn a_known_users_get_that_was_under_way_when_its_process_died_goes_to_the_next_one() {
    for affinity in [Affinity::Ip, Affinity::Cookie] {
        let next = worker(0).await;
        let dies = raw_worker(0, |connection, _| if connection == 0 { CLOSING } else { "" }).await;
        let world = world(route(affinity, vec![dies])).await;
        let cookie = world.get("").await.cookie().unwrap_or_default();
        let (answer, ()) = tokio::join!(world.get(if affinity == Affinity::Ip { "" } else { &cookie }), async {
            assert_eq!(world.notice().await, Notice::Unreachable { backend: BackendId::new(0, 1) });
            let mut restarted = next.route.clone();
            (restarted.backend, restarted.incarnation) = (BackendId::new(0, 2), 2_000);
            world.publish(route(affinity, vec![restarted]));
        });
        assert_eq!((answer.status(), answer.worker()), (200, 0), "{affinity:?}");
        assert_eq!(answer.cookie().is_some(), affinity == Affinity::Cookie, "it is a new process's");
    }
}

/// A request that kills whoever gets it must not go round.
#[tokio::test]
async fn nothing_is_sent_three_times() {
    let asked = Arc::new(AtomicUsize::new(0));
    let mut deadly = Vec::new();
    for number in 0..3 {
        let asked = Arc::clone(&asked);
        let worker = raw_worker(number, move |_, request| {
            let is_deadly = asked.fetch_add(1, SeqCst) > 0;
            if request == 0 && !is_deadly { OK } else { "" }
        });
        deadly.push(worker.await);
    }
    let world = world(route(Affinity::Cookie, deadly)).await;
    assert_eq!(world.get("").await.status(), 200);
    for sent in [3, 5] {
        assert_eq!(world.get("").await.status(), 502);
        assert_eq!(asked.load(SeqCst), sent);
    }
}
