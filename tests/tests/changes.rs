//! What operators do to a homing that is being used: none of it fails a request or moves a client that need not move.
//! Needs root.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use homing::demo::client::{self, Dialect, Outcome};
use homing_tests::instance::{
    Homing, ask, binary, count, demo_app, edit, free_address, is_alive, signal, wait_for, workers,
};
use homing_tests::network::{client_v4, stranger_v4};
use homing_tests::session::Client;
use homing_tests::site::{Site, assert_kept, pid_of, v4};
use rustix::process::Signal;
use serde_json::Value;

/// Concurrent sessions of the bar.
const SESSIONS: u16 = 200;
const COOKIE_PORT: u16 = 8081;

/// Two apps, one for each path, with four workers each, under [`SESSIONS`] clients each that come again and again for as
/// long as `change` takes; what they saw.
fn under_load(site: &Site, change: impl FnOnce(&Homing)) -> Vec<Outcome> {
    let is_over = AtomicBool::new(false);
    let visit = |number: u16| {
        let by_address = number < SESSIONS;
        let client = client::Client {
            target: if by_address { v4() } else { SocketAddr::from((v4().ip(), COOKIE_PORT)) },
            from: Some(if by_address { stranger_v4(number) } else { client_v4(1) }),
            dialect: Dialect::Demo,
            cookies: !by_address,
        };
        let is_over = &is_over;
        async move {
            let mut outcomes = vec![client.sticky_test(|_| {}).await];
            while !is_over.load(Ordering::Relaxed) {
                outcomes.push(client.sticky_test(|_| {}).await);
            }
            outcomes
        }
    };
    std::thread::scope(|scope| {
        let clients = scope.spawn(|| {
            site.network.clients.enter(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                runtime.block_on(futures_util::future::join_all((0..2 * SESSIONS).map(visit)))
            })
        });
        site.homing.wait_until("the sessions are open", |status| {
            (0..2).all(|app| status["apps"][app]["connections"].as_u64() >= Some(u64::from(SESSIONS) / 2))
        });
        change(&site.homing);
        is_over.store(true, Ordering::Relaxed);
        clients.join().expect("the clients' thread").into_iter().flatten().collect()
    })
}

fn two_paths() -> Site {
    let by_cookie = demo_app("cookies", &[(v4().ip(), COOKIE_PORT).into()], "127.0.0.1", 4, "");
    let by_cookie = by_cookie.replace("affinity = \"ip\"", "affinity = \"cookie\"");
    let by_cookie = by_cookie.replace("max = 4", "max = 4\nmax_connections = 1000");
    let by_address =
        demo_app("demo", &[v4()], "127.0.0.1", 4, "").replace("max = 4", "max = 4\nmax_connections = 1000");
    let site = Site::with(&format!("{by_address}{by_cookie}"));
    site.homing.wait_for_workers(0, 4);
    site.homing.wait_for_workers(1, 4);
    site
}

fn assert_all_pass(outcomes: &[Outcome]) {
    let failed: Vec<&Outcome> = outcomes.iter().filter(|outcome| !outcome.passed()).collect();
    assert!(failed.is_empty(), "{} of {} failed: {:#?}", failed.len(), outcomes.len(), &failed[..failed.len().min(5)]);
}

