//! Waiting for a worker to accept connections, and saying meanwhile why it does not.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use lb_common::abi::BackendId;
use tokio::sync::mpsc;
use tokio::time::{self, Instant};

use super::launch::Message;
use crate::address::Address;
use crate::datapath::Listener;
use crate::worker::probe::{self, NotReady, Proof};
use crate::worker::{Process, listener};

/// Before it is first looked for what a worker listens on instead of what it was given, and between looks.
const LOOK_AFTER: Duration = Duration::from_millis(400);
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// One probe's time. An app may build its whole first page for it.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// Addresses that a reason names.
const NAMED_MAX: usize = 4;

/// A worker that is to become ready.
pub(super) struct Waiting {
    pub(super) backend: BackendId,
    pub(super) process: Arc<Process>,
    /// Where it is expected.
    pub(super) address: Address,
    pub(super) proof: Proof,
    /// Whether its listening sockets are wanted for the kernel path.
    pub(super) find_listeners: bool,
}

impl Waiting {
    /// Until it is ready, and where, or for ever: control ends this when the time is up.
    pub(super) async fn watch(mut self, messages: mpsc::Sender<Message>) -> Option<Address> {
        let mut look_at = Instant::now() + LOOK_AFTER;
        let mut said = None;
        for delay in probe::probe_delays() {
            time::sleep(delay).await;
            let why = match self.probe(look_at).await {
                Ok(()) => match self.listeners() {
                    Some(listeners) => {
                        let Self { backend, address, .. } = self;
                        let ready = Message::Ready { backend, address: address.clone(), listeners };
                        return messages.send(ready).await.is_ok().then_some(address);
                    }
                    None => format!("another program accepts connections on {}", self.address),
                },
                Err(failure) if Instant::now() >= look_at => {
                    look_at = Instant::now() + LOOK_AGAIN;
                    self.explain(&failure)
                }
                Err(_) => continue,
            };
            if said.as_ref() != Some(&why) {
                let _ = messages.send(Message::Waiting { backend: self.backend, why: why.clone() }).await;
                said = Some(why);
            }
        }
        None
    }

    /// One probe. Of a socket that the kernel answers for, a worker that has nothing to do with it never lets go.
    async fn probe(&self, look_at: Instant) -> Result<(), NotReady> {
        let until_look = look_at.saturating_duration_since(Instant::now());
        let allowed = if self.proof == Proof::Closing { until_look.max(LOOK_AFTER) } else { PROBE_TIMEOUT };
        probe::probe(&self.address, &self.proof, allowed).await
    }

    /// What the kernel path gets; `None` when it is not the worker that listens there.
    fn listeners(&self) -> Option<Vec<Listener<OwnedFd>>> {
        match self.address.port().filter(|_| self.find_listeners) {
            Some(port) => match find(&self.process, port) {
                Some(found) if found.is_empty() => None,
                Some(found) => Some(found),
                // It is ready all the same; the HTTP path reaches it.
                None => Some(Vec::new()),
            },
            None => Some(Vec::new()),
        }
    }

    /// Why it is not ready, by what it listens on. On its port, but at another address, it is looked for there next.
    fn explain(&mut self, failure: &NotReady) -> String {
        if !matches!(failure, NotReady::Connect { .. } | NotReady::Closed { .. } | NotReady::Slow { .. }) {
            return failure.to_string();
        }
        let mut elsewhere = listener::addresses(&self.process);
        elsewhere.retain(|address| Address::from(*address) != self.address);
        if let Address::Tcp(expected) = self.address
            && let Some(address) = elsewhere.iter().find(|address| address.port() == expected.port())
        {
            self.address = reachable(*address).into();
            return failure.to_string();
        }
        if elsewhere.is_empty() {
            return failure.to_string();
        }
        let named: Vec<String> = elsewhere.iter().take(NAMED_MAX).map(ToString::to_string).collect();
        let given = match (&self.address, &self.proof) {
            (Address::Tcp(given), Proof::Connection | Proof::Get(_) | Proof::GetIntroduced(..)) => {
                given.port().to_string()
            }
            (given, _) => given.to_string(),
        };
        format!("listens on {}, was given {given}", named.join(", "))
    }
}

/// Where a socket bound to this address is reached from this machine.
fn reachable(bound: SocketAddr) -> SocketAddr {
    let ip = match bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, bound.port())
}

/// The worker's listening sockets on this port; `None`, and a warning, when they may not be looked for.
pub(super) fn find(process: &Process, port: u16) -> Option<Vec<Listener<OwnedFd>>> {
    match listener::find(process, port) {
        Ok(found) => Some(
            found
                .into_iter()
                .map(|found| Listener {
                    port: found.address.port(),
                    v4: found.takes_ipv4(),
                    v6: found.takes_ipv6(),
                    socket: found.fd,
                })
                .collect(),
        ),
        Err(error) => {
            tracing::warn!(pid = process.pid(), port, %error, "no kernel path to this worker");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::worker::testing::Worker;

    /// The worker, expected at `address`; what is said of it.
    fn watched(worker: &Worker, address: Address, proof: Proof) -> mpsc::Receiver<Message> {
        let (messages, said) = mpsc::channel(1);
        let process = Arc::clone(&worker.process);
        let waiting = Waiting { backend: BackendId::new(1, 1), process, address, proof, find_listeners: true };
        tokio::spawn(waiting.watch(messages));
        said
    }

    /// The first reason that begins like this.
    async fn why(mut said: mpsc::Receiver<Message>, beginning: &str) -> String {
        loop {
            match said.recv().await.expect("it says something") {
                Message::Waiting { why, .. } if why.starts_with(beginning) => return why,
                Message::Waiting { .. } => {}
                _ => panic!("it is not ready"),
            }
        }
    }

    #[tokio::test]
    async fn a_stranger_on_the_port_makes_no_worker_ready_and_is_told_of() {
        let stranger = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = Address::from(stranger.local_addr().expect("bound"));
        let worker = Worker::sh("exec sleep 1000");
        let why = why(watched(&worker, address.clone(), Proof::Connection), "").await;
        assert_eq!(why, format!("another program accepts connections on {address}"));
    }

    #[tokio::test]
    async fn a_worker_that_does_not_use_its_unix_socket_is_told_where_it_is() {
        let worker = Worker::sh("exec $LISTEN 4");
        let port = worker.port;
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path().join("socket");
        let why = why(watched(&worker, path.clone().into(), Proof::Get("/".to_owned())), "listens on").await;
        let shown = path.display();
        assert_eq!(why, format!("listens on 127.0.0.1:{port}, was given unix:{shown}"));
    }

    #[tokio::test]
    async fn a_worker_at_another_address_of_its_port_is_ready_there() {
        let worker = Worker::sh("exec $LISTEN 6");
        let port = worker.port;
        let expected = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut said = watched(&worker, expected.into(), Proof::Connection);
        loop {
            match said.recv().await.expect("it says something") {
                Message::Ready { address, listeners, .. } => {
                    assert_eq!(address, SocketAddr::from((Ipv6Addr::LOCALHOST, port)).into());
                    assert!(listeners.len() == 1 && listeners[0].v6 && !listeners[0].v4);
                    return;
                }
                Message::Waiting { why, .. } => assert!(why.starts_with("nothing accepts connections on 127.0.0.1")),
                _ => panic!("nothing else is said"),
            }
        }
    }
}
