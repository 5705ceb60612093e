//! End to end in network namespaces, over veth with native XDP: real addresses, real processes, real ends. Needs root.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpStream};
use std::time::Duration;

use homing::demo::client::Dialect;
use homing_tests::instance::{Homing, demo_app, free_address, is_alive, signal, wait_for, workers};
use homing_tests::network::{Network, client_v4, client_v6, stranger_v4};
use homing_tests::session::Client;
use homing_tests::site::{CLIENTS, Site, assert_kept, v4, v6};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};

fn all_pass_the_sticky_test(site: &Site, client: fn(u8) -> IpAddr) {
    let outcomes = site.network.clients.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let clients = (1..=CLIENTS).map(|number| {
                let from = client(number);
                let target = if from.is_ipv4() { v4() } else { v6() };
                homing::demo::client::Client { target, from: Some(from), dialect: Dialect::Demo, cookies: false }
            });
            futures_util::future::join_all(
                clients.map(|client| async move { client.sticky_test(|_| {}).await }).collect::<Vec<_>>(),
            )
            .await
        })
    });
    let workers: BTreeSet<_> = outcomes.iter().map(|outcome| outcome.worker.clone()).collect();
    assert!(outcomes.iter().all(homing::demo::client::Outcome::passed), "{outcomes:#?}");
    assert!(workers.len() >= 3, "{CLIENTS} clients are spread over the 4 workers: {workers:?}");
}

#[test]
fn clients_over_ipv4_keep_their_worker_on_the_kernel_path() {
    let site = Site::start("127.0.0.1", "");
    all_pass_the_sticky_test(&site, client_v4);
    let status = site.homing.status();
    assert_eq!(status["counters"]["http_requests"], 0, "no request passed through homing");
    assert_eq!(status["kernel_path"]["interfaces"], serde_json::json!([{ "name": "eth0", "mode": "native" }]));
    assert!(status["counters"]["xdp_syn_worker"].as_u64() >= Some(u64::from(CLIENTS) * 102), "XDP saw every SYN");
}

#[test]
fn clients_over_ipv6_keep_their_worker_on_the_kernel_path_when_it_listens_on_both() {
    let site = Site::start("::", "");
    all_pass_the_sticky_test(&site, client_v6);
    all_pass_the_sticky_test(&site, client_v4);
    assert_eq!(site.homing.status()["counters"]["http_requests"], 0, "no request passed through homing");
}

#[test]
fn clients_over_ipv6_of_a_worker_on_ipv4_alone_keep_it_on_the_http_path() {
    let site = Site::start("127.0.0.1", "");
    all_pass_the_sticky_test(&site, client_v6);
    let status = site.homing.status();
    assert!(status["counters"]["http_requests"].as_u64() >= Some(u64::from(CLIENTS) * 102), "{status:#}");
    assert_eq!(site.homing.trace("demo", &client_v6(1).to_string())["path"], "http");
}

#[test]
fn a_worker_sees_its_clients_own_address() {
    let site = Site::start("::", "");
    for number in 1..=CLIENTS {
        for from in [client_v4(number), client_v6(number)] {
            let hello = site.client(from).open().hello;
            // A dual-stack socket writes IPv4 addresses as ::ffff:a.b.c.d.
            assert_eq!(hello.peer.ip().to_canonical(), from);
            assert!(!hello.forwarded);
        }
    }
}

#[test]
fn live_counts_are_exact_after_a_storm_of_connections() {
    const STRANGERS: u16 = 150;
    let site = Site::start("127.0.0.1", "");
    let visit = |number| homing::demo::client::Client {
        target: v4(),
        from: Some(stranger_v4(number)),
        dialect: Dialect::Demo,
        cookies: false,
    };
    let outcomes = site.network.clients.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let visits = (0..STRANGERS).map(|number| async move { visit(number).sticky_test(|_| {}).await });
        runtime.block_on(futures_util::future::join_all(visits))
    });
    assert!(outcomes.iter().all(homing::demo::client::Outcome::passed));
    site.homing.wait_until("nothing is open", |status| status["apps"][0]["connections"] == 0);
    // Not that one: its counters were read before its connections.
    let status = site.homing.status();
    let [established, closed, untold] =
        ["established", "closed", "closed_untold"].map(|name| status["counters"][name].as_u64().expect("a counter"));
    // Not every kernel tells the state hook of every end; homing finds those itself.
    assert_eq!(established, closed + untold);
    assert!(established >= u64::from(STRANGERS) * 102, "{established}");
}

