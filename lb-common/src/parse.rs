//! An Ethernet frame, parsed once into what the datapath decides on.
//!
//! Every read is checked through [`Packet`], so the same code passes the kernel's verifier and runs over slices in
//! tests. What cannot be a service's packet is said so early; nothing is ever altered here.

use crate::abi::{PROTO_TCP, PROTO_UDP};
use crate::addr::Addr;

/// Bytes that may end anywhere. `read` returns `None` past the end, never a part.
pub trait Packet {
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// The same bytes whatever they are, as the fields that a plain IPv4 packet has there. For who reads numbers in one
    /// piece.
    #[inline(always)]
    fn head(&self) -> Option<Head> {
        self.read(0).map(|bytes| Head::of(&bytes))
    }
}

/// Where a frame has what, if it is a plain IPv4 packet's: no tags, no options. Numbers in host byte order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    pub ethertype: u16,
    pub version_and_len: u8,
    pub fragment: u16,
    pub protocol: u8,
    pub source: u32,
    pub destination: u32,
    pub source_port: u16,
    pub destination_port: u16,
    /// TCP's; of a datagram some byte.
    pub flags: u8,
}

impl Head {
    /// Where the IP header begins.
    pub const NETWORK: usize = ETHERNET_LEN;
    /// Bytes up to TCP's flags, so that one look at the frame's length is enough.
    pub const LEN: usize = ETHERNET_LEN + IPV4_MIN_LEN + 14;
    pub const ETHERTYPE: usize = 12;
    pub const VERSION: usize = ETHERNET_LEN;
    pub const FRAGMENT: usize = ETHERNET_LEN + 6;
    pub const PROTOCOL: usize = ETHERNET_LEN + 9;
    pub const SOURCE: usize = ETHERNET_LEN + 12;
    pub const DESTINATION: usize = ETHERNET_LEN + 16;
    pub const SOURCE_PORT: usize = ETHERNET_LEN + IPV4_MIN_LEN;
    pub const DESTINATION_PORT: usize = Self::SOURCE_PORT + 2;
    pub const FLAGS: usize = Self::SOURCE_PORT + 13;

    #[inline(always)]
    const fn of(bytes: &[u8; Self::LEN]) -> Self {
        const fn short(bytes: &[u8; Head::LEN], at: usize) -> u16 {
            u16::from_be_bytes([bytes[at], bytes[at + 1]])
        }
        const fn long(bytes: &[u8; Head::LEN], at: usize) -> u32 {
            u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        }
        Self {
            ethertype: short(bytes, Self::ETHERTYPE),
            version_and_len: bytes[Self::VERSION],
            fragment: short(bytes, Self::FRAGMENT),
            protocol: bytes[Self::PROTOCOL],
            source: long(bytes, Self::SOURCE),
            destination: long(bytes, Self::DESTINATION),
            source_port: short(bytes, Self::SOURCE_PORT),
            destination_port: short(bytes, Self::DESTINATION_PORT),
            flags: bytes[Self::FLAGS],
        }
    }

    /// IPv4 without options, and whole.
    #[inline(always)]
    pub const fn is_plain(&self) -> bool {
        self.ethertype == ETHERTYPE_IPV4
            && self.version_and_len == IPV4_PLAIN
            && self.fragment & (IPV4_FRAGMENT_OFFSET | IPV4_MORE_FRAGMENTS) == 0
    }
}

impl Packet for [u8] {
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk().copied()
    }
}

/// What a frame is to the datapath.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Frame {
    Tcp(Segment),
    Udp(Segment),
    /// A fragment after the first: its ports are in another packet.
    LaterFragment(Fragment),
    /// An ICMP or ICMPv6 error about a packet of the flow given, as the flow's client would have sent it: the quoted
    /// packet went the other way.
    IcmpError(Segment),
    /// Not IP, neither TCP nor UDP nor an ICMP error, or headers past what we follow.
    Other,
    /// Shorter than its own headers say.
    Truncated,
}

