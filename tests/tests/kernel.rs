//! The loaded programs, run packet by packet with BPF_PROG_TEST_RUN. Needs root and a kernel with BTF.

use std::net::IpAddr;

use aya::maps::{Array, ArrayOfMaps, HashMap, LpmTrie, MapData, PerCpuArray, RingBuf};
use aya::programs::{SkLookup, TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use homing::datapath::{Listed, OBJECT, Sizes, pod::Wire};
use homing_tests::packets::{self, check_fixtures};
use lb_common::abi::{
    BackendId, BindingKey, Counter, LISTED_ALLOW, LISTED_DENY, Limits, Ports, Promotion, SERVICE_ALLOWED_ONLY,
    SERVICE_AUTO, SERVICE_LIMITED, SERVICE_LISTED, Service, ServiceKey, Slot,
};
use lb_common::addr::Addr;
use lb_common::tap::{Decision, Rule, Tap, TapCounts, Taps};

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const RING_LEN: u32 = 509;
/// `BPF_F_INNER_MAP` (Linux 5.10).
const BPF_F_INNER_MAP: u32 = 1 << 12;

/// The programs with maps of their own, pinned nowhere: gone with this value.
struct Kernel {
    ebpf: Ebpf,
}

impl Kernel {
    /// The fixtures' service on both families, with one worker that owns the whole ring.
    fn load() -> Self {
        let ebpf = EbpfLoader::new().load(OBJECT).expect("the kernel accepts the maps");
        let worker = Slot { current: BackendId::new(0, 1), previous: BackendId::NONE };
        let mut kernel = Self { ebpf };
        kernel.set_service(service());
        kernel.set_ring(worker);
        let program: &mut Xdp = kernel.program();
        program.load().expect("the verifier accepts the program");
        kernel
    }

    fn program(&mut self) -> &mut Xdp {
        self.ebpf.program_mut("homing_xdp").expect("a program").try_into().expect("its type")
    }

    fn set_service(&mut self, service: Service) {
        let mut services: HashMap<_, Wire<ServiceKey>, Wire<Service>> =
            self.ebpf.map_mut("SERVICES").expect("a map").try_into().expect("its type");
        let key = |address| ServiceKey::tcp(address, packets::PORT);
        for address in [Addr::v4(packets::V4), Addr::v6(packets::V6)] {
            services.insert(Wire(key(address)), Wire(service), 0).expect("room");
        }
        let mut ports: Array<_, Ports> = self.ebpf.map_mut("PORTS").expect("a map").try_into().expect("its type");
        ports.set(0, *homing::datapath::ports(&[(key(Addr::ANY_V4), service)]), 0).expect("in the array");
    }

    fn set_ring(&mut self, slot: Slot) {
        let mut ring: Array<MapData, Wire<Slot>> = Array::create(RING_LEN, BPF_F_INNER_MAP).expect("a ring");
        for index in 0..RING_LEN {
            ring.set(index, Wire(slot), 0).expect("in the ring");
        }
        let mut rings: ArrayOfMaps<_, Array<MapData, Wire<Slot>>> =
            self.ebpf.map_mut("RINGS").expect("a map").try_into().expect("its type");
        rings.set(0, &ring, 0).expect("in the rings");
    }

    fn counters(&self) -> Vec<u64> {
        let counters: PerCpuArray<_, u64> = self.ebpf.map("COUNTERS").expect("a map").try_into().expect("its type");
        let sum = |counter: &Counter| counters.get(&(*counter as u32), 0).expect("a counter").iter().sum();
        Counter::ALL.iter().map(sum).collect()
    }

    /// Verdict, and the one counter that went up.
    fn verdict(&mut self, packet: &[u8]) -> (u32, &'static str) {
        let (verdict, _, raised) = self.run(packet);
        let [counter] = raised[..] else { panic!("one counter, not {raised:?}") };
        (verdict, counter)
    }

    /// Verdict, bytes after the program, and the names of the counters that went up by one.
    fn run(&mut self, packet: &[u8]) -> (u32, Vec<u8>, Vec<&'static str>) {
        let before = self.counters();
        let mut out = vec![0; packet.len() + 64];
        let options = TestRunOptions { data_in: Some(packet), data_out: Some(&mut out), ..TestRunOptions::default() };
        let result = self.program().test_run(options).expect("a test run");
        out.truncate(result.data_size_out as usize);
        let raised = packets::raised(&before, &self.counters());
        (result.return_value, out, raised)
    }
}

fn service() -> Service {
    Service { ring_len: RING_LEN, v4_bits: 128, v6_bits: 64, affinity_s: 60, ..Service::default() }
}

#[test]
fn every_fixture_is_read_alike_in_user_space_and_in_the_kernel() {
    let mut kernel = Kernel::load();
    check_fixtures(|packet| kernel.run(packet));
}

#[test]
fn the_memory_that_check_states_is_what_the_kernel_sets_aside() {
    let sizes = Sizes { bindings: 300_000, paces: 1 };
    let mut loader = EbpfLoader::new();
    loader.map_max_entries("BINDINGS", sizes.bindings).map_max_entries("CLIENT_DUE", sizes.paces);
    let ebpf = loader.load(OBJECT).expect("the kernel accepts the maps");
    let charged: u64 = ebpf.maps().filter_map(|(_, map)| charge(map)).sum();
    let stated = sizes.bytes();
    assert!(stated.abs_diff(charged) * 10 <= charged, "stated {stated}, set aside {charged}");
}

/// What the kernel has set aside for a map, in bytes.
fn charge(map: &aya::maps::Map) -> Option<u64> {
    let fd = match map {
        aya::maps::Map::Array(map) | aya::maps::Map::PerCpuArray(map) => map.fd(),
        aya::maps::Map::HashMap(map) | aya::maps::Map::LruHashMap(map) => map.fd(),
        aya::maps::Map::SockHash(map) | aya::maps::Map::LpmTrie(map) => map.fd(),
        _ => return None,
    };
    let info = format!("/proc/self/fdinfo/{}", std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(fd)));
    let info = std::fs::read_to_string(info).expect("a descriptor of this process");
    info.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok())
}

