//! The kernel's own packet generator: datagrams of [`CLIENT_COUNT`] clients by turns, and how long they took from the first to
//! the last, whatever became of them on the way.

use std::fs;
use std::net::Ipv4Addr;

use anyhow::{Context as _, ensure};

use super::ROUNDS;
use super::lab::{CLIENT_COUNT, FIRST_CLIENT, ROUTER_LINK, words};

const DIR: &str = "/proc/net/pktgen";
/// Packets of one measurement.
pub const PACKETS: u32 = 10 * CLIENT_COUNT;
/// Packets that all tables know the clients after.
const WARMUP: u32 = 2 * CLIENT_COUNT;

/// Instructions for each of [`PACKETS`] to this address, everywhere on their way, after all clients were there before: the
/// least of [`ROUNDS`].
pub fn instructions(to: Ipv4Addr, port: u16) -> anyhow::Result<f64> {
    send(to, port, WARMUP)?;
    (0..ROUNDS).try_fold(f64::INFINITY, |least, _| Ok(least.min(send(to, port, PACKETS)?)))
}

fn send(to: Ipv4Addr, port: u16, count: u32) -> anyhow::Result<f64> {
    let last = Ipv4Addr::from(u32::from(FIRST_CLIENT) + CLIENT_COUNT - 1);
    tell("kpktgend_0", "rem_device_all")?;
    tell("kpktgend_0", "add_device g0")?;
    for command in [
        format!("count {count}"),
        "clone_skb 0".to_owned(),
        "pkt_size 60".to_owned(),
        "delay 0".to_owned(),
        "flag NO_TIMESTAMP".to_owned(),
        format!("dst {to}"),
        format!("dst_mac {}", words(ROUTER_LINK)),
        format!("src_min {FIRST_CLIENT}"),
        format!("src_max {last}"),
        format!("udp_dst_min {port}"),
        format!("udp_dst_max {port}"),
        "udp_src_min 40000".to_owned(),
        "udp_src_max 40000".to_owned(),
    ] {
        tell("g0", &command)?;
    }
    // Comes back when all are sent.
    tell("pgctrl", "start")?;
    let said = fs::read_to_string(format!("{DIR}/g0"))?;
    let result = said.lines().find_map(|line| line.strip_prefix("Result: OK: ")).context(said.clone())?;
    let microseconds: f64 = result.split('(').next().unwrap_or_default().parse().with_context(|| result.to_owned())?;
    ensure!(said.contains(&format!("pkts-sofar: {count}")), "not all were sent: {said}");
    Ok(microseconds * 1e3 / f64::from(count))
}

fn tell(file: &str, command: &str) -> anyhow::Result<()> {
    fs::write(format!("{DIR}/{file}"), format!("{command}\n")).with_context(|| format!("{DIR}/{file}: {command}"))
}
