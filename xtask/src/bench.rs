//! `cargo xtask bench`: builds the benchmarks as homing is shipped and runs one of them, or all and makes the report of them.

use std::process::Command;

use anyhow::{bail, ensure};
use clap::ValueEnum;

use crate::run::{cargo, is_root, replace, root, run, target_dir};
use crate::setup;

#[derive(clap::Args)]
pub struct Options {
    #[arg(value_enum)]
    what: What,
    /// The profile that is measured: `dist` is what packages have, `release` is built sooner.
    #[arg(long, default_value = "dist")]
    profile: String,
    /// Options of the benchmark, such as --json FILE, --rounds N and --round-ms MS.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// The XDP program, packet by packet, beside the least that any program could do.
    Datapath,
    /// Both paths, nftables, HAProxy and nginx on layer 4, against a direct connection to the worker.
    Path,
    /// The HTTP path beside nginx, HAProxy, Caddy and faucet.
    Http,
    /// 200 people at a Shiny app, beside nginx, HAProxy and, in R, Shiny Server.
    Sessions,
    /// 10,000 sessions for 20 minutes (--sessions N, --minutes M): nothing may grow, nobody may be cut off.
    Soak,
    /// All but soak; the report goes to docs/benchmarks.
    All,
}

pub fn bench(options: &Options) -> anyhow::Result<()> {
    if !is_root() {
        bail!("bench needs root, for eBPF and network namespaces of its own");
    }
    setup::build_tools()?;
    if options.what != What::Datapath {
        setup::test_tools()?;
        setup::peers()?;
    }
    if matches!(options.what, What::Sessions | What::All) {
        setup::python_apps()?;
        setup::shiny_r()?;
    }
    if matches!(options.what, What::Http | What::All) {
        setup::faucet();
    }
    // As it is shipped this takes some minutes the first time.
    let profile = options.profile.as_str();
    cargo(["build", "--profile", profile, "--package", "homing", "--package", "homing-bench"])?;
    if options.what != What::All {
        return replace(command(&name(options.what), profile).args(&options.options));
    }
    let results = target_dir().join("bench");
    std::fs::create_dir_all(&results)?;
    let mut over = Vec::new();
    for name in [What::Datapath, What::Path, What::Http, What::Sessions].map(name) {
        println!("== {name}");
        let json = results.join(format!("{name}.json"));
        let _ = std::fs::remove_file(&json);
        if let Err(error) = run(command(&name, profile).args(&options.options).arg("--json").arg(&json)) {
            // What has measured, and is over what is promised, belongs into the report.
            ensure!(json.exists(), error);
            over.push(name);
        }
    }
    let mut said = vec!["cargo xtask bench"];
    if profile != "dist" {
        said.extend(["--profile", profile]);
    }
    said.extend(["all"].into_iter().chain(options.options.iter().map(String::as_str)));
    let report = root().join("docs/benchmarks");
    run(command("report", profile).arg(results).arg(&report).arg(said.join(" ")))?;
    println!("The report is in {}.", report.join("measured.md").display());
    ensure!(over.is_empty(), "over what is promised: cases of {}; they are listed above", over.join(", "));
    Ok(())
}

fn name(what: What) -> String {
    what.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn command(name: &str, profile: &str) -> Command {
    // Cargo's own name for it is dev.
    let folder = target_dir().join(if profile == "dev" { "debug" } else { profile });
    let bench = folder.join("homing-bench");
    let mut command = if name == "datapath" {
        // In a network namespace of its own, gone with the process.
        let mut command = Command::new("unshare");
        command.arg("--net").arg(bench);
        command
    } else {
        Command::new(bench)
    };
    command.arg(name).env("HOMING_BIN", folder.join("homing")).env("HOMING_VENVS", setup::venvs());
    command.env("HOMING_FAUCET", setup::faucet_path());
    command
}
