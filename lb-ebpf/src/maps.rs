//! The maps, one comment each, and the few ways the programs touch them.
//!
//! User space owns all but BINDINGS, LIVE's counts and what is counted or due; the programs only read the rest.

use aya_ebpf::bindings::{BPF_F_CLONE, BPF_F_INNER_MAP, BPF_F_NO_PREALLOC, bpf_map_type};
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, SockHash};
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns, bpf_map_lookup_elem};
use aya_ebpf::macros::btf_map;
use core::arch::asm;
use core::intrinsics::{AtomicOrdering, atomic_xadd};
use lb_common::abi::{
    ACCESS_MAX, APPS_MAX, BINDINGS_MAX, BINDINGS_PER_SECOND, Backend, BackendId, Binding, BindingKey, Budget,
    CALM_SYNS, CLIENT_DUE_MAX, Counter, FRAGMENTS_MAX, FragmentKey, Limits, Live, MAX_BACKENDS, OPENING_MAX, Owner,
    PROMOTED_MAX, Ports, Promotion, Route, SERVICES_MAX, SYN_SPAN_BITS, Service, ServiceKey, Slot, SocketKey,
};
use lb_common::addr::Addr;
use lb_common::affinity::Tables;
use lb_common::tap::{DECISIONS_BYTES, TAPS_MAX, TapCounts, Taps};

/// ABI_VERSION, so that another version's pins are recognised.
#[btf_map]
pub static META: Array<u32, 1> = Array::new();

/// Listen address → service.
#[btf_map]
pub static SERVICES: HashMap<ServiceKey, Service, { SERVICES_MAX as usize }> = HashMap::new();

/// What XDP looks at by port, so that it knows most packets by it alone.
#[btf_map]
pub static PORTS: Array<Ports, 1> = Array::new();

/// App → its ring. A new ring is built aside and put here in one step: no connection sees half of one.
#[btf_map]
pub static RINGS: ArrayOfMaps<Ring, { APPS_MAX as usize }> = ArrayOfMaps::new();

/// Backend index → the backend that lives there (id NONE: nobody).
#[btf_map]
pub static BACKENDS: Array<Backend, { MAX_BACKENDS as usize }> = Array::new();

/// Backend index → the way there, as this CPU last looked it up.
#[btf_map]
pub static ROUTES: PerCpuArray<Route, { MAX_BACKENDS as usize }> = PerCpuArray::new();

/// Fragments of one packet → the remote backend that its first one went to.
#[btf_map]
pub static FRAGMENTS: LruHashMap<FragmentKey, BackendId, { FRAGMENTS_MAX as usize }> = LruHashMap::new();

/// Client → the remote backend that it is opening a connection to. Its own table, so that a flood of
/// SYNs forgets other clients' SYNs at most, and nobody's binding.
#[btf_map]
pub static OPENING: LruHashMap<BindingKey, BackendId, { OPENING_MAX as usize }> = LruHashMap::new();

/// Backend and family → its listening socket. The kernel takes a socket out when its process dies.
#[btf_map]
pub static SOCKETS: SockHash<SocketKey, { 2 * MAX_BACKENDS as usize }> = SockHash::new();

/// Client of an app → backend. Written when connections are established, read only in slots in transition.
#[btf_map]
pub static BINDINGS: LruHashMap<BindingKey, Binding, { BINDINGS_MAX as usize }> = LruHashMap::new();

/// What XDP has written into BINDINGS this second, per CPU.
#[btf_map]
pub static BUDGET: PerCpuArray<Budget, 1> = PerCpuArray::new();

/// SYNs to workers' services in this span of time, per CPU.
#[btf_map]
pub static SYNS: PerCpuArray<Budget, 1> = PerCpuArray::new();

/// Client of an app → its promotion to the HTTP path. No LRU: who is in it has users with cookies.
#[btf_map]
pub static PROMOTED: HashMap<BindingKey, Promotion, { PROMOTED_MAX as usize }> = HashMap::new();

/// App and prefix → whether it may connect.
#[btf_map]
pub static ACCESS: LpmTrie<[u32; 5], u32, { ACCESS_MAX as usize }> = LpmTrie::new();

/// App → its rates.
#[btf_map]
pub static LIMITS: Array<Limits, { APPS_MAX as usize }> = Array::new();

/// Client of an app → when its next new connection is due.
#[btf_map]
pub static CLIENT_DUE: LruHashMap<BindingKey, u64, { CLIENT_DUE_MAX as usize }> = LruHashMap::new();

/// App → when its next new connection is due.
#[btf_map]
pub static APP_DUE: Array<u64, { APPS_MAX as usize }> = Array::new();

/// App → one of its services: what they say of the app is the same in all.
#[btf_map]
pub static APPS: Array<Service, { APPS_MAX as usize }> = Array::new();

/// Backend index → the connections of the backend that is counted there. User space makes and clears the entries.
#[btf_map]
pub static LIVE: Array<Live, { MAX_BACKENDS as usize }> = Array::new();

