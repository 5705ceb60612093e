//! `sessions`: people at a Shiny app over four workers, [`USERS`] of them at once: straight to the workers, by homing's two paths, by
//! nginx and by HAProxy; in R by Shiny Server, too, which has one process. They arrive one after the other, load the page with
//! all its files, open their session, ask whether further connections come to its process, and then use it, all at once.

mod shiny_server;
mod user;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::ensure;
use homing_tests::instance::Homing;
use homing_tests::shiny;
use tokio::task::JoinSet;

use crate::http;
use crate::peers::{Peer, Plan, free, program};
use crate::report::{Bar, Case, Rounds};
use crate::worker::raise_descriptors;
use shiny_server::ShinyServer;
use user::{Seen, Speech, User};

/// Who has a session at the same time.
const USERS: u32 = 200;
/// From one arrival to the next: the workers have time to spare, as on an ordinary day.
const ARRIVAL: Duration = Duration::from_millis(40);

/// A way to the workers.
struct Way {
    name: &'static str,
    /// One, or all workers, and each client has its own.
    targets: Vec<SocketAddr>,
    /// Users have one address, and keep cookies; otherwise each has an address.
    cookies: bool,
    speech: Speech,
}

impl Way {
    fn to(name: &'static str, target: SocketAddr, cookies: bool) -> Self {
        Self { name, targets: vec![target], cookies, speech: Speech::Plain }
    }
}

/// Another proxy in front of the same workers.
struct Proxy {
    name: &'static str,
    cookies: bool,
    peer: Peer,
}

impl Proxy {
    fn way(&self) -> Way {
        Way::to(self.name, self.peer.address, self.cookies)
    }
}

/// What the users of one round saw.
struct Sample {
    page_ms: [f64; 2],
    session_ms: [f64; 2],
    trip_ms: [f64; 2],
    kept_percent: f64,
}

pub fn run(rounds: Rounds) -> anyhow::Result<Vec<Case>> {
    raise_descriptors();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(measure(rounds))
}

async fn measure(rounds: Rounds) -> anyhow::Result<Vec<Case>> {
    let mut cases = python(rounds).await?;
    cases.append(&mut r(rounds).await?);
    Ok(cases)
}

/// Shiny for Python.
async fn python(rounds: Rounds) -> anyhow::Result<Vec<Case>> {
    let (homing, target) = shiny::start("ip", shiny::ON_PORTS);
    let by_cookie = by_cookie(&homing)?;
    let proxies = peers(&homing.worker_addresses(0))?;
    let mut ways = ways(&homing, target, &by_cookie);
    ways.extend(proxies.iter().map(Proxy::way));
    compare("", &ways, rounds).await
}

/// Shiny in R, also beside the server that its users know.
async fn r(rounds: Rounds) -> anyhow::Result<Vec<Case>> {
    let (homing, target) = shiny::start_r("ip");
    let by_cookie = by_cookie(&homing)?;
    let proxies = peers(&homing.worker_addresses(0))?;
    let mut ways = ways(&homing, target, &by_cookie);
    ways.extend(proxies.iter().map(Proxy::way));
    let server = ShinyServer::start();
    match &server {
        Ok(server) => {
            let way = Way::to("Shiny Server, one process", server.peer.address, true);
            ways.push(Way { speech: Speech::SockJs, ..way });
        }
        Err(error) => eprintln!("not installed, so not measured: Shiny Server: {error:#}"),
    }
    compare("R, ", &ways, rounds).await
}

/// Another homing with the HTTP path alone, in front of the workers of this one.
fn by_cookie(homing: &Homing) -> anyhow::Result<Peer> {
    ensure!(homing.status()["kernel_path"]["active"] == true, "no kernel path, nothing to measure");
    http::peers::homing(&homing.worker_addresses(0))
}

/// To the workers, the baseline, and by both of homing's.
fn ways(homing: &Homing, target: SocketAddr, by_cookie: &Peer) -> Vec<Way> {
    let direct = Way { targets: homing.worker_addresses(0), ..Way::to("direct", target, false) };
    vec![direct, Way::to("kernel path", target, false), Way::to("HTTP path", by_cookie.address, true)]
}

