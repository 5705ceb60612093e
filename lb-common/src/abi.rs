//! What the programs and user space agree on in the maps. Change anything here and raise [`ABI_VERSION`].
//!
//! Every struct is `repr(C)` with no hidden padding and no `Option` or `bool`, so that its bytes are its value.

use crate::addr::Addr;

/// Checked before pinned maps are reused; pins of another version are refused, never reinterpreted.
pub const ABI_VERSION: u32 = 8;

/// Bits of a [`BackendId`] that say which backend; the rest is its generation.
const INDEX_BITS: u32 = 12;
/// Backends that one homing can hold at once.
pub const MAX_BACKENDS: u32 = 1 << INDEX_BITS;
/// Generations before a backend's count wraps to 1 again.
pub const MAX_GENERATION: u32 = u32::MAX >> INDEX_BITS;

/// A backend and its generation. An id of a dead worker never equals that of its successor.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, PartialOrd, Ord)]
pub struct BackendId(pub u32);

impl BackendId {
    /// No backend: an unfilled slot.
    pub const NONE: Self = Self(0);

    /// Somebody, who is gone: whose slot it was is not known, and bindings must be asked.
    pub const FORMER: Self = Self::new(MAX_BACKENDS - 1, MAX_GENERATION);

    /// # Panics
    /// If `index` is not below [`MAX_BACKENDS`], or `generation` is not in 1 to [`MAX_GENERATION`].
    pub const fn new(index: u32, generation: u32) -> Self {
        assert!(index < MAX_BACKENDS, "a backend index is below MAX_BACKENDS");
        assert!(generation >= 1 && generation <= MAX_GENERATION, "a generation is 1 to MAX_GENERATION");
        Self((generation << INDEX_BITS) | index)
    }

    #[inline(always)]
    pub const fn index(self) -> u32 {
        self.0 & (MAX_BACKENDS - 1)
    }

    #[inline(always)]
    pub const fn generation(self) -> u32 {
        self.0 >> INDEX_BITS
    }

    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }
}

/// Services that the tables are declared for; user space sizes them from the configuration at load.
pub const SERVICES_MAX: u32 = 4_096;
/// Apps, hence rings.
pub const APPS_MAX: u32 = 4_096;
/// Bindings that the table is declared for; past its size the oldest idle one is forgotten (LRU).
pub const BINDINGS_MAX: u32 = 1_000_000;

/// IANA protocol numbers.
pub const PROTO_TCP: u8 = 6;
pub const PROTO_UDP: u8 = 17;

/// What a service is found by. A wildcard listen address has [`Addr::ANY_V4`] or [`Addr::ANY_V6`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ServiceKey {
    pub addr: Addr,
    /// The port, in host byte order, in the lowest 16 bits, and the protocol in the 8 above. One number: the kernel hashes
    /// words, and a word put together from smaller stores is slow to read back.
    port_and_proto: u64,
}

impl ServiceKey {
    #[inline(always)]
    pub const fn new(addr: Addr, port: u16, proto: u8) -> Self {
        Self { addr, port_and_proto: port as u64 | (proto as u64) << 16 }
    }

    pub const fn port(&self) -> u16 {
        self.port_and_proto as u16
    }

    pub const fn proto(&self) -> u8 {
        (self.port_and_proto >> 16) as u8
    }

    #[inline(always)]
    pub const fn tcp(addr: Addr, port: u16) -> Self {
        Self::new(addr, port, PROTO_TCP)
    }
}

/// Every connection of the service goes to the HTTP path (affinity by cookie).
pub const SERVICE_HTTP_ONLY: u32 = 1;
/// The ring may name remote backends: every packet is steered, not only those that open a connection.
pub const SERVICE_REMOTE: u32 = 2;
/// Sockets of this machine may hold connections of a [`SERVICE_REMOTE`] service (local workers, or the HTTP path): an
/// established packet is theirs before it is a remote backend's.
pub const SERVICE_SOCKETS: u32 = 4;
/// Clients with more connections than one person makes go to the HTTP path (affinity `auto`).
pub const SERVICE_AUTO: u32 = 8;
/// Addresses are looked up in the app's lists.
pub const SERVICE_LISTED: u32 = 16;
/// An address on no list is denied.
pub const SERVICE_ALLOWED_ONLY: u32 = 32;
/// New connections are counted against the app's rates.
pub const SERVICE_LIMITED: u32 = 64;
/// XDP may answer a SYN with a cookie while the worker's queue is full.
pub const SERVICE_SYNCOOKIES: u32 = 128;

