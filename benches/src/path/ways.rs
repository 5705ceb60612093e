//! The ways to a worker that `path` measures.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use anyhow::{Context as _, ensure};
use aya::Ebpf;
use homing_tests::instance::Homing;
use homing_tests::network::{Namespace, Network, SERVER_V4};

use crate::datapath::attach_floor;
use crate::http::peers::homing_file;
use crate::load::CLIENTS;
use crate::peers::{Peer, Plan, homing_binary, program};
use crate::worker::Worker;

/// Straight to the worker.
pub const DIRECT: &str = "direct";
/// The same where an XDP program that does nothing has every packet first: on this cable each is made anew for it.
pub const DIRECT_BELOW_XDP: &str = "direct, below XDP";
/// Where the worker of the bare machine listens.
const WORKER: u16 = 9100;
/// Where the kernel path's clients connect to.
const KERNEL: u16 = 8080;
/// What nftables leads to the worker.
const NFTABLES: u16 = 8090;

/// Machines with a cable each to clients of their own. homing's programs are on two of them, on one without XDP on the cable; an
/// XDP program that lets everything pass is on another. The bare one has none, so that nothing but the balancer in question is in
/// the way there.
pub struct Machines {
    // In this order: what runs in a namespace ends before it.
    homing: Homing,
    homing_without_xdp: Homing,
    worker: Worker,
    worker_below_xdp: Worker,
    peers: Vec<Peer>,
    _pass: Ebpf,
    with_homing: Network,
    without_xdp: Network,
    below_xdp: Network,
    bare: Network,
}

/// One way to a worker.
pub struct Way<'a> {
    pub name: &'static str,
    /// The direct way that it is compared with.
    pub beside: &'static str,
    pub target: SocketAddr,
    pub clients: &'a Namespace,
    pub worker: u32,
    /// What takes CPU in between, besides the kernel.
    pub balancer: Option<u32>,
    /// nftables' rules are there only while they are measured: they track every connection of the machine.
    rules: Option<&'a Namespace>,
}

impl Machines {
    pub fn start() -> anyhow::Result<(Self, Vec<&'static str>)> {
        let [bare, below_xdp, without_xdp, with_homing] = std::array::from_fn(|_| Network::new(CLIENTS));
        for network in [&bare, &below_xdp, &without_xdp, &with_homing] {
            for machine in [&network.server, &network.clients] {
                // A proxy's connections come from one address, and each keeps its port for a minute.
                machine.run(&["sysctl", "-qw", "net.ipv4.ip_local_port_range=10240 65535"]);
            }
        }
        let listen = (Ipv4Addr::UNSPECIFIED, WORKER).into();
        let worker = Worker::start_in(&bare.server, listen)?;
        let worker_below_xdp = Worker::start_in(&below_xdp.server, listen)?;
        let pass = below_xdp.server.enter(|| attach_floor("floor_pass", "eth0"))?;
        let behind = SocketAddr::from((Ipv4Addr::LOCALHOST, WORKER));
        let mut peers = Vec::new();
        let mut missing = Vec::new();
        let plans: [(_, u16, _, _, &[&str]); 3] = [
            ("HTTP path", 8081, Some(homing_binary()?), "homing.toml", &["run", "--config", "homing.toml"]),
            ("HAProxy, TCP", 8091, program("haproxy"), "haproxy.cfg", &["-db", "-f", "haproxy.cfg"]),
            ("nginx, stream", 8092, nginx(), "nginx.conf", &["-p", ".", "-e", "error.log", "-c", "nginx.conf"]),
        ];
        for (name, port, program, file, arguments) in plans {
            let Some(program) = program else {
                missing.push(name);
                continue;
            };
            let address = SocketAddr::from((SERVER_V4, port));
            let text = match name {
                "HTTP path" => homing_file(address, &[behind]),
                "HAProxy, TCP" => haproxy_file(address, behind),
                _ => nginx_file(address, behind),
            };
            let namespace = Some(&bare.server);
            peers.push(Peer::start(Plan {
                name,
                program: &program,
                arguments,
                file: (file, text),
                address,
                namespace,
            })?);
        }
        if program("nft").is_none() {
            missing.push("nftables");
        }
        let homing = kernel_path(&with_homing.server, "eth0")?;
        let homing_without_xdp = kernel_path(&without_xdp.server, "lo")?;
        let machines = Self {
            homing,
            homing_without_xdp,
            worker,
            worker_below_xdp,
            peers,
            _pass: pass,
            with_homing,
            without_xdp,
            below_xdp,
            bare,
        };
        Ok((machines, missing))
    }

