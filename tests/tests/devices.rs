//! Interfaces that come and go, and programs of others, in network namespaces. Needs root.

use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};

use homing_tests::instance::{Homing, demo_app, wait_for};
use homing_tests::network::{Namespace, Network, SERVER_V4, client_v4};
use homing_tests::session::Client;
use serde_json::{Value, json};

const PORT: u16 = 8080;
/// A second cable's two ends.
const SECOND: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);
const SECOND_CLIENT: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);

fn start(network: &Network, settings: &str) -> Homing {
    let wrapper = network.server.wrapper();
    let app = demo_app("demo", &[(Ipv4Addr::UNSPECIFIED, PORT).into()], "127.0.0.1", 2, "");
    let homing = Homing::start_under(&wrapper.each_ref().map(String::as_str), settings, &app);
    homing.wait_for_workers(0, 2);
    homing
}

/// A second cable between the two, without addresses.
fn plug(network: &Network) {
    let there = network.clients.name();
    network.server.ip(&["link", "add", "eth1", "type", "veth", "peer", "name", "eth1", "netns", there]);
    network.server.ip(&["link", "set", "eth1", "up"]);
    network.clients.ip(&["link", "set", "eth1", "up"]);
}

fn address(namespace: &Namespace, address: Ipv4Addr) {
    namespace.ip(&["address", "add", &format!("{address}/24"), "dev", "eth1"]);
}

fn mode(status: &Value, interface: &str) -> Option<String> {
    let interfaces = status["kernel_path"]["interfaces"].as_array()?;
    let found = interfaces.iter().find(|entry| entry["name"] == interface)?;
    Some(found["mode"].as_str()?.to_owned())
}

/// The XDP program on an interface, as `ip` tells it.
fn xdp_program(namespace: &Namespace, interface: &str) -> Value {
    let output = namespace.output(&["ip", "-json", "link", "show", "dev", interface]);
    let links: Value = serde_json::from_str(&output).expect("JSON");
    links[0]["xdp"]["prog"].clone()
}

fn syns(homing: &Homing) -> u64 {
    homing.status()["counters"]["xdp_syn_worker"].as_u64().expect("a counter")
}

#[test]
fn an_interface_that_comes_later_gets_the_program_and_one_that_goes_and_returns_gets_it_again() {
    let network = Network::new(1);
    let homing = start(&network, "");
    assert_eq!(mode(&homing.status(), "eth1"), None);
    for _ in 0..2 {
        plug(&network);
        address(&network.server, SECOND);
        address(&network.clients, SECOND_CLIENT);
        homing.wait_until("the second cable has XDP", |status| mode(status, "eth1").as_deref() == Some("native"));
        let before = syns(&homing);
        let target = SocketAddr::from((SECOND, PORT));
        let client = Client { namespace: Some(&network.clients), from: SECOND_CLIENT.into(), target };
        assert!(!client.open().hello.forwarded, "steered by the kernel");
        assert!(syns(&homing) > before, "and seen by XDP");
        network.server.ip(&["link", "delete", "eth1"]);
        homing.wait_until("the second cable is gone", |status| mode(status, "eth1").is_none());
    }
    assert_eq!(mode(&homing.status(), "eth0").as_deref(), Some("native"), "the first never lost it");
}

#[test]
fn a_configured_interface_gets_the_program_when_it_comes() {
    let network = Network::new(1);
    let homing = start(&network, "interfaces = [\"eth0\", \"eth1\"]");
    assert_eq!(mode(&homing.status(), "eth1").as_deref(), Some("none"));
    plug(&network);
    homing.wait_until("it has XDP", |status| mode(status, "eth1").as_deref() == Some("native"));
}

#[test]
fn a_renamed_interface_keeps_the_program_under_its_new_name() {
    let network = Network::new(1);
    let homing = start(&network, "");
    plug(&network);
    address(&network.server, SECOND);
    address(&network.clients, SECOND_CLIENT);
    homing.wait_until("the second cable has XDP", |status| mode(status, "eth1").as_deref() == Some("native"));
    let program = xdp_program(&network.server, "eth1");
    network.server.ip(&["link", "set", "eth1", "name", "sales.1"]);
    homing.wait_until("the new name is known", |status| {
        mode(status, "sales.1").as_deref() == Some("native") && mode(status, "eth1").is_none()
    });
    assert_eq!(xdp_program(&network.server, "sales.1"), program, "it never lost it");
    let before = syns(&homing);
    let client =
        Client { namespace: Some(&network.clients), from: SECOND_CLIENT.into(), target: (SECOND, PORT).into() };
    assert!(!client.open().hello.forwarded, "steered by the kernel");
    assert!(syns(&homing) > before, "and seen by XDP");
}

#[test]
fn a_configured_name_is_followed_from_one_interface_to_the_next() {
    let network = Network::new(1);
    let homing = start(&network, "interfaces = [\"eth0\", \"eth1\"]");
    plug(&network);
    homing.wait_until("it has XDP", |status| mode(status, "eth1").as_deref() == Some("native"));
    network.server.ip(&["link", "set", "eth1", "name", "spare"]);
    homing.wait_until("the name is nobody's", |status| mode(status, "eth1").as_deref() == Some("none"));
    // The kernel ends a link some time after its last pin has gone.
    wait_for("nobody asked for XDP there", || xdp_program(&network.server, "spare").is_null().then_some(()));
    network.clients.ip(&["link", "set", "eth1", "name", "spare"]);
    plug(&network);
    homing.wait_until("the next has XDP", |status| mode(status, "eth1").as_deref() == Some("native"));
    assert_ne!(xdp_program(&network.server, "eth1"), Value::Null, "the kernel says so too");
}

