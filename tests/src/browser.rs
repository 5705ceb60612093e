//! Headless Chromium, driven through ChromeDriver.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use fantoccini::{Client, ClientBuilder, Locator};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

/// A page with 100 requests is done long before, on a busy machine too.
const DEADLINE: Duration = Duration::from_secs(60);
/// It finds a free port of IPv4 and then wants the same of IPv6, which somebody may have.
const DRIVER_TRIES: u32 = 5;
/// Between looks at a page.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// A browser of its own, with an empty profile. Ends with this value.
pub struct Browser {
    client: Client,
    driver: Child,
    profile: tempfile::TempDir,
}

impl Drop for Browser {
    fn drop(&mut self) {
        let group = self.driver.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
        if let Some(group) = group {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}

/// ChromeDriver, and the port that it found.
async fn start_driver() -> (Child, String) {
    for _ in 0..DRIVER_TRIES {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            // Chromium is in it, too, and would outlive a driver that is killed.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .expect("chromedriver is installed: cargo xtask test --apps does that");
        let mut said = BufReader::new(driver.stdout.take().expect("stdout is piped")).lines();
        while let Some(line) = said.next_line().await.expect("text") {
            if let Some((_, port)) = line.split_once("started successfully on port ") {
                let port = port.trim_end_matches('.').to_owned();
                tokio::spawn(async move { while let Ok(Some(_)) = said.next_line().await {} });
                return (driver, port);
            }
        }
    }
    panic!("chromedriver ended before it said its port, {DRIVER_TRIES} times");
}

/// Chromium's own protocol, spoken with the browser as a whole: ChromeDriver passes on what concerns its page alone.
struct DevTools {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    asked: u64,
}

impl DevTools {
    async fn connect(profile: &Path) -> Self {
        // A port and a path.
        let place =
            std::fs::read_to_string(profile.join("DevToolsActivePort")).expect("the browser says where it listens");
        let (port, path) = place.split_once('\n').expect("two lines");
        let (socket, _) = tokio_tungstenite::connect_async(format!("ws://127.0.0.1:{port}{}", path.trim_end()))
            .await
            .expect("the browser takes commands");
        Self { socket, asked: 0 }
    }

    async fn ask(&mut self, method: &str, params: serde_json::Value) -> serde_json::Value {
        self.asked += 1;
        let command = json!({ "id": self.asked, "method": method, "params": params }).to_string();
        self.socket.send(Message::text(command)).await.expect("it is taken");
        loop {
            let said = self.socket.next().await.expect("an answer").expect("an answer");
            let said: serde_json::Value = serde_json::from_str(said.to_text().expect("text")).expect("JSON");
            // Events come in between.
            if said["id"] == self.asked {
                assert!(said["error"].is_null(), "{method}: {said}");
                return said["result"].clone();
            }
        }
    }
}

/// What the page of a sticky test says at its end.
#[derive(Debug)]
pub struct Seen {
    pub ok: u32,
    pub failed: u32,
    pub text: String,
}

impl Browser {
    pub async fn start() -> Self {
        Self::with(&json!({})).await
    }

    /// One that neither keeps nor sends cookies.
    pub async fn without_cookies() -> Self {
        Self::with(&json!({ "profile.default_content_setting_values.cookies": 2 })).await
    }

    /// One that believes any certificate.
    pub async fn credulous() -> Self {
        Self::configured(&json!({}), true).await
    }

    async fn with(preferences: &serde_json::Value) -> Self {
        Self::configured(preferences, false).await
    }

    async fn configured(preferences: &serde_json::Value, is_credulous: bool) -> Self {
        let (driver, port) = start_driver().await;
        let profile = tempfile::tempdir().expect("a temporary directory");
        let options = json!({ "args": [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-dev-shm-usage", "--disable-popup-blocking", format!("--user-data-dir={}", profile.path().display()),
        ], "prefs": preferences });
        let capabilities = serde_json::Map::from_iter([
            ("goog:chromeOptions".to_owned(), options),
            ("acceptInsecureCerts".to_owned(), is_credulous.into()),
        ]);
        let client = ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new())
            .capabilities(capabilities)
            .connect(&format!("http://127.0.0.1:{port}"))
            .await
            .expect("the browser starts");
        Self { client, driver, profile }
    }

    /// Opens the page, in place of the one that is open.
    pub async fn open(&self, url: &str) {
        self.client.goto(url).await.expect("the page loads");
    }

    /// Waits until there is such an element; its text.
    pub async fn text_of(&self, css: &str) -> String {
        let found = self.client.wait().at_most(DEADLINE).for_element(Locator::Css(css)).await;
        match found {
            Ok(element) => element.text().await.expect("the page is there"),
            Err(error) => panic!("{css}: {error}; the page is: {:?}", self.client.source().await),
        }
    }

    /// Waits until that element's text is as described.
    pub async fn wait_for_text(&self, css: &str, is_so: impl Fn(&str) -> bool) -> String {
        let begun = std::time::Instant::now();
        loop {
            // It may be drawn anew between the two.
            let text = self.run("return document.querySelector(arguments[0])?.textContent ?? ''", &[json!(css)]).await;
            let text = text.as_str().unwrap_or_default().to_owned();
            if is_so(&text) {
                return text;
            }
            assert!(begun.elapsed() < DEADLINE, "{css} still says {text:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Runs the body of a function in the page.
    pub async fn run(&self, script: &str, arguments: &[serde_json::Value]) -> serde_json::Value {
        self.client.execute(script, arguments.to_vec()).await.expect("it runs")
    }

    /// Presses keys, wherever the focus is.
    pub async fn press(&self, keys: &str) {
        let focused = self.client.active_element().await.expect("something has the focus");
        focused.send_keys(keys).await.expect("it takes keys");
    }

    /// Says yes to the question that the page asks.
    pub async fn agree(&self) {
        let begun = std::time::Instant::now();
        while let Err(error) = self.client.accept_alert().await {
            assert!(begun.elapsed() < DEADLINE, "the page asks nothing: {error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the page's text has all of these; the text then.
    pub async fn says(&self, wanted: &[&str]) -> String {
        let start = Instant::now();
        loop {
            let text = self.client.execute("return document.body.innerText", Vec::new()).await.expect("a page");
            let text = text.as_str().unwrap_or_default();
            if wanted.iter().all(|wanted| text.contains(wanted)) {
                return text.to_owned();
            }
            assert!(start.elapsed() < DEADLINE, "the page never says {wanted:?}: {text:?}");
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    /// Presses the button with this text, once it is there.
    pub async fn press_button(&self, text: &str) {
        let path = format!("//button[contains(., '{text}')]");
        let button = self.client.wait().at_most(DEADLINE).for_element(Locator::XPath(&path)).await;
        button.expect("the page has the button").click().await.expect("it can be pressed");
    }

    /// Chooses a file where the page asks for one.
    pub async fn choose_file(&self, file: &Path) {
        let input = self.client.wait().at_most(DEADLINE).for_element(Locator::Css("input[type=file]")).await;
        let input = input.expect("the page asks for a file");
        input.send_keys(&file.display().to_string()).await.expect("it is taken");
    }

    pub async fn close(self) {
        self.client.clone().close().await.expect("the browser closes");
    }

    /// Opens the page and waits until its `#result` says that it is done.
    pub async fn sticky_page(self, url: &str) -> Seen {
        self.client.goto(url).await.expect("the page loads");
        let seen = self.seen().await;
        self.client.clone().close().await.expect("the browser closes");
        seen
    }

    /// Opens the page in so many tabs at once, without having been there before, and waits until all are done.
    pub async fn cold_tabs(self, url: &str, count: u32) -> Vec<Seen> {
        let open = "for (let tab = 0; tab < arguments[1]; tab++) window.open(arguments[0], '_blank')";
        self.client.execute(open, vec![json!(url), json!(count)]).await.expect("a page may open tabs");
        self.seen_by_all(count).await
    }

    /// Opens the page as so many browsers at once, each with cookies and connections of its own, and waits until all are done.
    pub async fn strangers(self, url: &str, count: u32) -> Vec<Seen> {
        let mut browser = DevTools::connect(self.profile.path()).await;
        let mut contexts = Vec::new();
        for _ in 0..count {
            let made = browser.ask("Target.createBrowserContext", json!({})).await;
            contexts.push(made["browserContextId"].clone());
        }
        for context in contexts {
            browser.ask("Target.createTarget", json!({ "url": url, "browserContextId": context })).await;
        }
        self.seen_by_all(count).await
    }

    /// Waits until so many pages beside the first one are done.
    async fn seen_by_all(self, count: u32) -> Vec<Seen> {
        let pages = self.client.windows().await.expect("the browser lists its pages");
        assert_eq!(pages.len() as u32, count + 1, "all were opened");
        let mut seen = Vec::new();
        for page in pages.into_iter().skip(1) {
            self.client.switch_to_window(page).await.expect("the page is there");
            seen.push(self.seen().await);
        }
        self.client.clone().close().await.expect("the browser closes");
        seen
    }

    async fn seen(&self) -> Seen {
        let done = Locator::Css("#result[data-done=true]");
        let result = self.client.wait().at_most(DEADLINE).for_element(done).await;
        let result = match result {
            Ok(result) => result,
            Err(error) => panic!("{error}; the page says: {:?}", self.client.source().await),
        };
        let number = async |name: &str| {
            let text = result.attr(name).await.expect("the page is there").unwrap_or_default();
            text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}"))
        };
        Seen {
            ok: number("data-ok").await,
            failed: number("data-failed").await,
            text: result.text().await.unwrap_or_default(),
        }
    }
}
