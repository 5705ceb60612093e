//! A thousand workers' ends and starts leave homing as it was. Needs root.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Instant;

use homing_tests::groups::directories;
use homing_tests::instance::{Homing, binary, free_address, signal, wait_for, workers};
use homing_tests::session::Client;
use rustix::process::Signal;
use serde_json::Value;

/// Workers on ports and on unix sockets. Killed together, they are started again together.
const ON_PORTS: usize = 60;
const ON_SOCKETS: usize = 40;
const WORKERS: usize = ON_PORTS + ON_SOCKETS;
/// A fifth crash in a row, none of them half a minute after the one before, would be one too many.
const CRASHES_IN_A_ROW: usize = 4;
/// What homing may have more of in memory than before the thousand.
const GROWTH_KIB_MAX: u64 = 3 << 10;

fn app(name: &str, workers: usize, listens: &str) -> String {
    format!(
        "[[app]]\nname = {name:?}\nlisten = [\"{}\"]\ncommand = [{:?}, \"demo-worker\", {listens}]\n\
         [app.workers]\nmin = {workers}\nmax = {workers}\n",
        free_address(),
        binary()
    )
}

fn is_whole(status: &Value) -> bool {
    [ON_PORTS, ON_SOCKETS].into_iter().enumerate().all(|(app, count)| {
        let workers = workers(status, app);
        let ready = workers.iter().filter(|worker| worker["state"] == "ready").count();
        status["apps"][app]["restarting"] == false && ready == count && workers.len() == count
    })
}

/// How often each worker was started again.
fn restarts(status: &Value) -> BTreeMap<String, u64> {
    let all = [workers(status, 0), workers(status, 1)].concat();
    let entry = |worker: &Value| Some((worker["id"].as_str()?.to_owned(), worker["restarts"].as_u64()?));
    all.iter().filter_map(entry).collect()
}

fn pids(homing: &Homing) -> BTreeSet<i32> {
    (0..2).flat_map(|app| homing.pids(app)).collect()
}

/// Kills every worker and waits until each of them is back.
fn kill_all(homing: &Homing) -> usize {
    let before: BTreeMap<String, u64> = restarts(&homing.status()).into_iter().map(|(id, n)| (id, n + 1)).collect();
    let killed = pids(homing);
    killed.iter().for_each(|&pid| signal(pid, Signal::KILL));
    let status = homing.wait_until("all are back", |status| is_whole(status) && restarts(status) == before);
    assert!(pids(homing).is_disjoint(&killed), "{status:#}");
    killed.len()
}

/// `homing restart` of both apps, until the old ones are gone.
fn restart_all(homing: &Homing) -> usize {
    let old = pids(homing);
    for app in ["ports", "sockets"] {
        let told = homing.ask(&["restart", app]);
        assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    }
    homing.wait_until("the old ones have ended", is_whole);
    assert!(pids(homing).is_disjoint(&old));
    old.len()
}

fn entries(dir: &Path) -> usize {
    fs::read_dir(dir).into_iter().flatten().flatten().count()
}

/// What a homing has, as the system sees it.
#[derive(Debug, PartialEq)]
struct Has {
    descriptors: usize,
    threads: usize,
    /// Its children: workers, and nothing that waits to be waited for.
    children: usize,
    zombies: usize,
    /// Directories of workers' cgroups, over all hierarchies.
    groups: usize,
    /// Directories of workers' sockets.
    sockets: usize,
    /// Workers in the kernel path's table.
    live: usize,
    state_files: Vec<String>,
}

