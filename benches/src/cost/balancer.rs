//! A homing on the balancer's machine, as users start it.

use std::fmt::Write as _;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::lab::{HOSTS, ROUTER, SERVICE};

/// Longer than anything takes there: seconds of a clock that counts instructions.
const PATIENCE: Duration = Duration::from_secs(60);

/// From this homing derives which slot a client falls into, and so how many of the clients are in one that has changed hands.
const KEY: [u8; 32] = [7; 32];

const PIN_DIR: &str = "/sys/fs/bpf/homing-cost";

/// Ended with this value, with its pinned programs.
pub struct Balancer {
    child: Child,
    dir: tempfile::TempDir,
    /// Where homing asks whether hosts are there.
    hosts: Vec<TcpListener>,
}

impl Balancer {
    /// With a service for each of these ways to forward, on its port, over all hosts. These come one after the other: by whom a
    /// slot has changed hands depends on the order.
    pub fn forwarding(ways: &[(&str, u16)]) -> anyhow::Result<Self> {
        let mut apps = String::new();
        for (way, port) in ways {
            let hosts: Vec<String> =
                HOSTS.iter().map(|host| format!("{{ address = \"{host}:{port}\", forward = \"{way}\" }}")).collect();
            write!(
                apps,
                "[[app]]\nname = \"{way}\"\naffinity = \"ip\"\nlisten = [\"{SERVICE}:{port}\"]\n\
                 listen_udp = [\"{SERVICE}:{port}\"]\nbackends = [{}]\n",
                hosts.join(", ")
            )?;
        }
        let mut balancer = Self::start("r0", &apps)?;
        for (ready, host) in (1..).zip(HOSTS) {
            for (_, port) in ways {
                balancer.hosts.push(TcpListener::bind((host, *port))?);
            }
            balancer.wait_for(ready)?;
        }
        Ok(balancer)
    }

    /// With one worker, this program's own, that is reached at `port`, and XDP on this interface.
    pub fn serving(port: u16, interface: &str) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?;
        let app = format!(
            "[[app]]\nname = \"local\"\naffinity = \"ip\"\nlisten = [\"{SERVICE}:{port}\"]\n\
             command = [{program:?}, \"cost-worker\", \"--port\", \"{{port}}\"]\n[app.workers]\nmin = 1\nmax = 1\n"
        );
        let balancer = Self::start(interface, &app)?;
        balancer.wait_for(1)?;
        Ok(balancer)
    }

    fn start(interface: &str, apps: &str) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let config = format!(
            "[homing]\ncontrol_socket = \"control.sock\"\nstate_dir = \"state\"\nrun_dir = \"run\"\nlog_dir = \"log\"\n\
             pin_dir = {PIN_DIR:?}\nkernel_path = \"required\"\ninterfaces = [{interface:?}]\n{apps}"
        );
        let file = dir.path().join("homing.toml");
        std::fs::write(&file, config)?;
        let state = dir.path().join("state");
        DirBuilder::new().mode(0o700).create(&state)?;
        let mut key = OpenOptions::new().write(true).create_new(true).mode(0o600).open(state.join("cookie.key"))?;
        key.write_all(&KEY)?;
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{ROUTER}")).arg(homing()).args(["run", "--config"]).arg(&file);
        let mut child = command.stderr(Stdio::piped()).spawn().context("homing cannot be run")?;
        let stderr = BufReader::new(child.stderr.take().context("it is piped")?);
        let mut said = String::new();
        let mut lines = stderr.lines().map_while(Result::ok);
        let is_ready = lines.by_ref().any(|line| {
            let is_ready = line.starts_with("homing: ready");
            said.push_str(&line);
            said.push('\n');
            is_ready
        });
        // Reads on: what it says later must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        ensure!(is_ready, "homing ended before it was ready: {said}");
        Ok(Self { child, dir, hosts: Vec::new() })
    }

    /// Until so many workers or hosts of each app are ready.
    fn wait_for(&self, ready: usize) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let status = self.status()?;
            let is_ready = |worker: &&Value| worker["state"] == "ready";
            let count = |app: &Value| app["workers"].as_array().map_or(0, |all| all.iter().filter(is_ready).count());
            if status["apps"].as_array().is_some_and(|apps| apps.iter().all(|app| count(app) == ready)) {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                bail!("not {ready} of each app are ready: {status:#}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn status(&self) -> anyhow::Result<Value> {
        let output = Command::new(homing())
            .args(["status", "--json", "--control-socket"])
            .arg(self.dir.path().join("control.sock"))
            .output()?;
        ensure!(output.status.success(), "homing status: {}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Kills it, and takes its programs out of the kernel. Its one worker goes on; the port of that.
    pub fn abandon(mut self) -> anyhow::Result<u16> {
        let status = self.status()?;
        let address = status["apps"][0]["workers"][0]["address"].as_str().context("the worker's address")?;
        let address: SocketAddr = address.parse()?;
        self.child.kill()?;
        self.child.wait()?;
        let detached = Command::new(homing()).args(["detach", "--pin-dir", PIN_DIR]).output()?;
        ensure!(detached.status.success(), "homing detach: {}", String::from_utf8_lossy(&detached.stderr));
        Ok(address.port())
    }

    /// Its own process does nothing while the value lives: its programs go on, and its timers disturb no measurement.
    pub fn pause(&self) -> Paused {
        let pid = Pid::from_child(&self.child);
        let _ = kill_process(pid, Signal::STOP);
        Paused(pid)
    }
}

fn homing() -> std::ffi::OsString {
    std::env::var_os("HOMING_BIN").unwrap_or_else(|| "homing".into())
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let socket = self.dir.path().join("control.sock");
        let _ = Command::new(homing()).args(["stop", "--now", "--control-socket"]).arg(socket).output();
        let _ = self.child.wait();
    }
}

#[must_use]
pub struct Paused(Pid);

impl Drop for Paused {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}
