//! `cargo xtask miri`: the tests of `lb-common` by an interpreter that sees what no compiler does. The crate has no `unsafe`; what it
//! computes is compiled into the kernel programs all the same, where an overflow or an index out of bounds has no one to tell.

use std::process::Command;

use anyhow::bail;

use crate::run::{at_root, run, target_dir};

/// Interpreting is some hundred times slower than running: a few of each property's cases, and no ring of 65,537 slots.
const CASES: &str = "4";

pub fn miri() -> anyhow::Result<()> {
    let is_there = Command::new("cargo").args(["+nightly", "miri", "--version"]).output();
    if !is_there.is_ok_and(|output| output.status.success()) {
        bail!(
            "miri is not here; it comes with nightly compilers: rustup toolchain install nightly --profile minimal --component \
             miri --component rust-src"
        );
    }
    let mut command = at_root("cargo", ["+nightly", "miri", "test", "--package", "lb-common"]);
    // Proptest asks where it is.
    command.env("MIRIFLAGS", "-Zmiri-disable-isolation").env("PROPTEST_CASES", CASES);
    run(command.env("CARGO_TARGET_DIR", target_dir().join("miri")))
}
