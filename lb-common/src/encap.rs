//! Headers that the datapath writes: outer ones around a client's packet, and the ICMP answer to one that is too big.
//!
//! Pure: fields in, bytes out.

use crate::abi::PROTO_UDP;
use crate::addr::Addr;
use crate::checksum;

/// What an outer header says is inside it (IANA protocol numbers; RFC 2003, RFC 4213).
pub const PROTO_IPV4: u8 = 4;
pub const PROTO_IPV6: u8 = 41;
const PROTO_ICMP: u8 = 1;
const PROTO_ICMPV6: u8 = 58;

pub const IPV4_LEN: usize = 20;
pub const IPV6_LEN: usize = 40;
/// UDP (8) and GUE (4).
pub const GUE_LEN: usize = 12;
/// Hops that an encapsulated packet may take.
const OUTER_TTL: u8 = 64;

/// Bytes of a too-big packet that the answer quotes: the longest IPv4 header and the 8 octets that RFC 792 asks for.
pub const QUOTE_V4: usize = 68;
/// The IPv6 header, and room for extension headers before the ports.
pub const QUOTE_V6: usize = 128;

/// An IPv4 header without options (RFC 791), "don't fragment" set. `payload_len` is at most 65,515.
#[inline(always)]
pub fn ipv4(source: Addr, destination: Addr, protocol: u8, payload_len: u16, tos: u8) -> [u8; IPV4_LEN] {
    bytes(ipv4_words(source, destination, protocol, payload_len, tos))
}

/// The same as words of this machine, which take few steps to work out and to write.
#[inline(always)]
pub const fn ipv4_words(source: Addr, destination: Addr, protocol: u8, payload_len: u16, tos: u8) -> [u32; 5] {
    let first = 0x4500_0000 | (tos as u32) << 16 | (IPV4_LEN as u32 + payload_len as u32);
    let third = (OUTER_TTL as u32) << 24 | (protocol as u32) << 16;
    let [source, destination] = [source.low as u32, destination.low as u32];
    let sum = first as u64 + 0x4000 + third as u64 + source as u64 + destination as u64;
    let third = third | checksum::finish_words(sum) as u32;
    [first.to_be(), 0x4000_u32.to_be(), third.to_be(), source.to_be(), destination.to_be()]
}

/// An IPv6 header (RFC 8200 section 3).
#[inline(always)]
pub fn ipv6(source: Addr, destination: Addr, next: u8, payload_len: u16, class: u8) -> [u8; IPV6_LEN] {
    bytes(ipv6_words(source, destination, next, payload_len, class))
}

/// The same as words of this machine.
#[inline(always)]
pub const fn ipv6_words(source: Addr, destination: Addr, next: u8, payload_len: u16, class: u8) -> [u32; 10] {
    let first = 0x6000_0000 | (class as u32) << 20;
    let second = (payload_len as u32) << 16 | (next as u32) << 8 | OUTER_TTL as u32;
    let [s0, s1, s2, s3] = halves(source);
    let [d0, d1, d2, d3] = halves(destination);
    [first.to_be(), second.to_be(), s0, s1, s2, s3, d0, d1, d2, d3]
}

/// An address in network byte order, as words of this machine.
#[inline(always)]
pub const fn halves(address: Addr) -> [u32; 4] {
    let Addr { high, low } = address;
    [((high >> 32) as u32).to_be(), (high as u32).to_be(), ((low >> 32) as u32).to_be(), (low as u32).to_be()]
}

/// Words of this machine as the bytes that they are.
#[inline(always)]
fn bytes<const WORDS: usize, const BYTES: usize>(words: [u32; WORDS]) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    for (four, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
        *four = word.to_ne_bytes();
    }
    bytes
}

/// UDP and GUE variant 0 without extensions (draft-ietf-intarea-gue-09 section 3.1) around a packet of `inner`
/// ([`PROTO_IPV4`] or [`PROTO_IPV6`]). The source port comes from the flow's hash, in the dynamic range, so that flows
/// spread over paths and queues. No UDP checksum: inner packets have their own (RFC 768; RFC 6935 for IPv6).
///
/// As words of this machine.
#[inline(always)]
pub const fn gue(port: u16, hash: u32, inner: u8, inner_len: u16) -> [u32; GUE_LEN / 4] {
    let ports = (0xc000 | (hash & 0x3fff)) << 16 | port as u32;
    let len = (GUE_LEN as u32 + inner_len as u32) << 16;
    [ports.to_be(), len.to_be(), ((inner as u32) << 16).to_be()]
}

/// The protocol of a [`gue`] packet's outer header.
pub const GUE_PROTO: u8 = PROTO_UDP;

