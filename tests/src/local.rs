//! A homing of the test's own, on this machine's loopback.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longer than anything here takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// The binary under test.
pub fn binary() -> PathBuf {
    let named = std::env::var_os("HOMING_BIN").expect("HOMING_BIN names the homing binary; use cargo xtask test");
    PathBuf::from(named)
}

/// An address that nobody listens on.
pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a loopback port")
}

/// A running homing. Dropping it ends it, its workers and its pins.
pub struct Homing {
    child: Child,
    dir: tempfile::TempDir,
    pin_dir: String,
}

impl Homing {
    /// Starts it on `apps`, the `[[app]]` tables of a configuration.
    pub fn start(apps: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::tempdir().expect("a temporary directory");
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let pin_dir = format!("/sys/fs/bpf/homing-test-{}-{number}", std::process::id());
        let config = format!(
            "[homing]\ncontrol_socket = \"control.sock\"\nstate_dir = \"state\"\nlog_dir = \"log\"\npin_dir = \"{pin_dir}\"\n{apps}"
        );
        let file = dir.path().join("homing.toml");
        std::fs::write(&file, config).expect("the configuration is written");
        let mut child = Command::new(binary())
            .args(["run", "--config"])
            .arg(&file)
            .stderr(Stdio::piped())
            .spawn()
            .expect("homing can be run");
        let mut stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let mut homing = Self { child, dir, pin_dir };
        let mut said = String::new();
        while !said.lines().any(|line| line.starts_with("homing: ready")) {
            let read = stderr.read_line(&mut said).expect("homing writes text");
            assert!(read > 0, "homing ended ({:?}) before it was ready:\n{said}", homing.child.wait());
        }
        // Whatever it says later must not fill the pipe.
        std::thread::spawn(move || stderr.read_to_end(&mut Vec::new()));
        homing
    }

    pub fn status(&self) -> Value {
        let output = self.ask(&["status", "--json"]);
        assert!(output.status.success(), "status: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("status --json prints JSON")
    }

    /// Waits until the status is as described.
    pub fn wait_until(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let status = self.status();
            if is_so(&status) {
                return status;
            }
            assert!(start.elapsed() < DEADLINE, "not so after {} s: {what}; status: {status:#}", DEADLINE.as_secs());
            std::thread::yield_now();
        }
    }

    /// The workers' own addresses, by number.
    pub fn worker_addresses(&self, app: usize) -> Vec<SocketAddr> {
        let status = self.status();
        let workers = status["apps"][app]["workers"].as_array().expect("workers").clone();
        workers.iter().filter_map(|worker| worker["address"].as_str()?.parse().ok()).collect()
    }

    fn ask(&self, arguments: &[&str]) -> std::process::Output {
        Command::new(binary())
            .args(arguments)
            .arg("--control-socket")
            .arg(self.dir.path().join("control.sock"))
            .output()
            .expect("homing can be run")
    }
}

impl Drop for Homing {
    fn drop(&mut self) {
        self.ask(&["stop", "--now"]);
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = Command::new(binary()).args(["detach", "--pin-dir", &self.pin_dir]).output();
    }
}
