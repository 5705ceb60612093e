//! `datapath`: the XDP program, packet by packet, beside the least that any program could do (BPF_PROG_TEST_RUN).
//!
//! A packet that passes untouched is run again and again as it is. All others go through `replay`, which makes the packet
//! what it was, takes the next client's address and calls the measured program; what that costs by itself (`replay` of
//! the program that passes everything, less that program alone) is taken off in the same round.

mod kernel;
mod packets;

use std::time::Instant;

use anyhow::Context as _;
use lb_common::abi::{BackendId, SERVICE_LIMITED, SERVICE_LISTED, SERVICE_REMOTE, Slot};
use lb_common::maglev::{self, Member};

use crate::report::{Bar, Case, Rounds};
use kernel::{BOUND, FIRST, Kernel};

const DROP: u32 = 1;
const PASS: u32 = 2;
const TX: u32 = 3;

/// The services, one app each.
#[derive(Clone, Copy)]
enum App {
    Local,
    /// Every slot is in transition, and the table of bindings is full.
    Moving,
    L2,
    Ipip,
    Gue,
    /// Remote, every slot in transition.
    MovingRemote,
    Denying,
    Limited,
}

impl App {
    const ALL: [Self; 8] =
        [Self::Local, Self::Moving, Self::L2, Self::Ipip, Self::Gue, Self::MovingRemote, Self::Denying, Self::Limited];

    fn port(self) -> u16 {
        9_000 + self as u16
    }

    fn flags(self) -> u32 {
        match self {
            Self::Local | Self::Moving => 0,
            Self::L2 | Self::Ipip | Self::Gue | Self::MovingRemote => SERVICE_REMOTE,
            Self::Denying => SERVICE_LISTED,
            Self::Limited => SERVICE_LIMITED,
        }
    }

    /// Who has the whole ring, and who had it before.
    fn slot(self) -> Slot {
        let [local, l2, ipip, gue, other] = kernel::BACKENDS;
        let stable = |current| Slot { current, previous: BackendId::NONE };
        match self {
            Self::Local | Self::Denying | Self::Limited => stable(local),
            Self::Moving => Slot { current: other, previous: local },
            Self::L2 => stable(l2),
            Self::Ipip => stable(ipip),
            Self::Gue => stable(gue),
            Self::MovingRemote => Slot { current: l2, previous: ipip },
        }
    }
}

/// Which program, on which packets.
struct Subject {
    name: &'static str,
    program: Program,
    packets: Packets,
    verdict: u32,
    /// Its name among the subjects.
    baseline: &'static str,
    bar: Option<Bar>,
}

