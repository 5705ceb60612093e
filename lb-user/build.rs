//! Builds the kernel programs and hands their object file to `include_bytes!` as `HOMING_EBPF_OBJECT`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What the object is made from, below the workspace's root.
const SOURCES: [&str; 6] =
    ["lb-ebpf/src", "lb-ebpf/Cargo.toml", "lb-common/src", "lb-common/Cargo.toml", "Cargo.lock", "lb-user/build.rs"];

fn main() -> ExitCode {
    match object() {
        Ok(object) => {
            println!("cargo::rustc-env=HOMING_EBPF_OBJECT={}", object.display());
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

fn object() -> Result<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("lb-user has no parent folder")?;
    let out_dir = std::env::var_os("OUT_DIR").map(PathBuf::from).ok_or("cargo did not set OUT_DIR")?;
    for source in SOURCES {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
    let toolchain = ebpf_toolchain::discover(root).map_err(|missing| missing.to_string())?;
    let built = ebpf_toolchain::build(&toolchain, root, &target_dir(&out_dir))?;
    for warning in built.warnings {
        println!("cargo::warning=lb-ebpf: {warning}");
    }
    // A copy, so that a later build of another profile cannot change it under this one.
    let object = out_dir.join("homing-ebpf.o");
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
