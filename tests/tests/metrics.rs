//! Metrics of a homing that runs: they move, they cost nobody anything, and who may not see them does not. Needs root.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use homing_tests::instance::{Homing, ask, demo_app, edit, free_address, wait_for};
use homing_tests::session::Client;

const TOKEN: &str = "0123456789abcdef-of-a-test";
/// An answer that takes longer is none.
const PATIENCE: Duration = Duration::from_secs(30);

/// An answer, head and body.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

/// A whole request as it is written, and what comes until the connection ends.
fn say(target: SocketAddr, request: &str) -> Answer {
    let mut stream = TcpStream::connect(target).expect("somebody listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("an answer and its end");
    let text = String::from_utf8(bytes).expect("text");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}

fn get(target: SocketAddr, path: &str, more: &str) -> Answer {
    say(target, &format!("GET {path} HTTP/1.1\r\nHost: {target}\r\n{more}\r\n"))
}

fn scrape(target: SocketAddr) -> String {
    let answer = get(target, "/metrics", "");
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(answer.head.contains("content-type: text/plain; version=0.0.4"), "{}", answer.head);
    answer.body
}

/// A sample's value; 0 where it is not there.
fn value(text: &str, sample: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().expect("a number"))
}

fn wait_for_value(target: SocketAddr, sample: &str, is_so: impl Fn(f64) -> bool) -> String {
    wait_for(&format!("{sample} is as expected"), || Some(scrape(target)).filter(|text| is_so(value(text, sample))))
}

fn client(target: SocketAddr) -> Client<'static> {
    Client { namespace: None, from: IpAddr::V4(Ipv4Addr::LOCALHOST), target }
}

/// A homing with metrics: its own address, and theirs.
fn start(workers: u32, settings: &str, more: &str) -> (Homing, SocketAddr, SocketAddr) {
    let (listen, metrics) = (free_address(), free_address());
    let app = demo_app("demo", &[listen], "127.0.0.1", workers, more).replace("\"ip\"", "\"cookie\"");
    let homing = Homing::start_under(&[], &format!("metrics = \"{metrics}\"\n{settings}"), &app);
    homing.wait_for_workers(0, workers as usize);
    (homing, listen, metrics)
}

/// With a token, in a file beside its configuration.
fn start_with_token() -> (Homing, SocketAddr) {
    let (listen, metrics) = (free_address(), free_address());
    let app = demo_app("demo", &[listen], "127.0.0.1", 1, "");
    let settings = format!("metrics = \"{metrics}\"\nmetrics_token_file = \"token\"");
    let mut homing = Homing::configured(&[], &settings, &app);
    std::fs::write(homing.dir().join("token"), format!("{TOKEN}\n")).expect("written");
    homing.start_again();
    (homing, metrics)
}

#[test]
fn counters_and_times_move_with_requests() {
    let (_homing, listen, metrics) = start(2, "", "");
    let before = wait_for_value(metrics, "homing_app_workers{app=\"demo\",kind=\"ready\"}", |ready| ready == 2.0);
    assert!(value(&before, "homing_kernel_path_active") == 1.0);
    assert!(value(&before, "process_resident_memory_bytes") > 1e6);
    for _ in 0..5 {
        assert_eq!(client(listen).get("/health").expect("served").status, 200);
    }
    let after = wait_for_value(metrics, "homing_http_requests_total", |requests| requests >= 5.0);
    assert_eq!(value(&after, "homing_http_upstream_seconds_count{app=\"demo\"}"), 5.0);
    assert!(value(&after, "homing_http_upstream_seconds_sum{app=\"demo\"}") > 0.0);
    assert_eq!(value(&after, "homing_http_held_seconds_count{app=\"demo\"}"), 0.0, "nobody waited");
    let requests = |text: &str| {
        (0..2)
            .map(|worker| value(text, &format!("homing_worker_requests_total{{app=\"demo\",worker=\"{worker}\"}}")))
            .sum::<f64>()
    };
    assert_eq!(requests(&after), 5.0);
}

