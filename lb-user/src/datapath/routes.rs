//! Ways to remote backends: what XDP needs to ask the kernel for them, and which it cannot take.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use super::netlink;

/// Both families; a kernel without IPv6 lacks the second.
const FORWARDING: [&str; 2] = ["/proc/sys/net/ipv4/conf/lo/forwarding", "/proc/sys/net/ipv6/conf/lo/forwarding"];

/// Lets programs ask for routes as if a packet came from the loopback interface: the kernel answers nobody about an
/// interface that does not forward (Linux: `bpf_ipv4_fib_lookup` in net/core/filter.c). No packet from elsewhere arrives
/// on that interface, so that nothing else is forwarded that was not before.
///
/// # Errors
/// When the settings cannot be written.
pub fn allow_route_lookups() -> io::Result<()> {
    for path in FORWARDING {
        match fs::read_to_string(path) {
            Ok(value) if value.trim() == "1" => {}
            Ok(_) => fs::write(path, "1")?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// This machine's address on the way to `host`: the source that its packets have. Nothing is sent.
///
/// # Errors
/// When there is no way.
pub fn source_towards(host: IpAddr) -> io::Result<IpAddr> {
    /// Any port does: a connected UDP socket only chooses its addresses.
    const DISCARD: u16 = 9;
    let any: IpAddr = if host.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = UdpSocket::bind(SocketAddr::from((any, 0)))?;
    socket.connect((host, DISCARD))?;
    Ok(socket.local_addr()?.ip())
}

/// Why XDP in native mode on one of `interfaces` cannot send to `host`; `None` where it can, or there is no way at all. A
/// frame that it sent all the same would be gone, and nobody told.
pub(super) fn obstacle(host: IpAddr, interfaces: &[(&str, u32)]) -> Option<String> {
    let way = netlink::interface_towards(host).ok()??;
    let kind = above_others(way)?;
    // On the same device XDP is in generic mode, which sends what any device takes.
    let (from, _) = interfaces.iter().find(|(_, index)| *index != way && above_others(*index).is_none())?;
    let name = nix::net::if_::if_indextoname(way).ok()?;
    Some(format!(
        "the way there leads over {} ({kind}), which takes nothing from XDP on {from}",
        name.to_string_lossy()
    ))
}

/// The kind of a device that stands above others (`vlan`, `bridge`, `macvlan` …): it has no queue of its own for frames from
/// native XDP, and no native XDP. Hardware mostly has both, and of software devices these.
pub(super) fn above_others(interface: u32) -> Option<String> {
    const WITH_QUEUES: [&str; 3] = ["veth", "tun", "bond"];
    netlink::kind(interface).ok()?.filter(|kind| !WITH_QUEUES.contains(&kind.as_str()))
}
