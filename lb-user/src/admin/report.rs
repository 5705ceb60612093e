//! The answers, as JSON and as the command line prints them. `homing status --json` is this, field by field.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Debug, Clone)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Status {
    /// Of the homing that runs.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Since it was started, or took over.
    pub uptime_seconds: u64,
    /// Whether the kernel steers connections.
    pub kernel_path: KernelPathStatus,
    /// How this machine lets homing keep workers together and apart.
    pub isolation: IsolationStatus,
    /// Why the state is not saved, while it is not: what was started since would not be adopted.
    #[serde(default)]
    pub unsaved: Option<String>,
    /// In the order of the configuration; one that left it stays while it has workers.
    pub apps: Vec<AppStatus>,
    /// What is bounded, and how full it is.
    #[serde(default)]
    pub tables: Vec<TableStatus>,
    /// By name, from the start on; the operator's guide explains each.
    pub counters: BTreeMap<String, u64>,
}

#[derive(Serialize, Deserialize, Debug, Clone)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TableStatus {
    /// bindings, promotions or held_requests.
    pub name: String,
    /// Entries now.
    pub used: u64,
    /// Entries at most.
    pub room: u64,
}

#[derive(Serialize, Deserialize, Debug, Clone)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct KernelPathStatus {
    /// New connections are steered by the kernel's programs.
    pub active: bool,
    /// Why it is not active.
    pub reason: Option<String>,
    /// Where XDP is, or was to be.
    pub interfaces: Vec<InterfaceStatus>,
    /// sk_lookup programs of others in this network namespace, by name and id.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_lookups: Vec<String>,
}

/// How this machine lets homing keep workers together and apart.
#[derive(Serialize, Deserialize, Debug, Clone)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct IsolationStatus {
    /// How all processes of a worker are known: v2 or v1 (cgroups), or proc.
    pub processes: WayStatus,
    /// Who keeps workers.memory_max: v2, v1, or homing by polling.
    pub memory: WayStatus,
    /// Who keeps workers.cpu_weight: v2, v1 or none.
    pub cpu: WayStatus,
    /// Between homing's own looks at memory.
    pub polling_ms: u64,
}

#[derive(Serialize, Deserialize, Debug, Clone)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct WayStatus {
    /// Who does it.
    pub by: String,
    /// Why not by cgroups.
    pub reason: Option<String>,
}

#[derive(Serialize, Deserialize, Debug, Clone)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InterfaceStatus {
    /// As `ip link` has it.
    pub name: String,
    /// native, generic or none.
    pub mode: String,
    /// Why not native.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Where tc programs of others are on it: qdiscs for filters (`clsact`, `ingress`), and programs without one
    /// (`tcx ingress (id N)`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tc: Vec<String>,
}

#[derive(Serialize, Deserialize, Debug, Clone)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AppStatus {
    /// As it is configured.
    pub name: String,
    /// Addresses with ports.
    pub listen: Vec<String>,
    /// The same for datagrams.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listen_udp: Vec<String>,
    /// ip, cookie or auto.
    pub affinity: String,
    /// kernel, http or both.
    pub path: String,
    /// ready, starting, idle, failed or stopping.
    pub state: String,
    /// Addresses bound to a live worker.
    pub clients: u64,
    /// Open ones, on both paths.
    pub connections: u64,
    /// Clients whose users are told apart by cookie.
    pub promoted_addresses: u64,
    /// Requests that wait for a worker.
    pub queued: u64,
    /// Clients' connections that asked for the app on the HTTP path and are open, idle ones included.
    #[serde(default)]
    pub http_connections: u64,
    /// Workers at least, as the bounds in force say.
    #[serde(default)]
    pub min: u32,
    /// And at most.
    #[serde(default)]
    pub max: u32,
    /// A restart is under way.
    #[serde(default)]
    pub restarting: bool,
    /// Why the last restart was stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_failed: Option<String>,
    /// Those that are there, and those that somebody may miss.
    pub workers: Vec<WorkerStatus>,
}

