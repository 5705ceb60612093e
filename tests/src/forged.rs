//! Packets with addresses of nobody's, as in a flood.

use std::net::{Ipv4Addr, SocketAddrV4};

use socket2::{Domain, Protocol, Socket, Type};

use crate::network::Namespace;
use crate::wire::internet_checksum;

/// `IPPROTO_RAW` (Linux): whole packets, with an IP header of the sender's own.
const IPPROTO_RAW: i32 = 255;

/// The address of the `number`th client of a flood.
pub fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 16, 0, 0)) + number)
}

/// Sends this many SYNs, each from another address.
pub fn flood(from: &Namespace, to: SocketAddrV4, count: u32) {
    from.enter(|| {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(IPPROTO_RAW))).expect("root has these");
        for number in 0..count {
            let packet = syn(address(number), 1_024 + (number % 60_000) as u16, to);
            // A full queue of the cable drops some, as a cable does.
            let _ = socket.send_to(&packet, &to.into());
        }
    });
}

/// A packet that opens a connection.
pub fn syn(from: Ipv4Addr, port: u16, to: SocketAddrV4) -> Vec<u8> {
    let mut tcp =
        [&port.to_be_bytes()[..], &to.port().to_be_bytes(), &[0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff]].concat();
    tcp.extend([0; 4]);
    let pseudo = [&from.octets()[..], &to.ip().octets(), &[0, 6, 0, 20], &tcp].concat();
    tcp[16..18].copy_from_slice(&internet_checksum(&pseudo).to_be_bytes());
    let mut packet = vec![0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0];
    packet.extend(from.octets());
    packet.extend(to.ip().octets());
    packet.extend(tcp);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forged_packets_are_real_ones() {
        let packet = syn(address(1), 1_024, SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 1), 8080));
        let is_syn = |frame| matches!(frame, lb_common::parse::Frame::Tcp(segment) if segment.is_syn());
        let frame = [&[0_u8; 12][..], &[0x08, 0x00], &packet].concat();
        assert!(is_syn(lb_common::parse::parse(frame.as_slice())));
    }
}
