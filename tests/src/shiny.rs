//! The Shiny apps of config/shiny-python.toml and config/shiny-r.toml under a homing of the test's own, and their clients.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use homing::demo::client::{Client, Dialect, Outcome};

use crate::example;
use crate::instance::Homing;

/// Users or addresses at once.
pub const CLIENTS: u8 = 50;

/// What the example gives its workers to listen on.
pub const ON_PORTS: &str = "\"--host\", \"127.0.0.1\", \"--port\", \"{port}\"";

/// The app, its affinity and what its workers listen on replaced.
pub fn start(affinity: &str, listens: &str) -> (Homing, SocketAddr) {
    example::start("shiny-python", &[by(affinity).each_ref().map(String::as_str).into(), (ON_PORTS, listens)])
}

/// The same app in R; its affinity replaced.
pub fn start_r(affinity: &str) -> (Homing, SocketAddr) {
    example::start("shiny-r", &[by(affinity).each_ref().map(String::as_str).into()])
}

fn by(affinity: &str) -> [String; 2] {
    ["ip", affinity].map(|affinity| format!("affinity  = \"{affinity}\""))
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
