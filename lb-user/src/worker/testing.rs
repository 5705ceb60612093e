//! Real processes for tests, none of which outlives its test.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, thread};

use tempfile::TempDir;

use super::cgroup::Group;
use super::{Entrance, Process, Signal, Spec, port, spawn};
use crate::config::Isolation;

/// Far beyond what anything here takes, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Accepts on each address given; `6` alone takes IPv6 only, `dual` both.
const LISTENER: &str = r#"
import socket, sys, threading
port = int(sys.argv[1])
sockets = []
for kind in sys.argv[2:]:
    family = socket.AF_INET if kind == "4" else socket.AF_INET6
    s = socket.socket(family, socket.SOCK_STREAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if kind == "dual" else 1)
    s.bind(({"4": "127.0.0.1", "6": "::1", "dual": "::"}[kind], port))
    s.listen()
    sockets.append(s)
threading.Event().wait()
"#;

/// A worker and a directory of its own; both go when this is dropped.
pub(crate) struct Worker {
    pub(crate) process: Arc<Process>,
    pub(crate) port: u16,
    folder: TempDir,
}

impl Worker {
    /// A shell running `script`, in which `$LISTEN KIND…` listens on the worker's port.
    pub(crate) fn sh(script: &str) -> Worker {
        Worker::sh_in(script, None)
    }

    pub(crate) fn sh_in(script: &str, group: Option<Group>) -> Worker {
        let folder = tempfile::tempdir().expect("a temporary directory");
        fs::write(folder.path().join("listener.py"), LISTENER).expect("the script is written");
        let script = script.replace("$LISTEN", "python3 listener.py {port}");
        let spec = spec(folder.path(), &["sh", "-c", &script]);
        let port = spec.entrance.address().port().expect("a port");
        let spawned = spawn(&spec, group).expect("the shell starts");
        Worker { process: Arc::new(Process::new(spawned).expect("it is watched")), port, folder }
    }

    /// What it has written so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Waits until the log has this many lines.
    pub(crate) fn log_lines(&self, count: usize) -> Vec<String> {
        eventually("lines in the log", || {
            let lines: Vec<String> = self.log().lines().map(str::to_owned).collect();
            (lines.len() >= count).then_some(lines)
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill_tree(Signal::KILL);
        // So that `Process` finds an ended process to let go of, and no test leaves a zombie.
        eventually("the end of the worker", || self.process.members().is_ok_and(|left| left.is_empty()).then_some(()));
    }
}

pub(crate) fn spec(folder: &Path, command: &[&str]) -> Spec {
    Spec {
        app: "sales".to_owned(),
        number: 2,
        command: command.iter().map(|&argument| argument.to_owned()).collect(),
        directory: folder.to_owned(),
        user: None,
        isolation: Isolation::default(),
        env: BTreeMap::new(),
        entrance: Entrance::Port(port::pick(&BTreeSet::new()).expect("a port is free")),
        log: PathBuf::from(folder).join("log"),
    }
}

/// Asks again and again until there is an answer.
pub(crate) fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "waited {PATIENCE:?} in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
