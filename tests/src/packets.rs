//! One table of packets for user space and kernel: what each is, and what both must say of it.

use lb_common::abi::Counter;
use lb_common::addr::Addr;
use lb_common::parse::{self, Fragment, FragmentId, Frame, Segment, TCP_ACK, TCP_RST, TCP_SYN};

/// The service that the fixtures speak to: an address of its own, on both families.
pub const PORT: u16 = 8080;
pub const V4: [u8; 4] = [10, 9, 0, 1];
pub const V6: [u8; 16] = [0xfd, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
pub const CLIENT_V4: [u8; 4] = [10, 9, 0, 7];
const CLIENT_V6: [u8; 16] = [0xfd, 0, 0, 9, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 9];
const CLIENT_PORT: u16 = 40_000;

const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const UDP: u8 = 17;
const TCP: u8 = 6;
/// What the fragments of the fixtures' one IPv4 packet share: its identification, and its protocol.
const V4_ID: u32 = 1 | ((TCP as u32) << 16);

/// A packet and what is expected of it.
pub struct Fixture {
    pub name: String,
    pub bytes: Vec<u8>,
    pub frame: Frame,
    /// The one counter that the XDP program raises.
    pub counter: Counter,
}

/// The names of the counters that went up by one.
pub fn raised(before: &[u64], after: &[u64]) -> Vec<&'static str> {
    let counters = Counter::ALL.iter().zip(before.iter().zip(after));
    counters.filter(|(_, (before, after))| **after == **before + 1).map(|(counter, _)| counter.name()).collect()
}

