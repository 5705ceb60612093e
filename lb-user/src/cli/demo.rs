//! `homing demo`: the whole of homing on a small app that is built in, with clients and a live picture.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use tokio::sync::{mpsc, oneshot};

use super::{DONE, FAILED, fail, run};
use crate::admin::client;
use crate::admin::report::Status;
use crate::config::{
    self, Affinity, App, Config, Cookie, Health, Homing, KernelPath, ListensOn, Secure, Timeouts, Workers,
};
use crate::demo::client::{Client, Dialect, Outcome};
use crate::demo::picture::{Canvas, Group, Row};

const WORKERS: u32 = 4;
/// Clients of each kind.
const CLIENTS: u8 = 8;
/// The built-in app is up in milliseconds; a machine that needs longer has another problem.
const START: Duration = Duration::from_secs(30);
const BY_ADDRESS: &str = "demo";
const BY_COOKIE: &str = "demo-cookie";

/// Options of the demo.
#[derive(clap::Args)]
pub(super) struct Options {
    /// Exit when the picture is complete: 0 only if every client kept its worker.
    #[arg(long)]
    once: bool,
    /// Port of the app whose clients are told apart by address; the one by cookie gets the next. 0 picks free ones.
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    port: u16,
}

pub(super) fn demo(options: &Options) -> u8 {
    // The picture is the output; what goes wrong is told all the same.
    run::log_to_stderr("warn");
    match super::block_on(show(options)) {
        Ok(true) => DONE,
        Ok(false) => fail(FAILED, &"a client lost its worker"),
        Err(error) => fail(FAILED, &format!("{error:#}")),
    }
}

/// Whether every client kept its worker.
async fn show(options: &Options) -> anyhow::Result<bool> {
    let dir = std::env::temp_dir().join(format!("homing-demo-{}", std::process::id()));
    let outcome = show_in(&dir, options).await;
    // Nothing is left behind: workers and pins went with homing, this is the rest.
    let _ = std::fs::remove_dir_all(&dir);
    outcome
}

async fn show_in(dir: &Path, options: &Options) -> anyhow::Result<bool> {
    let [by_address, by_cookie] = addresses(options.port)?;
    let config = config(dir, by_address, by_cookie)?;
    let socket = config.homing.control_socket.clone();
    println!("homing demo: two apps of {WORKERS} workers each, one by address, one by cookie\n");
    let (ready_sender, ready) = oneshot::channel();
    let (end_sender, mut homing) = oneshot::channel();
    // By a thread of its own, which gives up privileges and ends with the process.
    std::thread::spawn(move || {
        // Nobody waits any more once this function has returned.
        let ready = |_: &str| {
            let _ = ready_sender.send(());
        };
        let _ = end_sender.send(run::serve(None, config, false, None, ready));
    });
    tokio::select! {
        ended = &mut homing => return Err(early_end(ended)),
        _ = ready => {}
    }
    let status = tokio::time::timeout(START, all_ready(&socket)).await.context("the workers did not start")??;
    match &status.kernel_path.reason {
        None => println!("Kernel path active: connections by address never pass through homing.\n"),
        Some(reason) => println!("No kernel path, everything goes by the HTTP path: {reason}\n"),
    }
    let all_passed = tokio::select! {
        ended = &mut homing => return ended?.map(|()| true),
        passed = clients(by_address, by_cookie) => passed,
    };
    if options.once {
        client::post(&socket, "/v1/stop?now=true").await?;
    } else {
        println!("Try it:  http://{by_address}/  by address, and  http://{by_cookie}/  by cookie");
        println!("         homing status --control-socket {}", socket.display());
        println!("         Ctrl-C ends it and leaves nothing behind.");
    }
    homing.await??;
    Ok(all_passed)
}

fn early_end(ended: Result<anyhow::Result<()>, oneshot::error::RecvError>) -> anyhow::Error {
    match ended {
        Ok(Err(error)) => error,
        Ok(Ok(())) => anyhow!("homing ended before it was ready"),
        Err(error) => error.into(),
    }
}