#[test]
fn a_whole_ipv6_64_is_one_client() {
    let site = Site::start("::", "");
    let session = site.client(client_v6(1)).open();
    let neighbour = "fd77:0:0:1:aaaa:bbbb:cccc:dddd";
    site.network.clients.ip(&["address", "add", &format!("{neighbour}/32"), "dev", "eth0", "nodad"]);
    let other = site.client(neighbour.parse().expect("an address")).open();
    assert_eq!(session.hello.pid, other.hello.pid);
}

#[test]
fn trace_says_beforehand_where_a_client_goes() {
    let site = Site::start("127.0.0.1", "");
    for number in 1..=CLIENTS {
        let from = client_v4(number);
        let trace = site.homing.trace("demo", &from.to_string());
        assert_eq!(trace["path"], "kernel", "{trace:#}");
        assert_eq!(trace["worker"], site.client(from).open().hello.worker, "{trace:#}");
    }
}

#[test]
fn live_connections_are_counted_exactly() {
    let site = Site::start("127.0.0.1", "");
    let mut sessions = site.sessions();
    for open in [16, 9, 1, 0] {
        sessions.truncate(open);
        let is_so = |status: &serde_json::Value| status["apps"][0]["connections"] == open;
        let status = site.homing.wait_until(&format!("{open} connections are counted"), is_so);
        for worker in workers(&status, 0) {
            let here = sessions.iter().filter(|session| session.hello.worker == worker["id"]).count();
            assert_eq!(worker["connections"], here, "{worker:#}");
        }
    }
}

#[test]
fn the_first_connection_starts_a_worker_and_is_held_until_it_is_ready() {
    let app = demo_app("demo", &[v4()], "127.0.0.1", 2, "").replace("min = 2", "min = 0");
    let site = Site::with(&app);
    assert_eq!(site.homing.status()["apps"][0]["state"], "idle");
    let first = site.client(client_v4(1)).get("/health").expect("held, then answered");
    assert_eq!(first.status, 200, "{first:?}");
    let mut session = wait_for("the kernel path takes over", || {
        Some(site.client(client_v4(1)).open()).filter(|session| !session.hello.forwarded)
    });
    assert_kept(&mut session);
}

#[test]
fn stop_waits_for_open_sessions_and_leaves_nothing_behind() {
    let mut site = Site::start("127.0.0.1", "");
    let pids = site.homing.pids(0);
    let Site { homing, network } = &mut site;
    let client = Client { namespace: Some(&network.clients), from: client_v4(1), target: v4() };
    let mut session = client.open();
    let stop = homing.ask_meanwhile(&["stop"]);
    homing.wait_until("only the session's worker is left", |status| {
        let left: Vec<_> = workers(status, 0).into_iter().filter(|worker| !worker["pid"].is_null()).collect();
        left.len() == 1 && left[0]["state"] == "draining" && left[0]["pid"] == session.hello.pid
    });
    assert!(session.is_alive());
    assert!(!homing.has_ended());
    drop(session);
    assert!(homing.wait_for_end().success());
    let said = stop.wait_with_output().expect("it ends with homing");
    assert!(said.status.success());
    assert!(String::from_utf8_lossy(&said.stdout).contains("homing has stopped"), "{said:?}");
    assert_nothing_left(homing, network, &pids);
}

#[test]
fn homing_goes_on_and_stops_cleanly_when_nobody_reads_its_log_any_more() {
    let network = Network::new(1);
    let wrapper = network.server.wrapper();
    let app = demo_app("demo", &[v4()], "127.0.0.1", 2, "");
    let mut homing = Homing::configured(&wrapper.each_ref().map(String::as_str), "", &app);
    homing.start_unheard();
    homing.wait_for_workers(0, 2);
    let pids = homing.pids(0);
    signal(pids[0], Signal::KILL);
    homing.wait_until("its restart, which is logged, is done", |status| {
        workers(status, 0).iter().any(|worker| worker["restarts"] == 1 && worker["state"] == "ready")
    });
    let pids = homing.pids(0);
    homing.stop_at_once();
    assert_nothing_left(&homing, &network, &pids);
}

