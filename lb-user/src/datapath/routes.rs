//! What XDP needs to ask the kernel for ways to remote backends.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};

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
