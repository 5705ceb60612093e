//! Faults, one after the other, while clients of both paths come again and again: workers and homing killed and stopped,
//! homing replaced, its descriptors used up, its link down, its configuration changed, workers drained and restarted.
//! Nobody may lose a worker that lives. Needs root.
//!
//! `cargo xtask chaos --seconds 600` goes on for longer; HOMING_CHAOS_SEED=N does the same again.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Child;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use homing::demo::client::{Client, Dialect, Outcome};
use homing_tests::instance::{Homing, ask, demo_app, edit, signal, wait_for};
use homing_tests::network::{SERVER_V4, client_v4};
use homing_tests::site::Site;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};
use serde_json::Value;

const WORKERS: u32 = 3;
/// Clients of each path.
const CLIENTS: u8 = 12;
const PORTS: [u16; 2] = [8080, 8081];
const APPS: [&str; 2] = ["addresses", "cookies"];
/// Of a run as part of all tests.
const SECONDS: u64 = 40;

/// What a client saw, and when.
struct Visit {
    app: usize,
    begun: Instant,
    ended: Instant,
    outcome: Outcome,
}

/// What was done to homing that clients may notice.
#[derive(Default)]
struct Done {
    /// Processes that were ended.
    ended: BTreeSet<u32>,
    /// When a worker was: who comes in that moment may be refused.
    deaths: Vec<(usize, Instant)>,
    /// From when to when nobody was there to forward.
    absences: Vec<(Instant, Instant)>,
}

impl Done {
    /// Why the visit may have failed; `None`: it may not.
    fn excuse(&self, visit: &Visit) -> Option<&'static str> {
        let during = |from: Instant, until: Instant| visit.begun <= until && from <= visit.ended;
        if visit.outcome.pid.is_some_and(|pid| self.ended.contains(&pid)) {
            return Some("its worker was ended");
        }
        if visit.outcome.pid.is_none() && self.deaths.iter().any(|&(app, at)| app == visit.app && during(at, at)) {
            return Some("a worker ended while it came in");
        }
        // The kernel path needs nobody.
        let is_forwarded = visit.outcome.forwarded != Some(false) || visit.app == 1;
        if is_forwarded && self.absences.iter().any(|&(from, until)| during(from, until)) {
            return Some("homing was not there");
        }
        None
    }
}

/// What is done next. The same seed says the same.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: usize) -> usize {
        // xorshift64 (Marsaglia 2003).
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }
}

fn setting(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(otherwise)
}

#[test]
fn whatever_happens_nobody_loses_a_worker_that_lives() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_nanos() as u64 | 1);
    let seed = setting("HOMING_CHAOS_SEED", now);
    let span = Duration::from_secs(setting("HOMING_CHAOS_SECONDS", SECONDS));
    println!("HOMING_CHAOS_SEED={seed}");
    let app = |app: usize| {
        let table = demo_app(APPS[app], &[(SERVER_V4, PORTS[app]).into()], "127.0.0.1", WORKERS, "");
        let affinity = if app == 0 { "ip" } else { "cookie" };
        table
            .replace("affinity = \"ip\"", &format!("affinity = \"{affinity}\""))
            .replace(&format!("max = {WORKERS}"), &format!("max = {WORKERS}\nmax_connections = 1000"))
    };
    let mut site = Site::with(&format!("{}{}", app(0), app(1)));
    (0..2).for_each(|app| drop(site.homing.wait_for_workers(app, WORKERS as usize)));
    let before = Size::of(&site.homing);
    let is_over = AtomicBool::new(false);
    let visits: Mutex<Vec<Visit>> = Mutex::default();
    let mut done = Done::default();
    let mut formers = Vec::new();
    let clients = &site.network.clients;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            clients.enter(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                let everybody = (0..2 * CLIENTS).map(|number| visit_again_and_again(number, &is_over, &visits));
                runtime.block_on(futures_util::future::join_all(everybody))
            });
        });
        let chaos = std::panic::AssertUnwindSafe(|| {
            let mut dice = Dice(seed);
            let begun = Instant::now();
            let mut last = site.homing.status();
            while begun.elapsed() < span {
                fault(
                    dice.throw(NAMES.len()),
                    &mut dice,
                    &mut site.homing,
                    &site.network.server,
                    &mut done,
                    &mut formers,
                );
                (0..2).for_each(|app| drop(site.homing.wait_for_workers(app, WORKERS as usize)));
                let status = site.homing.status();
                assert_counters_grow(&last, &status);
                last = status;
            }
        });
        let outcome = std::panic::catch_unwind(chaos);
        is_over.store(true, Ordering::Relaxed);
        if let Err(panic) = outcome {
            println!("HOMING_CHAOS_SEED={seed}\n{}", site.homing.said());
            std::panic::resume_unwind(panic);
        }
    });
    for mut former in formers {
        // It ends with the last connection that it has.
        wait_for("a former homing has ended", || former.try_wait().expect("it can be waited for"));
    }
    let visits = visits.into_inner().expect("nobody panicked");
    let (passed, failed): (Vec<&Visit>, Vec<&Visit>) = visits.iter().partition(|visit| visit.outcome.passed());
    let lost: Vec<&Outcome> =
        failed.iter().filter(|visit| done.excuse(visit).is_none()).map(|visit| &visit.outcome).collect();
    println!("{} visits passed, {} failed with their worker or with homing", passed.len(), failed.len() - lost.len());
    assert!(lost.is_empty(), "seed {seed}: {} of {} lost a worker that lives: {lost:#?}", lost.len(), visits.len());
    assert!(passed.len() > usize::from(CLIENTS), "seed {seed}: hardly anybody was served");
    site.homing.wait_until("nothing is open", |status| (0..2).all(|app| status["apps"][app]["connections"] == 0));
    let after = Size::of(&site.homing);
    // It may be another process than at the beginning, with what it needs to adopt.
    assert!(after.descriptors <= before.descriptors + 24, "seed {seed}: {before:?} {after:?}");
    assert!(after.memory_kib <= 2 * before.memory_kib, "seed {seed}: {before:?} {after:?}");
}