impl Has {
    fn of(homing: &Homing) -> Self {
        let pid = homing.status()["pid"].as_i64().expect("its id");
        let worker = *pids(homing).first().expect("workers");
        let parents = directories(worker).into_iter().filter_map(|group| Some(group.parent()?.to_owned()));
        let groups =
            |parent: &Path| fs::read_dir(parent).into_iter().flatten().flatten().filter(|e| e.path().is_dir()).count();
        let stat = |pid: &str| fs::read_to_string(format!("/proc/{pid}/stat")).ok();
        let names =
            fs::read_dir("/proc").expect("readable").flatten().map(|e| e.file_name().to_string_lossy().into_owned());
        let stats = names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).filter_map(|pid| stat(&pid));
        let is_child = |stat: &String| {
            stat.rsplit(") ").next().is_some_and(|rest| rest.split(' ').nth(1) == Some(&pid.to_string()))
        };
        let children: Vec<String> = stats.filter(is_child).collect();
        let is_zombie = |stat: &&String| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'));
        let files = fs::read_dir(homing.dir().join("state")).expect("readable").flatten();
        let mut state_files: Vec<_> = files.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        state_files.sort();
        Self {
            descriptors: entries(Path::new(&format!("/proc/{pid}/fd"))),
            threads: entries(Path::new(&format!("/proc/{pid}/task"))),
            children: children.len(),
            zombies: children.iter().filter(is_zombie).count(),
            groups: parents.map(|parent| groups(&parent)).sum(),
            sockets: entries(&homing.dir().join("run")),
            live: live(&homing.pin_dir().join("LIVE")),
            state_files,
        }
    }

    /// Threads that nobody needs end after some seconds; no more of them than now are left then.
    fn wait_for(&self, homing: &Homing) {
        let mut last = None;
        let is_so = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for("homing has what it had", || {
                let now = Self::of(homing);
                let is_so = now.threads <= self.threads && Self { threads: self.threads, ..now } == *self;
                last = Some(Self::of(homing));
                is_so.then_some(())
            });
        }));
        assert!(is_so.is_ok(), "it had {self:#?} and has {last:#?}");
    }
}

fn live(pin: &Path) -> usize {
    let map = aya::maps::MapData::from_pin(pin).expect("the table is pinned");
    let map = aya::maps::Array::<_, [u64; 3]>::try_from(aya::maps::Map::Array(map)).expect("by backend's index");
    map.iter().flatten().filter(|live| live[0] != 0).count()
}

fn rss_kib(homing: &Homing) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", homing.status()["pid"])).expect("homing runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("its memory");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

#[test]
fn a_thousand_ends_and_starts_of_workers_leave_homing_as_it_was() {
    let apps =
        app("ports", ON_PORTS, "\"--port\", \"{port}\"") + &app("sockets", ON_SOCKETS, "\"--socket\", \"{socket}\"");
    let mut homing = Homing::start_under(&[], "starts_at_once = 16", &apps);
    homing.wait_until("all are ready", is_whole);
    // Once round before it is looked at: what is needed once is there then.
    kill_all(&homing);
    restart_all(&homing);
    let (before, memory_before) = (Has::of(&homing), rss_kib(&homing));
    assert_eq!((before.children, before.zombies, before.live), (WORKERS, 0, WORKERS), "{before:#?}");
    let begun = Instant::now();
    let mut ended = 0;
    while ended < 1_000 {
        for _ in 0..CRASHES_IN_A_ROW {
            ended += kill_all(&homing);
        }
        ended += restart_all(&homing);
    }
    let took = begun.elapsed();
    before.wait_for(&homing);
    let memory = rss_kib(&homing);
    println!("{ended} ends in {took:?}; {memory_before} KiB of memory before, {memory} after");
    assert!(memory <= memory_before + GROWTH_KIB_MAX, "{memory_before} KiB before, {memory} KiB after");
    // What it wrote down is what is.
    let all = pids(&homing);
    homing.kill();
    homing.start_again();
    homing.wait_until("all are adopted", is_whole);
    assert_eq!(pids(&homing), all);
    for app in 0..2 {
        let target =
            homing.status()["apps"][app]["listen"][0].as_str().and_then(|at| at.parse().ok()).expect("an address");
        let client = Client { namespace: None, from: [127, 0, 0, 1].into(), target };
        assert_eq!(client.get("/health").expect("answered").status, 200);
    }
    homing.stop_at_once();
    assert_eq!(entries(&homing.dir().join("run")), 0);
}
