//! Prometheus' own judge of metrics and rules.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::skips::skip;

/// Where it is: what `cargo xtask test` has taken, or the machine's own. Where there is none the test is skipped.
pub fn find() -> Option<PathBuf> {
    let taken = std::env::var_os("HOMING_PROMTOOL").map(PathBuf::from).filter(|path| path.is_file());
    let own = || {
        let runs = Command::new("promtool").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        runs.is_ok_and(|status| status.success()).then(|| PathBuf::from("promtool"))
    };
    let found = taken.or_else(own);
    if found.is_none() {
        skip("promtool is not installed");
    }
    found
}
