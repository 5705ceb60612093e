//! `homing run --guarded`: the process that a service manager starts and ends, apart from the one that serves.
//!
//! It holds nothing, no privilege either, so that a restart may end it while homing goes on and waits for its successor (docs/decisions/0014).

use std::env;
use std::process::Command;

use super::{FAILED, fail};
use crate::privileges;

/// The option, and the one that it becomes for the process that serves.
const GUARDED: &str = "--guarded";
const GUARDED_BY: &str = "--guarded-by";

/// Runs the command line of this process in another one and ends with it, as it did. A signal ends this one alone.
pub(super) fn guard() -> u8 {
    let arguments = env::args_os().skip(1).filter(|argument| argument != GUARDED);
    let by = format!("{GUARDED_BY}={}", std::process::id());
    let child = env::current_exe().and_then(|homing| Command::new(homing).args(arguments).arg(by).spawn());
    if let Err(error) = privileges::give_up_all() {
        eprintln!("homing: the guard keeps privileges that it does not need: {error}");
    }
    let ended = child.and_then(|mut child| child.wait());
    match ended {
        Ok(status) => status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(FAILED),
        Err(error) => fail(FAILED, &format!("cannot run homing in a process of its own: {error}")),
    }
}
