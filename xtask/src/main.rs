//! Every developer command: `cargo xtask COMMAND`.

mod book;
mod dist;
mod fuzz;
mod markdown;
mod miri;
mod run;
mod setup;
mod test;
mod tidy;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Every developer command.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Cli {
    /// Install what is missing to build homing, and say what and why.
    Setup(setup::Options),
    /// Build homing and watch it work: `homing demo`.
    Demo {
        /// Options of `homing demo`, such as --once.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// All tiers of tests that run here, or those that are named.
    Test(test::Options),
    /// Measure homing beside its peers, as ratios in one run.
    Bench {
        #[command(subcommand)]
        bench: Bench,
    },
    /// Throw made-up bytes at what reads strangers' bytes, until something that homing promises does not hold.
    Fuzz(fuzz::Options),
    /// The tests of lb-common, interpreted by miri, which sees undefined behaviour and overflows. Needs a nightly compiler with it.
    Miri,
    /// Faults, one after the other, under clients of both paths: nobody may lose a worker that lives. Needs root.
    Chaos {
        /// How long.
        #[arg(long, default_value = "600")]
        seconds: u64,
        /// Do again what a run with this seed did.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Make what is handed to users: a .deb, a static archive, an SBOM and checksums, in target/packages.
    Dist(dist::Options),
    /// The tests under other kernels, in virtual machines: fetches Debian's kernels and boots them in QEMU.
    Vm(vm::Options),
    /// Check what no compiler does: file sizes, dependency direction, where unsafe stands, what is documented, links.
    Tidy,
    /// The pages of docs/ as a book in target/book, with every link followed. Builds mdbook the first time.
    Book,
}

#[derive(Subcommand)]
enum Bench {
    /// The XDP program, packet by packet, beside the least that any program could do. Needs root.
    Datapath {
        /// Options of the benchmark, such as --json FILE.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Kernel path and HTTP path against a direct connection to the same worker.
    Path {
        /// Options of the benchmark, such as --json FILE.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// The HTTP path beside nginx, HAProxy and Caddy, which are installed if they are missing.
    Http {
        /// Options of the benchmark, such as --json FILE.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse() {
        Cli::Setup(options) => setup::setup(&options),
        Cli::Demo { options } => demo(&options),
        Cli::Test(options) => test::test(&options),
        // In a network namespace of its own, gone with the process.
        Cli::Bench { bench: Bench::Datapath { .. } } if !run::is_root() => {
            Err(anyhow::anyhow!("bench datapath needs root, for eBPF and a network namespace of its own"))
        }
        Cli::Bench { bench: Bench::Datapath { options } } => bench(&["unshare", "--net"], "datapath", &options),
        Cli::Bench { bench: Bench::Path { options } } => bench(&[], "path", &options),
        Cli::Bench { bench: Bench::Http { options } } => setup::peers().and_then(|()| bench(&[], "http", &options)),
        Cli::Fuzz(options) => fuzz::fuzz(&options),
        Cli::Miri => miri::miri(),
        Cli::Chaos { seconds, seed } => chaos(seconds, seed),
        Cli::Dist(options) => setup::build_tools().and_then(|()| dist::dist(&options)),
        Cli::Vm(options) => vm::vm(&options),
        Cli::Tidy => tidy::tidy(),
        Cli::Book => book::book(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(options: &[String]) -> anyhow::Result<()> {
    setup::build_tools()?;
    let homing = run::build_homing()?;
    run::replace(std::process::Command::new(homing).arg("demo").args(options))
}

fn chaos(seconds: u64, seed: Option<u64>) -> anyhow::Result<()> {
    setup::build_tools()?;
    setup::test_tools()?;
    let homing = run::build_homing()?;
    let arguments = ["test", "--package", "homing-tests", "--test", "chaos", "--", "--nocapture"];
    let mut command = run::at_root("cargo", arguments);
    command.env("HOMING_BIN", homing).env("HOMING_CHAOS_SECONDS", seconds.to_string());
    if let Some(seed) = seed {
        command.env("HOMING_CHAOS_SEED", seed.to_string());
    }
    run::run(&mut command)
}

/// Builds and runs a benchmark, by way of `wrapper`.
fn bench(wrapper: &[&str], name: &str, options: &[String]) -> anyhow::Result<()> {
    setup::build_tools()?;
    // As it is shipped; this takes some minutes the first time.
    run::cargo(["build", "--profile", "dist", "--package", "homing", "--package", "homing-bench"])?;
    let [homing, bench] = ["homing", "homing-bench"].map(|name| run::target_dir().join("dist").join(name));
    let mut words = wrapper.iter().map(std::ffi::OsString::from).chain([bench.into_os_string()]);
    let mut command = std::process::Command::new(words.next().expect("at least the benchmark"));
    run::replace(command.args(words).arg(name).args(options).env("HOMING_BIN", homing))
}
