//! Who is started and ended when, with real processes and real connections on both paths. Needs root.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use homing_tests::instance::{Homing, demo_app, free_address, is_alive, signal, wait_for, workers};
use homing_tests::network::client_v4;
use homing_tests::session::{Client, Session, get_on};
use homing_tests::site::{Site, assert_kept, pid_of, v4};
use rustix::process::Signal;
use serde_json::Value;

/// An app whose `[app.workers]` is this.
fn app(name: &str, listen: SocketAddr, affinity: &str, workers: &str, more: &str) -> String {
    let table = demo_app(name, &[listen], "127.0.0.1", 1, more)
        .replace("affinity = \"ip\"", &format!("affinity = {affinity:?}"));
    let (head, _) = table.split_once("[app.workers]").expect("the last table");
    format!("{head}[app.workers]\n{workers}\n")
}

fn local(target: SocketAddr) -> Client<'static> {
    Client { namespace: None, from: "127.0.0.1".parse().expect("an address"), target }
}

/// For one of many apps: of its own, whichever ports are free.
fn address_of(number: u16) -> SocketAddr {
    let [high, low] = number.to_be_bytes();
    SocketAddr::from(([127, 1, high, low], free_address().port()))
}

fn count(status: &Value, state: &str) -> usize {
    workers(status, 0).iter().filter(|worker| worker["state"] == state).count()
}

