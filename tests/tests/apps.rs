//! Real apps and a real browser. Needs root, the environment of `cargo xtask setup --apps`, Chromium and ChromeDriver.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use homing::demo::client::Dialect;
use homing_tests::browser::Browser;
use homing_tests::instance::Homing;
use homing_tests::shiny::{self, CLIENTS, ON_PORTS, all, by_address, by_cookie, spread};
use homing_tests::{round_robin, slow};

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
async fn the_shiny_page_passes_its_sticky_test_in_a_browser_that_blocks_cookies() {
    for (homing, target) in [shiny("cookie"), shiny::start_r("cookie")] {
        let seen = Browser::without_cookies().await.sticky_page(&format!("http://{target}/")).await;
        assert_eq!((seen.ok, seen.failed), (100, 0), "{seen:?}");
        let counters = &homing.status()["counters"];
        assert_eq!(counters["http_cookie_kept"], 0, "the browser sends no cookie");
        assert_eq!(counters["http_session_kept"], 100);
    }
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

#[tokio::test(flavor = "multi_thread")]
async fn ten_tabs_that_a_new_browser_opens_at_once_all_keep_their_worker() {
    let (_homing, target) = slow::start("");
    let tabs = Browser::start().await.cold_tabs(&format!("http://{target}/"), 10).await;
    assert!(tabs.iter().all(|tab| (tab.ok, tab.failed) == (12, 0)), "{tabs:#?}");
    assert!(tabs.iter().all(|tab| tab.text == tabs[0].text), "one browser, one worker: {tabs:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_browsers_behind_one_address_that_come_at_once_are_spread_and_keep_their_worker() {
    let (homing, target) = slow::start("");
    let browsers: Vec<_> = (0..50).map(|_| tokio::spawn(visit_slow(target))).collect();
    let mut processes = Vec::new();
    for browser in browsers {
        processes.push(browser.await.expect("a browser does not panic"));
    }
    assert_spread(processes);
    assert!(homing.status()["counters"]["http_page_joined"].as_u64() > Some(0));
}

/// `served_by`: the process of each browser.
fn assert_spread(served_by: Vec<String>) {
    let mut processes = BTreeMap::<String, usize>::new();
    for process in served_by {
        *processes.entry(process).or_default() += 1;
    }
    println!("browsers per process: {processes:?}");
    assert_eq!(processes.len(), 4, "{processes:?}");
    // A party is six connections at most, so that no worker is more than one party ahead.
    assert!(processes.values().all(|users| (6..=18).contains(users)), "{processes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_profiles_of_a_real_browser_that_come_at_once_are_spread_and_keep_their_worker() {
    let (_homing, target) = slow::start("");
    let pages = Browser::start().await.strangers(&format!("http://{target}/"), 50).await;
    assert!(pages.iter().all(|page| (page.ok, page.failed) == (12, 0)), "{pages:#?}");
    assert_spread(pages.into_iter().map(|page| page.text).collect());
}

/// As all the other browsers do: the same kind, from the same address. Which process it got.
async fn visit_slow(target: SocketAddr) -> String {
    let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new())
        .build_http::<http_body_util::Empty<hyper::body::Bytes>>();
    let ask = async |path: &str, cookie: Option<&str>| {
        let request = hyper::Request::get(format!("http://{target}{path}"))
            .header("user-agent", "Mozilla/5.0 (X11; Linux x86_64) Chrome/156.0")
            .header("accept", "text/html,application/xhtml+xml")
            .header("accept-language", "en");
        let request = cookie.into_iter().fold(request, |request, cookie| request.header("cookie", cookie));
        let request = request.body(http_body_util::Empty::new()).expect("a request");
        client.request(request).await.expect("an answer")
    };
    let page = ask("/", None).await;
    let cookie = page.headers()["set-cookie"].to_str().expect("text").split(';').next().expect("a pair").to_owned();
    let body = http_body_util::BodyExt::collect(page.into_body()).await.expect("a page").to_bytes();
    let body = String::from_utf8_lossy(&body).into_owned();
    let process = body.split("process=").nth(1).and_then(|rest| rest.split('"').next()).expect("a process").to_owned();
    for _ in 0..5 {
        let answer = ask(&format!("/mine?process={process}"), Some(&cookie)).await;
        assert_eq!(answer.status(), 200, "process {process} is lost");
    }
    process
}
