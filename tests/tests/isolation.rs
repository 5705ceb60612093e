//! All of a worker ends with it, and it uses and reaches only what it is meant to. Needs root.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use homing_tests::groups::{directories, groups};
use homing_tests::instance::{Homing, free_address, is_alive, signal, wait_for, workers};
use homing_tests::session::Client;
use homing_tests::skips::skip;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

const FAMILY: &str = include_str!("../apps/family.py");

/// A worker's program, where every user can read it.
struct Program {
    folder: TempDir,
    listen: SocketAddr,
}

impl Program {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("changed");
        fs::write(folder.path().join("family.py"), FAMILY).expect("written");
        Self { folder, listen: free_address() }
    }

    /// Its `[[app]]`; `kind` is the program's, `keys` are lines of the app, `workers` of its workers.
    fn app(&self, kind: &str, keys: &str, workers: &str) -> String {
        format!(
            "[[app]]\nname = \"odd\"\nlisten = [\"{}\"]\naffinity = \"ip\"\ndirectory = {:?}\n\
             command = [\"/usr/bin/python3\", \"family.py\", \"{{port}}\", {kind:?}]\n{keys}\n[app.workers]\nmin = 1\nmax = 1\n{workers}\n",
            self.listen,
            self.folder.path(),
        )
    }

    fn ask(&self, route: &str) -> Value {
        let client = Client { namespace: None, from: IpAddr::V4(Ipv4Addr::LOCALHOST), target: self.listen };
        let answer = client.get(route).expect("answered");
        assert_eq!(answer.status, 200, "{route}: {answer:?}");
        serde_json::from_str(&answer.body).expect("the program answers in JSON")
    }

    /// Starts a homing with one worker.
    fn start(&self, settings: &str, app: &str) -> Homing {
        let homing = Homing::start_under(&[], settings, app);
        homing.wait_for_workers(0, 1);
        homing
    }
}

/// Everyone whom the worker has started, itself first.
fn family(said: &Value) -> Vec<i32> {
    let pool = said["pool"].as_array().expect("its pool").iter();
    let pids: Vec<i32> = [&said["pid"], &said["daemon"]]
        .into_iter()
        .chain(pool)
        .map(|pid| pid.as_i64().expect("an id") as i32)
        .collect();
    assert_eq!(pids.len(), 4, "{said}");
    assert!(pids.iter().all(|&pid| is_alive(pid)), "{said}");
    pids
}

fn wait_for_end(pids: &[i32]) {
    wait_for("nothing of the worker is left", || pids.iter().all(|&pid| !is_alive(pid)).then_some(()));
}

fn by(homing: &Homing, what: &str) -> String {
    homing.status()["isolation"][what]["by"].as_str().expect("status says how").to_owned()
}

fn wait_for_restart(homing: &Homing) -> Value {
    let status = homing.wait_until("it was started again", |status| {
        let worker = &workers(status, 0)[0];
        worker["restarts"] == 1 && worker["state"] == "ready"
    });
    workers(&status, 0)[0].clone()
}

/// Changes the configuration for the next start.
fn reconfigure(homing: &Homing, change: impl FnOnce(String) -> String) {
    let path = homing.dir().join("homing.toml");
    let text = fs::read_to_string(&path).expect("readable");
    fs::write(path, change(text)).expect("written");
}

/// Waits until homing has said it.
fn wait_for_word(homing: &Homing, word: &str) {
    wait_for(word, || homing.said().contains(word).then_some(()));
}

#[test]
fn a_killed_worker_takes_its_pool_and_its_detached_daemon_with_it() {
    let program = Program::new();
    let homing = program.start("", &program.app("family", "", ""));
    let pids = family(&program.ask("/family"));
    let directories = directories(pids[0]);
    if by(&homing, "processes") == "proc" {
        skip("no cgroups here");
        return;
    }
    assert!(!directories.is_empty());
    for &pid in &pids {
        assert_eq!(groups(pid), groups(pids[0]), "all are in one place");
    }
    signal(pids[0], Signal::KILL);
    wait_for_end(&pids);
    wait_for_restart(&homing);
    wait_for("its groups are removed", || directories.iter().all(|directory| !directory.exists()).then_some(()));
}

