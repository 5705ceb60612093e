//! The kernel's tables of bindings and promotions, as the HTTP path and control use them.

use std::os::fd::AsFd as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::maps::{HashMap, IterableMap as _, Map, MapData, MapError};
use lb_common::abi::{BackendId, Binding, BindingKey, Promotion};

use super::pod::Wire;
use crate::bindings::monotonic_s;
use crate::routing::{Bind, Bindings};

/// A binding is rewritten for its time stamp alone only when that is older than this, in seconds: the kernel may be
/// counting a connection of it at the same moment.
const REFRESH_S: u32 = 30;
/// `BPF_NOEXIST` (Linux: include/uapi/linux/bpf.h).
const NO_EXIST: u64 = 1;

type Table<V> = HashMap<MapData, Wire<BindingKey>, Wire<V>>;

pub struct KernelBindings {
    map: Mutex<Table<Binding>>,
    /// The same table once more: a walk through all of it takes a good part of a second, and no request waits for that.
    all: Table<Binding>,
    promoted: Mutex<Table<Promotion>>,
}

impl KernelBindings {
    /// # Errors
    /// When the process may not have another file.
    pub(super) fn new(map: Table<Binding>, promoted: Table<Promotion>) -> Result<Self, MapError> {
        let twin = map.map().fd().as_fd().try_clone_to_owned().map_err(MapError::IoError)?;
        let all = Table::try_from(Map::from_map_data(MapData::from_fd(twin)?)?)?;
        Ok(Self { map: Mutex::new(map), all, promoted: Mutex::new(promoted) })
    }

    fn map(&self) -> MutexGuard<'_, Table<Binding>> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn promoted(&self) -> MutexGuard<'_, Table<Promotion>> {
        self.promoted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bindings for KernelBindings {
    fn get(&self, key: &BindingKey) -> Option<Binding> {
        self.map().get(&Wire(*key), 0).ok().map(|binding| binding.0)
    }

    fn bind(&self, key: &BindingKey, backend: BackendId) -> Bind {
        let now_s = self.now_s();
        let mut map = self.map();
        let former = map.get(&Wire(*key), 0).ok().map(|binding| binding.0);
        if let Some(binding) = former
            && binding.backend == backend
            && binding.unseen_s(now_s) < REFRESH_S
        {
            return Bind::Kept;
        }
        let binding = Binding { backend, connections: 0, seen_s: now_s, reserved: 0 };
        if let Err(error) = map.insert(Wire(*key), Wire(binding), 0) {
            tracing::warn!(%error, "a client's binding could not be written; a ring change may move it");
            return Bind::Kept;
        }
        Bind::of(former.map(|binding| binding.backend), backend)
    }

    fn inherit(&self, key: &BindingKey, backend: BackendId, seen_s: u32) {
        let binding = Binding { backend, connections: 0, seen_s, reserved: 0 };
        // Refused where the kernel has written one meanwhile.
        let _ = self.map().insert(Wire(*key), Wire(binding), NO_EXIST);
    }

    fn inherit_promotion(&self, key: &BindingKey, promotion: Promotion) {
        let _ = self.promoted().insert(Wire(*key), Wire(promotion), NO_EXIST);
    }

    fn all(&self) -> Vec<(BindingKey, Binding)> {
        self.all.iter().filter_map(|entry| entry.ok().map(|(key, binding)| (key.0, binding.0))).collect()
    }

    fn promotion(&self, key: &BindingKey) -> Option<Promotion> {
        self.promoted().get(&Wire(*key), 0).ok().map(|promotion| promotion.0)
    }

    fn promote(&self, key: &BindingKey) {
        let promotion = Promotion { seen_s: self.now_s(), reserved: 0 };
        if let Err(error) = self.promoted().insert(Wire(*key), Wire(promotion), 0) {
            tracing::debug!(%error, "a client could not be promoted; it stays on the kernel path");
        }
    }

    fn demote(&self, key: &BindingKey) {
        // Gone already is as good.
        let _ = self.promoted().remove(&Wire(*key));
    }

    fn promotions(&self) -> Vec<(BindingKey, Promotion)> {
        self.promoted().iter().filter_map(|entry| entry.ok().map(|(key, promotion)| (key.0, promotion.0))).collect()
    }

    fn now_s(&self) -> u32 {
        monotonic_s()
    }
}
