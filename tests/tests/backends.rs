//! Remote backends on a switch of their own, reached by link address, answering their clients directly. Needs root.

use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};

use homing_tests::instance::{Homing, binary, wait_for, workers};
use homing_tests::network::{Lan, Namespace, SERVICE_V4, backend_v4, client_v4};
use homing_tests::session::{Client, Session};
use serde_json::Value;

const CLIENTS: u8 = 16;
const PORT: u16 = 8080;

/// A demo worker on a backend's machine, which has the service address too.
struct Backend(Child);

impl Backend {
    fn start(namespace: &Namespace, number: u8) -> Self {
        let setup = Command::new("nsenter")
            .arg(&namespace.wrapper()[1])
            .arg(binary())
            .args(["backend-setup", "l2", &SERVICE_V4.to_string(), "--apply"])
            .output()
            .expect("homing can be run");
        assert!(setup.status.success(), "{}", String::from_utf8_lossy(&setup.stderr));
        let child = Command::new("nsenter")
            .arg(&namespace.wrapper()[1])
            .arg(binary())
            .args(["demo-worker", "--port", &PORT.to_string(), "--host", "0.0.0.0"])
            .env("HOMING_WORKER", format!("host {number}"))
            .stdout(Stdio::null())
            .spawn()
            .expect("homing can be run");
        Self(child)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// homing, its backends and their clients.
struct Site {
    // In this order: processes end before their namespaces.
    homing: Homing,
    hosts: Vec<Backend>,
    lan: Lan,
}

impl Site {
    /// `more`: further lines of the app; `settings`: of `[homing]`.
    fn start(settings: &str, more: &str) -> Self {
        Self::start_on(2, settings, more)
    }

    /// Configured with the first so many of the two hosts.
    fn start_on(count: u8, settings: &str, more: &str) -> Self {
        let lan = Lan::new(CLIENTS);
        let hosts: Vec<Backend> =
            (0..).zip(&lan.backends).map(|(number, namespace)| Backend::start(namespace, number)).collect();
        let backends: Vec<String> = (0..count).map(entry).collect();
        let app = format!(
            "[[app]]\nname = \"demo\"\nlisten = [\"{SERVICE_V4}:{PORT}\"]\naffinity = \"ip\"\nbackends = [{}]\n\
             health.path = \"/health\"\n{more}\n",
            backends.join(", ")
        );
        let wrapper = lan.homing.wrapper();
        let homing = Homing::start_under(&wrapper.each_ref().map(String::as_str), settings, &app);
        let site = Self { homing, hosts, lan };
        site.homing.wait_until("the backends answer", |status| {
            let is_ready = |worker: &&Value| worker["address"].is_string() && worker["state"] == "ready";
            workers(status, 0).iter().filter(is_ready).count() >= usize::from(count)
        });
        site
    }

    fn client(&self, number: u8) -> Client<'_> {
        client(&self.lan, number)
    }
}

/// A host in the configuration.
fn entry(number: u8) -> String {
    format!("{{ address = \"{}:{PORT}\", forward = \"l2\" }}", backend_v4(number))
}

fn client(lan: &Lan, number: u8) -> Client<'_> {
    Client { namespace: Some(&lan.clients), from: client_v4(number), target: SocketAddr::from((SERVICE_V4, PORT)) }
}

fn assert_kept(session: &mut Session<'_>) {
    assert!(session.is_alive(), "the WebSocket of {:?} broke", session.hello);
    let answer = session.check().expect("the service answers");
    assert_eq!(answer.status, 200, "a new connection of {:?} reached another process: {answer:?}", session.hello);
}