    /// The first is the direct one.
    pub fn ways(&self) -> anyhow::Result<Vec<Way<'_>>> {
        let at = |port| SocketAddr::from((SERVER_V4, port));
        let way = |name, port, balancer| Way {
            name,
            beside: DIRECT,
            target: at(port),
            clients: &self.bare.clients,
            worker: self.worker.pid(),
            balancer,
            rules: None,
        };
        let mut ways = vec![
            way(DIRECT, WORKER, None),
            Way {
                clients: &self.below_xdp.clients,
                worker: self.worker_below_xdp.pid(),
                ..way(DIRECT_BELOW_XDP, WORKER, None)
            },
            Way {
                clients: &self.without_xdp.clients,
                worker: worker_of(&self.homing_without_xdp)?,
                ..way("kernel path without XDP", KERNEL, Some(self.homing_without_xdp.pid()))
            },
            Way {
                beside: DIRECT_BELOW_XDP,
                clients: &self.with_homing.clients,
                worker: worker_of(&self.homing)?,
                ..way("kernel path", KERNEL, Some(self.homing.pid()))
            },
        ];
        if program("nft").is_some() {
            ways.push(Way { rules: Some(&self.bare.server), ..way("nftables, DNAT", NFTABLES, None) });
        }
        for peer in &self.peers {
            // They outlive this borrow's names.
            let name = ["HTTP path", "HAProxy, TCP", "nginx, stream"].into_iter().find(|name| *name == peer.name);
            ways.push(way(name.context("a peer's name")?, peer.address.port(), Some(peer.pid())));
        }
        Ok(ways)
    }
}

/// The process of its only worker.
fn worker_of(homing: &Homing) -> anyhow::Result<u32> {
    Ok(u32::try_from(*homing.pids(0).first().context("homing's worker runs")?)?)
}

impl Way<'_> {
    /// With its rules in force, if it has any.
    pub fn measure<T>(&self, act: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        let Some(machine) = self.rules else { return act() };
        nft(machine, &rules())?;
        let measured = act();
        nft(machine, "delete table ip bench")?;
        measured
    }
}

/// A homing with one worker, reached by address, and XDP on this interface.
fn kernel_path(machine: &Namespace, interface: &str) -> anyhow::Result<Homing> {
    let bench = std::env::current_exe()?;
    let app = format!(
        "[[app]]\nname = \"bench\"\nlisten = [\"{SERVER_V4}:{KERNEL}\"]\naffinity = \"ip\"\n\
         command = [{bench:?}, \"worker\", \"--listen\", \"127.0.0.1:{{port}}\"]\nenv = {{ TOKIO_WORKER_THREADS = \"1\" }}\n\
         [app.workers]\nmin = 1\nmax = 1\nmax_connections = 100000\n[app.timeouts]\ndrain = \"0s\"\n"
    );
    let settings = format!("interfaces = [{interface:?}]");
    let homing = Homing::start_under(&machine.wrapper().each_ref().map(String::as_str), &settings, &app);
    let status = homing.wait_for_workers(0, 1);
    let path = &status["kernel_path"];
    ensure!(path["active"] == true, "no kernel path, nothing to measure: {}", path["reason"]);
    Ok(homing)
}

/// nginx, where it has the module.
fn nginx() -> Option<std::path::PathBuf> {
    program("nginx").filter(|_| std::path::Path::new(STREAM).exists())
}

const STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

fn nginx_file(listen: SocketAddr, upstream: SocketAddr) -> String {
    format!(
        "load_module {STREAM};\ndaemon off; master_process off; worker_processes 1; pid nginx.pid;\n\
         events {{ worker_connections 9000; }}\n\
         stream {{ upstream app {{ hash $remote_addr consistent; server {upstream}; }}\n\
         server {{ listen {listen} backlog=4096; proxy_pass app; }} }}\n"
    )
}

fn haproxy_file(listen: SocketAddr, upstream: SocketAddr) -> String {
    format!(
        "global\n nbthread 1\n maxconn 9000\ndefaults\n mode tcp\n timeout connect 5s\n timeout client 1h\n \
         timeout server 1h\nfrontend in\n bind {listen}\n default_backend app\nbackend app\n balance source\n \
         hash-type consistent\n server w {upstream}\n"
    )
}

/// By hash of the client's address, as the others choose; all lead to the only worker.
fn rules() -> String {
    let ways: Vec<String> = (0..4).map(|slot| format!("{slot} : {SERVER_V4} . {WORKER}")).collect();
    format!(
        "table ip bench {{\n chain in {{\n  type nat hook prerouting priority dstnat;\n  \
         ip daddr {SERVER_V4} tcp dport {NFTABLES} dnat ip to jhash ip saddr mod 4 map {{ {} }}\n }}\n}}\n",
        ways.join(", ")
    )
}

fn nft(machine: &Namespace, rules: &str) -> anyhow::Result<()> {
    let [nsenter, net] = machine.wrapper();
    let output = Command::new(nsenter).args([&net, "nft", rules]).output().context("nsenter cannot be run")?;
    ensure!(output.status.success(), "nft refuses {rules}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