#[test]
fn after_a_kill_of_homing_workers_are_adopted_with_their_groups_and_a_stop_leaves_nothing() {
    let program = Program::new();
    let mut homing = program.start("", &program.app("family", "", "memory_max = \"900MiB\""));
    let pids = family(&program.ask("/family"));
    let before = groups(pids[0]);
    let directories = directories(pids[0]);
    homing.kill();
    reconfigure(&homing, |text| text.replace("900MiB", "800MiB"));
    homing.start_again();
    let status = homing.wait_for_workers(0, 1);
    assert_eq!(workers(&status, 0)[0]["pid"], pids[0], "adopted: {status:#}");
    assert_eq!(family(&program.ask("/family")), pids, "with all of it");
    assert_eq!(groups(pids[0]), before);
    let limit = |directory: &PathBuf| {
        let files = ["memory.max", "memory.limit_in_bytes"].map(|file| fs::read_to_string(directory.join(file)));
        files.into_iter().find_map(Result::ok)
    };
    if by(&homing, "memory") != "polling" {
        let limit = directories.iter().find_map(limit).expect("its memory is limited");
        assert_eq!(limit.trim(), (800 << 20).to_string(), "what is configured now holds for it, too");
    }
    homing.stop_at_once();
    assert!(pids.iter().all(|&pid| !is_alive(pid)), "something is left of {pids:?}");
    for directory in directories {
        assert!(!directory.exists(), "{directory:?} is left");
        assert!(!directory.parent().expect("it has a parent").exists(), "the parent of {directory:?} is left");
    }
}

#[test]
fn what_a_worker_left_that_died_while_homing_was_dead_is_ended_at_the_next_start() {
    let program = Program::new();
    let mut homing = program.start("", &program.app("family", "", ""));
    if by(&homing, "processes") == "proc" {
        skip("no cgroups here");
        return;
    }
    let pids = family(&program.ask("/family"));
    homing.kill();
    signal(pids[0], Signal::KILL);
    wait_for("the worker is gone", || (!is_alive(pids[0])).then_some(()));
    assert!(is_alive(pids[1]), "its daemon lives on");
    homing.start_again();
    wait_for_end(&pids);
    wait_for_word(&homing, "ended processes that a worker of an earlier run left");
    let status = homing.wait_for_workers(0, 1);
    assert_ne!(workers(&status, 0)[0]["pid"], pids[0]);
}

#[test]
fn an_app_that_is_no_longer_configured_leaves_no_process() {
    let (stays, goes) = (Program::new(), Program::new());
    let app = goes.app("family", "", "").replace("\"odd\"", "\"even\"");
    let mut homing = stays.start("", &(stays.app("", "", "") + &app));
    homing.wait_for_workers(1, 1);
    let (pids, kept) = (family(&goes.ask("/family")), homing.pids(0));
    homing.kill();
    reconfigure(&homing, |text| text.replace(&app, ""));
    homing.start_again();
    wait_for_end(&pids);
    homing.wait_for_workers(0, 1);
    assert_eq!(homing.pids(0), kept);
}

#[test]
fn without_cgroups_the_pool_and_the_daemon_are_known_by_proc() {
    let program = Program::new();
    let homing = program.start("cgroups = \"off\"", &program.app("marked", "", ""));
    assert_eq!(by(&homing, "processes"), "proc");
    let reason = homing.status()["isolation"]["processes"]["reason"].clone();
    assert_eq!(reason, "homing.cgroups = \"off\" in the configuration");
    let pids = family(&program.ask("/family"));
    assert_eq!(groups(pids[0]), [""; 0]);
    signal(pids[0], Signal::KILL);
    wait_for_end(&pids);
}

/// A worker over its limit is killed with the reason, its neighbour goes on; `settings` decide who keeps the limit.
fn a_worker_over_its_memory_is_killed_and_named(settings: &str) -> String {
    let (greedy, modest) = (Program::new(), Program::new());
    let other = modest.app("", "", "memory_max = \"200MiB\"").replace("\"odd\"", "\"even\"");
    let apps = greedy.app("", "", "memory_max = \"200MiB\"") + &other;
    let homing = greedy.start(settings, &apps);
    homing.wait_for_workers(1, 1);
    let neighbour = homing.pids(1)[0];
    greedy.ask("/eat/50");
    let before = homing.pids(0)[0];
    let client = Client { namespace: None, from: IpAddr::V4(Ipv4Addr::LOCALHOST), target: greedy.listen };
    // It dies over the answer, or after it.
    let _ = client.get("/eat/400");
    wait_for_word(&homing, "killed: it used more than memory_max (200 MiB)");
    let worker = wait_for_restart(&homing);
    assert_ne!(worker["pid"], before);
    assert!(is_alive(neighbour));
    modest.ask("/eat/50");
    assert_eq!(workers(&homing.status(), 1)[0]["restarts"], 0);
    by(&homing, "memory")
}

#[test]
fn a_worker_over_memory_max_is_killed_by_the_kernel_and_named() {
    let by = a_worker_over_its_memory_is_killed_and_named("");
    assert!(["v1", "v2", "polling"].contains(&by.as_str()), "{by}");
}

#[test]
fn a_worker_over_memory_max_is_killed_by_homing_where_the_kernel_does_not() {
    assert_eq!(a_worker_over_its_memory_is_killed_and_named("cgroups = \"off\""), "polling");
}