fn rss_kib(pid: &Value) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("homing runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("its memory");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

#[test]
fn the_third_connection_starts_the_second_worker_and_an_idle_one_is_ended_again() {
    for affinity in ["ip", "cookie"] {
        let site = Site::with(&app("demo", v4(), affinity, "min = 1\nmax = 3", "timeouts.idle = \"1s\""));
        site.homing.wait_for_workers(0, 1);
        let mut sessions: Vec<Session<'_>> = (1..=2).map(|number| site.client(client_v4(number)).open()).collect();
        site.homing.wait_until("both are counted", |status| status["apps"][0]["connections"] == 2);
        assert_eq!(count(&site.homing.status(), "ready"), 1, "two of fifty are no load");
        sessions.push(site.client(client_v4(3)).open());
        site.homing.wait_for_workers(0, 2);
        assert!(sessions.iter_mut().all(Session::is_alive));
        drop(sessions);
        site.homing.wait_until("one is enough again", |status| workers(status, 0).len() == 1);
    }
}

#[test]
fn with_min_zero_the_first_connection_is_held_while_the_worker_starts_and_nothing_runs_when_idle() {
    for affinity in ["ip", "cookie"] {
        let site = Site::with(&app("demo", v4(), affinity, "min = 0\nmax = 2", "timeouts.idle = \"1s\""));
        assert_eq!(site.homing.status()["apps"][0]["state"], "idle");
        for _ in 0..2 {
            let mut session = site.client(client_v4(1)).open();
            let pid = pid_of(&session);
            assert!(session.is_alive());
            drop(session);
            wait_for("what is not used does not run", || (!is_alive(pid)).then_some(()));
            site.homing.wait_until("it is idle", |status| status["apps"][0]["state"] == "idle");
        }
    }
}

#[test]
fn a_connection_that_races_the_end_of_an_idle_worker_is_served() {
    let site = Site::with(&app("demo", v4(), "ip", "min = 0\nmax = 1", "timeouts.idle = \"1s\""));
    // The idle time is over after 1 s, the last look 1 to 2 s later: visits all over that time.
    std::thread::scope(|scope| {
        for number in 1..=8 {
            let site = &site;
            scope.spawn(move || {
                for round in 0..4_u64 {
                    let answer = site.client(client_v4(number)).get("/health");
                    assert_eq!(answer.expect("an answer").status, 200);
                    std::thread::sleep(Duration::from_millis(1_000 + 230 * u64::from(number) + 170 * round));
                }
            });
        }
    });
}

#[test]
fn a_full_app_refuses_who_is_new_with_a_page_and_serves_who_is_inside() {
    for affinity in ["ip", "cookie"] {
        let site = Site::with(&app("demo", v4(), affinity, "min = 1\nmax = 1\nmax_connections = 3", ""));
        site.homing.wait_for_workers(0, 1);
        let mut inside: Vec<Session<'_>> = (1..=3).map(|number| site.client(client_v4(number)).open()).collect();
        site.homing.wait_until("it is full", |status| workers(status, 0)[0]["reason"] == "full: takes no new clients");
        let mut stream = site.client(client_v4(4)).connect().expect("somebody answers");
        let answer = get_on(&mut stream, "/", "").expect("an answer");
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(answer.body.contains("App demo has as many users as it can serve"), "{answer:?}");
        // Known by their address or by their cookie, they come in beyond.
        inside.iter_mut().for_each(assert_kept);
        let counters = &site.homing.status()["counters"];
        assert_eq!(counters["http_refused_full"], 1);
        drop(inside);
        site.homing.wait_until("there is room", |status| workers(status, 0)[0]["reason"].is_null());
        assert!(site.client(client_v4(4)).open().is_alive());
    }
}

#[test]
fn a_worker_that_hangs_gets_no_new_clients_until_it_answers_again() {
    let health = "health = { path = \"/health\", interval = \"1s\" }";
    let site = Site::with(&app("demo", v4(), "ip", "min = 2\nmax = 2", health));
    site.homing.wait_for_workers(0, 2);
    let mut session = site.client(client_v4(1)).open();
    let pid = pid_of(&session);
    signal(pid, Signal::STOP);
    let is_hung = |status: &Value| {
        workers(status, 0)
            .iter()
            .any(|w| w["pid"] == pid && w["reason"].as_str().is_some_and(|r| r.contains("3 times in a row")))
    };
    site.homing.wait_until("it is noticed", is_hung);
    for number in 2..=8 {
        assert_ne!(pid_of(&site.client(client_v4(number)).open()), pid, "who is new goes elsewhere");
    }
    signal(pid, Signal::CONT);
    site.homing.wait_until("it answers", |status| !is_hung(status));
    assert_kept(&mut session);
}

#[test]
fn two_hundred_apps_start_on_demand_a_few_at_a_time() {
    const APPS: usize = 200;
    let listen: Vec<SocketAddr> = (0..APPS as u16).map(address_of).collect();
    let mut apps = String::new();
    for (number, &address) in listen.iter().enumerate() {
        let _ = write!(apps, "{}", app(&format!("app{number}"), address, "ip", "min = 0\nmax = 1", ""));
    }
    let homing = Homing::start_under(&[], "starts_at_once = 4", &apps);
    let (now, most) = std::thread::scope(|scope| {
        let visits: Vec<_> =
            listen.iter().map(|&address| scope.spawn(move || local(address).open().is_alive())).collect();
        let mut most = 0;
        while !visits.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            let status = homing.status();
            let starting = (0..APPS)
                .flat_map(|app| workers(&status, app))
                .filter(|w| w["state"] == "starting" && !w["pid"].is_null());
            most = most.max(starting.count());
        }
        (visits.into_iter().map(|visit| visit.join().expect("a visit")).filter(|ok| *ok).count(), most)
    });
    assert_eq!(now, APPS, "each was served by its own");
    assert!(most <= 4, "{most} were starting at once");
}

#[test]
fn a_thousand_idle_apps_fit_into_sixty_megabytes() {
    let mut apps = String::new();
    for number in 0..1_000_u16 {
        let _ = write!(apps, "{}", app(&format!("app{number}"), address_of(number), "auto", "min = 0\nmax = 4", ""));
    }
    let homing = Homing::start(&apps);
    let status = homing.status();
    let rss = rss_kib(&status["pid"]);
    assert!(rss <= 60 * 1_024, "{rss} KiB");
}