/// The IPv4 and ICMP headers (RFC 1191 section 4) that tell a client the size that fits, to stand before the first
/// [`QUOTE_V4`] bytes of its packet, whose [`checksum::sum`] is `quote_sum`. `mtu` is what its packets may have.
#[inline(always)]
pub fn fragmentation_needed(quote_sum: u32, client: Addr, service: Addr, mtu: u16) -> [u8; IPV4_LEN + 8] {
    const UNREACHABLE: u8 = 3;
    const FRAGMENTATION_NEEDED: u8 = 4;
    let [m0, m1] = mtu.to_be_bytes();
    let mut icmp = [UNREACHABLE, FRAGMENTATION_NEEDED, 0, 0, 0, 0, m0, m1];
    [icmp[2], icmp[3]] = checksum::finish(checksum::sum(&icmp) + quote_sum).to_be_bytes();
    let mut headers = [0; IPV4_LEN + 8];
    headers[..IPV4_LEN].copy_from_slice(&ipv4(service, client, PROTO_ICMP, (8 + QUOTE_V4) as u16, 0));
    headers[IPV4_LEN..].copy_from_slice(&icmp);
    headers
}

/// As [`fragmentation_needed`], for IPv6 (RFC 4443 section 3.2), before [`QUOTE_V6`] bytes.
#[inline(always)]
pub fn packet_too_big(quote_sum: u32, client: Addr, service: Addr, mtu: u16) -> [u8; IPV6_LEN + 8] {
    const PACKET_TOO_BIG: u8 = 2;
    const LEN: u16 = (8 + QUOTE_V6) as u16;
    let [m0, m1] = mtu.to_be_bytes();
    let mut icmp = [PACKET_TOO_BIG, 0, 0, 0, 0, 0, m0, m1];
    // The pseudo-header (RFC 8200 section 8.1): both addresses, the length, the protocol.
    let addresses = [client.high, client.low, service.high, service.low];
    let pseudo =
        addresses.iter().fold(LEN as u32 + PROTO_ICMPV6 as u32, |sum, half| sum + checksum::sum(&half.to_be_bytes()));
    [icmp[2], icmp[3]] = checksum::finish(pseudo + checksum::sum(&icmp) + quote_sum).to_be_bytes();
    let mut headers = [0; IPV6_LEN + 8];
    headers[..IPV6_LEN].copy_from_slice(&ipv6(service, client, PROTO_ICMPV6, LEN, 0));
    headers[IPV6_LEN..].copy_from_slice(&icmp);
    headers
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HERE: Addr = Addr::v4([192, 0, 2, 1]);
    const THERE: Addr = Addr::v4([192, 0, 2, 2]);

    /// What a receiver computes over a header with its checksum: all ones, finished to zero.
    fn is_right<const N: usize>(bytes: &[u8; N]) -> bool {
        checksum::finish(checksum::sum(bytes)) == 0
    }

    proptest! {
        #[test]
        fn every_ipv4_header_has_the_right_checksum(payload_len in 0_u16..=65_515, tos: u8, from: u32, to: u32) {
            let header = ipv4(Addr::v4(from.to_be_bytes()), Addr::v4(to.to_be_bytes()), PROTO_IPV4, payload_len, tos);
            prop_assert!(is_right(&header));
            prop_assert_eq!(u16::from_be_bytes([header[2], header[3]]), payload_len + 20);
        }

        #[test]
        fn every_fragmentation_needed_has_the_right_checksums(head: [u8; 32], tail: [u8; 32], mtu: u16) {
            let mut quote = [0; QUOTE_V4];
            quote[..32].copy_from_slice(&head);
            quote[32..64].copy_from_slice(&tail);
            let headers = fragmentation_needed(checksum::sum(&quote), HERE, THERE, mtu);
            let (ip, icmp) = headers.split_at(IPV4_LEN);
            prop_assert_eq!((&ip[12..16], &ip[16..20]), (&[192, 0, 2, 2][..], &[192, 0, 2, 1][..]), "to the client");
            let mut message = [0; 8 + QUOTE_V4];
            message[..8].copy_from_slice(icmp);
            message[8..].copy_from_slice(&quote);
            prop_assert!(is_right::<IPV4_LEN>(ip.try_into().expect("20 bytes")));
            prop_assert!(is_right(&message));
            prop_assert_eq!(&icmp[..2], &[3, 4]);
            prop_assert_eq!(&icmp[6..], &mtu.to_be_bytes());
        }

        #[test]
        fn every_packet_too_big_has_the_right_checksum(head: [u8; 32], mtu: u16) {
            let mut quote = [7; QUOTE_V6];
            quote[..32].copy_from_slice(&head);
            let (client, service) = (Addr { high: 1, low: 2 }, Addr { high: 3, low: 4 });
            let headers = packet_too_big(checksum::sum(&quote), client, service, mtu);
            let mut message = [0; 40 + 8 + QUOTE_V6];
            message[..32].copy_from_slice(&headers[8..40]);
            message[32..36].copy_from_slice(&u32::from(8 + QUOTE_V6 as u16).to_be_bytes());
            message[39] = PROTO_ICMPV6;
            message[40..48].copy_from_slice(&headers[40..]);
            message[48..].copy_from_slice(&quote);
            prop_assert!(is_right(&message));
        }
    }

    #[test]
    fn a_gue_header_says_what_is_inside() {
        assert_eq!(bytes(gue(6080, 0xffff_ffff, PROTO_IPV6, 100)), [0xff, 0xff, 0x17, 0xc0, 0, 112, 0, 0, 0, 41, 0, 0]);
    }
}
