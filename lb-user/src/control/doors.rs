//! The sockets that clients connect to, one per listen address: opened and closed while homing runs.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::address::SEGMENT_BYTES_MAX;
use crate::config::App;
use crate::proxy::{Listener, Proxy, Shutdown};

/// Connections that the kernel queues before homing accepts them.
const BACKLOG: i32 = 4_096;

/// All of them.
pub(super) struct Doors {
    proxy: Proxy,
    open: HashMap<SocketAddr, Door>,
    /// Of every listener, also of those that are closed and have connections left.
    serving: JoinSet<io::Result<()>>,
    /// Told to closed ones, too.
    all: watch::Sender<bool>,
}

struct Door {
    /// The listener's twin, for a successor.
    socket: TcpListener,
    shutdown: watch::Sender<Shutdown>,
}

impl Doors {
    pub(super) fn new(proxy: Proxy) -> Self {
        Self { proxy, open: HashMap::new(), serving: JoinSet::new(), all: watch::Sender::new(false) }
    }

    pub(super) fn has(&self, address: SocketAddr) -> bool {
        self.open.contains_key(&address)
    }

    /// Serves the address from now on, for whom the snapshot says. `socket`: bound to it, if nobody listens there yet.
    ///
    /// # Errors
    /// When the process may not have another file, or nobody has bound the address.
    pub(super) fn open(&mut self, address: SocketAddr, socket: Option<&TcpListener>) -> io::Result<()> {
        if self.has(address) {
            return Ok(());
        }
        let socket = socket.ok_or_else(|| io::Error::other(format!("{address} has not been bound")))?;
        let (own, served) = (socket.try_clone()?, socket.try_clone()?);
        let (shutdown, told) = watch::channel(Shutdown::Serving);
        let serve = self.proxy.clone().serve(Listener { address, socket: served }, told);
        let (last_word, mut all) = (shutdown.clone(), self.all.subscribe());
        self.serving.spawn(async move {
            let mut serve = std::pin::pin!(serve);
            tokio::select! {
                ended = &mut serve => return ended,
                _ = all.wait_for(|end| *end) => {}
            }
            last_word.send_replace(Shutdown::Now);
            serve.await
        });
        self.open.insert(address, Door { socket: own, shutdown });
        Ok(())
    }

    /// Closes all but these addresses. What is open there goes on until it ends.
    pub(super) fn keep(&mut self, wanted: impl Fn(SocketAddr) -> bool) {
        self.open.retain(|&address, door| {
            let stays = wanted(address);
            if !stays {
                door.shutdown.send_replace(Shutdown::Draining);
            }
            stays
        });
    }

    /// The listening sockets, by their numbers in this process.
    pub(super) fn sockets(&self) -> impl Iterator<Item = (SocketAddr, i32)> + '_ {
        self.open.iter().map(|(&address, door)| (address, door.socket.as_raw_fd()))
    }

    /// Waits until no listener has a connection left; after [`Doors::keep`] of none. May be cancelled and asked again.
    pub(super) async fn empty(&mut self) {
        while self.serving.join_next().await.is_some() {}
    }

    /// Breaks off everything.
    pub(super) async fn end(mut self) {
        self.all.send_replace(true);
        self.open.clear();
        while self.serving.join_next().await.is_some() {}
    }
}

/// The addresses of these apps, each once, with the name of the first app there.
pub fn addresses(apps: &[App]) -> impl Iterator<Item = (&str, SocketAddr)> {
    let mut seen = HashSet::new();
    let all = apps.iter().flat_map(|app| app.listen.iter().map(|&address| (app.name.as_str(), address)));
    all.filter(move |(_, address)| seen.insert(*address))
}

/// Listens on an address.
///
/// # Errors
/// What is in the way, and what to do about it.
pub fn bind(app: &str, address: SocketAddr) -> Result<TcpListener, String> {
    bind_for(&format!("app {app}"), address)
}

/// The same for metrics.
///
/// # Errors
/// As [`bind`].
pub fn bind_for_metrics(address: SocketAddr) -> Result<TcpListener, String> {
    bind_for("homing.metrics", address)
}

fn bind_for(whom: &str, address: SocketAddr) -> Result<TcpListener, String> {
    listen(address).map_err(|error| {
        let port = address.port();
        let advice = match error.kind() {
            io::ErrorKind::AddrInUse => format!("; find who has the port with: ss -ltnp 'sport = :{port}'"),
            io::ErrorKind::PermissionDenied => "; ports below 1024 need root or CAP_NET_BIND_SERVICE".to_owned(),
            io::ErrorKind::AddrNotAvailable => "; this machine does not have that address: see ip address".to_owned(),
            _ => String::new(),
        };
        format!("{whom}: cannot listen on {address}: {error}{advice}")
    })
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    // Connections have it from here.
    socket.set_tcp_mss(SEGMENT_BYTES_MAX)?;
    if address.is_ipv6() {
        // "[::]:80" means IPv6: "0.0.0.0:80" may stand beside it.
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
