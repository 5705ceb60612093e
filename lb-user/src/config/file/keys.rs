//! Every key that a configuration may have, by its whole name, and no other. `cargo xtask tidy` reads this file: each has its
//! row in docs/operations.md, from which the manual page is made.

/// The keys of one table, by their whole names.
pub(super) type Keys = &'static [&'static str];

pub(super) const FILE: Keys = &["homing", "app"];

pub(super) const HOMING: Keys = &[
    "homing.control_socket",
    "homing.state_dir",
    "homing.run_dir",
    "homing.log_dir",
    "homing.log_max_size",
    "homing.log_max_age",
    "homing.log_keep",
    "homing.access_log",
    "homing.access_log_format",
    "homing.access_log_query",
    "homing.traces",
    "homing.traces_one_in",
    "homing.pin_dir",
    "homing.cgroups",
    "homing.kernel_path",
    "homing.interfaces",
    "homing.trusted_proxies",
    "homing.bindings",
    "homing.starts_at_once",
    "homing.metrics",
    "homing.metrics_token_file",
    "homing.metrics_actions",
];

pub(super) const APP: Keys = &[
    "app.name",
    "app.listen",
    "app.listen_udp",
    "app.hosts",
    "app.path",
    "app.strip_path",
    "app.affinity",
    "app.command",
    "app.backends",
    "app.pass_socket",
    "app.directory",
    "app.user",
    "app.group",
    "app.umask",
    "app.limits",
    "app.no_new_privileges",
    "app.stop_signal",
    "app.env",
    "app.workers",
    "app.timeouts",
    "app.health",
    "app.client",
    "app.protect",
    "app.http",
    "app.tls",
    "app.proxy_protocol",
    "app.h2c",
    "app.send_proxy_protocol",
    "app.cookie",
];

pub(super) const BACKEND: Keys = &["app.backends.address", "app.backends.forward", "app.backends.weight"];

pub(super) const LIMITS: Keys = &["app.limits.open_files", "app.limits.processes", "app.limits.core"];

pub(super) const WORKERS: Keys = &[
    "app.workers.min",
    "app.workers.max",
    "app.workers.max_connections",
    "app.workers.load_factor",
    "app.workers.memory_max",
    "app.workers.cpu_weight",
];

pub(super) const TIMEOUTS: Keys = &[
    "app.timeouts.start",
    "app.timeouts.idle",
    "app.timeouts.drain",
    "app.timeouts.stop",
    "app.timeouts.affinity",
    "app.timeouts.full",
    "app.timeouts.body",
    "app.timeouts.response",
    "app.timeouts.websocket_idle",
    "app.timeouts.websocket_read",
];

pub(super) const HEALTH: Keys = &["app.health.path", "app.health.interval"];

pub(super) const CLIENT: Keys = &["app.client.ipv4_prefix", "app.client.ipv6_prefix", "app.client.auto_promote"];

pub(super) const PROTECT: Keys = &[
    "app.protect.allow",
    "app.protect.deny",
    "app.protect.client_rate",
    "app.protect.client_burst",
    "app.protect.app_rate",
    "app.protect.app_burst",
];

pub(super) const HTTP: Keys = &[
    "app.http.max_connections",
    "app.http.head_max",
    "app.http.body_max",
    "app.http.client_rate",
    "app.http.client_burst",
    "app.http.queue",
    "app.http.error_page",
];

pub(super) const TLS: Keys = &["app.tls.certificate", "app.tls.key"];

pub(super) const COOKIE: Keys =
    &["app.cookie.name", "app.cookie.secure", "app.cookie.same_site", "app.cookie.max_age", "app.cookie.partitioned"];

/// What the key is called in its table.
pub(super) fn name(key: &'static str) -> &'static str {
    key.rsplit('.').next().unwrap_or(key)
}
