//! Which packets of a service with remote backends go where: the choice, and what it leaves in the tables.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{bpf_sock, bpf_sock_tuple};
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_sk_release, bpf_skc_lookup_tcp};
use aya_ebpf::programs::XdpContext;
use lb_common::abi::{
    Backend, BackendId, Binding, BindingKey, Counter, FORWARD_GUE, FORWARD_HTTP, FragmentKey, PROTO_TCP,
    SERVICE_LIMITED, SERVICE_LISTED, SERVICE_REMOTE, SERVICE_SOCKETS, SERVICE_SYNCOOKIES, Service,
};
use lb_common::addr::Addr;
use lb_common::affinity::{self, Choice, Flow, REFRESH_S};
use lb_common::encap;
use lb_common::hash;
use lb_common::parse::{Fragment, Head, Packet as _, Segment, TCP_PSH, TCP_SYN};
use lb_common::tap::Rule;

use crate::forward;
use crate::maps::{self, BINDINGS, FRAGMENTS, KernelTables, OPENING};
use crate::packet::XdpPacket;
use crate::tap;

/// Packets with data per look at the stamp of their client's binding.
const SAMPLE: u32 = 16;

/// What becomes of a packet.
pub enum Steered {
    /// The kernel goes on with it.
    Stays(Counter),
    Leaves(Outgoing),
    /// It goes no further.
    Refused(Counter),
    /// It opens a connection to this worker; where its IP header begins, and whether that is IPv4's.
    Opens(BackendId, u16, bool),
}

/// A packet for a backend.
///
/// Where the verifier of Linux 6.7 and before knows a number that one function leaves on its stack for another, it takes the
/// first such number for the only one, and what the other does for the rest for dead code. It knows those that stand
/// at a multiple of eight. So the only one here that takes several values, none of them 0, stands elsewhere.
#[repr(C)]
pub struct Outgoing {
    pub backend: *const Backend,
    /// The flow's hash, for who spreads flows by ports.
    pub flow: u32,
    /// The worker that it opens a connection to, if it does not leave.
    pub opens: BackendId,
    pub is_v4: bool,
    /// Where its IP header begins.
    pub network: u16,
}

const _: () = assert!(!core::mem::offset_of!(Outgoing, network).is_multiple_of(8));

impl Outgoing {
    pub const NOWHERE: Self =
        Self { network: 0, is_v4: false, flow: 0, backend: core::ptr::null(), opens: BackendId::NONE };
}

/// What [`send_settled`] says of a packet that wants a second look; beyond the verdicts of XDP.
pub const UNSETTLED: u32 = 17;

/// Sends a plain packet on its way to a remote backend, where [`segment`] would come to the same and leave nothing in the
/// tables: the most of all packets that leave. A function of its own: its stack is its own, too.
#[inline(never)]
pub fn send_settled(ctx: &XdpContext) -> u32 {
    let Some(head) = XdpPacket::new(ctx).head().filter(Head::is_plain) else { return UNSETTLED };
    let Some(backend) = settled(&head) else { return UNSETTLED };
    let flow = flow_of(backend, Addr::of_v4(head.source), head.source_port, head.destination_port);
    forward::send_to(ctx, backend, Head::NETWORK, true, flow)
}

/// Who gets it. `None`: look again.
#[inline(always)]
fn settled(head: &Head) -> Option<&'static Backend> {
    let is_tcp = head.protocol == PROTO_TCP;
    if is_tcp && head.flags & (TCP_SYN | TCP_PSH) != 0 {
        return None;
    }
    let service = maps::service(Addr::of_v4(head.destination), head.destination_port, head.protocol)?;
    let others = if is_tcp { SERVICE_SOCKETS } else { SERVICE_LISTED | SERVICE_LIMITED };
    if service.flags & (SERVICE_REMOTE | others) != SERVICE_REMOTE {
        return None;
    }
    let owner = affinity::settled(&KernelTables, service, Addr::of_v4(head.source))?;
    maps::backend(owner).filter(|backend| backend.forward > FORWARD_HTTP)
}

/// The flow's hash, for who spreads flows by ports; the others have no use for it.
#[inline(always)]
fn flow_of(backend: &Backend, source: Addr, source_port: u16, destination_port: u16) -> u32 {
    if backend.forward == FORWARD_GUE { hash::flow(source, source_port, destination_port) } else { 0 }
}

