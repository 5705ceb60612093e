//! What happens to the machine, and what clients do to it.

use std::io::{ErrorKind, Write as _};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::time::Instant;

use homing_tests::forged;
use homing_tests::instance::wait_seeing;
use homing_tests::network::{SERVER_V4, client_v4, stranger_v4};
use homing_tests::session::Client;
use serde_json::Value;
use socket2::SockRef;

use super::Machine;
use crate::counted::counters;
use crate::excuses::{Oblivion, Span};
use crate::{BINDINGS, Dice, PORTS, tcp};

/// Packets of a flood.
const FLOOD: u32 = 100_000;
/// Requests that a client writes at once.
const MANY: usize = 1_000;
/// Clients that never read.
const SILENT: usize = 32;

/// How XDP is on the interface; none where homing does not know it.
fn xdp(status: &Value) -> Option<String> {
    let interfaces = status["kernel_path"]["interfaces"].as_array()?;
    let eth0 = interfaces.iter().find(|interface| interface["name"] == "eth0")?;
    eth0["mode"].as_str().map(str::to_owned)
}

/// Packets to services that XDP has seen.
fn seen_by_xdp(status: &Value) -> u64 {
    let counters = counters(status);
    ["xdp_established", "xdp_syn_worker", "xdp_syn_http", "xdp_syncookie"].iter().map(|name| counters[*name]).sum()
}

/// Long enough to be noticed, and then shorter.
pub(super) fn link_down(machine: &mut Machine<'_>, _: usize, _: &mut Dice) {
    let before = xdp(&machine.homing.status()).expect("XDP is on the interface");
    let up = |machine: &Machine<'_>| {
        machine.network.server.ip(&["link", "set", "eth0", "up"]);
        // These went with it, and those who are still leaving are to be answered.
        machine.ways_back();
        machine.homing.wait_until("XDP is on the interface again", |status| xdp(status).as_ref() == Some(&before))
    };
    machine.network.server.ip(&["link", "set", "eth0", "down"]);
    machine.homing.wait_until("it is told that the interface is gone", |status| xdp(status).is_none());
    machine.wait_for_sample(&format!("homing_xdp_interfaces{{kind={before:?}}}"), |count| count == 0.0);
    up(machine);
    for _ in 0..3 {
        machine.network.server.ip(&["link", "set", "eth0", "down"]);
        up(machine);
    }
    let seen = seen_by_xdp(&machine.homing.status());
    machine.homing.wait_until("XDP sees packets again", |status| seen_by_xdp(status) > seen);
}

/// A worker is started again, though that cannot be written down.
pub(super) fn disk_full(machine: &mut Machine<'_>, app: usize, dice: &mut Dice) {
    let disk = machine.disk;
    disk.while_full(|| {
        machine.kill_worker(app, dice);
        machine.homing.wait_for_workers(app, crate::WORKERS as usize);
        machine.homing.wait_until("it is told", |status| {
            status["unsaved"].as_str().is_some_and(|why| why.contains("No space left"))
        });
        assert!(machine.homing.said().contains("the state cannot be saved"), "{}", machine.homing.said());
    });
    machine.homing.wait_until("it is saved again", |status| status["unsaved"].is_null());
}

/// More clients than the kernel may remember.
pub(super) fn bindings_full(machine: &mut Machine<'_>, _: usize, _: &mut Dice) {
    const STRANGERS: u16 = BINDINGS + BINDINGS / 2;
    let bound = machine.traces(0).into_iter().filter(|(_, trace)| trace["rule"] == "bound");
    let clients = bound.map(|(client, _)| client).collect();
    let before = machine.counter("binding_new");
    let from = Instant::now();
    machine.network.clients.enter(|| {
        for number in 0..STRANGERS {
            let target = SocketAddr::from((SERVER_V4, PORTS[0]));
            let stranger = Client { namespace: None, from: stranger_v4(number), target };
            drop(stranger.connect().expect("whoever comes is served"));
        }
    });
    machine.excuses.oblivion = Some(Oblivion { span: Span(from, Instant::now()), clients });
    let status = machine.homing.status();
    let table = status["tables"].as_array().and_then(|tables| tables.iter().find(|table| table["name"] == "bindings"));
    let used = table.and_then(|table| table["used"].as_u64()).expect("status has the table");
    let new = counters(&status)["binding_new"] - before;
    println!("{:18}{new} bound, {used} of {BINDINGS} kept", "");
    assert!(new > u64::from(BINDINGS), "more were bound than there is room for: {new}");
    // The kernel forgets some at once, of each processor's.
    assert!(used <= u64::from(BINDINGS) && used > u64::from(BINDINGS) / 2, "it is told how full it is: {table:?}");
    let entries = |count: f64| count > f64::from(BINDINGS) / 2.0;
    machine.wait_for_sample("homing_table_entries{kind=\"bindings\"}", entries);
}

