//! What clients that others wrote get through homing: curl by HTTP/1.1, HTTP/2 and TLS, h2load, and loadtest by WebSocket. Needs
//! root, and the environments and tools of `cargo xtask test --apps`.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use homing_tests::certificate::Certificate;
use homing_tests::instance::{Homing, demo_app, free_address};
use homing_tests::peers;
use homing_tests::skips::skip;

const WORKERS: usize = 2;
/// Some buffers' worth, and not a round number.
const FILE_BYTES: usize = 3_000_017;

/// The app of apps/clients.py under uvicorn, kept by cookie; `more` are further lines of its `[[app]]`.
fn app(more: &str) -> (Homing, SocketAddr) {
    let listen = free_address();
    let venvs = std::env::var("HOMING_VENVS").expect("HOMING_VENVS names their folder; use cargo xtask test --apps");
    let uvicorn = Path::new(&venvs).join("shiny-python/bin/uvicorn");
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("apps");
    let homing = Homing::start(&format!(
        "[[app]]\nname = \"clients\"\nlisten = [\"{listen}\"]\naffinity = \"cookie\"\ndirectory = {directory:?}\n\
         command = [{uvicorn:?}, \"clients:app\", \"--port\", \"{{port}}\", \"--log-level\", \"warning\"]\n\
         workers = {{ min = {WORKERS}, max = {WORKERS} }}\n{more}\n"
    ));
    homing.wait_for_workers(0, WORKERS);
    (homing, listen)
}

/// curl as one user, with what it keeps.
struct Curl {
    /// Its cookies, a file to send, and the head of the last answer.
    directory: tempfile::TempDir,
    url: String,
    protocol: &'static [&'static str],
}

struct Shown {
    head: String,
    body: Vec<u8>,
}

impl Curl {
    fn new(url: String, protocol: &'static [&'static str]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let content: Vec<u8> = (0..FILE_BYTES).map(|at| (at * at / 7) as u8).collect();
        std::fs::write(directory.path().join("file"), content).expect("written");
        Self { directory, url, protocol }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, path: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--fail", "--max-time", "30", "--insecure"]).args(self.protocol);
        command.args(["--cookie", "cookies", "--cookie-jar", "cookies"]).current_dir(self.directory.path());
        command.args(arguments).arg(format!("{}{path}", self.url));
        command
    }

    fn ask(&self, path: &str, arguments: &[&str]) -> Shown {
        let output = self.command(path, &[&["--dump-header", "head"], arguments].concat()).output().expect("curl runs");
        assert!(output.status.success(), "{path} {arguments:?} by {:?}: {output:?}", self.protocol);
        let head = std::fs::read_to_string(self.file("head")).expect("its head");
        Shown { head: head.to_ascii_lowercase(), body: output.stdout }
    }
}

impl Shown {
    fn header(&self, name: &str) -> &str {
        let line = self.head.lines().rev().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.unwrap_or_else(|| panic!("no {name} in {}", self.head))
    }
}

/// The file as the app tells of it.
fn told(file: &Path) -> String {
    let sum = Command::new("sha256sum").arg(file).output().expect("coreutils are there").stdout;
    let sum = String::from_utf8_lossy(&sum).split(' ').next().expect("a sum").to_owned();
    format!("bytes={FILE_BYTES} sha256={sum}\n")
}

/// All that a user of curl may do, as one user: one process answers.
fn one_user_does_it_all(url: &str, protocol: &'static [&'static str], version: &str) {
    let curl = Curl::new(url.to_owned(), protocol);
    let first = curl.ask("/", &[]);
    assert!(first.head.starts_with(version), "{}", first.head);
    let process = first.header("x-process").to_owned();
    let told = told(&curl.file("file"));
    // With a length, and asking first whether it is wanted; without a length; as a form.
    let expecting = "Expect: 100-continue";
    let ways: [&[&str]; 3] = [
        &["--upload-file", "file", "--header", expecting],
        &["--upload-file", "-", "--header", "Transfer-Encoding: chunked"],
        &["--data-binary", "@file", "--header", "Expect:"],
    ];
    for way in ways {
        let file = std::fs::File::open(curl.file("file")).expect("it is there");
        let answer = curl.command("/upload", &[&["--dump-header", "head"], way].concat()).stdin(file).output();
        let answer = answer.expect("curl runs");
        assert!(answer.status.success(), "{way:?} by {protocol:?}: {answer:?}");
        assert_eq!(String::from_utf8_lossy(&answer.stdout), told, "{way:?} by {protocol:?}");
        let head = std::fs::read_to_string(curl.file("head")).expect("its head");
        assert!(head.contains(&format!("x-process: {process}\r\n")), "{way:?} by {protocol:?}: {head}");
    }
    let route = format!("/download/{FILE_BYTES}");
    let download = curl.ask(&route, &[]);
    assert_eq!((download.body.len(), download.header("x-process")), (FILE_BYTES, &*process));
    let head = curl.ask(&route, &["--head"]);
    assert_eq!((head.header("content-length"), head.header("x-process")), (&*FILE_BYTES.to_string(), &*process));

    // An event is seen when it is sent, not when the stream ends, which it never does.
    let mut stream = curl.command("/events", &["--no-buffer"]).stdout(Stdio::piped()).spawn().expect("curl runs");
    let mut lines = BufReader::new(stream.stdout.take().expect("stdout is piped")).lines();
    assert_eq!(lines.next().expect("a line").expect("text"), "data: first");
    stream.kill().expect("it still runs");
    stream.wait().expect("it ends");
}

