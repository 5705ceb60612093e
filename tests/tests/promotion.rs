//! Affinity `auto`: an address that is many people, end to end in network namespaces. Needs root.

use std::net::IpAddr;

use homing::demo::client::{Dialect, Outcome};
use homing_tests::instance::{Homing, demo_app};
use homing_tests::network::{Network, SERVER_V4, SERVER_V6, client_v4, client_v6};
use homing_tests::session::{Client, Session};

const PORT: u16 = 8080;
/// `client.auto_promote` of these tests.
const ABOVE: usize = 4;

struct Site {
    // In this order: homing ends before its namespace.
    homing: Homing,
    network: Network,
}

impl Site {
    fn start(more: &str) -> Self {
        let network = Network::new(4);
        let wrapper = network.server.wrapper();
        let listen = [(SERVER_V4, PORT).into(), (SERVER_V6, PORT).into()];
        let app = demo_app("demo", &listen, "127.0.0.1", 4, &format!("client.auto_promote = {ABOVE}\n{more}"));
        let app = app.replace("affinity = \"ip\"", "affinity = \"auto\"");
        let homing = Homing::start_under(&wrapper.each_ref().map(String::as_str), "", &app);
        homing.wait_for_workers(0, 4);
        Self { homing, network }
    }

    fn client(&self, from: IpAddr) -> Client<'_> {
        client(&self.network, from)
    }

    fn promoted(&self) -> u64 {
        self.homing.status()["apps"][0]["promoted_addresses"].as_u64().expect("a number")
    }

    /// One more session than one person opens.
    fn crowd(&self, from: IpAddr) -> Vec<Session<'_>> {
        crowd(&self.network, from)
    }
}

fn client(network: &Network, from: IpAddr) -> Client<'_> {
    let target = if from.is_ipv4() { (SERVER_V4, PORT).into() } else { (SERVER_V6, PORT).into() };
    Client { namespace: Some(&network.clients), from, target }
}

fn crowd(network: &Network, from: IpAddr) -> Vec<Session<'_>> {
    (0..=ABOVE).map(|_| client(network, from).open()).collect()
}

/// The standard sticky test of this many users behind one address, each with cookies of its own.
fn users(site: &Site, count: usize, from: IpAddr) -> Vec<Outcome> {
    site.network.clients.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let target = site.client(from).target;
            let user =
                || homing::demo::client::Client { target, from: Some(from), dialect: Dialect::Demo, cookies: true };
            let users: Vec<_> = (0..count).map(|_| user()).collect();
            futures_util::future::join_all(users.iter().map(|user| user.sticky_test(|_| {}))).await
        })
    })
}

fn assert_spread(outcomes: &[Outcome]) {
    assert!(outcomes.iter().all(Outcome::passed), "{outcomes:#?}");
    let workers: std::collections::BTreeSet<_> = outcomes.iter().map(|outcome| outcome.worker.clone()).collect();
    assert_eq!(workers.len(), 4, "spread over the 4 workers: {workers:?}");
}

#[test]
fn the_users_of_a_promoted_address_are_spread_and_what_was_open_before_stays() {
    let mut site = Site::start("");
    let Site { homing, network } = &mut site;
    let mut before = crowd(network, client_v4(1));
    assert!(before.iter().all(|session| !session.hello.forwarded), "all were steered by the kernel");
    homing.wait_until("the address is promoted", |status| status["apps"][0]["promoted_addresses"] == 1);
    let neighbour = client(network, client_v4(2)).open();
    assert!(!neighbour.hello.forwarded, "another address goes on by the kernel path");
    let trace = homing.trace("demo", &client_v4(1).to_string());
    assert_eq!((&trace["path"], &trace["rule"]), (&"http".into(), &"promoted".into()), "{trace:#}");
    // A promotion outlives homing: its users have cookies.
    homing.kill();
    homing.start_again();
    homing.wait_for_workers(0, 4);
    for session in &mut before {
        assert!(session.is_alive(), "a promotion breaks nothing that is open");
        let answer = session.check().expect("the service answers");
        assert_eq!(answer.status, 200, "without a cookie and not for a page: as before. {answer:?}");
    }
    assert_spread(&users(&site, 16, client_v4(1)));
    assert_eq!(site.promoted(), 1);
}

#[test]
fn a_promotion_ends_when_none_of_its_users_was_seen_for_long() {
    let site = Site::start("timeouts.affinity = \"1s\"");
    let crowd = site.crowd(client_v4(1));
    site.homing.wait_until("the address is promoted", |status| status["apps"][0]["promoted_addresses"] == 1);
    assert!(site.client(client_v4(1)).open().hello.forwarded);
    drop(crowd);
    site.homing.wait_until("the promotion has ended", |status| status["apps"][0]["promoted_addresses"] == 0);
    assert!(!site.client(client_v4(1)).open().hello.forwarded, "it is steered by the kernel again");
}

#[test]
fn a_crowd_that_the_http_path_serves_is_promoted_too() {
    // The workers listen on IPv4 alone: the HTTP path forwards IPv6 clients.
    let site = Site::start("");
    let crowd = site.crowd(client_v6(1));
    assert!(crowd.iter().all(|session| session.hello.forwarded && session.hello.worker == crowd[0].hello.worker));
    site.homing.wait_until("the address is promoted", |status| status["apps"][0]["promoted_addresses"] == 1);
    // While it holds these, the worker is the most loaded and gets nobody.
    drop(crowd);
    site.homing.wait_until("its connections are closed", |status| status["apps"][0]["connections"] == 0);
    assert_spread(&users(&site, 16, client_v6(1)));
}
