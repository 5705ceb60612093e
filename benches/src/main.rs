//! Benchmarks: cases side by side in one run, interleaved, as ratios. `cargo xtask bench` builds and runs this.

mod cost;
mod datapath;
mod http;
mod load;
mod pages;
mod path;
mod peers;
mod picture;
mod report;
mod sessions;
mod soak;
mod upstream;
mod worker;

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
    /// Length of one round of one case, in milliseconds: 1000, or 5000 of `sessions`.
    #[arg(long, global = true, value_name = "MS")]
    round_ms: Option<u64>,
    /// Interleaved rounds of every case: 7, or 3 of `sessions`.
    #[arg(long, global = true)]
    rounds: Option<usize>,
}

#[derive(Subcommand)]
enum Bench {
    /// The XDP program, packet by packet, beside the least that any program could do.
    Datapath,
    /// Both paths, nftables, HAProxy and nginx on layer 4, against a direct connection to the worker.
    Path,
    /// The HTTP path beside nginx, HAProxy, Caddy and faucet, those that are installed.
    Http {
        /// Only requests at a constant rate beside idle WebSockets, through homing and direct.
        #[arg(long)]
        steady: bool,
    },
    /// People at a Shiny app, 200 at once: their pages and sessions, beside nginx, HAProxy and, in R, Shiny Server.
    Sessions,
    /// Very many sessions for a long time: nothing may grow, and nobody may be cut off.
    Soak {
        #[arg(long, default_value_t = 10_000)]
        sessions: usize,
        #[arg(long, default_value_t = 20)]
        minutes: u64,
    },
    /// Makes the pages of docs/benchmarks of what all of them have measured.
    #[command(hide = true)]
    Report {
        /// A folder with a NAME.json of each.
        from: PathBuf,
        to: PathBuf,
        /// What ran them.
        command: String,
    },
    /// Instructions for packets and connections, in a virtual machine that counts them: cargo xtask vm --cost.
    #[command(hide = true)]
    Cost,
    /// What stands behind homing there.
    #[command(hide = true)]
    CostWorker {
        #[arg(long)]
        port: u16,
    },
    /// What stands behind homing and its peers; started by the others.
    #[command(hide = true)]
    Worker {
        #[arg(long)]
        listen: Option<std::net::SocketAddr>,
    },
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let (count, length_ms) = if matches!(cli.bench, Bench::Sessions) { (3, 5_000) } else { (7, 1_000) };
    let length = std::time::Duration::from_millis(cli.round_ms.unwrap_or(length_ms));
    let rounds = report::Rounds { count: cli.rounds.unwrap_or(count), length };
    let cases = match cli.bench {
        Bench::Datapath => datapath::run(rounds)?,
        Bench::Path => path::run(rounds)?,
        Bench::Sessions => sessions::run(rounds)?,
        Bench::Http { steady } => http::run(rounds, steady)?,
        Bench::Soak { sessions, minutes } => soak::run(sessions, std::time::Duration::from_secs(60 * minutes))?,
        Bench::Report { from, to, command } => return pages::write(&from, &to, &command),
        Bench::Cost => return cost::run(),
        Bench::CostWorker { port } => return cost::worker(port),
        Bench::Worker { listen } => return worker::serve(listen),
    };
    print!("{}", report::table(&cases));
    if let Some(path) = cli.json {
        std::fs::write(path, report::json(&cases)?)?;
    }
    report::judge(&cases)
}
