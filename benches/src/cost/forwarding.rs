//! Datagrams of known clients that a machine in the middle sends on: by homing, by others, and by routing alone.
//!
//! A cost is what a packet takes beyond one that is dropped as soon as the driver has it. homing works on frames that are not
//! yet packets of the kernel's, so its drop is XDP's; the others' is that of the first hook after the driver.

use std::net::Ipv4Addr;

use anyhow::ensure;

use super::balancer::Balancer;
use super::generator::{self, PACKETS};
use super::lab::{End, HOSTS, Lab, SERVICE, router};
use super::say;

/// The first service's port. Each has one of its own: what a balancer remembers of a flow outlives its service.
const PORT: u16 = 9_000;
const PORT_NFTABLES: u16 = 9_010;
const PORT_HOMING: u16 = 9_020;

pub fn measure(lab: &Lab) -> anyhow::Result<()> {
    lab.drop_at(End::Routers, true)?;
    let dropped = generator::instructions(SERVICE, PORT)?;
    lab.drop_at(End::Routers, false)?;
    say("packet dropped, by tc", dropped);
    lab.drop_at(End::Ours, true)?;
    others(lab, dropped)?;
    lab.drop_at(End::Ours, false)?;
    let xdp = lab.xdp_at(End::Routers, "sink")?;
    let dropped = generator::instructions(SERVICE, PORT)?;
    drop(xdp);
    say("packet dropped, by XDP", dropped);
    homing(lab, dropped)
}

fn others(lab: &Lab, dropped: f64) -> anyhow::Result<()> {
    let measured = |name: &str, to: Ipv4Addr, port: u16| {
        let cost = all_come_back(lab, name, to, port)?;
        say(name, cost - dropped);
        anyhow::Ok(())
    };
    measured("packet, plain IP forwarding", HOSTS[0], PORT)?;
    for (port, (name, way, persistence)) in (PORT..).zip([
        ("packet, IPVS NAT", "-m", ""),
        ("packet, IPVS NAT, persistent", "-m", "-p 600"),
        ("packet, IPVS DR", "-g", ""),
        ("packet, IPVS DR, persistent", "-g", "-p 600"),
    ]) {
        router(&format!("ipvsadm -A -u {SERVICE}:{port} -s rr {persistence}"))?;
        for host in HOSTS {
            router(&format!("ipvsadm -a -u {SERVICE}:{port} -r {host}:{port} {way}"))?;
        }
        measured(name, SERVICE, port)?;
        router("ipvsadm -C")?;
    }
    let hosts: Vec<String> = (0..).zip(HOSTS).map(|(number, host)| format!("{number} : {host}")).collect();
    router("nft add table ip cost")?;
    router("nft add chain ip cost pre { type nat hook prerouting priority -100 ; }")?;
    router(&format!(
        "nft add rule ip cost pre udp dport {PORT_NFTABLES} dnat to jhash ip saddr mod {} map {{ {} }}",
        HOSTS.len(),
        hosts.join(" , ")
    ))?;
    measured("packet, nftables DNAT by jhash", SERVICE, PORT_NFTABLES)?;
    router("nft delete table ip cost")
}

fn homing(lab: &Lab, dropped: f64) -> anyhow::Result<()> {
    let _sink = lab.xdp_at(End::Ours, "sink")?;
    let floor = lab.xdp_at(End::Routers, "floor_l2_table")?;
    let name = "packet, floor: link address by XDP";
    say(name, all_come_back(lab, name, SERVICE, PORT)? - dropped);
    drop(floor);
    let ways = [("l2", PORT_HOMING), ("ipip", PORT_HOMING + 1), ("gue", PORT_HOMING + 2)];
    let balancer = Balancer::forwarding(&ways)?;
    let _still = balancer.pause();
    for (way, port) in ways {
        let name = format!("packet, homing {way}");
        say(&name, all_come_back(lab, &name, SERVICE, port)? - dropped);
    }
    Ok(())
}

/// What is sent there comes back, so that what is measured does what its name says.
fn all_come_back(lab: &Lab, name: &str, to: Ipv4Addr, port: u16) -> anyhow::Result<f64> {
    let before = lab.received()?;
    let cost = generator::instructions(to, port)?;
    let received = lab.received()? - before;
    ensure!(received >= u64::from(PACKETS), "{name}: {received} packets came back, not {PACKETS} and more");
    Ok(cost)
}
