//! Who is refused before anything is chosen: by the app's lists, or by its rates.

use aya_ebpf::btf_maps::lpm_trie::Key;
use lb_common::abi::{
    ACCESS_BITS_APP, BindingKey, Counter, PROTO_TCP, SERVICE_LIMITED, SERVICE_LISTED, Service, access_data,
};
use lb_common::addr::Addr;
use lb_common::affinity;
use lb_common::guard;
use lb_common::parse::Segment;

use crate::maps::{self, ACCESS, APP_DUE, CLIENT_DUE, LIMITS};

/// Why a packet that opens a connection, or a datagram, goes no further; `None` when it may.
#[inline(always)]
pub fn refusal(service: &Service, segment: &Segment) -> Option<Counter> {
    if is_denied(service, segment.source) {
        return Some(Counter::XdpDenied);
    }
    if service.flags & SERVICE_LIMITED == 0 || segment.protocol != PROTO_TCP {
        return None;
    }
    let client = affinity::client_of(service, segment.source);
    too_fast(service.app, client.high, client.low)
}

#[inline(always)]
pub fn is_denied(service: &Service, address: Addr) -> bool {
    if service.flags & SERVICE_LISTED == 0 {
        return false;
    }
    let key = Key::new(ACCESS_BITS_APP + 128, access_data(service.app, address));
    let listed = ACCESS.get(&key).copied().unwrap_or(0);
    guard::is_denied(service.flags, listed)
}

/// The rate of the client, then that of the app: a client that is refused takes nothing from others.
///
/// Two CPUs may both read a number before either writes it: then one more gets through.
#[inline(never)]
fn too_fast(app: u32, high: u64, low: u64) -> Option<Counter> {
    let limits = LIMITS.get(app)?;
    let now_ns = maps::now_ns();
    if limits.client_interval_ns != 0 {
        let key = BindingKey { client: Addr { high, low }, app, reserved: 0 };
        let Some(next) =
            guard::arrive(maps::client_due(&key), now_ns, limits.client_interval_ns, limits.client_tolerance_ns)
        else {
            return Some(Counter::XdpClientTooFast);
        };
        // A table that takes no entry forgets this arrival; the app's rate still counts it.
        let _ = CLIENT_DUE.insert(key, next, 0);
    }
    if limits.app_interval_ns != 0 {
        let due = maps::app_due(app);
        let Some(next) = guard::arrive(due, now_ns, limits.app_interval_ns, limits.app_tolerance_ns) else {
            return Some(Counter::XdpAppTooFast);
        };
        let _ = APP_DUE.set(app, next, 0);
    }
    None
}
