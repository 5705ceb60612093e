//! `homing trace`: the decision for one client, in words; or, with --live, those that are made.

use std::net::IpAddr;
use std::path::Path;

use super::Socket;
use super::live::{self, live};
use crate::admin::client::{self, AskError};
use crate::admin::report::{Trace, TraceQuery};

pub(super) const EXAMPLES: &str = "Examples:\n  homing trace sales 203.0.113.7              where that client goes, and why\n  \
    homing trace --live                         every decision as it is made\n  \
    homing trace sales 203.0.113.7 --live       those on one client\n  \
    homing trace sales --live --sample 100      of a busy app\n  \
    homing trace --live --json --for 30s | jq -r 'select(.kind == \"request\" and .refused) | .client'\n\n\
    Rules: ring, the owner of the client's slot. bound, the worker that it was with before the ring changed. cookie and promoted, \
    the HTTP path asks for a cookie. no_worker and no_socket, the HTTP path holds or forwards the request. denied, client_too_fast and \
    app_too_fast, refused by [app.protect]. The others are those of the access log.";

#[derive(clap::Args)]
pub(super) struct Options {
    /// The app's name.
    #[arg(required_unless_present = "live")]
    app: Option<String>,
    /// The client's address, IPv4 or IPv6.
    #[arg(required_unless_present = "live")]
    client: Option<IpAddr>,
    #[command(flatten)]
    socket: Socket,
    /// As JSON; with --live an object a line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    live: live::Options,
}

/// Whose decisions are asked for.
pub(super) struct Traced {
    pub(super) app: Option<String>,
    pub(super) client: Option<IpAddr>,
}

pub(super) async fn trace(options: Options) -> Result<(), AskError> {
    let Options { app, client, socket: Socket { control_socket: socket }, json, live: options } = options;
    match (app, client) {
        (Some(app), Some(client)) if !options.live => explain(&socket, app, client, json).await,
        (app, client) => live(&socket, Traced { app, client }, &options, json).await,
    }
}

async fn explain(socket: &Path, app: String, address: IpAddr, json: bool) -> Result<(), AskError> {
    let query = TraceQuery { app, client: address };
    let query = serde_urlencoded::to_string(query).expect("a name and an address");
    let trace: Trace = client::get(socket, &format!("/v1/trace?{query}")).await?;
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
