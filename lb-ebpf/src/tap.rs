//! Decisions on new connections, told to who listens (`homing trace --live`). Where nobody does, one number is read.

use aya_ebpf::helpers::generated::{bpf_ringbuf_reserve, bpf_ringbuf_submit};
use lb_common::abi::BackendId;
use lb_common::addr::Addr;
use lb_common::tap::{Decision, Rule, TAPS_MAX, Weight};

use crate::maps::{self, DECISIONS, TAP_COUNTS, TAP_DUE, TAPS};

/// Of packets that open a connection alone.
#[inline(always)]
pub fn tell(app: u32, address: Addr, port: u16, rule: Rule, backend: BackendId) {
    if TAPS.get(0).is_some_and(|taps| taps.until_ns != 0) {
        told(app, address.high, address.low, (rule as u32) << 16 | u32::from(port), backend.0);
    }
}

/// A function of its own, with plain numbers: its stack is its own, too.
#[inline(never)]
fn told(app: u32, high: u64, low: u64, rule_and_port: u32, backend: u32) -> u32 {
    let address = Addr { high, low };
    let wanted = wanted(app, address);
    if wanted == 0 {
        return 0;
    }
    let decision = Decision {
        address,
        backend: BackendId(backend),
        app,
        rule: rule_and_port >> 16,
        port: rule_and_port as u16,
        taps: wanted as u16,
    };
    // SAFETY: the map is a ring buffer; the record is written whole, and submitted on the one path where there is one.
    let is_told = unsafe {
        let record: *mut Decision = bpf_ringbuf_reserve(DECISIONS.as_ptr(), size_of::<Decision>() as u64, 0).cast();
        if record.is_null() {
            false
        } else {
            record.write(decision);
            bpf_ringbuf_submit(record.cast(), 0);
            true
        }
    };
    if !is_told {
        for tap in 0..TAPS_MAX {
            if wanted & (1 << tap) != 0
                && let Some(counts) = TAP_COUNTS.get_ptr_mut(tap)
            {
                // SAFETY: this CPU's own value.
                unsafe { (*counts).no_room += 1 };
            }
        }
    }
    wanted
}

/// Whom to tell, and their counts.
///
/// Two CPUs may both read when the next one is due before either writes it: then one more is told.
#[inline(always)]
fn wanted(app: u32, address: Addr) -> u32 {
    let Some(taps) = TAPS.get(0) else { return 0 };
    let now_ns = maps::now_ns();
    let mut wanted = 0;
    for (number, tap) in (0..TAPS_MAX).zip(&taps.taps) {
        if !tap.is_for(app, address, now_ns) {
            continue;
        }
        let (Some(counts), Some(due)) = (TAP_COUNTS.get_ptr_mut(number), TAP_DUE.get_ptr_mut(number)) else { continue };
        // SAFETY: this CPU's own value, and a number that CPUs share and read whole.
        unsafe {
            (*counts).seen += 1;
            match tap.weigh((*counts).seen, *due, now_ns) {
                Weight::Skipped => {}
                Weight::TooFast => (*counts).too_fast += 1,
                Weight::Told { due_ns } => {
                    *due = due_ns;
                    wanted |= 1 << number;
                }
            }
        }
    }
    wanted
}
