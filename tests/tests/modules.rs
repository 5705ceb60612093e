//! What Debian's kernels have as modules: VLANs, bonds, packets lost and late. Needs root, and is for `cargo xtask vm`.
//!
//! There, too, the tests of remote hosts (`tunnels`) have the kernel's own receivers of IP in IP and GUE.

use std::net::TcpStream;
use std::time::Duration;

use homing_tests::hosts::{self, Plan, Way};
use homing_tests::instance::{Homing, demo_app, wait_for};
use homing_tests::network::{Network, SERVER_V4, SERVER_V6, SERVICE_V4, backend_v4, client_v4, client_v6};
use homing_tests::session::{Client, Session};
use homing_tests::site::{PORT, assert_kept, v4, v6};
use serde_json::Value;

const CLIENTS: u8 = 8;
/// A stranger's connection that is not there by then is tried again.
const SOON: Duration = Duration::from_secs(1);

/// Four workers behind addresses on this device, and sessions of clients of both families.
fn start(network: &Network) -> Homing {
    let wrapper = network.server.wrapper();
    let app = demo_app("demo", &[v4(), v6()], "::", 4, "");
    let homing = Homing::start_under(&wrapper.each_ref().map(String::as_str), "", &app);
    homing.wait_for_workers(0, 4);
    homing
}

fn open(network: &Network) -> Vec<Session<'_>> {
    let client = |from, target| Client { namespace: Some(&network.clients), from, target }.open();
    (1..=CLIENTS).flat_map(|number| [client(client_v4(number), v4()), client(client_v6(number), v6())]).collect()
}

fn mode(status: &Value) -> &Value {
    &status["kernel_path"]["interfaces"][0]["mode"]
}