/// A service: what `choose` needs to know of the app behind it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Service {
    /// Secret that places clients on the ring.
    pub seed: u64,
    /// The app: index of its ring and part of its binding keys.
    pub app: u32,
    /// Slots of the app's ring.
    pub ring_len: u32,
    /// `SERVICE_*`.
    pub flags: u32,
    /// Bits of an IPv4 client's mapped address that affinity is kept for: 96 to 128.
    pub v4_bits: u16,
    /// Bits of an IPv6 client's address that affinity is kept for: 0 to 128.
    pub v6_bits: u16,
    /// Seconds after which a binding without connections is forgotten.
    pub affinity_s: u32,
    /// Open connections of one client beyond which it is promoted, with [`SERVICE_AUTO`].
    pub promote_above: u32,
}

/// By port: what XDP looks at, over all services; nothing where it is 0.
pub type Ports = [u8; 65_536];
/// Packets that open a connection.
pub const PORT_OPENING: u8 = 1;
/// Every packet: a remote backend may take them, or datagrams are judged one by one.
pub const PORT_EVERY: u8 = 2;

/// One slot of a ring.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Slot {
    /// Who gets new clients.
    pub current: BackendId,
    /// Who had the slot before, while the slot is in transition; [`BackendId::NONE`] once it is stable.
    pub previous: BackendId,
}

/// A client of an app, as its binding is kept.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct BindingKey {
    /// Masked to the app's prefix.
    pub client: Addr,
    pub app: u32,
    pub reserved: u32,
}

/// Client → backend.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Binding {
    pub backend: BackendId,
    /// Open kernel-path connections of the client to that backend.
    pub connections: u32,
    /// When the binding was made, a connection last closed or, of remote backends, data last came: seconds of CLOCK_MONOTONIC
    /// (coarse). Of no meaning while a connection is open.
    pub seen_s: u32,
    pub reserved: u32,
}

impl Binding {
    /// For how many seconds the client has not been seen; `now_s` is of the same clock.
    pub const fn unseen_s(&self, now_s: u32) -> u32 {
        if self.connections > 0 { 0 } else { now_s.wrapping_sub(self.seen_s) }
    }
}

/// Prefixes on the lists of all apps.
pub const ACCESS_MAX: u32 = 65_536;
/// What a list says of a prefix.
pub const LISTED_ALLOW: u32 = 1;
pub const LISTED_DENY: u32 = 2;
/// Bits of the app at the head of an access key; the prefix's own follow.
pub const ACCESS_BITS_APP: u32 = 32;

/// The key of an address on an app's lists, in network byte order: the kernel compares it bit by bit.
#[inline(always)]
pub const fn access_data(app: u32, address: Addr) -> [u32; 5] {
    [
        app.to_be(),
        ((address.high >> 32) as u32).to_be(),
        (address.high as u32).to_be(),
        ((address.low >> 32) as u32).to_be(),
        (address.low as u32).to_be(),
    ]
}

/// The rates of an app, for [`SERVICE_LIMITED`]; an interval of 0 means no limit.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limits {
    /// Between new connections of one client at an even pace.
    pub client_interval_ns: u64,
    /// How early one may come.
    pub client_tolerance_ns: u64,
    /// The same for all clients together.
    pub app_interval_ns: u64,
    pub app_tolerance_ns: u64,
}

/// Clients whose pace is remembered; past that the oldest begins anew.
pub const CLIENT_DUE_MAX: u32 = 131_072;

/// Clients that are promoted at once, over all apps; those beyond stay on the kernel path.
pub const PROMOTED_MAX: u32 = 65_536;

/// A client whose users are told apart by cookie, on the HTTP path.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Promotion {
    /// When it was promoted or one of its users was last seen: seconds of CLOCK_MONOTONIC (coarse).
    pub seen_s: u32,
    pub reserved: u32,
}

/// How packets reach a backend.
pub const FORWARD_LOCAL: u32 = 0;
/// By the HTTP path alone: the connection is homing's.
pub const FORWARD_HTTP: u32 = 1;
/// The frame as it is, to the backend's link address; the backend has the service address on a loopback.
pub const FORWARD_L2: u32 = 2;
/// In an IP packet to the backend (RFC 2003, RFC 2473, RFC 4213).
pub const FORWARD_IPIP: u32 = 3;
/// In GUE, variant 0 (draft-ietf-intarea-gue-09): UDP, so that switches and NICs spread flows.
pub const FORWARD_GUE: u32 = 4;

/// A backend that lives. By index; a dead one is all zeroes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Backend {
    /// The remote host; zeroes for a local worker.
    pub address: Addr,
    /// The outer source of encapsulated packets: this machine's address towards the host.
    pub source: Addr,
    pub id: BackendId,
    /// `FORWARD_*`.
    pub forward: u32,
    /// UDP port for [`FORWARD_GUE`], host byte order.
    pub gue_port: u32,
    pub reserved: u32,
}

