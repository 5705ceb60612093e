//! The examples in config/ under a homing of the test's own.

use std::net::SocketAddr;
use std::path::Path;

use crate::instance::{Homing, free_address};

/// Where the examples have their Python environments.
const VENVS: &str = "../../../target/venv";

/// Starts `config/NAME.toml` with its four workers, on another address and with these changes.
pub fn start(name: &str, changes: &[(&str, &str)]) -> (Homing, SocketAddr) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the workspace is there");
    let listen = free_address();
    let mut config = std::fs::read_to_string(root.join(format!("config/{name}.toml"))).expect("the example is there");
    for (from, to) in changes {
        assert!(config.contains(from), "the example has changed: no {from:?} in config/{name}.toml");
        config = config.replace(from, to);
    }
    let at = config.find("0.0.0.0:").expect("the example listens");
    let port = config[at..].find('"').expect("a string ends") + at;
    config.replace_range(at..port, &listen.to_string());
    if config.contains(VENVS) {
        let venvs = std::env::var("HOMING_VENVS");
        config = config.replace(VENVS, &venvs.expect("HOMING_VENVS names their folder; use cargo xtask test --apps"));
    }
    let config = config.replace("\"apps/", &format!("\"{}/config/apps/", root.display()));
    let homing = Homing::start(&config);
    homing.wait_for_workers(0, 4);
    (homing, listen)
}
