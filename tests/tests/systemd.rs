//! The unit that homing comes with, under a systemd of the test's own. Needs root, and systemd's programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use homing_tests::instance::{Homing, binary, demo_app, edit, free_address, is_alive, signal, wait_for, workers};
use homing_tests::session::{Client, Session};
use homing_tests::site::{assert_kept, pid_of};
use homing_tests::skips::skip;
use rustix::process::Signal;

const UNIT: &str = include_str!("../../config/systemd/homing.service");
const MANAGER: &str = "/usr/lib/systemd/systemd";

/// Why nothing of this can run here.
fn is_missing(program: &str) -> bool {
    let is_missing = !Path::new(program).exists();
    if is_missing {
        skip(&format!("there is no {program} on this machine; install systemd to run this test"));
    }
    is_missing
}

/// Values of a key of the unit.
fn values(key: &str) -> Vec<&'static str> {
    UNIT.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
}

#[test]
fn the_unit_says_what_lets_sessions_survive() {
    for (key, value) in [
        ("Type", "notify"),
        ("NotifyAccess", "all"),
        ("KillMode", "process"),
        ("Delegate", "yes"),
        ("RuntimeDirectoryPreserve", "yes"),
        ("ExecReload", "/usr/bin/homing reload"),
    ] {
        assert_eq!(values(key), [value], "{key}");
    }
    let start = values("ExecStart")[0];
    assert!(start.contains("--guarded") && start.contains("--replace"), "{start}");
    assert!(values("ExecStop")[0].ends_with("exec /usr/bin/homing stop'"), "a stop drains");
    for (key, why) in [
        ("PrivateTmp", "apps share files there with others"),
        ("ProtectHome", "apps are in people's homes"),
        ("NoNewPrivileges", "no_new_privileges is each app's own choice"),
        ("ProtectControlGroups", "workers have groups"),
        ("ProtectKernelTunables", "homing sets net.ipv4.conf.lo.forwarding and pins below /sys"),
        ("MemoryDenyWriteExecute", "workers compile while they run"),
        ("User", "homing runs workers as other users"),
    ] {
        assert_eq!(values(key), [""; 0], "{key}: {why}");
    }
    let capabilities = values("CapabilityBoundingSet").join(" ");
    for needed in ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON", "CAP_SYS_PTRACE", "CAP_SETUID", "CAP_SETGID", "CAP_KILL"]
    {
        assert!(capabilities.split(' ').any(|capability| capability == needed), "{needed} in {capabilities}");
    }
}

#[test]
fn systemd_takes_the_unit_as_it_is() {
    let analyze = "/usr/bin/systemd-analyze";
    if is_missing(analyze) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary directory");
    let unit = folder.path().join("homing.service");
    // It looks for the program, too.
    fs::write(&unit, UNIT.replace("/usr/bin/homing", binary().to_str().expect("text"))).expect("written");
    let verified = Command::new(analyze).args(["verify", "--man=no"]).arg(&unit).output().expect("it runs");
    let said = String::from_utf8_lossy(&verified.stderr);
    let odd: Vec<&str> =
        said.lines().filter(|line| line.contains("homing.service") && !line.contains("DelegateSubgroup")).collect();
    assert!(verified.status.success() && odd.is_empty(), "{said}");
}

/// Where processes are put into groups for systemd: the directory of each hierarchy that it uses.
fn hierarchies() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("readable");
    let is_used = |mount: &&str| mount.contains(" - cgroup2 ") || mount.contains("name=systemd");
    mounts.lines().filter(is_used).filter_map(|mount| Some(PathBuf::from(mount.split(' ').nth(4)?))).collect()
}

/// A service manager that runs homing as its one service.
struct Manager {
    child: Child,
    dir: tempfile::TempDir,
    groups: Vec<PathBuf>,
}

