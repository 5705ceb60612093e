//! The metrics, each with its name, type and meaning. Those of counters are not here: they are called after them, `homing_`
//! before and `_total` behind.

/// What a scraper is told of a metric before its samples.
pub struct Family {
    pub name: &'static str,
    /// As the text format calls it.
    pub kind: &'static str,
    pub help: &'static str,
}

macro_rules! families {
    ($($(#[doc = $doc:literal])+ $variant:ident($kind:literal) = $name:literal,)+) => {
        $($(#[doc = $doc])+ pub const $variant: Family =
            Family { name: $name, kind: $kind, help: concat!($($doc),+).trim_ascii() };)+

        pub const ALL: &[Family] = &[$($variant,)+];
    };
}

families! {
    /// Which version runs; always 1.
    BUILD_INFO("gauge") = "homing_build_info",
    /// Whether the kernel path is active, 1 or 0.
    KERNEL_PATH_ACTIVE("gauge") = "homing_kernel_path_active",
    /// Interfaces for XDP by how they have it: native, generic or none.
    XDP_INTERFACES("gauge") = "homing_xdp_interfaces",
    /// What is in a table that is bounded.
    TABLE_ENTRIES("gauge") = "homing_table_entries",
    /// What there is room for in that table.
    TABLE_SIZE("gauge") = "homing_table_size",
    /// Whether the state could not be written, so that what was started since would not be taken over, 1 or 0.
    STATE_UNSAVED("gauge") = "homing_state_unsaved",
    /// Which path an app's connections take; always 1.
    APP_INFO("gauge") = "homing_app_info",
    /// Whether the app has failed and nobody serves it, 1 or 0.
    APP_FAILED("gauge") = "homing_app_failed",
    /// Clients of the app that a live worker has.
    APP_CLIENTS("gauge") = "homing_app_clients",
    /// Addresses whose users are told apart by cookie because they are many.
    APP_PROMOTED("gauge") = "homing_app_promoted_addresses",
    /// Requests that are held for a worker now.
    APP_HELD("gauge") = "homing_app_held_requests",
    /// Connections of clients that asked for the app on the HTTP path and are open, idle ones included.
    APP_HTTP_CONNECTIONS("gauge") = "homing_app_http_connections",
    /// Workers of the app by state.
    APP_WORKERS("gauge") = "homing_app_workers",
    /// Workers that run always.
    APP_WORKERS_MIN("gauge") = "homing_app_workers_min",
    /// Workers at most.
    APP_WORKERS_MAX("gauge") = "homing_app_workers_max",
    /// Workers that ended unasked or were not ready in time.
    APP_WORKER_FAILURES("counter") = "homing_app_worker_failures_total",
    /// Connections of the worker that are open, by path; on the HTTP path requests and tunnels in flight.
    WORKER_CONNECTIONS("gauge") = "homing_worker_connections",
    /// Clients that the worker has.
    WORKER_CLIENTS("gauge") = "homing_worker_clients",
    /// Requests that the HTTP path brought to the worker's process.
    WORKER_REQUESTS("counter") = "homing_worker_requests_total",
    /// Processes of the worker after the first, for whatever reason.
    WORKER_RESTARTS("counter") = "homing_worker_restarts_total",
    /// Whether the worker is ready and does not answer its health checks, 1 or 0.
    WORKER_UNRESPONSIVE("gauge") = "homing_worker_unresponsive",
    /// Memory of all processes of the worker.
    WORKER_MEMORY("gauge") = "homing_worker_memory_bytes",
    /// Processes of the worker that the kernel killed for want of memory, since its first was started.
    WORKER_MEMORY_KILLS("counter") = "homing_worker_memory_kills_total",
    /// When the worker's process was started, in Unix time.
    WORKER_START("gauge") = "homing_worker_start_time_seconds",
    /// How long requests were held until they had a worker, or gave up.
    HELD_SECONDS("histogram") = "homing_http_held_seconds",
    /// From a request's way to a worker until the head of its answer.
    UPSTREAM_SECONDS("histogram") = "homing_http_upstream_seconds",
    /// From a connection that a worker refused until its request had a worker again.
    HTTP_FAILOVER_SECONDS("histogram") = "homing_http_failover_seconds",
    /// From the seen end of a worker with clients until these were given to others, or to the HTTP path to hold.
    WORKER_FAILOVER_SECONDS("histogram") = "homing_worker_failover_seconds",
    /// Processor time that homing has used.
    PROCESS_CPU("counter") = "process_cpu_seconds_total",
    /// File descriptors that homing has open.
    PROCESS_OPEN_FDS("gauge") = "process_open_fds",
    /// File descriptors that homing may have open.
    PROCESS_MAX_FDS("gauge") = "process_max_fds",
    /// Address space of homing.
    PROCESS_VIRTUAL_MEMORY("gauge") = "process_virtual_memory_bytes",
    /// Memory that homing takes.
    PROCESS_RESIDENT_MEMORY("gauge") = "process_resident_memory_bytes",
    /// When homing was started, in Unix time.
    PROCESS_START("gauge") = "process_start_time_seconds",
}