/// Every fixture is read alike in user space and by a loaded program. `run` gives verdict, bytes and [`raised`].
pub fn check_fixtures(mut run: impl FnMut(&[u8]) -> (u32, Vec<u8>, Vec<&'static str>)) {
    const XDP_PASS: u32 = 2;
    let fixtures = fixtures();
    assert!(fixtures.len() >= 150, "{} fixtures", fixtures.len());
    for Fixture { name, bytes, frame, counter } in &fixtures {
        assert_eq!(parse::parse(bytes.as_slice()), *frame, "user space reads: {name}");
        let (verdict, out, raised) = run(bytes);
        assert_eq!(verdict, XDP_PASS, "a packet to a local worker or to others passes: {name}");
        assert_eq!(raised, [counter.name()], "the kernel counts: {name}");
        assert!(out == *bytes, "the packet is left as it was: {name}");
    }
}

/// All fixtures.
pub fn fixtures() -> Vec<Fixture> {
    let mut all = Vec::new();
    for family in [Family::V4, Family::V6] {
        segments(&mut all, family);
        extended(&mut all, family);
        icmp_errors(&mut all, family);
    }
    ipv4_only(&mut all);
    ipv6_only(&mut all);
    foreign(&mut all);
    truncated(&mut all);
    all
}

#[derive(Clone, Copy, PartialEq)]
enum Family {
    V4,
    V6,
}

/// A frame in the making: link header, network header, extension headers, transport header, payload.
#[derive(Clone)]
struct Packet {
    family: Family,
    /// (TPID, VLAN id) outermost first.
    vlans: Vec<(u16, u16)>,
    /// IPv4 options, a multiple of four bytes.
    options: Vec<u8>,
    /// IPv6 extension headers: (type, header bytes after the next-header byte).
    extensions: Vec<(u8, Vec<u8>)>,
    /// IPv4 flags and fragment offset.
    fragment: u16,
    protocol: u8,
    destination: Option<[u8; 4]>,
    port: u16,
    flags: u8,
    payload: Vec<u8>,
    /// In place of a TCP or UDP header.
    raw: Option<Vec<u8>>,
}

impl Packet {
    fn new(family: Family, flags: u8) -> Self {
        Self {
            family,
            vlans: Vec::new(),
            options: Vec::new(),
            extensions: Vec::new(),
            fragment: 0,
            protocol: TCP,
            destination: None,
            port: PORT,
            flags,
            payload: Vec::new(),
            raw: None,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        for (tpid, id) in &self.vlans {
            frame.extend(tpid.to_be_bytes());
            frame.extend(id.to_be_bytes());
        }
        let transport = self.transport();
        match self.family {
            Family::V4 => {
                frame.extend(0x0800_u16.to_be_bytes());
                let header_len = 20 + self.options.len();
                frame.push(0x40 | (header_len / 4) as u8);
                frame.push(0);
                frame.extend(((header_len + transport.len()) as u16).to_be_bytes());
                frame.extend([0, 1]);
                frame.extend(self.fragment.to_be_bytes());
                frame.extend([64, self.protocol, 0, 0]);
                frame.extend(CLIENT_V4);
                frame.extend(self.destination.unwrap_or(V4));
                frame.extend(&self.options);
            }
            Family::V6 => {
                frame.extend(0x86dd_u16.to_be_bytes());
                let extensions_len: usize = self.extensions.iter().map(|(_, bytes)| bytes.len() + 1).sum();
                frame.extend([0x60, 0, 0, 0]);
                frame.extend(((extensions_len + transport.len()) as u16).to_be_bytes());
                frame.push(self.extensions.first().map_or(self.protocol, |(kind, _)| *kind));
                frame.push(64);
                frame.extend(CLIENT_V6);
                frame.extend(V6);
                for (position, (_, bytes)) in self.extensions.iter().enumerate() {
                    frame.push(self.extensions.get(position + 1).map_or(self.protocol, |(kind, _)| *kind));
                    frame.extend(bytes);
                }
            }
        }
        frame.extend(transport);
        frame
    }

    fn transport(&self) -> Vec<u8> {
        if let Some(raw) = &self.raw {
            return raw.clone();
        }
        let mut header = Vec::new();
        header.extend(CLIENT_PORT.to_be_bytes());
        header.extend(self.port.to_be_bytes());
        if self.protocol == TCP {
            header.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        } else {
            header.extend([0, 8, 0, 0]);
        }
        header.extend(&self.payload);
        header
    }

    fn segment(&self) -> Frame {
        let (source, destination) = match self.family {
            Family::V4 => (Addr::v4(CLIENT_V4), Addr::v4(self.destination.unwrap_or(V4))),
            Family::V6 => (Addr::v6(CLIENT_V6), Addr::v6(V6)),
        };
        let segment = Segment {
            source,
            destination,
            source_port: CLIENT_PORT,
            destination_port: self.port,
            protocol: self.protocol,
            flags: self.flags,
            network: self.network(),
            fragment: FragmentId::NONE,
        };
        if self.protocol == TCP { Frame::Tcp(segment) } else { Frame::Udp(segment) }
    }

    /// Where the IP header begins.
    fn network(&self) -> u16 {
        14 + 4 * self.vlans.len() as u16
    }

    /// The segment as the first of several fragments.
    fn first_fragment(&self, id: u32) -> Frame {
        match self.segment() {
            Frame::Tcp(segment) => Frame::Tcp(Segment { fragment: FragmentId::new(id), ..segment }),
            other => other,
        }
    }

    fn later_fragment(&self, id: u32) -> Frame {
        match self.segment() {
            Frame::Tcp(Segment { source, destination, network, .. }) => {
                Frame::LaterFragment(Fragment { source, destination, id, network })
            }
            other => other,
        }
    }
}

fn push(all: &mut Vec<Fixture>, name: impl Into<String>, packet: &Packet, frame: Frame, counter: Counter) {
    all.push(Fixture { name: name.into(), bytes: packet.bytes(), frame, counter });
}

fn family_name(family: Family) -> &'static str {
    if family == Family::V4 { "IPv4" } else { "IPv6" }
}

fn segments(all: &mut Vec<Fixture>, family: Family) {
    let ip = family_name(family);
    let cases = [
        ("SYN goes to the ring's worker", TCP_SYN, Counter::XdpSynWorker),
        ("SYN with ECN setup (RFC 3168) opens a connection", TCP_SYN | 0xc0, Counter::XdpSynWorker),
        ("SYN+ACK opens nothing", TCP_SYN | TCP_ACK, Counter::XdpEstablished),
        ("SYN+RST opens nothing", TCP_SYN | TCP_RST, Counter::XdpEstablished),
        ("ACK is established", TCP_ACK, Counter::XdpEstablished),
        ("data is established", TCP_ACK | TCP_PSH, Counter::XdpEstablished),
        ("FIN is established", TCP_ACK | TCP_FIN, Counter::XdpEstablished),
        ("RST is established", TCP_RST, Counter::XdpEstablished),
        ("no flags at all opens nothing", 0, Counter::XdpEstablished),
    ];
    for (name, flags, counter) in cases {
        let packet = Packet::new(family, flags);
        push(all, format!("{ip}: {name}"), &packet, packet.segment(), counter);
    }
    let with_data = Packet { payload: vec![0x41; 1_200], ..Packet::new(family, TCP_SYN) };
    push(all, format!("{ip}: SYN with data (RFC 7413) opens"), &with_data, with_data.segment(), Counter::XdpSynWorker);
    for port in [0, PORT - 1, PORT + 1, u16::MAX] {
        let packet = Packet { port, ..Packet::new(family, TCP_SYN) };
        push(all, format!("{ip}: port {port} is not ours"), &packet, packet.segment(), Counter::XdpNotOurs);
    }
    let udp = Packet { protocol: UDP, ..Packet::new(family, 0) };
    push(all, format!("{ip}: UDP on the service's port is not ours"), &udp, udp.segment(), Counter::XdpNotOurs);
    let sctp = Packet { protocol: 132, ..Packet::new(family, 0) };
    push(all, format!("{ip}: SCTP is not ours"), &sctp, Frame::Other, Counter::XdpNotOurs);
}

/// Errors about packets that the service sent: the quoted packet goes the other way.
fn icmp_errors(all: &mut Vec<Fixture>, family: Family) {
    let ip = family_name(family);
    let (protocol, kinds, other): (u8, &[u8], u8) = match family {
        Family::V4 => (1, &[3, 11, 12], 8),
        Family::V6 => (58, &[1, 2, 3, 4], 128),
    };
    let icmp = |kind: u8, quoted: &[u8]| Packet {
        raw: Some([&[kind, 0, 0, 0, 0, 0, 0, 0], quoted].concat()),
        protocol,
        ..Packet::new(family, 0)
    };
    let quoted = answer(family, PORT);
    let Frame::Tcp(segment) = Packet::new(family, 0).segment() else { unreachable!("a TCP packet") };
    for kind in kinds {
        let packet = icmp(*kind, &quoted);
        push(
            all,
            format!("{ip}: ICMP error {kind} is its flow's"),
            &packet,
            Frame::IcmpError(segment),
            Counter::XdpIcmp,
        );
    }
    let elsewhere = icmp(kinds[0], &answer(family, PORT + 1));
    let other_flow = Frame::IcmpError(Segment { destination_port: PORT + 1, ..segment });
    push(all, format!("{ip}: ICMP error of another service"), &elsewhere, other_flow, Counter::XdpNotOurs);
    let echo = icmp(other, &quoted);
    push(all, format!("{ip}: an echo request is not ours"), &echo, Frame::Other, Counter::XdpNotOurs);
    let cut = icmp(kinds[0], &quoted[..quoted.len() - 8]);
    push(all, format!("{ip}: ICMP error without the ports"), &cut, Frame::Truncated, Counter::XdpTruncated);
    let mut ping = quoted.clone();
    ping[if family == Family::V4 { 9 } else { 6 }] = protocol;
    let about_ping = icmp(kinds[0], &ping);
    push(all, format!("{ip}: ICMP error about a ping"), &about_ping, Frame::Other, Counter::XdpNotOurs);
}

/// The first bytes of a packet from the service to the client.
fn answer(family: Family, port: u16) -> Vec<u8> {
    let mut packet = match family {
        Family::V4 => [&[0x45, 0, 0, 40, 0, 9, 0x40, 0, 64, TCP, 0, 0], &V4[..], &CLIENT_V4[..]].concat(),
        Family::V6 => [&[0x60, 0, 0, 0, 0, 20, TCP, 64], &V6[..], &CLIENT_V6[..]].concat(),
    };
    packet.extend(port.to_be_bytes());
    packet.extend(CLIENT_PORT.to_be_bytes());
    packet.extend([0; 4]);
    packet
}

/// VLAN tags around either family.
fn extended(all: &mut Vec<Fixture>, family: Family) {
    let ip = family_name(family);
    let tagged = |vlans: &[(u16, u16)]| Packet { vlans: vlans.to_vec(), ..Packet::new(family, TCP_SYN) };
    let one = tagged(&[(0x8100, 5)]);
    push(all, format!("{ip}: one VLAN tag"), &one, one.segment(), Counter::XdpSynWorker);
    let priority = tagged(&[(0x8100, 0xe000)]);
    push(all, format!("{ip}: a priority tag"), &priority, priority.segment(), Counter::XdpSynWorker);
    let two = tagged(&[(0x88a8, 5), (0x8100, 6)]);
    push(all, format!("{ip}: QinQ"), &two, two.segment(), Counter::XdpSynWorker);
    let three = tagged(&[(0x88a8, 5), (0x8100, 6), (0x8100, 7)]);
    push(all, format!("{ip}: three tags are left alone"), &three, Frame::Other, Counter::XdpNotOurs);
}

fn ipv4_only(all: &mut Vec<Fixture>) {
    for words in [1, 5, 10] {
        let packet = Packet { options: vec![1; words * 4], ..Packet::new(Family::V4, TCP_SYN) };
        push(all, format!("IPv4: {words} words of options"), &packet, packet.segment(), Counter::XdpSynWorker);
    }
    let dont_fragment = Packet { fragment: 0x4000, ..Packet::new(Family::V4, TCP_SYN) };
    push(all, "IPv4: don't fragment", &dont_fragment, dont_fragment.segment(), Counter::XdpSynWorker);
    let first = Packet { fragment: 0x2000, ..Packet::new(Family::V4, TCP_SYN) };
    push(all, "IPv4: first fragment has its ports", &first, first.first_fragment(V4_ID), Counter::XdpSynWorker);
    for offset in [1, 0x1fff] {
        let packet = Packet { fragment: offset, ..Packet::new(Family::V4, TCP_SYN) };
        push(all, format!("IPv4: fragment at {offset}"), &packet, packet.later_fragment(V4_ID), Counter::XdpFragment);
    }
    let elsewhere = Packet { destination: Some([10, 9, 0, 2]), ..Packet::new(Family::V4, TCP_SYN) };
    push(all, "IPv4: another address is not ours", &elsewhere, elsewhere.segment(), Counter::XdpNotOurs);
    let mut wrong = Packet::new(Family::V4, TCP_SYN).bytes();
    wrong[14] = 0x65;
    all.push(bytes("IPv4: version 6 under the IPv4 ethertype", wrong.clone(), Frame::Other, Counter::XdpNotOurs));
    wrong[14] = 0x44;
    all.push(bytes("IPv4: a header shorter than 20 bytes", wrong, Frame::Other, Counter::XdpNotOurs));
}

fn ipv6_only(all: &mut Vec<Fixture>) {
    let with =
        |extensions: &[(u8, Vec<u8>)]| Packet { extensions: extensions.to_vec(), ..Packet::new(Family::V6, TCP_SYN) };
    let options =
        |units: u8| (0..7 + 8 * usize::from(units)).map(|n| if n == 0 { units } else { 0 }).collect::<Vec<u8>>();
    for (name, kind) in [("hop-by-hop", 0_u8), ("routing", 43), ("destination options", 60)] {
        for units in [0, 2] {
            let packet = with(&[(kind, options(units))]);
            push(all, format!("IPv6: {name} of {units} units"), &packet, packet.segment(), Counter::XdpSynWorker);
        }
    }
    let authentication = with(&[(51, [vec![4], vec![0; 22]].concat())]);
    push(all, "IPv6: authentication header", &authentication, authentication.segment(), Counter::XdpSynWorker);
    let chain = with(&[(0, options(0)), (60, options(1)), (43, options(0)), (44, vec![0, 0, 0, 0, 0, 0, 1])]);
    push(all, "IPv6: a chain of four headers", &chain, chain.segment(), Counter::XdpSynWorker);
    let six = with(&vec![(60, options(0)); 6]);
    push(all, "IPv6: six extension headers are followed", &six, six.segment(), Counter::XdpSynWorker);
    let seven = with(&vec![(60, options(0)); 7]);
    push(all, "IPv6: seven are left alone", &seven, Frame::Other, Counter::XdpNotOurs);
    let first = with(&[(44, vec![0, 0, 1, 0, 0, 0, 1])]);
    push(all, "IPv6: first fragment has its ports", &first, first.first_fragment(1), Counter::XdpSynWorker);
    let later = with(&[(44, vec![0, 0, 8, 0, 0, 0, 1])]);
    push(all, "IPv6: later fragment", &later, later.later_fragment(1), Counter::XdpFragment);
    let unknown = with(&[(135, options(0))]);
    push(all, "IPv6: a mobility header is left alone", &unknown, Frame::Other, Counter::XdpNotOurs);
    let mut wrong = Packet::new(Family::V6, TCP_SYN).bytes();
    wrong[14] = 0x40;
    all.push(bytes("IPv6: version 4 under the IPv6 ethertype", wrong, Frame::Other, Counter::XdpNotOurs));
}

fn foreign(all: &mut Vec<Fixture>) {
    for (name, ethertype) in [("ARP", 0x0806_u16), ("LLDP", 0x88cc), ("MPLS", 0x8847), ("PPPoE", 0x8864)] {
        let mut frame = vec![0xff; 12];
        frame.extend(ethertype.to_be_bytes());
        frame.extend([0; 46]);
        all.push(bytes(format!("{name} is not ours"), frame, Frame::Other, Counter::XdpNotOurs));
    }
}

/// The kernel's test run takes no frame shorter than an Ethernet header.
const SHORTEST: usize = 14;

/// Every proper prefix of a packet is truncated, unless what is missing was not read.
fn truncated(all: &mut Vec<Fixture>) {
    let tagged_v6 = Packet { vlans: vec![(0x8100, 5)], ..Packet::new(Family::V6, TCP_SYN) };
    for (name, packet) in [("IPv4", Packet::new(Family::V4, TCP_SYN)), ("IPv6 with a VLAN tag", tagged_v6)] {
        let whole = packet.bytes();
        // The flags are the last byte that decides: byte 13 of the 20 of TCP.
        let decided = whole.len() - 20 + 14;
        for len in SHORTEST..whole.len() {
            let (frame, counter) = if len >= decided {
                (packet.segment(), Counter::XdpSynWorker)
            } else {
                (Frame::Truncated, Counter::XdpTruncated)
            };
            all.push(bytes(format!("{name}: cut after {len} bytes"), whole[..len].to_vec(), frame, counter));
        }
    }
}

fn bytes(name: impl Into<String>, bytes: Vec<u8>, frame: Frame, counter: Counter) -> Fixture {
    Fixture { name: name.into(), bytes, frame, counter }
}