/// The two listen addresses: the wanted ports, or free ones.
fn addresses(port: u16) -> anyhow::Result<[SocketAddr; 2]> {
    if port != 0 {
        let next = port.checked_add(1).context("--port is at most 65534: the next one is needed too")?;
        return Ok([(Ipv4Addr::LOCALHOST, port).into(), (Ipv4Addr::LOCALHOST, next).into()]);
    }
    let held = [(); 2].map(|()| std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    let [first, second] = held;
    Ok([first?.local_addr()?, second?.local_addr()?])
}

fn config(dir: &Path, by_address: SocketAddr, by_cookie: SocketAddr) -> anyhow::Result<Config> {
    let binary = std::env::current_exe().context("cannot find homing's own binary")?;
    let app = |name: &str, listen, affinity| App {
        name: name.to_owned(),
        listen_udp: Vec::new(),
        listen: vec![listen],
        route: config::Route::default(),
        shares: false,
        tls: None,
        proxy_protocol: false,
        h2c: false,
        send_proxy: None,
        affinity,
        command: ["demo-worker", "--port", "{port}"]
            .iter()
            .fold(vec![binary.display().to_string()], |command, word| [command, vec![(*word).to_owned()]].concat()),
        listens_on: ListensOn::Port,
        backends: Vec::new(),
        directory: dir.to_owned(),
        user: None,
        isolation: config::Isolation::default(),
        env: BTreeMap::new(),
        workers: Workers { min: WORKERS, max: WORKERS, max_connections: 1_000, load_factor: 1.0 },
        timeouts: Timeouts {
            start: START,
            idle: None,
            drain: Duration::from_secs(1),
            stop: Duration::from_secs(5),
            affinity: Duration::from_secs(3600),
        },
        health: Health { path: None, interval: Duration::from_secs(5) },
        protect: config::Protect::default(),
        http: config::Http::default(),
        client: config::Client { ipv4: 32, ipv6: 64, auto_promote: 16 },
        cookie: Cookie { secure: Secure::Never, ..Cookie::default() },
    };
    Ok(Config {
        homing: Homing {
            access_log: None,
            traces: None,
            control_socket: dir.join("control.sock"),
            state_dir: dir.join("state"),
            run_dir: dir.join("run"),
            log_dir: dir.join("log"),
            pin_dir: format!("/sys/fs/bpf/homing-demo-{}", std::process::id()).into(),
            cgroups: config::Cgroups::Preferred,
            kernel_path: KernelPath::Preferred,
            interfaces: Vec::new(),
            trusted_proxies: Vec::new(),
            bindings: 1_024,
            starts_at_once: WORKERS,
            output: config::file::DEFAULT_OUTPUT,
            metrics: None,
        },
        apps: vec![app(BY_ADDRESS, by_address, Affinity::Ip), app(BY_COOKIE, by_cookie, Affinity::Cookie)],
    })
}

async fn all_ready(socket: &Path) -> anyhow::Result<Status> {
    loop {
        let status: Status = client::get(socket, "/v1/status").await?;
        let is_ready = |app: &crate::admin::report::AppStatus| {
            app.workers.iter().filter(|worker| worker.state == "ready").count() == WORKERS as usize
        };
        if status.apps.iter().all(is_ready) {
            return Ok(status);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// All clients at once, with their picture.
async fn clients(by_address: SocketAddr, by_cookie: SocketAddr) -> bool {
    let (sender, mut progress) = mpsc::unbounded_channel::<(usize, usize, Outcome)>();
    let mut groups = vec![
        Group { title: format!("By address, {by_address}: {CLIENTS} clients"), rows: Vec::new() },
        Group { title: format!("By cookie, {by_cookie}: {CLIENTS} users behind one address"), rows: Vec::new() },
    ];
    for number in 0..CLIENTS {
        // All of 127.0.0.0/8 is this machine: clients 127.0.0.11, .12, …
        let address = Ipv4Addr::new(127, 0, 0, 11 + number);
        groups[0].rows.push(Row { who: address.to_string(), outcome: Outcome::default() });
        groups[1].rows.push(Row { who: format!("user {}", number + 1), outcome: Outcome::default() });
        for (group, target, from, cookies) in
            [(0, by_address, Some(IpAddr::V4(address)), false), (1, by_cookie, None, true)]
        {
            let client = Client { target, from, dialect: Dialect::Demo, cookies };
            let sender = sender.clone();
            tokio::spawn(async move {
                let report = |outcome: &Outcome| drop(sender.send((group, usize::from(number), outcome.clone())));
                client.sticky_test(report).await
            });
        }
    }
    drop(sender);
    let mut canvas = Canvas::new();
    while let Some((group, row, outcome)) = progress.recv().await {
        groups[group].rows[row].outcome = outcome;
        while let Ok((group, row, outcome)) = progress.try_recv() {
            groups[group].rows[row].outcome = outcome;
        }
        canvas.draw(&groups, false);
    }
    canvas.draw(&groups, true);
    let all: Vec<&Outcome> = groups.iter().flat_map(|group| group.rows.iter().map(|row| &row.outcome)).collect();
    let passed = all.iter().filter(|outcome| outcome.passed()).count();
    println!(
        "{passed} of {} clients kept their worker for all of their {} requests.\n",
        all.len(),
        crate::demo::client::CHECKS
    );
    passed == all.len()
}
