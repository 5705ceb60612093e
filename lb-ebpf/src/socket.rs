//! Sockets: what a lookup asks, and what changes when a worker's connection is established or closed.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_sk_lookup;
use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use aya_ebpf::programs::{BtfTracePointContext, SkLookupContext};
use core::ptr::null_mut;
use lb_common::abi::{
    Binding, BindingKey, Counter, FAMILY_V4, FAMILY_V6, Owner, PROTO_TCP, Promotion, SERVICE_AUTO, Service,
};
use lb_common::addr::Addr;
use lb_common::affinity;

use crate::maps::{self, BINDINGS, OWNERS, PROMOTED};

/// A new connection as sk_lookup is asked about it.
pub struct Lookup {
    pub family: u32,
    pub remote: Addr,
    pub local: Addr,
    /// Both in host byte order.
    pub remote_port: u16,
    pub local_port: u16,
}

/// `None`: not TCP over IPv4 or IPv6.
#[inline(always)]
pub fn lookup(ctx: &SkLookupContext) -> Option<Lookup> {
    let ctx: *const bpf_sk_lookup = ctx.as_ptr().cast();
    // SAFETY: plain reads of context fields, rewritten by the verifier to the kernel's own structure.
    unsafe {
        if (*ctx).protocol != PROTO_TCP as u32 {
            return None;
        }
        let (remote, local) = match (*ctx).family {
            FAMILY_V4 => (v4((*ctx).remote_ip4), v4((*ctx).local_ip4)),
            FAMILY_V6 => (
                v6([(*ctx).remote_ip6[0], (*ctx).remote_ip6[1], (*ctx).remote_ip6[2], (*ctx).remote_ip6[3]]),
                v6([(*ctx).local_ip6[0], (*ctx).local_ip6[1], (*ctx).local_ip6[2], (*ctx).local_ip6[3]]),
            ),
            _ => return None,
        };
        let (remote_port, local_port) = (u16::from_be((*ctx).remote_port), (*ctx).local_port as u16);
        Some(Lookup { family: (*ctx).family, remote, local, remote_port, local_port })
    }
}

/// From network byte order.
#[inline(always)]
fn v4(address: u32) -> Addr {
    Addr::of_v4(u32::from_be(address))
}

/// From four words in network byte order.
#[inline(always)]
fn v6(words: [u32; 4]) -> Addr {
    let [a, b, c, d] = words.map(|word| u32::from_be(word) as u64);
    Addr { high: (a << 32) | b, low: (c << 32) | d }
}

