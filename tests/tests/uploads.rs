//! Streamlit and Dash in a real browser: a page's session, its callbacks and the files that are uploaded to it meet in one
//! worker. Needs root, the environments of `cargo xtask setup --apps`, Chromium and ChromeDriver.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;

use homing_tests::browser::Browser;
use homing_tests::{example, round_robin};

/// Some buffers' worth, and not a round number.
const FILE_BYTES: usize = 5_000_017;
const PAGES: usize = 6;

/// A file, and what the apps say of it.
struct Upload {
    path: PathBuf,
    said: String,
    _directory: tempfile::TempDir,
}

impl Upload {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("upload.bin");
        // As little compressible as a picture.
        let mut state = 1_u64;
        let content: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .take(FILE_BYTES)
        .collect();
        std::fs::File::create(&path).and_then(|mut file| file.write_all(&content)).expect("written");
        let sum = std::process::Command::new("sha256sum").arg(&path).output().expect("coreutils are there");
        let sum = String::from_utf8_lossy(&sum.stdout).split(' ').next().expect("a sum").to_owned();
        Self { path, said: format!("bytes={FILE_BYTES} sha256={sum}"), _directory: directory }
    }
}

/// The process that a page says it talks to.
fn worker_in(text: &str) -> String {
    let rest = text.split("worker=").nth(1).expect("a page names its worker");
    rest.split(|character: char| !character.is_ascii_digit()).next().expect("a number").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamlit_page_its_clicks_and_its_upload_have_one_worker() {
    let upload = Upload::new();
    let (homing, target) = example::start("streamlit", &[]);
    let browser = Browser::start().await;
    browser.open(&format!("http://{target}/")).await;
    let worker = worker_in(&browser.says(&["worker=", "clicks=0"]).await);
    for clicks in 1..=5 {
        browser.press_button("Count").await;
        browser.says(&[&format!("worker={worker} clicks={clicks}")]).await;
    }
    browser.choose_file(&upload.path).await;
    browser.says(&[&upload.said, &format!("worker={worker} clicks=5")]).await;
    for _ in 1..PAGES {
        browser.open(&format!("http://{target}/")).await;
        browser.says(&[&format!("worker={worker} clicks=0")]).await;
    }
    browser.close().await;
    let counters = &homing.status()["counters"];
    assert_eq!(counters["http_tunnels_opened"], PAGES, "a WebSocket for each page");
    assert_eq!(counters["http_upstream_error"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dash_page_its_callbacks_and_its_upload_have_one_worker() {
    let upload = Upload::new();
    let (homing, target) = example::start("dash", &[]);
    let browser = Browser::start().await;
    browser.open(&format!("http://{target}/")).await;
    let worker = worker_in(&browser.says(&["worker=", "clicks=0"]).await);
    for clicks in 1..=20 {
        browser.press_button("Count").await;
        browser.says(&[&format!("worker={worker} clicks={clicks}")]).await;
    }
    browser.choose_file(&upload.path).await;
    browser.says(&[&format!("worker={worker} {}", upload.said)]).await;
    browser.close().await;
    let counters = &homing.status()["counters"];
    assert!(counters["http_cookie_kept"].as_u64() > Some(20), "{counters}");
    assert_eq!(counters["http_upstream_error"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_affinity_a_streamlit_page_is_with_another_worker_each_time() {
    let (homing, _) = example::start("streamlit", &[]);
    let target = round_robin::start(homing.worker_addresses(0)).await;
    let browser = Browser::start().await;
    let mut workers = BTreeSet::new();
    for _ in 0..PAGES {
        browser.open(&format!("http://{target}/")).await;
        workers.insert(worker_in(&browser.says(&["worker=", "clicks=0"]).await));
    }
    browser.close().await;
    assert!(workers.len() > 1, "a test that cannot fail proves nothing: {workers:?}");
}

/// The answer's body, on a connection of its own.
fn ask(worker: SocketAddr, method: &str, path: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(worker).expect("the worker listens");
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {worker}\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
    .expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer.split_once("\r\n\r\n").expect("a head").1.to_owned()
}

#[test]
fn without_affinity_dash_loses_its_page() {
    let (homing, _) = example::start("dash", &[]);
    let workers = homing.worker_addresses(0);
    let layout = ask(workers[0], "GET", "/_dash-layout", "");
    let page = layout.split("\"data\":\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a page's number");
    let callback = format!(
        "{{\"output\":\"counted.children\",\"outputs\":{{\"id\":\"counted\",\"property\":\"children\"}},\
         \"inputs\":[{{\"id\":\"count\",\"property\":\"n_clicks\",\"value\":1}}],\
         \"changedPropIds\":[\"count.n_clicks\"],\"state\":[{{\"id\":\"page\",\"property\":\"data\",\"value\":\"{page}\"}}]}}"
    );
    for (number, worker) in workers.into_iter().enumerate() {
        let answer = ask(worker, "POST", "/_dash-update-component", &callback);
        let wanted = if number == 0 { "clicks=1" } else { "lost:" };
        assert!(answer.contains(wanted), "a test that cannot fail proves nothing: worker {number} says {answer}");
    }
}
