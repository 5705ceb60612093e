//! The answer to a packet that opens a connection, with a SYN cookie as its sequence number (RFC 4987 section 3.6).
//!
//! Pure: bytes in, bytes out.

use crate::abi::PROTO_TCP;
use crate::addr::Addr;
use crate::checksum;
use crate::encap::{self, IPV4_LEN, IPV6_LEN};
use crate::parse::{TCP_ACK, TCP_SYN};

/// A TCP header and the one option that matters: the maximum segment size.
pub const TCP_LEN: usize = 24;
/// Maximum segment size of who names none (RFC 9293 section 3.7.1).
const MSS_DEFAULT: u16 = 536;
/// Without window scaling, which a cookie has no room for, this is the largest window.
const WINDOW: [u8; 2] = [0xff, 0xff];

/// What of a SYN its answer depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Syn {
    source_port: [u8; 2],
    destination_port: [u8; 2],
    sequence: [u8; 4],
    mss: u16,
}

impl Syn {
    /// From the first eight bytes of the TCP header, and the first option: all common stacks state their segment size
    /// there.
    #[inline(always)]
    pub const fn new([s0, s1, d0, d1, q0, q1, q2, q3]: [u8; 8], option: [u8; 4]) -> Self {
        const MAXIMUM_SEGMENT_SIZE: u8 = 2;
        let mss = match option {
            [MAXIMUM_SEGMENT_SIZE, 4, high, low] => u16::from_be_bytes([high, low]),
            _ => MSS_DEFAULT,
        };
        Self { source_port: [s0, s1], destination_port: [d0, d1], sequence: [q0, q1, q2, q3], mss }
    }

    /// Its TCP header with no other option, checksum left out; as words of this machine.
    #[inline(always)]
    pub fn header(&self) -> [u32; TCP_LEN / 4] {
        let bytes = tcp(self.source_port, self.destination_port, self.sequence, [0; 4], TCP_SYN, self.mss);
        let (words, _) = bytes.as_chunks();
        core::array::from_fn(|at| u32::from_ne_bytes(words[at]))
    }

    /// The answer's TCP header, between these addresses.
    #[inline(always)]
    fn answer(&self, service: Addr, client: Addr, cookie: u32, mss: u16) -> [u8; TCP_LEN] {
        let acknowledged = u32::from_be_bytes(self.sequence).wrapping_add(1).to_be_bytes();
        let flags = TCP_SYN | TCP_ACK;
        let mut header = tcp(self.destination_port, self.source_port, cookie.to_be_bytes(), acknowledged, flags, mss);
        // The pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1). What an IPv4-mapped address has before its IPv4
        // part adds 0xffff, which is nothing to a sum in ones' complement.
        let mut sum = TCP_LEN as u32 + PROTO_TCP as u32;
        for half in [service.high, service.low, client.high, client.low] {
            sum += checksum::sum(&half.to_be_bytes());
        }
        [header[16], header[17]] = checksum::finish(sum + checksum::sum(&header)).to_be_bytes();
        header
    }
}

#[inline(always)]
const fn tcp(
    [s0, s1]: [u8; 2],
    [d0, d1]: [u8; 2],
    [q0, q1, q2, q3]: [u8; 4],
    [a0, a1, a2, a3]: [u8; 4],
    flags: u8,
    mss: u16,
) -> [u8; TCP_LEN] {
    const OFFSET: u8 = ((TCP_LEN / 4) << 4) as u8;
    let [w0, w1] = WINDOW;
    let [m0, m1] = mss.to_be_bytes();
    [s0, s1, d0, d1, q0, q1, q2, q3, a0, a1, a2, a3, OFFSET, flags, w0, w1, 0, 0, 0, 0, 2, 4, m0, m1]
}

/// The IPv4 packet that answers the SYN under this header.
#[inline(always)]
pub fn ipv4(header: &[u8; IPV4_LEN], syn: &Syn, cookie: u32, mss: u16) -> [u8; IPV4_LEN + TCP_LEN] {
    let client = Addr::v4([header[12], header[13], header[14], header[15]]);
    let service = Addr::v4([header[16], header[17], header[18], header[19]]);
    let mut packet = [0; IPV4_LEN + TCP_LEN];
    packet[..IPV4_LEN].copy_from_slice(&encap::ipv4(service, client, PROTO_TCP, TCP_LEN as u16, 0));
    packet[IPV4_LEN..].copy_from_slice(&syn.answer(service, client, cookie, mss));
    packet
}

