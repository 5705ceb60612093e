//! `homing trace --live`, end to end in network namespaces: decisions of both paths as they are made. Needs root.

use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};

use aya::maps::{Array, Map, MapData};
use aya::programs::ProgramInfo;
use homing::datapath::pod::Wire;
use homing_tests::forged;
use homing_tests::instance::{Homing, binary, demo_app, is_alive, signal, wait_for};
use homing_tests::network::{Network, SERVER_V4, client_v4};
use homing_tests::session::Client;
use lb_common::tap::Taps;
use rustix::process::Signal;
use serde_json::Value;

const PORT: u16 = 8080;
const COOKIE_PORT: u16 = 8081;

struct Site {
    // In this order: homing ends before its namespace.
    homing: Homing,
    network: Network,
}

impl Site {
    /// `demo` by address, with `more` in its table, and `jar` by cookie.
    fn start(settings: &str, more: &str) -> Self {
        let network = Network::new(4);
        let wrapper = network.server.wrapper();
        let demo = demo_app("demo", &[service(PORT).into()], "127.0.0.1", 2, more);
        let jar = demo_app("jar", &[service(COOKIE_PORT).into()], "127.0.0.1", 2, "");
        let jar = jar.replace("affinity = \"ip\"", "affinity = \"cookie\"");
        let homing = Homing::start_under(&wrapper.each_ref().map(String::as_str), settings, &format!("{demo}\n{jar}"));
        homing.wait_for_workers(0, 2);
        homing.wait_for_workers(1, 2);
        Self { homing, network }
    }

    fn client(&self, number: u8, port: u16) -> Client<'_> {
        Client { namespace: Some(&self.network.clients), from: client_v4(number), target: service(port).into() }
    }

    /// Follows decisions, and goes on when homing lets it.
    fn follow(&self, arguments: &[&str]) -> Follower {
        let arguments = [&["trace"], arguments, &["--live", "--json"]].concat();
        let mut child = self.homing.ask_meanwhile(&arguments);
        let mut stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let mut first = String::new();
        stderr.read_line(&mut first).expect("it says that it listens");
        assert!(first.contains("following the decisions on"), "{first}");
        // What it says after that goes nowhere.
        drop(stderr);
        let lines: Arc<Mutex<Vec<Value>>> = Arc::default();
        let (stdout, read) = (child.stdout.take().expect("stdout is piped"), Arc::clone(&lines));
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).expect("an object a line");
                read.lock().expect("nobody panics with it").push(line);
            }
        });
        Follower { child, lines }
    }

    /// Until when the kernel's programs tell, and nobody: 0.
    fn kernel_tells_until(&self) -> u64 {
        let program = ProgramInfo::from_pin(self.homing.pin_dir().join("prog_homing_lookup")).expect("it is pinned");
        let maps = program.map_ids().expect("the kernel tells").unwrap_or_default();
        let taps = maps.into_iter().filter_map(|id| MapData::from_id(id).ok());
        let mut taps = taps.filter(|map| map.info().is_ok_and(|info| info.name_as_str() == Some("TAPS")));
        let taps = taps.next().expect("the program reads it");
        let taps: Array<_, Wire<Taps>> = Array::try_from(Map::Array(taps)).expect("its type");
        taps.get(&0, 0).expect("the one there is").0.until_ns
    }
}

fn service(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(SERVER_V4, port)
}

/// A `homing trace --live --json`.
struct Follower {
    child: Child,
    lines: Arc<Mutex<Vec<Value>>>,
}

impl Follower {
    /// All lines until now.
    fn lines(&self) -> Vec<Value> {
        self.lines.lock().expect("nobody panics with it").clone()
    }

    /// The first line of which this is so.
    fn line(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        wait_for(what, || self.lines().into_iter().find(&is_it))
    }

    fn count(&self, kind: &str) -> u64 {
        self.lines().iter().filter(|line| line["kind"] == kind).count() as u64
    }

    fn missed(&self) -> u64 {
        self.lines().iter().filter_map(|line| line["decisions"].as_u64()).sum()
    }

    fn end(&mut self) -> ExitStatus {
        wait_for("it has ended", || self.child.try_wait().expect("it can be waited for"))
    }

