//! Telling a worker by the PROXY protocol whom a connection is for, before anything else on it.

use std::net::SocketAddr;

use ppp::{v1, v2};

use crate::config::SendProxy;

/// The header for a connection from `source` that came in at `destination`.
pub fn introduce(version: SendProxy, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    // A header has one family.
    let (source, destination) = if source.is_ipv4() == destination.is_ipv4() {
        (source, destination)
    } else {
        (as_v6(source), as_v6(destination))
    };
    match version {
        SendProxy::V1 => v1::Addresses::from((source, destination)).to_string().into_bytes(),
        SendProxy::V2 => built(v2::Command::Proxy, v2::Addresses::from((source, destination))),
    }
}

/// The header for a connection of homing's own.
pub fn introduce_self(version: SendProxy) -> Vec<u8> {
    match version {
        SendProxy::V1 => v1::Addresses::Unknown.to_string().into_bytes(),
        SendProxy::V2 => built(v2::Command::Local, v2::Addresses::Unspecified),
    }
}

fn built(command: v2::Command, addresses: v2::Addresses) -> Vec<u8> {
    let protocol = if command == v2::Command::Local { v2::Protocol::Unspecified } else { v2::Protocol::Stream };
    let header = v2::Builder::with_addresses(v2::Version::Two | command, protocol, addresses).build();
    header.expect("addresses are shorter than a header may be")
}

fn as_v6(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
        v6 @ SocketAddr::V6(_) => v6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_names_both_ends_in_one_family() {
        let text = |source: &str, destination: &str| {
            let header = introduce(SendProxy::V1, source.parse().unwrap(), destination.parse().unwrap());
            String::from_utf8(header).unwrap()
        };
        assert_eq!(text("192.0.2.7:1", "10.0.0.1:80"), "PROXY TCP4 192.0.2.7 10.0.0.1 1 80\r\n");
        assert_eq!(text("[2001:db8::7]:1", "[::1]:80"), "PROXY TCP6 2001:db8::7 ::1 1 80\r\n");
        assert_eq!(text("192.0.2.7:1", "[::1]:80"), "PROXY TCP6 ::ffff:192.0.2.7 ::1 1 80\r\n");
        let binary = introduce(SendProxy::V2, "192.0.2.7:1".parse().unwrap(), "10.0.0.1:80".parse().unwrap());
        assert_eq!(binary[..16], *b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c");
        assert_eq!(binary[16..], [192, 0, 2, 7, 10, 0, 0, 1, 0, 1, 0, 80]);
    }

    #[test]
    fn homing_itself_has_no_address_to_tell() {
        assert_eq!(introduce_self(SendProxy::V1), b"PROXY UNKNOWN\r\n");
        assert_eq!(introduce_self(SendProxy::V2), b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0");
    }
}
