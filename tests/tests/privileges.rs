//! What homing and its workers may do, by what the kernel says of them, is what docs/security.md lists. Needs root.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use homing_tests::instance::{Homing, binary, demo_app, edit, free_address, wait_for};

const PAGE: &str = include_str!("../../docs/security.md");
const HEAD: &str = "| capability | homing | a root worker | for |";
/// By number (Linux: include/uapi/linux/capability.h).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];
const NONE: u64 = 0;

/// The sets of one thread, and what else of it is compared.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Clone)]
struct Powers {
    effective: u64,
    permitted: u64,
    inheritable: u64,
    ambient: u64,
    bounding: u64,
    no_new_privileges: bool,
    seccomp: u64,
}

impl Powers {
    /// Whoever has these, lends none of them, and gets no others.
    fn just(capabilities: u64) -> Self {
        Self {
            effective: capabilities,
            permitted: capabilities,
            inheritable: NONE,
            ambient: NONE,
            bounding: capabilities,
            no_new_privileges: true,
            // A filter of whoever runs this test is passed on; homing adds none.
            seccomp: Self::of_file("/proc/self/status").seccomp,
        }
    }

    fn of_file(path: &str) -> Self {
        let text = fs::read_to_string(path).expect("the process is there");
        let fields: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once(":\t")).collect();
        let set = |name: &str| u64::from_str_radix(fields[name], 16).expect("a mask");
        Self {
            effective: set("CapEff"),
            permitted: set("CapPrm"),
            inheritable: set("CapInh"),
            ambient: set("CapAmb"),
            bounding: set("CapBnd"),
            no_new_privileges: fields["NoNewPrivs"] == "1",
            seccomp: fields["Seccomp"].parse().expect("a number"),
        }
    }
}

/// Those of every thread, which must all be alike.
fn powers(pid: impl std::fmt::Display) -> Powers {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("the process is there").flatten();
    let mut all: Vec<Powers> =
        threads.map(|thread| Powers::of_file(thread.path().join("status").to_str().expect("text"))).collect();
    all.sort();
    all.dedup();
    let [powers] = all.as_slice() else { panic!("threads of {pid} differ: {all:?}") };
    powers.clone()
}

/// The capabilities of the documented rows for which `has` says so; cells are: homing, a root worker. Less what not even this
/// test has, as in a container.
fn documented(has: impl Fn(&str, &str) -> bool) -> u64 {
    let rows = PAGE.lines().skip_while(|line| *line != HEAD).skip(2).take_while(|line| line.starts_with('|'));
    let mut mask = 0;
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let name = cells[0].trim_matches('`').strip_prefix("CAP_").expect("a capability");
        let number = NAMES.iter().position(|known| *known == name).unwrap_or_else(|| panic!("{name} is not known"));
        mask |= u64::from(has(cells[1], cells[2])) << number;
    }
    assert_ne!(mask, 0, "the table is there");
    mask & Powers::of_file("/proc/self/status").permitted
}

/// Two apps: of root and of nobody; `more` are lines of the second.
fn apps(more: &str) -> String {
    let listen = |address: SocketAddr| [address];
    demo_app("rootly", &listen(free_address()), "127.0.0.1", 1, "")
        + &demo_app("bound", &listen(free_address()), "127.0.0.1", 1, &format!("user = \"nobody\"\n{more}"))
}

/// Workers run a copy of the binary: the checkout may lie where nobody else has access, as in a home directory of mode 0700.
fn start(settings: &str, more: &str) -> Homing {
    let mut homing = Homing::configured(&[], settings, &apps(more));
    let copy = homing.dir().join("homing");
    fs::copy(binary(), &copy).expect("the binary is copied");
    fs::set_permissions(homing.dir(), fs::Permissions::from_mode(0o711)).expect("changed");
    edit(&homing, &format!("{:?}", binary()), &format!("{copy:?}"));
    homing.start_again();
    homing.wait_for_workers(0, 1);
    homing.wait_for_workers(1, 1);
    homing
}

#[test]
fn homing_and_its_workers_may_do_what_is_documented_and_nothing_else() {
    for (settings, is_kernel_path) in [("kernel_path = \"required\"", true), ("kernel_path = \"off\"", false)] {
        let homing = start(settings, "");
        let expected = documented(|homing, _| homing == "yes" || is_kernel_path && homing == "kernel path");
        assert_eq!(powers(homing.pid()), Powers::just(expected), "homing, with {settings}");
        let worker = documented(|_, worker| worker == "yes");
        assert_eq!(powers(homing.pids(0)[0]), Powers::just(worker), "a worker of root");
        assert_eq!(powers(homing.pids(1)[0]), Powers::just(NONE), "a worker of nobody");
    }
}