/// Who wants to be told of decisions.
#[btf_map]
pub static TAPS: Array<Taps, 1> = Array::new();

/// Tap → when the next decision is due to be told.
#[btf_map]
pub static TAP_DUE: Array<u64, { TAPS_MAX as usize }> = Array::new();

/// Tap → what it has let by.
#[btf_map]
pub static TAP_COUNTS: PerCpuArray<TapCounts, { TAPS_MAX as usize }> = PerCpuArray::new();

/// Decisions that somebody wants to be told of.
#[btf_map]
pub static DECISIONS: Decisions = Decisions::new();

/// One per `Counter`.
#[btf_map]
pub static COUNTERS: PerCpuArray<u64, { Counter::COUNT as usize }> = PerCpuArray::new();

/// A ring: slot → [`Slot`]. It declares sizes, not types, because user space makes rings without types: up to some Linux
/// after 6.1 an array of maps takes only what has types where its declaration has them.
#[repr(C)]
pub struct Ring {
    r#type: *const [i32; bpf_map_type::BPF_MAP_TYPE_ARRAY as usize],
    key_size: *const [i32; size_of::<u32>()],
    value_size: *const [i32; size_of::<Slot>()],
    max_entries: *const [i32; 1],
    map_flags: *const [i32; BPF_F_INNER_MAP as usize],
}

impl Ring {
    #[inline(always)]
    fn get(&self, index: u32) -> Option<&Slot> {
        let map = core::ptr::from_ref(self).cast_mut().cast();
        // SAFETY: the kernel gave this very map; its keys are a u32, its values a `Slot` that stays where it is.
        unsafe { bpf_map_lookup_elem(map, (&raw const index).cast()).cast::<Slot>().as_ref() }
    }
}

/// Socket → whose it is, inherited by accepted sockets.
#[btf_map]
pub static OWNERS: OwnerStorage = OwnerStorage::new();

/// A socket storage with BPF_F_CLONE, which aya's own type cannot express; laid out as its `btf_map`s are.
#[repr(C)]
pub struct OwnerStorage {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE],
    key: *const i32,
    value: *const Owner,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; BPF_F_NO_PREALLOC as usize | BPF_F_CLONE as usize],
}

/// A ring buffer, without the key and value that aya's own type has and libbpf refuses.
#[repr(C)]
pub struct Decisions {
    r#type: *const [i32; BPF_MAP_TYPE_RINGBUF],
    max_entries: *const [i32; DECISIONS_BYTES as usize],
}

const BPF_MAP_TYPE_RINGBUF: usize = bpf_map_type::BPF_MAP_TYPE_RINGBUF as usize;

// SAFETY: the pointers only describe the map to the loader and are never followed.
unsafe impl Sync for Decisions {}

impl Decisions {
    const fn new() -> Self {
        use core::ptr::null;
        Self { r#type: null(), max_entries: null() }
    }

    pub fn as_ptr(&self) -> *mut core::ffi::c_void {
        core::ptr::from_ref(self).cast_mut().cast()
    }
}

const BPF_MAP_TYPE_SK_STORAGE: usize = bpf_map_type::BPF_MAP_TYPE_SK_STORAGE as usize;

// SAFETY: the pointers only describe the map to the loader and are never followed.
unsafe impl Sync for OwnerStorage {}

impl OwnerStorage {
    const fn new() -> Self {
        use core::ptr::null;
        Self { r#type: null(), key: null(), value: null(), max_entries: null(), map_flags: null() }
    }

    pub fn as_ptr(&self) -> *mut core::ffi::c_void {
        core::ptr::from_ref(self).cast_mut().cast()
    }
}

/// What XDP looks at on a port; `PORT_*`.
#[inline(always)]
pub fn watched(port: u16) -> u8 {
    let mut index = usize::from(port);
    // The verifier of Linux 6.12 and before knows nothing of a number whose bytes were swapped. That it is below 65,536 it
    // learns from a comparison, which the compiler, knowing better, would leave out.
    // SAFETY: moves a register to itself.
    unsafe { asm!("{0} = {0}", inout(reg) index, options(nomem, nostack, preserves_flags, pure)) };
    PORTS.get(0).and_then(|ports| ports.get(index)).copied().unwrap_or(0)
}

/// The service that listens on this address and port: the exact address before the family's wildcard.
#[inline(always)]
pub fn service(address: Addr, port: u16, protocol: u8) -> Option<&'static Service> {
    // SAFETY: a slot reused under us yields another service's values, as if the lookup had come a moment later.
    let exact = unsafe { SERVICES.get(ServiceKey::new(address, port, protocol)) };
    match exact {
        Some(service) => Some(service),
        // SAFETY: as above.
        None => unsafe { SERVICES.get(ServiceKey::new(address.any(), port, protocol)) },
    }
}

/// The backend with this very id, if it lives.
#[inline(always)]
pub fn backend(id: BackendId) -> Option<&'static Backend> {
    BACKENDS.get(id.index()).filter(|backend| backend.id == id)
}

