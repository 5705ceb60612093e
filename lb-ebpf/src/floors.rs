//! What the benchmarks compare homing's XDP program with: the least that a program can do for a result of that kind, and
//! the harness that runs either over and over on fresh packets. Not part of homing.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![allow(unsafe_code)]

#[allow(dead_code)] // homing's own accessors, of which the floors need some
mod packet;

use crate::packet::XdpPacket;
use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_PASS, XDP_TX};
use aya_ebpf::btf_maps::{Array, PerCpuArray, ProgramArray};
use aya_ebpf::helpers::generated::bpf_xdp_adjust_head;
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;

/// What every run begins with: the headers of an IPv4 packet with TCP (54 bytes), the length of the frame (2), the first
/// client's address (4) and a mask of how many follow it (4), in this machine's byte order.
#[btf_map]
static TEMPLATE: Array<[u8; 64], 1> = Array::new();

const HEADERS_LEN: usize = 54;
/// Where the source address stands.
const SOURCE_AT: usize = 26;

/// Runs so far.
#[btf_map]
static STEP: PerCpuArray<u32, 1> = PerCpuArray::new();

/// The program that is measured.
#[btf_map]
static MEASURED: ProgramArray<1> = ProgramArray::new();

/// The link addresses that `floor_l2` writes.
#[btf_map]
static LINK: Array<[u8; 12], 1> = Array::new();

/// Makes the packet what it was, from the next client, and hands it to the measured program.
#[xdp]
pub fn replay(ctx: XdpContext) -> u32 {
    if restore(&ctx).is_some() {
        // SAFETY: nothing is dropped by not coming back.
        unsafe { MEASURED.tail_call(&ctx, 0) };
    }
    XDP_ABORTED
}

#[inline(always)]
fn restore(ctx: &XdpContext) -> Option<()> {
    let template = TEMPLATE.get(0)?;
    let step = STEP.get_ptr_mut(0)?;
    // SAFETY: this CPU's own number.
    let step = unsafe {
        *step = (*step).wrapping_add(1);
        *step
    };
    // An odd factor visits every client once before it comes back to the first, in no order that a prefetcher knows.
    let [.., f0, f1, c0, c1, c2, c3, m0, m1, m2, m3] = *template;
    let clients = u32::from_ne_bytes([m0, m1, m2, m3]);
    let client = u32::from_ne_bytes([c0, c1, c2, c3]) + (step.wrapping_mul(0x9e37_79b1) & clients);
    let excess = XdpPacket::new(ctx).len() as i32 - i32::from(u16::from_ne_bytes([f0, f1]));
    // SAFETY: moves the frame's begin; every pointer into it is made anew below. Also by nothing: it costs every case the
    // same.
    if unsafe { bpf_xdp_adjust_head(ctx.as_ptr().cast(), excess) } != 0 {
        return None;
    }
    let packet = XdpPacket::new(ctx);
    let headers: [u8; HEADERS_LEN] = *template.first_chunk()?;
    packet.write(0, headers)?;
    packet.write(SOURCE_AT, client.to_be_bytes())
}

/// The least for a packet that is somebody else's.
#[xdp]
pub fn floor_pass(_ctx: XdpContext) -> u32 {
    XDP_PASS
}

/// The least for a packet that goes out by link address: both taken from a table and written.
#[xdp]
pub fn floor_l2(ctx: XdpContext) -> u32 {
    match LINK.get(0).and_then(|link| XdpPacket::new(&ctx).write(0, *link)) {
        Some(()) => XDP_TX,
        None => XDP_ABORTED,
    }
}

/// The least for a packet that goes out in another: room made, headers written.
#[xdp]
pub fn floor_encapsulate(ctx: XdpContext) -> u32 {
    // SAFETY: moves the frame's begin; the packet is looked at anew.
    if unsafe { bpf_xdp_adjust_head(ctx.as_ptr().cast(), -20) } != 0 {
        return XDP_ABORTED;
    }
    let packet = XdpPacket::new(&ctx);
    match packet.write(0, [2; 14]).and_then(|()| packet.write(14, [4; 20])) {
        Some(()) => XDP_TX,
        None => XDP_ABORTED,
    }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

// SAFETY: the loader reads it; nothing else has this name.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