async fn visit_again_and_again(number: u8, is_over: &AtomicBool, visits: &Mutex<Vec<Visit>>) {
    let app = usize::from(number >= CLIENTS);
    let client = Client {
        target: SocketAddr::from((SERVER_V4, PORTS[app])),
        // Not strangers: the way back to them goes with the link.
        from: Some(client_v4(if app == 0 { number + 1 } else { CLIENTS + 1 })),
        dialect: Dialect::Demo,
        cookies: app == 1,
    };
    while !is_over.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let outcome = client.sticky_test(|_| {}).await;
        visits.lock().expect("nobody panicked").push(Visit { app, begun, ended: Instant::now(), outcome });
    }
}

const NAMES: [&str; 9] = [
    "a worker killed",
    "a worker stopped for a moment",
    "homing killed",
    "homing replaced",
    "the link down",
    "the configuration changed",
    "a worker drained",
    "a rolling restart",
    "homing without descriptors",
];

fn fault(
    number: usize,
    dice: &mut Dice,
    homing: &mut Homing,
    server: &homing_tests::network::Namespace,
    done: &mut Done,
    formers: &mut Vec<Child>,
) {
    let app = dice.throw(2);
    let name = APPS[app];
    println!("{} of {name}", NAMES[number]);
    match number {
        0 => {
            let (id, pid) = any_worker(homing, app, dice);
            done.ended.insert(pid as u32);
            done.deaths.push((app, Instant::now()));
            signal(pid, Signal::KILL);
            homing.wait_until("it is told why the worker ended", |status| {
                let worker = workers_of(status, app).into_iter().find(|worker| worker["id"] == id.as_str());
                // Of one that an earlier homing started the signal is not known.
                let told = worker.map(|worker| worker["history"].to_string()).unwrap_or_default();
                ["SIGKILL", "how is not known"].iter().any(|why| told.contains(why))
            });
            done.deaths.push((app, Instant::now()));
        }
        1 => {
            let (_, pid) = any_worker(homing, app, dice);
            signal(pid, Signal::STOP);
            std::thread::sleep(Duration::from_millis(500));
            signal(pid, Signal::CONT);
        }
        2 => {
            let from = Instant::now();
            homing.kill();
            homing.start_again();
            done.absences.push((from, Instant::now()));
        }
        3 => {
            let successor = homing.replace();
            formers.push(homing.now(successor));
        }
        4 => {
            server.ip(&["link", "set", "eth0", "down"]);
            std::thread::sleep(Duration::from_millis(200));
            server.ip(&["link", "set", "eth0", "up"]);
        }
        5 => {
            edit(homing, "max_connections = 1000", "max_connections = 1001");
            ask(homing, &["reload"]);
            edit(homing, "max_connections = 1001", "max_connections = 1000");
            ask(homing, &["reload"]);
        }
        6 => {
            let (worker, _) = any_worker(homing, app, dice);
            ask(homing, &["drain", &worker]);
            // Who is bound to it stays; where nobody is, it ends.
            homing.wait_until("it drains", |status| {
                let state = workers_of(status, app).into_iter().find(|other| other["id"] == worker.as_str());
                state.is_some_and(|worker| worker["state"] != "ready")
            });
            ask(homing, &["undrain", &worker]);
        }
        7 => drop(ask(homing, &["restart", name, "--rolling"])),
        _ => {
            // None of its descriptors is closed by that, but it gets no others.
            let pid = Pid::from_raw(homing.pid() as i32);
            let few = Rlimit { current: Some(8), maximum: getrlimit(Resource::Nofile).maximum };
            let before = prlimit(pid, Resource::Nofile, few).expect("its limit");
            std::thread::sleep(Duration::from_millis(500));
            prlimit(pid, Resource::Nofile, before).expect("its limit");
        }
    }
}

fn workers_of(status: &Value, app: usize) -> Vec<Value> {
    status["apps"][app]["workers"].as_array().cloned().unwrap_or_default()
}

/// One of those that take clients: its id and its process.
fn any_worker(homing: &Homing, app: usize, dice: &mut Dice) -> (String, i32) {
    let ready: Vec<Value> =
        workers_of(&homing.status(), app).into_iter().filter(|worker| worker["state"] == "ready").collect();
    let worker = &ready[dice.throw(ready.len())];
    let pid = worker["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("a process");
    (worker["id"].as_str().expect("an id").to_owned(), pid)
}

/// Of one process each counter only grows.
fn assert_counters_grow(last: &Value, now: &Value) {
    if last["pid"] != now["pid"] {
        return;
    }
    let counters = |status: &Value| status["counters"].as_object().cloned().expect("counters");
    let now = counters(now);
    for (name, before) in counters(last) {
        assert!(now[&name].as_u64() >= before.as_u64(), "{name} went from {before} to {}", now[&name]);
    }
}

/// What homing takes of the machine.
#[derive(Debug)]
struct Size {
    descriptors: usize,
    memory_kib: u64,
}

impl Size {
    fn of(homing: &Homing) -> Self {
        let proc = format!("/proc/{}", homing.pid());
        let status = std::fs::read_to_string(format!("{proc}/status")).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
        let memory_kib = line.trim().trim_end_matches(" kB").parse().expect("a number");
        Self { descriptors: std::fs::read_dir(format!("{proc}/fd")).expect("it runs").count(), memory_kib }
    }
}
