//! Client → backend bindings, and promotions, in plain memory, for when the kernel path is off and no BPF map holds them;
//! and what of them one homing tells another.
//!
//! Nothing here judges a binding; `lb_common::affinity` does, over whichever table is in use.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lb_common::abi::{BackendId, Binding, BindingKey, PROMOTED_MAX, Promotion};
use lb_common::addr::Addr;
use lru::LruCache;

use crate::admin::report::Bound;
use crate::routing::{Bind, Bindings};

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

impl Bound {
    /// All that is in a table, for another homing; at most [`BINDINGS_MAX`] bindings, those that were seen last.
    pub fn of(bindings: &dyn Bindings) -> Self {
        let now_s = bindings.now_s();
        let seen = |binding: &Binding| now_s.wrapping_sub(binding.unseen_s(now_s));
        let all = bindings.all().into_iter();
        let mut taken: Vec<_> =
            all.map(|(key, binding)| (key.client.into(), key.app, binding.backend.0, seen(&binding))).collect();
        taken.sort_unstable_by_key(|&(.., seen_s)| now_s.wrapping_sub(seen_s));
        taken.truncate(BINDINGS_MAX);
        // So that they are forgotten in this order, too.
        taken.reverse();
        let promotions = bindings.promotions().into_iter();
        let promotions = promotions.map(|(key, promotion)| (key.client.into(), key.app, promotion.seen_s)).collect();
        Self { bindings: taken, promotions }
    }

    /// Puts all of it into a table.
    pub fn inherit(&self, bindings: &dyn Bindings) {
        let key = |client, app| BindingKey { client: Addr::from(client), app, reserved: 0 };
        for &(client, app, backend, seen_s) in &self.bindings {
            bindings.inherit(&key(client, app), BackendId(backend), seen_s);
        }
        for &(client, app, seen_s) in &self.promotions {
            bindings.inherit_promotion(&key(client, app), Promotion { seen_s, reserved: 0 });
        }
    }
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

    fn bind(&self, key: &BindingKey, backend: BackendId) -> Bind {
        let binding = Binding { backend, connections: 0, seen_s: self.now_s(), reserved: 0 };
        let mut table = self.table();
        let former = table.put(*key, binding);
        if table.len() > self.entries_max.get() {
            table.pop_lru();
        }
        Bind::of(former.map(|binding| binding.backend), backend)
    }

    fn inherit(&self, key: &BindingKey, backend: BackendId, seen_s: u32) {
        let mut table = self.table();
        if table.len() < self.entries_max.get() && !table.contains(key) {
            table.put(*key, Binding { backend, connections: 0, seen_s, reserved: 0 });
        }
    }

    fn inherit_promotion(&self, key: &BindingKey, promotion: Promotion) {
        let mut promoted = self.promoted();
        if promoted.len() < PROMOTED_MAX as usize {
            promoted.entry(*key).or_insert(promotion);
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
    fn what_another_homing_remembered_is_known_here_as_it_was_and_goes_before_nothing_newer() {
        let (old, new) = (MemoryBindings::new(), MemoryBindings::with_room_for(NonZeroUsize::new(3).expect("not 0")));
        let now_s = old.now_s();
        for (host, ago_s) in [(1, 30), (2, 10), (3, 20)] {
            old.inherit(&key(host), BackendId::new(host.into(), 1), now_s.wrapping_sub(ago_s));
        }
        old.promote(&key(2));
        new.bind(&key(3), BackendId::new(9, 9));
        let bound = Bound::of(&old);
        let json = serde_json::to_vec(&bound).expect("written");
        serde_json::from_slice::<Bound>(&json).expect("read").inherit(&new);
        assert_eq!(new.get(&key(1)), old.get(&key(1)));
        assert_eq!(new.get(&key(2)), old.get(&key(2)));
        assert_eq!(new.get(&key(3)).map(|binding| binding.backend), Some(BackendId::new(9, 9)));
        assert_eq!(new.promotions(), old.promotions());
        new.bind(&key(3), BackendId::new(9, 9));
        new.bind(&key(4), BackendId::new(9, 9));
        assert_eq!(new.get(&key(1)), None, "the longest unseen is forgotten first");
    }

    #[test]
    fn binding_again_moves_the_client_and_stamps_it() {
        let bindings = MemoryBindings::new();
        let bind = |generation| bindings.bind(&key(1), BackendId::new(1, generation));
        assert_eq!([bind(1), bind(1), bind(2), bind(2)], [Bind::New, Bind::Kept, Bind::Moved, Bind::Kept]);
        let binding = bindings.get(&key(1)).expect("the client is bound");
        assert_eq!(binding.backend, BackendId::new(1, 2));
        assert!(bindings.now_s().wrapping_sub(binding.seen_s) < 5, "stamped with the clock that judges it");
    }
}
