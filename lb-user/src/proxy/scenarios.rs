//! Affinity, waiting and failing as a client of the HTTP path sees them.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

use lb_common::abi::BackendId;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::testing::*;
use super::{Counter, Shutdown};
use crate::config::{Affinity, Protect, Rate};
use crate::routing::{AppRoute, Bindings, Notice};

#[tokio::test]
async fn a_cookie_brings_its_user_back_and_is_set_once() {
    let workers = workers(4).await;
    let world = world(route(Affinity::Cookie, routes(&workers))).await;
    let first = world.get("").await;
    let cookie = first.cookie().expect("a newcomer gets a cookie");
    for _ in 0..8 {
        let again = world.get(&cookie).await;
        assert_eq!(again.worker(), first.worker());
        assert_eq!(again.cookie(), None, "nothing changed, nothing is set");
        assert!(!again.0.contains("cookie: homing"), "the worker does not see it: {}", again.0);
    }
    assert_eq!((world.count(Counter::CookieNew), world.count(Counter::CookieKept)), (1, 8));
}

#[tokio::test]
async fn a_forged_cookie_is_as_good_as_none() {
    let workers = workers(2).await;
    let world = world(route(Affinity::Cookie, routes(&workers))).await;
    let real = world.get("").await.cookie().expect("a newcomer gets a cookie");
    let mut changed = real.trim_end().to_owned();
    changed.replace_range(changed.len() - 1.., if changed.ends_with('A') { "B" } else { "A" });
    for forged in ["Cookie: homing=x", "Cookie: homing=", "Cookie: homing=\"a.b.c\"", &real[..real.len() - 6], &changed]
    {
        let answer = world.get(&format!("{forged}; theme=dark\r\n")).await;
        assert_eq!(answer.status(), 200, "{forged}");
        assert!(answer.cookie().is_some(), "{forged}");
        assert!(answer.0.contains("cookie: theme=dark"), "the app's own cookie stays: {}", answer.0);
    }
    assert_eq!((world.count(Counter::CookieInvalid), world.count(Counter::CookieNew)), (5, 6));
}

#[tokio::test]
async fn after_a_rotation_of_the_keys_a_user_stays_and_gets_the_cookie_anew_once() {
    let workers = workers(4).await;
    let world = world(route(Affinity::Cookie, routes(&workers))).await;
    let first = world.get("").await;
    let dir = keys_on_disk();
    world.proxy.0.keys.rotate(dir.path()).unwrap();
    let again = world.get(&first.cookie().unwrap()).await;
    assert_eq!(again.worker(), first.worker());
    let renewed = again.cookie().expect("the old key is about to be forgotten");
    let kept = world.get(&renewed).await;
    assert_eq!((kept.worker(), kept.cookie()), (first.worker(), None));
    assert_eq!((world.count(Counter::CookieKept), world.count(Counter::CookieInvalid)), (2, 0));
}

/// The keys of a [`world`], where they can be rotated.
fn keys_on_disk() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(super::KEY_FILE);
    std::fs::write(&file, [7; 32]).unwrap();
    std::fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    dir
}