#[test]
fn an_app_that_may_gain_privileges_costs_homing_its_bound_and_the_other_workers_nothing() {
    let own = Powers::of_file("/proc/self/status");
    let homing = start("", "no_new_privileges = false");
    let least = documented(|homing, _| homing != "no");
    let unbounded = Powers { bounding: own.bounding, no_new_privileges: false, ..Powers::just(least) };
    assert_eq!(powers(homing.pid()), unbounded);
    assert_eq!(powers(homing.pids(0)[0]), Powers::just(documented(|_, worker| worker == "yes")), "the other app's");
    let gains = Powers { bounding: own.bounding, no_new_privileges: false, ..Powers::just(NONE) };
    assert_eq!(powers(homing.pids(1)[0]), gains, "its own has none, and may gain some");
}

#[test]
fn a_reload_for_an_app_that_may_gain_privileges_is_refused_and_a_replacement_grants_it() {
    let mut homing = start("", "");
    edit(&homing, "user = \"nobody\"\n", "user = \"nobody\"\nno_new_privileges = false\n");
    let refused = homing.ask(&["reload"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("homing run --replace"), "{said}");
    assert!(powers(homing.pids(1)[0]).no_new_privileges, "everything goes on as it was");
    let successor = homing.replace();
    assert!(homing.succeeded_by(successor).success());
    homing.wait_until("the worker is one that may gain privileges", |status| {
        let workers = homing_tests::instance::workers(status, 1);
        let pid = workers.iter().find(|worker| worker["state"] == "ready").and_then(|worker| worker["pid"].as_i64());
        pid.is_some_and(|pid| {
            fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|text| text.contains("NoNewPrivs:\t0"))
        })
    });
}

#[test]
fn the_guard_has_no_privilege_at_all() {
    let homing = Homing::configured(&[], "", &apps(""));
    let mut guard = Command::new(binary())
        .args(["run", "--guarded", "--config"])
        .arg(homing.dir().join("homing.toml"))
        .stderr(Stdio::null())
        .spawn()
        .expect("homing can be run");
    let ready = wait_for("homing answers", || {
        let status = homing.ask(&["status", "--json"]);
        status.status.success().then(|| serde_json::from_slice::<serde_json::Value>(&status.stdout).expect("JSON"))
    });
    let of_guard = std::panic::catch_unwind(|| powers(guard.id()));
    // Before anything is judged: the instance knows nothing of this one.
    let stopped = homing.ask(&["stop", "--now"]);
    let ended = wait_for("the guard has ended", || guard.try_wait().expect("it can be waited for"));
    assert_ne!(ready["pid"], guard.id(), "homing is another process");
    assert_eq!(of_guard.expect("it was there"), Powers::just(NONE));
    assert!(stopped.status.success() && ended.success(), "{ended}");
}

#[test]
fn the_control_socket_is_closed_to_other_users_whatever_its_mode() {
    const NOBODY: u32 = 65_534;
    let homing = start("", "");
    // What keeps others out is to be the socket, not the directory of this test.
    fs::set_permissions(homing.dir(), fs::Permissions::from_mode(0o755)).expect("changed");
    let socket = homing.dir().join("control.sock");
    assert_eq!(fs::metadata(&socket).expect("it is there").permissions().mode() & 0o777, 0o600);
    let ask = |uid: u32| {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--max-time", "20", "--unix-socket"]).arg(&socket);
        curl.args(["--request", "POST", "http://homing/v1/stop"]).uid(uid).gid(uid).current_dir("/");
        curl.output().expect("curl can be run")
    };
    let refused = ask(NOBODY);
    assert!(!refused.status.success() && refused.stdout.is_empty(), "by its mode: {refused:?}");
    assert!(!homing.said().contains("was refused on the control socket"), "the kernel did it: {}", homing.said());
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).expect("changed");
    let refused = ask(NOBODY);
    assert!(!refused.status.success() && refused.stdout.is_empty(), "by who they are: {refused:?}");
    wait_for("homing says so", || homing.said().contains("a process of another user was refused").then_some(()));
    assert_eq!(homing.status()["apps"][0]["workers"][0]["state"], "ready", "nothing was stopped");
}
