//! The kernel path as user space holds it: programs loaded, attached and pinned; maps filled and read.
//!
//! It decides nothing: control says what to publish. It knows neither workers' processes nor requests.

mod attach;
mod bindings;
mod interfaces;
mod lacking;
mod lists;
mod netlink;
mod others;
mod pin;
pub mod pod;
mod ports;
mod routes;
mod sizes;
mod taps;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::Ebpf;
use aya::maps::{
    Array, ArrayOfMaps, HashMap, IterableMap as _, LpmTrie, Map, MapData, MapError, PerCpuArray, SkStorage, SockHash,
};
use lb_common::abi::{
    Backend, BackendId, BindingKey, Counter, FAMILY_V4, FAMILY_V6, Limits, Live, Owner, Ports, Service, ServiceKey,
    Slot, SocketKey,
};

pub use attach::{Attached, Mode};
pub use bindings::KernelBindings;
pub use interfaces::interfaces;
pub use lists::Listed;
pub use netlink::Changes;
pub use others::{beside_tc, others, say_other_lookups};
pub use pin::detach;
pub use ports::ports;
pub use routes::{allow_route_lookups, source_towards};
pub use sizes::Sizes;
pub use taps::Decisions;

use pod::Wire;

/// The programs and maps, built by this crate's build script.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("HOMING_EBPF_OBJECT"));

/// The pinned maps. OWNERS too: connections accepted before a restart carry its values.
/// Only what XDP alone uses and a new program may begin anew (ways, fragments under reassembly, budgets) is left out: the
/// other programs stay as they are where they are the same, with the maps that they have.
const MAPS: [&str; 18] = [
    "PORTS",
    "ACCESS",
    "META",
    "SERVICES",
    "APPS",
    "RINGS",
    "BACKENDS",
    "SOCKETS",
    "BINDINGS",
    "OPENING",
    "PROMOTED",
    "LIVE",
    "COUNTERS",
    "OWNERS",
    "TAPS",
    "TAP_DUE",
    "TAP_COUNTS",
    "DECISIONS",
];

/// `BPF_F_INNER_MAP` (Linux 5.10): inner maps of one array of maps may differ in length.
const BPF_F_INNER_MAP: u32 = 1 << 12;

/// Why the kernel path cannot be used, and what would grant it.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    #[error("{0}")]
    Pins(#[from] pin::PinError),
    #[error("{0}")]
    Lacking(String),
    #[error(
        "the kernel refused the eBPF programs: {0}; homing needs Linux {oldest} or later with BTF (/sys/kernel/btf/vmlinux) \
         and root, or CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and CAP_SYS_ADMIN",
        oldest = lacking::OLDEST
    )]
    Load(String),
    #[error("the kernel did not attach {program}: {error}")]
    Attach { program: &'static str, error: String },
}

/// A map operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("map {map}: {source}")]
pub struct TableError {
    map: &'static str,
    source: MapError,
}

trait InMap<T> {
    fn in_map(self, map: &'static str) -> Result<T, TableError>;
}

impl<T, E: Into<MapError>> InMap<T> for Result<T, E> {
    fn in_map(self, map: &'static str) -> Result<T, TableError> {
        self.map_err(|source| TableError { map, source: source.into() })
    }
}

/// One listening socket of a worker, and the families it takes.
pub struct Listener<Fd> {
    pub socket: Fd,
    pub port: u16,
    pub v4: bool,
    pub v6: bool,
}

type Rings = ArrayOfMaps<MapData, Array<MapData, Wire<Slot>>>;

/// The loaded, attached and pinned kernel path.
pub struct Datapath {
    pin_dir: PathBuf,
    attached: Vec<Attached>,
    /// Keeps the XDP program, for interfaces to come.
    ebpf: Ebpf,
    services: HashMap<MapData, Wire<ServiceKey>, Wire<Service>>,
    apps: Array<MapData, Wire<Service>>,
    rings: Rings,
    backends: Array<MapData, Wire<Backend>>,
    sockets: SockHash<MapData, Wire<SocketKey>>,
    owners: SkStorage<MapData, Wire<Owner>>,
    live: Array<MapData, Wire<Live>>,
    counters: PerCpuArray<MapData, u64>,
    ports: Array<MapData, Ports>,
    access: LpmTrie<MapData, [u32; 5], u32>,
    limits: Array<MapData, Wire<Limits>>,
    tap_maps: taps::TapMaps,
    bindings: Arc<KernelBindings>,
    /// The rings that were there at the start, by app: who has given up CAP_SYS_ADMIN cannot read them any more.
    found: BTreeMap<u32, Vec<Slot>>,
}

impl Datapath {
    /// Loads the programs on the maps pinned in `pin_dir` (made where they are not), attaches them to this network
    /// namespace and to `interfaces`, and pins everything: it goes on when this process is gone.
    ///
    /// # Errors
    /// What is missing, and how to grant it. Nothing new stays attached.
    pub fn open(pin_dir: &Path, interfaces: &[String], sizes: Sizes) -> Result<Self, Unavailable> {
        if let Some(lacking) = lacking::lacking() {
            return Err(Unavailable::Lacking(lacking));
        }
        pin::prepare(pin_dir)?;
        let fresh = pin::is_empty(pin_dir);
        let opened = Self::load(pin_dir, interfaces, sizes);
        if opened.is_err() && fresh {
            // Nothing half-started stays behind; the first error is the one to tell.
            let _ = pin::detach(pin_dir);
        }
        opened
    }