#[test]
fn an_interface_that_another_lets_go_of_gets_the_program() {
    let network = Network::new(1);
    let theirs = network.server.let_pass("eth0");
    let homing = start(&network, "");
    assert_eq!(mode(&homing.status(), "eth0").as_deref(), Some("none"));
    drop(theirs);
    homing.wait_until("the interface has XDP", |status| mode(status, "eth0").as_deref() == Some("native"));
}

#[test]
fn tc_filters_of_another_are_named_and_stay() {
    let network = Network::new(1);
    let tc = |words: &[&str]| network.server.output(&[&["tc"], words].concat());
    tc(&["qdisc", "add", "dev", "eth0", "clsact"]);
    // A program of one instruction: let it pass.
    tc(&["filter", "add", "dev", "eth0", "ingress", "bpf", "direct-action", "bytecode", "1,6 0 0 4294967295"]);
    let before = tc(&["filter", "show", "dev", "eth0", "ingress"]);
    assert!(before.contains("bpf"), "{before}");
    let homing = start(&network, "");
    let status = homing.status();
    assert_eq!(status["kernel_path"]["interfaces"][0]["tc"][0], "clsact", "{status:#}");
    assert_eq!(mode(&status, "eth0").as_deref(), Some("native"), "XDP stands beside it");
    let checked = homing.check();
    assert!(String::from_utf8_lossy(&checked.stdout).contains("qdisc clsact"), "{checked:?}");
    let client = Client { namespace: Some(&network.clients), from: client_v4(1), target: (SERVER_V4, PORT).into() };
    assert!(!client.open().hello.forwarded);
    drop(homing);
    assert_eq!(tc(&["filter", "show", "dev", "eth0", "ingress"]), before, "theirs is still there");
}

/// A program of another on an interface by tcx, for as long as the value lives. Needs Linux 6.6.
struct Tcx(Child);

impl Tcx {
    fn attach(namespace: &Namespace, direction: &str) -> Self {
        const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/tcx.py");
        let mut child = Command::new("nsenter")
            .arg(&namespace.wrapper()[1])
            .args(["python3", SCRIPT, "eth0", direction])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is there");
        let mut line = String::new();
        let said = BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut line);
        let attached = Self(child);
        assert!(said.is_ok() && line == "attached\n", "{line:?}");
        attached
    }
}

impl Drop for Tcx {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn tc_programs(status: &Value) -> Vec<String> {
    serde_json::from_value(status["kernel_path"]["interfaces"][0]["tc"].clone()).unwrap_or_default()
}

#[test]
fn tcx_programs_of_another_are_named_in_both_directions_and_stay() {
    let network = Network::new(1);
    let ingress = Tcx::attach(&network.server, "ingress");
    let egress = Tcx::attach(&network.server, "egress");
    let homing = start(&network, "");
    let status = homing.status();
    let named = tc_programs(&status);
    let [into, out] = named.as_slice() else { panic!("two programs: {status:#}") };
    assert!(into.starts_with("tcx ingress (id "), "{into}");
    assert!(out.starts_with("tcx egress (id "), "{out}");
    let checked = homing.check();
    let checked = String::from_utf8_lossy(&checked.stdout);
    for told in [into, out] {
        assert!(
            checked.contains(&told.replace("(id ", "(tests_pass, id ")),
            "who may know names is told them: {checked}"
        );
    }
    assert_eq!(mode(&status, "eth0").as_deref(), Some("native"), "XDP stands beside them");
    let client = Client { namespace: Some(&network.clients), from: client_v4(1), target: (SERVER_V4, PORT).into() };
    assert!(!client.open().hello.forwarded);
    drop(egress);
    homing.wait_until("one has left", |status| tc_programs(status).as_slice() == &named[..1]);
    drop(homing);
    let homing = start(&network, "");
    assert_eq!(tc_programs(&homing.status()), named[..1], "the other is still there");
    drop(ingress);
}

#[test]
fn the_xdp_program_of_another_is_named_and_stays() {
    let network = Network::new(1);
    let _theirs = network.server.let_pass("eth0");
    let homing = start(&network, "");
    let status = homing.status();
    let eth0 = &status["kernel_path"]["interfaces"][0];
    assert_eq!(eth0["mode"], "none", "{status:#}");
    let reason = eth0["reason"].as_str().expect("a reason");
    assert!(reason.starts_with("another XDP program is attached (id "), "{reason}");
    let checked = homing.check();
    let checked = String::from_utf8_lossy(&checked.stdout);
    assert!(checked.contains("another XDP program is attached (homing_xdp, id "), "{checked}");
    let client = Client { namespace: Some(&network.clients), from: client_v4(1), target: (SERVER_V4, PORT).into() };
    assert!(!client.open().hello.forwarded, "connections are steered all the same");
    drop(homing);
    assert_eq!(xdp_program(&network.server, "eth0")["name"], "homing_xdp", "theirs is still there");
}

#[test]
fn the_sk_lookup_program_of_another_is_named_and_stays() {
    let network = Network::new(1);
    let theirs = network.server.let_look_up();
    let homing = start(&network, "");
    let others = homing.status()["kernel_path"]["other_lookups"].clone();
    let [other] = others.as_array().expect("a list").as_slice() else { panic!("one other program: {others}") };
    assert!(other.as_str().is_some_and(|other| other.starts_with("id ")), "{other}");
    assert!(homing.said().contains("another sk_lookup program"), "{}", homing.said());
    let client = Client { namespace: Some(&network.clients), from: client_v4(1), target: (SERVER_V4, PORT).into() };
    assert!(!client.open().hello.forwarded);
    drop(homing);
    let second = start(&network, "");
    assert_eq!(second.status()["kernel_path"]["other_lookups"], json!([other]), "it is still attached");
    drop(theirs);
}
