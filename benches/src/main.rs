//! Benchmarks: cases side by side in one run, interleaved, as ratios. `cargo xtask bench` builds and runs this.

mod cost;
mod datapath;
mod http;
mod load;
mod path;
mod report;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Measures homing beside its peers, as ratios within one run.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    bench: Bench,
    /// Where to write the cases as JSON.
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Length of one round of one case.
    #[arg(long, global = true, value_name = "MS", default_value_t = 1_000)]
    round_ms: u64,
    /// Interleaved rounds of every case.
    #[arg(long, global = true, default_value_t = 7)]
    rounds: usize,
}

#[derive(Subcommand)]
enum Bench {
    /// The XDP program, packet by packet, beside the least that any program could do.
    Datapath,
    /// The kernel path and the HTTP path against a direct connection to the same worker.
    Path,
    /// The HTTP path beside nginx, HAProxy and Caddy, those that are installed.
    Http {
        /// Only requests at a constant rate beside idle WebSockets, through homing and direct.
        #[arg(long)]
        steady: bool,
    },
    /// What stands behind homing in that case; started by it.
    #[command(hide = true)]
    Worker,
    /// Instructions for packets and connections, in a virtual machine that counts them: cargo xtask vm --cost.
    #[command(hide = true)]
    Cost,
    /// What stands behind homing there.
    #[command(hide = true)]
    CostWorker {
        #[arg(long)]
        port: u16,
    },
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let rounds = report::Rounds { count: cli.rounds, length: std::time::Duration::from_millis(cli.round_ms) };
    let cases = match cli.bench {
        Bench::Datapath => datapath::run(rounds)?,
        Bench::Path => path::run(rounds)?,
        Bench::Http { steady } => http::run(rounds, steady)?,
        Bench::Worker => return http::worker(),
        Bench::Cost => return cost::run(),
        Bench::CostWorker { port } => return cost::worker(port),
    };
    print!("{}", report::table(&cases));
    if let Some(path) = cli.json {
        std::fs::write(path, report::json(&cases)?)?;
    }
    Ok(())
}
