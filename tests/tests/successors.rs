//! One homing after another, on purpose or after an unclean end: who is inside notices nothing, and what has changed is
//! caught up on. Needs root.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Child;

use homing_tests::instance::{DEADLINE, Homing, ask, binary, count, demo_app, edit, free_address, is_alive, wait_for};
use homing_tests::network::{client_v4, stranger_v4};
use homing_tests::raw::exchange;
use homing_tests::session::Client;
use homing_tests::site::{CLIENTS, Site, assert_kept, pid_of, v4};
use serde_json::Value;

/// Clients bound to workers that the ring would not give them, and what becomes of them when a homing with this
/// `kernel_path` is replaced by one with that.
fn bound_clients_keep_their_workers_when_replaced(before: &str, after: &str, counter: &str) {
    let settings = format!("kernel_path = {before:?}");
    let app = demo_app("demo", &[v4()], "127.0.0.1", 4, "").replace("max = 4", "max = 4\nmax_connections = 1000");
    let mut site = Site::configured(&settings, &app);
    let Site { homing, network } = &mut site;
    homing.wait_for_workers(0, 4);
    ask(homing, &["drain", "demo/3"]);
    homing.wait_until("it has ended", |status| count(status, 0, "ready") == 3 && count(status, 0, "draining") == 0);
    // So many that some of them are in slots that the fourth worker gets, whatever the seed.
    let client = |number| Client { namespace: Some(&network.clients), from: stranger_v4(number), target: v4() };
    let mut sessions: Vec<_> = (0..60).map(|number| client(number).open()).collect();
    ask(homing, &["undrain", "demo/3"]);
    homing.wait_for_workers(0, 4);
    let is_bound = |homing: &Homing, number: u16| {
        let trace = homing.trace("demo", &stranger_v4(number).to_string());
        let owned = trace["steps"][1].as_str().is_some_and(|step| step.ends_with("owned by demo/3"));
        owned && trace["rule"] == "bound" && trace["worker"] != "demo/3"
    };
    let bound: Vec<u16> = (0..60).filter(|&number| is_bound(homing, number)).collect();
    assert!(!bound.is_empty());
    // Some of them are away while it happens.
    let stays = |number: u16| number.is_multiple_of(2);
    let mut away = Vec::new();
    for number in (0..60).rev().filter(|&number| !stays(number)) {
        away.push((number, sessions.remove(number.into()).hello.worker));
    }
    edit(homing, &settings, &format!("kernel_path = {after:?}"));
    let successor = homing.replace();
    homing.wait_until("it is the new one", |status| status["pid"] == successor.id());
    let counted = |homing: &Homing| homing.status()["counters"][counter].as_u64().unwrap_or(0);
    let counted_before = counted(homing);
    sessions.iter_mut().for_each(assert_kept);
    for (number, worker) in away {
        assert_eq!(client(number).open().hello.worker, worker, "client {number} comes back to its worker");
    }
    assert!(bound.iter().all(|&number| is_bound(homing, number)));
    let bound = u64::try_from(bound.len()).expect("few");
    assert!(counted(homing) >= counted_before + bound, "on the path that was meant: {:#}", homing.status()["counters"]);
    drop(sessions);
    assert!(homing.succeeded_by(successor).success());
}

#[test]
fn replaced_by_another_homing_bound_clients_keep_their_workers_on_the_kernel_path() {
    bound_clients_keep_their_workers_when_replaced("required", "preferred", "lookup_bound");
}

#[test]
fn replaced_by_another_homing_bound_clients_keep_their_workers_on_the_http_path() {
    bound_clients_keep_their_workers_when_replaced("off", "off", "http_address_bound");
}

#[test]
fn replaced_by_a_homing_with_a_kernel_path_bound_clients_keep_their_workers_there() {
    bound_clients_keep_their_workers_when_replaced("off", "required", "lookup_bound");
}

#[test]
fn a_successor_that_would_not_see_the_connections_of_the_kernel_path_is_refused() {
    let address = free_address();
    let homing =
        Homing::start_under(&[], "kernel_path = \"required\"", &demo_app("demo", &[address], "127.0.0.1", 1, ""));
    homing.wait_for_workers(0, 1);
    let mut session =
        Client { namespace: None, from: "127.0.0.1".parse().expect("an address"), target: address }.open();
    let pins = format!("pin_dir = {:?}", homing.pin_dir());
    let elsewhere = format!("pin_dir = \"{}-other\"", homing.pin_dir().display());
    for (from, to) in [("kernel_path = \"required\"", "kernel_path = \"off\""), (&*pins, &*elsewhere)] {
        edit(&homing, from, to);
        let refused = homing.replace_in_vain();
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(
            !refused.status.success() && said.contains("leave homing.kernel_path and pin_dir as they are"),
            "{said}"
        );
        edit(&homing, to, from);
    }
    assert_kept(&mut session);
}