#[tokio::test]
async fn a_cookie_whose_key_is_forgotten_or_another_homings_is_counted_and_as_good_as_none() {
    let workers = workers(4).await;
    let world = world(route(Affinity::Cookie, routes(&workers))).await;
    let old = world.get("").await.cookie().unwrap();
    let dir = keys_on_disk();
    for _ in 0..2 {
        world.proxy.0.keys.rotate(dir.path()).unwrap();
    }
    let answer = world.get(&old).await;
    assert_eq!(answer.status(), 200);
    let new = answer.cookie().expect("as to a newcomer");
    assert_eq!((world.count(Counter::CookieInvalid), world.count(Counter::CookieNew)), (1, 2));
    assert_eq!(world.get(&new).await.worker(), answer.worker());
    assert_eq!(world.count(Counter::CookieKept), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_fifty_users_without_a_cookie_spreads_evenly() {
    // Connections are accepted by the kernel and never answered, so that all fifty are open at once.
    let mut listeners = Vec::new();
    let mut workers = Vec::new();
    for number in 0..4 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        workers.push(worker_at(number, listener.local_addr().unwrap()));
        listeners.push(listener);
    }
    let loads: Vec<_> = workers.iter().map(|worker| worker.load.clone()).collect();
    let world = world(route(Affinity::Cookie, workers)).await;
    let mut users = Vec::new();
    for _ in 0..50 {
        let mut user = world.connect().await;
        user.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        users.push(user);
    }
    until("fifty places", || world.count(Counter::CookieNew) == 50).await;
    let mut assigned: Vec<_> = loads.iter().map(|load| load.assigned.load(Relaxed)).collect();
    assigned.sort_unstable();
    assert_eq!(assigned, [12, 12, 13, 13]);
    drop(users);
    until("the load to be given back", || loads.iter().all(|load| load.open.count() == 0)).await;
}

/// What browsers send for a page, all of one kind.
const PAGE: &str = "GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: Mozilla/5.0\r\nAccept: text/html\r\n\r\n";

#[tokio::test]
async fn tabs_that_a_browser_opens_at_once_get_one_worker_and_one_cookie() {
    let mut listeners = Vec::new();
    let mut workers = Vec::new();
    for number in 0..4 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        workers.push(worker_at(number, listener.local_addr().unwrap()));
        listeners.push(listener);
    }
    let loads: Vec<_> = workers.iter().map(|worker| worker.load.clone()).collect();
    let world = world(route(Affinity::Cookie, workers)).await;
    let mut tabs = Vec::new();
    for _ in 0..6 {
        let mut tab = world.connect().await;
        tab.write_all(PAGE.as_bytes()).await.unwrap();
        tabs.push(tab);
    }
    until("six places", || world.count(Counter::PageJoined) == 5).await;
    let mut open: Vec<_> = loads.iter().map(|load| load.open.count()).collect();
    open.sort_unstable();
    assert_eq!(open, [0, 0, 0, 6]);
    let mut seventh = world.connect().await;
    seventh.write_all(PAGE.as_bytes()).await.unwrap();
    until("the place of somebody else", || world.count(Counter::CookieNew) == 2).await;
}

#[tokio::test]
async fn what_a_page_needs_follows_it_without_a_cookie_and_a_script_that_is_no_browser_does_not() {
    let workers = workers(4).await;
    let world = world(route(Affinity::Cookie, routes(&workers))).await;
    let browser = "User-Agent: Mozilla/5.0\r\n";
    let page = world.get(&format!("{browser}Accept: text/html\r\n")).await;
    for _ in 0..8 {
        assert_eq!(world.get(browser).await.worker(), page.worker());
    }
    assert_eq!(world.count(Counter::PageFollowed), 8);
    let others: std::collections::BTreeSet<_> = [world.get("").await.worker(), world.get("").await.worker()].into();
    assert_eq!(others.len(), 2, "dealt out as ever");
}

#[tokio::test]
async fn users_who_come_one_by_one_are_dealt_out_like_cards() {
    let workers = workers(4).await;
    let world = world(route(Affinity::Cookie, routes(&workers))).await;
    for _ in 0..8 {
        world.get("").await;
    }
    assert!(workers.iter().all(|w| w.route.load.assigned.load(Relaxed) == 2));
}

#[tokio::test]
async fn a_user_whose_process_is_gone_gets_another_and_a_new_cookie_once() {
    let workers = workers(2).await;
    let world = world(route(Affinity::Cookie, routes(&workers))).await;
    let first = world.get("").await;
    let mut replaced = routes(&workers);
    replaced[first.worker() as usize].incarnation = 77;
    world.publish(route(Affinity::Cookie, replaced));
    let moved = world.get(&first.cookie().unwrap()).await;
    let cookie = moved.cookie().expect("a new process, a new cookie");
    assert_eq!(world.get(&cookie).await.cookie(), None);
    assert_eq!(world.count(Counter::CookieRebound), 1);
}

#[tokio::test]
async fn a_draining_worker_keeps_its_user_and_gets_no_newcomer() {
    let workers = workers(2).await;
    let world = world(route(Affinity::Cookie, routes(&workers))).await;
    let first = world.get("").await;
    let mut draining = routes(&workers);
    draining[first.worker() as usize].draining = true;
    world.publish(route(Affinity::Cookie, draining));
    assert_eq!(world.get(&first.cookie().unwrap()).await.worker(), first.worker());
    for _ in 0..4 {
        assert_ne!(world.get("").await.worker(), first.worker());
    }
}

#[tokio::test]
async fn an_address_reaches_the_worker_that_the_kernel_would_choose() {
    let workers = workers(4).await;
    let world = world(route(Affinity::Ip, routes(&workers))).await;
    let expected = route(Affinity::Ip, routes(&workers)).choose(&*world.bindings, world.client()).backend().unwrap();
    for _ in 0..4 {
        assert_eq!(BackendId::new(world.get("").await.worker(), 1), expected);
    }
    let key = route(Affinity::Ip, vec![]).binding_key(world.client());
    assert_eq!(world.bindings.get(&key).map(|b| b.backend), Some(expected), "the client is bound");
    assert_eq!(world.count(Counter::AddressRing), 4);
}