#[test]
fn stop_now_ends_sessions_and_leaves_nothing_behind() {
    let mut site = Site::start("127.0.0.1", "");
    let pids = site.homing.pids(0);
    let Site { homing, network } = &mut site;
    let client = Client { namespace: Some(&network.clients), from: client_v4(1), target: v4() };
    let mut session = client.open();
    homing.stop_at_once();
    assert!(!session.is_alive());
    assert_nothing_left(homing, network, &pids);
}

fn assert_nothing_left(homing: &Homing, network: &Network, pids: &[i32]) {
    assert!(pids.iter().all(|&pid| !is_alive(pid)), "a worker is left");
    assert!(!homing.pin_dir().exists(), "pins are left");
    assert!(!homing.dir().join("control.sock").exists(), "the control socket is left");
    let links = std::process::Command::new("ip").args(["-n", network.server.name(), "link"]).output().expect("ip runs");
    assert!(!String::from_utf8_lossy(&links.stdout).contains("xdp"), "XDP is left on an interface");
}

/// How often the kernel has waited in vain, in this network, for something to send an acknowledgement along with.
fn delayed_acknowledgements(network: &Network) -> u64 {
    let table = network.server.output(&["cat", "/proc/self/net/netstat"]);
    let mut lines = table.lines().filter_map(|line| line.strip_prefix("TcpExt: ")).map(|line| line.split(' '));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let (_, value) = names.zip(values).find(|(name, _)| *name == "DelayedACKs").expect("Linux counts them");
    value.parse().expect("a number")
}

#[test]
fn a_worker_that_answers_in_pieces_is_not_kept_waiting_for_acknowledgements() {
    const REQUESTS: u64 = 40;
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("apps/pieces.py");
    let site = Site::with(&format!(
        "[[app]]\nname = \"pieces\"\nlisten = [\"{}\"]\naffinity = \"cookie\"\n\
         command = [\"python3\", {script:?}, \"{{port}}\"]\nworkers = {{ min = 1, max = 1 }}\n",
        v4()
    ));
    site.homing.wait_for_workers(0, 1);
    let before = delayed_acknowledgements(&site.network);
    for _ in 0..REQUESTS {
        let answer = site.client(client_v4(1)).get("/").expect("the service answers");
        assert_eq!((answer.status, answer.body.as_str()), (200, "piece"));
    }
    let waited = delayed_acknowledgements(&site.network) - before;
    // On a busy machine one or the other is late by itself.
    assert!(waited < REQUESTS / 4, "{waited} of {REQUESTS} answers waited for an acknowledgement");
}

#[test]
fn a_request_waits_for_want_of_descriptors_and_its_worker_is_not_blamed() {
    let listen = free_address();
    let app = demo_app("demo", &[listen], "127.0.0.1", 1, "");
    let homing = Homing::start(&app.replace("affinity = \"ip\"", "affinity = \"cookie\""));
    homing.wait_for_workers(0, 1);
    let stream = TcpStream::connect(listen).expect("homing listens");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a time");
    let answer = || {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            (&stream).read_exact(&mut byte).expect("homing answers");
            head.extend(byte);
        }
        String::from_utf8(head).expect("a head")
    };
    // Accepted, before there is nothing to accept with.
    write!(&stream, "HEAD / HTTP/1.1\r\nHost: {listen}\r\n\r\n").expect("sent");
    assert!(answer().starts_with("HTTP/1.1 200"));
    let pid = Pid::from_raw(homing.pid() as i32);
    let few = Rlimit { current: Some(8), maximum: getrlimit(Resource::Nofile).maximum };
    let before = prlimit(pid, Resource::Nofile, few).expect("its limit");
    // It takes a connection to its worker of its own.
    let upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    write!(&stream, "GET /websocket/ HTTP/1.1\r\nHost: {listen}\r\n{upgrade}\r\n\r\n").expect("sent");
    wait_for("homing says so", || homing.said().contains("cannot connect to workers").then_some(()));
    prlimit(pid, Resource::Nofile, before).expect("its limit");
    let head = answer();
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    let status = homing.status();
    assert_eq!(status["counters"]["http_upstream_refused"], 0, "nobody refused anything");
}
