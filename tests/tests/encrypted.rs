//! A browser by TLS and HTTP/2, its WebSockets included. Needs root, the environments of `cargo xtask setup --apps`, Chromium
//! and ChromeDriver.

use homing_tests::browser::Browser;
use homing_tests::certificate::Certificate;
use homing_tests::{example, slow};

/// Its table, and the one that follows it in the examples.
fn and_workers(certificate: &Certificate) -> String {
    format!("{}\n[app.workers]", certificate.table())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_its_requests_and_its_websocket_share_one_http_2_connection() {
    let certificate = Certificate::issue();
    let changes = [("affinity  = \"ip\"", "affinity = \"cookie\""), ("[app.workers]", &and_workers(&certificate))];
    let (homing, target) = example::start("shiny-python", &changes);
    let url = format!("https://localhost:{}/", target.port());
    let seen = Browser::credulous().await.sticky_page(&url).await;
    assert_eq!((seen.ok, seen.failed), (100, 0), "{seen:?}");
    let counters = &homing.status()["counters"];
    // A browser that takes a WebSocket to HTTP/1.1 opens a connection for it, which speaks nothing else. There is none: the
    // WebSocket came by extended CONNECT.
    assert_eq!(counters["http_h2_connections"], counters["http_connections"], "{counters:#}");
    assert_eq!(counters["http_tunnels_opened"], 1, "{counters:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamlit_page_talks_over_http_2() {
    let certificate = Certificate::issue();
    let (homing, target) = example::start("streamlit", &[("[app.workers]", &and_workers(&certificate))]);
    let browser = Browser::credulous().await;
    browser.open(&format!("https://localhost:{}/", target.port())).await;
    browser.says(&["clicks=0"]).await;
    for clicks in 1..=3 {
        browser.press_button("Count").await;
        browser.says(&[&format!("clicks={clicks}")]).await;
    }
    browser.close().await;
    let counters = &homing.status()["counters"];
    assert_eq!(counters["http_h2_connections"], counters["http_connections"], "{counters:#}");
    assert_eq!(counters["http_tunnels_opened"], 1, "{counters:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_tabs_that_a_new_browser_opens_at_once_by_tls_all_keep_their_worker() {
    let certificate = Certificate::issue();
    let (homing, target) = slow::start(&certificate.table());
    let tabs = Browser::credulous().await.cold_tabs(&format!("https://localhost:{}/", target.port()), 10).await;
    assert!(tabs.iter().all(|tab| (tab.ok, tab.failed) == (12, 0)), "{tabs:#?}");
    assert!(tabs.iter().all(|tab| tab.text == tabs[0].text), "one browser, one worker: {tabs:#?}");
    let counters = &homing.status()["counters"];
    assert_eq!(counters["http_h2_connections"], counters["http_connections"], "{counters:#}");
}