#[test]
fn a_syn_goes_to_the_http_path_while_no_worker_owns_the_slot() {
    let mut kernel = Kernel::load();
    kernel.set_ring(Slot::default());
    let syn = packets::fixtures().into_iter().find(|f| f.counter == Counter::XdpSynWorker).expect("a SYN");
    assert_eq!(kernel.run(&syn.bytes).2, [Counter::XdpSynHttp.name()]);
}

#[test]
fn a_syn_of_a_promoted_client_goes_to_the_http_path_and_its_open_connections_stay() {
    let mut kernel = Kernel::load();
    kernel.set_service(Service { flags: SERVICE_AUTO, ..service() });
    let fixture = |name: &str| packets::fixtures().into_iter().find(|f| f.name == name).expect("a fixture").bytes;
    let (syn, ack) = (fixture("IPv4: SYN goes to the ring's worker"), fixture("IPv4: ACK is established"));
    assert_eq!(kernel.run(&syn).2, [Counter::XdpSynWorker.name()]);
    let mut promoted: HashMap<_, Wire<BindingKey>, Wire<Promotion>> =
        kernel.ebpf.map_mut("PROMOTED").expect("a map").try_into().expect("its type");
    let key = BindingKey { client: Addr::v4(packets::CLIENT_V4), app: 0, reserved: 0 };
    promoted.insert(Wire(key), Wire(Promotion::default()), 0).expect("room");
    assert_eq!(kernel.run(&syn).2, [Counter::XdpSynHttp.name()]);
    assert_eq!(kernel.run(&ack).2, [Counter::XdpEstablished.name()]);
    assert_eq!(kernel.run(&fixture("IPv6: SYN goes to the ring's worker")).2, [Counter::XdpSynWorker.name()]);
    kernel.set_service(service());
    assert_eq!(kernel.run(&syn).2, [Counter::XdpSynWorker.name()], "without affinity auto nobody asks");
}

