//! `homing trace`: the decision for one client, in words.

use std::net::IpAddr;
use std::path::PathBuf;

use crate::admin::client::{self, AskError};
use crate::admin::report::{Trace, TraceQuery};

pub(super) async fn trace(socket: PathBuf, app: String, address: IpAddr, json: bool) -> Result<(), AskError> {
    let query = TraceQuery { app, client: address };
    let query = serde_urlencoded::to_string(query).expect("a name and an address");
    let trace: Trace = client::get(&socket, &format!("/v1/trace?{query}")).await?;
    if json {
        println!("{}", serde_json::to_string_pretty(&trace).expect("a trace is plain data"));
        return Ok(());
    }
    println!("{} → {}: {}", trace.address, trace.app, outcome(&trace));
    println!();
    for (number, step) in (1..).zip(&trace.steps) {
        println!("  {number}. {step}");
    }
    println!();
    println!("What would change it:");
    for change in &trace.would_change {
        println!("  - {change}");
    }
    Ok(())
}

/// Where it goes, in a few words.
fn outcome(trace: &Trace) -> String {
    match (trace.rule.as_str(), trace.worker.as_deref()) {
        ("denied", _) => "refused".to_owned(),
        ("promoted" | "cookie", _) => "the worker that its cookie names, by the HTTP path".to_owned(),
        (_, Some(worker)) => format!("{worker}, by the {} path", trace.path),
        (_, None) => "no worker yet".to_owned(),
    }
}
