//! The dashboard in a browser: what it shows, by keys alone, and that what a worker writes stays text. Needs root, Chromium and
//! ChromeDriver.

use std::net::SocketAddr;

use homing_tests::browser::Browser;
use homing_tests::instance::{Homing, demo_app, free_address, signal};

const TOKEN: &str = "0123456789abcdef-of-a-test";

/// A demo app of two workers, and one that fails with markup in its last words.
fn start(settings: &str) -> (Homing, SocketAddr) {
    let metrics = free_address();
    let apps = demo_app("demo", &[free_address()], "127.0.0.1", 2, "")
        + &format!(
            "[[app]]\nname = \"broken\"\nlisten = [\"{}\"]\n\
             command = [\"sh\", \"-c\", \"echo '<img src=x onerror=window.harmed=1><b>no such table</b>' >&2; exit 3\"]\n",
            free_address()
        );
    let mut homing = Homing::configured(&[], &format!("metrics = \"{metrics}\"\n{settings}"), &apps);
    std::fs::write(homing.dir().join("token"), TOKEN).expect("written");
    homing.start_again();
    homing.wait_for_workers(0, 2);
    homing.wait_until("given up", |status| status["apps"][1]["state"] == "failed");
    (homing, metrics)
}

#[tokio::test(flavor = "multi_thread")]
async fn it_shows_apps_workers_and_last_words_and_lives_on() {
    let (homing, metrics) = start("");
    let browser = Browser::start().await;
    browser.open(&format!("http://{metrics}/")).await;
    assert_eq!(browser.text_of("section[data-app=demo] .state").await, "ready");
    assert_eq!(browser.text_of("section[data-app=broken] .state").await, "failed");
    let words = browser.text_of("section[data-app=broken] pre").await;
    assert!(words.contains("<b>no such table</b>"), "as text: {words}");
    let harm =
        browser.run("return [window.harmed ?? 0, document.querySelectorAll('main img, main b').length]", &[]).await;
    assert_eq!(harm, serde_json::json!([0, 0]), "what a worker writes is never markup");
    assert_eq!(
        browser.run("return document.querySelectorAll('button[data-key]').length", &[]).await,
        0,
        "it only shows"
    );
    // A worker ends and comes back: seen without anybody asking.
    signal(homing.pids(0)[0], rustix::process::Signal::KILL);
    let restarts = "section[data-app=demo] tbody tr:first-child td:nth-child(6)";
    browser.wait_for_text(restarts, |text| text == "1").await;
    let foreign = browser.run(
        "return performance.getEntriesByType('resource').filter(one => !one.name.startsWith(location.origin)).length",
        &[],
    );
    assert_eq!(foreign.await, 0, "nothing is loaded from elsewhere");
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_alone_find_pause_and_walk() {
    let (_homing, metrics) = start("");
    let browser = Browser::start().await;
    browser.open(&format!("http://{metrics}/")).await;
    browser.text_of("section[data-app=demo]").await;
    browser.press("j").await;
    let focused = "return document.activeElement.dataset.app ?? document.activeElement.id";
    assert_eq!(browser.run(focused, &[]).await, "demo");
    browser.press("j").await;
    assert_eq!(browser.run(focused, &[]).await, "broken");
    browser.press("k").await;
    assert_eq!(browser.run(focused, &[]).await, "demo");
    browser.press("p").await;
    assert_eq!(browser.text_of("#pause[aria-pressed=true]").await, "Go on");
    browser.press("p").await;
    browser.press("/").await;
    assert_eq!(browser.run(focused, &[]).await, "find");
    browser.press("brok").await;
    let shown = "return [...document.querySelectorAll('section[data-app]')].map(one => one.dataset.app).join()";
    assert_eq!(browser.run(shown, &[]).await, "broken");
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_is_asked_for_and_with_it_a_worker_is_drained() {
    let (homing, metrics) = start("metrics_token_file = \"token\"\nmetrics_actions = true");
    let browser = Browser::start().await;
    browser.open(&format!("http://{metrics}/")).await;
    browser.text_of("#login:not([hidden])").await;
    browser.press("wrong-wrong-wrong-wrong\n").await;
    browser.wait_for_text("#refused", |text| text == "That is not the token.").await;
    browser.press(&format!("{TOKEN}\n")).await;
    browser.text_of("section[data-app=demo]").await;
    assert_eq!(browser.run("return location.href", &[]).await, format!("http://{metrics}/"), "the token is in no URL");
    browser.run("setTimeout(() => document.querySelector('[data-key=\"drain demo/1\"]').click())", &[]).await;
    browser.agree().await;
    homing.wait_until("it drains", |status| {
        let workers = homing_tests::instance::workers(status, 0);
        workers.iter().any(|worker| worker["id"] == "demo/1" && worker["state"] != "ready")
    });
    browser.close().await;
}