/// A packet whose ports are known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    pub source: Addr,
    pub destination: Addr,
    /// Host byte order.
    pub source_port: u16,
    /// Host byte order.
    pub destination_port: u16,
    /// [`PROTO_TCP`] or [`PROTO_UDP`].
    pub protocol: u8,
    /// Byte 13 of the TCP header (RFC 9293 section 3.1); 0 for UDP.
    pub flags: u8,
    /// Where the frame's own IP header begins.
    pub network: u16,
    /// Whether it is the first of several fragments.
    pub fragment: FragmentId,
}

/// What the fragments of one packet have in common. No `Option`: its unused half is undefined, and the kernel's verifier
/// refuses to see such bytes moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FragmentId(u64);

impl FragmentId {
    /// The packet is whole.
    pub const NONE: Self = Self(0);

    #[inline(always)]
    pub const fn new(id: u32) -> Self {
        Self((1 << 32) | id as u64)
    }

    /// `None` for a packet that is whole.
    #[inline(always)]
    pub const fn get(self) -> Option<u32> {
        if self.0 == 0 { None } else { Some(self.0 as u32) }
    }
}

/// What the fragments of one packet share (RFC 791 section 2.3, RFC 8200 section 4.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fragment {
    pub source: Addr,
    pub destination: Addr,
    pub id: u32,
    /// Where the frame's IP header begins.
    pub network: u16,
}

impl Segment {
    /// Opens a connection: SYN without ACK or RST.
    #[inline(always)]
    pub const fn is_syn(&self) -> bool {
        is_syn(self.flags)
    }
}

pub const TCP_SYN: u8 = 0x02;
pub const TCP_RST: u8 = 0x04;
pub const TCP_PSH: u8 = 0x08;
pub const TCP_ACK: u8 = 0x10;

const ETHERNET_LEN: usize = 14;
const VLAN_LEN: usize = 4;
/// VLAN tags followed: one 802.1Q, or two with 802.1ad (QinQ).
const VLAN_TAGS_MAX: usize = 2;
/// IPv6 extension headers followed before a packet is left alone.
const EXTENSIONS_MAX: usize = 6;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;

const IPV4_MIN_LEN: usize = 20;
const IPV4_MORE_FRAGMENTS: u16 = 0x2000;
const IPV4_FRAGMENT_OFFSET: u16 = 0x1fff;
const IPV6_LEN: usize = 40;

/// Version 4, no options.
const IPV4_PLAIN: u8 = 0x45;

const NEXT_HOP_BY_HOP: u8 = 0;
const NEXT_ICMP: u8 = 1;
const NEXT_ROUTING: u8 = 43;
const NEXT_FRAGMENT: u8 = 44;
const NEXT_AUTHENTICATION: u8 = 51;
const NEXT_ICMPV6: u8 = 58;
const NEXT_DESTINATION: u8 = 60;

/// An ICMP header before the packet that it quotes (RFC 792, RFC 4443 section 2.1).
const ICMP_LEN: usize = 8;
const ICMP_UNREACHABLE: u8 = 3;
const ICMP_TIME_EXCEEDED: u8 = 11;
const ICMP_PARAMETER: u8 = 12;
/// ICMPv6 errors: unreachable, packet too big, time exceeded, parameter problem.
const ICMPV6_ERRORS: core::ops::RangeInclusive<u8> = 1..=4;

/// What a plain packet (no tags, options, extension headers or fragments) says at first glance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Glance {
    /// Host byte order.
    pub destination_port: u16,
    /// [`PROTO_TCP`] or [`PROTO_UDP`].
    pub protocol: u8,
    /// As a [`Segment`]'s.
    pub flags: u8,
}

