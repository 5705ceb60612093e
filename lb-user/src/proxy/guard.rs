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

/// What comes too fast, or does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Arrivals {
    Connections,
    Requests,
}

/// When the next new connection, or request, is due, of clients and of whole apps.
pub struct Pace {
    clients: Mutex<LruCache<(Arrivals, BindingKey), u64>>,
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
        // As in the kernel: a client that is refused takes nothing from others.
        if let Some(rate) = &protect.client
            && self.is_too_fast(Arrivals::Connections, route, rate, address)
        {
            return Some(Counter::ClientTooFast);
        }
        if let Some(rate) = &protect.app {
            let mut apps = self.apps.lock().unwrap_or_else(PoisonError::into_inner);
            if is_early(apps.entry(route.app).or_insert(0), rate) {
                return Some(Counter::AppTooFast);
            }
        }
        None
    }

    /// Whether a request from `address` comes faster than that, if there is a rate.
    pub fn refuses_request(&self, route: &AppRoute, address: IpAddr) -> bool {
        route.http.rate.as_ref().is_some_and(|rate| self.is_too_fast(Arrivals::Requests, route, rate, address))
    }

    fn is_too_fast(&self, what: Arrivals, route: &AppRoute, rate: &Rate, address: IpAddr) -> bool {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        is_early(clients.get_or_insert_mut((what, route.binding_key(address)), || 0), rate)
    }
}

/// Whether this moment is before the one that is due; else another one is due from now on.
fn is_early(due: &mut u64, rate: &Rate) -> bool {
    match arrive(*due, monotonic_ns(), rate.interval_ns(), rate.tolerance_ns()) {
        Some(next) => {
            *due = next;
            false
        }
        None => true,
    }
}
