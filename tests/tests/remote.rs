//! Packets to remote backends, run through the loaded program: every byte that leaves is checked. Needs root.
//!
//! In a namespace of its own, with routes and neighbours that the program asks the kernel for.

use std::time::Duration;

use aya::maps::{Array, ArrayOfMaps, HashMap, MapData, PerCpuArray};
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use homing::datapath::{OBJECT, pod::Wire};
use homing_tests::network::Namespace;
use homing_tests::wire::{self, Inner, internet_checksum};
use lb_common::abi::{
    BINDINGS_MAX, Backend, BackendId, Binding, BindingKey, Counter, FORWARD_GUE, FORWARD_IPIP, FORWARD_L2, PROTO_TCP,
    PROTO_UDP, Ports, ROUTE_TICKS, SERVICE_REMOTE, Service, ServiceKey, Slot,
};
use lb_common::addr::Addr;
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;
/// `BPF_F_INNER_MAP` (Linux 5.10).
const BPF_F_INNER_MAP: u32 = 1 << 12;
const RING_LEN: u32 = 509;
const MTU: usize = 1_500;

/// homing's interface, and two hosts beyond it.
const HERE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x11];
const HOSTS: [Host; 2] = [
    Host { v4: [10, 9, 0, 21], v6: 0x21, mac: [2, 0, 0, 0, 0, 0x21] },
    Host { v4: [10, 9, 0, 22], v6: 0x22, mac: [2, 0, 0, 0, 0, 0x22] },
];
const HERE_V4: [u8; 4] = [10, 9, 0, 1];
const GUE_PORT: u16 = 6080;

struct Host {
    v4: [u8; 4],
    v6: u8,
    mac: [u8; 6],
}

fn v6(last: u8) -> [u8; 16] {
    let mut address = [0; 16];
    address[0] = 0xfd;
    address[3] = 9;
    address[15] = last;
    address
}

/// The program on maps of its own, in a namespace of its own.
struct Kernel {
    ebpf: Ebpf,
    namespace: Namespace,
}

impl Kernel {
    fn load() -> Self {
        Self::load_with(BINDINGS_MAX)
    }

    /// With room for so many bindings.
    fn load_with(bindings: u32) -> Self {
        let namespace = Namespace::new("remote");
        namespace.ip(&["link", "add", "eth0", "address", &mac(HERE_MAC), "type", "veth", "peer", "name", "far"]);
        namespace.ip(&["address", "add", "10.9.0.1/24", "dev", "eth0"]);
        namespace.ip(&["address", "add", "fd00:9::1/64", "dev", "eth0", "nodad"]);
        for end in ["eth0", "far"] {
            namespace.ip(&["link", "set", end, "up"]);
        }
        for Host { v4: [a, b, c, d], v6, mac: address } in &HOSTS {
            for host in [format!("{a}.{b}.{c}.{d}"), format!("fd00:9::{v6:x}")] {
                namespace.ip(&["neigh", "add", &host, "lladdr", &mac(*address), "dev", "eth0", "nud", "permanent"]);
            }
        }
        namespace.enter(|| homing::datapath::allow_route_lookups().expect("root may set it"));
        let ebpf = EbpfLoader::new().map_max_entries("BINDINGS", bindings).load(OBJECT);
        let mut kernel = Self { ebpf: ebpf.expect("the kernel accepts the maps"), namespace };
        let program: &mut Xdp = kernel.program();
        program.load().expect("the verifier accepts the program");
        let service = Service {
            ring_len: RING_LEN,
            v4_bits: 128,
            v6_bits: 64,
            affinity_s: 60,
            flags: SERVICE_REMOTE,
            ..Service::default()
        };
        for address in [Addr::v4(wire::SERVICE_V4), Addr::v6(wire::SERVICE_V6)] {
            for protocol in [PROTO_TCP, PROTO_UDP] {
                kernel.set_service(ServiceKey::new(address, wire::PORT, protocol), service);
            }
        }
        kernel
    }