/// A packet of a service whose ring may name remote backends.
#[inline(always)]
pub fn segment(ctx: &XdpContext, service: &Service, segment: &Segment, is_opening: bool) -> Steered {
    let flow = if is_opening {
        match affinity::choose(&KernelTables, service, segment.source) {
            Choice::Ring(backend) => Flow::Ring(backend),
            Choice::Bound(backend) => Flow::Bound(backend),
            _ => Flow::NoWorker,
        }
    } else {
        affinity::follow(&KernelTables, service, segment.source)
    };
    let stays = if is_opening { Counter::XdpSynHttp } else { Counter::XdpEstablished };
    // Nobody, or somebody who has just died: homing's own listener answers.
    let Some(backend) = flow.backend().and_then(maps::backend) else { return Steered::Stays(stays) };
    if backend.forward <= FORWARD_HTTP {
        if is_opening && backend.forward != FORWARD_HTTP {
            let is_cautious = service.flags & SERVICE_SYNCOOKIES == 0;
            return if is_cautious {
                Steered::Stays(Counter::XdpSynWorker)
            } else {
                Steered::Opens(backend.id, segment.network, segment.source.is_v4())
            };
        }
        return Steered::Stays(stays);
    }
    if !is_opening
        && service.flags & SERVICE_SOCKETS != 0
        && segment.protocol == PROTO_TCP
        && is_held_here(ctx, segment)
    {
        return Steered::Stays(Counter::XdpEstablished);
    }
    remember(service, segment, flow, is_opening);
    if is_opening {
        let rule = if matches!(flow, Flow::Bound(_)) { Rule::Bound } else { Rule::Ring };
        tap::tell(service.app, segment.source, segment.source_port, rule, backend.id);
    }
    if let Some(id) = segment.fragment.get() {
        let key = FragmentKey { source: segment.source, destination: segment.destination, id, reserved: 0 };
        // A packet whose later fragments are not remembered is incomplete, and its sender sends it again.
        let _ = FRAGMENTS.insert(key, backend.id, 0);
    }
    let flow = flow_of(backend, segment.source, segment.source_port, segment.destination_port);
    Steered::Leaves(Outgoing {
        network: segment.network,
        is_v4: segment.source.is_v4(),
        flow,
        backend,
        opens: BackendId::NONE,
    })
}

/// Later fragments follow the first. One that came before it, or of a packet for this machine, is the kernel's.
#[inline(always)]
pub fn later_fragment(fragment: &Fragment) -> Steered {
    let Fragment { source, destination, id, network } = *fragment;
    // SAFETY: a slot reused under us is another packet's whole id; the fragment is lost at most.
    let known = unsafe { FRAGMENTS.get(FragmentKey { source, destination, id, reserved: 0 }) };
    let Some(backend) = known.and_then(|&id| maps::backend(id)) else {
        return Steered::Stays(Counter::XdpFragment);
    };
    Steered::Leaves(Outgoing { network, is_v4: source.is_v4(), flow: id, backend, opens: BackendId::NONE })
}

/// Clients are written down before it matters, so that they are known when their slot changes hands: who opens a
/// connection, and with its first data, as far as one can tell from this side, has it established. While a slot is in
/// transition every packet of somebody unknown tells that its sender was there before.
#[inline(always)]
fn remember(service: &Service, segment: &Segment, flow: Flow, is_opening: bool) {
    let client = affinity::client_of(service, segment.source);
    let _written = match flow {
        Flow::Ring(backend) if is_opening => open(service.app, client.high, client.low, backend),
        Flow::Ring(backend) if segment.flags & TCP_PSH != 0 => {
            // One after the other, not one within the other: their stacks would add up.
            match established(service.app, client.high, client.low, backend) {
                FIRST_DATA => bind(service.app, client.high, client.low, backend),
                LOOK_AGAIN => refresh(service.app, client.high, client.low),
                _ => 0,
            }
        }
        Flow::Opening(backend) | Flow::Previous(backend) => bind(service.app, client.high, client.low, backend),
        Flow::Bound(_) => refresh(service.app, client.high, client.low),
        _ => 0,
    };
}