#[test]
fn a_request_that_is_held_for_a_cold_start_is_timed() {
    let (listen, metrics) = (free_address(), free_address());
    let app = demo_app("demo", &[listen], "127.0.0.1", 1, "").replace("min = 1", "min = 0");
    let _homing = Homing::start_under(&[], &format!("metrics = \"{metrics}\""), &app);
    assert_eq!(value(&scrape(metrics), "homing_http_held_seconds_count{app=\"demo\"}"), 0.0);
    let begun = Instant::now();
    assert_eq!(client(listen).get("/health").expect("held, then served").status, 200);
    let took = begun.elapsed().as_secs_f64();
    let text = wait_for_value(metrics, "homing_http_held_seconds_count{app=\"demo\"}", |count| count == 1.0);
    let held = value(&text, "homing_http_held_seconds_sum{app=\"demo\"}");
    assert!(held > 0.0 && held <= took, "{held} s of {took} s");
    assert_eq!(value(&text, "homing_http_held_seconds_bucket{app=\"demo\",le=\"+Inf\"}"), 1.0);
}

#[test]
fn the_end_of_a_worker_is_counted_and_its_failover_timed() {
    let (homing, _, metrics) = start(2, "", "");
    homing_tests::instance::signal(homing.pids(0)[0], rustix::process::Signal::KILL);
    let text = wait_for_value(metrics, "homing_app_worker_failures_total{app=\"demo\"}", |count| count == 1.0);
    assert_eq!(value(&text, "homing_worker_failover_seconds_count{app=\"demo\"}"), 1.0);
    assert!(value(&text, "homing_worker_failover_seconds_sum{app=\"demo\"}") > 0.0);
    wait_for_value(metrics, "homing_worker_restarts_total{app=\"demo\",worker=\"0\"}", |count| count == 1.0);
}

#[test]
fn a_worker_that_hangs_is_told_and_so_is_who_is_connected() {
    let (homing, listen, metrics) = start(1, "", "health = { path = \"/health\", interval = \"1s\" }");
    let hangs = "homing_worker_unresponsive{app=\"demo\",worker=\"0\"}";
    let connected = "homing_app_http_connections{app=\"demo\"}";
    let session = client(listen).open();
    let before = wait_for_value(metrics, connected, |open| open >= 1.0);
    assert_eq!(value(&before, hangs), 0.0);
    assert_eq!(value(&before, "homing_state_unsaved"), 0.0);
    let pid = homing.pids(0)[0];
    homing_tests::instance::signal(pid, rustix::process::Signal::STOP);
    wait_for_value(metrics, hangs, |hangs| hangs == 1.0);
    homing_tests::instance::signal(pid, rustix::process::Signal::CONT);
    wait_for_value(metrics, hangs, |hangs| hangs == 0.0);
    drop(session);
    wait_for_value(metrics, connected, |open| open == 0.0);
}

