//! The Shiny apps of config/shiny-python.toml and config/shiny-r.toml under a homing of the test's own, and their clients.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use homing::demo::client::{Client, Dialect, Outcome};

use crate::instance::{Homing, free_address};

/// Users or addresses at once.
pub const CLIENTS: u8 = 50;

/// What the example gives its workers to listen on.
pub const ON_PORTS: &str = "\"--host\", \"127.0.0.1\", \"--port\", \"{port}\"";

/// The app, its listen address, its affinity and what its workers listen on replaced.
pub fn start(affinity: &str, listens: &str) -> (Homing, SocketAddr) {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let listen = free_address();
    let config = std::fs::read_to_string(root.join("config/shiny-python.toml")).expect("the example is there");
    let venv = std::env::var("HOMING_VENV").expect("HOMING_VENV names the environment; use cargo xtask test --apps");
    let app = root.join("config/apps/shiny-python").canonicalize().expect("the app is there");
    assert!(config.contains(ON_PORTS), "the example has changed");
    let config = config
        .replace("0.0.0.0:8080", &listen.to_string())
        .replace("affinity  = \"ip\"", &format!("affinity = \"{affinity}\""))
        .replace("apps/shiny-python", &app.display().to_string())
        .replace("../../../target/venv/shiny-python", &venv)
        .replace(ON_PORTS, listens);
    let homing = Homing::start(&config);
    homing.wait_for_workers(0, 4);
    (homing, listen)
}

/// The same app in R; its listen address and affinity replaced.
pub fn start_r(affinity: &str) -> (Homing, SocketAddr) {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let listen = free_address();
    let config = std::fs::read_to_string(root.join("config/shiny-r.toml")).expect("the example is there");
    let app = root.join("config/apps/shiny-r").canonicalize().expect("the app is there");
    let config = config
        .replace("0.0.0.0:8080", &listen.to_string())
        .replace("affinity  = \"ip\"", &format!("affinity = \"{affinity}\""))
        .replace("apps/shiny-r", &app.display().to_string());
    let homing = Homing::start(&config);
    homing.wait_for_workers(0, 4);
    (homing, listen)
}

/// Runs all clients at once.
pub async fn all(clients: Vec<Client>) -> Vec<Outcome> {
    let tests = clients.into_iter().map(|client| tokio::spawn(async move { client.sticky_test(|_| {}).await }));
    let mut outcomes = Vec::new();
    for test in tests.collect::<Vec<_>>() {
        outcomes.push(test.await.expect("the client does not panic"));
    }
    outcomes
}

/// [`CLIENTS`] addresses.
pub fn by_address(target: SocketAddr, dialect: Dialect) -> Vec<Client> {
    let from = |number| Some(IpAddr::V4(Ipv4Addr::new(127, 0, 3, number)));
    (1..=CLIENTS).map(|number| Client { target, from: from(number), dialect, cookies: false }).collect()
}

/// As many users behind one address.
pub fn by_cookie(target: SocketAddr, dialect: Dialect) -> Vec<Client> {
    (0..CLIENTS).map(|_| Client { target, from: None, dialect, cookies: true }).collect()
}

/// Clients per worker; all must have passed.
pub fn spread(outcomes: &[Outcome]) -> BTreeMap<String, usize> {
    let mut workers = BTreeMap::new();
    for outcome in outcomes {
        assert!(outcome.passed(), "{outcome:?}");
        *workers.entry(outcome.worker.clone().expect("a session names its worker")).or_default() += 1;
    }
    println!("clients per worker: {workers:?}");
    workers
}
