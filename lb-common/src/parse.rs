//! An Ethernet frame, parsed once into what the datapath decides on.
//!
//! Every read is checked through [`Packet`], so the same code passes the kernel's verifier and runs over slices in
//! tests. What cannot be a service's packet is said so early; nothing is ever altered here.

use crate::addr::Addr;

/// Bytes that may end anywhere. `read` returns `None` past the end, never a part.
pub trait Packet {
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;
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
    /// A fragment after the first: its ports are in another packet.
    LaterFragment,
    /// Not IP, not TCP, or headers past what we follow.
    Other,
    /// Shorter than its own headers say.
    Truncated,
}

/// A TCP segment whose ports are known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    pub source: Addr,
    pub destination: Addr,
    /// Host byte order.
    pub source_port: u16,
    /// Host byte order.
    pub destination_port: u16,
    /// Byte 13 of the TCP header (RFC 9293 section 3.1).
    pub flags: u8,
}

impl Segment {
    /// Opens a connection: SYN without ACK or RST.
    #[inline(always)]
    pub const fn is_syn(&self) -> bool {
        self.flags & (TCP_SYN | TCP_ACK | TCP_RST) == TCP_SYN
    }
}

pub const TCP_SYN: u8 = 0x02;
pub const TCP_RST: u8 = 0x04;
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

const NEXT_HOP_BY_HOP: u8 = 0;
const NEXT_TCP: u8 = 6;
const NEXT_ROUTING: u8 = 43;
const NEXT_FRAGMENT: u8 = 44;
const NEXT_AUTHENTICATION: u8 = 51;
const NEXT_DESTINATION: u8 = 60;

/// Parses a frame from its Ethernet header.
#[inline(always)]
pub fn parse<P: Packet + ?Sized>(packet: &P) -> Frame {
    parse_ethernet(packet).unwrap_or(Frame::Truncated)
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
fn parse_ipv4<P: Packet + ?Sized>(packet: &P, offset: usize) -> Option<Frame> {
    let [version_ihl] = packet.read(offset)?;
    let header_len = usize::from(version_ihl & 0x0f) * 4;
    if version_ihl >> 4 != 4 || header_len < IPV4_MIN_LEN {
        return Some(Frame::Other);
    }
    let [protocol] = packet.read(offset + 9)?;
    if protocol != NEXT_TCP {
        return Some(Frame::Other);
    }
    let fragment = u16::from_be_bytes(packet.read(offset + 6)?);
    if fragment & IPV4_FRAGMENT_OFFSET != 0 {
        return Some(Frame::LaterFragment);
    }
    let source = Addr::v4(packet.read(offset + 12)?);
    let destination = Addr::v4(packet.read(offset + 16)?);
    let first_of_many = fragment & IPV4_MORE_FRAGMENTS != 0;
    parse_tcp(packet, offset + header_len, source, destination, first_of_many)
}

/// RFC 8200 sections 3 and 4.
#[inline(always)]
fn parse_ipv6<P: Packet + ?Sized>(packet: &P, offset: usize) -> Option<Frame> {
    let [version, _] = packet.read(offset)?;
    if version >> 4 != 6 {
        return Some(Frame::Other);
    }
    let [mut next] = packet.read(offset + 6)?;
    let source = Addr::v6(packet.read(offset + 8)?);
    let destination = Addr::v6(packet.read(offset + 24)?);
    let mut offset = offset + IPV6_LEN;
    let mut first_of_many = false;
    for _ in 0..=EXTENSIONS_MAX {
        let len = match next {
            NEXT_TCP => return parse_tcp(packet, offset, source, destination, first_of_many),
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
                let fragment = u16::from_be_bytes(packet.read(offset + 2)?);
                if fragment & 0xfff8 != 0 {
                    return Some(Frame::LaterFragment);
                }
                first_of_many = fragment & 1 != 0;
                8
            }
            _ => return Some(Frame::Other),
        };
        [next] = packet.read(offset)?;
        offset += len;
    }
    Some(Frame::Other)
}

/// RFC 9293 section 3.1. The first of several fragments may end before the flags; its ports must be there
/// (RFC 791 section 3.2: 8 octets at least).
#[inline(always)]
fn parse_tcp<P: Packet + ?Sized>(
    packet: &P,
    offset: usize,
    source: Addr,
    destination: Addr,
    first_of_many: bool,
) -> Option<Frame> {
    let source_port = u16::from_be_bytes(packet.read(offset)?);
    let destination_port = u16::from_be_bytes(packet.read(offset + 2)?);
    let flags = match packet.read(offset + 13) {
        Some([flags]) => flags,
        None if first_of_many => 0,
        None => return None,
    };
    Some(Frame::Tcp(Segment { source, destination, source_port, destination_port, flags }))
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
            next in prop::sample::select(std::vec![0_u8, 6, 43, 44, 51, 60]),
        ) {
            bytes[12..14].copy_from_slice(&if v6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 }.to_be_bytes());
            if bytes.len() > 23 {
                bytes[14] = if v6 { 0x60 } else { 0x45 };
                bytes[20] = next;
                bytes[23] = 6;
            }
            let _ = parse(bytes.as_slice());
        }
    }
}