/// They ask for one page after the other, and take none of them.
pub(super) fn clients_that_never_read(machine: &mut Machine<'_>, app: usize, _: &mut Dice) {
    let target = SocketAddr::from((SERVER_V4, PORTS[app]));
    let client = Client { namespace: Some(&machine.network.clients), from: client_v4(1), target };
    let accepted = machine.counter("http_connections");
    let descriptors = machine.sample("process_open_fds").expect("homing tells of itself");
    let mut silent: Vec<Silent> = (0..SILENT).map(|_| Silent::new(&client)).collect();
    let requests = format!("GET / HTTP/1.1\r\nHost: {target}\r\n\r\n").repeat(MANY).into_bytes();
    wait_seeing("answers wait for all of them, and nobody takes all that they ask for", || {
        silent.iter_mut().for_each(|client| client.ask(&requests));
        let ports: Vec<u16> = silent.iter().map(Silent::port).collect();
        let open = tcp::connections(&machine.network.server);
        let wait = open.iter().filter(|end| ports.contains(&end.remote_port) && end.waiting > 0).count();
        if wait == SILENT { Ok(()) } else { Err(format!("answers wait for {wait}")) }
    });
    if app == 0 {
        machine.homing.wait_until("their connections are told of", |status| {
            status["apps"][app]["connections"].as_u64() >= Some(SILENT as u64)
        });
        return;
    }
    // Their answers are written, and wait in buffers: nothing is in flight for homing but their connections.
    machine.wait_for_sample("process_open_fds", |now| now >= descriptors + SILENT as f64);
    assert!(machine.counter("http_connections") >= accepted + SILENT as u64, "they are counted");
}

/// A client that asks and never reads.
struct Silent {
    stream: TcpStream,
    /// Bytes of its requests.
    sent: usize,
}

impl Silent {
    fn new(client: &Client<'_>) -> Self {
        let stream = client.connect().expect("whoever comes is served");
        // So that little of the answers can be on its way.
        SockRef::from(&stream).set_recv_buffer_size(4_096).expect("it is a socket");
        stream.set_nonblocking(true).expect("it is a socket");
        Self { stream, sent: 0 }
    }

    fn port(&self) -> u16 {
        self.stream.local_addr().expect("it is a socket").port()
    }

    /// Asks, with the same request again and again, until nobody takes more at the moment.
    fn ask(&mut self, requests: &[u8]) {
        loop {
            match self.stream.write(&requests[self.sent % (requests.len() / MANY)..]) {
                Ok(sent) => self.sent += sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("who does not read was cut off: {error}"),
            }
        }
    }
}

pub(super) fn flood_of_syns(machine: &mut Machine<'_>, app: usize, _: &mut Dice) {
    let seen = |status: &Value| {
        let counters = counters(status);
        ["xdp_syn_worker", "xdp_syn_http", "xdp_syncookie"].iter().map(|name| counters[*name]).sum::<u64>()
    };
    let before = seen(&machine.homing.status());
    forged::flood(&machine.network.clients, SocketAddrV4::new(SERVER_V4, PORTS[app]), FLOOD);
    let arrived = seen(&machine.homing.status()) - before;
    println!("{:18}{arrived} SYNs counted", "");
    assert!(arrived >= u64::from(FLOOD) / 10 * 9, "the flood arrived: {arrived}");
}