/// What the app's services say of it.
#[inline(always)]
pub fn app(id: u32) -> Option<&'static Service> {
    APPS.get(id)
}

/// Where the connections of the backend with this very id are counted.
#[inline(always)]
pub fn live(id: BackendId) -> Option<*mut Live> {
    // SAFETY: a map value that exists; its id is one word.
    LIVE.get_ptr_mut(id.index()).filter(|live| unsafe { (**live).backend } == id)
}

#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(cell) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: a non-null pointer to this CPU's own u64.
        unsafe { *cell += 1 };
    }
}

/// Whether XDP may write one more binding this second.
#[inline(always)]
pub fn may_bind() -> bool {
    used(&BUDGET, now_s()).is_some_and(|used| used <= BINDINGS_PER_SECOND)
}

/// Whether one more SYN is one of so many that workers' queues of half-open connections may be full.
#[inline(always)]
pub fn are_syns_many() -> bool {
    used(&SYNS, (ticks() >> SYN_SPAN_BITS) as u32).is_none_or(|used| used > CALM_SYNS)
}

/// How much is used up of what there is for this span of time, with one more.
#[inline(always)]
fn used(budgets: &PerCpuArray<Budget, 1>, span: u32) -> Option<u32> {
    let budget = budgets.get_ptr_mut(0)?;
    // SAFETY: this CPU's own value; XDP programs are not interrupted by one another on a CPU.
    unsafe {
        if (*budget).span != span {
            *budget = Budget { span, used: 0 };
        }
        (*budget).used += 1;
        Some((*budget).used)
    }
}

/// When the client's next new connection is due; 0 for one that is not remembered.
#[inline(always)]
pub fn client_due(key: &BindingKey) -> u64 {
    // SAFETY: a slot reused under us is another client's number, for one packet.
    unsafe { CLIENT_DUE.get(key) }.copied().unwrap_or(0)
}

/// When the app's next new connection is due.
#[inline(always)]
pub fn app_due(app: u32) -> u64 {
    APP_DUE.get(app).copied().unwrap_or(0)
}

/// The maps as `choose` reads them.
pub struct KernelTables;

impl Tables for KernelTables {
    #[inline(always)]
    fn slot(&self, app: u32, index: u32) -> Option<Slot> {
        RINGS.get(app)?.get(index).copied()
    }

    #[inline(always)]
    fn binding(&self, key: &BindingKey) -> Option<Binding> {
        // SAFETY: a slot reused under us is another client's whole binding; the client is steered as that one for a
        // single connection, and only while the table is full and churning.
        unsafe { BINDINGS.get(key) }.copied()
    }

    #[inline(always)]
    fn is_live(&self, backend: BackendId) -> bool {
        self::backend(backend).is_some()
    }

    #[inline(always)]
    fn now_s(&self) -> u32 {
        now_s()
    }

    #[inline(always)]
    fn opening(&self, key: &BindingKey) -> BackendId {
        // SAFETY: a slot reused under us is another client's whole id, for one packet.
        unsafe { OPENING.get(key) }.copied().unwrap_or(BackendId::NONE)
    }

    #[inline(always)]
    fn is_promoted(&self, key: &BindingKey) -> bool {
        PROMOTED.get_ptr(key).is_some()
    }
}

const NS_PER_S: u64 = 1_000_000_000;

/// CLOCK_MONOTONIC, coarse (Linux 5.11): 2 ns instead of 28, but not for tracing programs.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: a helper without arguments or effects.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// The same in seconds.
#[inline(always)]
pub fn now_s() -> u32 {
    (now_ns() / NS_PER_S) as u32
}

/// The kernel's ticks, 100 to 1,000 a second as it was built: one load, where the clock is a call.
#[inline(always)]
pub fn ticks() -> u64 {
    // SAFETY: a helper without arguments or effects.
    unsafe { bpf_jiffies64() }
}

/// The clock in seconds for tracing programs.
#[inline(always)]
pub fn traced_now_s() -> u32 {
    // SAFETY: a helper without arguments or effects.
    (unsafe { bpf_ktime_get_ns() } / NS_PER_S) as u32
}

/// Adds to a number that other CPUs add to; two's complement, so `u32::MAX` takes one away.
///
/// # Safety
/// `cell` points into a map value.
#[inline(always)]
pub unsafe fn add32(cell: *mut u32, n: u32) {
    // SAFETY: the caller's promise; the verifier checks bounds and alignment.
    unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::Relaxed }>(cell, n) };
}

/// As [`add32`], 64 bits wide.
///
/// # Safety
/// `cell` points into a map value.
#[inline(always)]
pub unsafe fn add64(cell: *mut u64, n: u64) {
    // SAFETY: as above.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(cell, n) };
}
