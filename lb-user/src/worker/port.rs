//! A port for a worker to listen on. The kernel picks; between this choice and the worker's bind someone else may still
//! take it, which shows as a worker that does not get ready or as a listener that is not its own.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use socket2::SockRef;

use super::Entrance;

/// Choices of the kernel that may fall on excluded ports before homing gives up.
const ATTEMPTS_MAX: usize = 64;

/// A loopback port that nobody listens on and that is not in `taken` (promised to workers that have yet to bind theirs).
pub fn pick(taken: &BTreeSet<u16>) -> io::Result<SocketAddr> {
    bind(taken)?.local_addr()
}

/// A listening socket on such a port, to be passed to a worker.
pub fn listen(taken: &BTreeSet<u16>) -> io::Result<Entrance> {
    let socket = bind(taken)?;
    let address = socket.local_addr()?;
    // What is accepted inherits it. uvicorn takes what it is passed for a unix socket, and does not set it.
    SockRef::from(&socket).set_tcp_nodelay(true)?;
    Ok(Entrance::Passed { address, socket: socket.into() })
}

fn bind(taken: &BTreeSet<u16>) -> io::Result<TcpListener> {
    // Kept open until the end, so that the kernel does not offer the same port again.
    let mut refused = Vec::new();
    for _ in 0..ATTEMPTS_MAX {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = socket.local_addr()?.port();
        if !taken.contains(&port) {
            return Ok(socket);
        }
        refused.push(socket);
    }
    Err(io::Error::new(
        io::ErrorKind::AddrInUse,
        format!("no free port on 127.0.0.1 after {ATTEMPTS_MAX} tries; widen net.ipv4.ip_local_port_range"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picked_port_can_be_bound() {
        let address = pick(&BTreeSet::new()).expect("a port is free");
        TcpListener::bind(address).expect("it is still free");
    }

    #[test]
    fn a_port_promised_to_another_worker_is_not_picked() {
        let mut taken = BTreeSet::new();
        for _ in 0..50 {
            let port = pick(&taken).expect("a port is free").port();
            assert!(taken.insert(port), "{port} was picked twice");
        }
    }

    #[test]
    fn when_every_port_is_promised_the_search_ends_and_says_so() {
        let error = pick(&(0..=u16::MAX).collect()).expect_err("none is left");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
