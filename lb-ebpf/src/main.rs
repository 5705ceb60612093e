//! homing's kernel programs, thin around `lb-common`: `homing_xdp` sees every packet, `homing_lookup` delivers new
//! connections, `homing_state` counts them and binds their clients.
//!
//! Nothing is decided here: pointers, maps and helpers only. Each program is a few lines that read as its contract.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![allow(internal_features)]
#![allow(unsafe_code)]

mod cookie;
mod forward;
mod guard;
mod maps;
mod packet;
mod socket;
mod steer;
mod tap;

use core::mem::MaybeUninit;

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::macros::{btf_tracepoint, sk_lookup, xdp};
use aya_ebpf::programs::{BtfTracePointContext, SkLookupContext, XdpContext};
use lb_common::abi::{
    BackendId, Counter, FORWARD_HTTP, PORT_EVERY, PORT_OPENING, PROTO_TCP, SERVICE_LIMITED, SERVICE_LISTED,
    SERVICE_REMOTE, SERVICE_SYNCOOKIES, SocketKey,
};
use lb_common::affinity::{self, Choice};
use lb_common::parse::{self, Frame};
use lb_common::tap::Rule;

use crate::maps::KernelTables;
use crate::packet::XdpPacket;
use crate::steer::{Outgoing, Steered};

/// Sends packets for remote backends on their way, and lets every other packet pass; says in the counters what it did.
#[xdp]
pub fn homing_xdp(ctx: XdpContext) -> u32 {
    match at_a_glance(&ctx) {
        Glanced::Counts(counter) => {
            maps::count(counter);
            return XDP_PASS;
        }
        Glanced::MayLeave => {
            let verdict = steer::send_settled(&ctx);
            if verdict != steer::UNSETTLED {
                return verdict;
            }
        }
        Glanced::Unclear => {}
    }
    // Not set to anything first: the compiler makes that a loop over its bytes.
    let mut outgoing = MaybeUninit::uninit();
    match steer(&ctx, &mut outgoing) {
        // SAFETY: `steer` has written it; the verifier, too, refuses to read what nobody wrote.
        XDP_TX => forward::send(&ctx, unsafe { outgoing.assume_init_ref() }),
        // SAFETY: as above.
        OPENS => cookie::relieve(&ctx, unsafe { outgoing.assume_init_ref() }),
        verdict => verdict,
    }
}

enum Glanced {
    /// It passes, and counts as this.
    Counts(Counter),
    /// A plain packet to a port where some leave.
    MayLeave,
    Unclear,
}

/// What needs no further look: plain packets to ports that nobody watches, or watches for connections being opened.
#[inline(always)]
fn at_a_glance(ctx: &XdpContext) -> Glanced {
    let Some(glance) = parse::glance(&XdpPacket::new(ctx)) else { return Glanced::Unclear };
    match maps::watched(glance.destination_port) {
        0 => Glanced::Counts(Counter::XdpNotOurs),
        PORT_OPENING if glance.protocol != PROTO_TCP => Glanced::Counts(Counter::XdpNotOurs),
        PORT_OPENING if !glance.is_syn() => Glanced::Counts(Counter::XdpEstablished),
        PORT_EVERY => Glanced::MayLeave,
        _ => Glanced::Unclear,
    }
}

/// What `steer` says of a packet that opens a connection to a worker; beyond the verdicts of XDP.
const OPENS: u32 = 16;

/// Writes `leaving` where it says [`XDP_TX`] or [`OPENS`]. A function of its own, done before `send` begins: both would not
/// fit on the 512 bytes of one stack.
#[inline(never)]
fn steer(ctx: &XdpContext, leaving: &mut MaybeUninit<Outgoing>) -> u32 {
    match decide(ctx) {
        Steered::Stays(counter) => {
            maps::count(counter);
            XDP_PASS
        }
        Steered::Leaves(outgoing) => {
            leaving.write(outgoing);
            XDP_TX
        }
        Steered::Refused(counter) => {
            maps::count(counter);
            XDP_DROP
        }
        Steered::Opens(backend, network, is_v4) => {
            leaving.write(Outgoing { opens: backend, network, is_v4, ..Outgoing::NOWHERE });
            OPENS
        }
    }
}

