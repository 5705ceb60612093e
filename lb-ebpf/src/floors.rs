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
use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::btf_maps::{Array, PerCpuArray, ProgramArray};
use aya_ebpf::helpers::generated::bpf_xdp_adjust_head;
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;

/// What every run begins with: the headers of an IPv4 packet with TCP (54 bytes), the length of the frame (2), the first
/// client's address (4) and a mask of how many follow it (4), in this machine's byte order.
#[btf_map]
static TEMPLATE: Array<[u32; 16], 1> = Array::new();

/// Bytes of the template that are headers.
const HEADERS_LEN: usize = 54;

/// Runs so far.
#[btf_map]
static STEP: PerCpuArray<u32, 1> = PerCpuArray::new();

/// The program that is measured.
#[btf_map]
static MEASURED: ProgramArray<1> = ProgramArray::new();

/// The link addresses that `floor_l2_table` writes.
#[btf_map]
static LINK: Array<[u32; 3], 1> = Array::new();

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
    let [words @ .., end, first, clients] = *template;
    let client = (first + (step.wrapping_mul(0x9e37_79b1) & clients)).to_be();
    let excess = XdpPacket::new(ctx).len() as i32 - (end >> 16) as i32;
    // SAFETY: moves the frame's begin; every pointer into it is made anew below. Also by nothing: it costs every case the
    // same.
    if unsafe { bpf_xdp_adjust_head(ctx.as_ptr().cast(), excess) } != 0 {
        return None;
    }
    let start = XdpPacket::new(ctx).place::<HEADERS_LEN>(0)?;
    let [w0, w1, w2, w3, w4, w5, w6, w7, w8, w9, w10, w11, w12] = words;
    // The source address is bytes 26 to 29: the upper half of one word and the lower half of the next.
    let (w6, w7) = ((w6 & 0xffff) | (client << 16), (w7 & 0xffff_0000) | (client >> 16));
    put(start, &[w0, w1, w2, w3, w4, w5, w6, w7, w8, w9, w10, w11, w12]);
    // SAFETY: the last two of the bytes that `place` gave, at a multiple of four.
    unsafe { ((start + 52) as *mut u16).write_volatile(end as u16) };
    Some(())
}

/// Writes words from `start`, an address that `place` gave for all of them. Arrays of bytes would be written in a loop,
/// byte by byte; volatile keeps the compiler from making it one again.
#[inline(always)]
fn put(start: usize, words: &[u32]) {
    for (index, word) in words.iter().enumerate() {
        // SAFETY: `place` has checked the bytes; frames begin at a multiple of four, and move by such here.
        unsafe { ((start + 4 * index) as *mut u32).write_volatile(*word) };
    }
}

/// The least for a packet that is somebody else's.
#[xdp]
pub fn floor_pass(_ctx: XdpContext) -> u32 {
    XDP_PASS
}

/// Where measured packets end: datagrams over IPv4, and IPv4 in IPv4. All else passes.
#[xdp]
pub fn sink(ctx: XdpContext) -> u32 {
    const IPV4: u16 = u16::from_be_bytes([8, 0]).to_be();
    const UDP: u8 = 17;
    const IPIP: u8 = 4;
    let Some(start) = XdpPacket::new(&ctx).place::<24>(0) else { return XDP_PASS };
    // SAFETY: the 13th and 14th of the bytes that `place` gave, at a multiple of two, and the 24th.
    let (kind, protocol) = unsafe { (*((start + 12) as *const u16), *((start + 23) as *const u8)) };
    if kind == IPV4 && matches!(protocol, UDP | IPIP) { XDP_DROP } else { XDP_PASS }
}

/// The least for a packet that goes back: its link addresses change places.
#[xdp]
pub fn floor_tx(ctx: XdpContext) -> u32 {
    let Some(start) = XdpPacket::new(&ctx).place::<12>(0) else { return XDP_ABORTED };
    // SAFETY: words of the bytes that `place` gave, at multiples of four.
    let [w0, w1, w2] = unsafe { *(start as *const [u32; 3]) };
    put(start, &[(w1 >> 16) | (w2 << 16), (w2 >> 16) | (w0 << 16), (w0 >> 16) | (w1 << 16)]);
    XDP_TX
}

/// The least for a packet that goes out by link address: twelve bytes written.
#[xdp]
pub fn floor_l2(ctx: XdpContext) -> u32 {
    let Some(start) = XdpPacket::new(&ctx).place::<12>(0) else { return XDP_ABORTED };
    put(start, &[0x0000_0002, 0x0002_2100, 0x0100_0000]);
    XDP_TX
}

/// The same with both addresses taken from a table of one entry.
#[xdp]
pub fn floor_l2_table(ctx: XdpContext) -> u32 {
    let Some(link) = LINK.get(0) else { return XDP_ABORTED };
    let Some(start) = XdpPacket::new(&ctx).place::<12>(0) else { return XDP_ABORTED };
    put(start, link);
    XDP_TX
}

/// The least for a packet that goes out in another: room made, a link header and a fixed IPv4 header written.
#[xdp]
pub fn floor_encapsulate(ctx: XdpContext) -> u32 {
    // SAFETY: moves the frame's begin; the packet is looked at anew.
    if unsafe { bpf_xdp_adjust_head(ctx.as_ptr().cast(), -20) } != 0 {
        return XDP_ABORTED;
    }
    let Some(start) = XdpPacket::new(&ctx).place::<34>(0) else { return XDP_ABORTED };
    // 02:00:00:00:21:00, 02:00:00:00:00:01, IPv4, 20 + 40 bytes, do not fragment, TTL 64, IPIP, 10.255.0.1 to .2.
    put(
        start,
        &[0x0000_0002, 0x0002_2100, 0x0100_0000, 0x0045_0008, 0x0000_3c00, 0x0440_0040, 0xff0a_6926, 0xff0a_0100],
    );
    // SAFETY: the last two of the bytes that `place` gave, at a multiple of four.
    unsafe { ((start + 32) as *mut u16).write_volatile(0x0200) };
    XDP_TX
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

// SAFETY: the loader reads it; nothing else has this name.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