    fn program(&mut self) -> &mut Xdp {
        self.ebpf.program_mut("homing_xdp").expect("a program").try_into().expect("its type")
    }

    fn set_service(&mut self, key: ServiceKey, service: Service) {
        let mut services: HashMap<_, Wire<ServiceKey>, Wire<Service>> =
            self.ebpf.map_mut("SERVICES").expect("a map").try_into().expect("its type");
        services.insert(Wire(key), Wire(service), 0).expect("room");
        let mut ports: Array<_, Ports> = self.ebpf.map_mut("PORTS").expect("a map").try_into().expect("its type");
        ports.set(0, *homing::datapath::ports(&[(key, service)]), 0).expect("in the array");
    }

    fn set_ring(&mut self, current: BackendId, previous: BackendId) {
        let mut ring: Array<MapData, Wire<Slot>> = Array::create(RING_LEN, BPF_F_INNER_MAP).expect("a ring");
        for index in 0..RING_LEN {
            ring.set(index, Wire(Slot { current, previous }), 0).expect("in the ring");
        }
        let mut rings: ArrayOfMaps<_, Array<MapData, Wire<Slot>>> =
            self.ebpf.map_mut("RINGS").expect("a map").try_into().expect("its type");
        rings.set(0, &ring, 0).expect("in the rings");
    }

    fn set_backend(&mut self, backend: Backend) {
        let mut backends: Array<_, Wire<Backend>> =
            self.ebpf.map_mut("BACKENDS").expect("a map").try_into().expect("its type");
        backends.set(backend.id.index(), Wire(backend), 0).expect("in the array");
    }

    /// One host that has the whole ring.
    fn forward_to(&mut self, host: usize, forward: u32, over_v4: bool) -> BackendId {
        let id = self.enlist(host, forward, over_v4);
        self.set_ring(id, BackendId::NONE);
        id
    }

    /// A host, not in the ring yet.
    fn enlist(&mut self, host: usize, forward: u32, over_v4: bool) -> BackendId {
        let id = BackendId::new(host as u32, 1);
        let (address, source) = if over_v4 {
            (Addr::v4(HOSTS[host].v4), Addr::v4(HERE_V4))
        } else {
            (Addr::v6(v6(HOSTS[host].v6)), Addr::v6(v6(1)))
        };
        self.set_backend(Backend { address, source, id, forward, gue_port: GUE_PORT.into(), reserved: 0 });
        id
    }

    fn bindings(&mut self) -> HashMap<&mut MapData, Wire<BindingKey>, Wire<Binding>> {
        self.ebpf.map_mut("BINDINGS").expect("a map").try_into().expect("its type")
    }

    /// Verdict, bytes after the program, and the counters that went up by one.
    fn run(&mut self, packet: &[u8]) -> (u32, Vec<u8>, Vec<&'static str>) {
        let before = self.counters();
        let mut out = vec![0; packet.len() + 256];
        let namespace = &self.namespace;
        let program: &mut Xdp = self.ebpf.program_mut("homing_xdp").expect("a program").try_into().expect("its type");
        let result = namespace.enter(|| {
            let options = TestRunOptions { data_in: Some(packet), data_out: Some(&mut out), ..Default::default() };
            program.test_run(options).expect("a test run")
        });
        out.truncate(result.data_size_out as usize);
        let after = self.counters();
        let raised =
            Counter::ALL.iter().zip(before.iter().zip(after)).filter(|(_, (before, after))| *after == **before + 1);
        (result.return_value, out, raised.map(|(counter, _)| counter.name()).collect())
    }

    fn counters(&self) -> Vec<u64> {
        let counters: PerCpuArray<_, u64> = self.ebpf.map("COUNTERS").expect("a map").try_into().expect("its type");
        let sum = |counter: &Counter| counters.get(&(*counter as u32), 0).expect("a counter").iter().sum();
        Counter::ALL.iter().map(sum).collect()
    }