    fn load(pin_dir: &Path, interfaces: &[String], sizes: Sizes) -> Result<Self, Unavailable> {
        let mut ebpf = pin::load_on_pins(pin_dir, OBJECT, sizes)?;
        let attached = attach::attach_all(&mut ebpf, pin_dir, interfaces)?;
        let bindings = KernelBindings::new(hash_map(&mut ebpf, "BINDINGS")?, hash_map(&mut ebpf, "PROMOTED")?)
            .map_err(|error| Unavailable::Load(format!("map BINDINGS: {error}")))?;
        let rings = typed(&mut ebpf, "RINGS")?;
        let services: HashMap<MapData, Wire<ServiceKey>, Wire<Service>> = hash_map(&mut ebpf, "SERVICES")?;
        // Of those apps alone: Linux 6.1 waits for all CPUs to pass (synchronize_rcu) in each such look-up, also in vain, and
        // there is room for 4,096.
        let apps: BTreeSet<u32> =
            services.keys().filter_map(|key| Some(services.get(&key.ok()?, 0).ok()?.0.app)).collect();
        Ok(Self {
            pin_dir: pin_dir.to_owned(),
            attached,
            services,
            apps: typed(&mut ebpf, "APPS")?,
            found: apps.into_iter().filter_map(|app| Some((app, ring(&rings, app)?))).collect(),
            rings,
            backends: typed(&mut ebpf, "BACKENDS")?,
            sockets: typed(&mut ebpf, "SOCKETS")?,
            owners: typed(&mut ebpf, "OWNERS")?,
            live: typed(&mut ebpf, "LIVE")?,
            counters: typed(&mut ebpf, "COUNTERS")?,
            ports: typed(&mut ebpf, "PORTS")?,
            access: typed(&mut ebpf, "ACCESS")?,
            limits: typed(&mut ebpf, "LIMITS")?,
            tap_maps: taps::TapMaps::take(&mut ebpf)?,
            bindings: Arc::new(bindings),
            ebpf,
        })
    }

    pub fn attached(&self) -> &[Attached] {
        &self.attached
    }

    /// Makes the interfaces with the XDP program these, as they are now: what is new gets it, what is no longer wanted
    /// loses it, what stays notices nothing. Whether anything changed.
    pub fn follow(&mut self, interfaces: &[String]) -> Result<bool, Unavailable> {
        if attach::is_current(&self.attached, interfaces) {
            return Ok(false);
        }
        self.attached = attach::reattach(&mut self.ebpf, &self.pin_dir, interfaces)?;
        Ok(true)
    }

    /// sk_lookup programs of others in this network namespace, by id.
    pub fn other_lookups(&self) -> Vec<String> {
        others::on_lookups(&attach::lookup_path(&self.pin_dir), others::by_id).unwrap_or_default()
    }

    /// Why XDP cannot send to this host from where it is; see [`Mode`].
    pub fn obstacle(&self, host: IpAddr) -> Option<String> {
        let native = self.attached.iter().filter(|attached| attached.mode == Mode::Native);
        let native: Vec<_> = native.map(|attached| (attached.name.as_str(), attached.index)).collect();
        routes::obstacle(host, &native)
    }

    /// Where tc programs of others are on this interface.
    pub fn tc_programs(index: u32) -> Vec<String> {
        others::on_tc(index, others::by_id)
    }

