//! The programs under test, loaded on maps of their own: nothing is attached, and all is gone with the process.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

use anyhow::{Context as _, anyhow, ensure};
use aya::maps::{Array, ArrayOfMaps, HashMap, LpmTrie, MapData, PerCpuArray, ProgramArray};
use aya::programs::xdp::XdpMode;
use aya::programs::{Program as AnyProgram, TestRun as _, TestRunOptions, TestRunResult, Xdp};
use aya::{Ebpf, EbpfLoader};
use homing::datapath::{Listed, OBJECT, allow_route_lookups, pod::Wire};
use lb_common::abi::{
    Backend, BackendId, Binding, BindingKey, Counter, FORWARD_GUE, FORWARD_IPIP, FORWARD_L2, LISTED_DENY, Limits,
    Ports, Service, ServiceKey, Slot,
};
use lb_common::addr::Addr;

use super::{App, Packets, Program, Subject, packets};

static FLOORS: &[u8] = aya::include_bytes_aligned!(env!("FLOORS_OBJECT"));

/// One of these programs on a device of this namespace, for as long as the value lives.
pub fn attach_floor(name: &str, device: &str) -> anyhow::Result<Ebpf> {
    let mut ebpf = EbpfLoader::new().load(FLOORS)?;
    let program: &mut Xdp = ebpf.program_mut(name).context("a program")?.try_into()?;
    program.load()?;
    program.attach(device, XdpMode::Driver)?;
    Ok(ebpf)
}

/// The first client's address; the others follow it.
pub const FIRST: u32 = u32::from_be_bytes([10, 0, 0, 0]);
/// Clients with a binding: more than the table holds, so that it is full.
pub const BOUND: u32 = 1 << 20;
/// A worker, hosts by link address, in IP and in GUE, and another worker.
pub const BACKENDS: [BackendId; 5] =
    [BackendId::new(0, 1), BackendId::new(1, 1), BackendId::new(2, 1), BackendId::new(3, 1), BackendId::new(4, 1)];

/// Runs of one case in one round.
const REPEAT: u32 = 1_000_000;
const RING_LEN: u32 = 65_537;
/// `BPF_F_INNER_MAP` (Linux 5.10).
const BPF_F_INNER_MAP: u32 = 1 << 12;
/// Clients that are bound to the previous owner of a remote service in transition.
const BOUND_REMOTE: u32 = 1 << 16;
/// Prefixes on the list that denies.
const DENIED: u32 = 1 << 14;
const HOST: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 2);
const HERE: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 1);
const GUE_PORT: u32 = 6_080;

pub struct Kernel {
    homing: Ebpf,
    floors: Ebpf,
}

impl Kernel {
    /// In the network namespace of this thread, which has nothing but a loopback; with full tables.
    pub fn load() -> anyhow::Result<Self> {
        let mut kernel = Self::without_clients()?;
        kernel.bind(App::Moving, BOUND, BACKENDS[0])?;
        kernel.bind(App::MovingRemote, BOUND_REMOTE, BACKENDS[2])?;
        kernel.check_bound(App::Moving, BOUND / 2)?;
        kernel.check_bound(App::MovingRemote, BOUND_REMOTE)?;
        kernel.set_protection()?;
        Ok(kernel)
    }

    /// The same with nobody in the tables.
    pub fn without_clients() -> anyhow::Result<Self> {
        link()?;
        let mut kernel = Self { homing: EbpfLoader::new().load(OBJECT)?, floors: EbpfLoader::new().load(FLOORS)? };
        xdp(&mut kernel.homing, "homing_xdp")?.load()?;
        for floor in ["replay", "floor_pass", "floor_tx", "floor_l2", "floor_l2_table", "floor_encapsulate"] {
            xdp(&mut kernel.floors, floor)?.load()?;
        }
        kernel.set_backends()?;
        let services = App::ALL.map(|app| kernel.set_app(app)).into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        let mut ports: Array<_, Ports> = kernel.homing.map_mut("PORTS").context("a map")?.try_into()?;
        ports.set(0, *homing::datapath::ports(&services), 0)?;
        Ok(kernel)
    }

    fn set_backends(&mut self) -> anyhow::Result<()> {
        let mut backends: Array<_, Wire<Backend>> = self.homing.map_mut("BACKENDS").context("a map")?.try_into()?;
        let forwards = [0, FORWARD_L2, FORWARD_IPIP, FORWARD_GUE, 0];
        for (id, forward) in BACKENDS.into_iter().zip(forwards) {
            let remote = Backend {
                address: Addr::v4(HOST.octets()),
                source: Addr::v4(HERE.octets()),
                id,
                forward,
                gue_port: GUE_PORT,
                reserved: 0,
            };
            let backend = if forward == 0 { Backend { id, ..Backend::default() } } else { remote };
            backends.set(id.index(), Wire(backend), 0)?;
        }
        Ok(())
    }