/// The IPv6 packet that answers the SYN under this header.
#[inline(always)]
pub fn ipv6(header: &[u8; IPV6_LEN], syn: &Syn, cookie: u32, mss: u16) -> [u8; IPV6_LEN + TCP_LEN] {
    let (mut client, mut service) = ([0; 16], [0; 16]);
    client.copy_from_slice(&header[8..24]);
    service.copy_from_slice(&header[24..40]);
    let (client, service) = (Addr::v6(client), Addr::v6(service));
    let mut packet = [0; IPV6_LEN + TCP_LEN];
    packet[..IPV6_LEN].copy_from_slice(&encap::ipv6(service, client, PROTO_TCP, TCP_LEN as u16, 0));
    packet[IPV6_LEN..].copy_from_slice(&syn.answer(service, client, cookie, mss));
    packet
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::{self, Frame};
    use proptest::prelude::*;

    const PORTS: [u8; 4] = [0x9c, 0x40, 0x1f, 0x90];

    fn syn(sequence: u32) -> Syn {
        let [q0, q1, q2, q3] = sequence.to_be_bytes();
        let [s0, s1, d0, d1] = PORTS;
        Syn::new([s0, s1, d0, d1, q0, q1, q2, q3], [2, 4, 0x05, 0xb4])
    }

    /// What a receiver computes over pseudo-header and segment: zero if all is right.
    fn tcp_checksum(addresses: &[u8], segment: &[u8]) -> u16 {
        let bytes = [addresses, &[0, PROTO_TCP, 0, segment.len() as u8], segment].concat();
        let sum = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
        checksum::finish(sum)
    }

    proptest! {
        #[test]
        fn every_answer_goes_back_with_the_right_checksum(from: u32, to: u32, sequence: u32, cookie: u32, mss: u16) {
            let (client, service) = (Addr::v4(from.to_be_bytes()), Addr::v4(to.to_be_bytes()));
            let header = encap::ipv4(client, service, PROTO_TCP, TCP_LEN as u16, 0);
            let packet = ipv4(&header, &syn(sequence), cookie, mss);
            prop_assert_eq!(tcp_checksum(&packet[12..20], &packet[20..]), 0);
            let frame = [&[0; 12][..], &[8, 0], &packet].concat();
            let Frame::Tcp(answer) = parse::parse(frame.as_slice()) else { panic!("a TCP packet") };
            prop_assert_eq!((answer.source, answer.destination), (service, client));
            prop_assert_eq!((answer.source_port, answer.destination_port), (8_080, 40_000));
            prop_assert_eq!(answer.flags, TCP_SYN | TCP_ACK);
            prop_assert_eq!(&packet[24..28], &cookie.to_be_bytes());
            prop_assert_eq!(&packet[28..32], &sequence.wrapping_add(1).to_be_bytes());
        }

        #[test]
        fn over_ipv6_too(from: [u8; 16], to: [u8; 16], sequence: u32, cookie: u32) {
            let header = encap::ipv6(Addr::v6(from), Addr::v6(to), PROTO_TCP, TCP_LEN as u16, 0);
            let packet = ipv6(&header, &syn(sequence), cookie, 1_440);
            prop_assert_eq!(tcp_checksum(&packet[8..40], &packet[40..]), 0);
            prop_assert_eq!((&packet[8..24], &packet[24..40]), (&to[..], &from[..]));
        }
    }

    #[test]
    fn the_segment_size_is_read_where_it_comes_first() {
        assert_eq!(syn(0).mss, 1_460);
        assert_eq!(Syn::new([0; 8], [1, 1, 8, 10]).mss, MSS_DEFAULT);
        assert_eq!(syn(0).header()[5].to_ne_bytes(), [2, 4, 0x05, 0xb4]);
    }
}