/// How many of these sessions each host has.
fn spread(sessions: &[Session<'_>]) -> [usize; 2] {
    [0, 1].map(|host| sessions.iter().filter(|session| session.hello.worker == format!("host {host}")).count())
}

#[test]
fn clients_keep_their_remote_backend_and_are_answered_directly() {
    let site = Site::start("", "");
    let mut sessions: Vec<_> = (1..=CLIENTS).map(|number| site.client(number).open()).collect();
    for (number, session) in (1..).zip(&mut sessions) {
        assert_eq!(session.hello.peer.ip(), client_v4(number), "the host sees the client itself");
        assert!(!session.hello.forwarded);
        for _ in 0..5 {
            assert_kept(session);
        }
    }
    let [first, second] = spread(&sessions);
    assert!(first > 0 && second > 0 && first + second == usize::from(CLIENTS), "{first} and {second}");
    let status = site.homing.status();
    assert_eq!(status["counters"]["http_requests"], 0, "no request passed through homing");
    assert!(status["counters"]["xdp_forwarded_l2"].as_u64() > Some(500), "{status:#}");
    let trace = site.homing.trace("demo", &client_v4(1).to_string());
    assert_eq!(trace["path"], "kernel", "{trace:#}");
}

#[test]
fn a_drain_of_a_remote_backend_keeps_its_clients_and_their_open_connections() {
    let site = Site::start("", "");
    let mut residents: Vec<_> = (1..=8).map(|number| site.client(number).open()).collect();
    assert!(site.homing.ask(&["drain", "demo/0"]).status.success());
    // Named for what went wrong elsewhere: a new connection of the same client must not pull its open one along.
    residents.iter_mut().for_each(assert_kept);
    let newcomers: Vec<_> = (9..=CLIENTS).map(|number| site.client(number).open()).collect();
    assert_eq!(spread(&newcomers), [0, 8], "new clients go to the other");
    residents.iter_mut().for_each(assert_kept);
    assert!(site.homing.ask(&["undrain", "demo/0"]).status.success());
    residents.iter_mut().for_each(assert_kept);
    for mut newcomer in newcomers {
        assert_kept(&mut newcomer);
    }
}

/// Katran's client-IP mode fails here: after a change of its ring a page asset takes the client's WebSocket along.
#[test]
fn the_katran_failure_a_ring_change_then_a_new_connection_and_the_old_websocket_lives() {
    let site = Site::start("", "");
    let mut sessions: Vec<_> = (1..=CLIENTS).map(|number| site.client(number).open()).collect();
    for (command, state) in [("drain", "draining"), ("undrain", "ready"), ("drain", "draining")] {
        assert!(site.homing.ask(&[command, "demo/0"]).status.success());
        site.homing.wait_until("the ring has changed", |status| workers(status, 0)[0]["state"] == state);
        for session in &mut sessions {
            // The WebSocket has been silent since the change: nothing but the binding tells of it.
            let asset = session.check().expect("the service answers");
            assert_eq!(asset.status, 200, "the new connection reaches the session of {:?}", session.hello);
            assert!(session.is_alive(), "and the old WebSocket of {:?} lives", session.hello);
        }
    }
}

#[test]
fn weight_changed_bound_clients_and_open_connections_stay_and_new_clients_follow_the_new_shares() {
    let mut site = Site::start("", "");
    let Site { homing, lan, .. } = &mut site;
    let mut before: Vec<_> = (1..=4).map(|number| client(lan, number).open()).collect();
    homing.kill();
    let file = homing.dir().join("homing.toml");
    let text = std::fs::read_to_string(&file).expect("the configuration");
    let second = format!("address = \"{}:{PORT}\", forward = \"l2\"", backend_v4(1));
    assert!(text.contains(&second), "{text}");
    std::fs::write(&file, text.replace(&second, &format!("{second}, weight = 100"))).expect("it is written");
    homing.start_again();
    homing.wait_until("both backends answer", |status| workers(status, 0).iter().all(|w| w["state"] == "ready"));
    before.iter_mut().for_each(assert_kept);
    let after: Vec<_> = (5..=CLIENTS).map(|number| client(lan, number).open()).collect();
    let [few, many] = spread(&after);
    assert!(few <= 2 && many >= 10, "a hundredth and the rest: {few} and {many}");
    before.iter_mut().for_each(assert_kept);
}

#[test]
fn host_added_bound_clients_and_open_connections_stay_and_new_clients_get_their_share() {
    const SAMPLE: u8 = 64;
    let mut site = Site::start_on(1, "", "");
    let Site { homing, lan, .. } = &mut site;
    let mut before: Vec<_> = (1..=8).map(|number| client(lan, number).open()).collect();
    assert_eq!(spread(&before), [8, 0], "there is but one host");
    homing.kill();
    let file = homing.dir().join("homing.toml");
    let text = std::fs::read_to_string(&file).expect("the configuration");
    assert!(text.contains(&entry(0)), "{text}");
    std::fs::write(&file, text.replace(&entry(0), &[entry(0), entry(1)].join(", "))).expect("it is written");
    homing.start_again();
    homing.wait_for_workers(0, 2);
    before.iter_mut().for_each(assert_kept);
    let is_added = |number: u8| homing.trace("demo", &client_v4(number).to_string())["worker"] == "demo/1";
    let share = (100..100 + SAMPLE).filter(|&number| is_added(number)).count();
    assert!((8..=56).contains(&share), "half of the ring is the added host's: {share} of {SAMPLE}");
    let owned = (9..=CLIENTS).filter(|&number| is_added(number)).count();
    let after: Vec<_> = (9..=CLIENTS).map(|number| client(lan, number).open()).collect();
    assert_eq!(spread(&after), [8 - owned, owned], "new clients go where the ring has them");
    before.iter_mut().for_each(assert_kept);
}

/// Answers every datagram on the service's port with the host's name, for as long as the process lives.
fn answer_datagrams(namespace: &Namespace, number: usize) {
    let socket = namespace.enter(|| UdpSocket::bind((SERVICE_V4, PORT)).expect("the backend has the service address"));
    std::thread::spawn(move || {
        let mut datagram = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut datagram) {
            let _ = socket.send_to(format!("host {number}").as_bytes(), from);
        }
    });
}