/// The few bytes that tell most packets from those of a service; [`parse`] says the same of them and more. `None`: not
/// so plain a packet.
#[inline(always)]
pub fn glance<P: Packet + ?Sized>(packet: &P) -> Option<Glance> {
    const IPV6_HEAD: usize = ETHERNET_LEN + IPV6_LEN + 14;
    let head = packet.head()?;
    if head.is_plain() {
        let Head { destination_port, protocol, .. } = head;
        let flags = flags(protocol, head.flags)?;
        return Some(Glance { destination_port, protocol, flags });
    }
    if head.ethertype != ETHERTYPE_IPV6 {
        return None;
    }
    let head: [u8; IPV6_HEAD] = packet.read(0)?;
    let (protocol, transport) = (head[ETHERNET_LEN + 6], ETHERNET_LEN + IPV6_LEN);
    if head[ETHERNET_LEN] >> 4 != 6 {
        return None;
    }
    let flags = flags(protocol, head[transport + 13])?;
    let destination_port = u16::from_be_bytes([head[transport + 2], head[transport + 3]]);
    Some(Glance { destination_port, protocol, flags })
}

/// `None`: neither TCP nor UDP.
#[inline(always)]
const fn flags(protocol: u8, flags: u8) -> Option<u8> {
    match protocol {
        PROTO_TCP => Some(flags),
        PROTO_UDP => Some(0),
        _ => None,
    }
}

impl Glance {
    /// As [`Segment::is_syn`].
    #[inline(always)]
    pub const fn is_syn(&self) -> bool {
        is_syn(self.flags)
    }
}

#[inline(always)]
const fn is_syn(flags: u8) -> bool {
    flags & (TCP_SYN | TCP_ACK | TCP_RST) == TCP_SYN
}

/// Parses a frame from its Ethernet header.
#[inline(always)]
pub fn parse<P: Packet + ?Sized>(packet: &P) -> Frame {
    match plain_ipv4(packet) {
        Some(frame) => frame,
        None => parse_ethernet(packet).unwrap_or(Frame::Truncated),
    }
}

/// The most common packets, read in one piece. `None`: [`parse_ethernet`] knows.
#[inline(always)]
fn plain_ipv4<P: Packet + ?Sized>(packet: &P) -> Option<Frame> {
    let head = packet.head()?;
    if !head.is_plain() {
        return None;
    }
    let segment = Segment {
        source: Addr::of_v4(head.source),
        destination: Addr::of_v4(head.destination),
        source_port: head.source_port,
        destination_port: head.destination_port,
        protocol: head.protocol,
        flags: flags(head.protocol, head.flags)?,
        network: ETHERNET_LEN as u16,
        fragment: FragmentId::NONE,
    };
    Some(if head.protocol == PROTO_TCP { Frame::Tcp(segment) } else { Frame::Udp(segment) })
}

#[inline(always)]
fn parse_ethernet<P: Packet + ?Sized>(packet: &P) -> Option<Frame> {
    let mut ethertype = u16::from_be_bytes(packet.read(12)?);
    let mut offset = ETHERNET_LEN;
    for _ in 0..VLAN_TAGS_MAX {
        if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_QINQ {
            break;
        }
        ethertype = u16::from_be_bytes(packet.read(offset + 2)?);
        offset += VLAN_LEN;
    }
    match ethertype {
        ETHERTYPE_IPV4 => parse_ipv4(packet, offset),
        ETHERTYPE_IPV6 => parse_ipv6(packet, offset),
        _ => Some(Frame::Other),
    }
}

