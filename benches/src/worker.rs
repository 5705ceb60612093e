//! What stands behind homing and its peers, in a process of its own: descriptors and CPU time are counted by process.

use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;
use homing_tests::network::Namespace;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::upstream;

/// A worker. Ends with this value.
pub struct Worker {
    child: Child,
    pub address: SocketAddr,
}

/// Says where it listens, and serves until nobody holds its standard input; with an address given, until it is ended.
pub fn serve(listen: Option<SocketAddr>) -> anyhow::Result<()> {
    raise_descriptors();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        println!("{}", upstream::start(listen.unwrap_or((Ipv4Addr::LOCALHOST, 0).into())).await?);
        if listen.is_some() {
            std::future::pending::<()>().await;
        }
        let end = tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
        end.await??;
        Ok(())
    })
}

impl Worker {
    pub fn start() -> anyhow::Result<Self> {
        Self::spawn(&mut Command::new(std::env::current_exe()?), &[])
    }

    /// On every address of a namespace, with one thread.
    pub fn start_in(namespace: &Namespace, listen: SocketAddr) -> anyhow::Result<Self> {
        let [nsenter, net] = namespace.wrapper();
        let mut command = Command::new(nsenter);
        command.arg(net).arg(std::env::current_exe()?).env("TOKIO_WORKER_THREADS", "1");
        Self::spawn(&mut command, &["--listen", &listen.to_string()])
    }

    fn spawn(command: &mut Command, options: &[&str]) -> anyhow::Result<Self> {
        let command = command.arg("worker").args(options).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("the benchmark cannot be run")?;
        let mut line = String::new();
        let read = child.stdout.take().context("stdout is piped").and_then(|stdout| {
            BufReader::new(stdout).read_line(&mut line)?;
            line.trim().parse().with_context(|| format!("the worker said {line:?}"))
        });
        let mut worker = Self { child, address: (Ipv4Addr::LOCALHOST, 0).into() };
        worker.address = read?;
        Ok(worker)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// As many as this process, and those that it starts, may have.
pub fn raise_descriptors() -> usize {
    let limits = getrlimit(Resource::Nofile);
    let most = limits.maximum.unwrap_or(u64::MAX);
    // Where it is refused, what there is has to do.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: Some(most) });
    getrlimit(Resource::Nofile).current.and_then(|current| usize::try_from(current).ok()).unwrap_or(usize::MAX)
}
