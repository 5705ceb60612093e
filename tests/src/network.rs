//! Two network namespaces and a cable: homing's machine on one end, many clients on the other.
//!
//! The cable is a veth pair, on which XDP runs natively. A socket stays in the namespace that it was made in, so a test
//! enters one for as long as it takes to connect.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// homing's addresses.
pub const SERVER_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);

/// A namespace of the test's own; gone with this value, and its devices with it.
pub struct Namespace {
    name: String,
}

impl Namespace {
    pub fn new(role: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("homing-{}-{number}-{role}", std::process::id());
        run(&["ip", "netns", "add", &name]);
        let namespace = Self { name };
        namespace.ip(&["link", "set", "lo", "up"]);
        namespace
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// `ip` in this namespace.
    pub fn ip(&self, arguments: &[&str]) {
        run(&[&["ip", "-n", &self.name], arguments].concat());
    }

    /// Any program in this namespace. `ip netns exec` would hide the BPF file system.
    pub fn wrapper(&self) -> [String; 2] {
        ["nsenter".to_owned(), format!("--net=/run/netns/{}", self.name)]
    }

    /// Runs `act` on a thread in this namespace: sockets it makes stay there.
    pub fn enter<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.name)).expect("the namespace is there");
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may enter");
                act()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}

/// homing's machine and its clients'.
pub struct Network {
    pub server: Namespace,
    pub clients: Namespace,
}

impl Network {
    /// With this many clients: see [`client_v4`] and [`client_v6`].
    pub fn new(clients: u8) -> Self {
        let network = Self { server: Namespace::new("server"), clients: Namespace::new("clients") };
        let (server, there) = (&network.server, &network.clients);
        server.ip(&["link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", there.name()]);
        server.ip(&["address", "add", &format!("{SERVER_V4}/16"), "dev", "eth0"]);
        server.ip(&["address", "add", &format!("{SERVER_V6}/32"), "dev", "eth0", "nodad"]);
        server.ip(&["link", "set", "eth0", "up"]);
        for number in 1..=clients {
            there.ip(&["address", "add", &format!("{}/16", client_v4(number)), "dev", "eth0"]);
            there.ip(&["address", "add", &format!("{}/32", client_v6(number)), "dev", "eth0", "nodad"]);
        }
        there.ip(&["link", "set", "eth0", "up"]);
        network
    }
}

/// The address of a client, 1 and up.
pub fn client_v4(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 77, 1, number).into()
}

/// The address of a client, in a /64 of its own.
pub fn client_v6(number: u8) -> IpAddr {
    Ipv6Addr::new(0xfd77, 0, 0, u16::from(number), 0, 0, 0, 1).into()
}

pub(crate) fn run(words: &[&str]) {
    let output = Command::new(words[0]).args(&words[1..]).output().expect("the program is there: cargo xtask setup");
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}
