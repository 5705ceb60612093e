//! A packet to a remote backend: the way there, the headers on the way, and the answer to one that is too big.
//!
//! The kernel's own routing and neighbour tables decide the way; each CPU remembers it for
//! [`ROUTE_TICKS`] at most, so that it follows them even while homing is away.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_TX};
use aya_ebpf::bindings::{BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as FibLookup};
use aya_ebpf::helpers::generated::{bpf_fib_lookup, bpf_redirect, bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use aya_ebpf::programs::XdpContext;
use lb_common::abi::{Backend, Counter, FAMILY_V4, FAMILY_V6, FORWARD_GUE, FORWARD_L2, ROUTE_TICKS, Route};
use lb_common::addr::Addr;
use lb_common::checksum;
use lb_common::encap;
use lb_common::parse::Packet as _;

use crate::maps::{self, ROUTES};
use crate::packet::{Span, XdpPacket};
use crate::steer::{Outgoing, octets_v4};

const ETHERNET_LEN: usize = 14;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// The loopback interface of every namespace (Linux: include/net/net_namespace.h). Routes are asked for as if the packet
/// came from this machine, which takes `forwarding` on that interface alone.
const LOOPBACK: u32 = 1;

/// Sends the packet to its backend. A function of its own: its stack is its own, too.
#[inline(never)]
pub fn send(ctx: &XdpContext, outgoing: &Outgoing) -> u32 {
    // SAFETY: whoever sends has put a map value there, which the verifier knows.
    let backend = unsafe { &*outgoing.backend };
    send_to(ctx, backend, usize::from(outgoing.network), outgoing.is_v4, outgoing.flow)
}

/// Sends a packet, whose IP header begins at `network`.
#[inline(always)]
pub fn send_to(ctx: &XdpContext, backend: &Backend, network: usize, is_v4: bool, flow: u32) -> u32 {
    let Some(route) = route(ctx, backend) else { return XDP_DROP };
    match prepare(ctx, backend, route, network, is_v4, flow) {
        Ok(counter) => {
            maps::count(counter);
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

/// Makes the frame what goes out, and says as what it counts. `Err`: the verdict on a packet that does not.
#[inline(always)]
fn prepare(
    ctx: &XdpContext,
    backend: &Backend,
    route: &Route,
    network: usize,
    is_v4: bool,
    flow: u32,
) -> Result<Counter, u32> {
    let inner_type = if is_v4 { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
    let fit = |len: u16, outer_len: usize| {
        if usize::from(len) + outer_len <= route.mtu as usize {
            return Ok(());
        }
        maps::count(Counter::XdpTooBig);
        let mtu = (route.mtu as usize - outer_len) as u16;
        Err(if is_v4 { too_big_v4(ctx, network, mtu) } else { too_big_v6(ctx, network, mtu) })
    };
    let (len, class) = hop(&XdpPacket::new(ctx), network, is_v4)?;
    if backend.forward == FORWARD_L2 {
        fit(len, 0)?;
        // VLAN tags stay behind: the way out is the routing table's.
        rewrite::<ETHERNET_LEN>(ctx, network, 0, route, inner_type)?;
        return Ok(Counter::XdpForwardedL2);
    }
    let protocol = if is_v4 { encap::PROTO_IPV4 } else { encap::PROTO_IPV6 };
    let outer = Outer { source: backend.source, destination: backend.address, class };
    match (backend.forward == FORWARD_GUE, backend.address.is_v4()) {
        (false, true) => {
            fit(len, encap::IPV4_LEN)?;
            let frame = rewrite::<V4>(ctx, network, encap::IPV4_LEN, route, ETHERTYPE_IPV4)?;
            outer.put_v4(frame.part::<ETHERNET_LEN, _>(), protocol, len);
            Ok(Counter::XdpForwardedIpip)
        }
        (false, false) => {
            fit(len, encap::IPV6_LEN)?;
            let frame = rewrite::<V6>(ctx, network, encap::IPV6_LEN, route, ETHERTYPE_IPV6)?;
            outer.put_v6(frame.part::<ETHERNET_LEN, _>(), protocol, len);
            Ok(Counter::XdpForwardedIpip)
        }
        (true, true) => {
            fit(len, encap::IPV4_LEN + encap::GUE_LEN)?;
            let added = encap::IPV4_LEN + encap::GUE_LEN;
            let frame = rewrite::<{ V4 + encap::GUE_LEN }>(ctx, network, added, route, ETHERTYPE_IPV4)?;
            outer.put_v4(frame.part::<ETHERNET_LEN, _>(), encap::GUE_PROTO, len + encap::GUE_LEN as u16);
            put_gue(frame.part::<V4, _>(), backend, flow, protocol, len);
            Ok(Counter::XdpForwardedGue)
        }
        (true, false) => {
            fit(len, encap::IPV6_LEN + encap::GUE_LEN)?;
            let added = encap::IPV6_LEN + encap::GUE_LEN;
            let frame = rewrite::<{ V6 + encap::GUE_LEN }>(ctx, network, added, route, ETHERTYPE_IPV6)?;
            outer.put_v6(frame.part::<ETHERNET_LEN, _>(), encap::GUE_PROTO, len + encap::GUE_LEN as u16);
            put_gue(frame.part::<V6, _>(), backend, flow, protocol, len);
            Ok(Counter::XdpForwardedGue)
        }
    }
}

/// Where what follows the outer IP header begins.
const V4: usize = ETHERNET_LEN + encap::IPV4_LEN;
const V6: usize = ETHERNET_LEN + encap::IPV6_LEN;

/// What outer IP headers say.
struct Outer {
    source: Addr,
    destination: Addr,
    class: u8,
}

impl Outer {
    #[inline(always)]
    fn put_v4(&self, header: Span<{ encap::IPV4_LEN }>, protocol: u8, payload_len: u16) {
        let [a, b, c, d, e] = encap::ipv4_words(self.source, self.destination, protocol, payload_len, self.class);
        header.put_word::<0>(a);
        header.put_word::<4>(b);
        header.put_word::<8>(c);
        header.put_word::<12>(d);
        header.put_word::<16>(e);
    }

    #[inline(always)]
    fn put_v6(&self, header: Span<{ encap::IPV6_LEN }>, next: u8, payload_len: u16) {
        let [a, b, c, d, e, f, g, h, i, j] =
            encap::ipv6_words(self.source, self.destination, next, payload_len, self.class);
        header.put_word::<0>(a);
        header.put_word::<4>(b);
        header.put_word::<8>(c);
        header.put_word::<12>(d);
        header.put_word::<16>(e);
        header.put_word::<20>(f);
        header.put_word::<24>(g);
        header.put_word::<28>(h);
        header.put_word::<32>(i);
        header.put_word::<36>(j);
    }
}

#[inline(always)]
fn put_gue(header: Span<{ encap::GUE_LEN }>, backend: &Backend, flow: u32, inner: u8, inner_len: u16) {
    let [a, b, c] = encap::gue(backend.gue_port as u16, flow, inner, inner_len);
    header.put_word::<0>(a);
    header.put_word::<4>(b);
    header.put_word::<8>(c);
}

/// Takes one hop off; length and traffic class of the packet.
#[inline(always)]
fn hop(packet: &XdpPacket, network: usize, is_v4: bool) -> Result<(u16, u8), u32> {
    let cut = || drop_because(Counter::XdpTruncated);
    if is_v4 {
        let header = packet.span::<{ encap::IPV4_LEN }>(network).ok_or_else(cut)?;
        let ttl = header.byte::<8>();
        if ttl <= 1 {
            return Err(drop_because(Counter::XdpTtl));
        }
        let sum = checksum::one_hop_less(u16::from_be(header.short::<10>()));
        header.put_byte::<8>(ttl - 1);
        header.put_short::<10>(sum.to_be());
        Ok((u16::from_be(header.short::<2>()), header.byte::<1>()))
    } else {
        let header = packet.span::<8>(network).ok_or_else(cut)?;
        let limit = header.byte::<7>();
        if limit <= 1 {
            return Err(drop_because(Counter::XdpTtl));
        }
        header.put_byte::<7>(limit - 1);
        let len = u16::from_be(header.short::<4>()).saturating_add(encap::IPV6_LEN as u16);
        Ok((len, (u16::from_be(header.short::<0>()) >> 4) as u8))
    }
}

/// Room for `added` bytes before the IP packet, then the link header. The first `N` bytes of the frame as it is then.
#[inline(always)]
fn rewrite<const N: usize>(
    ctx: &XdpContext,
    network: usize,
    added: usize,
    route: &Route,
    ethertype: u16,
) -> Result<Span<N>, u32> {
    let delta = network as i32 - ETHERNET_LEN as i32 - added as i32;
    // SAFETY: moves the frame's begin; every pointer into it is made anew below.
    if delta != 0 && unsafe { bpf_xdp_adjust_head(ctx.ctx, delta) } != 0 {
        return Err(drop_because(Counter::XdpNoRoom));
    }
    let frame = XdpPacket::new(ctx).span::<N>(0).ok_or_else(|| drop_because(Counter::XdpNoRoom))?;
    let [first, second, third] = route.link;
    frame.put_word::<0>(first);
    frame.put_word::<4>(second);
    frame.put_word::<8>(third);
    frame.put_short::<12>(ethertype.to_be());
    Ok(frame)
}

#[inline(always)]
fn drop_because(counter: Counter) -> u32 {
    maps::count(counter);
    XDP_DROP
}

/// The way to the backend. `None` is counted.
#[inline(always)]
fn route(ctx: &XdpContext, backend: &Backend) -> Option<&'static Route> {
    let now = (maps::ticks() / ROUTE_TICKS) as u32;
    let cached = ROUTES.get_ptr_mut(backend.id.index())?;
    // SAFETY: this CPU's own value; XDP programs are not interrupted by one another on a CPU.
    let cached = unsafe { &mut *cached };
    if (cached.backend != backend.id || cached.looked_up != now) && look_up(ctx, backend, now, cached) == 0 {
        return None;
    }
    Some(cached)
}

/// Asks the kernel. 0: there is no way, which is counted. A function of its own: its stack is its own, too.
#[inline(never)]
fn look_up(ctx: &XdpContext, backend: &Backend, now: u32, cached: &mut Route) -> u32 {
    // SAFETY: plain integers and byte arrays.
    let mut query: FibLookup = unsafe { core::mem::zeroed() };
    query.ifindex = LOOPBACK;
    if backend.address.is_v4() {
        query.family = FAMILY_V4 as u8;
        query.__bindgen_anon_3.ipv4_src = octets_v4(backend.source);
        query.__bindgen_anon_4.ipv4_dst = octets_v4(backend.address);
    } else {
        query.family = FAMILY_V6 as u8;
        query.__bindgen_anon_3.ipv6_src = encap::halves(backend.source);
        query.__bindgen_anon_4.ipv6_dst = encap::halves(backend.address);
    }
    let size = size_of::<FibLookup>() as i32;
    // SAFETY: a structure of the size given, which the helper fills.
    let found = unsafe { bpf_fib_lookup(ctx.as_ptr(), &raw mut query, size, 0) };
    if found != i64::from(BPF_FIB_LKUP_RET_SUCCESS) {
        let no_neighbour = found == i64::from(BPF_FIB_LKUP_RET_NO_NEIGH);
        maps::count(if no_neighbour { Counter::XdpNoNeighbour } else { Counter::XdpNoRoute });
        return 0;
    }
    let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (query.dmac, query.smac);
    let link = [[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_ne_bytes);
    // SAFETY: the helper wrote the route's MTU there (Linux 5.12), in a union of two numbers of one size.
    let mtu = u32::from(unsafe { query.__bindgen_anon_1.mtu_result });
    *cached = Route { backend: backend.id, looked_up: now, interface: query.ifindex, mtu, link, reserved: 0 };
    1
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
