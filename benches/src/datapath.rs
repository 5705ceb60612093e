//! `datapath`: the XDP program, packet by packet, beside the least that any program could do (BPF_PROG_TEST_RUN).
//!
//! A packet that passes untouched is run again and again as it is. All others, the floors among them, go through `replay`,
//! which makes the packet what it was, takes the next client's address and calls the measured program. What that costs by
//! itself is `floor: replay and pass` less `floor: pass`, and part of every value and baseline of theirs.

mod kernel;
mod packets;

use std::time::Instant;

use anyhow::Context as _;
use lb_common::abi::{BackendId, Counter, SERVICE_LIMITED, SERVICE_LISTED, SERVICE_REMOTE, Slot};
use lb_common::maglev::{self, Member};

use crate::report::{Bar, Case, Rounds};
pub use kernel::attach_floor;
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
    /// Remote; every slot is in transition, and its clients are bound to neither owner.
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
            Self::MovingRemote => Slot { current: l2, previous: gue },
        }
    }
}

/// Which program, on which packets.
struct Subject {
    name: &'static str,
    program: Program,
    packets: Packets,
    verdict: u32,
    /// What homing counts such a packet as.
    counter: Option<Counter>,
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
const SYN_STABLE: &str = "local, SYN, slot stable";
const IPIP_ONE: &str = "remote IPIP, 1 client";

fn subjects() -> Vec<Subject> {
    const STRANGERS: u32 = u32::from_be_bytes([100, 0, 0, 0]);
    let homing = |name, packets, verdict, counter, baseline, bar| Subject {
        name,
        program: Program::Homing,
        packets,
        verdict,
        counter: Some(counter),
        baseline,
        bar,
    };
    let floor = |name, program, packets, verdict| Subject {
        name,
        program: Program::Floor(program),
        packets,
        verdict,
        counter: None,
        baseline: FLOOR_PASS,
        bar: None,
    };
    let passes =
        |name, frame, counter, bar| homing(name, Packets::One(frame), PASS, counter, FLOOR_PASS, Some(Bar::Ratio(bar)));
    let opens = |name, app: App, first, clients, bar| {
        let packets = Packets::Many { frame: packets::syn(app.port()), first, clients };
        homing(name, packets, PASS, Counter::XdpSynWorker, FLOOR_REPLAY, bar)
    };
    let remote = |name, app: App, clients, baseline, bar| {
        let counter = match app {
            App::L2 => Counter::XdpForwardedL2,
            App::Gue => Counter::XdpForwardedGue,
            _ => Counter::XdpForwardedIpip,
        };
        let packets = Packets::Many { frame: packets::ack(app.port()), first: FIRST, clients };
        homing(name, packets, TX, counter, baseline, bar)
    };
    let drops = |name, app: App, clients, counter| {
        let packets = Packets::Many { frame: packets::syn(app.port()), first: FIRST, clients };
        homing(name, packets, DROP, counter, FLOOR_REPLAY, None)
    };
    let ack = |app: App| packets::ack(app.port());
    let fresh = |frame| Packets::Many { frame, first: FIRST, clients: 1 };
    let data = Packets::Many { frame: packets::data(App::L2.port()), first: FIRST, clients: 1 << 16 };
    let ipip = Some(Bar::Ratio(4.5));
    let l2 = Some(Bar::Ratio(5.0));
    vec![
        floor(FLOOR_PASS, "floor_pass", Packets::One(ack(App::Local)), PASS),
        floor(FLOOR_REPLAY, "floor_pass", fresh(ack(App::Local)), PASS),
        floor("floor: back", "floor_tx", fresh(ack(App::L2)), TX),
        floor(FLOOR_L2, "floor_l2", fresh(ack(App::L2)), TX),
        floor("floor: link address from a table", "floor_l2_table", fresh(ack(App::L2)), TX),
        floor(FLOOR_ENCAPSULATE, "floor_encapsulate", fresh(ack(App::Ipip)), TX),
        passes("not ours, IPv4", packets::ack(22), Counter::XdpNotOurs, 2.5),
        passes("not ours, IPv6", packets::ack_v6(22), Counter::XdpNotOurs, 2.5),
        passes("local, established", ack(App::Local), Counter::XdpEstablished, 4.0),
        opens(SYN_STABLE, App::Local, FIRST, BOUND, None),
        opens("local, SYN, bound client of 1M", App::Moving, FIRST, BOUND / 2, None),
        opens("local, SYN, new client, 1M bound", App::Moving, STRANGERS, BOUND, Some(Bar::Value(900.0))),
        remote("remote L2, 1 client", App::L2, 1, FLOOR_L2, l2),
        remote("remote L2, 16k clients", App::L2, 1 << 14, FLOOR_L2, l2),
        remote("remote L2, 64k clients", App::L2, 1 << 16, FLOOR_L2, l2),
        remote("remote L2, 1M clients", App::L2, 1 << 20, FLOOR_L2, l2),
        remote(IPIP_ONE, App::Ipip, 1, FLOOR_ENCAPSULATE, ipip),
        remote("remote IPIP, 16k clients", App::Ipip, 1 << 14, FLOOR_ENCAPSULATE, ipip),
        remote("remote IPIP, 64k clients", App::Ipip, 1 << 16, FLOOR_ENCAPSULATE, ipip),
        remote("remote IPIP, 1M clients", App::Ipip, 1 << 20, FLOOR_ENCAPSULATE, ipip),
        remote("remote IPIP, 1M against 1", App::Ipip, 1 << 20, IPIP_ONE, Some(Bar::Ratio(1.3))),
        remote("remote GUE, 1 client", App::Gue, 1, FLOOR_ENCAPSULATE, None),
        remote("remote GUE, 16k clients", App::Gue, 1 << 14, FLOOR_ENCAPSULATE, None),
        remote("remote GUE, 64k clients", App::Gue, 1 << 16, FLOOR_ENCAPSULATE, None),
        remote("remote GUE, 1M clients", App::Gue, 1 << 20, FLOOR_ENCAPSULATE, None),
        homing("remote L2, data, 64k clients", data, TX, Counter::XdpForwardedL2, FLOOR_L2, None),
        remote("remote, slot in transition, 64k bound", App::MovingRemote, 1 << 16, FLOOR_ENCAPSULATE, None),
        drops("denied by a list of 16k", App::Denying, 1 << 14, Counter::XdpDenied),
        drops("too fast, 64k clients", App::Limited, 1 << 16, Counter::XdpClientTooFast),
    ]
}

/// The subjects for which one client is enough, for who measures them otherwise.
pub struct Single {
    kernel: Kernel,
    subjects: Vec<Subject>,
}

impl Single {
    /// In a network namespace that has nothing but a loopback. Every subject does what its name says.
    pub fn load() -> anyhow::Result<Self> {
        let mut kernel = Kernel::without_clients()?;
        let mut subjects = subjects();
        for subject in &mut subjects {
            if let (SYN_STABLE, Packets::Many { clients, .. }) = (subject.name, &mut subject.packets) {
                *clients = 1;
            }
        }
        subjects.retain(|subject| matches!(subject.packets, Packets::One(_) | Packets::Many { clients: 1, .. }));
        for subject in &subjects {
            kernel.check(subject).with_context(|| subject.name.to_owned())?;
        }
        Ok(Self { kernel, subjects })
    }

