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

/// Where clients of remote backends connect to. Backends have it too, so that it is not homing's own address on the
/// cable: they could not answer its questions.
pub const SERVICE_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
pub const SERVICE_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x100);

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

    /// Brings up the end of a cable, and above it this device: a bridge (`br0`), a VLAN's (`eth0.7`, by number) or a bond
    /// (`bond0`); none where both names are the same.
    pub fn stack(&self, end: &str, device: &str) {
        match device.split_once('.') {
            Some((_, id)) => self.ip(&["link", "add", "link", end, "name", device, "type", "vlan", "id", id]),
            None if device.starts_with("bond") => {
                self.ip(&["link", "add", device, "type", "bond", "mode", "active-backup", "miimon", "20"]);
                // Those that are up are not taken.
                self.ip(&["link", "set", end, "down", "master", device]);
            }
            None if device.starts_with("br") => {
                self.ip(&["link", "add", device, "type", "bridge"]);
                self.ip(&["link", "set", end, "master", device]);
            }
            None => {}
        }
        for link in [end, device] {
            self.ip(&["link", "set", link, "up"]);
        }
    }

    /// An XDP program on this end of a cable that lets everything pass, for as long as the value lives: a veth takes
    /// frames from the XDP of its other end only then.
    pub fn let_pass(&self, device: &str) -> aya::Ebpf {
        self.enter(|| {
            let mut ebpf = aya::EbpfLoader::new().load(homing::datapath::OBJECT).expect("the object loads");
            let program: &mut aya::programs::Xdp =
                ebpf.program_mut("homing_xdp").expect("a program").try_into().expect("its type");
            program.load().expect("it loads");
            program.attach(device, aya::programs::xdp::XdpMode::Driver).expect("veth takes XDP");
            ebpf
        })
    }

    /// An sk_lookup program in this namespace that knows no service and lets everything pass, for as long as the value
    /// lives.
    pub fn let_look_up(&self) -> aya::Ebpf {
        self.enter(|| {
            let mut ebpf = aya::EbpfLoader::new().load(homing::datapath::OBJECT).expect("the object loads");
            let program: &mut aya::programs::SkLookup =
                ebpf.program_mut("homing_lookup").expect("a program").try_into().expect("its type");
            program.load().expect("it loads");
            program.attach(File::open("/proc/thread-self/ns/net").expect("a namespace")).expect("it is attached");
            ebpf
        })
    }

    /// What a program in this namespace prints.
    pub fn output(&self, words: &[&str]) -> String {
        let output = Command::new("ip").args(["netns", "exec", &self.name]).args(words).output().expect("ip is there");
        String::from_utf8(output.stdout).expect("text")
    }

    /// A program in this namespace.
    pub fn run(&self, words: &[&str]) {
        run(&[&["ip", "netns", "exec", &self.name], words].concat());
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
        Self::with(clients, "eth0")
    }

    /// The addresses of both ends are on this device: the cable's end (`eth0`), or what [`Namespace::stack`] puts above it.
    pub fn with(clients: u8, device: &str) -> Self {
        let network = Self { server: Namespace::new("server"), clients: Namespace::new("clients") };
        let (server, there) = (&network.server, &network.clients);
        server.ip(&["link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", there.name()]);
        server.stack("eth0", device);
        there.stack("eth0", device);
        server.ip(&["address", "add", &format!("{SERVER_V4}/16"), "dev", device]);
        server.ip(&["address", "add", &format!("{SERVER_V6}/32"), "dev", device, "nodad"]);
        for number in 1..=clients {
            there.ip(&["address", "add", &format!("{}/16", client_v4(number)), "dev", device]);
            there.ip(&["address", "add", &format!("{}/32", client_v6(number)), "dev", device, "nodad"]);
        }
        // Strangers have no address of their own: the whole prefix is the clients' machine's.
        there.ip(&["route", "add", "local", STRANGERS, "dev", "lo"]);
        server.ip(&["route", "add", STRANGERS, "via", &client_v4(1).to_string(), "dev", device]);
        network
    }
}

