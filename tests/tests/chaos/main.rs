//! Faults, one after the other and each at least once, while clients of both paths come again and again: see `faults`. Nobody may
//! lose a worker that lives, what homing counts only grows, what is wrong is told while it is, and after each fault homing is as
//! large as before. Needs root.
//!
//! `cargo xtask chaos --seconds 600` goes on for longer; HOMING_CHAOS_SEED=N does the same again.

mod counted;
mod disk;
mod excuses;
mod faults;
mod judge;
mod level;
mod tcp;
mod visits;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use homing_tests::instance::{Homing, demo_app};
use homing_tests::network::{Network, SERVER_V4};
use homing_tests::skips::skip_part;

use counted::METRICS;
use disk::Disk;
use faults::{ALL, Machine};
use judge::Judge;
use visits::{CLIENTS, Visitors};

const WORKERS: u32 = 3;
const PORTS: [u16; 2] = [8080, 8081];
const APPS: [&str; 2] = ["addresses", "cookies"];
/// Of a run that is not told how long; longer where it takes longer to do everything once.
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
    let health = "health = { path = \"/health\", interval = \"1s\" }";
    let table = demo_app(APPS[app], &[(SERVER_V4, PORTS[app]).into()], "127.0.0.1", WORKERS, health);
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
    println!("HOMING_CHAOS_SEED={seed}");
    let network = Network::new(CLIENTS + 1);
    let wrapper = network.server.wrapper();
    let settings = format!("bindings = {BINDINGS}\nmetrics = {METRICS:?}");
    let homing =
        Homing::configured(&wrapper.each_ref().map(String::as_str), &settings, &format!("{}{}", app(0), app(1)));
    // In this order: what lies on the disk ends before it.
    let disk = Disk::below(homing.dir());
    let mut machine = Machine::new(homing, &network, &disk);
    machine.ways_back();
    machine.homing.start_again();
    machine.wait_for_workers();
    let visitors = Visitors::default();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            network.clients.enter(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                runtime.block_on(visitors.come());
            });
        });
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| chaos(&mut machine, &visitors, Dice(seed))));
        visitors.end();
        if let Err(panic) = outcome {
            println!("HOMING_CHAOS_SEED={seed}\n{}", machine.homing.said());
            std::panic::resume_unwind(panic);
        }
    });
}

/// Everything once, then what the dice say, until it is time.
fn chaos(machine: &mut Machine<'_>, visitors: &Visitors, mut dice: Dice) {
    let span = Duration::from_secs(setting("HOMING_CHAOS_SECONDS", SECONDS));
    let begun = Instant::now();
    let mut judge = Judge::new(machine, visitors);
    let mut waiting = ALL.to_vec();
    let mut times = BTreeMap::from(ALL.map(|(name, _)| (name, 0)));
    let mut left_out: Vec<&str> = Vec::new();
    let mut is_first_round = true;
    while is_first_round || begun.elapsed() < span {
        let (name, fault) = waiting.swap_remove(dice.throw(waiting.len()));
        let app = dice.throw(APPS.len());
        println!("{:6.1} s: {name}, {}", begun.elapsed().as_secs_f64(), APPS[app]);
        visitors.let_come();
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
            fault(machine, app, &mut dice);
            judge.judge(machine, visitors);
        }));
        if let Err(panic) = outcome {
            println!("This was after {name:?}, done to {:?}.", APPS[app]);
            std::panic::resume_unwind(panic);
        }
        match machine.left_out.take() {
            Some(why) => {
                skip_part(&why);
                left_out.push(name);
            }
            None => *times.entry(name).or_default() += 1,
        }
        if waiting.is_empty() {
            waiting = ALL.to_vec();
            is_first_round = false;
        }
    }
    judge.sum_up(machine);
    println!("{:.0} s: {times:#?}", begun.elapsed().as_secs_f64());
    times.retain(|name, times| *times == 0 && !left_out.contains(name));
    assert!(times.is_empty(), "never happened: {:?}", times.keys());
}