/// RFC 791 section 3.1.
#[inline(always)]
fn parse_ipv4<P: Packet + ?Sized>(packet: &P, network: usize) -> Option<Frame> {
    let [version_ihl] = packet.read(network)?;
    let header_len = usize::from(version_ihl & 0x0f) * 4;
    if version_ihl >> 4 != 4 || header_len < IPV4_MIN_LEN {
        return Some(Frame::Other);
    }
    let [protocol] = packet.read(network + 9)?;
    if protocol != PROTO_TCP && protocol != PROTO_UDP && protocol != NEXT_ICMP {
        return Some(Frame::Other);
    }
    let fragment = u16::from_be_bytes(packet.read(network + 6)?);
    let source = Addr::v4(packet.read(network + 12)?);
    let destination = Addr::v4(packet.read(network + 16)?);
    if fragment & (IPV4_FRAGMENT_OFFSET | IPV4_MORE_FRAGMENTS) == 0 {
        if protocol == NEXT_ICMP {
            return icmp_error(packet, network, network + header_len);
        }
        return ports(packet, network, network + header_len, protocol, source, destination, FragmentId::NONE);
    }
    // Fragments of one packet are told apart from another protocol's by that protocol.
    let id = u32::from(u16::from_be_bytes(packet.read(network + 4)?)) | (u32::from(protocol) << 16);
    if fragment & IPV4_FRAGMENT_OFFSET != 0 {
        return Some(Frame::LaterFragment(Fragment { source, destination, id, network: network as u16 }));
    }
    if protocol == NEXT_ICMP {
        return Some(Frame::Other);
    }
    ports(packet, network, network + header_len, protocol, source, destination, FragmentId::new(id))
}

/// RFC 8200 sections 3 and 4.
#[inline(always)]
fn parse_ipv6<P: Packet + ?Sized>(packet: &P, network: usize) -> Option<Frame> {
    let [version, _] = packet.read(network)?;
    if version >> 4 != 6 {
        return Some(Frame::Other);
    }
    let [mut next] = packet.read(network + 6)?;
    let source = Addr::v6(packet.read(network + 8)?);
    let destination = Addr::v6(packet.read(network + 24)?);
    let mut offset = network + IPV6_LEN;
    let mut fragment = FragmentId::NONE;
    for _ in 0..=EXTENSIONS_MAX {
        let len = match next {
            PROTO_TCP | PROTO_UDP => return ports(packet, network, offset, next, source, destination, fragment),
            NEXT_HOP_BY_HOP | NEXT_ROUTING | NEXT_DESTINATION => {
                let [_, units] = packet.read(offset)?;
                (usize::from(units) + 1) * 8
            }
            // RFC 4302 section 2.2: in units of four octets, minus two.
            NEXT_AUTHENTICATION => {
                let [_, units] = packet.read(offset)?;
                (usize::from(units) + 2) * 4
            }
            NEXT_FRAGMENT => {
                let place = u16::from_be_bytes(packet.read(offset + 2)?);
                let id = u32::from_be_bytes(packet.read(offset + 4)?);
                if place & 0xfff8 != 0 {
                    return Some(Frame::LaterFragment(Fragment { source, destination, id, network: network as u16 }));
                }
                // Neither later fragments nor more to come: an atomic fragment (RFC 6946) is a whole packet.
                fragment = if place & 1 != 0 { FragmentId::new(id) } else { FragmentId::NONE };
                8
            }
            NEXT_ICMPV6 if fragment == FragmentId::NONE => return icmpv6_error(packet, network, offset),
            _ => return Some(Frame::Other),
        };
        [next] = packet.read(offset)?;
        offset += len;
    }
    Some(Frame::Other)
}

/// TCP (RFC 9293 section 3.1) or UDP (RFC 768). The first of several fragments may end before TCP's flags; its ports
/// must be there (RFC 791 section 3.2: 8 octets at least).
#[inline(always)]
fn ports<P: Packet + ?Sized>(
    packet: &P,
    network: usize,
    transport: usize,
    protocol: u8,
    source: Addr,
    destination: Addr,
    fragment: FragmentId,
) -> Option<Frame> {
    let source_port = u16::from_be_bytes(packet.read(transport)?);
    let destination_port = u16::from_be_bytes(packet.read(transport + 2)?);
    let network = network as u16;
    let segment = Segment { source, destination, source_port, destination_port, protocol, flags: 0, network, fragment };
    if protocol == PROTO_UDP {
        return Some(Frame::Udp(segment));
    }
    let flags = match packet.read(transport + 13) {
        Some([flags]) => flags,
        None if fragment != FragmentId::NONE => 0,
        None => return None,
    };
    Some(Frame::Tcp(Segment { flags, ..segment }))
}