    /// Whether what XDP answers leaves on every interface that it is on. A veth in native mode delivers it only where
    /// the other end has an XDP program too, which cannot be seen from here.
    pub fn answers_arrive(&self) -> bool {
        let is_veth = |name: &str| crate::sys::driver_of(name).is_ok_and(|driver| driver == "veth");
        !self.attached.iter().any(|attached| attached.mode == Mode::Native && is_veth(&attached.name))
    }

    pub fn bindings(&self) -> Arc<KernelBindings> {
        Arc::clone(&self.bindings)
    }

    /// Makes the services exactly these: others are removed after all of these are in.
    pub fn publish_services(&mut self, services: &[(ServiceKey, Service)]) -> Result<(), TableError> {
        for (key, service) in services {
            self.apps.set(service.app, Wire(*service), 0).in_map("APPS")?;
            self.services.insert(Wire(*key), Wire(*service), 0).in_map("SERVICES")?;
        }
        self.ports.set(0, *ports(services), 0).in_map("PORTS")?;
        let is_stale = |key: &ServiceKey| !services.iter().any(|(wanted, _)| wanted == key);
        let stale: Vec<ServiceKey> =
            self.services.keys().filter_map(|key| Some(key.ok()?.0)).filter(is_stale).collect();
        for key in stale {
            self.services.remove(&Wire(key)).in_map("SERVICES")?;
        }
        Ok(())
    }

    /// Puts a ring in place of the app's last one, in one step.
    pub fn publish_ring(&mut self, app: u32, ring: &[Slot]) -> Result<(), TableError> {
        let len = u32::try_from(ring.len()).expect("a ring is at most 65,537 slots");
        let next: Array<MapData, Wire<Slot>> = Array::create(len, BPF_F_INNER_MAP).in_map("RINGS")?;
        let slots: Vec<Wire<Slot>> = ring.iter().copied().map(Wire).collect();
        crate::sys::fill_array(next.map().fd().as_fd(), &slots).map_err(MapError::IoError).in_map("RINGS")?;
        self.rings.set(app, &next, 0).in_map("RINGS")
    }

    /// Frees the ring of an app that is no more.
    pub fn forget_ring(&mut self, app: u32) -> Result<(), TableError> {
        // An array of maps takes none out; nobody owns this one.
        self.publish_ring(app, &[Slot::default()])
    }

    /// The rings that were in the kernel when this was opened, by app: of apps that the kernel has a service for.
    pub fn found_rings(&self) -> &BTreeMap<u32, Vec<Slot>> {
        &self.found
    }

    /// They are known by now.
    pub fn forget_found_rings(&mut self) {
        self.found = BTreeMap::new();
    }

    /// Makes a backend of this app live: its sockets take connections from the next lookup on. The caller drops the
    /// sockets afterwards, or they would outlive the worker.
    pub fn enlist<Fd: AsFd>(
        &mut self,
        backend: BackendId,
        app: u32,
        listeners: &[Listener<Fd>],
    ) -> Result<(), TableError> {
        if self.live(backend).backend != backend {
            let none = Live { backend, ..Live::default() };
            self.live.set(backend.index(), Wire(none), 0).in_map("LIVE")?;
        }
        for listener in listeners {
            let socket = std::os::fd::AsRawFd::as_raw_fd(&listener.socket.as_fd());
            let client = BindingKey { app, ..BindingKey::default() };
            let owner = Owner { backend, counted: 0, port: listener.port, client };
            self.owners.insert(&socket, Wire(owner), 0).in_map("OWNERS")?;
            for (takes, family) in [(listener.v4, FAMILY_V4), (listener.v6, FAMILY_V6)] {
                if takes {
                    self.sockets.insert(Wire(SocketKey { backend, family }), socket, 0).in_map("SOCKETS")?;
                }
            }
        }
        self.put(Backend { id: backend, ..Backend::default() })
    }

    /// Makes a remote backend live.
    pub fn enlist_remote(&mut self, backend: Backend) -> Result<(), TableError> {
        self.put(backend)
    }

    fn put(&mut self, backend: Backend) -> Result<(), TableError> {
        self.backends.set(backend.id.index(), Wire(backend), 0).in_map("BACKENDS")
    }

