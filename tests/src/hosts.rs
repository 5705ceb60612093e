//! homing, remote hosts beyond it, and their clients, on one switch. The hosts answer clients directly.

use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::instance::{Homing, binary, workers};
use crate::network::{Lan, Namespace, SERVICE_V4, backend_v4, backend_v6, client_v4, client_v6};
use crate::session::{Client, Session};
use serde_json::Value;

pub const CLIENTS: u8 = 16;
pub const PORT: u16 = 8080;

/// How homing sends packets to a host.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// As in the app's `backends`.
    pub forward: &'static str,
    /// Whether the host's own address is IPv4: over which packets in IP or GUE go.
    pub over_v4: bool,
}

pub const L2: Way = Way { forward: "l2", over_v4: true };

/// What a site is made of.
pub struct Plan<'a> {
    /// The address that clients connect to.
    pub service: IpAddr,
    /// One host for each.
    pub ways: &'a [Way],
    /// How many of the hosts, the first ones, are in the configuration.
    pub configured: usize,
    /// The device on homing's machine that has its addresses; see [`Lan::with`].
    pub device: &'a str,
    /// Lines of `[homing]`.
    pub settings: &'a str,
    /// Further lines of the app.
    pub more: &'a str,
    /// Starts the worker of a host, by its machine and number.
    pub worker: fn(&Namespace, u8) -> Option<Child>,
}

impl Default for Plan<'_> {
    /// Two hosts by link address.
    fn default() -> Self {
        Self {
            service: SERVICE_V4.into(),
            ways: &[L2, L2],
            configured: usize::MAX,
            device: "eth0",
            settings: "",
            more: "",
            worker: demo_worker,
        }
    }
}

/// A host's programs: its worker, and what takes packets out of others where the kernel has nothing for it.
pub struct Host(Vec<Child>);

impl Host {
    fn start(namespace: &Namespace, number: u8, plan: &Plan<'_>) -> Self {
        let way = plan.ways[usize::from(number)];
        let mut host = Self(Vec::new());
        if way.forward == "l2" || kernel_unpacks() {
            backend_setup(namespace, way, plan.service, &[]);
        } else {
            // The service address stands on the loopback interface, as for `l2`.
            backend_setup(namespace, L2, plan.service, &[]);
            host.unpack(namespace);
        }
        host.0.extend((plan.worker)(namespace, number));
        host
    }

    /// On a machine that is set up already, by link address.
    pub fn restart(namespace: &Namespace, number: u8) -> Self {
        let plan = Plan::default();
        backend_setup(namespace, L2, plan.service, &["--undo"]);
        Self::start(namespace, number, &plan)
    }

    fn unpack(&mut self, namespace: &Namespace) {
        const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/unpack.py");
        let mut child = Command::new("nsenter")
            .arg(&namespace.wrapper()[1])
            .args(["python3", SCRIPT])
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is there");
        let stdout = child.stdout.take().expect("it is piped");
        self.0.push(child);
        let mut line = String::new();
        let said = BufReader::new(stdout).read_line(&mut line);
        assert!(said.is_ok() && line == "ready\n", "{line:?}");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The built-in stateful app, on all of the host's addresses.
fn demo_worker(namespace: &Namespace, number: u8) -> Option<Child> {
    let worker = Command::new("nsenter")
        .arg(&namespace.wrapper()[1])
        .arg(binary())
        .args(["demo-worker", "--port", &PORT.to_string(), "--host", "::"])
        .env("HOMING_WORKER", format!("host {number}"))
        .stdout(Stdio::null())
        .spawn();
    Some(worker.expect("homing can be run"))
}

/// Whether this kernel has all that takes packets out of others, loaded already: a test loads nothing into it.
pub fn kernel_unpacks() -> bool {
    const MODULES: [&str; 5] = ["ipip", "sit", "ip6_tunnel", "fou", "fou6"];
    MODULES.iter().all(|module| Path::new("/sys/module").join(module).exists())
}

/// `homing backend-setup` on a host's machine.
fn backend_setup(namespace: &Namespace, way: Way, service: IpAddr, more: &[&str]) {
    let setup = Command::new("nsenter")
        .arg(&namespace.wrapper()[1])
        .arg(binary())
        .args(["backend-setup", way.forward, &service.to_string(), "--apply"])
        .args(["--over", if way.over_v4 { "ipv4" } else { "ipv6" }])
        .args(more)
        .output()
        .expect("homing can be run");
    assert!(setup.status.success(), "{}", String::from_utf8_lossy(&setup.stderr));
}

/// homing, its hosts and their clients.
pub struct Site {
    // In this order: processes end before their namespaces.
    pub homing: Homing,
    pub hosts: Vec<Host>,
    pub lan: Lan,
    service: IpAddr,
}

impl Site {
    /// Two hosts by link address. `more`: further lines of the app; `settings`: of `[homing]`.
    pub fn start(settings: &str, more: &str) -> Self {
        Self::start_as(&Plan { settings, more, ..Plan::default() })
    }

    /// Ready once its hosts are.
    pub fn start_as(plan: &Plan<'_>) -> Self {
        let lan = Lan::with(CLIENTS, plan.ways.len(), plan.device);
        let hosts = (0..).zip(&lan.backends).map(|(number, namespace)| Host::start(namespace, number, plan)).collect();
        let configured: Vec<String> =
            (0..).zip(plan.ways).take(plan.configured).map(|(number, way)| entry(number, *way)).collect();
        let listen = SocketAddr::from((plan.service, PORT));
        let app = format!(
            "[[app]]\nname = \"demo\"\nlisten = [\"{listen}\"]\naffinity = \"ip\"\nbackends = [{}]\n\
             health.path = \"/health\"\n{}\n",
            configured.join(", "),
            plan.more
        );
        let wrapper = lan.homing.wrapper();
        let homing = Homing::start_under(&wrapper.each_ref().map(String::as_str), plan.settings, &app);
        let site = Self { homing, hosts, lan, service: plan.service };
        site.homing.wait_until("the hosts answer", |status| {
            let is_ready = |worker: &&Value| worker["address"].is_string() && worker["state"] == "ready";
            workers(status, 0).iter().filter(is_ready).count() >= configured.len()
        });
        site
    }

    pub fn client(&self, number: u8) -> Client<'_> {
        client(&self.lan, self.service, number)
    }

    /// A session for each of these clients.
    pub fn open(&self, clients: std::ops::RangeInclusive<u8>) -> Vec<Session<'_>> {
        clients.map(|number| self.client(number).open()).collect()
    }
}

