//! What workers listen on: unix sockets, sockets that they are passed, and listening sockets that come and go. Needs root.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use homing::demo::client::{Client, Dialect};
use homing_tests::instance::{Homing, binary, free_address, is_alive, signal, wait_for, workers};
use homing_tests::network::{client_v4, client_v6};
use homing_tests::site::{CLIENTS, Site, assert_kept, pid_of, v4, v6};
use rustix::process::Signal;
use serde_json::Value;

/// Users that are there on every Linux.
const NOBODY: (u32, &str) = (65_534, "nobody");
const DAEMON: (u32, &str) = (1, "daemon");

/// The demo app with these arguments of its worker.
fn demo_with(name: &str, listen: &str, arguments: &str, more: &str) -> String {
    format!(
        "[[app]]\nname = {name:?}\nlisten = {listen}\ncommand = [{:?}, \"demo-worker\"{arguments}]\n{more}\n\
         [app.workers]\nmin = 4\nmax = 4\n",
        binary()
    )
}

fn on_unix_sockets(more: &str) -> String {
    demo_with("demo", &format!("[\"{}\"]", v4()), ", \"--socket\", \"{socket}\"", more)
}

fn on_passed_sockets(more: &str) -> String {
    demo_with("demo", &format!("[\"{}\"]", v4()), "", &format!("pass_socket = true\naffinity = \"ip\"\n{more}"))
}

fn site(app: &str) -> Site {
    let site = Site::with(app);
    site.homing.wait_for_workers(0, 4);
    site
}

/// Where the workers' sockets are, by number.
fn sockets(homing: &Homing) -> Vec<PathBuf> {
    let addresses = workers(&homing.status(), 0).into_iter();
    addresses
        .map(|worker| {
            let address = worker["address"].as_str().expect("an address").to_owned();
            PathBuf::from(address.strip_prefix("unix:").unwrap_or_else(|| panic!("no unix socket: {address}")))
        })
        .collect()
}

fn directory(socket: &Path) -> &Path {
    socket.parent().expect("a directory of its own")
}

#[test]
fn clients_keep_their_worker_and_websockets_live_over_unix_sockets() {
    let site = site(&on_unix_sockets(""));
    let mut sessions = site.sessions();
    for session in &mut sessions {
        assert!(session.hello.forwarded && session.hello.peer.ip().is_unspecified(), "{:?}", session.hello);
        assert_kept(session);
    }
    let used: BTreeSet<u32> = sessions.iter().map(|session| session.hello.pid).collect();
    assert!(used.len() >= 3, "{CLIENTS} clients are spread over the 4 workers: {used:?}");
    let status = site.homing.status();
    assert_eq!(status["kernel_path"]["active"], true);
    assert_eq!(status["apps"][0]["path"], "http");
    assert_eq!(status["counters"]["lookup_no_socket"], 0, "the kernel knows that it has nobody to hand them to");
    let trace = site.homing.trace("demo", &client_v4(1).to_string());
    assert_eq!((&trace["path"], &trace["worker"]), (&"http".into(), &sessions[0].hello.worker.as_str().into()));
    assert!(trace["steps"].to_string().contains("listens on a unix socket"), "{trace:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn users_behind_one_address_are_told_apart_by_cookie_over_unix_sockets() {
    let target = free_address();
    let app = demo_with(
        "demo",
        &format!("[\"{target}\"]"),
        ", \"--socket\", \"{socket}\"",
        "affinity = \"cookie\"\nhealth.path = \"/health\"",
    );
    let homing = Homing::start(&app);
    homing.wait_for_workers(0, 4);
    let client = Client { target, from: None, dialect: Dialect::Demo, cookies: true };
    let clients = vec![client; CLIENTS.into()].into_iter();
    let clients = clients.map(|client| tokio::spawn(async move { client.sticky_test(|_| {}).await }));
    let mut used = BTreeSet::new();
    for test in clients.collect::<Vec<_>>() {
        let outcome = test.await.expect("no panic");
        assert!(outcome.passed(), "{outcome:?}");
        used.extend(outcome.worker);
    }
    assert_eq!(used.len(), 4);
}

/// Whether this user's HTTP is answered on the socket; if not, why.
fn reaches(user: (u32, &str), program: &Path, socket: &Path) -> Result<(), String> {
    const UNREACHABLE: i32 = 3;
    let mut command = Command::new(program);
    command.args(["status", "--control-socket"]).arg(socket).uid(user.0).gid(user.0).current_dir("/");
    let output = command.output().expect("the program can be run");
    let unreachable = output.status.code() == Some(UNREACHABLE);
    if unreachable { Err(String::from_utf8_lossy(&output.stderr).into_owned()) } else { Ok(()) }
}

#[test]
fn a_workers_socket_is_out_of_reach_of_other_users_and_goes_with_its_process() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let program = folder.path().join("homing");
    fs::copy(binary(), &program).expect("the program is copied");
    let target = free_address();
    let app = on_unix_sockets(&format!("user = \"{}\"", NOBODY.1))
        .replace(&v4().to_string(), &target.to_string())
        .replace(binary().to_str().expect("text"), program.to_str().expect("text"));
    let mut homing = Homing::configured(&[], "", &app);
    for directory in [folder.path(), homing.dir()] {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).expect("changed");
    }
    homing.start_again();
    homing.wait_for_workers(0, 4);
    let before = sockets(&homing);
    for socket in &before {
        let metadata = fs::metadata(directory(socket)).expect("it is there");
        assert_eq!((metadata.mode() & 0o7777, metadata.uid()), (0o700, NOBODY.0));
        let refused = reaches(DAEMON, &program, socket).expect_err("another user is kept out");
        assert!(refused.contains("Permission denied"), "{refused}");
        reaches(NOBODY, &program, socket).expect("its own user reaches the worker");
    }
    signal(homing.pids(0)[2], Signal::KILL);
    let status = homing.wait_until("the worker was started again", |status| {
        workers(status, 0).iter().any(|worker| worker["restarts"] == 1 && worker["state"] == "ready")
    });
    assert_ne!(workers(&status, 0)[2]["address"], format!("unix:{}", before[2].display()), "{status:#}");
    assert!(!directory(&before[2]).exists(), "the directory went with the process");
    let run_dir = homing.dir().join("run");
    assert_eq!(fs::read_dir(&run_dir).expect("readable").count(), 4);
    homing.stop_at_once();
    assert_eq!(fs::read_dir(&run_dir).expect("readable").count(), 0, "nothing is left behind");
}