#[test]
fn promtool_finds_nothing_wrong() {
    let Some(promtool) = homing_tests::promtool::find() else { return };
    let (_homing, _, metrics) = start(1, "", "");
    let mut child = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool runs");
    child.stdin.take().expect("piped").write_all(scrape(metrics).as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[test]
fn what_is_asked_wrongly_is_told_in_a_sentence() {
    let (_homing, _, metrics) = start(1, "", "");
    assert_eq!(get(metrics, "/metrix", "").status, 404);
    let posted = say(metrics, &format!("POST /metrics HTTP/1.1\r\nHost: {metrics}\r\nContent-Length: 0\r\n\r\n"));
    assert_eq!(posted.status, 405);
    assert!(posted.head.contains("allow: get, head"), "{}", posted.head);
    let body = get(metrics, "/metrics", "Content-Length: 5\r\n");
    assert_eq!(body.status, 413, "{}", body.body);
    let head = say(metrics, &format!("HEAD /metrics HTTP/1.1\r\nHost: {metrics}\r\n\r\n"));
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    // As a page of another site would ask whose name leads here.
    let rebound = say(metrics, "GET /metrics HTTP/1.1\r\nHost: evil.example:9180\r\n\r\n");
    assert_eq!(rebound.status, 421, "{}", rebound.body);
    assert!(rebound.body.contains("localhost"), "{}", rebound.body);
    assert_eq!(say(metrics, "nonsense\r\n\r\n").status, 400);
}

#[test]
fn a_token_is_asked_for_where_there_is_one() {
    let (_homing, metrics) = start_with_token();
    let without = get(metrics, "/metrics", "");
    assert_eq!(without.status, 401);
    assert!(without.head.contains("www-authenticate: bearer"), "{}", without.head);
    assert_eq!(get(metrics, "/metrics", "Authorization: Bearer wrong-wrong-wrong\r\n").status, 401);
    assert_eq!(get(metrics, "/metrics", &format!("Authorization: Bearer {TOKEN}\r\n")).status, 200);
}

#[test]
fn scrapers_that_hang_block_neither_control_nor_for_long_each_other() {
    let (homing, listen, metrics) = start(1, "", "");
    // More than are answered at once: some say nothing, some half a head.
    let hanging: Vec<TcpStream> = (0..40)
        .map(|number| {
            let mut stream = TcpStream::connect(metrics).expect("taken, or waiting to be");
            if number % 2 == 0 {
                stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: 127").expect("sent");
            }
            stream
        })
        .collect();
    assert_eq!(client(listen).get("/health").expect("served").status, 200);
    assert_eq!(homing.status()["apps"][0]["state"], "ready");
    assert!(!scrape(metrics).is_empty(), "in its turn");
    drop(hanging);
}

#[test]
fn reload_moves_opens_and_closes_the_listener_or_leaves_it() {
    let (homing, _, metrics) = start(1, "", "");
    let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = holder.local_addr().expect("bound");
    edit(&homing, &metrics.to_string(), &taken.to_string());
    let refused = homing.ask(&["reload"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains(&format!("homing.metrics: cannot listen on {taken}")), "{said}");
    assert!(!scrape(metrics).is_empty(), "it goes on as it was");
    let next = free_address();
    edit(&homing, &taken.to_string(), &next.to_string());
    ask(&homing, &["reload"]);
    assert!(!scrape(next).is_empty());
    wait_for("the former listener is closed", || TcpStream::connect(metrics).is_err().then_some(()));
    std::fs::write(homing.dir().join("token"), TOKEN).expect("written");
    let line = format!("metrics = \"{next}\"");
    edit(&homing, &line, &format!("{line}\nmetrics_token_file = \"token\""));
    ask(&homing, &["reload"]);
    assert_eq!(get(next, "/metrics", "").status, 401, "the token holds at once");
    edit(&homing, &format!("{line}\nmetrics_token_file = \"token\""), "");
    ask(&homing, &["reload"]);
    wait_for("nobody listens", || TcpStream::connect(next).is_err().then_some(()));
}

#[test]
fn a_successor_takes_the_listener_over_and_every_scraper_is_answered() {
    let (mut homing, _, metrics) = start(1, "", "");
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_over = std::sync::Arc::clone(&stop);
    let scraper = std::thread::spawn(move || {
        let mut statuses = Vec::new();
        while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
            statuses.push(get(metrics, "/metrics", "").status);
        }
        statuses
    });
    let successor = homing.replace();
    homing.succeeded_by(successor);
    wait_for_value(metrics, "homing_app_workers{app=\"demo\",kind=\"ready\"}", |ready| ready == 1.0);
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let statuses = scraper.join().expect("every connection was taken and answered");
    // The moment of the handover itself may be told as such.
    assert!(statuses.iter().all(|status| [200, 503].contains(status)), "{statuses:?}");
    assert!(statuses.iter().filter(|status| **status == 503).count() <= 1, "{statuses:?}");
}

#[test]
fn a_port_in_use_and_an_open_address_are_refused_in_words() {
    let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = holder.local_addr().expect("bound");
    let app = demo_app("demo", &[free_address()], "127.0.0.1", 1, "");
    let output = Homing::configured(&[], &format!("metrics = \"{taken}\""), &app).run_to_its_end();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains(&format!("homing.metrics: cannot listen on {taken}: Address already in use")), "{said}");
    let output = Homing::configured(&[], "metrics = \"0.0.0.0:9180\"", &app).check();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("add metrics_token_file, or listen on 127.0.0.1"), "{said}");
}