/// A host in the configuration.
pub fn entry(number: u8, way: Way) -> String {
    let address: IpAddr = if way.over_v4 { backend_v4(number).into() } else { backend_v6(number).into() };
    format!("{{ address = \"{}\", forward = {:?} }}", SocketAddr::from((address, PORT)), way.forward)
}

/// A client of the service, while the rest of the site is borrowed otherwise.
pub fn client(lan: &Lan, service: IpAddr, number: u8) -> Client<'_> {
    let from = if service.is_ipv4() { client_v4(number) } else { client_v6(number) };
    Client { namespace: Some(&lan.clients), from, target: SocketAddr::from((service, PORT)) }
}

/// Both the open connection and new ones reach the session's process.
pub fn assert_kept(session: &mut Session<'_>) {
    assert!(session.is_alive(), "the WebSocket of {:?} broke", session.hello);
    let answer = session.check().expect("the service answers");
    assert_eq!(answer.status, 200, "a new connection of {:?} reached another process: {answer:?}", session.hello);
}

/// How many of these sessions each of the first `N` hosts has.
pub fn spread<const N: usize>(sessions: &[Session<'_>]) -> [usize; N] {
    std::array::from_fn(|host| sessions.iter().filter(|session| session.hello.worker == format!("host {host}")).count())
}

/// What a host's worker says of bytes that it received.
pub fn receipt(host: &str, received: &[u8]) -> String {
    let digest = received.iter().fold(0_u32, |digest, &byte| digest.wrapping_mul(31).wrapping_add(byte.into()));
    format!("{host}: {} bytes, {digest:08x}", received.len())
}

/// Says of every datagram on the service's port what arrived, for as long as the process lives.
pub fn take_datagrams(site: &Site) {
    for (number, namespace) in site.lan.backends.iter().enumerate() {
        let to = site.client(1).target;
        let socket = namespace.enter(|| UdpSocket::bind(to).expect("the backend has the service address"));
        std::thread::spawn(move || {
            let mut datagram = vec![0; 65_536];
            while let Ok((len, from)) = socket.recv_from(&mut datagram) {
                let _ = socket.send_to(receipt(&format!("host {number}"), &datagram[..len]).as_bytes(), from);
            }
        });
    }
}

/// A client's socket for datagrams to the service.
pub fn datagrams(client: Client<'_>) -> UdpSocket {
    client.namespace.expect("one of its own").enter(|| {
        let socket = UdpSocket::bind((client.from, 0)).expect("the client's address");
        socket.connect(client.target).expect("a datagram socket takes any peer");
        socket.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
        socket
    })
}

/// The next answer is about this datagram, whole, and from the host that has the client's session.
pub fn assert_arrived(socket: &UdpSocket, session: &Session<'_>, datagram: &[u8]) {
    let mut answer = [0; 64];
    let len = socket.recv(&mut answer).expect("an answer");
    assert_eq!(String::from_utf8_lossy(&answer[..len]), receipt(&session.hello.worker, datagram));
}

/// The line of an app that takes datagrams too.
pub fn listen_udp(service: IpAddr) -> String {
    format!("listen_udp = [\"{}\"]", SocketAddr::from((service, PORT)))
}

/// A datagram whose bytes tell where they belong.
pub fn datagram(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8 ^ seed).collect()
}
