//! control's report and the times that the HTTP path keeps, as an exposition.

use std::borrow::Cow;
use std::sync::atomic::Ordering;

use super::families::{self, Family};
use super::process;
use super::text::Text;
use crate::admin::report::{AppStatus, Status, WorkerStatus};
use crate::routing::{Histogram, Snapshot, Times};

/// States of a worker, as `homing status` names them.
const STATES: [&str; 6] = ["starting", "ready", "draining", "stopped", "backoff", "failed"];
/// How an interface may have XDP.
const MODES: [&str; 3] = ["native", "generic", "none"];

/// All of it. The report is one moment's; the histograms are of the moment after.
pub(super) fn render(status: &Status, snapshot: &Snapshot) -> String {
    let mut text = Text::default();
    text.family(&families::BUILD_INFO).add(&[("version", &status.version)], 1);
    text.family(&families::KERNEL_PATH_ACTIVE).add(&[], u8::from(status.kernel_path.active));
    let mut interfaces = text.family(&families::XDP_INTERFACES);
    for mode in MODES {
        let count = status.kernel_path.interfaces.iter().filter(|interface| interface.mode == mode).count();
        interfaces.add(&[("kind", mode)], count);
    }
    let mut entries = text.family(&families::TABLE_ENTRIES);
    status.tables.iter().for_each(|table| entries.add(&[("kind", &table.name)], table.used));
    let mut sizes = text.family(&families::TABLE_SIZE);
    status.tables.iter().for_each(|table| sizes.add(&[("kind", &table.name)], table.room));
    text.family(&families::STATE_UNSAVED).add(&[], u8::from(status.unsaved.is_some()));
    apps(&mut text, &status.apps);
    workers(&mut text, &status.apps);
    times(&mut text, snapshot);
    for (name, help) in counters() {
        if let Some(value) = status.counters.get(name) {
            text.named(&counter_name(name), "counter", &help).add(&[], value);
        }
    }
    process::write(&mut text);
    text.finish()
}

/// Every counter and what it counts.
fn counters() -> impl Iterator<Item = (&'static str, Cow<'static, str>)> {
    let kernel = lb_common::abi::Counter::ALL.iter().map(|counter| (counter.name(), counter.help().into()));
    let untold = "Connections of the kernel path that were found closed and not counted as such, since homing started.";
    let http = crate::proxy::Counter::ALL.iter().map(|counter| (counter.name(), counter.help().into()));
    kernel.chain([("closed_untold", untold.into())]).chain(http)
}

/// What a counter of `homing status` is called as a metric.
fn counter_name(counter: &str) -> String {
    format!("homing_{counter}_total")
}

/// Every metric that there may be.
pub fn names() -> Vec<String> {
    let families = families::ALL.iter().map(|family| family.name.to_owned());
    families.chain(counters().map(|(name, _)| counter_name(name))).collect()
}

fn apps(text: &mut Text, apps: &[AppStatus]) {
    let mut info = text.family(&families::APP_INFO);
    apps.iter().for_each(|app| info.add(&[("app", &app.name), ("path", &app.path)], 1));
    let mut each = |family: &Family, value: fn(&AppStatus) -> u64| {
        let mut samples = text.family(family);
        apps.iter().for_each(|app| samples.add(&[("app", &app.name)], value(app)));
    };
    each(&families::APP_FAILED, |app| u64::from(app.state == "failed"));
    each(&families::APP_CLIENTS, |app| app.clients);
    each(&families::APP_PROMOTED, |app| app.promoted_addresses);
    each(&families::APP_HELD, |app| app.queued);
    each(&families::APP_HTTP_CONNECTIONS, |app| app.http_connections);
    each(&families::APP_WORKERS_MIN, |app| app.min.into());
    each(&families::APP_WORKERS_MAX, |app| app.max.into());
    let mut workers = text.family(&families::APP_WORKERS);
    for app in apps {
        for state in STATES {
            let count = app.workers.iter().filter(|worker| worker.state == state).count();
            workers.add(&[("app", &app.name), ("kind", state)], count);
        }
    }
}