    fn set_app(&mut self, app: App) -> anyhow::Result<(ServiceKey, Service)> {
        let mut ring: Array<MapData, Wire<Slot>> = Array::create(RING_LEN, BPF_F_INNER_MAP)?;
        for index in 0..RING_LEN {
            ring.set(index, Wire(app.slot()), 0)?;
        }
        let mut rings: ArrayOfMaps<_, Array<MapData, Wire<Slot>>> =
            self.homing.map_mut("RINGS").context("a map")?.try_into()?;
        rings.set(app as u32, &ring, 0)?;
        let service = Service {
            seed: 1,
            app: app as u32,
            ring_len: RING_LEN,
            flags: app.flags(),
            v4_bits: 128,
            v6_bits: 64,
            affinity_s: 3_600,
            promote_above: 16,
        };
        let mut services: HashMap<_, Wire<ServiceKey>, Wire<Service>> =
            self.homing.map_mut("SERVICES").context("a map")?.try_into()?;
        let key = ServiceKey::tcp(Addr::v4(packets::SERVICE_V4), app.port());
        services.insert(Wire(key), Wire(service), 0)?;
        Ok((key, service))
    }

    fn bind(&mut self, app: App, clients: u32, backend: BackendId) -> anyhow::Result<()> {
        let mut bindings: HashMap<_, Wire<BindingKey>, Wire<Binding>> =
            self.homing.map_mut("BINDINGS").context("a map")?.try_into()?;
        // The last ones first: the table has room for fewer, and forgets those that came first.
        for client in (0..clients).rev() {
            bindings.insert(
                Wire(binding_key(app, client)),
                Wire(Binding { backend, connections: 1, seen_s: 0, reserved: 0 }),
                0,
            )?;
        }
        Ok(())
    }

    fn set_protection(&mut self) -> anyhow::Result<()> {
        let mut access: LpmTrie<_, [u32; 5], u32> = self.homing.map_mut("ACCESS").context("a map")?.try_into()?;
        for client in 0..DENIED {
            let net = IpAddr::V4(Ipv4Addr::from(FIRST + client)).into();
            let listed = Listed { app: App::Denying as u32, net, what: LISTED_DENY };
            access.insert(&listed.key(), listed.what, 0)?;
        }
        let mut limits: Array<_, Wire<Limits>> = self.homing.map_mut("LIMITS").context("a map")?.try_into()?;
        // One a day: whoever came once, in the runs before the measured ones, comes too early.
        let day_ns = 24 * 3_600 * 1_000_000_000;
        let rates = Limits { client_interval_ns: day_ns, ..Limits::default() };
        limits.set(App::Limited as u32, Wire(rates), 0)?;
        Ok(())
    }

