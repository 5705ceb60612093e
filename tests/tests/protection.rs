//! Lists, rates and floods, end to end in network namespaces. Needs root.

use std::net::{SocketAddr, SocketAddrV4};
use std::time::Duration;

use homing_tests::forged;
use homing_tests::instance::{Homing, demo_app, wait_for};
use homing_tests::network::{Network, SERVER_V4, client_v4};
use homing_tests::session::Client;
use socket2::{Domain, Socket, Type};

const PORT: u16 = 8080;
/// Long enough for a connection on a cable, too short for a SYN to be sent a second time.
const AT_ONCE: Duration = Duration::from_millis(500);

struct Site {
    // In this order: homing ends before its namespace.
    homing: Homing,
    network: Network,
}

impl Site {
    fn start(settings: &str, protect: &str) -> Self {
        let network = Network::new(8);
        let wrapper = network.server.wrapper();
        let app = demo_app("demo", &[service().into()], "127.0.0.1", 4, protect);
        let homing = Homing::start_under(&wrapper.each_ref().map(String::as_str), settings, &app);
        homing.wait_for_workers(0, 4);
        Self { homing, network }
    }

    fn client(&self, number: u8) -> Client<'_> {
        Client { namespace: Some(&self.network.clients), from: client_v4(number), target: service().into() }
    }

    /// Whether a connection is taken at the first SYN.
    fn connects(&self, number: u8) -> bool {
        self.network.clients.enter(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            socket.bind(&SocketAddr::from((client_v4(number), 0)).into()).expect("the client's address");
            socket.connect_timeout(&SocketAddr::from(service()).into(), AT_ONCE).is_ok()
        })
    }

    fn counter(&self, name: &str) -> u64 {
        self.homing.status()["counters"][name].as_u64().expect("a counter")
    }
}

fn service() -> SocketAddrV4 {
    SocketAddrV4::new(SERVER_V4, PORT)
}

#[test]
fn a_denied_client_is_dropped_and_its_neighbour_is_served() {
    let site = Site::start("", &format!("protect.deny = [\"{}\"]", client_v4(1)));
    assert!(!site.connects(1));
    assert!(site.counter("xdp_denied") > 0);
    let trace = site.homing.trace("demo", &client_v4(1).to_string());
    assert_eq!((&trace["rule"], &trace["worker"]), (&"denied".into(), &serde_json::Value::Null), "{trace:#}");
    let said = site.homing.ask(&["trace", "demo", &client_v4(1).to_string()]).stdout;
    assert!(String::from_utf8_lossy(&said).contains("→ demo: refused\n"), "{}", String::from_utf8_lossy(&said));
    assert!(!site.client(2).open().hello.forwarded);
    let said = site.homing.ask(&["status"]);
    let table = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(table.contains("denied by list"), "an operator sees it: {table}");
}

#[test]
fn an_allow_list_keeps_everybody_else_out_also_without_a_kernel_path() {
    let allow = format!("protect.allow = [\"{}\"]", client_v4(1));
    let site = Site::start("kernel_path = \"off\"", &allow);
    assert_eq!(site.client(1).get("/health").expect("an answer").status, 200);
    assert!(site.client(2).get("/health").is_err(), "closed without an answer");
    assert_eq!(site.counter("http_denied"), 1);
}

#[test]
fn a_client_in_a_hurry_is_held_back_and_others_are_served_at_once() {
    let site = Site::start("", "protect = { client_rate = 1, client_burst = 5 }");
    wait_for("the client is held back", || (!site.connects(1)).then_some(()));
    assert!(site.counter("xdp_client_too_fast") > 0);
    assert!(site.connects(2), "another client has a rate of its own");
}

#[test]
fn a_flood_from_a_hundred_thousand_addresses_costs_established_clients_nothing() {
    const FLOOD: u32 = 100_000;
    // Listed, so that homing may take it that XDP's answers arrive.
    let site = Site::start("interfaces = [\"eth0\"]", "");
    // Answers to forged addresses go somewhere, as they would on the internet.
    site.network.server.ip(&["route", "add", "default", "via", &client_v4(1).to_string()]);
    let _pass = site.network.clients.let_pass("eth0");
    let mut sessions: Vec<_> = (1..=8).map(|number| site.client(number).open()).collect();
    let clients = site.homing.status()["apps"][0]["clients"].clone();
    forged::flood(&site.network.clients, service(), FLOOD);
    let arrived = site.counter("xdp_syn_worker") + site.counter("xdp_syncookie");
    assert!(arrived >= u64::from(FLOOD) / 2, "the flood arrived");
    assert!(site.counter("xdp_syncookie") > 0, "with the workers' queues full, XDP answers");
    let newcomers = (1..=8).filter(|&number| site.connects(number)).count();
    assert_eq!(newcomers, 8, "new connections are made at once, by cookie");
    let status = site.homing.status();
    assert_eq!(status["apps"][0]["clients"], clients, "forged SYNs bind nobody");
    for session in &mut sessions {
        assert!(session.is_alive(), "{:?}", session.hello);
        let answer = session.check().expect("an established client gets another connection");
        assert_eq!(answer.status, 200, "to its own process");
    }
}