#[test]
fn datagrams_of_a_client_go_where_its_connections_go() {
    let site = Site::start("", &format!("listen_udp = [\"{SERVICE_V4}:{PORT}\"]"));
    site.lan.backends.iter().enumerate().for_each(|(number, namespace)| answer_datagrams(namespace, number));
    for number in 1..=CLIENTS {
        let session = site.client(number).open();
        let socket = site.lan.clients.enter(|| {
            let socket = UdpSocket::bind((client_v4(number), 0)).expect("the client's address");
            socket.connect((SERVICE_V4, PORT)).expect("a datagram socket takes any peer");
            socket.set_read_timeout(Some(std::time::Duration::from_secs(30))).expect("a timeout");
            socket
        });
        for _ in 0..5 {
            socket.send(b"who").expect("sent");
            let mut name = [0; 64];
            let len = socket.recv(&mut name).expect("an answer");
            assert_eq!(String::from_utf8_lossy(&name[..len]), session.hello.worker);
        }
    }
}

#[test]
fn clients_of_a_host_that_falls_silent_reach_the_other_and_the_others_notice_nothing() {
    let mut site = Site::start("", "");
    let sessions: Vec<_> = (1..=CLIENTS).map(|number| client(&site.lan, number).open()).collect();
    let (lost, mut kept): (Vec<_>, Vec<_>) = sessions.into_iter().partition(|session| session.hello.worker == "host 0");
    site.hosts.remove(0);
    site.homing.wait_until("the host is given up", |status| workers(status, 0)[0]["state"] == "backoff");
    for session in lost {
        assert_eq!(session.check().expect("another host answers").status, 404);
    }
    kept.iter_mut().for_each(assert_kept);
}

#[test]
fn killing_homing_changes_nothing_for_clients_of_remote_backends() {
    let mut site = Site::start("", "");
    let Site { homing, lan, .. } = &mut site;
    let mut sessions: Vec<_> = (1..=CLIENTS).map(|number| client(lan, number).open()).collect();
    homing.kill();
    sessions.iter_mut().for_each(assert_kept);
    homing.start_again();
    sessions.iter_mut().for_each(assert_kept);
    homing.wait_until("both backends answer", |status| {
        workers(status, 0).iter().filter(|worker| worker["state"] == "ready").count() == 2
    });
    sessions.iter_mut().for_each(assert_kept);
}

#[test]
fn local_workers_and_remote_hosts_serve_behind_one_address() {
    let more = format!(
        "command = [{:?}, \"demo-worker\", \"--port\", \"{{port}}\"]\n[app.workers]\nmin = 1\nmax = 1\n",
        binary()
    );
    let site = Site::start("", &more);
    site.homing.wait_for_workers(0, 3);
    let mut sessions: Vec<_> = (1..=CLIENTS).map(|number| site.client(number).open()).collect();
    let [first, second] = spread(&sessions);
    let here = sessions.iter().filter(|session| session.hello.worker == "demo/0").count();
    assert!(first > 0 && second > 0 && here > 0, "{first}, {second} and {here} here");
    sessions.iter_mut().for_each(assert_kept);
    // The local worker's clients go on while its slots are a remote host's.
    assert!(site.homing.ask(&["drain", "demo/0"]).status.success());
    sessions.iter_mut().for_each(assert_kept);
    assert_eq!(site.homing.status()["counters"]["http_requests"], 0);
}

#[test]
fn without_the_kernel_path_the_http_path_reaches_the_same_hosts() {
    let site = Site::start("kernel_path = \"off\"", "");
    let mut sessions: Vec<_> = (1..=CLIENTS).map(|number| site.client(number).open()).collect();
    assert!(sessions.iter().all(|session| session.hello.forwarded));
    let [first, second] = spread(&sessions);
    assert!(first > 0 && second > 0, "{first} and {second}");
    sessions.iter_mut().for_each(assert_kept);
}

#[test]
fn a_connection_held_by_the_http_path_outlives_the_first_hosts_arrival() {
    let mut site = Site::start("", "");
    site.hosts.clear();
    site.homing.wait_until("both hosts are given up", |status| {
        workers(status, 0).iter().all(|worker| worker["state"] == "backoff")
    });
    let waiting = site.client(1).get("/health").expect("the HTTP path answers");
    assert_eq!(waiting.status, 503, "{waiting:?}");
    // A connection to the HTTP path, kept open while a host comes back.
    let mut kept = site.client(2).connect().expect("homing's own listener takes it");
    site.hosts.push(Backend::restart(&site.lan.backends[1], 1));
    site.homing.wait_until("a host is back", |status| workers(status, 0)[1]["state"] == "ready");
    let answer = homing_tests::session::get_on(&mut kept, "/health").expect("the connection lives");
    assert_eq!(answer.status, 200, "{answer:?}");
    drop(kept);
    wait_for("new connections go by the kernel path", || (!site.client(2).open().hello.forwarded).then_some(()));
}

impl Backend {
    /// The machine is set up already.
    fn restart(namespace: &Namespace, number: u8) -> Self {
        let undo = Command::new("nsenter")
            .arg(&namespace.wrapper()[1])
            .arg(binary())
            .args(["backend-setup", "l2", &SERVICE_V4.to_string(), "--undo", "--apply"])
            .output()
            .expect("homing can be run");
        assert!(undo.status.success(), "{}", String::from_utf8_lossy(&undo.stderr));
        Self::start(namespace, number)
    }
}