#[test]
fn workers_on_unix_sockets_are_adopted_after_a_kill_and_what_dead_ones_left_is_removed() {
    let mut site = site(&on_unix_sockets(""));
    let (pids, before) = (site.homing.pids(0), sockets(&site.homing));
    let sessions: Vec<_> = (1..=CLIENTS).map(|number| site.client(client_v4(number)).open().hello).collect();
    site.homing.kill();
    signal(pids[1], Signal::KILL);
    wait_for("the worker is gone", || (!is_alive(pids[1])).then_some(()));
    site.homing.start_again();
    site.homing.wait_for_workers(0, 4);
    let after = sockets(&site.homing);
    for number in [0, 2, 3] {
        assert_eq!((site.homing.pids(0)[number], &after[number]), (pids[number], &before[number]), "adopted");
    }
    assert!(after[1] != before[1] && !directory(&before[1]).exists());
    for (number, hello) in (1..=CLIENTS).zip(&sessions).filter(|(_, hello)| hello.pid as i32 != pids[1]) {
        let answer = site.client(client_v4(number)).get(&format!("/session/{}/check", hello.session));
        assert_eq!(answer.expect("the service answers").status, 200, "client {number} kept {hello:?}");
    }
}

#[test]
fn workers_on_unix_sockets_pass_to_a_homing_that_replaces_the_running_one_with_their_open_websockets() {
    let mut site = site(&on_unix_sockets(""));
    let (pids, before) = (site.homing.pids(0), sockets(&site.homing));
    let Site { homing, network } = &mut site;
    let client = |number| homing_tests::session::Client {
        namespace: Some(&network.clients),
        from: client_v4(number),
        target: v4(),
    };
    let mut sessions: Vec<_> = (1..=CLIENTS).map(|number| client(number).open()).collect();
    let successor = homing.replace();
    sessions.iter_mut().for_each(assert_kept);
    assert_eq!((homing.pids(0), sockets(homing)), (pids, before), "adopted with their sockets");
    drop(sessions);
    assert!(homing.succeeded_by(successor).success());
    assert!(sockets(homing).iter().all(|socket| socket.exists()), "whoever is replaced takes nothing away");
}

