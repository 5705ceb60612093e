//! The proxies of `http`, each with one worker thread, in front of the same upstream.

use std::fs::{self, Permissions};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use homing_tests::session::Client;

use crate::peers::{Peer, Plan, free, homing_binary, program};

/// homing and those of its peers that are installed; the names of the others.
pub fn start_all(upstream: SocketAddr) -> anyhow::Result<(Vec<Peer>, Vec<&'static str>)> {
    let mut peers = vec![homing(&[upstream])?];
    let mut missing = Vec::new();
    let others: [(_, Files, &str, &[&str]); 3] = [
        ("nginx", nginx, "nginx.conf", &["-p", ".", "-e", "error.log", "-c", "nginx.conf"]),
        ("haproxy", haproxy, "haproxy.cfg", &["-db", "-f", "haproxy.cfg"]),
        ("caddy", caddy, "Caddyfile", &["run", "--config", "Caddyfile", "--adapter", "caddyfile"]),
    ];
    for (name, files, file, arguments) in others {
        let Some(program) = program(name) else {
            missing.push(name);
            continue;
        };
        let address = free()?;
        let file = (file, files(address, upstream));
        peers.push(Peer::start(Plan { name, program: &program, arguments, file, address, namespace: None })?);
    }
    match std::env::var_os("HOMING_FAUCET").map(PathBuf::from).filter(|program| program.exists()) {
        Some(program) => peers.push(faucet(&program)?),
        None => missing.push(FAUCET),
    }
    Ok((peers, missing))
}

const FAUCET: &str = "faucet";

/// Whether it passes on any WebSocket, byte by byte. faucet ends those of Shiny's pages itself, and takes no others.
pub fn passes_websockets(peer: &Peer) -> bool {
    peer.name != FAUCET
}

/// It starts the worker that it stands before, and gives R a port: the same upstream, in a process of its own, is in R's place.
fn faucet(program: &Path) -> anyhow::Result<Peer> {
    let (dir, address) = (tempfile::tempdir()?, free()?);
    let worker = dir.path().join("Rscript");
    let bench = std::env::current_exe()?;
    let script = format!(
        "#!/bin/sh\nport=$(printf %s \"$2\" | sed -n 's/.*\"shiny.port\" = \\([0-9]*\\).*/\\1/p')\n\
         exec {bench:?} worker --listen \"127.0.0.1:$port\"\n"
    );
    fs::write(&worker, script)?;
    fs::set_permissions(&worker, Permissions::from_mode(0o755))?;
    let mut command = Command::new(program);
    command.args(["--host", &address.to_string(), "--rscript"]).arg(&worker);
    command.args(["start", "--workers", "1", "--type", "shiny", "--strategy", "cookie-hash"]);
    // It writes a line for each request otherwise.
    command.current_dir(dir.path()).env("FAUCET_LOG", "warn").env("TOKIO_WORKER_THREADS", "1");
    // It listens before its worker does, and answers then.
    let client = Client { namespace: None, from: Ipv4Addr::LOCALHOST.into(), target: address };
    Peer::run(FAUCET, command, dir, address, || client.get("/").is_ok_and(|answer| answer.status == 200))
}

/// homing alone, its HTTP path in front of these.
pub fn homing(upstreams: &[SocketAddr]) -> anyhow::Result<Peer> {
    let address = free()?;
    let arguments = &["run", "--config", "homing.toml"];
    let file = ("homing.toml", homing_file(address, upstreams));
    Peer::start(Plan { name: "homing", program: &homing_binary()?, arguments, file, address, namespace: None })
}

/// What is in a configuration: where to listen, and what is behind.
type Files = fn(SocketAddr, SocketAddr) -> String;

/// The configuration of a homing that is only a proxy.
pub fn homing_file(listen: SocketAddr, upstreams: &[SocketAddr]) -> String {
    let backend = |upstream| format!("{{ address = \"{upstream}\", forward = \"http\" }}");
    let backends: Vec<String> = upstreams.iter().map(backend).collect();
    format!(
        "[homing]\ncontrol_socket = \"control.sock\"\nstate_dir = \"state\"\nlog_dir = \"logs\"\nrun_dir = \"run\"\n\
         kernel_path = \"off\"\n[[app]]\nname = \"bench\"\nlisten = [\"{listen}\"]\naffinity = \"cookie\"\n\
         backends = [{}]\nworkers = {{ max_connections = 100000 }}\ntimeouts = {{ drain = \"0s\" }}\n",
        backends.join(", ")
    )
}

fn nginx(listen: SocketAddr, upstream: SocketAddr) -> String {
    format!(
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
    )
}

fn haproxy(listen: SocketAddr, upstream: SocketAddr) -> String {
    format!(
        "global\n nbthread 1\n maxconn 9000\ndefaults\n mode http\n timeout connect 5s\n timeout client 1h\n \
         timeout server 1h\n timeout tunnel 1h\n option http-keep-alive\n option forwardfor\n http-reuse always\n\
         frontend in\n bind {listen}\n default_backend app\nbackend app\n cookie SRV insert indirect nocache\n \
         http-request set-header X-Forwarded-Proto http\n http-request set-header X-Forwarded-Host %[req.hdr(host)]\n \
         server w {upstream} cookie w pool-max-conn 64\n"
    )
}

fn caddy(listen: SocketAddr, upstream: SocketAddr) -> String {
    format!(
        "{{\n admin off\n auto_https off\n}}\nhttp://{listen} {{\n bind {}\n reverse_proxy {upstream} {{\n  \
         lb_policy cookie\n  transport http {{\n   keepalive_idle_conns_per_host 64\n  }}\n }}\n}}\n",
        listen.ip()
    )
}
