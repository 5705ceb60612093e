//! What workers write, and what homing writes down itself: rotated, followed, kept within bounds, and survived when the
//! disk is full. Needs root.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use homing_tests::instance::{Homing, binary, demo_app, free_address, is_alive, signal, wait_for, workers};
use homing_tests::session::Client;
use rustix::process::Signal;
use serde_json::Value;

const MIB: u64 = 1 << 20;

fn local(target: SocketAddr) -> Client<'static> {
    Client { namespace: None, from: IpAddr::V4(Ipv4Addr::LOCALHOST), target }
}

/// An app of one worker: the shell runs `script`, in which `$SERVE` becomes the demo app.
fn scripted(name: &str, listen: SocketAddr, script: &str, more: &str) -> String {
    let script = script.replace("$SERVE", &format!("exec {} demo-worker --port $PORT", binary().display()));
    format!(
        "[[app]]\nname = {name:?}\nlisten = [\"{listen}\"]\naffinity = \"ip\"\ncommand = [\"sh\", \"-c\", {script:?}]\n\
         [app.workers]\nmin = 1\nmax = 1\n{more}\n"
    )
}

/// Bytes that the directory's files take on their disk.
fn room(dir: &Path) -> u64 {
    fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|e| e.metadata().ok()).map(|m| m.blocks() * 512).sum()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `homing logs`, read along.
struct Follower {
    child: Child,
    read: Arc<Mutex<String>>,
}

impl Follower {
    fn of(homing: &Homing, arguments: &[&str]) -> Self {
        let mut child = homing.ask_meanwhile(&[&["logs", "-f"], arguments].concat());
        let mut stdout = child.stdout.take().expect("stdout is piped");
        let read = Arc::new(Mutex::new(String::new()));
        let sink = Arc::clone(&read);
        std::thread::spawn(move || {
            let mut buffer = [0; 65_536];
            while let Ok(length @ 1..) = stdout.read(&mut buffer) {
                sink.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text(&buffer[..length]));
            }
        });
        Self { child, read }
    }

    fn text(&self) -> String {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ctrl-C.
    fn interrupt(mut self) -> std::process::ExitStatus {
        signal(self.child.id().cast_signed(), Signal::INT);
        // A shell starts what it leaves behind with this signal ignored, and so is all that it starts.
        wait_for("Ctrl-C ends it, unless these tests were started where it is ignored", || {
            self.child.try_wait().expect("it can be waited for")
        })
    }
}

#[test]
fn a_follower_sees_every_line_once_over_rotations_and_killed_homings() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let script = "(i=0; while ! [ -e stop ]; do echo line $i; i=$((i+1)); done; echo end) & $SERVE";
    let app = scripted("demo", free_address(), script, "")
        .replace("[app.workers]", &format!("directory = {:?}\n[app.workers]", directory.path()));
    let mut homing = Homing::start_under(&[], "log_max_size = \"64KiB\"\nlog_keep = 1000", &app);
    let follower = Follower::of(&homing, &["demo/0", "-n", "all"]);
    wait_for("some of it was rotated", || homing.dir().join("log/demo-0.log.3").exists().then_some(()));
    for _ in 0..4 {
        let before = follower.text().len();
        homing.kill();
        homing.start_again();
        homing.wait_for_workers(0, 1);
        wait_for("more of it", || (follower.text().len() > before + 100_000).then_some(()));
    }
    fs::write(directory.path().join("stop"), "").expect("written");
    wait_for("the last line", || follower.text().ends_with("end\n").then_some(()));
    let shown = follower.text();
    let count = shown.lines().count() - 1;
    let expected: String = (0..count).map(|number| format!("line {number}\n")).chain(["end\n".to_owned()]).collect();
    let odd = shown.lines().zip(expected.lines()).find(|(shown, expected)| shown != expected);
    assert!(shown == expected, "a line is missing, or there twice: {odd:?}");
    assert!(!follower.interrupt().success(), "Ctrl-C ends it");
    let whole = homing.ask(&["logs", "demo", "-n", "all"]);
    assert!(whole.status.success() && text(&whole.stdout) == expected, "all is kept: {}", text(&whole.stderr));
    let some = homing.ask(&["logs", "demo/0", "-n", "2"]);
    assert_eq!(text(&some.stdout), format!("line {}\nend\n", count - 1));
    wait_for("the file is within its limit", || {
        (fs::metadata(homing.dir().join("log/demo-0.log")).ok()?.blocks() * 512 < 2 * 64 * 1024).then_some(())
    });
}

