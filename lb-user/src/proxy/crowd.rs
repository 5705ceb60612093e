//! Clients with more connections than one person makes: promoted, so that their users are told apart by cookie.
//!
//! The kernel's programs count the connections of the kernel path and promote by themselves; these are the others.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lb_common::abi::BindingKey;

use super::Inner;
use crate::config::Affinity;

/// Open connections to the HTTP path by client, of apps with affinity `auto`.
#[derive(Default)]
pub struct Crowds(Mutex<HashMap<BindingKey, u32>>);

impl Crowds {
    fn table(&self) -> MutexGuard<'_, HashMap<BindingKey, u32>> {
        // A panic cannot leave the map half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection, counted until it is dropped.
pub struct InCrowd {
    proxy: Arc<Inner>,
    client: BindingKey,
}

/// Counts a connection from `address`, and promotes the client if that makes too many for one person.
pub fn join(proxy: &Arc<Inner>, app: u32, address: IpAddr) -> Option<InCrowd> {
    let route = proxy.route(app).filter(|route| route.affinity == Affinity::Auto)?;
    let client = route.binding_key(address);
    let connections = {
        let mut table = proxy.crowds.table();
        let connections = table.entry(client).or_default();
        *connections += 1;
        *connections
    };
    if connections > route.service.promote_above && proxy.routing.bindings.promotion(&client).is_none() {
        tracing::debug!(app = &*route.name, %address, connections, "promoted: its users are told apart by cookie");
        proxy.routing.bindings.promote(&client);
    }
    Some(InCrowd { proxy: Arc::clone(proxy), client })
}

impl Drop for InCrowd {
    fn drop(&mut self) {
        let mut table = self.proxy.crowds.table();
        if let Some(connections) = table.get_mut(&self.client) {
            *connections -= 1;
            if *connections == 0 {
                table.remove(&self.client);
            }
        }
    }
}
