//! `homing status`: the table an operator reads first. Fits 80 columns.

use std::fmt::Write as _;
use std::path::PathBuf;

use super::plain::plain;
use crate::admin::client::{self, AskError};
use crate::admin::report::{AppStatus, IsolationStatus, Status, WayStatus, WorkerStatus};

pub(super) async fn status(socket: PathBuf, json: bool) -> Result<(), AskError> {
    let status = client::status(&socket).await?;
    if json {
        println!("{}", serde_json::to_string_pretty(&status).expect("a status is plain data"));
    } else {
        print!("{}", render(&status, unix_now()));
    }
    Ok(())
}

pub(super) fn unix_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn render(status: &Status, now: u64) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "homing {}, pid {}, up {}", status.version, status.pid, span(status.uptime_seconds));
    let kernel = &status.kernel_path;
    if kernel.active {
        let interfaces: Vec<String> =
            kernel.interfaces.iter().map(|interface| format!("{} {}", interface.name, interface.mode)).collect();
        let _ = writeln!(out, "kernel path: active; XDP on {}", list_or(&interfaces, "no interface"));
        for interface in kernel.interfaces.iter().filter(|interface| interface.mode == "none") {
            let _ = writeln!(out, "  {}: {}", interface.name, interface.reason.as_deref().unwrap_or("no XDP"));
        }
        for (interface, kind) in kernel.interfaces.iter().flat_map(|i| i.tc.iter().map(|kind| (&i.name, kind))) {
            let _ = writeln!(out, "  {interface}: {}", crate::datapath::beside_tc(kind));
        }
        for other in &kernel.other_lookups {
            let _ = writeln!(out, "  another sk_lookup program is here: {other}");
        }
    } else {
        let _ = writeln!(out, "kernel path: off; {}", kernel.reason.as_deref().unwrap_or("no reason given"));
    }
    render_isolation(&mut out, &status.isolation);
    if let Some(why) = &status.unsaved {
        let _ = writeln!(out, "the state is not saved: {why}");
    }
    let refused = refused(status);
    if !refused.is_empty() {
        let _ = writeln!(out, "refused new connections: {}", refused.join(", "));
    }
    for app in &status.apps {
        render_app(&mut out, app, now);
    }
    out
}

fn render_isolation(out: &mut String, isolation: &IsolationStatus) {
    let name = |way: &WayStatus| match way.by.as_str() {
        "v1" | "v2" => format!("cgroup {}", way.by),
        "proc" => "/proc".to_owned(),
        "polling" => format!("polling ({} ms)", isolation.polling_ms),
        _ => "nobody".to_owned(),
    };
    let IsolationStatus { processes, memory, cpu, .. } = isolation;
    let _ =
        writeln!(out, "isolation: processes by {}, memory by {}, cpu by {}", name(processes), name(memory), name(cpu));
    let mut reasons: Vec<&str> = [processes, memory, cpu].into_iter().filter_map(|way| way.reason.as_deref()).collect();
    reasons.dedup();
    for reason in reasons {
        let _ = writeln!(out, "  {reason}");
    }
}

/// What protection has kept out.
fn refused(status: &Status) -> Vec<String> {
    let reasons: [(&str, &[&str]); 3] = [
        ("denied by list", &["xdp_denied", "lookup_denied", "http_denied"]),
        ("client too fast", &["xdp_client_too_fast", "http_client_too_fast"]),
        ("app too fast", &["xdp_app_too_fast", "http_app_too_fast"]),
    ];
    let sum = |names: &[&str]| names.iter().filter_map(|name| status.counters.get(*name)).sum::<u64>();
    let counted = reasons.into_iter().map(|(reason, names)| (reason, sum(names)));
    counted.filter(|(_, count)| *count > 0).map(|(reason, count)| format!("{count} {reason}")).collect()
}

