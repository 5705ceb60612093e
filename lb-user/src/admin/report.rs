//! The answers, as JSON and as the command line prints them. `homing status --json` is this, field by field.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct Status {
    pub version: String,
    pub pid: u32,
    pub uptime_seconds: u64,
    pub kernel_path: KernelPathStatus,
    pub isolation: IsolationStatus,
    pub apps: Vec<AppStatus>,
    /// What is bounded, and how full it is.
    #[serde(default)]
    pub tables: Vec<TableStatus>,
    pub counters: BTreeMap<String, u64>,
}

#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct TableStatus {
    /// bindings, promotions or held_requests.
    pub name: String,
    pub used: u64,
    pub room: u64,
}

#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct KernelPathStatus {
    pub active: bool,
    /// Why it is not active.
    pub reason: Option<String>,
    pub interfaces: Vec<InterfaceStatus>,
    /// sk_lookup programs of others in this network namespace, by name and id.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_lookups: Vec<String>,
}

/// How this machine lets homing keep workers together and apart.
#[derive(Serialize, Deserialize, Debug, Clone)]
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
pub struct WayStatus {
    pub by: String,
    /// Why not by cgroups.
    pub reason: Option<String>,
}

#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct InterfaceStatus {
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
pub struct AppStatus {
    pub name: String,
    pub listen: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listen_udp: Vec<String>,
    pub affinity: String,
    /// kernel, http or both.
    pub path: String,
    /// ready, starting, idle, failed or stopping.
    pub state: String,
    /// Addresses bound to a live worker.
    pub clients: u64,
    pub connections: u64,
    pub promoted_addresses: u64,
    pub queued: u64,
    /// Bounds of its workers that are in force.
    #[serde(default)]
    pub min: u32,
    #[serde(default)]
    pub max: u32,
    /// A restart is under way.
    #[serde(default)]
    pub restarting: bool,
    /// Why the last restart was stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_failed: Option<String>,
    pub workers: Vec<WorkerStatus>,
}

#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct WorkerStatus {
    /// APP/N.
    pub id: String,
    pub pid: Option<u32>,
    pub state: String,
    pub reason: Option<String>,
    /// What it wrote last before it ended, where nobody had asked it to.
    #[serde(default)]
    pub last_output: Vec<String>,
    pub generation: u32,
    pub clients: u64,
    pub connections: u64,
    /// Those of them on the kernel path.
    #[serde(default)]
    pub connections_kernel: u64,
    /// HTTP-path requests; the kernel path's are not seen, only its connections.
    pub requests: u64,
    pub restarts: u32,
    pub memory_bytes: Option<u64>,
    pub address: Option<String>,
    /// Unix time, seconds.
    pub started_at: Option<u64>,
    /// The states that it went through, the latest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<PastState>,
}

#[derive(Serialize, Deserialize, Debug, Clone)]
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

/// Where a client goes, and which rule said so.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct Trace {
    pub app: String,
    pub address: IpAddr,
    /// The prefix that affinity is kept for.
    pub client: String,
    /// kernel or http.
    pub path: String,
    /// ring, bound, cookie or no_worker.
    pub rule: String,
    pub worker: Option<String>,
    pub slot: Option<u32>,
    pub ring_len: u32,
    pub in_transition: bool,
    pub binding: Option<BindingReport>,
    /// The decision step by step, in words.
    pub steps: Vec<String>,
    /// What would change it, in words.
    pub would_change: Vec<String>,
}

#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct BindingReport {
    pub worker: Option<String>,
    pub connections: u32,
    pub seen_seconds_ago: u32,
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
