//! Every developer command: `cargo xtask COMMAND`.

mod bench;
mod book;
mod dist;
mod fuzz;
mod markdown;
mod miri;
mod run;
mod sanitize;
mod setup;
mod test;
mod tidy;
mod vm;

use std::process::ExitCode;

use clap::Parser;

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
    /// Measure homing beside its peers, as ratios in one run. Needs root.
    Bench(bench::Options),
    /// Throw made-up bytes at what reads strangers' bytes, until something that homing promises does not hold.
    Fuzz(fuzz::Options),
    /// The tests of lb-common, interpreted by miri, which sees undefined behaviour and overflows. Needs a nightly compiler with it.
    Miri,
    /// homing's unit tests under AddressSanitizer, and ring's C, which is linked into it, watched for undefined behaviour as well.
    Sanitize(sanitize::Options),
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

fn main() -> ExitCode {
    let result = match Cli::parse() {
        Cli::Setup(options) => setup::setup(&options),
        Cli::Demo { options } => demo(&options),
        Cli::Test(options) => test::test(&options),
        Cli::Bench(options) => bench::bench(&options),
        Cli::Fuzz(options) => fuzz::fuzz(&options),
        Cli::Miri => miri::miri(),
        Cli::Sanitize(options) => sanitize::sanitize(&options),
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