/// Every session reaches its worker, on the kernel path alone.
fn assert_all_kept(homing: &Homing, sessions: &mut [Session<'_>]) {
    for session in sessions.iter_mut() {
        assert!(!session.hello.forwarded);
        (0..3).for_each(|_| assert_kept(session));
    }
    assert_eq!(homing.status()["counters"]["http_requests"], 0, "no request passed through homing");
}

#[test]
fn clients_on_a_vlan_keep_their_worker_on_the_kernel_path() {
    let network = Network::with(CLIENTS, "eth0.7");
    let homing = start(&network);
    let mut sessions = open(&network);
    assert_all_kept(&homing, &mut sessions);
    let status = homing.status();
    assert_eq!(status["kernel_path"]["interfaces"][0]["name"], "eth0.7", "{status:#}");
    assert!(status["counters"]["xdp_syn_worker"].as_u64() >= Some(sessions.len() as u64), "XDP saw them: {status:#}");
}

#[test]
fn clients_over_a_bond_keep_their_worker_when_a_cable_is_pulled() {
    let network = Network::with(CLIENTS, "bond0");
    let (server, there) = (&network.server, &network.clients);
    server.ip(&["link", "add", "eth1", "type", "veth", "peer", "name", "eth1", "netns", there.name()]);
    for end in [server, there] {
        end.ip(&["link", "set", "eth1", "master", "bond0"]);
        end.ip(&["link", "set", "eth1", "up"]);
    }
    let homing = start(&network);
    assert_eq!(mode(&homing.status()), "native", "{:#}", homing.status());
    let mut sessions = open(&network);
    assert_all_kept(&homing, &mut sessions);
    server.ip(&["link", "set", "eth0", "down"]);
    for end in [server, there] {
        wait_for("the other cable is used", || {
            let bond = end.output(&["cat", "/proc/net/bonding/bond0"]);
            bond.contains("Currently Active Slave: eth1").then_some(())
        });
    }
    let before = homing.status()["counters"]["xdp_syn_worker"].as_u64();
    assert_all_kept(&homing, &mut sessions);
    assert!(homing.status()["counters"]["xdp_syn_worker"].as_u64() > before, "XDP sees the other cable too");
}

#[test]
fn clients_whose_packets_come_late_twice_or_not_at_all_keep_their_worker() {
    let network = Network::new(CLIENTS);
    for end in [&network.server, &network.clients] {
        end.run(&[
            "tc",
            "qdisc",
            "add",
            "dev",
            "eth0",
            "root",
            "netem",
            "delay",
            "10ms",
            "5ms",
            "loss",
            "3%",
            "duplicate",
            "3%",
        ]);
    }
    let homing = start(&network);
    let mut sessions = open(&network);
    assert_all_kept(&homing, &mut sessions);
    drop(sessions);
    homing.wait_until("nothing is open", |status| status["apps"][0]["connections"] == 0);
}

/// Hosts that clients reach by packets that leave on this device.
fn keep_their_host_by(device: &str, mode_there: &str) {
    let site = hosts::Site::start_as(&Plan { device, ..Plan::default() });
    let status = site.homing.status();
    assert_eq!(*mode(&status), *mode_there, "{status:#}");
    let mut sessions = site.open(1..=CLIENTS);
    sessions.iter_mut().for_each(hosts::assert_kept);
    assert!(sessions.iter().all(|session| session.hello.peer.port() != PORT && !session.hello.forwarded));
    assert_eq!(site.homing.status()["counters"]["http_requests"], 0, "no request passed through homing");
    assert!(site.homing.status()["counters"]["xdp_forwarded_l2"].as_u64() > Some(50));
}

#[test]
fn packets_to_hosts_leave_by_a_vlan() {
    keep_their_host_by("eth0.7", "generic");
}

#[test]
fn packets_to_hosts_leave_by_a_bond() {
    keep_their_host_by("bond0", "native");
}

#[test]
fn hosts_whose_packets_are_late_or_lost_keep_their_clients() {
    let site = hosts::Site::start("", "");
    site.lan.clients.run(&["tc", "qdisc", "add", "dev", "eth0", "root", "netem", "delay", "10ms", "5ms", "loss", "3%"]);
    let mut sessions = site.open(1..=CLIENTS);
    for session in &mut sessions {
        (0..3).for_each(|_| hosts::assert_kept(session));
    }
}

/// The guide's rules for a host, with homing's addresses, and a count of what is dropped.
fn rules_of_the_guide() -> String {
    const GUIDE: &str = include_str!("../../docs/remote-hosts.md");
    let (_, rest) = GUIDE.split_once("```\ntable inet homing {").expect("the guide has rules");
    let rules = rest.split_once("```").expect("and their end").0;
    let rules = rules.replace("10.0.0.1", &SERVER_V4.to_string()).replace("fd00::1", &SERVER_V6.to_string());
    format!("table inet homing {{{}", rules.replace(" drop\n", " counter drop\n"))
}

/// `encapsulation`: what `ip link` is told of it.
fn who_may_send_to_a_host(forward: &'static str, encapsulation: &str) {
    let site = hosts::Site::start_as(&Plan { ways: &[Way { forward, over_v4: true }], ..Plan::default() });
    let (host, strangers) = (&site.lan.backends[0], &site.lan.clients);
    let tunnel = format!("link add strange type ipip local {} remote {} {encapsulation}", client_v4(1), backend_v4(0));
    strangers.ip(&tunnel.split_whitespace().collect::<Vec<_>>());
    strangers.ip(&["link", "set", "strange", "up"]);
    let service = SERVICE_V4.to_string();
    let past_homing = ["route", "add", &service, "dev", "strange", "src", &client_v4(1).to_string()];
    let connects = || strangers.enter(|| TcpStream::connect_timeout(&(SERVICE_V4, PORT).into(), SOON).is_ok());
    let forwarded = |site: &hosts::Site| site.homing.status()["counters"][format!("xdp_forwarded_{forward}")].clone();
    strangers.ip(&past_homing);
    let before = forwarded(&site);
    wait_for("a host takes packets in others from anybody", || connects().then_some(()));
    assert_eq!(forwarded(&site), before, "past homing");
    let rules = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(rules.path(), rules_of_the_guide()).expect("written");
    host.run(&["nft", "-f", rules.path().to_str().expect("a path of text")]);
    wait_for("what a stranger sends is dropped", || {
        assert!(!connects(), "only homing's machine may send to the host");
        let said = host.output(&["nft", "list", "table", "inet", "homing"]);
        (!said.contains("counter packets 0 ")).then_some(())
    });
    strangers.ip(&["route", "del", &service, "dev", "strange"]);
    site.open(1..=CLIENTS).iter_mut().for_each(hosts::assert_kept);
}

#[test]
fn with_the_rules_of_the_guide_a_host_takes_packets_in_ip_from_homings_machine_alone() {
    who_may_send_to_a_host("ipip", "");
}

#[test]
fn with_the_rules_of_the_guide_a_host_takes_packets_in_gue_from_homings_machine_alone() {
    who_may_send_to_a_host("gue", "encap gue encap-sport auto encap-dport 6080");
}

#[test]
fn this_kernel_has_what_these_tests_are_for() {
    assert!(hosts::kernel_unpacks(), "modules ipip, sit, ip6_tunnel, fou and fou6; this suite is for: cargo xtask vm");
}