#[test]
fn output_of_several_workers_has_their_names_and_what_is_not_there_is_told() {
    let listen = free_address();
    let script = "printf 'hello \\377 \\033[2J\\n'; $SERVE";
    let app = scripted("demo", listen, script, "").replace("min = 1\nmax = 1", "min = 2\nmax = 11");
    let mut homing = Homing::start(&app);
    homing.wait_for_workers(0, 2);
    let shown = homing.ask(&["logs", "demo"]);
    let line = "hello \u{fffd} \u{1b}[2J";
    assert_eq!(text(&shown.stdout), format!("demo/0  | {line}\ndemo/1  | {line}\n"));
    let said = text(&shown.stderr);
    assert!(said.contains("as the running homing says") && said.contains("demo/2 has written nothing"), "{said}");
    for (name, error) in [
        ("other", "no app is called \"other\"; there are: demo"),
        ("demo/11", "demo has no worker \"11\"; there are demo/0 to demo/10"),
    ] {
        let refused = homing.ask(&["logs", name]);
        assert_eq!((refused.status.code(), text(&refused.stderr)), (Some(1), format!("homing: {error}\n")));
    }
    // On a terminal the worker cannot clear the screen.
    let on_terminal = Command::new("script")
        .args([
            "-qec",
            &format!(
                "{} logs demo/0 --control-socket {}",
                binary().display(),
                homing.dir().join("control.sock").display()
            ),
        ])
        .arg("/dev/null")
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .output()
        .expect("script runs");
    let on_terminal = text(&on_terminal.stdout);
    assert!(on_terminal.contains("^[[2J") && !on_terminal.contains("\u{1b}[2J"), "{on_terminal:?}");

    let config = homing.dir().join("homing.toml");
    homing.stop_at_once();
    let unreachable = homing.ask(&["logs", "demo"]);
    assert_eq!(unreachable.status.code(), Some(3));
    assert!(text(&unreachable.stderr).contains("homing logs demo --config FILE"), "{unreachable:?}");
    let config = config.to_str().expect("a path");
    let shown = homing.ask(&["logs", "demo/1", "--config", config]);
    assert_eq!(text(&shown.stdout), format!("{line}\n"));
    assert!(text(&shown.stderr).contains("homing.toml says"), "{shown:?}");
    assert_eq!(homing.ask(&["logs", "demo/11", "--config", config]).status.code(), Some(1));
}

fn last_output(status: &Value) -> Vec<String> {
    let lines = workers(status, 0)[0]["last_output"].as_array().cloned().expect("a list");
    lines.iter().map(|line| line.as_str().expect("text").to_owned()).collect()
}

#[test]
fn the_last_lines_of_a_worker_that_crashes_are_its_own_and_shown_where_one_looks() {
    // Each process says which it is, and the last ones say less than five lines.
    let script = "n=$(cat count 2>/dev/null || echo 0); echo $((n+1)) > count; \
                  for i in 1 2 3 4 5 6; do [ $n -lt 3 ] && echo process $n line $i; done; echo process $n ends >&2; exit 3";
    let directory = tempfile::tempdir().expect("a temporary directory");
    let app = scripted("odd", free_address(), script, "")
        .replace("[app.workers]", &format!("directory = {:?}\n[app.workers]", directory.path()));
    let homing = Homing::start(&app);
    let status = homing.wait_until("given up", |status| status["apps"][0]["state"] == "failed");
    assert_eq!(last_output(&status), ["process 4 ends"]);
    let said = homing.said();
    let warnings: Vec<&str> = said.lines().filter(|line| line.contains("last_output=")).collect();
    assert_eq!(warnings.len(), 5, "{said}");
    let first = "last_output=[\"process 0 line 3\", \"process 0 line 4\", \"process 0 line 5\", \"process 0 line 6\", \"process 0 ends\"]";
    assert!(warnings[0].contains(first), "{said}");
    assert!(warnings[4].contains("last_output=[\"process 4 ends\"]"), "{said}");
    let shown = text(&homing.ask(&["status"]).stdout);
    assert!(shown.contains("    last output:\n      | process 4 ends\n"), "{shown}");
}