/// All ways in turn, beside the first.
async fn compare(prefix: &str, ways: &[Way], rounds: Rounds) -> anyhow::Result<Vec<Case>> {
    // What is made once is made now: the modules of the app, and what they keep.
    for way in ways {
        visit(way, USERS / 10, Duration::ZERO).await?;
    }
    let mut samples: Vec<Vec<Sample>> = ways.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds.count {
        // Interleaved: whatever else the machine does, it does to all of them.
        for (way, samples) in ways.iter().zip(&mut samples) {
            samples.push(visit(way, USERS, rounds.length).await?);
        }
    }
    let values = |number: usize, of: &dyn Fn(&Sample) -> f64| samples[number].iter().map(of).collect::<Vec<_>>();
    let mut cases = Vec::new();
    for (number, way) in ways.iter().enumerate().skip(1) {
        let mut beside = |what: &str, unit, of: &dyn Fn(&Sample) -> f64, bar| {
            let name = format!("{prefix}{}, {what}", way.name);
            let case = Case::new(&name, &values(number, of), unit, "direct to the workers", &values(0, of));
            cases.push(case.with_bar(bar));
        };
        for (at, part) in ["p50", "p99"].into_iter().enumerate() {
            beside(&format!("page load {part}"), "ms", &|sample| sample.page_ms[at], None);
            beside(&format!("session start {part}"), "ms", &|sample| sample.session_ms[at], None);
            beside(&format!("round trip {part}"), "ms", &|sample| sample.trip_ms[at], None);
        }
        let bar = way.name.ends_with("path").then_some(Bar::RatioAtLeast(1.0));
        beside("sessions kept", "%", &|sample| sample.kept_percent, bar);
    }
    Ok(cases)
}

/// nginx by address and HAProxy by cookie, those that are installed.
fn peers(workers: &[SocketAddr]) -> anyhow::Result<Vec<Proxy>> {
    let plans: [(_, _, _, Files, _, &[&str]); 2] = [
        ("nginx", "nginx, by address", false, nginx, "nginx.conf", &["-p", ".", "-e", "error.log", "-c", "nginx.conf"]),
        ("haproxy", "HAProxy, by cookie", true, haproxy, "haproxy.cfg", &["-db", "-f", "haproxy.cfg"]),
    ];
    let mut peers = Vec::new();
    for (binary, name, cookies, files, file, arguments) in plans {
        let Some(program) = program(binary) else {
            eprintln!("not installed, so not measured: {name}");
            continue;
        };
        let address = free()?;
        let file = (file, files(address, workers));
        let peer = Peer::start(Plan { name, program: &program, arguments, file, address, namespace: None })?;
        peers.push(Proxy { name, cookies, peer });
    }
    Ok(peers)
}

/// What is in a configuration: where to listen, and the workers.
type Files = fn(SocketAddr, &[SocketAddr]) -> String;

fn nginx(listen: SocketAddr, workers: &[SocketAddr]) -> String {
    let servers: String = workers.iter().map(|worker| format!("server {worker}; ")).collect();
    format!(
        "daemon off; master_process off; worker_processes 1; pid nginx.pid;\n\
         events {{ worker_connections 9000; }}\n\
         http {{ access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; \
         uwsgi_temp_path u; scgi_temp_path s;\n\
         map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}\n\
         upstream app {{ hash $remote_addr consistent; {servers}keepalive 64; }}\n\
         server {{ listen {listen} backlog=4096; location / {{ proxy_pass http://app; proxy_http_version 1.1;\n\
         proxy_set_header Host $http_host; proxy_set_header Upgrade $http_upgrade; \
         proxy_set_header Connection $connection_upgrade; proxy_read_timeout 1h; }} }} }}\n"
    )
}

fn haproxy(listen: SocketAddr, workers: &[SocketAddr]) -> String {
    let servers = workers.iter().enumerate();
    let servers: String =
        servers.map(|(number, worker)| format!(" server w{number} {worker} cookie w{number}\n")).collect();
    format!(
        "global\n nbthread 1\n maxconn 9000\ndefaults\n mode http\n timeout connect 5s\n timeout client 1h\n \
         timeout server 1h\n timeout tunnel 1h\n option http-keep-alive\nfrontend in\n bind {listen}\n \
         default_backend app\nbackend app\n balance leastconn\n cookie SRV insert indirect nocache\n{servers}"
    )
}

/// One round of one way. `length`: how long they use the app once all are there.
async fn visit(way: &Way, users: u32, length: Duration) -> anyhow::Result<Sample> {
    let begin = Instant::now();
    let everybody_here = begin + ARRIVAL * users;
    let mut visits = JoinSet::new();
    for number in 0..users {
        let target = way.targets[number as usize % way.targets.len()];
        let user = User::new(target, number as u8, way.cookies, way.speech);
        visits.spawn(user.visit(begin + ARRIVAL * number, everybody_here, length));
    }
    let (mut pages, mut sessions, mut trips, mut kept) = (Vec::new(), Vec::new(), Vec::new(), 0_u32);
    while let Some(seen) = visits.join_next().await {
        let Seen { page, session, trips: mut its, lost } = seen?;
        pages.extend(page);
        sessions.extend(session);
        trips.append(&mut its);
        match lost {
            None => kept += 1,
            Some(why) => eprintln!("{}: a session was lost: {why}", way.name),
        }
    }
    let kept_percent = f64::from(kept) * 100.0 / f64::from(users);
    Ok(Sample { page_ms: parts(pages), session_ms: parts(sessions), trip_ms: parts(trips), kept_percent })
}

/// The 50th and the 99th of a hundred, in milliseconds.
fn parts(mut times: Vec<Duration>) -> [f64; 2] {
    times.sort_unstable();
    [50, 99].map(|part| {
        let time = times.get(times.len().saturating_sub(1) * part / 100);
        time.map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
    })
}
