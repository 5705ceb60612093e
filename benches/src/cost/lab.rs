//! Where costs are measured: a balancer's machine and one that is all else, its clients and the hosts behind it, at the two
//! ends of a cable. What the balancer sends on goes back by the cable, as on a network with one switch.
//!
//! ```text
//! this namespace: g0 10.1.0.1, hosts 10.1.254.2 to .5 ── r0 10.1.255.254: namespace router
//! ```
//!
//! All neighbours are known for good, so that nobody asks for them.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::process::Command;

use anyhow::{Context as _, ensure};
use aya::Ebpf;
use aya::maps::Array;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::datapath::attach_floor;

/// The balancer's address, that clients connect to.
pub const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 1, 255, 254);
/// The hosts behind it.
pub const HOSTS: [Ipv4Addr; 4] = [
    Ipv4Addr::new(10, 1, 254, 2),
    Ipv4Addr::new(10, 1, 254, 3),
    Ipv4Addr::new(10, 1, 254, 4),
    Ipv4Addr::new(10, 1, 254, 5),
];
/// The first client's address; the others follow it.
pub const FIRST_CLIENT: Ipv4Addr = Ipv4Addr::new(10, 1, 16, 0);
/// What clients' addresses lie in.
const CLIENTS: &str = "10.1.16.0/20";
pub const CLIENT_COUNT: u32 = 1_000;

pub const ROUTER: &str = "router";
pub const ROUTER_LINK: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub const OUR_LINK: [u8; 6] = [2, 0, 0, 0, 0, 1];

pub struct Lab;

/// The two ends of the cable.
#[derive(Clone, Copy)]
pub enum End {
    Ours,
    Routers,
}

impl Lab {
    pub fn new() -> anyhow::Result<Self> {
        let [ours, routers] = [OUR_LINK, ROUTER_LINK].map(words);
        ip(&format!("netns add {ROUTER}"))?;
        ip(&format!("-n {ROUTER} link set lo up"))?;
        ip(&format!("link add g0 address {ours} type veth peer name r0 address {routers} netns {ROUTER}"))?;
        for device in ["g0".to_owned(), format!("-n {ROUTER} r0")] {
            let (within, device) = device.rsplit_once(' ').unwrap_or(("", &device));
            ip(&format!("{within} link set {device} addrgenmode none"))?;
            ip(&format!("{within} link set {device} up"))?;
        }
        ip("address add 10.1.0.1/16 dev g0")?;
        ip(&format!("-n {ROUTER} address add {SERVICE}/16 dev r0"))?;
        ip(&format!("neigh add {SERVICE} lladdr {routers} dev g0 nud permanent"))?;
        ip(&format!("-n {ROUTER} neigh add 10.1.0.1 lladdr {ours} dev r0 nud permanent"))?;
        for host in HOSTS {
            ip(&format!("address add {host}/16 dev g0"))?;
            ip(&format!("-n {ROUTER} neigh add {host} lladdr {ours} dev r0 nud permanent"))?;
        }
        ip(&format!("route add local {CLIENTS} dev lo"))?;
        ip(&format!("-n {ROUTER} route add {CLIENTS} via 10.1.0.1"))?;
        // Packets go out where they came in, which their senders need not be told.
        router(
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.r0.rp_filter=0 \
             net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.r0.send_redirects=0",
        )?;
        run("tc qdisc add dev g0 clsact")?;
        router("tc qdisc add dev r0 clsact")?;
        Ok(Self)
    }

    /// Whether all that arrives at this end is dropped at the first place after the driver.
    pub fn drop_at(&self, end: End, does: bool) -> anyhow::Result<()> {
        let filter = |device| {
            if does {
                format!("tc filter add dev {device} ingress matchall action drop")
            } else {
                format!("tc filter del dev {device} ingress")
            }
        };
        match end {
            End::Ours => run(&filter("g0")),
            End::Routers => router(&filter("r0")),
        }
    }

    /// One of the floors' programs at this end, for as long as the value lives.
    pub fn xdp_at(&self, end: End, name: &str) -> anyhow::Result<Ebpf> {
        let attach = |device| {
            let mut ebpf = attach_floor(name, device)?;
            let [a, b, c, d, e, f] = OUR_LINK;
            let [g, h, i, j, k, l] = ROUTER_LINK;
            let mut link: Array<_, [u32; 3]> = ebpf.map_mut("LINK").context("a map")?.try_into()?;
            link.set(0, [[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_ne_bytes), 0)?;
            anyhow::Ok(ebpf)
        };
        match end {
            End::Ours => attach("g0"),
            End::Routers => enter(ROUTER, || attach("r0")),
        }
    }

    /// Packets that have arrived at this machine.
    pub fn received(&self) -> anyhow::Result<u64> {
        let output = Command::new("ip").args(["-s", "-j", "link", "show", "dev", "g0"]).output()?;
        let links: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        links[0]["stats64"]["rx"]["packets"].as_u64().context("a device counts its packets")
    }
}

/// A link address as text.
pub fn words(link: [u8; 6]) -> String {
    link.map(|byte| format!("{byte:02x}")).join(":")
}

/// Runs `act` on a thread in this namespace: what it opens stays there.
pub fn enter<T: Send>(namespace: &str, act: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    let file = File::open(format!("/run/netns/{namespace}")).context("a namespace")?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
            act()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

pub fn ip(words: &str) -> anyhow::Result<()> {
    run(&format!("ip {words}"))
}

/// A command on the balancer's machine.
pub fn router(words: &str) -> anyhow::Result<()> {
    run(&format!("ip netns exec {ROUTER} {words}"))
}

/// A command, its words apart by spaces.
pub fn run(words: &str) -> anyhow::Result<()> {
    let mut parts = words.split_whitespace();
    let output = Command::new(parts.next().context("a command")?).args(parts).output();
    let output = output.with_context(|| words.to_owned())?;
    ensure!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
