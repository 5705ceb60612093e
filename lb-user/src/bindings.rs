//! Client → backend bindings, and promotions, in plain memory, for when the kernel path is off and no BPF map holds them.
//!
//! Nothing here judges a binding; `lb_common::affinity` does, over whichever table is in use.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lb_common::abi::{BackendId, Binding, BindingKey, PROMOTED_MAX, Promotion};
use lru::LruCache;

use crate::routing::Bindings;

/// Bindings kept at once; beyond it the one that was bound or refreshed longest ago is forgotten.
pub const BINDINGS_MAX: usize = 1_000_000;

/// Seconds of the clock that bindings are stamped with, here and by the kernel's programs. Coarse: no system call.
pub fn monotonic_s() -> u32 {
    rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse).tv_sec as u32
}

/// The same clock in nanoseconds.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// A bounded table, least recently bound first out.
pub struct MemoryBindings {
    table: Mutex<LruCache<BindingKey, Binding>>,
    entries_max: NonZeroUsize,
    promoted: Mutex<HashMap<BindingKey, Promotion>>,
}

impl MemoryBindings {
    pub fn new() -> Self {
        Self::with_room_for(const { NonZeroUsize::new(BINDINGS_MAX).expect("BINDINGS_MAX is not 0") })
    }

    fn with_room_for(entries_max: NonZeroUsize) -> Self {
        // Unbounded for the crate, bounded in `bind`: a bounded cache would allocate its whole table at once.
        Self { table: Mutex::new(LruCache::unbounded()), entries_max, promoted: Mutex::default() }
    }

    pub fn len(&self) -> usize {
        self.table().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn table(&self) -> MutexGuard<'_, LruCache<BindingKey, Binding>> {
        // A panic between two map operations cannot leave half a binding.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn promoted(&self) -> MutexGuard<'_, HashMap<BindingKey, Promotion>> {
        self.promoted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for MemoryBindings {
    fn default() -> Self {
        Self::new()
    }
}

impl Bindings for MemoryBindings {
    fn get(&self, key: &BindingKey) -> Option<Binding> {
        self.table().peek(key).copied()
    }

    fn bind(&self, key: &BindingKey, backend: BackendId) {
        let binding = Binding { backend, connections: 0, seen_s: self.now_s(), reserved: 0 };
        let mut table = self.table();
        table.put(*key, binding);
        if table.len() > self.entries_max.get() {
            table.pop_lru();
        }
    }

    fn all(&self) -> Vec<(BindingKey, Binding)> {
        self.table().iter().map(|(key, binding)| (*key, *binding)).collect()
    }

    fn promotion(&self, key: &BindingKey) -> Option<Promotion> {
        self.promoted().get(key).copied()
    }

    fn promote(&self, key: &BindingKey) {
        let mut promoted = self.promoted();
        if promoted.len() < PROMOTED_MAX as usize || promoted.contains_key(key) {
            promoted.insert(*key, Promotion { seen_s: monotonic_s(), reserved: 0 });
        }
    }

    fn demote(&self, key: &BindingKey) {
        self.promoted().remove(key);
    }

    fn promotions(&self) -> Vec<(BindingKey, Promotion)> {
        self.promoted().iter().map(|(key, promotion)| (*key, *promotion)).collect()
    }

    fn now_s(&self) -> u32 {
        monotonic_s()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::addr::Addr;

    fn key(host: u8) -> BindingKey {
        BindingKey { client: Addr::v4([192, 0, 2, host]), app: 0, reserved: 0 }
    }

    #[test]
    fn a_full_table_forgets_the_binding_that_was_refreshed_longest_ago() {
        let bindings = MemoryBindings::with_room_for(NonZeroUsize::new(2).expect("2 is not 0"));
        bindings.bind(&key(1), BackendId::new(1, 1));
        bindings.bind(&key(2), BackendId::new(2, 1));
        bindings.bind(&key(1), BackendId::new(1, 1));
        bindings.bind(&key(3), BackendId::new(3, 1));
        assert_eq!(bindings.len(), 2);
        assert_eq!(bindings.get(&key(2)), None, "the oldest idle one goes");
        assert_eq!(bindings.get(&key(1)).map(|b| b.backend), Some(BackendId::new(1, 1)));
    }

    #[test]
    fn binding_again_moves_the_client_and_stamps_it() {
        let bindings = MemoryBindings::new();
        bindings.bind(&key(1), BackendId::new(1, 1));
        bindings.bind(&key(1), BackendId::new(1, 2));
        let binding = bindings.get(&key(1)).expect("the client is bound");
        assert_eq!(binding.backend, BackendId::new(1, 2));
        assert!(bindings.now_s().wrapping_sub(binding.seen_s) < 5, "stamped with the clock that judges it");
    }
}