/// The first SYN fixture of the family, from this address.
fn syn_from(address: IpAddr) -> Vec<u8> {
    let (name, at) = match address {
        IpAddr::V4(_) => ("IPv4: SYN goes to the ring's worker", 26),
        IpAddr::V6(_) => ("IPv6: SYN goes to the ring's worker", 22),
    };
    let mut bytes = packets::fixtures().into_iter().find(|f| f.name == name).expect("a fixture").bytes;
    match address {
        IpAddr::V4(v4) => bytes[at..at + 4].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => bytes[at..at + 16].copy_from_slice(&v6.octets()),
    }
    bytes
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn the_longest_prefix_on_an_apps_lists_decides_who_is_denied() {
    let mut kernel = Kernel::load();
    kernel.set_service(Service { flags: SERVICE_LISTED, ..service() });
    for (app, net, what) in [
        (0, "10.0.0.0/8", LISTED_DENY),
        (0, "10.1.0.0/16", LISTED_ALLOW),
        (0, "10.1.1.7/32", LISTED_DENY),
        (0, "fd00:bad::/32", LISTED_DENY),
        (1, "192.0.2.0/24", LISTED_DENY),
    ] {
        let mut access: LpmTrie<_, [u32; 5], u32> =
            kernel.ebpf.map_mut("ACCESS").expect("a map").try_into().expect("its type");
        let listed = Listed { app, net: net.parse().expect("a prefix"), what };
        access.insert(&listed.key(), listed.what, 0).expect("room");
    }
    let denied = ["10.9.0.7", "10.0.0.1", "10.1.1.7", "fd00:bad::1"];
    let allowed = ["10.1.0.1", "10.1.1.8", "11.0.0.1", "192.0.2.1", "fd00:bae::1"];
    for from in denied {
        assert_eq!(kernel.verdict(&syn_from(address(from))), (XDP_DROP, Counter::XdpDenied.name()), "{from}");
    }
    for from in allowed {
        assert_eq!(kernel.verdict(&syn_from(address(from))), (XDP_PASS, Counter::XdpSynWorker.name()), "{from}");
    }
    let open = packets::fixtures().into_iter().find(|f| f.name == "IPv4: ACK is established").expect("a fixture");
    assert_eq!(kernel.verdict(&open.bytes), (XDP_PASS, Counter::XdpEstablished.name()), "what is open stays");
    kernel.set_service(Service { flags: SERVICE_LISTED | SERVICE_ALLOWED_ONLY, ..service() });
    for (from, counter) in [("11.0.0.1", Counter::XdpDenied), ("10.1.0.1", Counter::XdpSynWorker)] {
        assert_eq!(kernel.run(&syn_from(address(from))).2, [counter.name()], "{from} with an allow list");
    }
}

#[test]
fn a_client_in_a_hurry_is_held_to_its_rate_and_takes_nothing_from_others() {
    const BURST: u64 = 20;
    // One a day at an even pace: how long the test takes makes no difference.
    const DAY_NS: u64 = 24 * 3_600 * 1_000_000_000;
    let mut kernel = Kernel::load();
    kernel.set_service(Service { flags: SERVICE_LIMITED, ..service() });
    let limits = Limits {
        client_interval_ns: DAY_NS,
        client_tolerance_ns: (BURST - 1) * DAY_NS,
        app_interval_ns: DAY_NS,
        app_tolerance_ns: (3 * BURST - 1) * DAY_NS,
    };
    let mut map: Array<_, Wire<Limits>> = kernel.ebpf.map_mut("LIMITS").expect("a map").try_into().expect("its type");
    map.set(0, Wire(limits), 0).expect("room");
    let mut passed = |from: &str| {
        let syn = syn_from(address(from));
        let verdicts: Vec<_> = (0..2 * BURST).map(|_| kernel.verdict(&syn)).collect();
        let refused = verdicts.iter().find(|(verdict, _)| *verdict == XDP_DROP).expect("some are refused").1;
        (verdicts.iter().filter(|(verdict, _)| *verdict == XDP_PASS).count() as u64, refused)
    };
    for client in ["192.0.2.1", "192.0.2.2", "fd00::1"] {
        assert_eq!(passed(client), (BURST, Counter::XdpClientTooFast.name()), "{client}");
    }
    assert_eq!(passed("192.0.2.3"), (0, Counter::XdpAppTooFast.name()), "all together have used up theirs");
}

#[test]
fn a_wildcard_service_takes_every_address_of_its_family_and_no_other() {
    let mut kernel = Kernel::load();
    let mut services: HashMap<_, Wire<ServiceKey>, Wire<Service>> =
        kernel.ebpf.map_mut("SERVICES").expect("a map").try_into().expect("its type");
    for address in [Addr::v4(packets::V4), Addr::v6(packets::V6)] {
        services.remove(&Wire(ServiceKey::tcp(address, packets::PORT))).expect("there");
    }
    let service = Service { ring_len: RING_LEN, v4_bits: 128, v6_bits: 64, ..Service::default() };
    services.insert(Wire(ServiceKey::tcp(Addr::ANY_V4, packets::PORT)), Wire(service), 0).expect("room");
    for (name, counter) in [
        ("IPv4: SYN goes to the ring's worker", Counter::XdpSynWorker),
        ("IPv4: another address is not ours", Counter::XdpSynWorker),
        ("IPv6: SYN goes to the ring's worker", Counter::XdpNotOurs),
    ] {
        let fixture = packets::fixtures().into_iter().find(|fixture| fixture.name == name).expect(name);
        assert_eq!(kernel.run(&fixture.bytes).2, [counter.name()], "{name}");
    }
}

impl Kernel {
    /// A service that denies all, and what the programs are to tell.
    fn refusing(taps: &[Tap]) -> Self {
        let mut kernel = Self::load();
        kernel.set_service(Service { flags: SERVICE_LISTED | SERVICE_ALLOWED_ONLY, ..service() });
        kernel.set_taps(taps);
        kernel
    }

    fn set_taps(&mut self, taps: &[Tap]) {
        let mut all = Taps { until_ns: taps.iter().map(|tap| tap.until_ns).max().unwrap_or(0), ..Taps::default() };
        all.taps[..taps.len()].copy_from_slice(taps);
        let mut map: Array<_, Wire<Taps>> = self.ebpf.map_mut("TAPS").expect("a map").try_into().expect("its type");
        map.set(0, Wire(all), 0).expect("in the array");
    }

    /// What the tap has let by.
    fn counts(&self, tap: u32) -> TapCounts {
        let counts: PerCpuArray<_, Wire<TapCounts>> =
            self.ebpf.map("TAP_COUNTS").expect("a map").try_into().expect("its type");
        let all = counts.get(&tap, 0).expect("a tap");
        let sum = |of: fn(&TapCounts) -> u64| all.iter().map(|Wire(counts)| of(counts)).sum();
        TapCounts { seen: sum(|c| c.seen), too_fast: sum(|c| c.too_fast), no_room: sum(|c| c.no_room) }
    }

    /// What was told since the last time.
    fn told(&mut self) -> Vec<Decision> {
        let mut ring: RingBuf<_> = self.ebpf.map_mut("DECISIONS").expect("a map").try_into().expect("its type");
        let mut told = Vec::new();
        while let Some(record) = ring.next() {
            told.push(Wire::<Decision>::read(&record).expect("a whole record").0);
        }
        told
    }
}

/// Open, for one client, and for one of its decisions a day: how long a test takes makes no difference.
fn tap(from: &str) -> Tap {
    const DAY_NS: u64 = 24 * 3_600 * 1_000_000_000;
    Tap { until_ns: u64::MAX, interval_ns: DAY_NS, ..Tap::new(0, Addr::from(address(from)), 128, 1, 1) }
}

#[test]
fn a_decision_is_told_to_who_listens_for_its_client_at_the_rate_that_was_asked_for() {
    let mut kernel = Kernel::refusing(&[]);
    let syn = syn_from(address("10.9.0.7"));
    kernel.run(&syn);
    assert_eq!((kernel.told(), kernel.counts(0)), (Vec::new(), TapCounts::default()), "nobody listens");
    kernel.set_taps(&[tap("10.9.0.8"), tap("10.9.0.7")]);
    for _ in 0..5 {
        kernel.run(&syn);
    }
    let decision = Decision {
        address: Addr::from(address("10.9.0.7")),
        backend: BackendId::NONE,
        app: 0,
        rule: Rule::Denied as u32,
        port: u16::from_be_bytes([syn[34], syn[35]]),
        taps: 0b10,
    };
    assert_eq!(kernel.told(), [decision]);
    assert_eq!(kernel.counts(0), TapCounts::default(), "another client's");
    assert_eq!(kernel.counts(1), TapCounts { seen: 5, too_fast: 4, no_room: 0 });
    kernel.set_taps(&[Tap { until_ns: 1, ..tap("10.9.0.7") }]);
    kernel.run(&syn);
    assert_eq!((kernel.told(), kernel.counts(0)), (Vec::new(), TapCounts::default()), "its time is over");
}

#[test]
fn decisions_that_nobody_reads_are_counted_and_hold_nothing_up() {
    const SYNS: u32 = 20_000;
    let mut kernel = Kernel::refusing(&[Tap { interval_ns: 0, ..tap("10.9.0.7") }]);
    let syn = syn_from(address("10.9.0.7"));
    let options = TestRunOptions { data_in: Some(&syn), repeat: SYNS, ..TestRunOptions::default() };
    assert_eq!(kernel.program().test_run(options).expect("a test run").return_value, XDP_DROP);
    let (counts, told) = (kernel.counts(0), kernel.told().len() as u64);
    assert!(told > 1_000 && counts.no_room > 1_000, "{told} told, {counts:?}");
    assert_eq!((counts.seen, counts.too_fast, told + counts.no_room), (u64::from(SYNS), 0, u64::from(SYNS)));
    kernel.run(&syn);
    assert_eq!(kernel.told().len(), 1, "now there is room");
}

#[test]
fn the_verifier_accepts_the_program_that_delivers_connections() {
    let mut kernel = Kernel::load();
    let program: &mut SkLookup =
        kernel.ebpf.program_mut("homing_lookup").expect("a program").try_into().expect("its type");
    program.load().expect("the verifier accepts the program");
}