#[test]
fn the_alert_rules_fire_when_they_should_and_not_before() {
    let Some(promtool) = homing_tests::promtool::find() else { return };
    let tests = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = tempfile::tempdir().expect("a temporary directory");
    for (from, name) in
        [("../config/prometheus/alerts.yaml", "alerts.yaml"), ("apps/alerts.test.yaml", "alerts.test.yaml")]
    {
        std::fs::copy(tests.join(from), dir.path().join(name)).expect("copied");
    }
    for arguments in [["check", "rules", "alerts.yaml"], ["test", "rules", "alerts.test.yaml"]] {
        let output = Command::new(&promtool).args(arguments).current_dir(dir.path()).output().expect("promtool runs");
        assert!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// With actions allowed: its own address, and that of metrics.
fn start_with_actions() -> (Homing, SocketAddr) {
    let (listen, metrics) = (free_address(), free_address());
    let app = demo_app("demo", &[listen], "127.0.0.1", 2, "");
    let settings = format!("metrics = \"{metrics}\"\nmetrics_token_file = \"token\"\nmetrics_actions = true");
    let mut homing = Homing::configured(&[], &settings, &app);
    std::fs::write(homing.dir().join("token"), TOKEN).expect("written");
    homing.start_again();
    homing.wait_for_workers(0, 2);
    (homing, metrics)
}

fn post(target: SocketAddr, path: &str, more: &str) -> Answer {
    let head = format!("POST {path} HTTP/1.1\r\nHost: {target}\r\nContent-Length: 0\r\n{more}\r\n");
    say(target, &head)
}

#[test]
fn the_dashboard_is_one_page_of_its_own_and_shows_what_status_says() {
    let (_homing, _, metrics) = start(2, "", "");
    let page = get(metrics, "/", "");
    assert_eq!(page.status, 200);
    assert!(page.head.contains("content-security-policy: default-src 'none'; script-src 'self'"), "{}", page.head);
    for part in ["/dashboard.js", "/dashboard.css"] {
        assert_eq!(get(metrics, part, "").status, 200, "{part}");
        assert!(page.body.contains(&part[1..]), "{part}");
    }
    let told: serde_json::Value = serde_json::from_str(&get(metrics, "/api/status", "").body).expect("JSON");
    assert_eq!(told["status"]["apps"][0]["workers"][1]["id"], "demo/1");
    assert_eq!(told["actions"], false);
    let sample = wait_for("a first sample", || {
        let told: serde_json::Value = serde_json::from_str(&get(metrics, "/api/status", "").body).ok()?;
        told["history"].get(0).cloned()
    });
    assert!(sample["apps"]["demo"].as_array().is_some_and(|values| values.len() == 3), "{sample}");
    let later: serde_json::Value =
        serde_json::from_str(&get(metrics, "/api/status?since=99999999999", "").body).expect("JSON");
    assert_eq!(later["history"], serde_json::json!([]));
    assert_eq!(get(metrics, "/api/status?since=x", "").status, 400);
    assert_eq!(post(metrics, "/api/drain?worker=demo/0", "").status, 404, "nothing can be done from here");
    assert_eq!(say(metrics, "GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n").status, 421);
}

#[test]
fn orders_need_the_option_the_token_and_the_own_page() {
    let (homing, metrics) = start_with_actions();
    let right = format!("Authorization: Bearer {TOKEN}\r\n");
    assert_eq!(get(metrics, "/", "").status, 200, "the page asks for the token itself");
    assert_eq!(get(metrics, "/api/status", "").status, 401);
    assert_eq!(post(metrics, "/api/drain?worker=demo/0", "").status, 401);
    assert_eq!(get(metrics, "/api/drain?worker=demo/0", &right).status, 405);
    let foreign = post(metrics, "/api/drain?worker=demo/0", &format!("{right}Origin: http://evil.example\r\n"));
    assert_eq!(foreign.status, 403, "{}", foreign.body);
    assert_eq!(
        post(metrics, "/api/drain?worker=demo/0", &format!("{right}Sec-Fetch-Site: cross-site\r\n")).status,
        403
    );
    assert_eq!(homing.wait_for_workers(0, 2)["apps"][0]["workers"][0]["state"], "ready", "nothing was done");
    let own = format!("{right}Origin: http://{metrics}\r\nSec-Fetch-Site: same-origin\r\n");
    let done = post(metrics, "/api/drain?worker=demo/0", &own);
    assert_eq!(done.status, 200, "{}", done.body);
    homing.wait_until("it drains", |status| status["apps"][0]["workers"][0]["state"] != "ready");
    assert_eq!(post(metrics, "/api/drain?worker=demo/77", &own).status, 409);
    assert_eq!(post(metrics, "/api/drain?app=demo", &own).status, 400);
    assert!(homing.said().contains("an order by the dashboard"), "{}", homing.said());
}
