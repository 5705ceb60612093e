//! A port for a worker to listen on. The kernel picks; between this choice and the worker's bind someone else may still
//! take it, which shows as a worker that does not get ready or as a listener that is not its own.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;

use socket2::{Domain, SockRef, Socket, Type};

use super::Entrance;

/// Choices of the kernel that may fall on excluded ports before homing gives up.
const ATTEMPTS_MAX: usize = 64;

/// A port that is not in `taken` (promised to workers that have yet to bind theirs) and that nobody has on any address of the
/// machine, be it for a connection to elsewhere: many a worker listens on all of them, whatever it is told. The loopback address
/// with it.
pub fn pick(taken: &BTreeSet<u16>) -> io::Result<SocketAddr> {
    let (_, port) = free(taken, everywhere)?;
    Ok((Ipv4Addr::LOCALHOST, port).into())
}

/// A listening socket on a loopback port that is not in `taken`, to be passed to a worker.
pub fn listen(taken: &BTreeSet<u16>) -> io::Result<Entrance> {
    let (socket, port) = free(taken, || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
    let address = (Ipv4Addr::LOCALHOST, port).into();
    // What is accepted inherits it. uvicorn takes what it is passed for a unix socket, and does not set it.
    SockRef::from(&socket).set_tcp_nodelay(true)?;
    Ok(Entrance::Passed { address, socket: socket.into() })
}

/// Bound to a port of the kernel's choice on all addresses, of both families where there is IPv6. Nobody can connect to it.
fn everywhere() -> io::Result<Socket> {
    let bound = |address: SocketAddr| {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.bind(&address.into())?;
        io::Result::Ok(socket)
    };
    bound((Ipv6Addr::UNSPECIFIED, 0).into()).or_else(|_| bound((Ipv4Addr::UNSPECIFIED, 0).into()))
}

/// A socket with a port that is not taken, and the port.
fn free<S: AsFd>(taken: &BTreeSet<u16>, bind: impl Fn() -> io::Result<S>) -> io::Result<(S, u16)> {
    // Kept open until the end, so that the kernel does not offer the same port again.
    let mut refused = Vec::new();
    for _ in 0..ATTEMPTS_MAX {
        let socket = bind()?;
        let address = SockRef::from(&socket).local_addr()?;
        let port = address.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?.port();
        if !taken.contains(&port) {
            return Ok((socket, port));
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
    fn a_picked_port_can_be_bound_on_all_addresses_while_connections_from_others_have_many() {
        const CONNECTIONS: usize = 500;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let target = listener.local_addr().expect("bound").into();
        let from = SocketAddr::from((Ipv4Addr::new(127, 0, 9, 1), 0)).into();
        let connections: Vec<Socket> = (0..CONNECTIONS)
            .map(|_| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
                socket.bind(&from).expect("a port is free");
                socket.connect(&target).expect("somebody listens");
                drop(listener.accept().expect("a connection"));
                socket
            })
            .collect();
        for _ in 0..500 {
            let port = pick(&BTreeSet::new()).expect("a port is free").port();
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).expect("it is free on every address");
        }
        drop(connections);
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