fn refused(homing: &Homing, arguments: &[&str]) -> String {
    let output = homing.ask(arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn rolling_restart_under_load_fails_no_request_and_moves_nobody() {
    let site = two_paths();
    let old: BTreeSet<i32> = (0..2).flat_map(|app| site.homing.pids(app)).collect();
    let outcomes = under_load(&site, |homing| {
        for app in ["demo", "cookies"] {
            assert!(ask(homing, &["restart", app, "--rolling"]).contains("has new workers"));
        }
    });
    assert_all_pass(&outcomes);
    let status = site.homing.wait_until("the old ones have ended", |status| {
        (0..2).all(|app| count(status, app, "ready") == 4 && count(status, app, "draining") == 0)
    });
    let new: BTreeSet<i32> = (0..2).flat_map(|app| site.homing.pids(app)).collect();
    assert!(old.is_disjoint(&new), "all of them are new: {old:?} {new:?}");
    assert_eq!(status["counters"]["lookup_no_socket"], 0, "nobody fell to the HTTP path");
}

#[test]
fn reload_under_load_fails_no_request_and_moves_nobody() {
    let site = two_paths();
    let pids: Vec<_> = (0..2).flat_map(|app| site.homing.pids(app)).collect();
    let third = free_address();
    let outcomes = under_load(&site, |homing| {
        // An app comes, limits change, an app's workers are replaced, the app goes again.
        edit(homing, "max = 4\nmax_connections = 1000\n[[app]]", "max = 6\nmax_connections = 9000\n[[app]]");
        let file = homing.dir().join("homing.toml");
        let before = std::fs::read_to_string(&file).expect("the configuration");
        let more = demo_app("third", &[third], "127.0.0.1", 1, "");
        std::fs::write(&file, format!("{before}{more}")).expect("it is written");
        let said = ask(homing, &["reload"]);
        assert_eq!(said.trim(), "reloaded: app demo changed; app third added.");
        homing.wait_for_workers(2, 1);
        assert_eq!(ask(homing, &["reload"]).trim(), "nothing has changed.");
        std::fs::write(&file, before).expect("it is written");
        assert!(ask(homing, &["reload"]).contains("app third removed"));
        homing.wait_until("it is gone", |status| status["apps"].as_array().is_some_and(|apps| apps.len() == 2));
    });
    assert_all_pass(&outcomes);
    assert_eq!((0..2).flat_map(|app| site.homing.pids(app)).collect::<Vec<_>>(), pids, "nobody was replaced");
    assert_eq!(site.homing.status()["apps"][0]["max"], 6);
}

#[test]
fn replaced_under_load_by_another_homing_no_request_fails_and_nobody_moves() {
    let mut site = two_paths();
    let pids: Vec<_> = (0..2).flat_map(|app| site.homing.pids(app)).collect();
    let mut successors = Vec::new();
    let outcomes = under_load(&site, |homing| {
        successors.push(homing.replace());
        homing.wait_for_workers(0, 4);
        homing.wait_for_workers(1, 4);
    });
    assert_all_pass(&outcomes);
    let successor = successors.pop().expect("started");
    let status = site.homing.status();
    assert_eq!(status["pid"], successor.id(), "the new one answers");
    assert_eq!((0..2).flat_map(|app| site.homing.pids(app)).collect::<Vec<_>>(), pids, "with the same workers");
    assert!(site.homing.succeeded_by(successor).success(), "the old one ends with its last connection");
    assert!(site.homing.pin_dir().exists(), "and leaves what is not its own any more");
    let status =
        site.homing.wait_until("nothing is open", |status| (0..2).all(|app| status["apps"][app]["connections"] == 0));
    assert_eq!(status["pid"], site.homing.status()["pid"]);
}

#[test]
fn reload_replaces_the_workers_of_a_changed_command_and_open_sessions_stay() {
    let site = Site::start("127.0.0.1", "");
    let mut sessions = site.sessions();
    let old: BTreeSet<i32> = site.homing.pids(0).into_iter().collect();
    edit(&site.homing, "affinity = \"ip\"", "affinity = \"ip\"\nenv = { COLOUR = \"blue\" }");
    assert!(ask(&site.homing, &["reload"]).contains("app demo changed, its workers are replaced one by one"));
    site.homing.wait_until("each has a successor", |status| {
        status["apps"][0]["restarting"] == false && count(status, 0, "ready") == 4
    });
    sessions.iter_mut().for_each(assert_kept);
    let newcomer = site.client(stranger_v4(1)).open();
    assert!(!old.contains(&pid_of(&newcomer)), "who is new gets a new one");
    let environment = std::fs::read(format!("/proc/{}/environ", newcomer.hello.pid)).expect("it runs");
    assert!(String::from_utf8_lossy(&environment).contains("COLOUR=blue"));
    drop(sessions);
    site.homing.wait_until("the old ones end with their sessions", |status| count(status, 0, "draining") == 0);
    assert!(!old.into_iter().any(is_alive));
}

#[test]
fn reload_refuses_an_error_whole_and_says_where_it_is() {
    let address = free_address();
    let homing = Homing::start(&demo_app("demo", &[address], "127.0.0.1", 1, ""));
    homing.wait_for_workers(0, 1);
    let before = homing.status()["apps"].clone();
    let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = holder.local_addr().expect("bound").to_string();
    for (from, to, says) in [
        ("max = 1", "max = many", "homing.toml:"),
        ("max = 1", "mx = 1", "did you mean `max`"),
        ("state_dir = \"state\"", "state_dir = \"other\"", "homing.state_dir cannot change while homing runs"),
        (&*address.to_string(), &*taken, "cannot listen on"),
    ] {
        edit(&homing, from, to);
        let said = refused(&homing, &["reload"]);
        assert!(said.contains(says), "{to}: {said}");
        assert_eq!(homing.status()["apps"][0]["listen"], before[0]["listen"]);
        assert_eq!(homing.pids(0)[0], before[0]["workers"][0]["pid"]);
        edit(&homing, to, from);
    }
    assert_eq!(ask(&homing, &["reload"]).trim(), "nothing has changed.");
}

#[test]
fn reload_moves_an_address_from_one_app_to_another_and_its_open_connections_stay() {
    let (first, second) = (free_address(), free_address());
    let apps =
        format!("{}{}", demo_app("one", &[first], "127.0.0.1", 1, ""), demo_app("two", &[second], "127.0.0.1", 1, ""));
    let homing = Homing::start(&apps);
    homing.wait_for_workers(0, 1);
    homing.wait_for_workers(1, 1);
    let client = Client { namespace: None, from: "127.0.0.1".parse().expect("an address"), target: first };
    let mut before = client.open();
    edit(&homing, &first.to_string(), "127.0.0.1:1");
    edit(&homing, &second.to_string(), &first.to_string());
    edit(&homing, "127.0.0.1:1\"", &format!("{second}\""));
    assert_eq!(ask(&homing, &["reload"]).trim(), "reloaded: app one changed; app two changed.");
    assert!(before.is_alive());
    let after = client.open();
    assert_eq!((before.hello.worker.as_str(), after.hello.worker.as_str()), ("one/0", "two/0"));
}

#[test]
fn apps_in_another_order_keep_their_clients_over_a_restart_of_homing() {
    let (first, second) = (free_address(), free_address());
    let table = |name: &str, at| demo_app(name, &[at], "127.0.0.1", 2, "");
    let mut homing = Homing::start(&format!("{}{}", table("one", first), table("two", second)));
    homing.wait_for_workers(0, 2);
    homing.wait_for_workers(1, 2);
    let client = |target| Client { namespace: None, from: "127.0.0.1".parse().expect("an address"), target };
    let mut sessions = [client(first).open(), client(second).open()];
    homing.kill();
    let file = homing.dir().join("homing.toml");
    let text = std::fs::read_to_string(&file).expect("the configuration");
    let (head, _) = text.split_once("[[app]]").expect("apps");
    std::fs::write(&file, format!("{head}{}{}", table("two", second), table("one", first))).expect("it is written");
    homing.start_again();
    homing.wait_for_workers(0, 2);
    sessions.iter_mut().for_each(assert_kept);
}

#[test]
fn a_restart_whose_new_worker_does_not_start_stops_and_the_old_ones_go_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let switch = dir.path().join("broken");
    let script = format!("test ! -e {switch:?} && exec {:?} demo-worker --port {{port}}", binary());
    let address = free_address();
    let app = demo_app("demo", &[address], "127.0.0.1", 2, "");
    let line = app.lines().find(|line| line.starts_with("command")).expect("a command").to_owned();
    let homing = Homing::start(&app.replace(&line, &format!("command = [\"sh\", \"-c\", {script:?}]")));
    homing.wait_for_workers(0, 2);
    let pids = homing.pids(0);
    let client = Client { namespace: None, from: "127.0.0.1".parse().expect("an address"), target: address };
    let mut session = client.open();
    std::fs::write(&switch, "").expect("written");
    let said = refused(&homing, &["restart", "demo", "--rolling"]);
    assert!(said.contains("the restart is stopped, the old workers go on: the new one exited with code 1"), "{said}");
    assert_eq!(homing.pids(0), pids);
    assert_kept(&mut session);
    std::fs::remove_file(&switch).expect("removed");
    ask(&homing, &["restart", "demo"]);
    assert_eq!(homing.wait_for_workers(0, 2)["apps"][0]["restart_failed"], Value::Null);
    assert_kept(&mut session);
}

#[test]
fn a_touched_restart_txt_replaces_the_workers() {
    let homing = Homing::start(&demo_app("demo", &[free_address()], "127.0.0.1", 2, ""));
    homing.wait_for_workers(0, 2);
    let old: BTreeSet<i32> = homing.pids(0).into_iter().collect();
    // Its absence must have been seen.
    let before = homing.status()["uptime_seconds"].as_u64();
    homing.wait_until("homing has looked", |status| status["uptime_seconds"].as_u64() > before.map(|s| s + 1));
    std::fs::write(homing.dir().join("restart.txt"), "").expect("written");
    homing.wait_until("all are new", |status| {
        count(status, 0, "ready") == 2
            && workers(status, 0).iter().all(|w| w["pid"].as_i64().is_some_and(|pid| !old.contains(&(pid as i32))))
    });
}

#[test]
fn scaled_up_and_down_nobody_bound_moves() {
    let site = Site::start("127.0.0.1", "");
    let mut sessions = site.sessions();
    assert!(ask(&site.homing, &["scale", "demo", "6"]).contains("demo has 6 to 6 workers"));
    site.homing.wait_for_workers(0, 6);
    sessions.iter_mut().for_each(assert_kept);
    let said = ask(&site.homing, &["scale", "demo", "1..2"]);
    assert!(said.contains("demo has 1 to 2 workers") && said.contains(" draining worker"), "{said}");
    site.homing.wait_until("four drain", |status| count(status, 0, "ready") == 2);
    sessions.iter_mut().for_each(assert_kept);
    drop(sessions);
    let status = site.homing.wait_until("they end with their sessions", |status| workers(status, 0).len() == 2);
    assert_eq!((&status["apps"][0]["min"], &status["apps"][0]["max"]), (&1.into(), &2.into()));
    for (arguments, says) in [
        (["scale", "demo", "3..2"], "the bounds must be MIN..MAX"),
        (["scale", "demo/1", "3"], "apps are scaled, not workers: homing scale demo N"),
        (["scale", "nobody", "3"], "no app is called \"nobody\"; there are: demo"),
        (["scale", "demo", "5000"], "lower workers.max"),
    ] {
        assert!(refused(&site.homing, &arguments).contains(says), "{arguments:?}");
    }
}

#[test]
fn drained_by_hand_a_worker_ends_with_its_last_connection_and_loses_none_that_comes_meanwhile() {
    let site = Site::start("127.0.0.1", "");
    let mut session = site.client(client_v4(1)).open();
    let worker = session.hello.worker.clone();
    ask(&site.homing, &["drain", &worker]);
    for _ in 0..50 {
        assert_kept(&mut session);
    }
    let pid = pid_of(&session);
    drop(session);
    wait_for("it has ended", || (!is_alive(pid)).then_some(()));
    ask(&site.homing, &["undrain", &worker]);
    site.homing.wait_for_workers(0, 4);
}

/// An earlier ring decided until the next change, whenever that was.
#[test]
fn a_ring_for_which_there_is_no_descriptor_is_the_kernels_as_soon_as_there_is_one() {
    let site = Site::start("127.0.0.1", "");
    let victim = site.homing.pids(0)[0];
    let starved = site.homing.starve();
    signal(victim, Signal::KILL);
    wait_for("it is told", || site.homing.said().contains("the kernel did not take the ring").then_some(()));
    drop(starved);
    wait_for("it is told that it is over", || {
        site.homing.said().contains("the kernel has taken the ring").then_some(())
    });
    site.homing.wait_for_workers(0, 4);
    let mut sessions = site.sessions();
    assert!(sessions.iter().all(|session| !session.hello.forwarded), "all by the kernel path");
    sessions.iter_mut().for_each(assert_kept);
}