/// The head of `struct sock_common` (Linux: include/net/sock.h): this part has kept its layout since 3.13, with
/// CONFIG_NET_NS and CONFIG_IPV6 set, as every distribution has them.
#[repr(C)]
struct SockCommon {
    daddr: u32,
    rcv_saddr: u32,
    hash: u32,
    dport: u16,
    num: u16,
    family: u16,
    state: u8,
    reuse: u8,
    bound_dev_if: u32,
    bind_node: [u64; 2],
    prot: u64,
    net: u64,
    v6: AddressesV6,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct AddressesV6 {
    daddr: [u32; 4],
    rcv_saddr: [u32; 4],
}

/// TCP states (Linux: include/net/tcp_states.h).
const TCP_ESTABLISHED: i32 = 1;
const TCP_SYN_RECV: i32 = 3;
const TCP_CLOSE: i32 = 7;

/// A socket changed its state. Nearly all such changes are of no interest, of sockets that are none of ours, and each of them
/// anywhere on the machine comes by here: a few instructions, and nothing to save and restore, tell.
#[inline(always)]
pub fn state_changed(ctx: &BtfTracePointContext) -> u32 {
    let (old, new): (i32, i32) = (ctx.arg(1), ctx.arg(2));
    match (old, new) {
        (_, TCP_CLOSE) => changed(ctx, 0),
        (TCP_SYN_RECV, TCP_ESTABLISHED) => changed(ctx, 1),
        _ => 0,
    }
}

/// A connection was closed or opened, maybe a worker's. Sockets that carry no owner are none of ours. Told twice of the same
/// change, it does nothing the second time.
#[inline(never)]
fn changed(ctx: &BtfTracePointContext, opened: u32) -> u32 {
    let sk: *const SockCommon = ctx.arg(0);
    // SAFETY: `sk` is the trusted socket pointer of the tracepoint, not changed since it was read from its arguments.
    let owner = unsafe { bpf_sk_storage_get(OWNERS.as_ptr(), sk.cast_mut().cast(), null_mut(), 0) }.cast::<Owner>();
    if owner.is_null() {
        return 0;
    }
    // SAFETY: not null, and an accepted socket's storage is its own.
    let owner = unsafe { &mut *owner };
    // Otherwise it is the listening socket itself, or a connection that never was established.
    if opened != 0 && owner.counted == 0 {
        let Some((service, client)) = client(sk, owner) else { return 0 };
        owner.client = client;
        owner.counted = 1;
        if established(owner) > service.promote_above && service.flags & SERVICE_AUTO != 0 {
            promote(&owner.client);
        }
    } else if opened == 0 && owner.counted == 1 {
        owner.counted = 0;
        closed(owner);
    }
    0
}

/// Whose connection it is. `None`: one to the worker's own port, such as the HTTP path's, is no client's.
#[inline(always)]
fn client(sk: *const SockCommon, owner: &Owner) -> Option<(&'static Service, BindingKey)> {
    // SAFETY: the verifier knows the socket, and that these fields are in it.
    let (family, port) = unsafe { ((*sk).family, (*sk).num) };
    let (local, remote) = if u32::from(family) == FAMILY_V4 {
        // SAFETY: as above.
        unsafe { (v4((*sk).rcv_saddr), v4((*sk).daddr)) }
    } else {
        // SAFETY: the helper copes with any address, and with a kernel that has no such field.
        let pair = unsafe { bpf_probe_read_kernel(&raw const (*sk).v6) }.ok()?;
        (v6(pair.rcv_saddr), v6(pair.daddr))
    };
    // A worker may listen on the port of its app, on another address.
    let service = if port == owner.port { maps::service(local, port, PROTO_TCP) } else { maps::app(owner.client.app) }?;
    let key = BindingKey { client: affinity::client_of(service, remote), app: service.app, reserved: 0 };
    Some((service, key))
}

/// How many connections the client has now.
#[inline(always)]
fn established(owner: &Owner) -> u32 {
    let backend = owner.backend;
    maps::count(Counter::Established);
    if let Some(live) = maps::live(backend) {
        // SAFETY: a map value that exists.
        unsafe {
            maps::add64(&raw mut (*live).connections, 1);
            maps::add64(&raw mut (*live).total, 1);
        }
    }
    let counter = match BINDINGS.get_ptr_mut(owner.client) {
        Some(binding) => {
            // SAFETY: a map value that exists; a slot reused under us costs that binding one count at most.
            unsafe {
                if (*binding).backend == backend {
                    // Stamped when it closes: while it is open nobody asks for the stamp.
                    maps::add32(&raw mut (*binding).connections, 1);
                    return (*binding).connections;
                }
            }
            Counter::BindingMoved
        }
        None => Counter::BindingNew,
    };
    let binding = Binding { backend, connections: 1, seen_s: maps::traced_now_s(), reserved: 0 };
    maps::count(if BINDINGS.insert(owner.client, binding, 0).is_ok() { counter } else { Counter::BindingFailed });
    1
}

/// From its next connection on the HTTP path serves the client; those that are open stay.
#[inline(always)]
fn promote(client: &BindingKey) {
    if PROMOTED.get_ptr(client).is_some() {
        return;
    }
    let promotion = Promotion { seen_s: maps::traced_now_s(), reserved: 0 };
    let is_written = PROMOTED.insert(*client, promotion, 0).is_ok();
    maps::count(if is_written { Counter::Promoted } else { Counter::PromotionFailed });
}

#[inline(always)]
fn closed(owner: &Owner) {
    maps::count(Counter::Closed);
    if let Some(live) = maps::live(owner.backend) {
        // SAFETY: a map value that exists.
        unsafe { maps::add64(&raw mut (*live).connections, u64::MAX) };
    }
    if let Some(binding) = BINDINGS.get_ptr_mut(owner.client) {
        // SAFETY: a map value that exists. A binding that has moved on counts other connections than this one.
        unsafe {
            if (*binding).backend == owner.backend && (*binding).connections > 0 {
                maps::add32(&raw mut (*binding).connections, u32::MAX);
                (*binding).seen_s = maps::traced_now_s();
            }
        }
    }
}