/// Machines on one switch: homing, backends beyond it, and the clients. Frames that XDP sends over a veth arrive only
/// at an end that has an XDP program too, so the switch's end of homing's cable has one that lets everything pass.
pub struct Lan {
    pub homing: Namespace,
    pub backends: Vec<Namespace>,
    pub clients: Namespace,
    _switch: Namespace,
    _pass: aya::Ebpf,
}

/// A backend's own address.
pub fn backend_v4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 11 + number)
}

/// A backend's own address.
pub fn backend_v6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x11 + u16::from(number))
}

impl Lan {
    /// With clients as [`Network::new`] has them, and so many backends.
    pub fn new(clients: u8, backends: usize) -> Self {
        Self::with(clients, backends, "eth0")
    }

    /// homing's addresses are on this device: its end of the cable (`eth0`), or what [`Namespace::stack`] puts above it.
    pub fn with(clients: u8, backends: usize, device: &str) -> Self {
        let switch = Namespace::new("switch");
        switch.ip(&["link", "add", "br0", "type", "bridge"]);
        switch.ip(&["link", "set", "br0", "up"]);
        let machine = |role: &str, port: &str| {
            let namespace = Namespace::new(role);
            namespace.ip(&["link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", switch.name()]);
            // A frame that homing sends on must have its checksums.
            namespace.run(&["ethtool", "-K", "eth0", "tx", "off"]);
            namespace
        };
        let plug = |port: &str| switch.ip(&["link", "set", port, "master", "br0", "up"]);
        let homing = machine("homing", "homing");
        homing.stack("eth0", device);
        match device.split_once('.') {
            // The switch takes the tag off.
            Some((_, id)) => {
                let tagged = format!("homing.{id}");
                switch.stack("homing", &tagged);
                plug(&tagged);
            }
            None => plug("homing"),
        }
        let on_switch = |name: &str| {
            let namespace = machine(name, name);
            plug(name);
            namespace.ip(&["link", "set", "eth0", "up"]);
            namespace
        };
        let backends: Vec<Namespace> =
            (0..backends).map(|number| format!("backend{number}")).map(|name| on_switch(&name)).collect();
        let there = on_switch("clients");
        homing.ip(&["address", "add", &format!("{SERVER_V4}/16"), "dev", device]);
        homing.ip(&["address", "add", &format!("{SERVICE_V4}/32"), "dev", device]);
        homing.ip(&["address", "add", &format!("{SERVER_V6}/32"), "dev", device, "nodad"]);
        // With no preferred lifetime it is no connection's own choice of address: those of homing to its backends.
        let service_v6 = format!("{SERVICE_V6}/128");
        homing.ip(&["address", "add", &service_v6, "dev", device, "nodad", "preferred_lft", "0"]);
        for (number, backend) in (0..).zip(&backends) {
            backend.ip(&["address", "add", &format!("{}/16", backend_v4(number)), "dev", "eth0"]);
            backend.ip(&["address", "add", &format!("{}/32", backend_v6(number)), "dev", "eth0", "nodad"]);
        }
        for number in 1..=clients {
            there.ip(&["address", "add", &format!("{}/16", client_v4(number)), "dev", "eth0"]);
            there.ip(&["address", "add", &format!("{}/32", client_v6(number)), "dev", "eth0", "nodad"]);
        }
        let pass = switch.let_pass("homing");
        Self { homing, backends, clients: there, _switch: switch, _pass: pass }
    }
}

/// The address of a client, 1 and up.
pub fn client_v4(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 77, 1, number).into()
}

const STRANGERS: &str = "10.78.0.0/16";

/// The address of one of 65,536 further clients.
pub fn stranger_v4(number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 78, high, low).into()
}

/// The address of a client, in a /64 of its own.
pub fn client_v6(number: u8) -> IpAddr {
    Ipv6Addr::new(0xfd77, 0, 0, u16::from(number), 0, 0, 0, 1).into()
}

pub(crate) fn run(words: &[&str]) {
    let output = Command::new(words[0]).args(&words[1..]).output().expect("the program is there: cargo xtask setup");
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}
