//! A packet to a remote backend: the way there, the headers on the way, and the answer to one that is too big.
//!
//! The kernel's own routing and neighbour tables decide the way; each CPU remembers it for up to a second, so that it
//! follows them even while homing is away.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_TX};
use aya_ebpf::bindings::{BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as FibLookup};
use aya_ebpf::helpers::generated::{bpf_fib_lookup, bpf_redirect, bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use aya_ebpf::programs::XdpContext;
use lb_common::abi::{Backend, Counter, FAMILY_V4, FAMILY_V6, FORWARD_GUE, FORWARD_L2, Route};
use lb_common::addr::Addr;
use lb_common::checksum;
use lb_common::encap;
use lb_common::parse::Packet as _;

use crate::maps::{self, ROUTES};
use crate::packet::XdpPacket;
use crate::steer::{Outgoing, octets_v4, words_v6};

const ETHERNET_LEN: usize = 14;
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
/// The loopback interface of every namespace (Linux: include/net/net_namespace.h). Routes are asked for as if the packet
/// came from this machine, which takes `forwarding` on that interface alone.
const LOOPBACK: u32 = 1;

/// Sends the packet to its backend. A function of its own: its stack is its own, too.
#[inline(never)]
pub fn send(ctx: &XdpContext, outgoing: &Outgoing) -> u32 {
    // SAFETY: whoever sends has put a map value there, which the verifier knows.
    let backend = unsafe { &*outgoing.backend };
    let Some(route) = route(ctx, backend) else { return XDP_DROP };
    match prepare(ctx, outgoing, backend, route) {
        Ok(()) => {
            maps::count(match backend.forward {
                FORWARD_L2 => Counter::XdpForwardedL2,
                FORWARD_GUE => Counter::XdpForwardedGue,
                _ => Counter::XdpForwardedIpip,
            });
            transmit(ctx, route)
        }
        Err(verdict) => verdict,
    }
}

#[inline(always)]
fn transmit(ctx: &XdpContext, route: &Route) -> u32 {
    if route.interface == ctx.ingress_ifindex() as u32 {
        return XDP_TX;
    }
    // SAFETY: a helper that takes two numbers; XDP_REDIRECT or XDP_ABORTED.
    unsafe { bpf_redirect(route.interface, 0) as u32 }
}

/// Makes the frame what goes out. `Err`: the verdict on a packet that does not.
#[inline(always)]
fn prepare(ctx: &XdpContext, outgoing: &Outgoing, backend: &Backend, route: &Route) -> Result<(), u32> {
    let Outgoing { network, is_v4, flow, .. } = *outgoing;
    let network = usize::from(network);
    let packet = XdpPacket::new(ctx);
    let outer_len = outer_len(backend);
    let (inner_len, class) = hop(&packet, network, is_v4)?;
    if inner_len as usize + outer_len > route.mtu as usize {
        maps::count(Counter::XdpTooBig);
        let mtu = (route.mtu as usize - outer_len) as u16;
        return Err(if is_v4 { too_big_v4(ctx, network, mtu) } else { too_big_v6(ctx, network, mtu) });
    }
    let inner_type = if is_v4 { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
    if backend.forward == FORWARD_L2 {
        // VLAN tags stay behind: the way out is the routing table's.
        return rewrite(ctx, network, 0, route, inner_type).map(drop);
    }
    let protocol = if is_v4 { encap::PROTO_IPV4 } else { encap::PROTO_IPV6 };
    let outer_v4 = backend.address.is_v4();
    let outer_type = if outer_v4 { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
    let packet = rewrite(ctx, network, outer_len, route, outer_type)?;
    let is_gue = backend.forward == FORWARD_GUE;
    let (outer_protocol, payload_len) =
        if is_gue { (encap::GUE_PROTO, encap::GUE_LEN as u16 + inner_len) } else { (protocol, inner_len) };
    let written = if outer_v4 {
        let header = encap::ipv4(backend.source, backend.address, outer_protocol, payload_len, class);
        packet.write(ETHERNET_LEN, header)
    } else {
        let header = encap::ipv6(backend.source, backend.address, outer_protocol, payload_len, class);
        packet.write(ETHERNET_LEN, header)
    };
    let written = written.and_then(|()| {
        if !is_gue {
            return Some(());
        }
        let header = encap::gue(backend.gue_port as u16, flow, protocol, inner_len);
        let at = ETHERNET_LEN + if outer_v4 { encap::IPV4_LEN } else { encap::IPV6_LEN };
        packet.write(at, header)
    });
    written.ok_or_else(|| drop_because(Counter::XdpNoRoom))
}

#[inline(always)]
fn outer_len(backend: &Backend) -> usize {
    let ip = if backend.address.is_v4() { encap::IPV4_LEN } else { encap::IPV6_LEN };
    match backend.forward {
        FORWARD_L2 => 0,
        FORWARD_GUE => ip + encap::GUE_LEN,
        _ => ip,
    }
}

/// Takes one hop off; length and traffic class of the packet.
#[inline(always)]
fn hop(packet: &XdpPacket, network: usize, is_v4: bool) -> Result<(u16, u8), u32> {
    let cut = || drop_because(Counter::XdpTruncated);
    if is_v4 {
        let [_, tos, l0, l1] = packet.read(network).ok_or_else(cut)?;
        let [ttl, protocol, c0, c1] = packet.read(network + 8).ok_or_else(cut)?;
        if ttl <= 1 {
            return Err(drop_because(Counter::XdpTtl));
        }
        let old = u16::from_be_bytes([ttl, protocol]);
        let sum = checksum::update(u16::from_be_bytes([c0, c1]), old, old - 0x0100).to_be_bytes();
        packet.write(network + 8, [ttl - 1, protocol, sum[0], sum[1]]).ok_or_else(cut)?;
        Ok((u16::from_be_bytes([l0, l1]), tos))
    } else {
        let [first, second] = packet.read(network).ok_or_else(cut)?;
        let [l0, l1, _, limit] = packet.read(network + 4).ok_or_else(cut)?;
        if limit <= 1 {
            return Err(drop_because(Counter::XdpTtl));
        }
        packet.write(network + 7, [limit - 1]).ok_or_else(cut)?;
        let len = u16::from_be_bytes([l0, l1]).saturating_add(encap::IPV6_LEN as u16);
        Ok((len, (first << 4) | (second >> 4)))
    }
}

/// Room for `added` bytes before the IP packet, then the link header. The frame as it is then.
#[inline(always)]
fn rewrite(
    ctx: &XdpContext,
    network: usize,
    added: usize,
    route: &Route,
    ethertype: [u8; 2],
) -> Result<XdpPacket, u32> {
    let delta = network as i32 - ETHERNET_LEN as i32 - added as i32;
    // SAFETY: moves the frame's begin; every pointer into it is made anew below.
    if delta != 0 && unsafe { bpf_xdp_adjust_head(ctx.ctx, delta) } != 0 {
        return Err(drop_because(Counter::XdpNoRoom));
    }
    let packet = XdpPacket::new(ctx);
    packet
        .write_link(route.link)
        .and_then(|()| packet.write(12, ethertype))
        .map(|()| packet)
        .ok_or_else(|| drop_because(Counter::XdpNoRoom))
}

#[inline(always)]
fn drop_because(counter: Counter) -> u32 {
    maps::count(counter);
    XDP_DROP
}

/// The way to the backend. `None` is counted.
#[inline(always)]
fn route(ctx: &XdpContext, backend: &Backend) -> Option<&'static Route> {
    let now = (maps::now_ns() >> 30) as u32;
    let cached = ROUTES.get_ptr_mut(backend.id.index())?;
    // SAFETY: this CPU's own value; XDP programs are not interrupted by one another on a CPU.
    unsafe {
        if (*cached).backend != backend.id || (*cached).looked_up != now {
            *cached = look_up(ctx, backend, now)?;
        }
        Some(&*cached)
    }
}

#[inline(always)]
fn look_up(ctx: &XdpContext, backend: &Backend, now: u32) -> Option<Route> {
    // SAFETY: plain integers and byte arrays.
    let mut query: FibLookup = unsafe { core::mem::zeroed() };
    query.ifindex = LOOPBACK;
    if backend.address.is_v4() {
        query.family = FAMILY_V4 as u8;
        query.__bindgen_anon_3.ipv4_src = octets_v4(backend.source);
        query.__bindgen_anon_4.ipv4_dst = octets_v4(backend.address);
    } else {
        query.family = FAMILY_V6 as u8;
        query.__bindgen_anon_3.ipv6_src = words_v6(backend.source);
        query.__bindgen_anon_4.ipv6_dst = words_v6(backend.address);
    }
    let size = size_of::<FibLookup>() as i32;
    // SAFETY: a structure of the size given, which the helper fills.
    let found = unsafe { bpf_fib_lookup(ctx.as_ptr(), &raw mut query, size, 0) };
    if found != i64::from(BPF_FIB_LKUP_RET_SUCCESS) {
        let no_neighbour = found == i64::from(BPF_FIB_LKUP_RET_NO_NEIGH);
        maps::count(if no_neighbour { Counter::XdpNoNeighbour } else { Counter::XdpNoRoute });
        return None;
    }
    let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (query.dmac, query.smac);
    let link = [[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_ne_bytes);
    // SAFETY: the helper wrote the route's MTU there (Linux 5.12), in a union of two numbers of one size.
    let mtu = u32::from(unsafe { query.__bindgen_anon_1.mtu_result });
    Some(Route { backend: backend.id, looked_up: now, interface: query.ifindex, mtu, link, reserved: 0 })
}

#[inline(never)]
fn too_big_v4(ctx: &XdpContext, network: usize, mtu: u16) -> u32 {
    let packet = XdpPacket::new(ctx);
    let read =
        || Some((packet.read(network + 12)?, packet.read(network + 16)?, sum_at(&packet, network, encap::QUOTE_V4)?));
    let Some((client, service, sum)) = read() else { return drop_because(Counter::XdpTruncated) };
    let headers = encap::fragmentation_needed(sum, Addr::v4(client), Addr::v4(service), mtu);
    answer::<{ encap::QUOTE_V4 }, { encap::IPV4_LEN + 8 }>(ctx, network, headers)
}

#[inline(never)]
fn too_big_v6(ctx: &XdpContext, network: usize, mtu: u16) -> u32 {
    let packet = XdpPacket::new(ctx);
    let read =
        || Some((packet.read(network + 8)?, packet.read(network + 24)?, sum_at(&packet, network, encap::QUOTE_V6)?));
    let Some((client, service, sum)) = read() else { return drop_because(Counter::XdpTruncated) };
    let headers = encap::packet_too_big(sum, Addr::v6(client), Addr::v6(service), mtu);
    answer::<{ encap::QUOTE_V6 }, { encap::IPV6_LEN + 8 }>(ctx, network, headers)
}

/// The checksum's sum over `len` bytes, a multiple of four.
#[inline(always)]
fn sum_at(packet: &XdpPacket, offset: usize, len: usize) -> Option<u32> {
    let mut sum = 0;
    for at in 0..len / 4 {
        sum += checksum::sum::<4>(&packet.read(offset + 4 * at)?);
    }
    Some(sum)
}

/// Back to where it came from: the link header turned round, tags as they were, these headers, the quote.
#[inline(always)]
pub fn answer<const QUOTE: usize, const HEADERS: usize>(
    ctx: &XdpContext,
    network: usize,
    headers: [u8; HEADERS],
) -> u32 {
    let sent = match network {
        14 => answer_after::<2, QUOTE, HEADERS>(ctx, headers),
        18 => answer_after::<6, QUOTE, HEADERS>(ctx, headers),
        _ => answer_after::<10, QUOTE, HEADERS>(ctx, headers),
    };
    if sent.is_none() { drop_because(Counter::XdpNoRoom) } else { XDP_TX }
}

/// `TAGS`: bytes between the link addresses and the IP packet.
#[inline(always)]
fn answer_after<const TAGS: usize, const QUOTE: usize, const HEADERS: usize>(
    ctx: &XdpContext,
    headers: [u8; HEADERS],
) -> Option<()> {
    let packet = XdpPacket::new(ctx);
    let destination: [u8; 6] = packet.read(0)?;
    let source: [u8; 6] = packet.read(6)?;
    let tags: [u8; TAGS] = packet.read(12)?;
    let excess = packet.len() as i32 - (12 + TAGS + QUOTE) as i32;
    // SAFETY: moves the frame's end and begin; every pointer into it is made anew below.
    unsafe {
        if bpf_xdp_adjust_tail(ctx.ctx, -excess) != 0 || bpf_xdp_adjust_head(ctx.ctx, -(HEADERS as i32)) != 0 {
            return None;
        }
    }
    let packet = XdpPacket::new(ctx);
    packet.write(0, source)?;
    packet.write(6, destination)?;
    packet.write(12, tags)?;
    packet.write(12 + TAGS, headers)
}