#[derive(Clone, Copy)]
enum Program {
    Homing,
    Floor(&'static str),
}

enum Packets {
    /// This one, left untouched.
    One(Vec<u8>),
    /// From so many clients, a power of two, from this address on.
    Many { frame: Vec<u8>, first: u32, clients: u32 },
}

const FLOOR_PASS: &str = "floor: pass";
const FLOOR_REPLAY: &str = "floor: replay and pass";
const FLOOR_L2: &str = "floor: link address";
const FLOOR_ENCAPSULATE: &str = "floor: encapsulate";
const IPIP_ONE: &str = "remote IPIP, 1 client";

fn subjects() -> Vec<Subject> {
    const STRANGERS: u32 = u32::from_be_bytes([100, 0, 0, 0]);
    let one = |name, frame, verdict, baseline, bar| Subject {
        name,
        program: Program::Homing,
        packets: Packets::One(frame),
        verdict,
        baseline,
        bar,
    };
    let many = |name, frame, first, clients, verdict, baseline, bar| Subject {
        name,
        program: Program::Homing,
        packets: Packets::Many { frame, first, clients },
        verdict,
        baseline,
        bar,
    };
    let floor = |name, program, packets, verdict| Subject {
        name,
        program: Program::Floor(program),
        packets,
        verdict,
        baseline: FLOOR_PASS,
        bar: None,
    };
    let ack = |app: App| packets::ack(app.port());
    let syn = |app: App| packets::syn(app.port());
    let fresh = |frame| Packets::Many { frame, first: FIRST, clients: 1 };
    let ipip = Some(Bar::Ratio(4.5));
    let l2 = Some(Bar::Ratio(5.0));
    vec![
        floor(FLOOR_PASS, "floor_pass", Packets::One(ack(App::Local)), PASS),
        floor(FLOOR_REPLAY, "floor_pass", fresh(ack(App::Local)), PASS),
        floor("floor: back", "floor_tx", fresh(ack(App::L2)), TX),
        floor(FLOOR_L2, "floor_l2", fresh(ack(App::L2)), TX),
        floor("floor: link address from a table", "floor_l2_table", fresh(ack(App::L2)), TX),
        floor(FLOOR_ENCAPSULATE, "floor_encapsulate", fresh(ack(App::Ipip)), TX),
        one("not ours, IPv4", packets::ack(22), PASS, FLOOR_PASS, Some(Bar::Ratio(2.5))),
        one("not ours, IPv6", packets::ack_v6(22), PASS, FLOOR_PASS, Some(Bar::Ratio(2.5))),
        one("local, established", ack(App::Local), PASS, FLOOR_PASS, Some(Bar::Ratio(4.0))),
        many("local, SYN, slot stable", syn(App::Local), FIRST, BOUND, PASS, FLOOR_PASS, None),
        many("local, SYN, bound client of 1M", syn(App::Moving), FIRST, BOUND / 2, PASS, FLOOR_PASS, None),
        many(
            "local, SYN, new client, 1M bound",
            syn(App::Moving),
            STRANGERS,
            BOUND,
            PASS,
            FLOOR_PASS,
            Some(Bar::Value(900.0)),
        ),
        many("remote L2, 1 client", ack(App::L2), FIRST, 1, TX, FLOOR_L2, l2),
        many("remote L2, 16k clients", ack(App::L2), FIRST, 1 << 14, TX, FLOOR_L2, l2),
        many("remote L2, 64k clients", ack(App::L2), FIRST, 1 << 16, TX, FLOOR_L2, l2),
        many("remote L2, 1M clients", ack(App::L2), FIRST, 1 << 20, TX, FLOOR_L2, l2),
        many(IPIP_ONE, ack(App::Ipip), FIRST, 1, TX, FLOOR_ENCAPSULATE, ipip),
        many("remote IPIP, 16k clients", ack(App::Ipip), FIRST, 1 << 14, TX, FLOOR_ENCAPSULATE, ipip),
        many("remote IPIP, 64k clients", ack(App::Ipip), FIRST, 1 << 16, TX, FLOOR_ENCAPSULATE, ipip),
        many("remote IPIP, 1M clients", ack(App::Ipip), FIRST, 1 << 20, TX, FLOOR_ENCAPSULATE, ipip),
        many("remote IPIP, 1M against 1", ack(App::Ipip), FIRST, 1 << 20, TX, IPIP_ONE, Some(Bar::Ratio(1.3))),
        many("remote GUE, 1 client", ack(App::Gue), FIRST, 1, TX, FLOOR_ENCAPSULATE, None),
        many("remote GUE, 1M clients", ack(App::Gue), FIRST, 1 << 20, TX, FLOOR_ENCAPSULATE, None),
        many("remote L2, data, 64k clients", packets::data(App::L2.port()), FIRST, 1 << 16, TX, FLOOR_L2, None),
        many(
            "remote, slot in transition, 64k bound",
            ack(App::MovingRemote),
            FIRST,
            1 << 16,
            TX,
            FLOOR_ENCAPSULATE,
            None,
        ),
        many("denied by a list of 16k", syn(App::Denying), FIRST, 1 << 14, DROP, FLOOR_PASS, None),
        many("too fast, 64k clients", syn(App::Limited), FIRST, 1 << 16, DROP, FLOOR_PASS, None),
    ]
}

pub fn run(rounds: Rounds) -> anyhow::Result<Vec<Case>> {
    let mut kernel = Kernel::load()?;
    let subjects = subjects();
    for subject in &subjects {
        kernel.check(subject).with_context(|| subject.name.to_owned())?;
    }
    let at = |name| subjects.iter().position(|subject| subject.name == name).expect("a subject's name");
    let (pass, replay) = (at(FLOOR_PASS), at(FLOOR_REPLAY));
    let mut values = vec![Vec::new(); subjects.len()];
    for _ in 0..rounds.count {
        // Interleaved: whatever else the machine does, it does to all of them.
        let raw = subjects.iter().map(|subject| kernel.nanoseconds(subject)).collect::<anyhow::Result<Vec<f64>>>()?;
        let harness = raw[replay] - raw[pass];
        for ((values, subject), raw) in values.iter_mut().zip(&subjects).zip(&raw) {
            let is_replayed = matches!(subject.packets, Packets::Many { .. }) && subject.name != FLOOR_REPLAY;
            values.push(if is_replayed { raw - harness } else { *raw });
        }
    }
    println!("{}", kernel.sizes()?);
    let cases = subjects.iter().zip(&values).map(|(subject, own)| {
        let case = Case::new(subject.name, own, "ns/packet", subject.baseline, &values[at(subject.baseline)]);
        Case { bar: subject.bar, ..case }
    });
    let mut cases: Vec<Case> = cases.collect();
    cases.push(ring(rounds));
    Ok(cases)
}

/// Computing a ring of the largest size for a hundred backends, beside a copy of it.
fn ring(rounds: Rounds) -> Case {
    let members: Vec<Member> = (0..100)
        .map(|number| Member { name: u64::from(number) + 1, backend: BackendId::new(number, 1), weight: 1 })
        .collect();
    let milliseconds = |start: Instant| start.elapsed().as_secs_f64() * 1e3;
    let (mut fills, mut copies) = (Vec::new(), Vec::new());
    for _ in 0..rounds.count {
        let start = Instant::now();
        let ring = maglev::fill(maglev::RING_LEN_MAX, &members);
        fills.push(milliseconds(start));
        let start = Instant::now();
        std::hint::black_box(ring.clone());
        copies.push(milliseconds(start));
    }
    let case = Case::new("ring of 65,537 slots, 100 backends", &fills, "ms", "a copy of it", &copies);
    Case { bar: Some(Bar::Value(10.0)), ..case }
}