#[test]
fn a_child_killed_for_memory_is_said_and_its_worker_goes_on() {
    let program = Program::new();
    let homing = program.start("", &program.app("", "", "memory_max = \"200MiB\""));
    if by(&homing, "memory") == "polling" {
        skip("no memory controller here");
        return;
    }
    let pid = homing.pids(0)[0];
    let said = program.ask("/child-eats/400");
    assert_eq!(said["ended"], -9, "{said}");
    wait_for_word(&homing, "1 of its processes killed: it used more than memory_max (200 MiB)");
    let worker = &workers(&homing.status(), 0)[0];
    assert_eq!((&worker["pid"], &worker["restarts"], &worker["state"]), (&pid.into(), &0.into(), &"ready".into()));
    assert_eq!(worker["memory_kills"], 1, "{worker}");
    // A kill by hand afterwards is not taken for one by the kernel.
    signal(pid, Signal::KILL);
    wait_for_restart(&homing);
    assert_eq!(homing.said().matches("it used more than memory_max").count(), 1, "{}", homing.said());
}

#[test]
fn cpu_weight_is_given_to_the_kernel() {
    let program = Program::new();
    let homing = program.start("", &program.app("", "", "cpu_weight = 250"));
    let (file, expected) = match by(&homing, "cpu").as_str() {
        "v1" => ("cpu.shares", "2560"),
        "v2" => ("cpu.weight", "250"),
        other => {
            assert_eq!(other, "none");
            wait_for_word(&homing, "cpu_weight");
            return;
        }
    };
    let directories = directories(homing.pids(0)[0]);
    let found = directories.iter().find_map(|directory| fs::read_to_string(directory.join(file)).ok());
    assert_eq!(found.as_deref().map(str::trim), Some(expected), "{directories:?}");
}

#[test]
fn a_worker_starts_clean_whatever_homing_was_started_with() {
    let program = Program::new();
    let limits = "[app.limits]\nopen_files = 256\nprocesses = 500";
    let app = program.app("", &format!("user = \"nobody\"\numask = \"0077\"\n{limits}"), "");
    // Signals ignored and blocked, and a descriptor that nobody closes on exec.
    let script = "import os, signal, sys\n\
        [signal.signal(s, signal.SIG_IGN) for s in (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)]\n\
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])\n\
        os.dup2(os.open('/etc/shadow', os.O_RDONLY), 77)\n\
        os.environ['SECRET'] = 'x'\nos.execv(sys.argv[1], sys.argv[1:])";
    let homing = Homing::start_under(&["python3", "-c", script], "", &app);
    homing.wait_for_workers(0, 1);
    let about = program.ask("/about");
    let environment = about["environment"].as_object().expect("its environment");
    let mut names: Vec<&str> = environment.keys().map(String::as_str).collect();
    names.sort_unstable();
    // Python itself sets LC_CTYPE where LANG is C.
    names.retain(|name| *name != "LC_CTYPE");
    assert_eq!(names, ["HOME", "HOMING_APP", "HOMING_WORKER", "LANG", "PATH", "PORT", "USER"]);
    let fds = about["fds"].as_object().expect("its descriptors");
    let mut open: Vec<(&str, &str)> = fds.iter().map(|(fd, to)| (fd.as_str(), to.as_str().unwrap_or(""))).collect();
    open.sort_unstable();
    assert_eq!(open[0], ("0", "/dev/null"));
    assert!(open[1..].iter().all(|(fd, to)| ["1", "2"].contains(fd) && to.ends_with("/log/odd-0.log")), "{open:?}");
    assert_eq!((&about["uid"], &about["gid"]), (&65534.into(), &65534.into()));
    assert_eq!(about["groups"], serde_json::json!([65534]));
    assert_eq!(about["umask"], "0077");
    assert_eq!(about["cwd"], program.folder.path().to_str().expect("text"));
    assert_eq!(about["sid"], about["pid"], "a session of its own");
    assert_eq!(about["limits"]["open_files"], serde_json::json!([256, 256]));
    assert_eq!(about["limits"]["processes"], serde_json::json!([500, 500]));
    assert_eq!(about["limits"]["core"], serde_json::json!([0, 0]));
    let status = &about["status"];
    assert_eq!(status["SigBlk"], "0000000000000000");
    // Python ignores SIGPIPE and SIGXFSZ itself.
    assert_eq!(status["SigIgn"], "0000000001001000");
    for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
        assert_eq!(status[set], "0000000000000000", "{set}");
    }
    assert_eq!(status["NoNewPrivs"], "1");
}

#[test]
fn group_and_privileges_are_as_configured() {
    let program = Program::new();
    let keys = "user = \"nobody\"\ngroup = \"daemon\"\nno_new_privileges = false";
    let _homing = program.start("", &program.app("", keys, ""));
    let about = program.ask("/about");
    assert_eq!((&about["uid"], &about["gid"]), (&65534.into(), &1.into()));
    assert_eq!(about["groups"], serde_json::json!([1]));
    assert_eq!(about["umask"], "0027");
    assert_eq!(about["status"]["NoNewPrivs"], "0");
}