#[test]
fn workers_that_are_passed_a_socket_have_the_kernel_path_and_are_adopted() {
    let mut site = site(&on_passed_sockets(""));
    let pids = site.homing.pids(0);
    let Site { homing, network } = &mut site;
    let open = |number| homing_tests::session::Client {
        namespace: Some(&network.clients),
        from: client_v4(number),
        target: v4(),
    };
    let mut sessions: Vec<_> = (1..=CLIENTS).map(|number| open(number).open()).collect();
    for session in &mut sessions {
        assert!(!session.hello.forwarded && session.hello.peer.ip() != IpAddr::from([127, 0, 0, 1]));
        assert_kept(session);
    }
    assert_eq!(homing.status()["counters"]["http_requests"], 0, "no request passed through homing");
    homing.kill();
    sessions.iter_mut().for_each(assert_kept);
    homing.start_again();
    homing.wait_for_workers(0, 4);
    assert_eq!(homing.pids(0), pids);
    sessions.iter_mut().for_each(assert_kept);
    // homing kept no copy: with the worker its socket is gone, and another one takes its clients at once.
    signal(pids[0], Signal::KILL);
    wait_for("the worker is gone", || (!is_alive(pids[0])).then_some(()));
    for session in sessions.iter().filter(|session| pid_of(session) == pids[0]) {
        let answer = session.check().expect("somebody answers");
        assert_eq!(answer.status, 404, "not the session's process: {answer:?}");
    }
    for session in sessions.iter_mut().filter(|session| pid_of(session) != pids[0]) {
        assert_kept(session);
    }
}

/// The Python worker with these arguments, on the service's addresses.
struct Scripted {
    site: Site,
    _folder: tempfile::TempDir,
}

impl Scripted {
    fn start(arguments: &str, more: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let script = folder.path().join("worker.py");
        fs::write(&script, include_str!("../src/worker.py")).expect("written");
        let app = format!(
            "[[app]]\nname = \"demo\"\nlisten = [\"{}\", \"{}\"]\naffinity = \"ip\"\n\
             command = [\"python3\", {script:?}, {arguments}]\nworkers = {{ min = 1, max = 1 }}\n{more}\n",
            v4(),
            v6()
        );
        Self { site: Site::with(&app), _folder: folder }
    }

    fn ready(self) -> Self {
        self.site.homing.wait_for_workers(0, 1);
        self
    }

    fn pid(&self) -> i32 {
        self.site.homing.pids(0)[0]
    }

    /// The process that answers this client, and whether it was asked on the kernel path.
    fn ask(&self, from: IpAddr) -> (i32, bool) {
        let answer = self.site.client(from).get("/").expect("the service answers");
        assert_eq!(answer.status, 200, "{answer:?}");
        let (pid, way) = answer.body.split_once(' ').expect("a process and a way");
        (pid.parse().expect("a process id"), way == "direct")
    }

    /// How often homing has found another listening socket of it.
    fn found(&self) -> u64 {
        self.site.homing.said().matches("opened its listening socket anew").count() as u64
    }

    fn counter(&self, name: &str) -> u64 {
        self.site.homing.status()["counters"][name].as_u64().expect("a counter")
    }
}

#[test]
fn a_listening_socket_that_is_opened_anew_has_the_kernel_path_again() {
    let worker = Scripted::start("\"{port}\", \"127.0.0.1\"", "").ready();
    let pid = worker.pid();
    assert_eq!(worker.ask(client_v4(1)), (pid, true));
    for round in 1..=3 {
        let established = worker.counter("established");
        signal(pid, Signal::USR1);
        let log = worker.site.homing.dir().join("log/demo-0.log");
        // What waits in the queue of a socket that is closed is reset, whoever has it.
        wait_for("it listens anew", || {
            let log = fs::read_to_string(&log).expect("readable");
            (log.lines().count() as u64 > round).then_some(())
        });
        // The first to come is answered by the HTTP path, and makes homing look.
        assert_eq!(worker.ask(client_v4(1)), (pid, false));
        assert_eq!(worker.counter("lookup_no_socket"), round);
        wait_for("the new socket is found", || (worker.found() == round).then_some(()));
        assert_eq!(worker.site.homing.trace("demo", &client_v4(1).to_string())["path"], "kernel");
        assert_eq!(worker.ask(client_v4(1)), (pid, true));
        assert!(worker.counter("established") > established, "its connections are counted again");
    }
    assert_eq!(workers(&worker.site.homing.status(), 0)[0]["restarts"], 0);
}

