//! `path`: one worker, reached directly, by the kernel path and by the HTTP path.

use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, anyhow, ensure};
use homing::admin::client;
use homing::admin::report::Status;

use crate::load::{Connections, requests_per_second};
use crate::report::{Case, Rounds};

/// A small answer, so that what is measured is the path.
const ROUTE: &str = "/health";

pub fn run(rounds: Rounds) -> anyhow::Result<Vec<Case>> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(measure(rounds))
}

async fn measure(rounds: Rounds) -> anyhow::Result<Vec<Case>> {
    let dir = tempfile::tempdir()?;
    let homing = Homing::start(dir.path())?;
    let status: Status = client::get(&homing.socket, "/v1/status").await?;
    ensure!(
        status.kernel_path.active,
        "no kernel path, nothing to measure: {}",
        status.kernel_path.reason.unwrap_or_default()
    );
    let worker = |app: usize| -> anyhow::Result<SocketAddr> {
        Ok(status.apps[app].workers[0].address.as_ref().context("the worker runs")?.parse()?)
    };
    let (direct, http_direct) = (worker(0)?, worker(1)?);
    let mut cases = Vec::new();
    for (name, how, unit) in
        [("keep-alive", Connections::Kept, "requests/s"), ("new connections", Connections::New, "conn/s")]
    {
        let mut values = [const { Vec::new() }; 4];
        for _ in 0..rounds.count {
            // Interleaved: whatever else the machine does, it does to all of them.
            for (values, target) in values.iter_mut().zip([direct, homing.by_address, http_direct, homing.by_cookie]) {
                values.push(requests_per_second(target, ROUTE, how, rounds.length).await?);
            }
        }
        let [direct, kernel, http_direct, http] = &values;
        cases.push(Case::new(&format!("kernel path, {name}"), kernel, unit, "direct to the worker", direct));
        cases.push(Case::new(&format!("HTTP path, {name}"), http, unit, "direct to the worker", http_direct));
    }
    Ok(cases)
}

/// A homing with one demo worker by address and one by cookie. Ends with this value.
struct Homing {
    child: Child,
    socket: PathBuf,
    by_address: SocketAddr,
    by_cookie: SocketAddr,
}

impl Homing {
    fn start(dir: &Path) -> anyhow::Result<Self> {
        let binary =
            std::env::var_os("HOMING_BIN").context("HOMING_BIN names no homing binary; use cargo xtask bench")?;
        let binary = PathBuf::from(binary);
        let [by_address, by_cookie] = [free()?, free()?];
        let socket = dir.join("control.sock");
        let app = |name: &str, listen: SocketAddr, affinity: &str| {
            format!(
                "[[app]]\nname = \"{name}\"\nlisten = [\"{listen}\"]\naffinity = \"{affinity}\"\n\
                 command = [{:?}, \"demo-worker\", \"--port\", \"{{port}}\"]\n\
                 [app.workers]\nmin = 1\nmax = 1\nmax_connections = 100000\n[app.timeouts]\ndrain = \"0s\"\n[app.health]\npath = \"{ROUTE}\"\n",
                binary.display().to_string()
            )
        };
        let config = format!(
            "[homing]\ncontrol_socket = {:?}\nstate_dir = \"state\"\nlog_dir = \"log\"\npin_dir = \"/sys/fs/bpf/homing-bench-{}\"\n{}{}",
            socket.display().to_string(),
            std::process::id(),
            app("by-address", by_address, "ip"),
            app("by-cookie", by_cookie, "cookie"),
        );
        let file = dir.join("homing.toml");
        std::fs::write(&file, config)?;
        let mut child = Command::new(&binary).args(["run", "--config"]).arg(&file).stderr(Stdio::piped()).spawn()?;
        let stderr = child.stderr.take().context("stderr is piped")?;
        let homing = Self { child, socket, by_address, by_cookie };
        let mut said = String::new();
        for line in BufReader::new(stderr).lines() {
            let line = line?;
            if line.starts_with("homing: ready") {
                homing.wait_for_workers()?;
                return Ok(homing);
            }
            said = format!("{said}{line}\n");
        }
        Err(anyhow!("homing did not start:\n{said}"))
    }

    /// A request is held until the worker is ready.
    fn wait_for_workers(&self) -> anyhow::Result<()> {
        use std::io::{Read as _, Write as _};
        for target in [self.by_address, self.by_cookie] {
            let mut stream = std::net::TcpStream::connect(target)?;
            write!(stream, "GET {ROUTE} HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            ensure!(answer.starts_with("HTTP/1.1 200"), "the first request was answered: {answer}");
        }
        Ok(())
    }
}

impl Drop for Homing {
    fn drop(&mut self) {
        let binary = std::env::var_os("HOMING_BIN").unwrap_or_default();
        // Its own end takes workers and pins along; a kill would leave both.
        let _ = Command::new(binary).args(["stop", "--now", "--control-socket"]).arg(&self.socket).output();
        let _ = self.child.wait();
    }
}

fn free() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
