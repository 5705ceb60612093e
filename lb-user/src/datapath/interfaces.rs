//! Which interfaces the listen addresses are on.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use crate::config::Config;

/// The interfaces for XDP: those that are configured, or those that carry the listen addresses.
///
/// # Errors
/// When the kernel does not list its addresses.
pub fn interfaces(config: &Config) -> std::io::Result<Vec<String>> {
    if !config.homing.interfaces.is_empty() {
        return Ok(config.homing.interfaces.clone());
    }
    let listen: Vec<SocketAddr> =
        config.apps.iter().flat_map(|app| app.listen.iter().chain(&app.listen_udp).copied()).collect();
    carrying(&listen)
}

/// The interfaces that carry these addresses: all that are up for a wildcard.
///
/// # Errors
/// When the kernel does not list its addresses.
fn carrying(listen: &[SocketAddr]) -> std::io::Result<Vec<String>> {
    let mut names = BTreeSet::new();
    for interface in nix::ifaddrs::getifaddrs()? {
        let Some(address) = interface.address else { continue };
        let address: IpAddr = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => v4.ip().into(),
            (_, Some(v6)) => v6.ip().into(),
            _ => continue,
        };
        let is_up = interface.flags.contains(nix::net::if_::InterfaceFlags::IFF_UP);
        let carries = |listen: &SocketAddr| {
            listen.ip() == address
                || (listen.ip().is_unspecified() && listen.is_ipv4() == address.is_ipv4())
                // All of 127.0.0.0/8 is on the loopback interface.
                || (listen.ip().is_loopback() && address.is_loopback() && listen.is_ipv4() == address.is_ipv4())
        };
        if is_up && listen.iter().any(carries) {
            names.insert(interface.interface_name);
        }
    }
    Ok(names.into_iter().collect())
}