/// RFC 792: the quoted packet has its header and 8 octets at least, which hold the ports.
#[inline(always)]
fn icmp_error<P: Packet + ?Sized>(packet: &P, network: usize, offset: usize) -> Option<Frame> {
    let [kind] = packet.read(offset)?;
    if kind != ICMP_UNREACHABLE && kind != ICMP_TIME_EXCEEDED && kind != ICMP_PARAMETER {
        return Some(Frame::Other);
    }
    let quoted = offset + ICMP_LEN;
    let [version_ihl] = packet.read(quoted)?;
    let header_len = usize::from(version_ihl & 0x0f) * 4;
    let [protocol] = packet.read(quoted + 9)?;
    let fragment = u16::from_be_bytes(packet.read(quoted + 6)?);
    if version_ihl >> 4 != 4 || header_len < IPV4_MIN_LEN || fragment & IPV4_FRAGMENT_OFFSET != 0 {
        return Some(Frame::Other);
    }
    let sender = Addr::v4(packet.read(quoted + 12)?);
    let receiver = Addr::v4(packet.read(quoted + 16)?);
    quoted_flow(packet, network, quoted + header_len, protocol, sender, receiver)
}

/// RFC 4443 section 3. Quoted packets with extension headers are left alone.
#[inline(always)]
fn icmpv6_error<P: Packet + ?Sized>(packet: &P, network: usize, offset: usize) -> Option<Frame> {
    let [kind] = packet.read(offset)?;
    if !ICMPV6_ERRORS.contains(&kind) {
        return Some(Frame::Other);
    }
    let quoted = offset + ICMP_LEN;
    let [protocol] = packet.read(quoted + 6)?;
    let sender = Addr::v6(packet.read(quoted + 8)?);
    let receiver = Addr::v6(packet.read(quoted + 24)?);
    quoted_flow(packet, network, quoted + IPV6_LEN, protocol, sender, receiver)
}

#[inline(always)]
fn quoted_flow<P: Packet + ?Sized>(
    packet: &P,
    network: usize,
    transport: usize,
    protocol: u8,
    sender: Addr,
    receiver: Addr,
) -> Option<Frame> {
    if protocol != PROTO_TCP && protocol != PROTO_UDP {
        return Some(Frame::Other);
    }
    Some(Frame::IcmpError(Segment {
        source: receiver,
        destination: sender,
        source_port: u16::from_be_bytes(packet.read(transport + 2)?),
        destination_port: u16::from_be_bytes(packet.read(transport)?),
        protocol,
        flags: 0,
        network: network as u16,
        fragment: FragmentId::NONE,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_parse_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(bytes.as_slice());
        }

        /// Bytes that look like IP exercise the deep paths that random bytes never reach.
        #[test]
        fn any_ip_like_bytes_parse_without_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 14..400),
            v6: bool,
            next in prop::sample::select(std::vec![0_u8, 1, 6, 17, 43, 44, 51, 58, 60]),
        ) {
            bytes[12..14].copy_from_slice(&if v6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 }.to_be_bytes());
            if bytes.len() > 23 {
                bytes[14] = if v6 { 0x60 } else { 0x45 };
                bytes[20] = next;
                bytes[23] = next;
            }
            let frame = parse(bytes.as_slice());
            if let Some(Glance { destination_port, protocol, flags }) = glance(bytes.as_slice()) {
                let (Frame::Tcp(segment) | Frame::Udp(segment)) = frame else { panic!("{frame:?} at second glance") };
                let said = (segment.destination_port, segment.protocol, segment.flags, segment.fragment);
                prop_assert_eq!(said, (destination_port, protocol, flags, FragmentId::NONE));
            }
        }
    }
}