#[tokio::test]
async fn a_bound_client_stays_while_its_slot_changes_hands() {
    let workers = workers(2).await;
    let world = world(route(Affinity::Ip, routes(&workers))).await;
    let first = world.get("").await.worker();
    let mut changed = route(Affinity::Ip, routes(&workers));
    let owners: Vec<_> = changed.ring.iter().map(|slot| BackendId::new(1 - slot.current.index(), 1)).collect();
    changed.ring = lb_common::maglev::succeed(&changed.ring, &owners).into();
    world.publish(changed);
    assert_eq!(world.get("").await.worker(), first);
    assert_eq!(world.count(Counter::AddressBound), 1);
}

/// The kernel's programs find such a client bound where they bring it, and count nothing: nobody did.
#[tokio::test]
async fn a_client_that_the_http_path_moved_off_a_dead_worker_is_counted_once() {
    let workers = workers(2).await;
    let world = world(route(Affinity::Ip, routes(&workers))).await;
    let first = world.get("").await.worker();
    let others = routes(&workers).into_iter().filter(|worker| worker.backend.index() != first).collect();
    world.publish(route(Affinity::Ip, others));
    for _ in 0..3 {
        assert_ne!(world.get("").await.worker(), first);
    }
    assert_eq!((world.count(Counter::BindingNew), world.count(Counter::BindingMoved)), (1, 1));
}

const NAVIGATES: &str = "Accept: text/html,*/*;q=0.8\r\n";

#[tokio::test]
async fn the_users_of_a_promoted_address_are_told_apart_by_cookie_from_their_next_page_on() {
    let workers = workers(4).await;
    let world = world(route(Affinity::Auto, routes(&workers))).await;
    let by_address = world.get(NAVIGATES).await;
    assert_eq!(by_address.cookie(), None, "an address that is one person needs no cookie");
    let key = route(Affinity::Auto, vec![]).binding_key(world.client());
    world.bindings.promote(&key);
    let mut reached = std::collections::BTreeSet::new();
    for _ in 0..8 {
        let page = world.get(NAVIGATES).await;
        let cookie = page.cookie().expect("a page begins anew, with a cookie");
        assert_eq!(world.get(&cookie).await.worker(), page.worker());
        assert_eq!(world.get(&format!("{cookie}{NAVIGATES}")).await.worker(), page.worker(), "the next page too");
        reached.insert(page.worker());
    }
    assert_eq!(reached.len(), 4, "spread over all workers: {reached:?}");
    let part = world.get("").await;
    assert_eq!((part.worker(), part.cookie()), (by_address.worker(), None), "who was there before goes on by address");
}

#[tokio::test]
async fn a_promoted_user_whose_process_is_gone_begins_anew_and_an_unpromoted_one_goes_by_address() {
    let workers = workers(2).await;
    let world = world(route(Affinity::Auto, routes(&workers))).await;
    let key = route(Affinity::Auto, vec![]).binding_key(world.client());
    world.bindings.promote(&key);
    let cookie = world.get(NAVIGATES).await.cookie().expect("a cookie");
    let mut replaced = routes(&workers);
    replaced.iter_mut().for_each(|worker| worker.incarnation += 100);
    world.publish(route(Affinity::Auto, replaced));
    let rebound = world.get(&cookie).await;
    assert!(rebound.cookie().is_some(), "also for a part of a page: its session is gone");
    assert_eq!(world.count(Counter::CookieRebound), 1);
    world.bindings.demote(&key);
    let by_address = world.get(&rebound.cookie().expect("a cookie")).await;
    assert_eq!((by_address.status(), by_address.cookie()), (200, None));
    assert_eq!(world.count(Counter::AddressRing), 1);
}

#[tokio::test]
async fn more_connections_than_one_person_makes_promote_an_address_on_the_http_path_too() {
    let workers = workers(1).await;
    let mut auto = route(Affinity::Auto, routes(&workers));
    auto.service.promote_above = 3;
    let key = auto.binding_key([127, 0, 0, 1].into());
    let world = world(auto).await;
    let mut held = Vec::new();
    for number in 1..=4 {
        assert!(world.bindings.promotion(&key).is_none(), "{number} connections are not too many");
        held.push(world.connect().await);
        // Accepted once it is answered.
        held.last_mut().unwrap().write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        soon("an answer", held.last_mut().unwrap().readable()).await.unwrap();
    }
    assert!(world.bindings.promotion(&key).is_some());
}

