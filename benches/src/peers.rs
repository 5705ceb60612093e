//! Other programs, run beside homing: started with a configuration of their own, looked at, and ended.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use homing_tests::network::Namespace;
use tempfile::TempDir;

/// Until a program listens, and until it has ended.
const PATIENCE: Duration = Duration::from_secs(20);

/// A program that runs. Ends with this value.
pub struct Peer {
    pub name: String,
    pub address: SocketAddr,
    child: Child,
    dir: TempDir,
}

/// What is to be started.
pub struct Plan<'a> {
    pub name: &'a str,
    pub program: &'a Path,
    pub arguments: &'a [&'a str],
    /// Its configuration: the name of the file, and what is in it.
    pub file: (&'a str, String),
    /// Where it listens.
    pub address: SocketAddr,
    /// Where it runs; `None`: here.
    pub namespace: Option<&'a Namespace>,
}

/// The binary that is measured.
pub fn homing_binary() -> anyhow::Result<PathBuf> {
    let named = std::env::var_os("HOMING_BIN").context("HOMING_BIN names no homing binary; use cargo xtask bench")?;
    Ok(PathBuf::from(named))
}

/// Where an installed program is.
pub fn program(name: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"]
        .iter()
        .map(|dir| Path::new(dir).join(name))
        .find(|path| path.exists())
}

/// An address that nobody listens on.
pub fn free() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

impl Peer {
    /// With one worker thread, whatever it is.
    pub fn start(plan: Plan<'_>) -> anyhow::Result<Self> {
        let Plan { name, program, arguments, file, address, namespace } = plan;
        let dir = tempfile::tempdir()?;
        fs::write(dir.path().join(file.0), file.1)?;
        let wrapper = namespace.map(Namespace::wrapper);
        let mut words = wrapper.iter().flatten().map(PathBuf::from).chain([program.to_owned()]);
        let mut command = Command::new(words.next().expect("at least the program"));
        command.args(words).args(arguments).current_dir(dir.path()).env("HOME", dir.path());
        command.env("TOKIO_WORKER_THREADS", "1").env("GOMAXPROCS", "1");
        let listens = || TcpStream::connect(address).is_ok();
        Self::run(name, command, dir, address, || namespace.map_or_else(listens, |namespace| namespace.enter(listens)))
    }

    /// Any command, once it `listens`. What it says goes to a file in `dir`.
    pub fn run(
        name: &str,
        mut command: Command,
        dir: TempDir,
        address: SocketAddr,
        listens: impl Fn() -> bool,
    ) -> anyhow::Result<Self> {
        let log = fs::File::create(dir.path().join("log"))?;
        command.stdout(log.try_clone()?).stderr(log).stdin(Stdio::null());
        let child = command.spawn().with_context(|| format!("{name} cannot be run"))?;
        let mut peer = Self { name: name.to_owned(), address, child, dir };
        let since = Instant::now();
        while !listens() {
            let ended = peer.child.try_wait()?;
            if ended.is_some() || since.elapsed() > PATIENCE {
                let log = fs::read_to_string(peer.dir.path().join("log")).unwrap_or_default();
                bail!("{name} does not listen:\n{log}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(peer)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// CPU time that it has used, in seconds.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        cpu_seconds(self.pid())
    }

    /// Memory of its own, in bytes.
    pub fn memory_bytes(&self) -> anyhow::Result<u64> {
        memory_bytes(self.pid())
    }
}

/// Memory of a process's own, in bytes.
pub fn memory_bytes(pid: u32) -> anyhow::Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:")).context("smaps_rollup has Rss")?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes * 1024)
}

/// CPU time that the threads of a process have used, the kernel's for them included, in seconds.
pub fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let mut nanoseconds = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end in between.
        let Ok(stat) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        nanoseconds += stat.split_whitespace().next().and_then(|time| time.parse().ok()).unwrap_or(0_u64);
    }
    Ok(nanoseconds as f64 / 1e9)
}

impl Drop for Peer {
    fn drop(&mut self) {
        // homing ends by itself in order, with no worker to wait for; the others have nothing to lose.
        let _ = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        let since = Instant::now();
        while since.elapsed() < PATIENCE {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
