//! What follows from an app's configuration alone.

use std::sync::Arc;

use lb_common::abi::{
    LISTED_ALLOW, LISTED_DENY, Limits, SERVICE_ALLOWED_ONLY, SERVICE_AUTO, SERVICE_HTTP_ONLY, SERVICE_LIMITED,
    SERVICE_LISTED, SERVICE_REMOTE, SERVICE_SOCKETS, Service,
};
use lb_common::maglev;

use ipnet::IpNet;

use super::remotes;
use super::state::AppSpec;
use crate::config::{Affinity, App, Backend, Cookie, Forward, Http, Protect, Rate};
use crate::datapath::Listed;
use crate::proxy::CookieKeys;
use crate::routing::Times;

/// Of one app.
pub(super) struct Fixed {
    pub(super) service: Service,
    pub(super) cookie: Arc<Cookie>,
    pub(super) name: Arc<str>,
    pub(super) protect: Option<Arc<Protect>>,
    pub(super) http: Arc<Http>,
    /// Not of the configuration: kept when that changes.
    pub(super) times: Arc<Times>,
}

/// `id`: the app's number in the datapath's tables.
pub(super) fn spec(id: u32, app: &App) -> AppSpec {
    AppSpec {
        id,
        name: app.name.clone(),
        min: app.workers.min,
        max: app.workers.max,
        max_connections: app.workers.max_connections,
        load_factor: app.workers.load_factor,
        start: app.timeouts.start,
        idle: app.timeouts.idle,
        drain: app.timeouts.drain,
        stop: app.timeouts.stop,
        ring_len: ring_len(app),
        remotes: app.backends.iter().map(remotes::member).collect(),
    }
}

/// With hosts that answer directly the same for all: what is known of their open flows is the slot they are in, and that
/// must mean the same when hosts are added.
fn ring_len(app: &App) -> u32 {
    let answers_directly = |backend: &Backend| backend.forward != Forward::Http;
    if app.backends.iter().any(answers_directly) {
        return maglev::RING_LEN_MAX;
    }
    maglev::ring_len(app.workers.max + app.backends.len() as u32)
}

/// What of the app's services never changes while homing runs.
fn flags(app: &App) -> u32 {
    let mut flags = path_flags(app);
    if app.proxy_protocol {
        // The kernel sees proxies, whom lists and rates do not mean.
        return flags;
    }
    if app.protect.has_lists() {
        flags |= SERVICE_LISTED;
    }
    if !app.protect.allow.is_empty() {
        flags |= SERVICE_ALLOWED_ONLY;
    }
    if app.protect.has_rates() {
        flags |= SERVICE_LIMITED;
    }
    flags
}

fn path_flags(app: &App) -> u32 {
    if app.http_only().is_some() {
        return SERVICE_HTTP_ONLY;
    }
    let auto = match app.affinity_in_force() {
        Affinity::Cookie => return SERVICE_HTTP_ONLY,
        Affinity::Auto => SERVICE_AUTO,
        Affinity::Ip => 0,
    };
    let is_direct = |backend: &Backend| backend.forward != Forward::Http;
    match (app.backends.iter().any(is_direct), app.backends.iter().all(is_direct) && app.command.is_empty()) {
        (true, true) => SERVICE_REMOTE,
        (true, false) => SERVICE_REMOTE | SERVICE_SOCKETS,
        (false, _) if app.has_workers_on_unix_sockets() => SERVICE_HTTP_ONLY,
        (false, _) => auto,
    }
}

pub(super) fn fix(id: u32, app: &App, keys: &CookieKeys) -> Fixed {
    /// Bits of an address in its IPv4-mapped form before the IPv4 part.
    const V4_OFFSET: u16 = 96;
    Fixed {
        service: Service {
            seed: keys.derive(&format!("ring {}", app.name)),
            app: id,
            ring_len: ring_len(app),
            flags: flags(app),
            v4_bits: V4_OFFSET + u16::from(app.client.ipv4),
            v6_bits: u16::from(app.client.ipv6),
            affinity_s: u32::try_from(app.timeouts.affinity.as_secs()).unwrap_or(u32::MAX),
            promote_above: app.client.auto_promote,
        },
        cookie: Arc::new(app.cookie.clone()),
        name: app.name.as_str().into(),
        protect: (app.protect != Protect::default()).then(|| Arc::new(app.protect.clone())),
        http: Arc::new(app.http.clone()),
        times: Arc::default(),
    }
}

/// What the kernel's programs need for the app's protection: its lists and its rates.
pub(super) fn protection(id: u32, app: &App) -> (Vec<Listed>, Limits) {
    let listed = |what| move |&net: &IpNet| Listed { app: id, net, what };
    let lists =
        app.protect.allow.iter().map(listed(LISTED_ALLOW)).chain(app.protect.deny.iter().map(listed(LISTED_DENY)));
    let interval = |rate: Option<Rate>| rate.map_or(0, Rate::interval_ns);
    let tolerance = |rate: Option<Rate>| rate.map_or(0, Rate::tolerance_ns);
    let limits = Limits {
        client_interval_ns: interval(app.protect.client),
        client_tolerance_ns: tolerance(app.protect.client),
        app_interval_ns: interval(app.protect.app),
        app_tolerance_ns: tolerance(app.protect.app),
    };
    (lists.collect(), limits)
}
