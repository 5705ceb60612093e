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
    let target = trace.worker.as_deref().unwrap_or("no worker yet");
    println!("{} → {}: {target}, by the {} path", trace.address, trace.app, trace.path);
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
