//! What a build script does with an object: builds it, and hands it to `include_bytes!`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::{build, discover};

/// What an object is made from, below the workspace's root; the build script itself comes on top.
const SOURCES: [&str; 5] = ["lb-ebpf/src", "lb-ebpf/Cargo.toml", "lb-common/src", "lb-common/Cargo.toml", "Cargo.lock"];

/// The whole of a build script in a folder of the workspace: builds `binary` and names the object file in the
/// environment variable `variable`.
pub fn embed(binary: &str, variable: &str) -> ExitCode {
    match object(binary) {
        Ok(object) => {
            println!("cargo::rustc-env={variable}={}", object.display());
            ExitCode::SUCCESS
        }
        Err(message) => {
            for line in message.lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn object(binary: &str) -> Result<PathBuf, String> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).ok_or(format!("cargo did not set {name}"));
    let package = folder("CARGO_MANIFEST_DIR")?;
    let root = package.parent().ok_or("the package has no parent folder")?;
    let out_dir = folder("OUT_DIR")?;
    let sources = SOURCES.iter().map(|source| root.join(source));
    for source in sources.chain([package.join("build.rs")]) {
        println!("cargo::rerun-if-changed={}", source.display());
    }
    let toolchain = discover(root).map_err(|missing| missing.to_string())?;
    let built = build(&toolchain, root, &target_dir(&out_dir), binary)?;
    for warning in built.warnings {
        println!("cargo::warning=lb-ebpf: {warning}");
    }
    // A copy, so that a later build of another profile cannot change it under this one.
    let object = out_dir.join(binary).with_extension("o");
    std::fs::copy(&built.object, &object)
        .map_err(|e| format!("{} could not be copied to {}: {e}", built.object.display(), object.display()))?;
    Ok(object)
}

/// A folder of its own beside the profiles' (`target/ebpf`): the debug and release builds of homing share the one build
/// of the kernel programs, and no lock of the outer cargo is in the way.
fn target_dir(out_dir: &Path) -> PathBuf {
    // OUT_DIR is <target>/<profile>/build/<package>-<hash>/out.
    out_dir.ancestors().nth(4).unwrap_or(out_dir).join("ebpf")
}