/// Nothing went wrong, and nobody is left.
fn assert_settled(homing: &Homing) {
    let status = homing.wait_until("nothing is under way", |status| status["apps"][0]["connections"] == 0);
    assert_eq!(status["counters"]["http_upstream_error"], 0, "{status:#}");
    assert_eq!(status["counters"]["http_cookie_invalid"], 0, "{status:#}");
}

#[test]
fn curl_sends_and_gets_files_and_follows_events_by_http_1_and_by_http_2() {
    let (homing, listen) = app("h2c = true");
    let url = format!("http://{listen}");
    one_user_does_it_all(&url, &["--http1.1"], "http/1.1 200");
    one_user_does_it_all(&url, &["--http2-prior-knowledge"], "http/2 200");
    assert_settled(&homing);
}

#[test]
fn curl_does_the_same_by_tls() {
    let certificate = Certificate::issue();
    let (homing, listen) = app(&certificate.table());
    let url = format!("https://localhost:{}", listen.port());
    one_user_does_it_all(&url, &["--http1.1", "--ipv4"], "http/1.1 200");
    one_user_does_it_all(&url, &["--http2", "--ipv4"], "http/2 200");
    assert_settled(&homing);
}

/// Of each of the load generators.
const REQUESTS: u64 = 20_000;

#[test]
fn h2load_gets_every_answer_over_a_hundred_streams_at_once_with_and_without_tls() {
    let Some(h2load) = peers::program("h2load") else { return skip("h2load is not installed") };
    let certificate = Certificate::issue();
    let (plain, encrypted) = (free_address(), free_address());
    let apps = [("plain", plain, "h2c = true"), ("encrypted", encrypted, &certificate.table())];
    let apps = apps.map(|(name, listen, more)| demo_app(name, &[listen], "127.0.0.1", 2, more));
    let homing = Homing::start(&apps.concat().replace("affinity = \"ip\"", "affinity = \"cookie\""));
    (0..2).for_each(|app| drop(homing.wait_for_workers(app, 2)));
    for url in [format!("http://{plain}/health"), format!("https://{encrypted}/health")] {
        let count = REQUESTS.to_string();
        let output = Command::new(&h2load).args(["-n", &count, "-c", "8", "-m", "100", "-t", "1", &url]).output();
        let output = output.expect("h2load runs");
        let said = String::from_utf8_lossy(&output.stdout);
        let all = format!("{count} total, {count} started, {count} done, {count} succeeded, 0 failed, 0 errored");
        assert!(said.contains(&all) && said.contains(&format!("{count} 2xx")), "{url}: {said}");
    }
    let counters = &homing.status()["counters"];
    assert_eq!(counters["http_requests"], 2 * REQUESTS);
    assert_eq!(counters["http_h2_connections"], 16);
}

#[test]
fn loadtest_gets_every_echo_over_a_hundred_websockets() {
    let Some(loadtest) = std::env::var_os("HOMING_LOADTEST").filter(|path| Path::new(path).exists()) else {
        return skip("loadtest is not installed");
    };
    let (homing, listen) = app("");
    let mut command = Command::new(loadtest);
    command.args(["-n", &REQUESTS.to_string(), "-c", "100", "--cores", "1"]).arg(format!("ws://{listen}/echo"));
    let output = command.output().expect("loadtest runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let number = |name: &str| {
        let found = said.lines().find_map(|line| line.trim().strip_prefix(name));
        found.unwrap_or_else(|| panic!("{output:?}")).trim().parse::<u64>().expect("a number")
    };
    assert_eq!((number("Completed requests:"), number("Total errors:")), (REQUESTS, 0), "{said}");
    let status = homing.wait_until("the WebSockets are gone", |status| status["apps"][0]["connections"] == 0);
    assert_eq!(status["counters"]["http_tunnels_opened"], 100, "{status:#}");
}