#[test]
fn a_socket_for_ipv6_that_is_opened_later_has_the_kernel_path_too() {
    let worker = Scripted::start("\"{port}\", \"127.0.0.1\"", "").ready();
    let pid = worker.pid();
    assert_eq!(worker.ask(client_v6(1)), (pid, false));
    signal(pid, Signal::USR2);
    wait_for("the kernel path for IPv6", || worker.ask(client_v6(1)).1.then_some(()));
    assert_eq!(worker.ask(client_v4(1)), (pid, true), "that for IPv4 has it still");
}

#[test]
fn processes_that_share_a_port_by_reuseport_are_all_on_the_kernel_path_as_they_come_and_go() {
    let worker = Scripted::start("\"{port}\", \"--group\", \"3\"", "").ready();
    let asked = |seen: &mut BTreeSet<i32>| {
        let established = worker.counter("established");
        let (pid, is_direct) = worker.ask(client_v4(1));
        seen.insert(pid);
        is_direct && worker.counter("established") == established + 1
    };
    let mut before = BTreeSet::new();
    // The kernel spreads connections over the group; those of a member that joined late are counted when it was noticed.
    wait_for("all members answer, and are counted", || {
        let is_counted = asked(&mut before);
        (is_counted && before.len() == 3).then_some(())
    });
    for &gone in &before {
        signal(gone, Signal::KILL);
        wait_for("it is gone", || (!is_alive(gone)).then_some(()));
    }
    let mut after = BTreeSet::new();
    wait_for("their successors answer", || {
        asked(&mut after);
        (after.is_disjoint(&before) && after.len() == 3).then_some(())
    });
    wait_for("twenty connections in a row are counted", || (0..20).all(|_| asked(&mut after)).then_some(()));
    assert_eq!(workers(&worker.site.homing.status(), 0)[0]["restarts"], 0);
}

#[test]
fn a_worker_may_listen_on_all_addresses_or_on_ipv6_alone() {
    for (host, from) in [("0.0.0.0", client_v4(1)), ("::", client_v6(1)), ("::1", client_v6(1))] {
        let worker = Scripted::start(&format!("\"{{port}}\", {host:?}"), "").ready();
        assert_eq!(worker.ask(from), (worker.pid(), true), "{host}");
        let other = if from.is_ipv4() { client_v6(1) } else { client_v4(1) };
        assert_eq!(worker.ask(other), (worker.pid(), false), "by the HTTP path: {host}");
        if host == "::1" {
            let pid = worker.pid();
            let mut worker = worker;
            worker.site.homing.kill();
            worker.site.homing.start_again();
            worker.site.homing.wait_for_workers(0, 1);
            assert_eq!((worker.pid(), worker.ask(other)), (pid, (pid, false)), "adopted where it is");
        }
    }
}

/// What the worker's reason is while it starts, and when it was given up.
fn reasons(worker: &Scripted, part: &str) -> String {
    let reason = |status: &Value| workers(status, 0)[0]["reason"].as_str().unwrap_or_default().to_owned();
    worker.site.homing.wait_until("the reason is told while it starts", |status| {
        workers(status, 0)[0]["state"] == "starting" && reason(status).contains(part)
    });
    let given_up = worker.site.homing.wait_until("it is given up", |status| {
        reason(status).starts_with("did not accept connections within 5 s of its start: ")
    });
    reason(&given_up)
}

#[test]
fn what_a_worker_listens_on_in_place_of_what_it_was_given_is_told() {
    let stray = free_address();
    // Longer than a busy machine takes to start it, and the pause between two looks.
    let more = "timeouts.start = \"5s\"";
    let worker = Scripted::start(&format!("\"{}\", \"127.0.0.1\"", stray.port()), more);
    let reason = reasons(&worker, &format!("listens on {stray}, was given "));
    assert!(reason.contains(&format!("listens on {stray}, was given ")), "{reason}");
    drop(worker);

    let more = format!("{more}\npass_socket = true");
    let worker = Scripted::start(&format!("\"{}\", \"127.0.0.1\"", stray.port()), &more);
    let reason = reasons(&worker, &format!("listens on {stray}"));
    assert!(reason.contains(", was given 127.0.0.1:"), "it does nothing with what it was passed: {reason}");
}