/// The kernel's ticks for which a CPU remembers the way to a remote backend at most. A kernel has 100, 250, 300 or 1,000 in a
/// second: that is 1.28 seconds, or less.
pub const ROUTE_TICKS: u64 = 128;

/// The way to a remote backend, as the kernel's routing and neighbour tables gave it. Kept per CPU, see [`ROUTE_TICKS`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Route {
    pub backend: BackendId,
    /// When it was looked up, in units of [`ROUTE_TICKS`].
    pub looked_up: u32,
    pub interface: u32,
    /// Bytes of an IP packet.
    pub mtu: u32,
    /// Destination, then source link address: the first 12 bytes of a frame, as words of this machine.
    pub link: [u32; 3],
    pub reserved: u32,
}

/// What the fragments of one packet share, so that later ones follow the first.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FragmentKey {
    pub source: Addr,
    pub destination: Addr,
    pub id: u32,
    pub reserved: u32,
}

/// Bindings that XDP writes per second and CPU, at most: a flood of forged packets must not push real ones out.
pub const BINDINGS_PER_SECOND: u32 = 8_192;

/// SYNs per CPU and [`SYN_SPAN_BITS`] after which XDP looks whether workers' queues of half-open connections are full. Until then
/// the kernel's own SYN cookies are enough: 400 to 4,000 a second, as the kernel was built.
pub const CALM_SYNS: u32 = 64;
/// A span is two to the power of so many of the kernel's ticks: 16 to 160 ms.
pub const SYN_SPAN_BITS: u32 = 4;

/// How much of something is used up that there is so much of in a span of time.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Budget {
    /// The span's number.
    pub span: u32,
    pub used: u32,
}

/// Packets under reassembly that are remembered; past that the oldest is forgotten.
pub const FRAGMENTS_MAX: u32 = 16_384;
/// Clients whose connection is being opened to the new owner of a slot in transition; past that the oldest is forgotten.
pub const OPENING_MAX: u32 = 65_536;

/// A listening socket that a backend takes connections of one address family on.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SocketKey {
    pub backend: BackendId,
    /// [`FAMILY_V4`] or [`FAMILY_V6`]. A dual-stack socket stands under both.
    pub family: u32,
}

/// Address families as the kernel numbers them (Linux: include/linux/socket.h).
pub const FAMILY_V4: u32 = 2;
pub const FAMILY_V6: u32 = 10;

/// What a worker's listening socket carries, and every connection accepted on it inherits (BPF_F_CLONE, Linux 5.2).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Owner {
    pub backend: BackendId,
    /// 1 once the connection was counted as established; 0 on the listening socket.
    pub counted: u16,
    /// The listening socket's own port: a connection to another one was steered.
    pub port: u16,
    /// The app, and once it was counted whose connection it is. Kept here because the kernel has let go of the local port
    /// when it reports the close.
    pub client: BindingKey,
}

