//! Addresses to listen on: one by one, and whether they can all be bound together.

use std::net::{IpAddr, SocketAddr};

use super::reader::shown;

/// One address. The complaint is whole.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    let address = match text.parse::<SocketAddr>() {
        Ok(address) => address,
        Err(_) => return Err(not_an_address(text)),
    };
    if address.port() == 0 {
        return Err(format!("`{}` has port 0; give the port that clients connect to", shown(text)));
    }
    if let IpAddr::V6(ip) = address.ip()
        && let Some(ipv4) = ip.to_ipv4_mapped()
    {
        return Err(format!("`{}` is an IPv4 address in disguise; write \"{ipv4}:{}\"", shown(text), address.port()));
    }
    Ok(address)
}

fn not_an_address(text: &str) -> String {
    let port = text.strip_prefix(':').or_else(|| text.strip_prefix("*:")).unwrap_or(text);
    if port.parse::<u16>().is_ok() {
        return format!(
            "`{}` names no address; write \"0.0.0.0:{port}\" for IPv4, \"[::]:{port}\" for IPv6, or both",
            shown(text)
        );
    }
    match text.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => format!("`{}` has no port; write \"{ip}:8080\" or another port", shown(text)),
        Ok(IpAddr::V6(ip)) => format!("`{}` has no port; write \"[{ip}]:8080\" or another port", shown(text)),
        Err(_) => format!(
            "`{}` is no address and port; write one such as \"0.0.0.0:8080\" or \"[::]:8080\" (names are not looked up)",
            shown(text)
        ),
    }
}

/// An address of some app.
pub(super) struct Taken {
    pub(super) address: SocketAddr,
    pub(super) app: String,
}

/// Why `new` cannot be bound beside those, if so. Apps may share an address.
pub(super) fn conflict(new: &Taken, taken: &[Taken]) -> Option<String> {
    let are_shared = |other: &Taken| other.address == new.address && other.app != new.app;
    let other = taken.iter().find(|other| overlaps(new.address, other.address) && !are_shared(other))?;
    let whose = if other.app == new.app { "of this app".to_owned() } else { format!("of app `{}`", other.app) };
    if new.address == other.address {
        return Some(format!("`{}` is already an address {whose}; choose another", new.address));
    }
    Some(format!(
        "`{}` overlaps `{}` {whose}, so they cannot both be bound; choose another port, or remove one",
        new.address, other.address
    ))
}

/// homing's IPv6 sockets take no IPv4, so the two families never meet.
pub(super) fn overlaps(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port()
        && a.is_ipv4() == b.is_ipv4()
        && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}
