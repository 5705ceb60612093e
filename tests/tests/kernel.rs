//! The loaded programs, run packet by packet with BPF_PROG_TEST_RUN. Needs root and a kernel with BTF.

use aya::maps::{Array, ArrayOfMaps, HashMap, MapData, PerCpuArray};
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use homing::datapath::{OBJECT, pod::Wire};
use homing_tests::packets::{self, Fixture};
use lb_common::abi::{BackendId, BindingKey, Counter, Promotion, SERVICE_AUTO, Service, ServiceKey, Slot};
use lb_common::addr::Addr;
use lb_common::parse;

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
        for address in [Addr::v4(packets::V4), Addr::v6(packets::V6)] {
            services.insert(Wire(ServiceKey::tcp(address, packets::PORT)), Wire(service), 0).expect("room");
        }
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

    /// Verdict, bytes after the program, and the names of the counters that went up by one.
    fn run(&mut self, packet: &[u8]) -> (u32, Vec<u8>, Vec<&'static str>) {
        let before = self.counters();
        let mut out = vec![0; packet.len() + 64];
        let options = TestRunOptions { data_in: Some(packet), data_out: Some(&mut out), ..TestRunOptions::default() };
        let result = self.program().test_run(options).expect("a test run");
        out.truncate(result.data_size_out as usize);
        let raised = Counter::ALL
            .iter()
            .zip(before.iter().zip(self.counters()))
            .filter(|(_, (before, after))| *after == **before + 1)
            .map(|(counter, _)| counter.name())
            .collect();
        (result.return_value, out, raised)
    }
}

fn service() -> Service {
    Service { ring_len: RING_LEN, v4_bits: 128, v6_bits: 64, affinity_s: 60, ..Service::default() }
}

#[test]
fn every_fixture_is_read_alike_in_user_space_and_in_the_kernel() {
    let fixtures = packets::fixtures();
    assert!(fixtures.len() >= 150, "{} fixtures", fixtures.len());
    let mut kernel = Kernel::load();
    for Fixture { name, bytes, frame, counter } in &fixtures {
        assert_eq!(parse::parse(bytes.as_slice()), *frame, "user space reads: {name}");
        let (verdict, out, raised) = kernel.run(bytes);
        assert_eq!(verdict, XDP_PASS, "a packet to a local worker or to others passes: {name}");
        assert_eq!(raised, [counter.name()], "the kernel counts: {name}");
        assert!(out == *bytes, "the packet is left as it was: {name}");
    }
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
