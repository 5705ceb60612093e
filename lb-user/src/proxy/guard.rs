//! Who is refused at the door, where no kernel path does it: by the app's lists, or by its rates.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

use lb_common::abi::{BindingKey, CLIENT_DUE_MAX};
use lb_common::guard::arrive;
use lru::LruCache;

use super::counters::Counter;
use crate::bindings::monotonic_ns;
use crate::config::{Protect, Rate};
use crate::routing::AppRoute;

/// When the next new connection is due, of clients and of whole apps.
pub struct Pace {
    clients: Mutex<LruCache<BindingKey, u64>>,
    apps: Mutex<HashMap<u32, u64>>,
}

impl Default for Pace {
    fn default() -> Self {
        const ROOM: NonZeroUsize = NonZeroUsize::new(CLIENT_DUE_MAX as usize).expect("CLIENT_DUE_MAX is not 0");
        Self { clients: Mutex::new(LruCache::new(ROOM)), apps: Mutex::default() }
    }
}

impl Pace {
    /// Why a new connection from `address` is refused; `None` when it is not.
    pub fn refusal(&self, route: &AppRoute, protect: &Protect, address: IpAddr) -> Option<Counter> {
        if protect.is_denied(address) {
            return Some(Counter::Denied);
        }
        let now_ns = monotonic_ns();
        let is_too_fast =
            |due: &mut u64, rate: &Rate| match arrive(*due, now_ns, rate.interval_ns(), rate.tolerance_ns()) {
                Some(next) => {
                    *due = next;
                    false
                }
                None => true,
            };
        // As in the kernel: a client that is refused takes nothing from others.
        if let Some(rate) = &protect.client {
            let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
            if is_too_fast(clients.get_or_insert_mut(route.binding_key(address), || 0), rate) {
                return Some(Counter::ClientTooFast);
            }
        }
        if let Some(rate) = &protect.app {
            let mut apps = self.apps.lock().unwrap_or_else(PoisonError::into_inner);
            if is_too_fast(apps.entry(route.app).or_insert(0), rate) {
                return Some(Counter::AppTooFast);
            }
        }
        None
    }
}
