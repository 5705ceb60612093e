//! The proxies, each with one worker thread, in front of the same upstream.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// Until a proxy listens.
const START_MAX: Duration = Duration::from_secs(20);

/// A proxy that runs. Ends with this value.
pub struct Peer {
    pub name: String,
    pub address: SocketAddr,
    child: Child,
    _dir: tempfile::TempDir,
}

/// homing and those of its peers that are installed; the names of the others.
pub fn start_all(upstream: SocketAddr) -> anyhow::Result<(Vec<Peer>, Vec<&'static str>)> {
    let mut peers = vec![homing(upstream)?];
    let mut missing = Vec::new();
    let others: [(&'static str, Files, &[&str]); 3] = [
        ("nginx", nginx_files, &["-p", ".", "-e", "error.log", "-c", "nginx.conf"]),
        ("haproxy", haproxy_files, &["-db", "-f", "haproxy.cfg"]),
        ("caddy", caddy_files, &["run", "--config", "Caddyfile", "--adapter", "caddyfile"]),
    ];
    for (name, files, arguments) in others {
        match program(name) {
            Some(program) => peers.push(start(name, &program, upstream, files, arguments)?),
            None => missing.push(name),
        }
    }
    Ok((peers, missing))
}

/// homing alone.
pub fn homing(upstream: SocketAddr) -> anyhow::Result<Peer> {
    let homing = std::env::var_os("HOMING_BIN").context("HOMING_BIN names no homing binary; use cargo xtask bench")?;
    start("homing", Path::new(&homing), upstream, homing_files, &["run", "--config", "homing.toml"])
}

fn program(name: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"]
        .iter()
        .map(|dir| Path::new(dir).join(name))
        .find(|path| path.exists())
}

/// Writes a configuration into a directory.
type Files = fn(&Path, SocketAddr, SocketAddr) -> std::io::Result<()>;

fn start(name: &str, program: &Path, upstream: SocketAddr, files: Files, arguments: &[&str]) -> anyhow::Result<Peer> {
    let dir = tempfile::tempdir()?;
    let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    files(dir.path(), address, upstream)?;
    let log = fs::File::create(dir.path().join("log"))?;
    let child = Command::new(program)
        .args(arguments)
        .current_dir(dir.path())
        .env("TOKIO_WORKER_THREADS", "1")
        .env("GOMAXPROCS", "1")
        .env("HOME", dir.path())
        .stdout(log.try_clone()?)
        .stderr(log)
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("{} cannot be run", program.display()))?;
    let mut peer = Peer { name: name.to_owned(), address, child, _dir: dir };
    let since = Instant::now();
    while TcpStream::connect(address).is_err() {
        let ended = peer.child.try_wait()?;
        if ended.is_some() || since.elapsed() > START_MAX {
            let log = fs::read_to_string(peer._dir.path().join("log")).unwrap_or_default();
            bail!("{name} does not listen:\n{log}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(peer)
}

impl Peer {
    /// CPU time that it has used, in seconds.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let mut nanoseconds = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            // A thread may end in between.
            let Ok(stat) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
            nanoseconds += stat.split_whitespace().next().and_then(|time| time.parse().ok()).unwrap_or(0_u64);
        }
        Ok(nanoseconds as f64 / 1e9)
    }

    /// Memory of its own, in bytes.
    pub fn memory_bytes(&self) -> anyhow::Result<u64> {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.id()))?;
        let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:")).context("smaps_rollup has Rss")?;
        let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kilobytes * 1024)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // homing ends by itself in order, with no worker to wait for; the others have nothing to lose.
        let _ = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        let since = Instant::now();
        while since.elapsed() < START_MAX {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn homing_files(dir: &Path, listen: SocketAddr, upstream: SocketAddr) -> std::io::Result<()> {
    let config = format!(
        "[homing]\ncontrol_socket = \"control.sock\"\nstate_dir = \"state\"\nlog_dir = \"logs\"\nrun_dir = \"run\"\n\
         kernel_path = \"off\"\n[[app]]\nname = \"bench\"\nlisten = [\"{listen}\"]\naffinity = \"cookie\"\n\
         backends = [{{ address = \"{upstream}\", forward = \"http\" }}]\n\
         workers = {{ max_connections = 100000 }}\ntimeouts = {{ drain = \"0s\" }}\n"
    );
    fs::write(dir.join("homing.toml"), config)
}

fn nginx_files(dir: &Path, listen: SocketAddr, upstream: SocketAddr) -> std::io::Result<()> {
    let config = format!(
        "daemon off; master_process off; worker_processes 1; pid nginx.pid; \n\
         events {{ worker_connections 9000; }}\n\
         http {{ access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; \
         uwsgi_temp_path u; scgi_temp_path s; keepalive_requests 1000000000;\n\
         map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}\n\
         upstream app {{ server {upstream}; keepalive 64; keepalive_requests 1000000000; }}\n\
         server {{ listen {listen} backlog=4096; location / {{ proxy_pass http://app; proxy_http_version 1.1;\n\
         proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr; \
         proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Forwarded-Host $host; \
         proxy_set_header X-Request-Id $request_id;\n\
         proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade; \
         proxy_read_timeout 1h; }} }} }}\n"
    );
    fs::write(dir.join("nginx.conf"), config)
}

fn haproxy_files(dir: &Path, listen: SocketAddr, upstream: SocketAddr) -> std::io::Result<()> {
    let config = format!(
        "global\n nbthread 1\n maxconn 9000\ndefaults\n mode http\n timeout connect 5s\n timeout client 1h\n \
         timeout server 1h\n timeout tunnel 1h\n option http-keep-alive\n option forwardfor\n http-reuse always\n\
         frontend in\n bind {listen}\n default_backend app\nbackend app\n cookie SRV insert indirect nocache\n \
         http-request set-header X-Forwarded-Proto http\n http-request set-header X-Forwarded-Host %[req.hdr(host)]\n \
         server w {upstream} cookie w pool-max-conn 64\n"
    );
    fs::write(dir.join("haproxy.cfg"), config)
}

fn caddy_files(dir: &Path, listen: SocketAddr, upstream: SocketAddr) -> std::io::Result<()> {
    let config = format!(
        "{{\n admin off\n auto_https off\n}}\nhttp://{listen} {{\n bind {}\n reverse_proxy {upstream} {{\n  \
         lb_policy cookie\n  transport http {{\n   keepalive_idle_conns_per_host 64\n  }}\n }}\n}}\n",
        listen.ip()
    );
    fs::write(dir.join("Caddyfile"), config)
}