#[tokio::test]
async fn without_a_kernel_path_denied_and_hasty_clients_are_turned_away_at_the_door() {
    let workers = workers(1).await;
    let protected = |protect| AppRoute { protect: Some(Arc::new(protect)), ..route(Affinity::Ip, routes(&workers)) };
    let nets = |net: &str| vec![net.parse().expect("a prefix")];
    let rate = |burst| Some(Rate { per_second: 1, burst });
    let world = world(protected(Protect { deny: nets("127.0.0.0/8"), ..Protect::default() })).await;
    assert_eq!(world.get("").await.0, "", "closed without a word");
    world.publish(protected(Protect { allow: nets("10.0.0.0/8"), ..Protect::default() }));
    assert_eq!(world.get("").await.0, "");
    assert_eq!(world.count(Counter::Denied), 2);
    let inner = Protect { allow: nets("127.0.0.1/32"), deny: nets("127.0.0.0/8"), client: rate(2), app: rate(3) };
    world.publish(protected(inner));
    assert_eq!((world.get("").await.status(), world.get("").await.status()), (200, 200), "the longest prefix decides");
    assert_eq!(world.get("").await.0, "", "the third is one too many for a client");
    assert_eq!((world.count(Counter::ClientTooFast), world.count(Counter::AppTooFast)), (1, 0));
}

#[tokio::test]
async fn a_request_is_held_until_a_worker_is_ready() {
    for affinity in [Affinity::Ip, Affinity::Cookie] {
        let workers = workers(1).await;
        let world = world(route(affinity, vec![])).await;
        let (answer, ()) = tokio::join!(world.get(""), async {
            assert_eq!(world.notice().await, Notice::Demand { app: 0 });
            assert_eq!(world.proxy.held(0), 1);
            world.publish(route(affinity, vec![]));
            assert_eq!(world.notice().await, Notice::Demand { app: 0 }, "still nobody: asked again");
            world.publish(route(affinity, routes(&workers)));
        });
        assert_eq!((answer.status(), answer.worker()), (200, 0));
        assert_eq!((world.proxy.held(0), world.count(Counter::Held)), (0, 1));
    }
}

#[tokio::test]
async fn a_hold_that_expires_ends_in_503_with_retry_after() {
    let world = world(AppRoute { hold: Duration::from_millis(5), ..route(Affinity::Cookie, vec![]) }).await;
    let answer = world.get("").await;
    assert_eq!((answer.status(), answer.header("retry-after")), (503, Some("5")));
    assert!(answer.0.contains("No worker of app sales became ready"), "{}", answer.0);
    assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
    let page = world.get("Accept: text/html,*/*\r\n").await;
    assert_eq!((page.status(), page.header("content-type")), (503, Some("text/html; charset=utf-8")));
    assert_eq!(world.count(Counter::RefusedNoWorker), 2);
}

#[tokio::test]
async fn a_failed_app_refuses_at_once_and_keeps_its_reason_to_itself() {
    let failed = AppRoute { failed: Some("exit status 3".into()), ..route(Affinity::Ip, vec![]) };
    let world = world(failed).await;
    let answer = world.get("").await;
    assert_eq!((answer.status(), world.count(Counter::RefusedFailed)), (503, 1));
    assert!(!answer.0.contains("exit status"), "{}", answer.0);
}

#[tokio::test]
async fn connections_to_a_worker_are_kept_and_load_is_given_back() {
    let workers = workers(1).await;
    let world = world(route(Affinity::Ip, routes(&workers))).await;
    for _ in 0..5 {
        world.get("").await;
    }
    assert_eq!(workers[0].connections.load(SeqCst), 1);
    let load = &workers[0].route.load;
    assert_eq!((load.open.count(), load.requests.load(Relaxed)), (0, 5));
}

#[tokio::test]
async fn draining_finishes_what_is_open_and_then_ends() {
    let workers = workers(1).await;
    let world = world(route(Affinity::Cookie, vec![])).await;
    let (answer, ()) = tokio::join!(world.raw("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), async {
        world.notice().await;
        world.shutdown.send_replace(Shutdown::Draining);
        world.publish(route(Affinity::Cookie, routes(&workers)));
    });
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer}");
    soon("the listener's end", world.served).await.unwrap().unwrap();
}
