//! What a worker is given to listen on: a port, the path of a unix socket, or a socket that listens already.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use crate::address::Address;
use crate::sys::PASSED_FD;

/// Stands for the worker's port in its arguments and environment.
pub const PORT_PLACEHOLDER: &str = "{port}";
/// Stands for the path of its unix socket.
pub const SOCKET_PLACEHOLDER: &str = "{socket}";
/// Stands for the number of the descriptor that it is passed.
pub const FD_PLACEHOLDER: &str = "{fd}";

/// What LISTEN_FDNAMES calls the descriptor.
const PASSED_NAME: &str = "homing";

#[derive(Debug)]
pub enum Entrance {
    /// It binds this port itself.
    Port(SocketAddr),
    /// It binds this path itself; its directory is made for it.
    Socket(PathBuf),
    /// A socket that is bound and listens.
    Passed { address: SocketAddr, socket: OwnedFd },
}

impl Entrance {
    /// Where the worker will be reached.
    pub fn address(&self) -> Address {
        match self {
            Self::Port(address) | Self::Passed { address, .. } => (*address).into(),
            Self::Socket(path) => path.clone().into(),
        }
    }

    /// A word of its arguments or environment, with what stands for its entrance replaced.
    pub(super) fn fill_in(&self, text: &str) -> String {
        match self {
            Self::Port(address) => text.replace(PORT_PLACEHOLDER, &address.port().to_string()),
            Self::Socket(path) => text.replace(SOCKET_PLACEHOLDER, &path.to_string_lossy()),
            Self::Passed { .. } => text.replace(FD_PLACEHOLDER, &PASSED_FD.to_string()),
        }
    }

    /// What its environment says of it. LISTEN_PID is put there when it is known.
    pub(super) fn told(&self) -> Vec<(String, String)> {
        let told = match self {
            Self::Port(address) => vec![("PORT", address.port().to_string())],
            Self::Socket(path) => vec![("HOMING_SOCKET", path.to_string_lossy().into_owned())],
            Self::Passed { .. } => vec![("LISTEN_FDS", "1".to_owned()), ("LISTEN_FDNAMES", PASSED_NAME.to_owned())],
        };
        told.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}
