//! How large the kernel's tables are, and what they cost.

use lb_common::abi::{
    APPS_MAX, Backend, BackendId, Binding, BindingKey, CLIENT_DUE_MAX, FRAGMENTS_MAX, FragmentKey, Limits, Live,
    MAX_BACKENDS, OPENING_MAX, PROMOTED_MAX, Ports, Promotion, Route, SERVICES_MAX, Service, ServiceKey, SocketKey,
};
use lb_common::tap::DECISIONS_BYTES;

use crate::config::{App, Config};

/// Room in the tables that are sized by the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Clients that are bound; past that the longest idle one is forgotten.
    pub bindings: u32,
    /// Clients whose pace is kept.
    pub paces: u32,
}

impl Sizes {
    pub fn of(config: &Config) -> Self {
        let has_rates = |app: &App| app.protect.client.is_some();
        // A table of the kernel has room for one at least.
        let paces = if config.apps.iter().any(has_rates) { CLIENT_DUE_MAX } else { 1 };
        Self { bindings: config.homing.bindings, paces }
    }

    /// Bytes that the kernel sets aside for all tables but the rings.
    pub fn bytes(self) -> u64 {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let hashes = [
            hash(self.bindings, size_of::<BindingKey>(), size_of::<Binding>()),
            hash(self.paces, size_of::<BindingKey>(), size_of::<u64>()),
            hash(OPENING_MAX, size_of::<BindingKey>(), size_of::<BackendId>()),
            hash(PROMOTED_MAX, size_of::<BindingKey>(), size_of::<Promotion>()),
            hash(FRAGMENTS_MAX, size_of::<FragmentKey>(), size_of::<BackendId>()),
            hash(SERVICES_MAX, size_of::<ServiceKey>(), size_of::<Service>()),
            hash(2 * MAX_BACKENDS, size_of::<SocketKey>(), 0) / 5,
        ];
        let arrays = [
            (MAX_BACKENDS, size_of::<Backend>()),
            (MAX_BACKENDS, size_of::<Live>()),
            (APPS_MAX, size_of::<Service>()),
            (MAX_BACKENDS, cpus * size_of::<Route>()),
            (APPS_MAX, size_of::<Limits>()),
            (APPS_MAX, 2 * size_of::<u64>()),
            (1, size_of::<Ports>()),
            (1, DECISIONS_BYTES as usize),
        ];
        let arrays = arrays.into_iter().map(|(entries, bytes)| u64::from(entries) * bytes as u64);
        hashes.into_iter().chain(arrays).sum()
    }
}

/// A hash table whose entries are all made at once (Linux: kernel/bpf/hashtab.c): entries with their 48 bytes of links,
/// and buckets of 16 bytes.
fn hash(entries: u32, key: usize, value: usize) -> u64 {
    const LINKS: usize = 48;
    const BUCKET: u64 = 16;
    let entry = LINKS + key.next_multiple_of(8) + value.next_multiple_of(8);
    u64::from(entries) * entry as u64 + u64::from(entries.next_power_of_two()) * BUCKET
}