#[test]
fn a_worker_of_another_user_reaches_nothing_of_homing_and_of_its_neighbour() {
    let (program, neighbour) = (Program::new(), Program::new());
    let other = neighbour.app("", "user = \"daemon\"", "").replace("\"odd\"", "\"even\"");
    let homing = program.start("", &(program.app("", "user = \"nobody\"", "") + &other));
    homing.wait_for_workers(1, 1);
    // What protects is what homing itself has made.
    fs::set_permissions(homing.dir(), fs::Permissions::from_mode(0o755)).expect("changed");
    let own = homing.status()["pid"].as_i64().expect("its id") as i32;
    for pid in [own, homing.pids(1)[0]] {
        let reach = program.ask(&format!("/reach/{pid}{}", homing.dir().display()));
        let said = reach.as_object().expect("attempts");
        assert_eq!(said.len(), 11);
        for (what, outcome) in said {
            let refused = ["Permission denied", "Operation not permitted"].map(Value::from);
            assert!(refused.contains(outcome), "{what} of {pid}: {outcome}");
        }
    }
}

#[test]
fn a_worker_of_root_reaches_homings_files_and_neither_its_memory_nor_its_sockets() {
    let program = Program::new();
    let homing = program.start("", &program.app("", "", ""));
    let said = program.ask(&format!("/reach/{}{}", homing.pid(), homing.dir().display()));
    let refused = ["Permission denied", "Operation not permitted"].map(Value::from);
    for what in ["trace", "getfd", "memory", "environment"] {
        assert!(refused.contains(&said[what]), "{what}: {said}");
    }
    for what in ["connect", "state", "key", "log"] {
        assert!(!refused.contains(&said[what]), "{what}, which is why `homing check` notes them: {said}");
    }
}

#[test]
fn a_worker_deaf_to_its_signal_is_killed_after_its_time() {
    let program = Program::new();
    let mut homing = program.start("", &program.app("deaf", "[app.timeouts]\nstop = \"300ms\"", ""));
    let pid = homing.pids(0)[0];
    homing.stop_at_once();
    assert!(!is_alive(pid));
}

#[test]
fn a_worker_is_asked_by_its_own_signal() {
    let program = Program::new();
    let keys = "stop_signal = \"INT\"\n[app.timeouts]\nstop = \"1h\"";
    let mut homing = program.start("", &program.app("deaf-but-int", keys, ""));
    homing.stop_at_once();
    let log = fs::read_to_string(homing.dir().join("log/odd-0.log")).expect("its output");
    assert!(log.contains("asked by SIGINT"), "{log}");
}

#[test]
fn a_server_below_a_shell_has_its_time_too() {
    let program = Program::new();
    let shell = "command = [\"sh\", \"-c\", \"/usr/bin/python3 family.py $PORT slow; true\"]\n";
    let app = program.app("", "[app.timeouts]\nstop = \"1h\"", "");
    let command = app.lines().find(|line| line.starts_with("command")).expect("there is one");
    let mut homing = program.start("", &app.replace(&format!("{command}\n"), shell));
    homing.stop_at_once();
    let log = fs::read_to_string(homing.dir().join("log/odd-0.log")).expect("its output");
    assert!(log.contains("left in peace"), "{log}");
}

#[test]
fn a_limit_that_may_not_be_raised_is_named_with_the_remedy() {
    let program = Program::new();
    let app = program.app("", "[app.limits]\nopen_files = 8192", "");
    let homing =
        Homing::start_under(&["prlimit", "--nofile=1024:1024", "setpriv", "--bounding-set=-sys_resource"], "", &app);
    wait_for_word(&homing, "limits.open_files = 8192 was refused");
    let said = homing.said();
    assert!(said.contains("homing's own hard limit is 1024") && said.contains("LimitNOFILE="), "{said}");
}

#[test]
fn check_notes_workers_that_run_as_root() {
    let program = Program::new();
    for (keys, is_noted) in [("", true), ("user = \"root\"", true), ("user = \"nobody\"", false)] {
        let homing = Homing::configured(&[], "", &program.app("", keys, "memory_max = \"2GiB\""));
        let checked = std::process::Command::new(homing_tests::instance::binary())
            .args(["check", "--config"])
            .arg(homing.dir().join("homing.toml"))
            .output()
            .expect("homing can be run");
        let said = String::from_utf8_lossy(&checked.stdout);
        assert!(checked.status.success(), "{checked:?}");
        assert_eq!(said.contains("its workers run as root"), is_noted, "{said}");
        assert!(said.contains("memory 2 GiB for all processes of a worker"), "{said}");
    }
}