    pub fn names(&self) -> Vec<&'static str> {
        self.subjects.iter().map(|subject| subject.name).collect()
    }

    /// What the kernel says a run of this subject takes, harness included.
    pub fn nanoseconds(&mut self, name: &str, runs: u32) -> anyhow::Result<f64> {
        let subject = self.subjects.iter().find(|subject| subject.name == name).context("a subject's name")?;
        Ok(self.kernel.run(subject, runs)?.duration.as_nanos() as f64)
    }
}

pub fn run(rounds: Rounds) -> anyhow::Result<Vec<Case>> {
    let mut kernel = Kernel::load()?;
    let subjects = subjects();
    for subject in &subjects {
        kernel.check(subject).with_context(|| subject.name.to_owned())?;
    }
    let at = |name| subjects.iter().position(|subject| subject.name == name).expect("a subject's name");
    let mut values = vec![Vec::new(); subjects.len()];
    for _ in 0..rounds.count {
        // Interleaved: whatever else the machine does, it does to all of them.
        for (values, subject) in values.iter_mut().zip(&subjects) {
            values.push(kernel.nanoseconds(subject)?);
        }
    }
    println!("{}", kernel.sizes()?);
    let cases = subjects.iter().enumerate().map(|(index, subject)| {
        let baseline = at(subject.baseline);
        Case::new(subject.name, &values[index], "ns/packet", subject.baseline, &values[baseline]).with_bar(subject.bar)
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
    Case::new("ring of 65,537 slots, 100 backends", &fills, "ms", "a copy of it", &copies)
        .with_bar(Some(Bar::Value(10.0)))
}
