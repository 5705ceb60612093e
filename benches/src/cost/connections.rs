//! Connections with one request and one answer, from the client's `connect` to its `close`: the instructions of client, kernel,
//! worker and whoever stands between, one connection after the other.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use socket2::{Domain, Socket, Type};

use super::balancer::Balancer;
use super::lab::{self, End, FIRST_CLIENT, Lab, ROUTER, SERVICE, router};
use super::say;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: homing.example\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Clients, each with an address of its own: a connection takes a hundred times as long as a packet.
const CLIENTS: u32 = 250;
/// Of them all, one after the other; the middle one counts. Odd.
const ROUNDS: usize = 7;
/// After this nothing is left of connections that have ended: the kernel remembers them for 60 s (Linux: include/net/tcp.h,
/// TCP_TIMEWAIT_LEN). Whoever was measured later would find more of them in the kernel's tables, up to the number at which it
/// remembers none. An idle guest's clock leaps, so that it takes no time.
const FORGOTTEN: Duration = Duration::from_secs(70);
/// Where clients connect to who stands before the worker.
const PORT: u16 = 9_101;

/// The worker: answers each connection's request, and waits for the client to close.
pub fn serve(port: u16) -> anyhow::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    let mut request = [0; REQUEST.len()];
    for stream in listener.incoming() {
        let mut stream = stream?;
        // A probe for readiness sends nothing.
        if stream.read_exact(&mut request).is_ok() {
            stream.write_all(ANSWER)?;
            let _ = stream.read(&mut request);
        }
    }
    Ok(())
}

pub fn measure(lab: &Lab) -> anyhow::Result<()> {
    drop(through_homing("lo", "connection, homing kernel path without XDP")?);
    let balancer = through_homing("r0", "connection, homing kernel path")?;
    // The others stand before the very process that homing started, confined as homing has it, when nothing else is left of
    // homing: what the kernel takes to account for its memory is no balancer's.
    let worker = balancer.abandon()?;
    measured("connection, direct", worker)?;
    // On this cable a packet is made anew for any XDP program, which no network card's driver has to.
    let pass = lab.xdp_at(End::Routers, "floor_pass")?;
    measured("connection, direct, XDP that passes all", worker)?;
    drop(pass);

    router("nft add table ip cost")?;
    router("nft add chain ip cost pre { type nat hook prerouting priority -100 ; }")?;
    router(&format!("nft add rule ip cost pre tcp dport {PORT} redirect to :{worker}"))?;
    measured("connection, nftables DNAT", PORT)?;
    router("nft delete table ip cost")?;

    router(&format!("ipvsadm -A -t {SERVICE}:{PORT} -s rr"))?;
    router(&format!("ipvsadm -a -t {SERVICE}:{PORT} -r {SERVICE}:{worker} -m"))?;
    measured("connection, IPVS NAT", PORT)?;
    router("ipvsadm -C")?;
    proxies(worker)
}

/// By way of a homing with XDP on this interface alone, which is still there afterwards.
fn through_homing(interface: &str, name: &str) -> anyhow::Result<Balancer> {
    let balancer = Balancer::serving(PORT, interface)?;
    let still = balancer.pause();
    measured(name, PORT)?;
    drop(still);
    let counters = &balancer.status()?["counters"];
    ensure!(
        counters["lookup_ring"].as_u64() >= Some((1 + ROUNDS as u64) * u64::from(CLIENTS))
            && counters["http_requests"] == 0,
        "{name}: not all were the kernel path's: {counters:#}"
    );
    Ok(balancer)
}

/// TCP by way of a process, one thread each.
fn proxies(worker: u16) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let haproxy = format!(
        "global\n nbthread 1\ndefaults\n mode tcp\n timeout connect 50s\n timeout client 50s\n timeout server 50s\n\
         listen l\n bind {SERVICE}:{PORT}\n server w {SERVICE}:{worker}\n"
    );
    let modules = "/usr/lib/nginx/modules";
    let nginx = format!(
        "load_module {modules}/ngx_stream_module.so;\nuser root;\ndaemon off;\nmaster_process off;\npid {0}/pid;\n\
         error_log stderr;\nevents {{}}\nstream {{ server {{ listen {SERVICE}:{PORT}; proxy_pass {SERVICE}:{worker}; }} }}\n",
        dir.path().display()
    );
    for (name, file, text, words) in [
        ("connection, HAProxy mode tcp", "haproxy.cfg", haproxy, vec!["haproxy", "-q", "-f"]),
        ("connection, nginx stream", "nginx.conf", nginx, vec!["nginx", "-e", "stderr", "-c"]),
    ] {
        let file = dir.path().join(file);
        std::fs::write(&file, text)?;
        let file = file.to_str().context("a path of text")?;
        let proxy = Running::start(&[words, vec![file]].concat())?;
        listens(PORT).with_context(|| name.to_owned())?;
        measured(name, PORT)?;
        drop(proxy);
    }
    Ok(())
}

/// Waits until somebody takes connections there.
fn listens(port: u16) -> anyhow::Result<()> {
    lab::enter(ROUTER, || {
        for _ in 0..200 {
            if TcpStream::connect((SERVICE, port)).is_ok() {
                return Ok(());
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        anyhow::bail!("nobody listens on port {port}")
    })
}

/// Each client once, so that everybody knows them, and then once more in each of [`ROUNDS`].
fn measured(name: &str, port: u16) -> anyhow::Result<()> {
    connect_all(port).with_context(|| name.to_owned())?;
    let mut rounds = [Duration::ZERO; ROUNDS];
    for took in &mut rounds {
        std::thread::sleep(FORGOTTEN);
        let start = Instant::now();
        connect_all(port)?;
        *took = start.elapsed();
    }
    rounds.sort_unstable();
    say(name, rounds[ROUNDS / 2].as_nanos() as f64 / f64::from(CLIENTS));
    Ok(())
}

fn connect_all(port: u16) -> anyhow::Result<()> {
    let target = SocketAddr::from((SERVICE, port)).into();
    let mut answer = [0; ANSWER.len()];
    for client in 0..CLIENTS {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        let from = Ipv4Addr::from(u32::from(FIRST_CLIENT) + client);
        socket.bind(&SocketAddr::V4(SocketAddrV4::new(from, 0)).into())?;
        socket.connect(&target)?;
        let mut stream = TcpStream::from(socket);
        stream.write_all(REQUEST)?;
        stream.read_exact(&mut answer)?;
        ensure!(answer == ANSWER, "another answer than the worker's");
        drop(stream);
    }
    Ok(())
}

/// A program on the balancer's machine, ended with this value.
struct Running(Child);

impl Running {
    fn start(words: &[&str]) -> anyhow::Result<Self> {
        let child = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{ROUTER}"))
            .args(words)
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| words.join(" "))?;
        Ok(Self(child))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