#[test]
fn the_last_lines_of_a_worker_that_was_not_ready_in_time_or_was_killed_are_kept_and_of_one_that_was_stopped_are_not() {
    let slow = scripted(
        "slow",
        free_address(),
        "echo waiting for the database; exec sleep 1000",
        "[app.timeouts]\nstart = \"1s\"",
    );
    let homing = Homing::start(&slow);
    homing.wait_until("the worker was not ready in time", |status| last_output(status) == ["waiting for the database"]);

    let homing = Homing::start(&scripted("demo", free_address(), "echo hello; $SERVE", ""));
    let status = homing.wait_for_workers(0, 1);
    assert!(last_output(&status).is_empty(), "{status:#}");
    signal(homing.pids(0)[0], Signal::KILL);
    let is_back = |status: &Value| workers(status, 0)[0]["restarts"] == 1 && workers(status, 0)[0]["state"] == "ready";
    assert_eq!(last_output(&homing.wait_until("it is back", is_back)), ["hello"]);
    let shown = text(&homing.ask(&["status"]).stdout);
    assert!(shown.contains("    last output before it was started again:\n      | hello\n"), "{shown}");
    assert!(homing.ask(&["drain", "demo/0"]).status.success());
    homing.wait_until("it was stopped", |status| {
        workers(status, 0)[0]["state"] == "stopped" && last_output(status).is_empty()
    });
}

#[test]
fn a_flood_of_output_neither_stops_the_serving_nor_fills_the_disk() {
    const WRITTEN: u64 = 600 * MIB;
    const KEEP: u64 = 3;
    let (flood, calm) = (free_address(), free_address());
    let directory = tempfile::tempdir().expect("a temporary directory");
    // It begins when it is told to.
    let script = format!(
        "(while ! [ -e go ]; do sleep 0.01; done; yes 'a line of a worker that cannot stop' | head -c {WRITTEN}; touch done) & $SERVE"
    );
    let apps = scripted("flood", flood, &script, "")
        .replace("[app.workers]", &format!("directory = {:?}\n[app.workers]", directory.path()))
        + &demo_app("calm", &[calm], "127.0.0.1", 1, "");
    let homing = Homing::start_under(&[], &format!("log_max_size = \"1MiB\"\nlog_keep = {KEEP}"), &apps);
    homing.wait_for_workers(0, 1);
    homing.wait_for_workers(1, 1);
    let mut session = local(calm).open();
    let log = homing.dir().join("log");
    fs::write(directory.path().join("go"), "").expect("written");
    let (mut peak, mut answers) = (0, 0);
    wait_for("the flood is over", || {
        assert!(session.is_alive());
        assert_eq!(session.check().expect("answered").status, 200);
        answers += 1;
        peak = peak.max(room(&log));
        directory.path().join("done").exists().then_some(())
    });
    wait_for("the rest is rotated", || (room(&log) <= (KEEP + 2) * MIB).then_some(()));
    println!("{answers} answers meanwhile; at most {peak} bytes on disk");
    // Some 10 MB where nobody else wants the processors; on a machine that is busy with other things never all of it.
    assert!(peak < WRITTEN / 4 * 3, "{peak} bytes of {WRITTEN} at once");
    assert_eq!(local(flood).get("/health").expect("the flooding worker serves, too").status, 200);
    let last = text(&homing.ask(&["logs", "flood/0", "-n", "3"]).stdout);
    assert!(last.lines().count() == 3 && last.contains("a worker that cannot stop\n"), "{last}");
}

/// A file system of its own, in memory.
struct Disk(tempfile::TempDir);