#[inline(always)]
fn decide(ctx: &XdpContext) -> Steered {
    let frame = parse::parse(&XdpPacket::new(ctx));
    let (segment, is_opening) = match frame {
        Frame::Other => return Steered::Stays(Counter::XdpNotOurs),
        Frame::Truncated => return Steered::Stays(Counter::XdpTruncated),
        Frame::LaterFragment(fragment) => return steer::later_fragment(&fragment),
        Frame::Tcp(segment) => (segment, segment.is_syn()),
        Frame::Udp(segment) | Frame::IcmpError(segment) => (segment, false),
    };
    let Some(service) = maps::service(segment.destination, segment.destination_port, segment.protocol) else {
        return Steered::Stays(Counter::XdpNotOurs);
    };
    if service.flags & (SERVICE_LISTED | SERVICE_LIMITED) != 0
        && (is_opening || matches!(frame, Frame::Udp(_)))
        && let Some(counter) = guard::refusal(service, &segment)
    {
        if is_opening {
            let rule = match counter {
                Counter::XdpDenied => Rule::Denied,
                Counter::XdpClientTooFast => Rule::ClientTooFast,
                _ => Rule::AppTooFast,
            };
            tap::tell(service.app, segment.source, segment.source_port, rule, BackendId::NONE);
        }
        return Steered::Refused(counter);
    }
    if service.flags & SERVICE_REMOTE != 0 {
        return steer::segment(ctx, service, &segment, is_opening);
    }
    if !is_opening {
        let is_error = matches!(frame, Frame::IcmpError(_));
        return Steered::Stays(if is_error { Counter::XdpIcmp } else { Counter::XdpEstablished });
    }
    match affinity::choose(&KernelTables, service, segment.source).backend() {
        Some(_) if service.flags & SERVICE_SYNCOOKIES == 0 => Steered::Stays(Counter::XdpSynWorker),
        Some(backend) => Steered::Opens(backend, segment.network, segment.source.is_v4()),
        None => Steered::Stays(Counter::XdpSynHttp),
    }
}

/// Delivers a new connection to the chosen worker's listening socket. Whatever is in the way, the kernel goes on to
/// homing's own listener: the HTTP path.
#[sk_lookup]
pub fn homing_lookup(ctx: SkLookupContext) -> u32 {
    deliver(&ctx).unwrap_or(SK_PASS)
}

/// `enum sk_action` (Linux: include/uapi/linux/bpf.h).
const SK_DROP: u32 = 0;
const SK_PASS: u32 = 1;

#[inline(always)]
fn deliver(ctx: &SkLookupContext) -> Option<u32> {
    let lookup = socket::lookup(ctx)?;
    let service = maps::service(lookup.local, lookup.local_port, PROTO_TCP)?;
    let tell = |rule, backend| tap::tell(service.app, lookup.remote, lookup.remote_port, rule, backend);
    // Where XDP is not attached.
    if guard::is_denied(service, lookup.remote) {
        maps::count(Counter::LookupDenied);
        tell(Rule::Denied, BackendId::NONE);
        return Some(SK_DROP);
    }
    let (backend, delivered, rule) = match affinity::choose(&KernelTables, service, lookup.remote) {
        Choice::Ring(backend) => (backend, Counter::LookupRing, Rule::Ring),
        Choice::Bound(backend) => (backend, Counter::LookupBound, Rule::Bound),
        Choice::HttpOnly => (BackendId::NONE, Counter::LookupHttpOnly, Rule::Cookie),
        Choice::Promoted => (BackendId::NONE, Counter::LookupPromoted, Rule::Promoted),
        Choice::NoWorker => (BackendId::NONE, Counter::LookupNoWorker, Rule::NoWorker),
    };
    if backend.is_none() {
        maps::count(delivered);
        tell(rule, backend);
        return None;
    }
    // XDP forwards its packets, and asks here whether the HTTP path holds the connection after all. That path takes it where
    // XDP is not attached.
    if service.flags & SERVICE_REMOTE != 0
        && maps::backend(backend).is_some_and(|backend| backend.forward > FORWARD_HTTP)
    {
        return None;
    }
    let key = SocketKey { backend, family: lookup.family };
    let (counter, rule) = match maps::SOCKETS.redirect_sk_lookup(ctx, key, 0) {
        Ok(()) => (delivered, rule),
        Err(_) => (Counter::LookupNoSocket, Rule::NoSocket),
    };
    maps::count(counter);
    tell(rule, backend);
    Some(SK_PASS)
}

/// Counts the connections of workers and binds their clients as these are established and closed.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn homing_state(ctx: BtfTracePointContext) -> i32 {
    socket::state_changed(&ctx) as i32
}

/// The same again. The kernel does not run a tracing program on a CPU that is in the middle of it (Linux:
/// kernel/trace/bpf_trace.c, `prog->active`): what a soft interrupt changes meanwhile, the other of the two sees.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn homing_state_too(ctx: BtfTracePointContext) -> i32 {
    socket::state_changed(&ctx) as i32
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

// Helpers that trace the kernel need a GPL-compatible licence (Linux: Documentation/bpf/bpf_licensing.rst).
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
