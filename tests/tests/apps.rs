//! Real apps and a real browser. Needs root, the environment of `cargo xtask setup --apps`, Chromium and ChromeDriver.

use std::net::SocketAddr;

use homing::demo::client::Dialect;
use homing_tests::browser::Browser;
use homing_tests::instance::Homing;
use homing_tests::round_robin;
use homing_tests::shiny::{self, CLIENTS, ON_PORTS, all, by_address, by_cookie, spread};

fn shiny(affinity: &str) -> (Homing, SocketAddr) {
    shiny::start(affinity, ON_PORTS)
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_addresses_keep_their_shiny_session_on_the_kernel_path() {
    let (homing, target) = shiny("ip");
    let outcomes = all(by_address(target, Dialect::Shiny)).await;
    assert_eq!(spread(&outcomes).len(), 4, "every worker has some of the clients");
    let status = homing.status();
    assert_eq!(status["kernel_path"]["active"], true);
    assert_eq!(status["counters"]["http_requests"], 0, "no request passed through homing");
    // A page, a WebSocket and 100 requests each.
    assert_eq!(status["counters"]["established"], u64::from(CLIENTS) * 102);
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_users_behind_one_address_are_spread_by_cookie_and_keep_their_shiny_session() {
    let (_homing, target) = shiny("cookie");
    let workers = spread(&all(by_cookie(target, Dialect::Shiny)).await);
    assert_eq!(workers.len(), 4);
    assert!(workers.values().all(|users| (8..=18).contains(users)), "spread over all workers: {workers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_addresses_keep_their_session_of_an_app_in_r_on_the_kernel_path() {
    let (homing, target) = shiny::start_r("ip");
    let outcomes = all(by_address(target, Dialect::Shiny)).await;
    assert_eq!(spread(&outcomes).len(), 4, "every worker has some of the clients");
    assert_eq!(homing.status()["counters"]["http_requests"], 0, "no request passed through homing");
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_users_behind_one_address_keep_their_session_of_an_app_in_r_by_cookie() {
    let (_homing, target) = shiny::start_r("cookie");
    assert_eq!(spread(&all(by_cookie(target, Dialect::Shiny)).await).len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_of_an_app_in_r_passes_its_sticky_test_in_a_browser() {
    let (_homing, target) = shiny::start_r("ip");
    let seen = Browser::start().await.sticky_page(&format!("http://{target}/")).await;
    assert_eq!((seen.ok, seen.failed), (100, 0), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_affinity_the_same_test_fails() {
    let (homing, _) = shiny("ip");
    let target = round_robin::start(homing.worker_addresses(0)).await;
    let outcomes = all(by_address(target, Dialect::Shiny)).await;
    let passed = outcomes.iter().filter(|outcome| outcome.passed()).count();
    let ok: u32 = outcomes.iter().map(|outcome| outcome.ok).sum();
    println!("round robin: {passed} of {CLIENTS} passed, {ok} requests reached their process");
    assert_eq!(passed, 0, "a test that cannot fail proves nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shiny_page_passes_its_sticky_test_in_a_browser_on_the_kernel_path() {
    let (homing, target) = shiny("ip");
    let seen = Browser::start().await.sticky_page(&format!("http://{target}/")).await;
    assert_eq!((seen.ok, seen.failed), (100, 0), "{seen:?}");
    assert_eq!(homing.status()["counters"]["http_requests"], 0, "no request passed through homing");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shiny_page_passes_its_sticky_test_in_a_browser_on_the_http_path() {
    let (_homing, target) = shiny("cookie");
    let seen = Browser::start().await.sticky_page(&format!("http://{target}/")).await;
    assert_eq!((seen.ok, seen.failed), (100, 0), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_affinity_the_shiny_page_fails_its_sticky_test_in_a_browser() {
    let (homing, _) = shiny("ip");
    let target = round_robin::start(homing.worker_addresses(0)).await;
    let seen = Browser::start().await.sticky_page(&format!("http://{target}/")).await;
    assert!(seen.failed > 0, "a test that cannot fail proves nothing: {seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_shows_that_every_client_keeps_its_worker_and_leaves_nothing_behind() {
    let homing = homing_tests::instance::binary();
    let demo = tokio::process::Command::new(homing).args(["demo", "--once", "--port", "0"]).output().await;
    let demo = demo.expect("the demo runs");
    let said = String::from_utf8_lossy(&demo.stdout);
    assert!(demo.status.success(), "{said}{}", String::from_utf8_lossy(&demo.stderr));
    assert!(said.contains("16 of 16 clients kept their worker"), "{said}");
    assert_eq!(said.matches("kernel path ").count(), 8, "{said}");
    assert_eq!(said.matches("HTTP path ").count(), 8, "{said}");
}