impl Disk {
    /// With these options of tmpfs.
    fn new(options: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "homing-test"]).arg(dir.path()).status();
        assert!(mounted.expect("mount runs").success());
        Self(dir)
    }

    fn ballast(&self) -> PathBuf {
        self.0.path().join("ballast")
    }

    /// Leaves no byte free.
    fn fill(&self) {
        let mut file = fs::OpenOptions::new().append(true).create(true).open(self.ballast()).expect("opened");
        while file.write_all(&[b'x'; 4096]).is_ok() {}
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_stops_output_and_saving_but_not_serving_and_both_go_on_when_there_is_room() {
    let disk = Disk::new("size=2m");
    let listen = free_address();
    let script = "(trap '' PIPE; while sleep 0.005; do printf '%01000d\\n' 1; done 2>/dev/null) & $SERVE";
    let app = scripted("demo", listen, script, "");
    let mut homing = Homing::configured(&[], "log_max_size = \"64KiB\"\nlog_keep = 40", &app);
    for dir in ["log", "state"] {
        fs::create_dir(disk.0.path().join(dir)).expect("made");
        std::os::unix::fs::symlink(disk.0.path().join(dir), homing.dir().join(dir)).expect("linked");
    }
    homing.start_again();
    homing.wait_for_workers(0, 1);
    homing.kill();
    // Enough to rotate, and no room for it.
    let log = fs::OpenOptions::new().append(true).open(homing.dir().join("log/demo-0.log"));
    log.and_then(|mut log| log.write_all(&[b'x'; 200_000])).expect("written");
    disk.fill();
    homing.start_again();
    homing.wait_for_workers(0, 1);
    let mut session = local(listen).open();
    for warning in ["workers' output cannot be rotated", "the disk is full: what workers write is lost"] {
        wait_for(warning, || {
            assert_eq!(session.check().expect("answered").status, 200);
            homing.said().contains(warning).then_some(())
        });
    }
    assert!(session.is_alive());
    drop(session);
    // Changes of state that cannot be saved.
    for restarts in 1..4 {
        signal(homing.pids(0)[0], Signal::KILL);
        homing.wait_until("it is back", |status| {
            workers(status, 0)[0]["restarts"] == restarts && workers(status, 0)[0]["state"] == "ready"
        });
        assert_eq!(local(listen).get("/health").expect("answered").status, 200);
    }
    let said = homing.said();
    for warning in [
        "workers' output cannot be rotated",
        "the disk is full: what workers write is lost",
        "the state cannot be saved",
    ] {
        assert_eq!(said.matches(warning).count(), 1, "said once: {said}");
    }
    fs::remove_file(disk.ballast()).expect("removed");
    for good_news in
        ["the state is saved again", "workers' output is rotated again", "there is room for workers' output again"]
    {
        wait_for(good_news, || homing.said().contains(good_news).then_some(()));
    }
    let pids = homing.pids(0);
    homing.kill();
    homing.start_again();
    homing.wait_for_workers(0, 1);
    assert_eq!(homing.pids(0), pids, "the state of after the trouble is what the next run finds");
}

#[test]
fn a_disk_that_takes_no_new_file_keeps_no_worker_from_serving() {
    // Its root, and nothing else.
    let disk = Disk::new("size=2m,nr_inodes=1");
    let listen = free_address();
    let mut homing = Homing::configured(&[], "", &demo_app("demo", &[listen], "127.0.0.1", 1, ""));
    std::os::unix::fs::symlink(disk.0.path(), homing.dir().join("log")).expect("linked");
    homing.start_again();
    homing.wait_for_workers(0, 1);
    assert_eq!(local(listen).get("/health").expect("answered").status, 200);
    assert!(homing.said().contains("no log file: what this worker writes is lost"), "{}", homing.said());
    assert!(text(&homing.ask(&["logs", "demo/0"]).stderr).contains("has written nothing"));
}

#[test]
fn a_damaged_state_file_is_set_aside_and_the_workers_left_behind_are_named() {
    for damage in [&b""[..], b"{\"version\":1,\"last_ids\":[],\"apps\":[],\"workers\":[]}"] {
        let listen = free_address();
        let mut homing = Homing::start(&demo_app("demo", &[listen], "127.0.0.1", 2, ""));
        homing.wait_for_workers(0, 2);
        let left = homing.pids(0);
        let state = homing.dir().join("state");
        wait_for("the state is on the disk", || {
            (state.join("state.json").exists() && !state.join("state.json.next").exists()).then_some(())
        });
        homing.kill();
        for name in ["state.json", "state.json.next", "state.json.syncing"] {
            let path = state.join(name);
            if path.exists() {
                fs::write(path, damage).expect("written");
            }
        }
        homing.start_again();
        let status = homing.wait_for_workers(0, 2);
        let generations: Vec<_> = workers(&status, 0).iter().map(|worker| worker["generation"].as_u64()).collect();
        assert_eq!(generations, [Some(2), Some(2)], "no id that the kernel's tables know is given twice");
        let said = homing.said();
        let warning = said.lines().find(|line| line.contains("the state file was set aside")).expect("a warning");
        assert!(warning.contains("demo/0") && warning.contains("not adopted"), "{warning}");
        let kill = warning.split("kill -- ").nth(1).expect("what to do");
        for pid in &left {
            assert!(kill.contains(&format!("-{pid}")), "{pid} in {warning}");
        }
        assert!(homing.pids(0).iter().all(|pid| !left.contains(pid)), "new ones were started");
        let mut session = local(listen).open();
        assert!(session.is_alive() && !left.contains(&i32::try_from(session.hello.pid).expect("small")));
        let names: Vec<_> = fs::read_dir(&state).expect("readable").flatten().map(|entry| entry.file_name()).collect();
        assert!(names.iter().any(|name| text(name.as_encoded_bytes()).starts_with("state.json.bad-")), "{names:?}");
        // As the warning says.
        let arguments: Vec<&str> = kill.split_whitespace().take_while(|word| word.starts_with('-')).collect();
        assert!(Command::new("kill").arg("--").args(arguments).status().expect("kill runs").success());
        wait_for("they have ended", || left.iter().all(|&pid| !is_alive(pid)).then_some(()));
    }
}