fn render_app(out: &mut String, app: &AppStatus, now: u64) {
    let _ = writeln!(out, "\n{}  {}  {}", app.name, app.state, app.listen.join(" "));
    let _ = writeln!(
        out,
        "  affinity {}, path {}; {}, {}, {} held",
        app.affinity,
        app.path,
        count(app.clients, "client"),
        count(app.connections, "connection"),
        count(app.queued, "request")
    );
    if app.promoted_addresses > 0 {
        let _ = writeln!(
            out,
            "  {} promoted: more connections than one person makes, told apart by cookie",
            app.promoted_addresses
        );
    }
    let _ = writeln!(
        out,
        "  {:<16} {:<9} {:>7} {:>7} {:>6} {:>8} {:>7} {:>9}",
        "WORKER", "STATE", "PID", "CLIENTS", "CONNS", "RESTARTS", "MEMORY", "UP"
    );
    for worker in &app.workers {
        let _ = writeln!(
            out,
            "  {:<16} {:<9} {:>7} {:>7} {:>6} {:>8} {:>7} {:>9}",
            worker.id,
            worker.state,
            dash(worker.pid),
            worker.clients,
            worker.connections,
            worker.restarts,
            worker.memory_bytes.map_or_else(|| "-".to_owned(), memory),
            up(worker, now),
        );
        if let Some(reason) = &worker.reason {
            let _ = writeln!(out, "    {reason}");
        }
        if let Some(kills @ 1..) = worker.memory_kills {
            let _ = writeln!(
                out,
                "    {} of it killed for want of memory",
                if kills == 1 { "a process".to_owned() } else { format!("{kills} processes") }
            );
        }
        if !worker.last_output.is_empty() {
            let _ = writeln!(
                out,
                "    last output{}:",
                if worker.pid.is_some() { " before it was started again" } else { "" }
            );
        }
        for line in &worker.last_output {
            let _ = writeln!(out, "      | {}", plain(line));
        }
    }
}

fn up(worker: &WorkerStatus, now: u64) -> String {
    match (worker.pid, worker.started_at) {
        (Some(_), Some(at)) => span(now.saturating_sub(at)),
        _ => "-".to_owned(),
    }
}

fn list_or(items: &[String], none: &str) -> String {
    if items.is_empty() { none.to_owned() } else { items.join(", ") }
}

fn dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

pub(super) fn memory(bytes: u64) -> String {
    format!("{} MB", bytes / 1_000_000)
}

/// The two largest units.
pub(super) fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} m {} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {} m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

pub(super) fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_fits_80_columns_and_says_why_a_worker_is_down() {
        let worker = |number: u32, state: &str, reason: Option<&str>| WorkerStatus {
            id: format!("sales/{number}"),
            pid: reason.is_none().then_some(4_194_300),
            state: state.to_owned(),
            ends_within_seconds: None,
            reason: reason.map(str::to_owned),
            last_output: reason
                .iter()
                .flat_map(|_| ["Traceback:".to_owned(), "no\u{1b}[2J table".to_owned()])
                .collect(),
            generation: 1,
            clients: 12_345,
            connections: 99_999,
            connections_kernel: 0,
            requests: 0,
            restarts: 3,
            unresponsive: false,
            memory_bytes: Some(138_000_000),
            memory_kills: (number == 0).then_some(1),
            address: None,
            started_at: Some(1_000),
            history: Vec::new(),
        };
        let status = Status {
            version: "0.1.0".into(),
            pid: 1,
            uptime_seconds: 90_061,
            kernel_path: crate::admin::report::KernelPathStatus {
                active: true,
                reason: None,
                interfaces: vec![],
                other_lookups: vec![],
            },
            isolation: IsolationStatus {
                processes: WayStatus { by: "v2".into(), reason: None },
                memory: WayStatus { by: "polling".into(), reason: Some("no memory controller".into()) },
                cpu: WayStatus { by: "none".into(), reason: Some("no memory controller".into()) },
                polling_ms: 500,
            },
            unsaved: Some("No space left on device (os error 28)".into()),
            tables: Vec::new(),
            apps: vec![AppStatus {
                name: "sales".into(),
                listen_udp: vec![],
                listen: vec!["0.0.0.0:8080".into(), "[::]:8080".into()],
                affinity: "ip".into(),
                path: "kernel".into(),
                state: "ready".into(),
                clients: 2,
                connections: 3,
                promoted_addresses: 0,
                queued: 0,
                http_connections: 0,
                min: 4,
                max: 4,
                restarting: false,
                restart_failed: None,
                workers: vec![worker(0, "ready", None), worker(1, "failed", Some("exited with status 1"))],
            }],
            counters: std::collections::BTreeMap::new(),
        };
        let text = render(&status, 4_661);
        assert!(text.contains("up 1 d 1 h"), "{text}");
        let down = "\n    exited with status 1\n    last output:\n      | Traceback:\n      | no^[[2J table\n";
        assert!(text.contains(down), "{text}");
        let isolation = "isolation: processes by cgroup v2, memory by polling (500 ms), cpu by nobody\n  no memory controller\n\
             the state is not saved: No space left on device (os error 28)\n\n";
        assert!(text.contains(isolation), "{text}");
        assert!(text.contains("1 h 1 m\n    a process of it killed for want of memory\n  sales/1"), "{text}");
        let widest = text.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(80), "{widest:?} columns:\n{text}");
    }
}