    /// The host that the packet left for, by its link address.
    fn host_of(&mut self, packet: &[u8]) -> Option<usize> {
        let (verdict, out, _) = self.run(packet);
        (verdict == XDP_REDIRECT).then(|| HOSTS.iter().position(|host| host.mac == out[..6]).expect("a host's address"))
    }
}

fn mac(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}

/// Every inner packet that a service with remote backends forwards.
fn inners() -> Vec<Inner> {
    let mut inners = Vec::new();
    for is_v4 in [true, false] {
        for vlans in [0, 1, 2] {
            for (name, kind) in [
                ("SYN", wire::Kind::Tcp(0x02)),
                ("SYN with data", wire::Kind::TcpData(0x02, 100)),
                ("ACK", wire::Kind::Tcp(0x10)),
                ("data", wire::Kind::TcpData(0x18, 1_000)),
                ("FIN", wire::Kind::Tcp(0x11)),
                ("RST", wire::Kind::Tcp(0x04)),
                ("UDP", wire::Kind::Udp(33)),
                ("ICMP error", wire::Kind::IcmpError),
            ] {
                inners.push(Inner { name: name.to_owned(), is_v4, vlans, kind, ..Inner::default() });
            }
        }
    }
    for words in [1, 10] {
        inners.push(Inner { name: format!("{words} words of options"), options: words, ..Inner::default() });
    }
    inners
}

