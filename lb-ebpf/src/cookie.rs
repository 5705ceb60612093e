//! Relief from a flood of SYNs: while a worker's queue of half-open connections is full, XDP itself answers with the
//! kernel's SYN cookie. The kernel knows the cookie when it comes back, and the connection is the worker's as any other.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::bindings::xdp_action::XDP_PASS;
use aya_ebpf::helpers::generated::{bpf_map_lookup_elem, bpf_sk_release, bpf_tcp_gen_syncookie};
use aya_ebpf::programs::XdpContext;
use lb_common::abi::{BackendId, Counter, FAMILY_V4, FAMILY_V6, PROTO_TCP, SocketKey};
use lb_common::encap::{IPV4_LEN, IPV6_LEN};
use lb_common::parse::Packet as _;
use lb_common::synack::{self, Syn, TCP_LEN};

use crate::forward;
use crate::maps::{self, SOCKETS};
use crate::packet::{Span, XdpPacket};
use crate::steer::Outgoing;

/// Counts a SYN that a worker will get, and lets it pass unless SYNs are many and the worker's queue is full. A function of its
/// own: its stack is its own, too.
#[inline(never)]
pub fn relieve(ctx: &XdpContext, syn: &Outgoing) -> u32 {
    if !maps::are_syns_many() {
        maps::count(Counter::XdpSynWorker);
        return XDP_PASS;
    }
    let network = usize::from(syn.network);
    let answered = if syn.is_v4 { answer_v4(ctx, network, syn.opens) } else { answer_v6(ctx, network, syn.opens) };
    maps::count(if answered.is_some() { Counter::XdpSyncookie } else { Counter::XdpSynWorker });
    answered.unwrap_or(XDP_PASS)
}

/// `None`: there is room in the queue, or the packet is an unusual one, which the kernel knows best.
#[inline(always)]
fn answer_v4(ctx: &XdpContext, network: usize, backend: BackendId) -> Option<u32> {
    let packet = XdpPacket::new(ctx);
    let header = packet.span::<IPV4_LEN>(network)?;
    let is_fragment = u16::from_be(header.short::<6>()) & 0x3fff != 0;
    if header.byte::<0>() != 0x45 || is_fragment {
        return None;
    }
    let syn = read(&packet, network + IPV4_LEN)?;
    let (cookie, mss) = cookie(&syn, SocketKey { backend, family: FAMILY_V4 }, header)?;
    let header = packet.read(network)?;
    Some(forward::answer::<0, { IPV4_LEN + TCP_LEN }>(ctx, network, synack::ipv4(&header, &syn, cookie, mss)))
}

#[inline(always)]
fn answer_v6(ctx: &XdpContext, network: usize, backend: BackendId) -> Option<u32> {
    let packet = XdpPacket::new(ctx);
    let header = packet.span::<IPV6_LEN>(network)?;
    if header.byte::<6>() != PROTO_TCP {
        return None;
    }
    let syn = read(&packet, network + IPV6_LEN)?;
    let (cookie, mss) = cookie(&syn, SocketKey { backend, family: FAMILY_V6 }, header)?;
    let header = packet.read(network)?;
    Some(forward::answer::<0, { IPV6_LEN + TCP_LEN }>(ctx, network, synack::ipv6(&header, &syn, cookie, mss)))
}

#[inline(always)]
fn read(packet: &XdpPacket, transport: usize) -> Option<Syn> {
    let head = packet.span::<8>(transport)?;
    let [[s0, s1, d0, d1], [q0, q1, q2, q3]] = [head.word::<0>(), head.word::<4>()].map(u32::to_ne_bytes);
    // A SYN may come without options.
    let option = packet.span::<4>(transport + 20).map_or(0, |option| option.word::<0>());
    Some(Syn::new([s0, s1, d0, d1, q0, q1, q2, q3], option.to_ne_bytes()))
}

/// The cookie, and the segment size that it stands for.
#[inline(always)]
fn cookie<const N: usize>(syn: &Syn, key: SocketKey, header: Span<N>) -> Option<(u32, u16)> {
    let tcp = syn.header();
    // SAFETY: map, key, headers and their sizes as the helpers want them; the socket is released on every path.
    let answer = unsafe {
        let sockets = (&raw const SOCKETS).cast_mut().cast();
        let socket: *mut bpf_sock = bpf_map_lookup_elem(sockets, (&raw const key).cast_mut().cast()).cast();
        if socket.is_null() {
            return None;
        }
        let tcp = tcp.as_ptr().cast_mut().cast();
        let answer = bpf_tcp_gen_syncookie(socket.cast(), header.as_ptr(), N as u32, tcp, TCP_LEN as u32);
        bpf_sk_release(socket.cast());
        answer
    };
    (answer > 0).then_some((answer as u32, (answer >> 32) as u16))
}