    /// The backend takes no connection any more. What is already gone is fine.
    pub fn retire(&mut self, backend: BackendId) -> Result<(), TableError> {
        if self.backends.get(&backend.index(), 0).is_ok_and(|live| live.0.id == backend) {
            self.backends.set(backend.index(), Wire(Backend::default()), 0).in_map("BACKENDS")?;
        }
        for family in [FAMILY_V4, FAMILY_V6] {
            let _ = self.sockets.remove(&Wire(SocketKey { backend, family }));
        }
        Ok(())
    }

    /// Nothing of the backend is counted any more: its process is gone. Until then it may be enlisted again, and what was
    /// open or under way meanwhile must have been counted.
    pub fn forget(&mut self, backend: BackendId) {
        if self.live(backend).backend == backend {
            let _ = self.live.set(backend.index(), Wire(Live::default()), 0);
        }
    }

    /// Retires every backend that is not among `keep`: what an earlier run left behind.
    pub fn retire_others(&mut self, keep: &[BackendId]) -> Result<(), TableError> {
        let others = self.backends().into_iter().filter(|backend| !keep.contains(backend));
        others.collect::<Vec<_>>().into_iter().try_for_each(|backend| {
            self.forget(backend);
            self.retire(backend)
        })
    }

    /// Backends that the tables name, some of them twice.
    pub fn backends(&self) -> Vec<BackendId> {
        let counted = self.live.iter().filter_map(|live| Some(live.ok()?.0.backend));
        let listed = self.backends.iter().filter_map(|backend| Some(backend.ok()?.0.id));
        counted.chain(listed).filter(|backend| !backend.is_none()).collect()
    }

    /// Established kernel-path connections of a backend.
    pub fn live(&self, backend: BackendId) -> Live {
        let live = self.live.get(&backend.index(), 0).map_or_else(|_| Live::default(), |live| live.0);
        if live.backend == backend { live } else { Live::default() }
    }

    /// The families of which workers have a socket: a socket that is closed leaves by itself.
    pub fn enlisted(&self) -> HashSet<(BackendId, u32)> {
        self.sockets.keys().filter_map(|key| key.ok().map(|Wire(key)| (key.backend, key.family))).collect()
    }

    /// One counter, summed over CPUs; 0 where it cannot be read.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters.get(&(counter as u32), 0).map_or(0, |values| values.iter().sum())
    }

    /// Every counter by name, summed over CPUs.
    pub fn counters(&self) -> Result<BTreeMap<&'static str, u64>, TableError> {
        Counter::ALL
            .iter()
            .map(|&counter| {
                let values = self.counters.get(&(counter as u32), 0).in_map("COUNTERS")?;
                Ok((counter.name(), values.iter().sum()))
            })
            .collect()
    }

    /// Detaches and unpins everything: the kernel path ends.
    pub fn close(self) -> Result<(), pin::PinError> {
        pin::detach(&self.pin_dir)
    }
}

/// The app's ring as the kernel has it; `None` without one.
fn ring(rings: &Rings, app: u32) -> Option<Vec<Slot>> {
    let ring = rings.get(&app, 0).ok()?;
    ring.iter().map(|slot| slot.ok().map(|slot| slot.0)).collect()
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, Unavailable> {
    ebpf.take_map(name).ok_or_else(|| Unavailable::Load(format!("the object has no map {name}")))
}

fn typed<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, Unavailable> {
    T::try_from(take(ebpf, name)?).map_err(|error| Unavailable::Load(format!("map {name}: {error}")))
}

fn hash_map<K: aya::Pod, V: aya::Pod>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<HashMap<MapData, K, V>, Unavailable> {
    typed(ebpf, name)
}

/// What this machine or this user lacks for the kernel path, as far as that shows before homing's own programs are loaded.
pub fn missing() -> Option<String> {
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Some(
            "this kernel has no BTF (/sys/kernel/btf/vmlinux); use one built with CONFIG_DEBUG_INFO_BTF".to_owned(),
        );
    }
    let needed = rustix::thread::CapabilitySet::BPF
        | rustix::thread::CapabilitySet::NET_ADMIN
        | rustix::thread::CapabilitySet::PERFMON
        | rustix::thread::CapabilitySet::SYS_ADMIN
        | rustix::thread::CapabilitySet::SYS_PTRACE;
    let has_all = rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(needed));
    if !has_all {
        return Some(
            "this user lacks privileges; run as root, or grant CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON, CAP_SYS_ADMIN and CAP_SYS_PTRACE"
                .to_owned(),
        );
    }
    lacking::lacking()
}