    fn interrupt(&mut self) -> ExitStatus {
        signal(self.child.id() as i32, Signal::INT);
        self.end()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_from(line: &Value, number: u8) -> bool {
    line["client"] == client_v4(number).to_string()
}

#[test]
fn decisions_of_both_paths_name_the_worker_that_the_client_sees() {
    let site = Site::start("", &format!("protect.deny = [\"{}\"]", client_v4(4)));
    let mut follower = site.follow(&[]);
    let by_kernel = site.client(1, PORT).open();
    let told = follower.line("the kernel's decision is told", |line| is_from(line, 1));
    assert_eq!((&told["kind"], &told["path"], &told["rule"]), (&"connection".into(), &"kernel".into(), &"ring".into()));
    assert_eq!((&told["app"], &told["worker"]), (&"demo".into(), &by_kernel.hello.worker.clone().into()), "{told}");

    let by_cookie = site.client(2, COOKIE_PORT).open();
    let told = follower.line("the HTTP path gets it", |line| is_from(line, 2) && line["kind"] == "connection");
    assert_eq!((&told["path"], &told["rule"], &told["worker"]), (&"http".into(), &"cookie".into(), &Value::Null));
    let request = follower.line("the request is told", |line| is_from(line, 2) && line["kind"] == "request");
    assert_eq!((&request["app"], &request["worker"]), (&"jar".into(), &by_cookie.hello.worker.clone().into()));
    assert_eq!((&request["rule"], &request["status"]), (&"cookie_new".into(), &101.into()), "{request}");
    assert_eq!((&request["method"], &request["target"]), (&"GET".into(), &"/websocket/".into()), "{request}");
    assert_eq!(request["port"], told["port"], "of the same connection");

    assert_eq!(site.client(3, COOKIE_PORT).get("/?secret=1").expect("an answer").status, 200);
    let request = follower.line("the next request is told", |line| is_from(line, 3) && line["kind"] == "request");
    assert_eq!(request["target"], "/", "without its query");

    knock(&site, client_v4(4));
    let told = follower.line("a refusal is told", |line| is_from(line, 4));
    assert_eq!((&told["path"], &told["rule"], &told["worker"]), (&"none".into(), &"denied".into(), &Value::Null));
    assert!(follower.interrupt().success(), "Ctrl-C is an end in order");
}

/// A client of that address that waits for no answer.
fn knock(site: &Site, from: IpAddr) {
    site.network.clients.enter(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        socket.set_nonblocking(true).expect("a flag");
        socket.bind(&SocketAddr::from((from, 0)).into()).expect("the client's address");
        let _ = socket.connect(&service(PORT).into());
    });
}

#[test]
fn each_of_two_listeners_is_told_what_it_asked_for_and_ends_when_it_has_enough() {
    let site = Site::start("", "");
    let client = client_v4(1);
    let mut one = site.follow(&["demo", &client.to_string(), "--count", "2"]);
    let jar = site.follow(&["jar"]);
    for number in [2, 1, 3, 1] {
        assert_eq!(site.client(number, PORT).get("/health").expect("an answer").status, 200);
    }
    assert!(one.end().success());
    assert_eq!(one.count("connection"), 2);
    assert!(one.lines().iter().all(|line| is_from(line, 1) && line["app"] == "demo"), "{:#?}", one.lines());
    assert_eq!(site.client(1, COOKIE_PORT).get("/health").expect("an answer").status, 200);
    jar.line("the other app's is told", |line| line["kind"] == "request");
    assert!(jar.lines().iter().all(|line| line["app"] == "jar"), "{:#?}", jar.lines());
    let timed = site.homing.ask(&["trace", "--live", "--for", "100ms"]);
    assert!(timed.status.success());
    assert!(String::from_utf8_lossy(&timed.stderr).contains("homing: 0 decisions."), "{timed:?}");
}

#[test]
fn a_flood_is_told_at_the_rate_and_the_rest_is_counted() {
    const FLOOD: u32 = 20_000;
    let site = Site::start("", "");
    site.network.server.ip(&["route", "add", "default", "via", &client_v4(1).to_string()]);
    let mut follower = site.follow(&["--rate", "10"]);
    let before = looked_up(&site);
    forged::flood(&site.network.clients, service(PORT), FLOOD);
    let seen = wait_for("every SYN was decided on", || {
        let now = looked_up(&site);
        (now >= before + u64::from(FLOOD) / 2 && looked_up(&site) == now).then_some(now - before)
    });
    wait_for("all are told or counted", || (follower.count("connection") + follower.missed() >= seen).then_some(()));
    let (told, missed) = (follower.count("connection"), follower.missed());
    assert!(told >= 10 && told <= seen / 10, "{told} told of {seen}, {missed} counted");
    let forged = |line: &Value| line["client"].as_str().is_some_and(|client| client.starts_with("172.16."));
    assert!(follower.lines().iter().filter(|line| line["kind"] == "connection").all(forged), "as they came");
    let status = site.homing.status();
    assert_eq!(status["apps"][0]["clients"], 0, "and they bind nobody");
    assert!(follower.interrupt().success());
}

/// Connections that sk_lookup has decided on.
fn looked_up(site: &Site) -> u64 {
    let counters = &site.homing.status()["counters"];
    ["lookup_ring", "lookup_bound"].iter().filter_map(|name| counters[*name].as_u64()).sum()
}

#[test]
fn a_sample_leaves_most_out_and_loses_nothing() {
    let site = Site::start("", "");
    let follower = site.follow(&["demo", "--sample", "1000000000"]);
    for _ in 0..20 {
        assert_eq!(site.client(1, PORT).get("/health").expect("an answer").status, 200);
    }
    let everything = site.follow(&["demo", "--count", "1"]);
    assert_eq!(site.client(2, PORT).get("/health").expect("an answer").status, 200);
    everything.line("who listens to everything is told", |line| line["kind"] == "connection");
    assert_eq!((follower.lines(), follower.missed()), (Vec::new(), 0));
}

#[test]
fn when_a_listener_is_killed_nothing_is_told_any_more() {
    let site = Site::start("", "");
    let mut follower = site.follow(&[]);
    assert!(site.kernel_tells_until() > 0);
    follower.child.kill().expect("it can be killed");
    follower.child.wait().expect("it was killed");
    wait_for("the kernel tells nobody", || (site.kernel_tells_until() == 0).then_some(()));
}

#[test]
fn when_homing_is_killed_the_tap_closes_by_itself() {
    let mut site = Site::start("", "");
    let mut follower = site.follow(&[]);
    site.homing.kill();
    let until = site.kernel_tells_until();
    assert!(until > 0, "the programs go on without homing");
    wait_for("its time is over", || (homing::bindings::monotonic_ns() > until).then_some(()));
    assert_eq!(site.kernel_tells_until(), until, "and nobody has given it more");
    assert!(!site.client(1, PORT).open().hello.forwarded, "clients are steered all the same");
    assert_eq!(follower.end().code(), Some(1), "it waits in vain for another homing");
}

#[test]
fn who_listens_goes_on_with_the_homing_that_takes_over() {
    let mut site = Site::start("", "");
    let mut follower = site.follow(&["demo"]);
    let successor = site.homing.replace();
    assert!(site.homing.succeeded_by(successor).success());
    let told = wait_for("the successor's decisions are told", || {
        assert_eq!(site.client(1, PORT).get("/health").expect("an answer").status, 200);
        follower.lines().pop()
    });
    assert_eq!((&told["app"], &told["rule"]), (&"demo".into(), &"ring".into()), "{told}");
    assert!(is_alive(follower.child.id() as i32));
    assert!(follower.interrupt().success());
}

#[test]
fn without_a_kernel_path_requests_and_refusals_at_the_door_are_told() {
    let site = Site::start("kernel_path = \"off\"", &format!("protect.deny = [\"{}\"]", client_v4(4)));
    let follower = site.follow(&["demo"]);
    let session = site.client(1, PORT).open();
    let request = follower.line("the request is told", |line| is_from(line, 1));
    assert_eq!((&request["kind"], &request["rule"]), (&"request".into(), &"ring".into()), "{request}");
    assert_eq!(request["worker"], session.hello.worker);
    assert!(site.client(4, PORT).get("/health").is_err());
    let refused = follower.line("the refusal is told", |line| is_from(line, 4));
    assert_eq!((&refused["path"], &refused["rule"]), (&"none".into(), &"denied".into()), "{refused}");
}

#[test]
fn what_cannot_be_followed_is_refused_in_words() {
    let site = Site::start("", "");
    let refused = |arguments: &[&str]| {
        let output = site.homing.ask(arguments);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = refused(&["trace", "dmo", "--live"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("no app is called \"dmo\""), "{said}");
    let _four: Vec<Follower> = (0..4).map(|_| site.follow(&[])).collect();
    let (code, said) = refused(&["trace", "--live"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("4 listen already"), "{said}");
    for (arguments, why) in [
        (&["trace", "demo"][..], "required arguments"),
        (&["trace", "--live", "--rate", "0"], "0 is not in 1..=10000"),
        (&["trace", "--live", "--for", "30"], "needs a unit"),
        (&["trace", "demo", "10.0.0.1", "--count", "3"], "--live"),
    ] {
        let output = Command::new(binary()).args(arguments).output().expect("homing can be run");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(why), "{arguments:?}: {said}");
    }
    let nobody = Command::new(binary()).args(["trace", "--live", "--control-socket", "/nowhere"]).output();
    assert_eq!(nobody.expect("homing can be run").status.code(), Some(3));
}
