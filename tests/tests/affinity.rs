//! "Affinity, exactly": what becomes of bound clients, new clients and open connections, event by event, with real
//! processes in network namespaces. Each test is named for its event. Needs root.

use homing_tests::instance::{demo_app, is_alive, signal, wait_for, workers};
use homing_tests::network::{client_v4, stranger_v4};
use homing_tests::session::{Client, Session, get_on};
use homing_tests::site::{CLIENTS, Site, assert_kept, pid_of, v4};
use rustix::process::Signal;
use serde_json::Value;

/// Clients 1 to 8 are there before the event, the others come after it.
const BEFORE: std::ops::RangeInclusive<u8> = 1..=8;
const AFTER: std::ops::RangeInclusive<u8> = 9..=CLIENTS;

fn sessions<'a>(site: &'a Site, clients: std::ops::RangeInclusive<u8>) -> Vec<Session<'a>> {
    clients.map(|number| site.client(client_v4(number)).open()).collect()
}

fn at(sessions: &[Session<'_>], worker: &str) -> usize {
    sessions.iter().filter(|session| session.hello.worker == worker).count()
}

/// `homing COMMAND demo/N`, and the worker's state afterwards.
fn order(site: &Site, command: &str, worker: usize, state: &str) {
    assert!(site.homing.ask(&[command, &format!("demo/{worker}")]).status.success());
    site.homing.wait_until(&format!("demo/{worker} is {state}"), |status| {
        let found = workers(status, 0).into_iter().find(|entry| entry["id"] == format!("demo/{worker}"));
        found.map_or(state == "stopped", |entry| entry["state"] == state)
    });
}

#[test]
fn worker_added_bound_clients_and_open_connections_stay_and_new_clients_get_their_share() {
    let site = Site::start("127.0.0.1", "");
    order(&site, "drain", 3, "stopped");
    let mut before = sessions(&site, BEFORE);
    assert_eq!(at(&before, "demo/3"), 0);
    order(&site, "undrain", 3, "ready");
    before.iter_mut().for_each(assert_kept);
    // Of any eight of these clients the ring gives some to every worker of four; which is the seed's choice.
    let owned = AFTER.filter(|&number| site.homing.trace("demo", &client_v4(number).to_string())["worker"] == "demo/3");
    let owned = owned.count();
    let after = sessions(&site, AFTER);
    assert_eq!(at(&after, "demo/3"), owned, "new clients go where the ring has them");
    before.iter_mut().for_each(assert_kept);
}

/// Katran's client-IP mode fails here: a page asset of the same client kills its WebSocket.
#[test]
fn the_katran_failure_a_ring_change_then_a_new_connection_and_the_old_websocket_lives() {
    let site = Site::start("127.0.0.1", "");
    order(&site, "drain", 3, "stopped");
    let mut before = sessions(&site, 1..=CLIENTS);
    for change in ["undrain", "drain", "undrain"] {
        order(&site, change, 3, if change == "drain" { "stopped" } else { "ready" });
        for session in &mut before {
            let asset = session.check().expect("the service answers");
            assert_eq!(asset.status, 200, "the new connection reaches the session: {:?}", session.hello);
            assert!(session.is_alive(), "and the old WebSocket lives: {:?}", session.hello);
        }
    }
}

#[test]
fn workers_added_by_configuration_move_no_bound_client() {
    let mut site = Site::start("127.0.0.1", "");
    let Site { homing, network } = &mut site;
    let client = |number| Client { namespace: Some(&network.clients), from: client_v4(number), target: v4() };
    let mut before: Vec<_> = (1..=CLIENTS).map(|number| client(number).open()).collect();
    homing.kill();
    // So many that the ring is another size.
    let file = homing.dir().join("homing.toml");
    let text = std::fs::read_to_string(&file).expect("the configuration");
    std::fs::write(&file, text.replace("min = 4\nmax = 4", "min = 7\nmax = 7")).expect("it is written");
    homing.start_again();
    homing.wait_for_workers(0, 7);
    before.iter_mut().for_each(assert_kept);
}

#[test]
fn drain_begins_bound_clients_stay_new_ones_go_elsewhere_and_open_connections_stay_until_the_deadline() {
    a_drain_to_its_deadline("ip");
}

#[test]
fn drain_begins_and_the_same_holds_for_clients_with_a_cookie() {
    a_drain_to_its_deadline("cookie");
}

fn a_drain_to_its_deadline(affinity: &str) {
    let app = demo_app("demo", &[v4()], "127.0.0.1", 4, "timeouts.drain = \"3s\"");
    let site = Site::with(&app.replace("affinity = \"ip\"", &format!("affinity = {affinity:?}")));
    site.homing.wait_for_workers(0, 4);
    let mut before = sessions(&site, BEFORE);
    let worker: usize = before[0].hello.worker.trim_start_matches("demo/").parse().expect("demo/N");
    order(&site, "drain", worker, "draining");
    before.iter_mut().for_each(assert_kept);
    let after = sessions(&site, AFTER);
    assert_eq!(at(&after, &before[0].hello.worker), 0, "no new client");
    let pid = pid_of(&before[0]);
    wait_for("the deadline ends it", || (!is_alive(pid)).then_some(()));
    let (mut ended, mut kept): (Vec<_>, Vec<_>) = before.drain(..).partition(|session| pid_of(session) == pid);
    assert!(ended.iter_mut().all(|session| !session.is_alive()));
    let elsewhere = |session: &Session<'_>| session.check().expect("another worker answers").status == 404;
    assert!(ended.iter().all(elsewhere), "whoever was cut off is served by a process that does not know him");
    kept.iter_mut().for_each(assert_kept);
}

#[test]
fn client_idle_beyond_the_timeout_is_chosen_anew() {
    let site = Site::start("127.0.0.1", "timeouts.affinity = \"1s\"");
    let first = site.client(client_v4(1)).open();
    let worker: usize = first.hello.worker.trim_start_matches("demo/").parse().expect("demo/N");
    drop(first);
    order(&site, "drain", worker, "stopped");
    // Bound elsewhere by now, and it stays there while it is seen.
    let mut second = site.client(client_v4(1)).open();
    assert_ne!(second.hello.worker, format!("demo/{worker}"));
    order(&site, "undrain", worker, "ready");
    assert_kept(&mut second);
    drop(second);
    wait_for("the ring decides again", || {
        // Seen less often than the timeout.
        std::thread::sleep(std::time::Duration::from_millis(1_500));
        (site.client(client_v4(1)).open().hello.worker == format!("demo/{worker}")).then_some(())
    });
}

#[test]
fn worker_dies_its_clients_are_served_by_the_next_connection_counted_and_others_notice_nothing() {
    let site = Site::start("127.0.0.1", "");
    let mut before = sessions(&site, BEFORE);
    let victim = pid_of(&before[0]);
    signal(victim, Signal::KILL);
    wait_for("the worker is gone", || (!is_alive(victim)).then_some(()));
    let (mut lost, mut kept): (Vec<_>, Vec<_>) = before.drain(..).partition(|session| pid_of(session) == victim);
    for session in &mut lost {
        assert!(!session.is_alive(), "its process is gone");
        let answer = session.check().expect("the next connection is served");
        assert_eq!(answer.status, 404, "another process answers, which has no such session: {answer:?}");
    }
    kept.iter_mut().for_each(assert_kept);
    let mut after = sessions(&site, AFTER);
    assert!(after.iter().all(|session| pid_of(session) != victim), "new clients are served by others");
    // The ring is whole again; nobody else moved.
    let status = site.homing.wait_for_workers(0, 4);
    let restarts: Vec<_> = workers(&status, 0).iter().map(|worker| worker["restarts"].clone()).collect();
    assert_eq!(restarts.iter().filter(|&restarts| restarts == 1).count(), 1, "{restarts:?}");
    kept.iter_mut().for_each(assert_kept);
    after.iter_mut().for_each(assert_kept);
    // Whoever lost a worker has another binding now, and is counted once.
    let moved = lost.len();
    let lost: Vec<_> = BEFORE.filter(|number| !kept.iter().any(|session| is_of(session, *number))).collect();
    assert_eq!(lost.len(), moved);
    let again: Vec<_> = lost.into_iter().map(|number| site.client(client_v4(number)).open()).collect();
    assert!(again.iter().all(|session| !session.hello.forwarded && pid_of(session) != victim));
    let counted: u64 = moves(&site).iter().sum();
    assert_eq!(counted, moved as u64, "each of them, and nobody else");
}

/// Bindings moved by the kernel's programs, and by the HTTP path.
fn moves(site: &Site) -> [u64; 2] {
    let counters = &site.homing.status()["counters"];
    ["binding_moved", "http_binding_moved"].map(|name| counters[name].as_u64().expect("a counter"))
}

/// It was not: the HTTP path bound it to another worker, where the kernel's programs then found it, as if it had never
/// been anywhere else.
#[test]
fn worker_dies_its_client_is_counted_too_that_comes_before_homing_knows() {
    let site = Site::start("127.0.0.1", "");
    let first = site.client(client_v4(1)).open();
    let victim = pid_of(&first);
    let paused = site.homing.pause();
    signal(victim, Signal::KILL);
    wait_for("the worker is gone", || (!is_alive(victim)).then_some(()));
    // Its ring still names the worker, which has no socket any more.
    let mut next = site.client(client_v4(1)).connect().expect("homing's own socket takes it");
    drop(paused);
    let answer = get_on(&mut next, &format!("/session/{}/check", first.hello.session), "").expect("it is served");
    assert_eq!(answer.status, 404, "another process answers: {answer:?}");
    assert_eq!(moves(&site), [0, 1], "by the HTTP path");
    site.homing.wait_for_workers(0, 4);
    let again = site.client(client_v4(1)).open();
    assert!(!again.hello.forwarded, "{:?}", again.hello);
    assert_eq!(moves(&site), [0, 1], "it stays where it is, and is counted once");
}

fn is_of(session: &Session<'_>, number: u8) -> bool {
    session.hello.peer.ip() == client_v4(number)
}

#[test]
fn worker_dies_a_client_that_found_another_stays_there_when_its_first_one_is_back() {
    let site = Site::start("127.0.0.1", "");
    let first = site.client(client_v4(1)).open();
    // Down for as long as the client needs to settle elsewhere.
    let victim = pid_of(&first);
    signal(victim, Signal::KILL);
    wait_for("the worker is gone", || (!is_alive(victim)).then_some(()));
    wait_for("the client reaches another worker by the kernel path", || {
        let session = site.client(client_v4(1)).open();
        (!session.hello.forwarded && session.hello.pid != first.hello.pid).then_some(())
    });
    let mut second = site.client(client_v4(1)).open();
    site.homing.wait_for_workers(0, 4);
    assert_kept(&mut second);
}

#[test]
fn table_full_the_longest_idle_bindings_are_forgotten_and_counted_anew_and_open_connections_stay() {
    const ROOM: u16 = 1_024;
    const LAST: u16 = 3 * ROOM - 1;
    let site = Site::configured(&format!("bindings = {ROOM}"), &demo_app("demo", &[v4()], "127.0.0.1", 4, ""));
    site.homing.wait_for_workers(0, 4);
    let mut open = site.sessions();
    let visit = |number: u16| drop(site.client(stranger_v4(number)).connect().expect("a worker takes it"));
    (0..=LAST).for_each(visit);
    let is_bound = |number: u16| !site.homing.trace("demo", &stranger_v4(number).to_string())["binding"].is_null();
    assert!((LAST - 16..=LAST).all(is_bound), "the latest are kept");
    // But for those whom a processor wrote down that has written nothing since: they are on a list of its own (Linux:
    // kernel/bpf/bpf_lru_list.c).
    let forgotten: Vec<u16> = (0..LAST - ROOM).step_by(64).filter(|&number| !is_bound(number)).collect();
    assert!(forgotten.len() >= 24, "of 32 of the longest idle only these are forgotten: {forgotten:?}");
    let status = site
        .homing
        .wait_until("nothing but the sessions is open", |status| status["apps"][0]["connections"] == open.len());
    assert!(status["apps"][0]["clients"].as_u64() <= Some(ROOM.into()), "{status:#}");
    let bound = |status: &Value| status["counters"]["binding_new"].as_u64().expect("a counter");
    // One that is bound, and one that was forgotten.
    [LAST, forgotten[0]].into_iter().for_each(visit);
    site.homing.wait_until("the forgotten one counts as new, and it alone", |now| bound(now) == bound(&status) + 1);
    open.iter_mut().for_each(assert_kept);
}

#[test]
fn homing_is_upgraded_the_new_program_adopts_everything_and_open_connections_stay() {
    let mut site = Site::start("127.0.0.1", "");
    let pids = site.homing.pids(0);
    let Site { homing, network } = &mut site;
    let client = |number| Client { namespace: Some(&network.clients), from: client_v4(number), target: v4() };
    let mut before: Vec<_> = BEFORE.map(|number| client(number).open()).collect();
    homing.kill();
    homing.replace_program();
    homing.start_again();
    homing.wait_for_workers(0, 4);
    assert_eq!(homing.pids(0), pids, "the same processes");
    before.iter_mut().for_each(assert_kept);
    let after: Vec<_> = AFTER.map(|number| client(number).open()).collect();
    assert!(after.iter().all(|session| !session.hello.forwarded && pids.contains(&pid_of(session))));
    before.iter_mut().for_each(assert_kept);
}

#[test]
fn homing_is_killed_everybody_stays_new_clients_are_steered_and_the_next_run_adopts_everything() {
    let mut site = Site::start("127.0.0.1", "");
    let pids = site.homing.pids(0);
    site.homing.kill();
    {
        let Site { homing, network } = &mut site;
        let client = |number| Client { namespace: Some(&network.clients), from: client_v4(number), target: v4() };
        let mut sessions: Vec<_> = (1..=CLIENTS).map(|number| client(number).open()).collect();
        assert!(sessions.iter().all(|session| !session.hello.forwarded && pids.contains(&pid_of(session))));
        sessions.iter_mut().for_each(assert_kept);
        homing.start_again();
        let status = homing.wait_for_workers(0, 4);
        assert_eq!(homing.pids(0), pids, "the same processes");
        assert_eq!(status["apps"][0]["connections"], CLIENTS, "connections made while homing was away are counted");
        assert_eq!(status["apps"][0]["clients"], CLIENTS);
        sessions.iter_mut().for_each(assert_kept);
    }
}

#[test]
fn homing_is_killed_twice_and_open_connections_stay() {
    let mut site = Site::start("127.0.0.1", "");
    let Site { homing, network } = &mut site;
    let client = |number| Client { namespace: Some(&network.clients), from: client_v4(number), target: v4() };
    let mut sessions: Vec<_> = (1..=CLIENTS).map(|number| client(number).open()).collect();
    for _ in 0..2 {
        homing.kill();
        sessions.iter_mut().for_each(assert_kept);
        homing.start_again();
        sessions.iter_mut().for_each(assert_kept);
    }
    drop(sessions);
    homing.wait_until("no connection is left over in the counts", |status| status["apps"][0]["connections"] == 0);
}