fn workers(text: &mut Text, apps: &[AppStatus]) {
    let all = || apps.iter().flat_map(|app| app.workers.iter().map(move |worker| (app, worker)));
    let mut connections = text.family(&families::WORKER_CONNECTIONS);
    for (app, worker) in all() {
        let kernel = worker.connections_kernel;
        for (path, open) in [("kernel", kernel), ("http", worker.connections.saturating_sub(kernel))] {
            connections.add(&[("app", &app.name), ("worker", number(worker)), ("path", path)], open);
        }
    }
    let mut each = |family: &Family, value: fn(&WorkerStatus) -> Option<u64>| {
        let mut samples = text.family(family);
        for (app, worker) in all() {
            if let Some(value) = value(worker) {
                samples.add(&[("app", &app.name), ("worker", number(worker))], value);
            }
        }
    };
    each(&families::WORKER_CLIENTS, |worker| Some(worker.clients));
    each(&families::WORKER_REQUESTS, |worker| Some(worker.requests));
    each(&families::WORKER_RESTARTS, |worker| Some(worker.restarts.into()));
    each(&families::WORKER_UNRESPONSIVE, |worker| Some(u64::from(worker.unresponsive)));
    each(&families::WORKER_MEMORY, |worker| worker.memory_bytes);
    each(&families::WORKER_MEMORY_KILLS, |worker| worker.memory_kills);
    each(&families::WORKER_START, |worker| worker.started_at);
}

/// `N` of `APP/N`.
fn number(worker: &WorkerStatus) -> &str {
    worker.id.rsplit_once('/').map_or(&worker.id, |(_, number)| number)
}