/// Counters of what became of the packet; others tell of what it left in the tables.
fn verdicts(raised: &[&'static str]) -> Vec<&'static str> {
    raised.iter().copied().filter(|counter| counter.starts_with("xdp_")).collect()
}

#[test]
fn packets_leave_by_link_address_with_one_hop_less_and_are_else_untouched() {
    let mut kernel = Kernel::load();
    kernel.forward_to(0, FORWARD_L2, true);
    for inner in inners() {
        let (verdict, out, raised) = kernel.run(&inner.frame());
        assert_eq!((verdict, verdicts(&raised)), (XDP_REDIRECT, vec!["xdp_forwarded_l2"]), "{inner:?}");
        assert_eq!((&out[..6], &out[6..12]), (&HOSTS[0].mac[..], &HERE_MAC[..]), "{inner:?}");
        assert_eq!(out[12..14], inner.ethertype());
        assert_eq!(out[14..], inner.packet_after_hop(), "{inner:?}");
    }
}

#[test]
fn packets_leave_in_ip_or_gue_with_right_outer_headers_and_checksums() {
    let mut kernel = Kernel::load();
    for over_v4 in [true, false] {
        for (forward, counter) in [(FORWARD_IPIP, "xdp_forwarded_ipip"), (FORWARD_GUE, "xdp_forwarded_gue")] {
            kernel.forward_to(1, forward, over_v4);
            for inner in inners() {
                let (verdict, out, raised) = kernel.run(&inner.frame());
                let what = format!("over IPv{}, {counter}: {inner:?}", if over_v4 { 4 } else { 6 });
                assert_eq!((verdict, verdicts(&raised)), (XDP_REDIRECT, vec![counter]), "{what}");
                assert_eq!((&out[..6], &out[6..12]), (&HOSTS[1].mac[..], &HERE_MAC[..]), "{what}");
                let packet = inner.packet_after_hop();
                let protocol = if inner.is_v4 { 4 } else { 41 };
                let (rest, outer_protocol) = outer(&out, over_v4, &what);
                let rest = if forward == FORWARD_GUE {
                    assert_eq!(outer_protocol, 17, "{what}");
                    let port = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
                    assert!(port(0) >= 0xc000, "{what}: a source port in the dynamic range");
                    assert_eq!((port(2), usize::from(port(4)), port(6)), (GUE_PORT, rest.len(), 0), "{what}");
                    assert_eq!(rest[8..12], [0, protocol, 0, 0], "{what}: GUE variant 0");
                    &rest[12..]
                } else {
                    assert_eq!(outer_protocol, protocol, "{what}");
                    rest
                };
                assert_eq!(rest, packet, "{what}");
            }
        }
    }
}

/// Checks the outer IP header; what follows it, and the protocol it names.
fn outer<'a>(out: &'a [u8], over_v4: bool, what: &str) -> (&'a [u8], u8) {
    if over_v4 {
        assert_eq!(out[12..14], [8, 0], "{what}");
        let (header, rest) = out[14..].split_at(20);
        assert_eq!(header[0], 0x45, "{what}");
        assert_eq!(usize::from(u16::from_be_bytes([header[2], header[3]])), 20 + rest.len(), "{what}: total length");
        assert_eq!((header[6], header[7], header[8]), (0x40, 0, 64), "{what}: don't fragment, 64 hops");
        assert_eq!(internet_checksum(header), 0, "{what}: header checksum");
        assert_eq!((&header[12..16], &header[16..20]), (&HERE_V4[..], &HOSTS[1].v4[..]), "{what}");
        (rest, header[9])
    } else {
        assert_eq!(out[12..14], [0x86, 0xdd], "{what}");
        let (header, rest) = out[14..].split_at(40);
        assert_eq!(header[0] >> 4, 6, "{what}");
        assert_eq!(usize::from(u16::from_be_bytes([header[4], header[5]])), rest.len(), "{what}: payload length");
        assert_eq!(header[7], 64, "{what}");
        assert_eq!((&header[8..24], &header[24..40]), (&v6(1)[..], &v6(HOSTS[1].v6)[..]), "{what}");
        (rest, header[6])
    }
}

#[test]
fn a_clients_fragments_follow_the_first_and_foreign_ones_pass() {
    let mut kernel = Kernel::load();
    kernel.forward_to(0, FORWARD_L2, true);
    for is_v4 in [true, false] {
        for kind in [wire::Kind::Udp(64), wire::Kind::TcpData(0x10, 64)] {
            let part = |offset, more| Inner { is_v4, kind, fragment: Some((7, offset, more)), ..Inner::default() };
            let early = Inner { fragment: Some((8, 64, false)), ..part(0, true) };
            assert_eq!(kernel.run(&early.frame()).2, ["xdp_fragment"], "before its first: the kernel's");
            for fragment in [part(0, true), part(64, true), part(128, false)] {
                assert_eq!(kernel.host_of(&fragment.frame()), Some(0), "{fragment:?}");
            }
        }
    }
}

#[test]
fn a_packet_too_big_for_the_tunnel_is_answered_with_the_size_that_fits() {
    let mut kernel = Kernel::load();
    for (forward, over_v4, added) in
        [(FORWARD_IPIP, true, 20), (FORWARD_IPIP, false, 40), (FORWARD_GUE, true, 32), (FORWARD_GUE, false, 52)]
    {
        kernel.forward_to(0, forward, over_v4);
        for is_v4 in [true, false] {
            for vlans in [0, 1, 2] {
                let header = if is_v4 { 20 } else { 40 };
                let of_size = |size: usize| Inner {
                    is_v4,
                    vlans,
                    kind: wire::Kind::TcpData(0x18, size - header - 20),
                    ..Inner::default()
                };
                assert_eq!(kernel.run(&of_size(MTU - added).frame()).0, XDP_REDIRECT, "the largest that fits");
                let big = of_size(MTU - added + 1);
                let (verdict, out, raised) = kernel.run(&big.frame());
                assert_eq!((verdict, raised.as_slice()), (XDP_TX, &["xdp_too_big"][..]), "{big:?}");
                wire::assert_answers_too_big(&big, &out, MTU - added);
            }
        }
    }
}

#[test]
fn no_way_no_neighbour_and_no_hop_left_are_drops_that_are_counted() {
    let mut kernel = Kernel::load();
    let id = kernel.forward_to(0, FORWARD_IPIP, true);
    let syn = Inner::default();
    let away = |address| Backend {
        address: Addr::v4(address),
        source: Addr::v4(HERE_V4),
        id,
        forward: FORWARD_IPIP,
        ..Backend::default()
    };
    let spent = Inner { hops: 1, ..Inner::default() };
    assert_eq!(kernel.run(&spent.frame()), (XDP_DROP, spent.frame(), vec!["xdp_ttl"]));
    // Another id: ways are remembered by id.
    let next = BackendId::new(1, 9);
    for (address, counter) in [([10, 9, 0, 99], "xdp_no_neighbour"), ([192, 0, 2, 99], "xdp_no_route")] {
        kernel.set_backend(Backend { id: next, ..away(address) });
        kernel.set_ring(next, BackendId::NONE);
        let (verdict, _, raised) = kernel.run(&syn.frame());
        assert_eq!((verdict, raised), (XDP_DROP, vec![counter]));
    }
}

#[test]
fn a_host_that_changes_its_link_address_is_followed_in_bounded_time() {
    let mut kernel = Kernel::load();
    kernel.forward_to(0, FORWARD_L2, true);
    let ack = Inner { kind: wire::Kind::Tcp(0x10), ..Inner::default() }.frame();
    assert_eq!(kernel.host_of(&ack), Some(0));
    let [a, b, c, d] = HOSTS[0].v4;
    let host = format!("{a}.{b}.{c}.{d}");
    let other = mac(HOSTS[1].mac);
    kernel.namespace.ip(&["neigh", "replace", &host, "lladdr", &other, "dev", "eth0", "nud", "permanent"]);
    // The bound of a kernel that ticks most slowly, and some milliseconds.
    std::thread::sleep(Duration::from_millis(ROUTE_TICKS * 1_000 / 100 + 50));
    assert_eq!(kernel.host_of(&ack), Some(1), "the address that the host has now");
}

#[test]
fn packets_of_a_service_without_a_live_backend_pass_untouched() {
    let mut kernel = Kernel::load();
    let id = kernel.forward_to(0, FORWARD_IPIP, true);
    for ring in [BackendId::NONE, BackendId::new(id.index(), 2)] {
        kernel.set_ring(ring, BackendId::NONE);
        for inner in inners() {
            let frame = inner.frame();
            let (verdict, out, _) = kernel.run(&frame);
            assert_eq!((verdict, out), (XDP_PASS, frame), "{inner:?}");
        }
    }
}

#[test]
fn while_a_slot_changes_hands_open_flows_stay_and_new_clients_go_to_the_new_owner() {
    let mut kernel = Kernel::load();
    let old = kernel.enlist(0, FORWARD_IPIP, true);
    let new = kernel.enlist(1, FORWARD_IPIP, true);
    kernel.set_ring(new, old);
    let packet = |client: u8, flags: u8| Inner { client, kind: wire::Kind::Tcp(flags), ..Inner::default() }.frame();
    let (syn, ack) = (0x02, 0x10);
    assert_eq!(kernel.host_of(&packet(1, ack)), Some(0), "an open flow: its client was there before");
    assert_eq!(kernel.host_of(&packet(1, syn)), Some(0), "and is bound now: so is its next connection");
    assert_eq!(kernel.host_of(&packet(2, syn)), Some(1), "a new client");
    assert_eq!(kernel.host_of(&packet(2, ack)), Some(1), "goes on where it opened");
    assert_eq!(kernel.host_of(&packet(2, syn)), Some(1));
    // Back again before the transition has ended: everybody stays where they are bound.
    kernel.set_ring(old, new);
    assert_eq!(kernel.host_of(&packet(1, ack)), Some(0));
    assert_eq!(kernel.host_of(&packet(2, ack)), Some(1));
    assert_eq!(kernel.host_of(&packet(2, syn)), Some(1));
    // The transition ends: the ring alone decides.
    kernel.set_ring(new, BackendId::NONE);
    assert_eq!(kernel.host_of(&packet(1, syn)), Some(1));
}

#[test]
fn a_client_is_bound_with_the_first_data_after_it_opened_and_by_nothing_else() {
    let mut kernel = Kernel::load();
    kernel.forward_to(0, FORWARD_L2, true);
    let packet = |client: u8, flags: u8| Inner { client, kind: wire::Kind::Tcp(flags), ..Inner::default() }.frame();
    let (syn, ack, data) = (0x02, 0x10, 0x18);
    for (flags, bound) in [(data, 0), (ack, 0), (syn, 0), (ack, 0), (data, 1), (data, 1), (syn, 1)] {
        kernel.run(&packet(1, flags));
        assert_eq!(kernel.bindings().keys().count(), bound, "after flags {flags:#x}");
    }
}

#[test]
fn table_full_the_longest_idle_bindings_are_forgotten_and_the_latest_are_kept() {
    const ROOM: u32 = 2_048;
    // What a processor has written last is on a list of its own until it writes again (Linux: kernel/bpf/bpf_lru_list.c): a test
    // that goes from one to another leaves old ones there.
    let mut one = CpuSet::new();
    one.set(sched_getcpu());
    sched_setaffinity(None, &one).expect("a thread may stay where it is");
    let mut kernel = Kernel::load_with(ROOM);
    let old = kernel.enlist(0, FORWARD_IPIP, true);
    let new = kernel.enlist(1, FORWARD_IPIP, true);
    kernel.set_ring(new, old);
    let clients = 3 * ROOM;
    let address = |client: u32| [11, 0, (client >> 8) as u8, client as u8];
    for client in 0..clients {
        let ack = wire::Kind::Tcp(0x10);
        let frame = Inner { client_v4: Some(address(client)), kind: ack, ..Inner::default() }.frame();
        assert_eq!(kernel.host_of(&frame), Some(0), "who was there before stays, also while the table is full");
    }
    let bindings = kernel.bindings();
    let is_bound = |client: u32| {
        let key = BindingKey { client: Addr::v4(address(client)), app: 0, reserved: 0 };
        bindings.get(&Wire(key), 0).is_ok()
    };
    let kept = |clients: std::ops::Range<u32>| clients.filter(|&client| is_bound(client)).count();
    assert!(bindings.keys().count() <= ROOM as usize);
    assert_eq!(kept(clients - 64..clients), 64, "the latest");
    assert_eq!(kept(0..64), 0, "the oldest");
}

#[test]
fn a_flood_of_syns_writes_no_binding_and_moves_nobody() {
    let mut kernel = Kernel::load();
    let old = kernel.enlist(0, FORWARD_IPIP, true);
    let new = kernel.enlist(1, FORWARD_IPIP, true);
    kernel.set_ring(new, old);
    let packet = |address: [u8; 4], flags: u8| {
        Inner { client_v4: Some(address), kind: wire::Kind::Tcp(flags), ..Inner::default() }.frame()
    };
    let resident = [198, 51, 100, 1];
    assert_eq!(kernel.host_of(&packet(resident, 0x10)), Some(0));
    // More addresses than the table of those who are just opening holds.
    let program_runs = 70_000_u32;
    for address in 0..program_runs {
        let [_, b, c, d] = address.to_be_bytes();
        let frame = packet([11, b, c, d], 0x02);
        let program: &mut Xdp = kernel.ebpf.program_mut("homing_xdp").expect("a program").try_into().expect("its type");
        program.test_run(TestRunOptions { data_in: Some(&frame), ..Default::default() }).expect("a test run");
    }
    assert_eq!(kernel.bindings().keys().count(), 1, "only the resident is bound");
    assert_eq!(kernel.host_of(&packet(resident, 0x10)), Some(0), "and stays");
    assert_eq!(kernel.host_of(&packet(resident, 0x02)), Some(0));
}
