//! A browser by TLS and HTTP/2, its WebSockets included. Needs root, the environments of `cargo xtask setup --apps`, Chromium
//! and ChromeDriver.

use homing_tests::browser::Browser;
use homing_tests::example;

/// A certificate of nobody's, in a directory that is gone with the value.
struct Certificate(tempfile::TempDir);

impl Certificate {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        std::fs::write(directory.path().join("cert.pem"), certified.cert.pem()).expect("written");
        let key = directory.path().join("key.pem");
        std::fs::write(&key, certified.signing_key.serialize_pem()).expect("written");
        std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("its mode is set");
        Self(directory)
    }

    /// Lines of an app that is shown with it.
    fn lines(&self) -> String {
        let directory = self.0.path().display();
        format!("[app.tls]\ncertificate = \"{directory}/cert.pem\"\nkey = \"{directory}/key.pem\"\n\n[app.workers]")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_its_requests_and_its_websocket_share_one_http_2_connection() {
    let certificate = Certificate::new();
    let changes = [("affinity  = \"ip\"", "affinity = \"cookie\""), ("[app.workers]", &certificate.lines())];
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
    let certificate = Certificate::new();
    let (homing, target) = example::start("streamlit", &[("[app.workers]", &certificate.lines())]);
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