fn times(text: &mut Text, snapshot: &Snapshot) {
    let mut each = |family: &Family, of: fn(&Times) -> &Histogram| {
        let mut samples = text.family(family);
        snapshot.apps.values().for_each(|app| samples.histogram(&[("app", &app.name)], &of(&app.times).now()));
    };
    each(&families::HELD_SECONDS, |times| &times.held);
    each(&families::UPSTREAM_SECONDS, |times| &times.upstream);
    each(&families::HTTP_FAILOVER_SECONDS, |times| &times.retried);
    each(&families::WORKER_FAILOVER_SECONDS, |times| &times.failover);
    let mut failures = text.family(&families::APP_WORKER_FAILURES);
    for app in snapshot.apps.values() {
        failures.add(&[("app", &app.name)], app.times.failures.load(Ordering::Relaxed));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::Duration;

    use super::*;
    use crate::admin::report::{InterfaceStatus, IsolationStatus, KernelPathStatus, TableStatus, WayStatus};

    /// What labels there may be: of an app, of its worker (1,024 of an app at most), and words of homing's own.
    const LABELS: [&str; 7] = ["app", "worker", "path", "reason", "kind", "version", "le"];

    fn worker(id: &str, state: &str) -> WorkerStatus {
        WorkerStatus {
            id: id.to_owned(),
            pid: Some(1),
            state: state.to_owned(),
            ends_within_seconds: None,
            reason: None,
            last_output: Vec::new(),
            generation: 1,
            clients: 3,
            connections: 5,
            connections_kernel: 2,
            requests: 7,
            restarts: 1,
            unresponsive: true,
            memory_bytes: Some(4_096),
            memory_kills: Some(2),
            address: None,
            started_at: Some(1_000),
            history: Vec::new(),
        }
    }

    pub(in super::super) fn status() -> Status {
        let way = || WayStatus { by: "v2".to_owned(), reason: None };
        Status {
            version: "0.1.0".to_owned(),
            pid: 1,
            uptime_seconds: 1,
            kernel_path: KernelPathStatus {
                active: true,
                reason: None,
                interfaces: vec![InterfaceStatus {
                    name: "eth0".to_owned(),
                    mode: "native".to_owned(),
                    reason: None,
                    tc: Vec::new(),
                }],
                other_lookups: Vec::new(),
            },
            isolation: IsolationStatus { processes: way(), memory: way(), cpu: way(), polling_ms: 500 },
            unsaved: None,
            apps: vec![AppStatus {
                name: "sales".to_owned(),
                listen: Vec::new(),
                listen_udp: Vec::new(),
                affinity: "ip".to_owned(),
                path: "kernel".to_owned(),
                state: "failed".to_owned(),
                clients: 3,
                connections: 5,
                promoted_addresses: 0,
                queued: 0,
                http_connections: 6,
                min: 1,
                max: 4,
                restarting: false,
                restart_failed: None,
                workers: vec![worker("sales/0", "ready"), worker("sales/1", "failed")],
            }],
            tables: vec![TableStatus { name: "bindings".to_owned(), used: 1, room: 2 }],
            counters: counters().map(|(name, _)| (name.to_owned(), 1)).collect::<BTreeMap<_, _>>(),
        }
    }

    fn rendered() -> String {
        let mut snapshot = Snapshot::default();
        let times = std::sync::Arc::new(Times::default());
        times.held.observe(Duration::from_secs(2));
        let route = crate::proxy::testing::route(crate::config::Affinity::Ip, Vec::new());
        snapshot.apps.insert(0, std::sync::Arc::new(crate::routing::AppRoute { times, ..route }));
        render(&status(), &snapshot)
    }

    #[test]
    fn every_metric_is_there_once_with_its_type_and_help_and_no_other() {
        let text = rendered();
        let of = |what: &str| -> Vec<String> {
            let lines = text.lines().filter_map(|line| line.strip_prefix(what));
            lines.map(|line| line.split(' ').next().unwrap_or_default().to_owned()).collect()
        };
        let (mut helped, mut typed, mut wanted) = (of("# HELP "), of("# TYPE "), names());
        assert_eq!(helped, typed, "in the same order");
        [&mut helped, &mut typed, &mut wanted].into_iter().for_each(|names| names.sort());
        assert_eq!(helped, wanted);
        wanted.dedup();
        assert_eq!(helped, wanted, "each once");
        assert!(families::ALL.iter().all(|family| family.help.ends_with('.')), "a sentence each");
    }

    #[test]
    fn labels_are_few() {
        let text = rendered();
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let labels: BTreeSet<&str> = samples
            .filter_map(|line| Some(line.split_once('{')?.1.split_once('}')?.0))
            .flat_map(|labels| labels.split(',').filter_map(|label| Some(label.split_once('=')?.0)))
            .collect();
        assert!(labels.iter().all(|label| LABELS.contains(label)), "{labels:?}");
    }

    #[test]
    fn what_the_report_says_is_told() {
        let text = rendered();
        for line in [
            "homing_xdp_interfaces{kind=\"native\"} 1",
            "homing_app_failed{app=\"sales\"} 1",
            "homing_app_workers{app=\"sales\",kind=\"ready\"} 1",
            "homing_app_workers{app=\"sales\",kind=\"backoff\"} 0",
            "homing_worker_connections{app=\"sales\",worker=\"1\",path=\"kernel\"} 2",
            "homing_worker_connections{app=\"sales\",worker=\"1\",path=\"http\"} 3",
            "homing_table_size{kind=\"bindings\"} 2",
            "homing_state_unsaved 0",
            "homing_app_http_connections{app=\"sales\"} 6",
            "homing_worker_unresponsive{app=\"sales\",worker=\"0\"} 1",
            "homing_worker_memory_kills_total{app=\"sales\",worker=\"0\"} 2",
            "homing_xdp_syn_worker_total 1",
            "homing_http_requests_total 1",
            "homing_http_held_seconds_bucket{app=\"sales\",le=\"2.5\"} 1",
            "homing_http_held_seconds_sum{app=\"sales\"} 2",
        ] {
            assert!(text.lines().any(|there| there == line), "{line} in {text}");
        }
    }
}
