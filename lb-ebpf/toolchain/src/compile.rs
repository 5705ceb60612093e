//! The build itself: one cargo inside another, kept apart from it.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::discover::Toolchain;

const TARGET: &str = "bpfel-unknown-none";
const PACKAGE: &str = "lb-ebpf";

/// Full debug information and `--btf`, because the loader reads map and function types from BTF; v3 of the BPF
/// instruction set for 32-bit jumps and atomics that return a value (Linux 5.12).
const FLAGS: [&str; 6] = ["-C", "debuginfo=2", "-C", "link-arg=--btf", "-C", "target-cpu=v3"];

/// Cargo's word for the separator of `CARGO_ENCODED_RUSTFLAGS`: unlike a space it may not occur in a path.
const FLAG_SEPARATOR: &str = "\x1f";

/// Settings of the user's that the inner cargo needs to reach its registry; every other variable of cargo's speaks of
/// the outer build.
const KEPT: [&str; 7] = [
    "CARGO_HOME",
    "CARGO_MAKEFLAGS",
    "CARGO_NET_",
    "CARGO_HTTP_",
    "CARGO_REGISTRIES_",
    "CARGO_REGISTRY_",
    "CARGO_SOURCE_",
];

/// An object file, and what the compiler had to say of it.
#[derive(Debug)]
pub struct Built {
    pub object: PathBuf,
    pub warnings: Vec<String>,
}

/// Builds `binary`, an object with kernel programs. `target_dir` must not be the target directory of a cargo that waits for this call: that
/// one holds its lock.
pub fn build(toolchain: &Toolchain, workspace_root: &Path, target_dir: &Path, binary: &str) -> Result<Built, String> {
    let mut flags = FLAGS.map(str::to_owned).to_vec();
    flags.extend(["-C".to_owned(), format!("linker={}", toolchain.linker.display())]);

    let mut cargo = Command::new(&toolchain.cargo);
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(belongs_to_outer_build) {
            cargo.env_remove(name);
        }
    }
    cargo
        .current_dir(workspace_root)
        .args(["build", "--release", "--locked", "--color=never", "-Z", "build-std=core"])
        .args(["--package", PACKAGE, "--bin", binary, "--target", TARGET, "--target-dir"])
        .arg(target_dir)
        .env("RUSTC", &toolchain.rustc)
        .env("RUSTC_BOOTSTRAP", "1") // a stable compiler takes -Z options, and crates may use #![feature]
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join(FLAG_SEPARATOR))
        .env("CARGO_PROFILE_RELEASE_STRIP", "none") // a stripped object has no BTF, and does not load
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1");

    let output = cargo
        .output()
        .map_err(|e| format!("{} could not be started to build lb-ebpf: {e}", toolchain.cargo.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("lb-ebpf did not build with rustc {}:\n{}", toolchain.description, said.trim_end()));
    }
    let object = target_dir.join(TARGET).join("release").join(binary);
    if !object.is_file() {
        return Err(format!("lb-ebpf was built, but {} is not there", object.display()));
    }
    Ok(Built { object, warnings: said.lines().filter(|line| line.starts_with("warning")).map(str::to_owned).collect() })
}

/// Whether a variable describes the build that called this one (or a tool wrapped around it, such as clippy) and
/// would mislead the inner cargo.
fn belongs_to_outer_build(name: &str) -> bool {
    if KEPT.iter().any(|kept| if kept.ends_with('_') { name.starts_with(kept) } else { name == *kept }) {
        return false;
    }
    name == "CARGO"
        || name.starts_with("CARGO_")
        || name.starts_with("RUSTC")
        || name.starts_with("RUSTUP_TOOLCHAIN")
        || matches!(name, "RUSTFLAGS" | "RUSTDOC" | "CLIPPY_ARGS" | "CLIPPY_CONF_DIR" | "LD_LIBRARY_PATH")
        || matches!(name, "TARGET" | "HOST" | "OUT_DIR" | "PROFILE" | "OPT_LEVEL" | "DEBUG" | "NUM_JOBS")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inner_cargo_sees_the_registry_settings_but_nothing_of_the_outer_build() {
        for kept in
            ["CARGO_HOME", "CARGO_NET_OFFLINE", "CARGO_HTTP_PROXY", "CARGO_MAKEFLAGS", "PATH", "HOME", "RUSTUP_HOME"]
        {
            assert!(!belongs_to_outer_build(kept), "{kept} must stay");
        }
        for gone in
            ["CARGO", "CARGO_TARGET_DIR", "CARGO_ENCODED_RUSTFLAGS", "RUSTC", "RUSTC_WORKSPACE_WRAPPER", "OUT_DIR"]
        {
            assert!(belongs_to_outer_build(gone), "{gone} must go");
        }
    }
}