/// A worker that only a homing forwards to that was replaced, and the homings that replaced it, before it has ended.
fn a_worker_used_elsewhere_is_not_idle(replace: impl FnOnce(&mut Homing) -> Vec<Child>) {
    let address = free_address();
    let app = demo_app("demo", &[address], "127.0.0.1", 1, "timeouts = { idle = \"1s\", drain = \"60s\" }");
    let app = app.replace("affinity = \"ip\"", "affinity = \"cookie\"").replace("min = 1", "min = 0");
    let mut homing = Homing::start(&app);
    let mut session =
        Client { namespace: None, from: "127.0.0.1".parse().expect("an address"), target: address }.open();
    let mut others = replace(&mut homing);
    homing.wait_until("it is counted", |status| status["apps"][0]["connections"] == 1);
    let before = homing.status()["uptime_seconds"].as_u64();
    // Several times the idle time.
    homing.wait_until("time passes", |status| status["uptime_seconds"].as_u64() > before.map(|s| s + 4));
    assert!(session.is_alive() && is_alive(pid_of(&session)));
    let pid = pid_of(&session);
    drop(session);
    for other in &mut others {
        wait_for("who was replaced has ended", || other.try_wait().expect("it can be waited for"));
    }
    wait_for("nobody uses it any more", || (!is_alive(pid)).then_some(()));
}

#[test]
fn a_session_that_the_replaced_homing_still_forwards_keeps_its_worker_from_ending_as_idle() {
    a_worker_used_elsewhere_is_not_idle(|homing| {
        let successor = homing.replace();
        vec![homing.now(successor)]
    });
}

#[test]
fn a_session_that_the_first_of_three_homings_still_forwards_keeps_its_worker_from_ending_as_idle() {
    a_worker_used_elsewhere_is_not_idle(|homing| {
        let second = homing.replace();
        let first = homing.now(second);
        let third = homing.replace();
        let mut second = homing.now(third);
        wait_for("the second has nothing open", || second.try_wait().expect("it can be waited for"));
        vec![first]
    });
}

#[test]
fn a_session_that_a_replaced_homing_still_forwards_is_known_also_after_a_kill_of_its_successor() {
    a_worker_used_elsewhere_is_not_idle(|homing| {
        let second = homing.replace();
        let first = homing.now(second);
        homing.kill();
        homing.start_again();
        vec![first]
    });
}

/// Which worker answers whoever has this cookie, or none, and the cookie that it is given.
fn visit(address: SocketAddr, cookie: &str) -> (String, Option<String>) {
    // No session is of this name: the answer names the worker that says so.
    let head = "GET /session/none/check HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n";
    let answer = exchange(address, format!("{head}{cookie}\r\n").as_bytes());
    let (head, worker) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer}"));
    let set = head.lines().find_map(|line| line.strip_prefix("set-cookie: "));
    (worker.to_owned(), set.map(|set| format!("Cookie: {}\r\n", set.split(';').next().unwrap_or_default())))
}

#[test]
fn a_cookie_is_good_after_a_kill_and_a_rotation_and_as_none_after_the_second() {
    let address = free_address();
    let app = demo_app("demo", &[address], "127.0.0.1", 4, "").replace("affinity = \"ip\"", "affinity = \"cookie\"");
    let mut homing = Homing::start(&app);
    homing.wait_for_workers(0, 4);
    let users: Vec<_> = (0..8).map(|_| visit(address, "")).collect();
    assert_eq!(users.iter().map(|(worker, _)| worker).collect::<BTreeSet<_>>().len(), 4, "{users:?}");
    homing.kill();
    homing.start_again();
    homing.wait_for_workers(0, 4);
    let first = |cookie: &Option<String>| cookie.clone().expect("a cookie was set");
    for (worker, cookie) in &users {
        assert_eq!(
            visit(address, &first(cookie)),
            (worker.clone(), None),
            "the processes live, and so do their cookies"
        );
    }
    ask(&homing, &["keys", "rotate"]);
    let mut renewed = Vec::new();
    for (worker, cookie) in &users {
        let (at, anew) = visit(address, &first(cookie));
        assert_eq!((&at, anew.is_some()), (worker, true), "its key is the one before");
        renewed.push((at, first(&anew)));
    }
    ask(&homing, &["keys", "rotate"]);
    for (worker, cookie) in &renewed {
        assert_eq!(&visit(address, cookie).0, worker);
    }
    let counted = |name: &str| homing.status()["counters"][name].as_u64();
    assert_eq!((counted("http_cookie_invalid"), counted("http_cookie_rebound")), (Some(0), Some(0)));
    for (_, cookie) in &users {
        assert!(visit(address, &first(cookie)).1.is_some(), "whoever has an older one is new");
    }
    assert_eq!((counted("http_cookie_invalid"), counted("http_cookie_new")), (Some(8), Some(8)));
}