impl Manager {
    /// `None`, and a word, where it can put nobody into a group.
    fn start(homing: &Homing) -> Option<Self> {
        let name = format!("homing-test-systemd-{}", std::process::id());
        let groups: Vec<PathBuf> = hierarchies().into_iter().map(|hierarchy| hierarchy.join(&name)).collect();
        if groups.is_empty() || groups.iter().any(|group| fs::create_dir_all(group).is_err()) {
            skip("no cgroups here, without which systemd does not run");
            return None;
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        let units = dir.path().join("systemd/user");
        fs::create_dir_all(&units).expect("made");
        let (program, config) =
            (binary().display().to_string(), homing.dir().join("homing.toml").display().to_string());
        let socket = format!("--control-socket {}", homing.dir().join("control.sock").display());
        let log = homing.dir().join("homing.log");
        let unit = UNIT
            .replace("/usr/bin/homing reload", &format!("/usr/bin/homing reload {socket}"))
            .replace("/usr/bin/homing stop", &format!("/usr/bin/homing stop {socket}"))
            .replace("/usr/bin/homing", &program)
            .replace("/etc/homing/homing.toml", &config)
            .replace("systemctl list-jobs", "systemctl --user list-jobs")
            .replace(
                "[Service]",
                &format!("[Service]\nStandardOutput=append:{0}\nStandardError=append:{0}", log.display()),
            );
        fs::write(units.join("homing.service"), unit).expect("written");
        fs::write(units.join("test.target"), "[Unit]\nDefaultDependencies=no\n").expect("written");
        let joined: String =
            groups.iter().map(|group| format!("echo $$ > {}/cgroup.procs && ", group.display())).collect();
        // It runs only where the machine was started by systemd, which this namespace is told.
        let script = format!(
            "{joined} mkdir -p /run/systemd && mount -t tmpfs homing-test /run/systemd && mkdir /run/systemd/system && \
             exec {MANAGER} --user --unit=test.target"
        );
        let child = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", &script])
            .env("XDG_RUNTIME_DIR", dir.path())
            .env("XDG_CONFIG_HOME", dir.path())
            .env("SYSTEMD_LOG_TARGET", "console")
            .env_remove("DBUS_SESSION_BUS_ADDRESS")
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .spawn()
            .expect("unshare runs");
        let manager = Self { child, dir, groups };
        wait_for("the manager answers", || {
            manager.systemctl(&["show", "--property=Version"]).status.success().then_some(())
        });
        Some(manager)
    }

    fn systemctl(&self, arguments: &[&str]) -> Output {
        Command::new("systemctl")
            .arg("--user")
            .args(arguments)
            .env("XDG_RUNTIME_DIR", self.dir.path())
            .env_remove("DBUS_SESSION_BUS_ADDRESS")
            .output()
            .expect("systemctl runs")
    }

    /// `systemctl COMMAND homing`, which must succeed.
    fn tell(&self, command: &str, homing: &Homing) {
        let told = self.systemctl(&[command, "homing.service"]);
        let text = |output: &[u8]| String::from_utf8_lossy(output).into_owned();
        let log = fs::read_to_string(homing.dir().join("homing.log")).unwrap_or_default();
        let status = text(&self.systemctl(&["status", "--no-pager", "homing.service"]).stdout);
        assert!(told.status.success(), "{command}: {}\n{status}\n{log}", text(&told.stderr));
    }

    fn property(&self, name: &str) -> String {
        let shown = self.systemctl(&["show", "--value", "--property", name, "homing.service"]);
        String::from_utf8_lossy(&shown.stdout).trim().to_owned()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = self.systemctl(&["exit"]);
        let _ = self.child.wait();
        for group in &self.groups {
            let _ =
                Command::new("find").arg(group).args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"]).output();
        }
    }
}

#[test]
fn reload_and_restart_end_no_session_a_crash_is_recovered_from_and_a_stop_leaves_nothing() {
    if is_missing(MANAGER) {
        return;
    }
    let (by_address, by_cookie) = (free_address(), free_address());
    let cookies =
        demo_app("cookies", &[by_cookie], "127.0.0.1", 1, "").replace("affinity = \"ip\"", "affinity = \"cookie\"");
    let homing = Homing::configured(&[], "", &(demo_app("demo", &[by_address], "127.0.0.1", 2, "") + &cookies));
    let Some(manager) = Manager::start(&homing) else { return };
    manager.tell("start", &homing);
    let ready = || {
        homing.wait_for_workers(0, 2);
        homing.wait_for_workers(1, 1);
        homing.status()
    };
    let status = ready();
    let own = || homing.status()["pid"].as_i64().expect("its id") as i32;
    let (first, all) = (own(), [homing.pids(0), homing.pids(1)].concat());
    let guard = manager.property("MainPID");
    assert_ne!(guard, status["pid"].to_string(), "homing is not the process that systemd ends");
    let open = |target| Client { namespace: None, from: [127, 0, 0, 1].into(), target }.open();
    let mut sessions: Vec<Session<'_>> = [by_address, by_address, by_cookie].map(open).into();
    let mut assert_all_alive = |what: &str| {
        assert!(sessions.iter_mut().all(Session::is_alive), "a session broke: {what}");
        assert_kept(&mut sessions[0]);
        assert_eq!([homing.pids(0), homing.pids(1)].concat(), all, "a worker ended: {what}");
    };

    edit(&homing, "max = 2", "max = 3");
    manager.tell("reload", &homing);
    assert_eq!((own(), homing.status()["apps"][0]["max"].as_i64()), (first, Some(3)));
    assert_all_alive("reload");

    manager.tell("restart", &homing);
    let second = own();
    assert_ne!(second, first);
    assert_ne!(manager.property("MainPID"), guard);
    assert_eq!(manager.property("ActiveState"), "active");
    assert!(is_alive(first), "the former one serves what is open on the HTTP path");
    assert_all_alive("restart");

    // A configuration that is wrong ends nothing either, and is not tried again.
    edit(&homing, "max = 3", "max = many");
    assert!(!manager.systemctl(&["restart", "homing.service"]).status.success());
    assert_eq!((own(), manager.property("ActiveState").as_str()), (second, "failed"));
    assert_all_alive("a restart that failed");
    edit(&homing, "max = many", "max = 3");
    manager.tell("start", &homing);
    let third = own();
    assert_all_alive("the next start");

    // What the kernel path has handed out does not need homing; the tunnel does, and the first homing still holds it.
    signal(third, Signal::KILL);
    wait_for("it is started again", || {
        let status = homing.ask(&["status", "--json"]);
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).ok()?;
        (status["pid"] != third && manager.property("ActiveState") == "active").then_some(())
    });
    assert_all_alive("a crash");

    let held: Vec<i32> = sessions.iter().map(pid_of).collect();
    drop(sessions);
    assert!(held.iter().all(|pid| all.contains(pid)));
    manager.tell("stop", &homing);
    assert_eq!(manager.property("ActiveState"), "inactive");
    assert!(!all.into_iter().any(is_alive), "its workers have ended");
    assert!(!homing.pin_dir().exists());
    assert_eq!(homing.ask(&["status"]).status.code(), Some(3));
    wait_for("the first one ended with its last connection", || (!is_alive(first)).then_some(()));
    assert!(workers(&status, 0).len() == 2);
}
