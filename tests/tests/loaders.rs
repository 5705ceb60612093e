//! The object through libbpf, the loader of most other projects: the same fixtures, the same verdicts. Needs root.
//!
//! With the feature `libbpf`, because building libbpf takes the headers of libelf: `cargo xtask test` has both.

use homing::datapath::{OBJECT, pod::Wire, ports};
use homing_tests::packets::{self, check_fixtures};
use lb_common::abi::{BackendId, Counter, Service, ServiceKey, Slot};
use lb_common::addr::Addr;
use libbpf_rs::{
    MapCore as _, MapFlags, MapHandle, MapMut, MapType, Object, ObjectBuilder, PrintLevel, ProgramInput, ProgramMut,
};

const RING_LEN: u32 = 509;
/// `BPF_F_INNER_MAP` (Linux 5.10).
const BPF_F_INNER_MAP: u32 = 1 << 12;

fn map<'a>(object: &'a mut Object, name: &str) -> MapMut<'a> {
    object.maps_mut().find(|map| map.name() == name).unwrap_or_else(|| panic!("no map {name}"))
}

fn program<'a>(object: &'a mut Object, name: &str) -> ProgramMut<'a> {
    object.progs_mut().find(|program| program.name() == name).unwrap_or_else(|| panic!("no program {name}"))
}

/// The fixtures' service on both families, with one worker that owns the whole ring.
fn load() -> Object {
    libbpf_rs::set_print(Some((PrintLevel::Warn, |_, line| eprint!("{line}"))));
    let open = ObjectBuilder::default().open_memory(OBJECT).expect("libbpf reads the object");
    let mut object = open.load().expect("the kernel accepts what libbpf makes of it");
    let service = Service { ring_len: RING_LEN, v4_bits: 128, v6_bits: 64, affinity_s: 60, ..Service::default() };
    let keys = [Addr::v4(packets::V4), Addr::v6(packets::V6)].map(|address| ServiceKey::tcp(address, packets::PORT));
    for key in keys {
        let services = map(&mut object, "SERVICES");
        services.update(&Wire(key).bytes(), &Wire(service).bytes(), MapFlags::ANY).expect("room");
    }
    let watched = ports(&keys.map(|key| (key, service)));
    map(&mut object, "PORTS").update(&0_u32.to_ne_bytes(), &watched[..], MapFlags::ANY).expect("in the array");
    let options = libbpf_rs::libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_rs::libbpf_sys::bpf_map_create_opts>() as _,
        map_flags: BPF_F_INNER_MAP,
        ..Default::default()
    };
    let ring = MapHandle::create(MapType::Array, None::<&str>, 4, 8, RING_LEN, &options).expect("a ring");
    let slot = Slot { current: BackendId::new(0, 1), previous: BackendId::NONE };
    for index in 0..RING_LEN {
        ring.update(&index.to_ne_bytes(), &Wire(slot).bytes(), MapFlags::ANY).expect("in the ring");
    }
    let ring = std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(&ring));
    map(&mut object, "RINGS").update(&0_u32.to_ne_bytes(), &ring.to_ne_bytes(), MapFlags::ANY).expect("in the rings");
    object
}

fn counters(object: &mut Object) -> Vec<u64> {
    let counters = map(object, "COUNTERS");
    let sum = |counter: &Counter| {
        let key = (*counter as u32).to_ne_bytes();
        let values = counters.lookup_percpu(&key, MapFlags::ANY).expect("a lookup").expect("a counter");
        values.iter().map(|value| u64::from_ne_bytes(value[..8].try_into().expect("8 bytes"))).sum()
    };
    Counter::ALL.iter().map(sum).collect()
}

#[test]
fn loaded_by_libbpf_the_object_says_the_same_of_every_fixture() {
    let mut object = load();
    check_fixtures(|packet| {
        let before = counters(&mut object);
        let mut out = vec![0; packet.len() + 64];
        let input = ProgramInput { data_in: Some(packet), data_out: Some(&mut out), ..ProgramInput::default() };
        let result = program(&mut object, "homing_xdp").test_run(input).expect("a test run");
        let (verdict, len) = (result.return_value, result.data.map_or(0, |data| data.len()));
        out.truncate(len);
        (verdict, out, packets::raised(&before, &counters(&mut object)))
    });
}