/// What the kernel counts of a backend, by its index; all zeroes while nobody is counted there.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Live {
    /// Whose counts these are: connections of another generation are not counted.
    pub backend: BackendId,
    pub reserved: u32,
    /// Established kernel-path connections now.
    pub connections: u64,
    /// Established kernel-path connections ever.
    pub total: u64,
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why a packet or connection went where it went. One per-CPU counter each.
        #[repr(u32)]
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Counter { $($(#[doc = $doc])+ $variant,)+ }

        impl Counter {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];
            pub const COUNT: u32 = Self::ALL.len() as u32;

            /// The name in `homing status` and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What it counts, in one sentence.
            pub fn help(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

counters! {
    /// XDP: a packet of no service; passed untouched.
    XdpNotOurs = "xdp_not_ours",
    /// XDP: a packet to a service's port that opens no connection; passed.
    XdpEstablished = "xdp_established",
    /// XDP: a SYN to a service that a worker will get.
    XdpSynWorker = "xdp_syn_worker",
    /// XDP: a SYN answered with a cookie, because the worker's queue of half-open connections is full.
    XdpSyncookie = "xdp_syncookie",
    /// XDP: a SYN to a service that the HTTP path will get.
    XdpSynHttp = "xdp_syn_http",
    /// XDP: a later fragment to an address; its ports are unknown, passed.
    XdpFragment = "xdp_fragment",
    /// XDP: shorter than its headers say; passed for the kernel to judge.
    XdpTruncated = "xdp_truncated",
    /// XDP: an ICMP error about a connection of this machine; passed.
    XdpIcmp = "xdp_icmp",
    /// XDP: forwarded to a remote backend by link address (`l2`).
    XdpForwardedL2 = "xdp_forwarded_l2",
    /// XDP: forwarded to a remote backend in IP (`ipip`).
    XdpForwardedIpip = "xdp_forwarded_ipip",
    /// XDP: forwarded to a remote backend in GUE (`gue`).
    XdpForwardedGue = "xdp_forwarded_gue",
    /// XDP: dropped; the routing table has no way to the remote backend.
    XdpNoRoute = "xdp_no_route",
    /// XDP: dropped; the next hop to the remote backend does not answer ARP or neighbour discovery yet.
    XdpNoNeighbour = "xdp_no_neighbour",
    /// XDP: too big for the way to the remote backend; answered with the size that fits (ICMP, path MTU discovery).
    XdpTooBig = "xdp_too_big",
    /// XDP: dropped; its TTL or hop limit does not allow another hop.
    XdpTtl = "xdp_ttl",
    /// XDP: dropped; the kernel gave no room for the headers to add.
    XdpNoRoom = "xdp_no_room",
    /// XDP: a new connection dropped; its address is denied by the app's lists.
    XdpDenied = "xdp_denied",
    /// XDP: a new connection dropped; its client opens more than `protect.client_rate` allows.
    XdpClientTooFast = "xdp_client_too_fast",
    /// XDP: a new connection dropped; all clients together open more than `protect.app_rate` allows.
    XdpAppTooFast = "xdp_app_too_fast",
    /// sk_lookup: a connection refused; its address is denied by the app's lists.
    LookupDenied = "lookup_denied",
    /// sk_lookup: a connection delivered to the worker of its ring slot.
    LookupRing = "lookup_ring",
    /// sk_lookup: a connection delivered to the worker that the client is bound to.
    LookupBound = "lookup_bound",
    /// sk_lookup: left to the HTTP path because the app keeps affinity by cookie.
    LookupHttpOnly = "lookup_http_only",
    /// sk_lookup: left to the HTTP path because the client is promoted: its users are told apart by cookie.
    LookupPromoted = "lookup_promoted",
    /// sk_lookup: left to the HTTP path because the app has no worker yet.
    LookupNoWorker = "lookup_no_worker",
    /// sk_lookup: left to the HTTP path because the chosen worker has no live socket of that address family.
    LookupNoSocket = "lookup_no_socket",
    /// A connection of the kernel path was established.
    Established = "established",
    /// A connection of the kernel path was closed.
    Closed = "closed",
    /// A client was bound to a backend for the first time, or again after it was idle or forgotten.
    BindingNew = "binding_new",
    /// A client's binding moved to another backend.
    BindingMoved = "binding_moved",
    /// A remote backend's client was not written down: too many at once, as in a flood.
    BindingLimited = "binding_limited",
    /// A binding could not be written.
    BindingFailed = "binding_failed",
    /// A client was promoted to the HTTP path: it has more connections than one person makes.
    Promoted = "promoted",
    /// A client could not be promoted: too many are.
    PromotionFailed = "promotion_failed",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_keeps_index_and_generation_apart() {
        let id = BackendId::new(MAX_BACKENDS - 1, MAX_GENERATION);
        assert_eq!((id.index(), id.generation()), (MAX_BACKENDS - 1, MAX_GENERATION));
        assert!(!BackendId::new(0, 1).is_none(), "the first backend's first generation is somebody");
    }

    #[test]
    fn no_map_value_has_hidden_padding() {
        assert_eq!(size_of::<ServiceKey>(), 16 + 8);
        assert_eq!(size_of::<Service>(), 8 + 4 * 3 + 2 * 2 + 4 * 2);
        assert_eq!(size_of::<Slot>(), 8);
        assert_eq!(size_of::<BindingKey>(), 16 + 8);
        assert_eq!(size_of::<Binding>(), 16);
        assert_eq!(size_of::<Promotion>(), 8);
        assert_eq!(size_of::<Limits>(), 32);
        assert_eq!(size_of::<Live>(), 8 + 16);
        assert_eq!(size_of::<SocketKey>(), 8);
        assert_eq!(size_of::<Owner>(), 8 + 24);
        assert_eq!(size_of::<Backend>(), 32 + 16);
        assert_eq!(size_of::<Route>(), 16 + 12 + 4);
        assert_eq!(size_of::<FragmentKey>(), 32 + 8);
    }

    #[test]
    fn counter_names_are_unique() {
        let mut names: std::vec::Vec<_> = Counter::ALL.iter().map(|c| c.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len() as u32, Counter::COUNT);
    }
}