#[test]
fn systemd_is_told_when_homing_is_ready_and_who_its_successor_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).expect("a socket");
    socket.set_read_timeout(Some(DEADLINE)).expect("it can be set");
    let hear = || {
        let mut news = [0; 4_096];
        let len = socket.recv(&mut news).expect("news");
        String::from_utf8_lossy(&news[..len]).into_owned()
    };
    let variable = format!("NOTIFY_SOCKET={}", path.display());
    let app = demo_app("demo", &[free_address()], "127.0.0.1", 1, "");
    let mut homing = Homing::start_under(&["env", &variable], "", &app);
    homing.wait_for_workers(0, 1);
    assert_eq!(hear(), format!("READY=1\nMAINPID={}\n", homing.status()["pid"]));
    let successor = homing.replace();
    assert_eq!(hear(), format!("READY=1\nMAINPID={}\n", successor.id()));
    assert!(homing.succeeded_by(successor).success());
}

#[test]
fn after_a_kill_workers_of_another_environment_keep_their_sessions_and_are_replaced_one_by_one() {
    let mut site = Site::start("127.0.0.1", "env = { TOKEN = \"first-secret\" }");
    let Site { homing, network } = &mut site;
    let client = |number| Client { namespace: Some(&network.clients), from: client_v4(number), target: v4() };
    let mut sessions: Vec<_> = (1..=CLIENTS).map(|number| client(number).open()).collect();
    let old: BTreeSet<i32> = homing.pids(0).into_iter().collect();
    homing.kill();
    for entry in std::fs::read_dir(homing.dir().join("state")).expect("readable").flatten() {
        let text = String::from_utf8_lossy(&std::fs::read(entry.path()).unwrap_or_default()).into_owned();
        assert!(!text.contains("first-secret"), "{:?} has it: {text}", entry.path());
    }
    edit(homing, "first-secret", "second-secret");
    homing.start_again();
    sessions.iter_mut().for_each(assert_kept);
    let replaced = |status: &Value| status["apps"][0]["restarting"] == false && count(status, 0, "ready") == 4;
    homing.wait_until("each has a successor", replaced);
    sessions.iter_mut().for_each(assert_kept);
    let newcomer = Client { from: stranger_v4(1), ..client(1) }.open();
    assert!(!old.contains(&pid_of(&newcomer)), "who is new gets a new one");
    let environment = std::fs::read(format!("/proc/{}/environ", newcomer.hello.pid)).expect("it runs");
    assert!(String::from_utf8_lossy(&environment).contains("TOKEN=second-secret"));
    drop((sessions, newcomer));
    homing.wait_until("the old ones end with their sessions", |status| count(status, 0, "draining") == 0);
    assert!(!old.into_iter().any(is_alive));
    let new = homing.pids(0);
    homing.kill();
    homing.start_again();
    assert!(replaced(&homing.status()), "who has what is configured is replaced by nobody");
    assert_eq!(homing.pids(0), new);
}

#[test]
fn killed_while_workers_are_replaced_homing_still_knows_which_of_them_are_outdated() {
    let mut homing = Homing::start(&demo_app("demo", &[free_address()], "127.0.0.1", 2, ""));
    homing.wait_for_workers(0, 2);
    let pids = homing.pids(0);
    let works = format!("{:?}, \"demo-worker\", \"--port\", \"{{port}}\", \"--host\", \"127.0.0.1\"", binary());
    let hangs = "\"sleep\", \"1000\"";
    edit(&homing, &works, hangs);
    ask(&homing, &["reload"]);
    homing.wait_until("a successor is starting", |status| count(status, 0, "starting") == 1);
    homing.kill();
    homing.start_again();
    let status = homing.status();
    assert!(status["apps"][0]["restarting"] == true && count(&status, 0, "ready") == 2, "{status:#}");
    homing.kill();
    edit(&homing, hangs, &works);
    homing.start_again();
    let status = homing.status();
    assert!(status["apps"][0]["restarting"] == false && count(&status, 0, "ready") == 2, "{status:#}");
    assert_eq!(homing.pids(0), pids, "what was changed back replaces nobody");
}
