//! What is done to homing, to its workers and to the machine. Each fault waits until it is over, and until `homing status` or the
//! log has told of it where somebody has to know.

use std::io::Write as _;
use std::net::{SocketAddr, SocketAddrV4};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use homing_tests::forged;
use homing_tests::groups::directories;
use homing_tests::instance::{Homing, ask, edit, is_alive, signal, wait_for, workers};
use homing_tests::network::{Network, SERVER_V4, client_v4, stranger_v4};
use homing_tests::session::Client;
use homing_tests::skips::skip_part;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};

use crate::disk::Disk;
use crate::visits::Done;
use crate::{APPS, BINDINGS, Dice, PORTS};

/// Where faults happen, and what they leave for the judgement.
pub struct Machine<'a> {
    pub homing: Homing,
    network: &'a Network,
    disk: &'a Disk,
    pub done: Done,
    pub formers: Vec<Child>,
}

type Fault = fn(&mut Machine<'_>, usize, &mut Dice);

pub fn all() -> Vec<(&'static str, Fault)> {
    vec![
        ("a worker killed", worker_killed),
        ("a worker stopped for a moment", worker_stopped),
        ("a worker out of memory", worker_out_of_memory),
        ("a worker drained", worker_drained),
        ("a rolling restart", rolling_restart),
        ("homing killed", homing_killed),
        ("homing stopped for a moment", homing_stopped),
        ("homing replaced", homing_replaced),
        ("homing without descriptors", no_descriptors),
        ("the configuration changed", configuration_changed),
        ("an app comes and goes", app_comes_and_goes),
        ("the link down", link_down),
        ("the disk full", disk_full),
        ("the table of bindings full", bindings_full),
        ("clients that never read", clients_that_never_read),
        ("a flood from 100,000 addresses", flood_of_syns),
    ]
}

impl<'a> Machine<'a> {
    pub fn new(homing: Homing, network: &'a Network, disk: &'a Disk) -> Self {
        Self { homing, network, disk, done: Done::default(), formers: Vec::new() }
    }

    /// To strangers, and to forged addresses: answers go somewhere, as they would on the internet.
    pub fn ways_back(&self) {
        self.network.server.ip(&["route", "replace", "default", "via", &client_v4(1).to_string(), "dev", "eth0"]);
    }

    /// One of those that take clients: its id and its process.
    fn any_worker(&self, app: usize, dice: &mut Dice) -> (String, i32) {
        let ready: Vec<_> =
            workers(&self.homing.status(), app).into_iter().filter(|worker| worker["state"] == "ready").collect();
        let worker = &ready[dice.throw(ready.len())];
        let pid = worker["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("a process");
        (worker["id"].as_str().expect("an id").to_owned(), pid)
    }

    fn kill_worker(&mut self, app: usize, dice: &mut Dice) {
        let (id, pid) = self.any_worker(app, dice);
        self.done.ended.insert(pid as u32);
        let from = Instant::now();
        signal(pid, Signal::KILL);
        self.homing.wait_until("it is told why the worker ended", |status| {
            let worker = workers(status, app).into_iter().find(|worker| worker["id"] == id.as_str());
            // Of one that an earlier homing started the signal is not known.
            let told = worker.map(|worker| worker["history"].to_string()).unwrap_or_default();
            ["SIGKILL", "how is not known"].iter().any(|why| told.contains(why))
        });
        self.done.deaths.push((app, from, Instant::now()));
    }
}

fn worker_killed(machine: &mut Machine<'_>, app: usize, dice: &mut Dice) {
    machine.kill_worker(app, dice);
}

fn worker_stopped(machine: &mut Machine<'_>, app: usize, dice: &mut Dice) {
    let (_, pid) = machine.any_worker(app, dice);
    signal(pid, Signal::STOP);
    std::thread::sleep(Duration::from_millis(500));
    signal(pid, Signal::CONT);
}

/// Something in the worker's cgroup takes more than the worker may have: the kernel chooses whom it kills for that.
fn worker_out_of_memory(machine: &mut Machine<'_>, app: usize, dice: &mut Dice) {
    if machine.homing.status()["isolation"]["memory"]["by"] == "polling" {
        skip_part("no memory controller here, and so no worker that is killed for its memory");
        return;
    }
    let (_, pid) = machine.any_worker(app, dice);
    let told = || machine.homing.said().matches("it used more than memory_max").count();
    let before = told();
    let from = Instant::now();
    let groups = directories(pid).into_iter().map(|group| format!("echo $$ > {}/cgroup.procs; ", group.display()));
    let script = groups.collect::<String>() + "exec python3 -c \"b'x' * (1 << 30)\"";
    let eater = Command::new("sh").args(["-c", &script]).status().expect("sh is there");
    assert!(!eater.success(), "the kernel let it have more than memory_max");
    wait_for("it is told that memory ran out", || (told() > before).then_some(()));
    machine.done.deaths.push((app, from, Instant::now()));
    if !is_alive(pid) {
        machine.done.ended.insert(pid as u32);
    }
}

fn worker_drained(machine: &mut Machine<'_>, app: usize, dice: &mut Dice) {
    let (worker, _) = machine.any_worker(app, dice);
    ask(&machine.homing, &["drain", &worker]);
    // Who is bound to it stays; where nobody is, it ends.
    machine.homing.wait_until("it drains", |status| {
        let state = workers(status, app).into_iter().find(|other| other["id"] == worker.as_str());
        state.is_some_and(|worker| worker["state"] != "ready")
    });
    ask(&machine.homing, &["undrain", &worker]);
}

fn rolling_restart(machine: &mut Machine<'_>, app: usize, _: &mut Dice) {
    ask(&machine.homing, &["restart", APPS[app], "--rolling"]);
}

fn homing_killed(machine: &mut Machine<'_>, _: usize, _: &mut Dice) {
    let from = Instant::now();
    machine.homing.kill();
    machine.homing.start_again();
    machine.done.absences.push((from, Instant::now()));
}

/// As on a machine that was put to sleep: whoever needs homing waits.
fn homing_stopped(machine: &mut Machine<'_>, _: usize, _: &mut Dice) {
    let paused = machine.homing.pause();
    std::thread::sleep(Duration::from_secs(1));
    drop(paused);
}

fn homing_replaced(machine: &mut Machine<'_>, _: usize, _: &mut Dice) {
    let successor = machine.homing.replace();
    let former = machine.homing.now(successor);
    machine.formers.push(former);
}

fn no_descriptors(machine: &mut Machine<'_>, _: usize, _: &mut Dice) {
    // None of its descriptors is closed by that, but it gets no others.
    let pid = Pid::from_raw(machine.homing.pid() as i32);
    let few = Rlimit { current: Some(8), maximum: getrlimit(Resource::Nofile).maximum };
    let before = prlimit(pid, Resource::Nofile, few).expect("its limit");
    std::thread::sleep(Duration::from_millis(500));
    prlimit(pid, Resource::Nofile, before).expect("its limit");
}

fn configuration_changed(machine: &mut Machine<'_>, _: usize, _: &mut Dice) {
    for (from, to) in
        [("max_connections = 1000", "max_connections = 1001"), ("max_connections = 1001", "max_connections = 1000")]
    {
        edit(&machine.homing, from, to);
        ask(&machine.homing, &["reload"]);
    }
}

fn app_comes_and_goes(machine: &mut Machine<'_>, _: usize, _: &mut Dice) {
    let file = machine.homing.dir().join("homing.toml");
    let text = std::fs::read_to_string(&file).expect("the configuration");
    let other = crate::app(0).replace(APPS[0], "passing").replace(&format!(":{}", PORTS[0]), ":8082");
    std::fs::write(&file, format!("{text}{other}")).expect("written");
    ask(&machine.homing, &["reload"]);
    machine.homing.wait_for_workers(2, crate::WORKERS as usize);
    std::fs::write(&file, text).expect("written");
    ask(&machine.homing, &["reload"]);
    machine
        .homing
        .wait_until("the app has left", |status| status["apps"].as_array().is_some_and(|apps| apps.len() == 2));
}

fn link_down(machine: &mut Machine<'_>, _: usize, _: &mut Dice) {
    machine.network.server.ip(&["link", "set", "eth0", "down"]);
    std::thread::sleep(Duration::from_millis(200));
    machine.network.server.ip(&["link", "set", "eth0", "up"]);
    // These went with it, and those who are still leaving are to be answered.
    machine.ways_back();
}

/// A worker is started again, though that cannot be written down.
fn disk_full(machine: &mut Machine<'_>, app: usize, dice: &mut Dice) {
    let disk = machine.disk;
    disk.while_full(|| {
        machine.kill_worker(app, dice);
        machine.homing.wait_for_workers(app, crate::WORKERS as usize);
        machine.homing.wait_until("it is told", |status| {
            status["unsaved"].as_str().is_some_and(|why| why.contains("No space left"))
        });
    });
    machine.homing.wait_until("it is saved again", |status| status["unsaved"].is_null());
}

/// More clients than the kernel may remember.
fn bindings_full(machine: &mut Machine<'_>, _: usize, _: &mut Dice) {
    let from = Instant::now();
    machine.network.clients.enter(|| {
        for number in 0..BINDINGS + BINDINGS / 2 {
            let target = SocketAddr::from((SERVER_V4, PORTS[0]));
            let stranger = Client { namespace: None, from: stranger_v4(number), target };
            // Who finds no worker at this moment does not count.
            let _ = stranger.connect();
        }
    });
    machine.done.crowds.push((from, Instant::now()));
    let tables = machine.homing.status()["tables"].clone();
    let bindings =
        tables.as_array().and_then(|tables| tables.iter().find(|table| table["name"] == "bindings")).cloned();
    let used = bindings.as_ref().and_then(|table| table["used"].as_u64());
    assert!(used > Some(u64::from(BINDINGS) / 2), "status tells how full it is: {bindings:?}");
}

/// They ask for one page after the other, and take none of them.
fn clients_that_never_read(machine: &mut Machine<'_>, app: usize, _: &mut Dice) {
    let target = SocketAddr::from((SERVER_V4, PORTS[app]));
    let client = Client { namespace: Some(&machine.network.clients), from: client_v4(1), target };
    let mut silent = Vec::new();
    for _ in 0..32 {
        let Ok(mut stream) = client.connect() else { continue };
        stream.set_nonblocking(true).expect("it is a socket");
        let request = format!("GET / HTTP/1.1\r\nHost: {target}\r\n\r\n");
        // Until nobody takes more, or far beyond what buffers hold.
        let _ = (0..2_000).try_for_each(|_| stream.write_all(request.as_bytes()));
        silent.push(stream);
    }
    std::thread::sleep(Duration::from_millis(500));
}

fn flood_of_syns(machine: &mut Machine<'_>, app: usize, _: &mut Dice) {
    forged::flood(&machine.network.clients, SocketAddrV4::new(SERVER_V4, PORTS[app]), 100_000);
}
