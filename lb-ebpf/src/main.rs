//! homing's kernel programs, thin around `lb-common`: `homing_xdp` sees every packet, `homing_lookup` delivers new
//! connections, `homing_state` counts them and binds their clients.
//!
//! Nothing is decided here: pointers, maps and helpers only. Each program is a few lines that read as its contract.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![allow(internal_features)]
#![allow(unsafe_code)]

mod maps;
mod packet;
mod socket;

use aya_ebpf::bindings::xdp_action::XDP_PASS;
use aya_ebpf::macros::{btf_tracepoint, sk_lookup, xdp};
use aya_ebpf::programs::{BtfTracePointContext, SkLookupContext, XdpContext};
use lb_common::abi::{Counter, SocketKey};
use lb_common::affinity::{self, Choice};
use lb_common::parse::{self, Frame};

use crate::maps::KernelTables;

/// Lets every packet pass, and says in the counters where it is going.
#[xdp]
pub fn homing_xdp(ctx: XdpContext) -> u32 {
    maps::count(match parse::parse(&packet::XdpPacket::new(&ctx)) {
        Frame::Other => Counter::XdpNotOurs,
        Frame::Truncated => Counter::XdpTruncated,
        Frame::LaterFragment => Counter::XdpFragment,
        Frame::Tcp(segment) => match maps::service(segment.destination, segment.destination_port) {
            None => Counter::XdpNotOurs,
            Some(_) if !segment.is_syn() => Counter::XdpEstablished,
            Some(service) => match affinity::choose(&KernelTables, &service, segment.source) {
                Choice::Ring(_) | Choice::Bound(_) => Counter::XdpSynWorker,
                Choice::HttpOnly | Choice::NoWorker => Counter::XdpSynHttp,
            },
        },
    });
    XDP_PASS
}

/// Delivers a new connection to the chosen worker's listening socket. Whatever is in the way, the kernel goes on to
/// homing's own listener: the HTTP path.
#[sk_lookup]
pub fn homing_lookup(ctx: SkLookupContext) -> u32 {
    deliver(&ctx);
    SK_PASS
}

/// `enum sk_action` (Linux: include/uapi/linux/bpf.h).
const SK_PASS: u32 = 1;

#[inline(always)]
fn deliver(ctx: &SkLookupContext) -> Option<()> {
    let lookup = socket::lookup(ctx)?;
    let service = maps::service(lookup.local, lookup.local_port)?;
    let (backend, delivered) = match affinity::choose(&KernelTables, &service, lookup.remote) {
        Choice::Ring(backend) => (backend, Counter::LookupRing),
        Choice::Bound(backend) => (backend, Counter::LookupBound),
        Choice::HttpOnly => {
            maps::count(Counter::LookupHttpOnly);
            return None;
        }
        Choice::NoWorker => {
            maps::count(Counter::LookupNoWorker);
            return None;
        }
    };
    let key = SocketKey { backend, family: lookup.family };
    maps::count(match maps::SOCKETS.redirect_sk_lookup(ctx, key, 0) {
        Ok(()) => delivered,
        Err(_) => Counter::LookupNoSocket,
    });
    Some(())
}

/// Counts the connections of workers and binds their clients as these are established and closed.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn homing_state(ctx: BtfTracePointContext) -> i32 {
    socket::state_changed(&ctx);
    0
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

// Helpers that trace the kernel need a GPL-compatible licence (Linux: Documentation/bpf/bpf_licensing.rst).
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
