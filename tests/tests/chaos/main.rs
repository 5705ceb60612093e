//! Faults, one after the other and none left out, while clients of both paths come again and again: see `faults`. Nobody may
//! lose a worker that lives, what homing counts only grows, what is wrong is told, and afterwards homing is as large as
//! before. Needs root.
//!
//! `cargo xtask chaos --seconds 600` goes on for longer; HOMING_CHAOS_SEED=N does the same again.

mod disk;
mod faults;
mod visits;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use homing::demo::client::Outcome;
use homing_tests::instance::{Homing, demo_app, wait_for};
use homing_tests::network::{Namespace, Network, SERVER_V4};
use serde_json::Value;

use disk::Disk;
use faults::Machine;
use visits::{CLIENTS, Visit, visit_again_and_again};

const WORKERS: u32 = 3;
const PORTS: [u16; 2] = [8080, 8081];
const APPS: [&str; 2] = ["addresses", "cookies"];
/// Of a run that is not told how long.
const SECONDS: u64 = 45;
/// Clients that the kernel remembers: few, so that it can be made to forget.
const BINDINGS: u16 = 1_024;

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

fn app(app: usize) -> String {
    let table = demo_app(APPS[app], &[(SERVER_V4, PORTS[app]).into()], "127.0.0.1", WORKERS, "");
    let affinity = if app == 0 { "ip" } else { "cookie" };
    table.replace("affinity = \"ip\"", &format!("affinity = \"{affinity}\"")).replace(
        &format!("max = {WORKERS}"),
        &format!("max = {WORKERS}\nmax_connections = 1000\nmemory_max = \"200MiB\""),
    )
}

#[test]
fn whatever_happens_nobody_loses_a_worker_that_lives() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_nanos() as u64 | 1);
    let seed = setting("HOMING_CHAOS_SEED", now);
    let span = Duration::from_secs(setting("HOMING_CHAOS_SECONDS", SECONDS));
    println!("HOMING_CHAOS_SEED={seed}");
    let network = Network::new(CLIENTS + 1);
    let wrapper = network.server.wrapper();
    let settings = format!("bindings = {BINDINGS}");
    let homing =
        Homing::configured(&wrapper.each_ref().map(String::as_str), &settings, &format!("{}{}", app(0), app(1)));
    // In this order: what lies on the disk ends before it.
    let disk = Disk::below(homing.dir());
    let mut machine = Machine::new(homing, &network, &disk);
    machine.ways_back();
    machine.homing.start_again();
    (0..2).for_each(|app| drop(machine.homing.wait_for_workers(app, WORKERS as usize)));
    let before = Size::of(&machine.homing);
    let is_over = AtomicBool::new(false);
    let visits: Mutex<Vec<Visit>> = Mutex::default();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            network.clients.enter(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                let everybody = (0..2 * CLIENTS).map(|number| visit_again_and_again(number, &is_over, &visits));
                runtime.block_on(futures_util::future::join_all(everybody))
            });
        });
        let chaos = std::panic::AssertUnwindSafe(|| {
            let mut dice = Dice(seed);
            let begun = Instant::now();
            let mut last = machine.homing.status();
            let mut waiting = Vec::new();
            while begun.elapsed() < span {
                if waiting.is_empty() {
                    waiting = faults::all();
                }
                let (name, fault) = waiting.swap_remove(dice.throw(waiting.len()));
                let app = dice.throw(APPS.len());
                println!("{:6.1} s: {name}, {}", begun.elapsed().as_secs_f64(), APPS[app]);
                fault(&mut machine, app, &mut dice);
                (0..2).for_each(|app| drop(machine.homing.wait_for_workers(app, WORKERS as usize)));
                let status = machine.homing.status();
                assert_counters_grow(&last, &status);
                last = status;
            }
        });
        let outcome = std::panic::catch_unwind(chaos);
        is_over.store(true, Ordering::Relaxed);
        if let Err(panic) = outcome {
            println!("HOMING_CHAOS_SEED={seed}\n{}", machine.homing.said());
            std::panic::resume_unwind(panic);
        }
    });
    for former in &mut machine.formers {
        // It ends with the last connection that it has.
        wait_for("a former homing has ended", || former.try_wait().expect("it can be waited for"));
    }
    let visits = visits.into_inner().expect("nobody panicked");
    let (passed, failed): (Vec<&Visit>, Vec<&Visit>) = visits.iter().partition(|visit| visit.outcome.passed());
    let lost: Vec<&Outcome> =
        failed.iter().filter(|visit| machine.done.excuse(visit).is_none()).map(|visit| &visit.outcome).collect();
    println!("{} visits passed, {} failed with their worker or with homing", passed.len(), failed.len() - lost.len());
    let said = || machine.homing.said();
    assert!(
        lost.is_empty(),
        "seed {seed}: {} of {} lost a worker that lives: {lost:#?}\n{}",
        lost.len(),
        visits.len(),
        said()
    );
    assert!(passed.len() > usize::from(CLIENTS), "seed {seed}: hardly anybody was served");
    // All have gone, but not all that the kernel has must know: a connection that was made by SYN cookie in a flood can stay without
    // its other end. That is the worker's; but nothing else may be counted.
    machine.homing.wait_until("what is counted is what is open", |status| {
        (0..2).all(|app| status["apps"][app]["connections"] == open(&network.server, PORTS[app]))
    });
    let status = machine.homing.wait_until("the state is saved", |status| status["unsaved"].is_null());
    assert_eq!(status["kernel_path"]["active"], true, "seed {seed}: {}", status["kernel_path"]);
    let after = Size::of(&machine.homing);
    // It may be another process than at the beginning, with what it needs to adopt.
    assert!(after.descriptors <= before.descriptors + 24, "seed {seed}: {before:?} {after:?}");
    assert!(after.memory_kib <= 2 * before.memory_kib, "seed {seed}: {before:?} {after:?}");
}

/// Connections to a port in a namespace that are there, and not just remembered or half made.
fn open(machine: &Namespace, port: u16) -> usize {
    const SYN_RECV: &str = "03";
    const TIME_WAIT: &str = "06";
    const LISTEN: &str = "0A";
    const NEW_SYN_RECV: &str = "0C";
    let table = machine.enter(|| std::fs::read_to_string("/proc/thread-self/net/tcp").expect("the kernel has TCP"));
    let local = format!(":{port:04X}");
    let is_open = |line: &&str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words[1].ends_with(&local) && ![SYN_RECV, TIME_WAIT, LISTEN, NEW_SYN_RECV].contains(&words[3])
    };
    table.lines().skip(1).filter(is_open).count()
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