    /// The program to run, and the packet to run it on.
    fn prepare<'a>(&'a mut self, subject: &'a Subject) -> anyhow::Result<(&'a mut Xdp, &'a [u8])> {
        let (frame, first, clients) = match &subject.packets {
            Packets::One(frame) => {
                let program = match subject.program {
                    Program::Homing => xdp(&mut self.homing, "homing_xdp")?,
                    Program::Floor(name) => xdp(&mut self.floors, name)?,
                };
                return Ok((program, frame));
            }
            Packets::Many { frame, first, clients } => (frame, *first, *clients),
        };
        let measured = match subject.program {
            Program::Homing => xdp(&mut self.homing, "homing_xdp")?.fd()?.try_clone()?,
            Program::Floor(name) => xdp(&mut self.floors, name)?.fd()?.try_clone()?,
        };
        let mut programs: ProgramArray<_> = self.floors.map_mut("MEASURED").context("a map")?.try_into()?;
        programs.set(0, &measured, 0)?;
        let mut template = [0; 64];
        template[..54].copy_from_slice(&frame[..54]);
        template[54..56].copy_from_slice(&u16::try_from(frame.len())?.to_ne_bytes());
        template[56..60].copy_from_slice(&first.to_ne_bytes());
        template[60..].copy_from_slice(&(clients - 1).to_ne_bytes());
        let mut templates: Array<_, [u8; 64]> = self.floors.map_mut("TEMPLATE").context("a map")?.try_into()?;
        templates.set(0, template, 0)?;
        Ok((xdp(&mut self.floors, "replay")?, frame))
    }

    /// That the subject does what its name says, once for every client: caches and tables are warm afterwards.
    pub fn check(&mut self, subject: &Subject) -> anyhow::Result<()> {
        let clients = match &subject.packets {
            Packets::One(_) => 1,
            Packets::Many { clients, .. } => *clients,
        };
        self.run(subject, clients)?;
        let before = self.counted(subject.counter)?;
        let verdict = self.run(subject, clients)?.return_value;
        ensure!(verdict == subject.verdict, "verdict {verdict}, not {}", subject.verdict);
        let counted = self.counted(subject.counter)? - before;
        let Some(counter) = subject.counter else { return Ok(()) };
        ensure!(counted == u64::from(clients), "{} counts {counted} packets of {clients}", counter.name());
        Ok(())
    }

    /// What homing's program has counted so far, on all CPUs.
    fn counted(&self, counter: Option<Counter>) -> anyhow::Result<u64> {
        let Some(counter) = counter else { return Ok(0) };
        let counters: PerCpuArray<_, u64> = self.homing.map("COUNTERS").context("a map")?.try_into()?;
        Ok(counters.get(&(counter as u32), 0)?.iter().sum())
    }

    /// That the table remembers so many of the first clients.
    fn check_bound(&self, app: App, clients: u32) -> anyhow::Result<()> {
        let bindings: HashMap<_, Wire<BindingKey>, Wire<Binding>> =
            self.homing.map("BINDINGS").context("a map")?.try_into()?;
        let forgotten =
            (0..clients).filter(|client| bindings.get(&Wire(binding_key(app, *client)), 0).is_err()).count();
        ensure!(forgotten == 0, "the table of bindings has forgotten {forgotten} clients of {clients}");
        Ok(())
    }

    /// Per packet, harness included.
    pub fn nanoseconds(&mut self, subject: &Subject) -> anyhow::Result<f64> {
        // The kernel's own clock stands still while it prepares the run, which takes milliseconds. It says whole
        // nanoseconds, rounded down.
        Ok(self.run(subject, REPEAT)?.duration.as_nanos() as f64 + 0.5)
    }

    pub fn run(&mut self, subject: &Subject, repeat: u32) -> anyhow::Result<TestRunResult> {
        let (program, frame) = self.prepare(subject)?;
        let context = context(frame)?;
        let options =
            TestRunOptions { data_in: Some(frame), ctx_in: Some(&context), repeat, ..TestRunOptions::default() };
        Ok(program.test_run(options)?)
    }

    /// How large homing's programs are, and how much work they were to verify.
    pub fn sizes(&mut self) -> anyhow::Result<String> {
        let mut out = format!("{:<16} {:>10} {:>12} {:>10}\n", "PROGRAM", "VERIFIED", "TRANSLATED", "JITED");
        let btf = aya::Btf::from_sys_fs()?;
        for name in ["homing_xdp", "homing_lookup", "homing_state"] {
            let program = self.homing.program_mut(name).ok_or_else(|| anyhow!("no program {name}"))?;
            let info = match program {
                AnyProgram::Xdp(program) => program.info()?,
                AnyProgram::SkLookup(program) => {
                    program.load()?;
                    program.info()?
                }
                AnyProgram::BtfTracePoint(program) => {
                    program.load("inet_sock_set_state", &btf)?;
                    program.info()?
                }
                _ => continue,
            };
            let instructions = info.verified_instruction_count().unwrap_or(0);
            let translated = info.size_translated().unwrap_or(0);
            let _ = writeln!(out, "{name:<16} {instructions:>10} {translated:>10} B {:>8} B", info.size_jitted());
        }
        Ok(out)
    }
}

fn binding_key(app: App, client: u32) -> BindingKey {
    BindingKey { client: Addr::v4((FIRST + client).to_be_bytes()), app: app as u32, reserved: 0 }
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut Xdp> {
    Ok(ebpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?)
}

/// `struct xdp_md` (Linux: include/uapi/linux/bpf.h) of a frame that came in by the cable: it leaves there, too.
fn context(frame: &[u8]) -> anyhow::Result<Vec<u8>> {
    let cable = std::fs::read_to_string("/proc/thread-self/net/dev_snmp6/eth0")?;
    let index = cable.split_whitespace().nth(1).context("eth0 has an index")?.parse()?;
    let fields = [0, u32::try_from(frame.len())?, 0, index, 0, 0];
    Ok(fields.iter().flat_map(|field: &u32| field.to_ne_bytes()).collect())
}

/// A cable with a host at the other end, whose link address is known.
fn link() -> anyhow::Result<()> {
    // In a namespace that is new nothing has an address: another's interfaces are not this program's to change.
    let addresses = Command::new("ip").args(["-oneline", "address"]).output().context("ip cannot be run")?;
    ensure!(
        addresses.status.success() && addresses.stdout.is_empty(),
        "root and a new network namespace are wanted: cargo xtask bench datapath"
    );
    let [host, here] = [HOST.to_string(), format!("{HERE}/24")];
    let steps: [&[&str]; 5] = [
        &["link", "add", "eth0", "type", "veth", "peer", "name", "far"],
        &["address", "add", &here, "dev", "eth0"],
        &["link", "set", "eth0", "up"],
        &["link", "set", "far", "up"],
        &["neigh", "add", &host, "lladdr", "02:00:00:00:00:21", "dev", "eth0", "nud", "permanent"],
    ];
    for words in steps {
        let output = Command::new("ip").args(words).output().context("ip cannot be run")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "ip {}: {}", words.join(" "), said.trim());
    }
    // Its end takes frames of XDP: the kernel runs programs only as if they came by such an interface.
    let output = Command::new("ethtool").args(["-K", "eth0", "gro", "on"]).output().context("ethtool cannot be run")?;
    ensure!(output.status.success(), "ethtool -K eth0 gro on: {}", String::from_utf8_lossy(&output.stderr).trim());
    allow_route_lookups().context("cannot let the kernel answer questions for routes")
}