#[derive(Serialize, Deserialize, Debug, Clone)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct WorkerStatus {
    /// APP/N.
    pub id: String,
    /// Its process; none of a remote host, or while it is not running.
    pub pid: Option<u32>,
    /// starting, ready, draining, stopped, backoff or failed.
    pub state: String,
    /// Why it is in that state, in words.
    pub reason: Option<String>,
    /// In how many seconds that state ends at the latest, whoever is connected; none where nothing ends it.
    #[serde(default)]
    pub ends_within_seconds: Option<u64>,
    /// What it wrote last before it ended, where nobody had asked it to.
    #[serde(default)]
    pub last_output: Vec<String>,
    /// Goes up with each process in its place.
    pub generation: u32,
    /// Bound to it, or sent to it by cookie.
    pub clients: u64,
    /// Open ones, on both paths.
    pub connections: u64,
    /// Those of them on the kernel path.
    #[serde(default)]
    pub connections_kernel: u64,
    /// HTTP-path requests; the kernel path's are not seen, only its connections.
    pub requests: u64,
    /// Since it was configured.
    pub restarts: u32,
    /// It is ready, and has not answered its health checks for a while.
    #[serde(default)]
    pub unresponsive: bool,
    /// Of all its processes.
    pub memory_bytes: Option<u64>,
    /// Processes of it that the kernel killed for want of memory, since its first was started; none where that is not counted.
    #[serde(default)]
    pub memory_kills: Option<u64>,
    /// Where it listens: an address with port, or a path.
    pub address: Option<String>,
    /// Unix time, seconds.
    pub started_at: Option<u64>,
    /// The states that it went through, the latest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<PastState>,
}

#[derive(Serialize, Deserialize, Debug, Clone)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PastState {
    /// Unix time, seconds.
    pub at: u64,
    /// The word for it, with its reason.
    pub state: String,
}

/// What `homing trace` asks.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct TraceQuery {
    pub app: String,
    pub client: IpAddr,
}

/// What `homing trace --live` asks.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct LiveQuery {
    pub app: Option<String>,
    pub client: Option<IpAddr>,
    /// One decision in so many.
    pub sample: u32,
    /// Decisions a second of each path, at most.
    pub rate: u32,
}

/// Where a client goes, and which rule said so.
#[derive(Serialize, Deserialize, Debug, Clone)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Trace {
    /// As it was asked for.
    pub app: String,
    /// As it was asked for.
    pub address: IpAddr,
    /// The prefix that affinity is kept for.
    pub client: String,
    /// kernel, http, or none where it is denied.
    pub path: String,
    /// ring, bound, cookie, promoted, no_worker or denied.
    pub rule: String,
    /// APP/N; none where the HTTP path asks for a cookie, or nobody is there.
    pub worker: Option<String>,
    /// Its slot of the ring, where that decides.
    pub slot: Option<u32>,
    /// Slots of the ring.
    pub ring_len: u32,
    /// The slot has changed hands, and some who were with its former owner still are.
    pub in_transition: bool,
    /// Which worker the client was with last; in force only while its slot is in transition.
    pub binding: Option<BindingReport>,
    /// The decision step by step, in words.
    pub steps: Vec<String>,
    /// What would change it, in words.
    pub would_change: Vec<String>,
}

#[derive(Serialize, Deserialize, Debug, Clone)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BindingReport {
    /// APP/N; none if it is gone.
    pub worker: Option<String>,
    /// Open ones of the kernel path.
    pub connections: u32,
    /// Since the client was last seen; 0 while it has a connection.
    pub seen_seconds_ago: u32,
    /// That very process is there.
    pub live: bool,
}

/// What another homing takes over.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct Handover {
    pub pid: u32,
    pub doors: Vec<OpenDoor>,
    /// Where the replaced homing says what it still serves.
    pub predecessor: PathBuf,
    /// Where its kernel path is pinned, if it has one, and clients' bindings with it.
    pub pin_dir: Option<PathBuf>,
}

/// A listening socket.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct OpenDoor {
    pub address: SocketAddr,
    /// Its number in the process that holds it.
    pub fd: i32,
}

/// Requests and tunnels in flight, by incarnation of the worker.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct Loads {
    pub loads: Vec<(u64, u32)>,
}

/// What a homing that was replaced remembers of clients. Seconds are those of CLOCK_MONOTONIC.
#[derive(Serialize, Deserialize, Debug, Clone, Default)]
pub struct Bound {
    /// Client, app, backend, and when it was last seen; who was seen last comes last.
    pub bindings: Vec<(IpAddr, u32, u32, u32)>,
    /// Client, app, and when one of its users was last seen.
    pub promotions: Vec<(IpAddr, u32, u32)>,
}

/// What an order did, in words.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct Done {
    pub done: String,
}

/// Where a worker's output is.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct OutputFile {
    /// APP/N.
    pub id: String,
    /// That it appends to; old ones are beside it, as `PATH.1`, `PATH.2` …
    pub path: PathBuf,
}

#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct Failure {
    pub error: String,
}