// Functions of their own, with plain numbers, so that their keys and values stand on stacks of their own: the kernel
// grants 512 bytes to a program and all that it is in the middle of calling.

#[inline(never)]
fn open(app: u32, high: u64, low: u64, backend: BackendId) -> u32 {
    let key = BindingKey { client: Addr { high, low }, app, reserved: 0 };
    u32::from(OPENING.insert(key, backend, 0).is_ok())
}

#[inline(never)]
fn bind(app: u32, high: u64, low: u64, backend: BackendId) -> u32 {
    if !maps::may_bind() {
        maps::count(Counter::BindingLimited);
        return 0;
    }
    let key = BindingKey { client: Addr { high, low }, app, reserved: 0 };
    let binding = Binding { backend, connections: 0, seen_s: maps::now_s(), reserved: 0 };
    let is_written = BINDINGS.insert(key, binding, 0).is_ok();
    maps::count(if is_written { Counter::BindingNew } else { Counter::BindingFailed });
    u32::from(is_written)
}

/// Whether this is the client's first data since it opened a connection to the backend. Of all later data one packet in
/// [`SAMPLE`] looks whether the binding is still fresh.
#[inline(never)]
fn established(app: u32, high: u64, low: u64, backend: BackendId) -> u32 {
    let key = BindingKey { client: Addr { high, low }, app, reserved: 0 };
    // SAFETY: a slot reused under us is another client's whole id.
    if unsafe { OPENING.get(key) }.copied() == Some(backend) {
        let _ = OPENING.remove(key);
        return FIRST_DATA;
    }
    // SAFETY: a helper without arguments or effects.
    if unsafe { bpf_get_prandom_u32() } % SAMPLE == 0 { LOOK_AGAIN } else { 0 }
}

const FIRST_DATA: u32 = 1;
const LOOK_AGAIN: u32 = 2;

#[inline(never)]
fn refresh(app: u32, high: u64, low: u64) -> u32 {
    let key = BindingKey { client: Addr { high, low }, app, reserved: 0 };
    let now_s = maps::now_s();
    if let Some(binding) = BINDINGS.get_ptr_mut(key) {
        // SAFETY: a map value that exists; a slot reused under us gets a stamp of this moment.
        unsafe {
            if now_s.wrapping_sub((*binding).seen_s) >= REFRESH_S {
                (*binding).seen_s = now_s;
            }
        }
    }
    0
}

/// `BPF_TCP_LISTEN` (Linux: include/uapi/linux/bpf.h).
const LISTEN: u32 = 10;

/// Whether a socket of this machine holds the connection.
#[inline(never)]
fn is_held_here(ctx: &XdpContext, segment: &Segment) -> bool {
    const CURRENT_NAMESPACE: u64 = u64::MAX;
    // SAFETY: plain integers.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let size = if segment.source.is_v4() {
        tuple.__bindgen_anon_1.ipv4.saddr = octets_v4(segment.source);
        tuple.__bindgen_anon_1.ipv4.daddr = octets_v4(segment.destination);
        tuple.__bindgen_anon_1.ipv4.sport = segment.source_port.to_be();
        tuple.__bindgen_anon_1.ipv4.dport = segment.destination_port.to_be();
        12
    } else {
        tuple.__bindgen_anon_1.ipv6.saddr = encap::halves(segment.source);
        tuple.__bindgen_anon_1.ipv6.daddr = encap::halves(segment.destination);
        tuple.__bindgen_anon_1.ipv6.sport = segment.source_port.to_be();
        tuple.__bindgen_anon_1.ipv6.dport = segment.destination_port.to_be();
        36
    };
    // SAFETY: a tuple of the size given; the socket is released below on every path where there is one.
    unsafe {
        let socket: *mut bpf_sock = bpf_skc_lookup_tcp(ctx.as_ptr(), &raw mut tuple, size, CURRENT_NAMESPACE, 0).cast();
        if socket.is_null() {
            return false;
        }
        let is_connection = (*socket).state != LISTEN;
        bpf_sk_release(socket.cast());
        is_connection
    }
}

/// In network byte order, as the kernel's structures have it.
#[inline(always)]
pub fn octets_v4(address: Addr) -> u32 {
    (address.low as u32).to_be()
}
