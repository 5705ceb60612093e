//! nginx and HAProxy, where they are installed, as anybody would set them up before an app.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::instance::{free_address, wait_for};

/// A proxy that runs; ends with this value.
pub struct Peer {
    pub address: SocketAddr,
    child: Child,
    _dir: tempfile::TempDir,
}

/// What clients speak to it.
#[derive(Clone, Copy)]
pub enum Speaks {
    Http1,
    /// Without TLS, from the first byte.
    Http2,
}

/// None where it is not installed.
pub fn nginx(speaks: Speaks, upstream: SocketAddr) -> Option<Peer> {
    let http2 = match speaks {
        Speaks::Http1 => "",
        Speaks::Http2 => " http2",
    };
    // Times, too: who waits for the rest of a broken request is not waited for.
    start("nginx", &["-p", ".", "-e", "error.log", "-c", "proxy.conf"], |listen| {
        format!(
            "daemon off; master_process off; worker_processes 1; pid nginx.pid;\n\
             events {{ worker_connections 500; }}\n\
             http {{ access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f;\n\
             uwsgi_temp_path u; scgi_temp_path s; client_header_timeout 1s; client_body_timeout 1s;\n\
             map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}\n\
             server {{ listen {listen}{http2}; location / {{ proxy_pass http://{upstream}; proxy_http_version 1.1;\n\
             proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr;\n\
             proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade; }} }} }}\n"
        )
    })
}

/// None where it is not installed.
pub fn haproxy(speaks: Speaks, upstream: SocketAddr) -> Option<Peer> {
    let proto = match speaks {
        Speaks::Http1 => "",
        Speaks::Http2 => " proto h2",
    };
    start("haproxy", &["-db", "-f", "proxy.conf"], |listen| {
        format!(
            "global\n nbthread 1\n maxconn 500\ndefaults\n mode http\n timeout connect 5s\n timeout client 1s\n \
             timeout http-request 1s\n timeout server 20s\n option forwardfor\n\
             frontend in\n bind {listen}{proto}\n default_backend app\nbackend app\n server w {upstream}\n"
        )
    })
}

fn start(name: &str, arguments: &[&str], configuration: impl Fn(SocketAddr) -> String) -> Option<Peer> {
    let program = program(name)?;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let address = free_address();
    fs::write(dir.path().join("proxy.conf"), configuration(address)).expect("its configuration is written");
    let log = fs::File::create(dir.path().join("log")).expect("a log file");
    let child = Command::new(program)
        .args(arguments)
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a second handle"))
        .stderr(log)
        .spawn()
        .expect("it can be run");
    let mut peer = Peer { address, child, _dir: dir };
    wait_for("the proxy listens", || {
        let ended = peer.child.try_wait().ok().flatten();
        let log = || fs::read_to_string(peer._dir.path().join("log")).unwrap_or_default();
        assert!(ended.is_none(), "{name} ended ({ended:?}): {}", log());
        TcpStream::connect(address).ok()
    });
    Some(peer)
}

/// Where it is installed.
pub fn program(name: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"]
        .iter()
        .map(|dir| Path::new(dir).join(name))
        .find(|path| path.exists())
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
