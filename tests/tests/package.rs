//! The package for Debian, on a machine that is not there afterwards: installed, started, upgraded, removed. Needs root and dpkg.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use homing_tests::instance::{binary, wait_for, workers};
use homing_tests::machine::{Machine, Network};
use homing_tests::skips::{skip, skip_part};
use serde_json::Value;

/// What an installation changes for good: Debian's own books, the workers' user, and caches of others.
const STAYS: [&str; 6] = [
    "/var/lib/dpkg/",
    "/var/log/dpkg.log",
    "/var/log/alternatives.log",
    "/var/cache/",
    "/etc/.pwd.lock",
    "/var/lib/systemd/",
];
const ACCOUNTS: [&str; 4] = ["/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow"];

/// The package in two revisions, made once.
fn packages() -> &'static [PathBuf; 2] {
    static MADE: OnceLock<(tempfile::TempDir, [PathBuf; 2])> = OnceLock::new();
    let (_, packages) = MADE.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let packages = ["1", "2"].map(|revision| {
            let mut xtask = Command::new("cargo");
            xtask.args(["run", "--quiet", "--package", "xtask", "--", "dist", "--revision", revision, "--binary"]);
            xtask.arg(binary()).arg("--out").arg(dir.path()).current_dir(env!("CARGO_MANIFEST_DIR"));
            let made = xtask.output().expect("cargo is there");
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            let said = String::from_utf8(made.stdout).expect("text");
            let name = said.lines().find_map(|line| line.rsplit(' ').next().filter(|name| name.ends_with(".deb")));
            PathBuf::from(name.expect("it says where the package is"))
        });
        (dir, packages)
    });
    packages
}

fn can_be_packed() -> bool {
    let can = Path::new("/usr/bin/dpkg-deb").exists() && Path::new("/usr/bin/systemd-sysusers").exists();
    if !can {
        skip("this machine is not of Debian's kind, or has no systemd");
    }
    can
}

/// A machine with both packages at hand, or a word why not.
fn machine() -> Option<Machine> {
    if !can_be_packed() {
        return None;
    }
    if Path::new("/usr/share/doc/homing").exists() {
        skip("homing is installed on this machine, above which the test's own would lie");
        return None;
    }
    Machine::start(packages(), Network::Own).map_err(|reason| skip(&reason)).ok()
}

fn install(machine: &Machine, package: &Path) -> String {
    let name = package.file_name().and_then(|name| name.to_str()).expect("a name");
    machine.ask(&["dpkg", "--install", &format!("/run/given/{name}")])
}

/// As the unit does it, where no systemd runs.
fn serve(machine: &Machine, options: &str) -> Child {
    let run = format!("exec /usr/bin/homing run {options} >>/run/homing.log 2>&1");
    machine.command(&["sh", "-c", &run]).stdin(Stdio::null()).spawn().expect("nsenter is there")
}

fn status(machine: &Machine) -> Option<Value> {
    let output = machine.run(&["homing", "status", "--json"]);
    output.status.success().then(|| serde_json::from_slice(&output.stdout).expect("JSON"))
}

/// Processes of the first app's workers, once there are ready ones; as the machine numbers them.
fn ready(machine: &Machine) -> Vec<u64> {
    wait_for("a worker is ready", || {
        let ready = workers(&status(machine)?, 0).into_iter().filter(|worker| worker["state"] == "ready");
        let pids: Vec<u64> = ready.map(|worker| worker["pid"].as_u64().expect("a process")).collect();
        (!pids.is_empty()).then_some(pids)
    })
}

#[test]
fn installed_it_checks_serves_and_explains_itself() {
    let Some(machine) = machine() else { return };
    let said = install(&machine, &packages()[0]);
    assert!(said.contains("systemctl start homing"), "it says what to do: {said}");

    // Everything belongs to root, and nobody else may write.
    let files = machine.ask(&["dpkg", "--listfiles", "homing"]);
    for path in files.lines().filter(|path| path.contains("homing")) {
        let wanted = if machine.ask(&["stat", "--format=%F", path]).trim() == "directory" || path == "/usr/bin/homing" {
            "root:root 755"
        } else {
            "root:root 644"
        };
        assert_eq!(machine.ask(&["stat", "--format=%U:%G %a", path]).trim(), wanted, "{path}");
    }
    assert_eq!(machine.ask(&["dpkg", "--verify", "homing"]), "");
    let account = machine.ask(&["getent", "passwd", "homing-app"]);
    assert!(account.trim_end().ends_with("/nologin"), "{account}");

    let checked = machine.ask(&["homing", "check"]);
    assert!(checked.contains("hello") && !checked.contains("run as root"), "{checked}");
    let mut homing = serve(&machine, "");
    let pids = ready(&machine);
    let get = "exec 3<>/dev/tcp/127.0.0.1/8080; printf 'GET / HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n' >&3; cat <&3";
    let answer = machine.ask(&["bash", "-c", get]);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let owner = machine.ask(&["stat", "--format=%U", &format!("/proc/{}", pids[0])]);
    assert_eq!(owner.trim(), "homing-app");
    machine.ask(&["homing", "stop", "--now"]);
    assert!(homing.wait().expect("it ends").success());
}

#[test]
fn the_bill_of_materials_names_what_is_linked_in_and_where_it_is_from() {
    if !can_be_packed() {
        return;
    }
    let folder = packages()[0].parent().expect("packages lie in a folder");
    let files = std::fs::read_dir(folder).expect("readable").map(|entry| entry.expect("readable").path());
    let bills: Vec<PathBuf> = files.filter(|path| path.to_string_lossy().ends_with(".cdx.json")).collect();
    let [path] = &bills[..] else { panic!("one bill beside the packages: {bills:?}") };
    let bill: Value = serde_json::from_slice(&std::fs::read(path).expect("readable")).expect("JSON");
    assert_eq!((&bill["bomFormat"], &bill["specVersion"]), (&"CycloneDX".into(), &"1.5".into()));
    let homing = &bill["metadata"]["component"];
    assert_eq!((&homing["name"], &homing["version"]), (&"homing".into(), &env!("CARGO_PKG_VERSION").into()));
    let components = bill["components"].as_array().expect("a list");
    let ring = components.iter().find(|component| component["name"] == "ring").expect("ring is linked into homing");
    assert!(ring["hashes"][0]["content"].as_str().is_some_and(|sum| sum.len() == 64), "{ring}");
    assert!(ring["licenses"][0]["expression"].is_string(), "{ring}");
    // What only tests use is not in the program.
    assert!(components.iter().all(|component| component["name"] != "proptest"));
    let mut known: Vec<&Value> = components.iter().chain([homing]).map(|component| &component["bom-ref"]).collect();
    let uses = bill["dependencies"].as_array().expect("a list");
    known.retain(|name| uses.iter().all(|entry| entry["ref"] != **name));
    assert!(known.is_empty(), "nothing is said of what these use: {known:?}");
    let homing = uses.iter().find(|entry| entry["ref"] == homing["bom-ref"]).expect("homing uses something");
    assert!(homing["dependsOn"].as_array().is_some_and(|uses| uses.len() > 20), "{homing}");
}

#[test]
fn manual_pages_and_completions_are_well_formed() {
    let Some(machine) = machine() else { return };
    install(&machine, &packages()[0]);
    let files = machine.ask(&["dpkg", "--listfiles", "homing"]);
    let pages: Vec<&str> =
        files.lines().filter(|path| path.starts_with("/usr/share/man/") && path.ends_with(".gz")).collect();
    let commands = machine.ask(&["homing", "--help"]);
    for name in ["homing.1", "homing-run.1", "homing-keys-rotate.1", "homing.toml.5"] {
        assert!(pages.iter().any(|page| page.ends_with(&format!("/{name}.gz"))), "{name} in {pages:?}");
    }
    assert!(pages.len() > 15 && commands.contains("backend-setup"), "{pages:?}");
    if machine.has("/usr/bin/groff") {
        for page in pages {
            let render = "zcat \"$1\" | groff -K utf8 -man -Tutf8 -ww -rLL=100n 2>&1 >/dev/null";
            assert_eq!(machine.ask(&["sh", "-c", render, "sh", page]), "", "{page}");
        }
    } else {
        skip_part("no groff here to look at manual pages with");
    }
    for (shell, option, path) in [
        ("bash", "-n", "/usr/share/bash-completion/completions/homing"),
        ("zsh", "-n", "/usr/share/zsh/vendor-completions/_homing"),
        ("fish", "-n", "/usr/share/fish/vendor_completions.d/homing.fish"),
    ] {
        if machine.run(&["which", shell]).status.success() {
            assert_eq!(machine.ask(&[shell, option, path]), "", "{path}");
        } else {
            skip_part(&format!("no {shell} here to read {path} with"));
        }
    }
}

/// A systemctl that only writes down what it is told, on a machine that seems to run systemd.
fn pretend_systemd(machine: &Machine) {
    machine.ask(&["sh", "-c", "mkdir -p /run/systemd/system /usr/local/sbin"]);
    let script = "printf '#!/bin/sh\\necho \"$@\" >>/run/orders\\n' >/usr/local/sbin/systemctl; chmod 755 /usr/local/sbin/systemctl; : >/run/orders";
    machine.ask(&["sh", "-c", script]);
}

#[test]
fn an_upgrade_ends_no_worker_and_keeps_the_configuration() {
    let Some(machine) = machine() else { return };
    install(&machine, &packages()[0]);
    let edited = "echo '# edited' >>/etc/homing/homing.toml";
    machine.ask(&["sh", "-c", edited]);
    let mut homing = serve(&machine, "");
    let before = ready(&machine);
    pretend_systemd(&machine);

    install(&machine, &packages()[1]);
    assert_eq!(ready(&machine), before, "the package ends neither homing nor its workers");
    let orders = machine.ask(&["cat", "/run/orders"]);
    assert!(orders.contains("daemon-reload"), "{orders}");
    let changes = |order: &&str| order.contains("homing.service") && !order.contains("is-") && !order.contains("show");
    let changes: Vec<&str> = orders.lines().filter(changes).collect();
    assert!(changes.len() == 1 && changes[0].contains("restart"), "one restart, which is a --replace: {orders}");
    assert!(machine.ask(&["cat", "/etc/homing/homing.toml"]).ends_with("# edited\n"));
    assert!(machine.ask(&["dpkg", "--status", "homing"]).contains("-2\n"));

    // What the unit does then.
    let mut successor = serve(&machine, "--replace");
    assert!(homing.wait().expect("it ends").success(), "it yields to its successor");
    assert_eq!(ready(&machine), before, "the new version has the old one's workers");
    machine.ask(&["homing", "stop", "--now"]);
    assert!(successor.wait().expect("it ends").success());
}

#[test]
fn removed_it_has_ended_and_purged_it_leaves_nothing() {
    let Some(machine) = machine() else { return };
    install(&machine, &packages()[0]);
    machine.ask(&["sh", "-c", "mkdir -p /var/log/homing; echo >/var/log/homing/access.log.1.gz"]);
    let mut homing = serve(&machine, "");
    let pids = ready(&machine);

    machine.ask(&["dpkg", "--remove", "homing"]);
    assert!(homing.wait().expect("it ends").success());
    for pid in pids {
        assert!(!machine.has(&format!("/proc/{pid}")), "worker {pid} goes on");
    }
    assert!(!machine.has("/sys/fs/bpf/homing") && !machine.has("/usr/bin/homing"));
    assert!(
        machine.has("/etc/homing/homing.toml") && machine.has("/var/lib/homing"),
        "a removal keeps what is the user's"
    );

    machine.ask(&["dpkg", "--purge", "homing"]);
    for path in ["/etc/homing", "/var/lib/homing", "/var/log/homing", "/run/homing", "/usr/share/doc/homing"] {
        assert!(!machine.has(path), "{path} is left");
    }
    let stays = |path: &&PathBuf| {
        let path = path.to_str().expect("text");
        STAYS.iter().any(|stays| path.starts_with(stays))
            || ACCOUNTS.iter().any(|account| path == *account || path == format!("{account}-"))
    };
    let (stays, left): (Vec<_>, Vec<_>) = machine.changes().into_iter().partition(|path| stays(&path));
    assert!(left.iter().all(|path| path == Path::new("/usr/sbin/policy-rc.d")), "{left:?} are left");
    assert!(!stays.iter().any(|path| path.to_string_lossy().contains("homing")), "{stays:?}");
}

#[test]
fn a_removal_detaches_what_an_unclean_end_left() {
    let Some(machine) = machine() else { return };
    install(&machine, &packages()[0]);
    let mut homing = serve(&machine, "");
    ready(&machine);
    let is_pinned = machine.has("/sys/fs/bpf/homing");
    machine.ask(&["sh", "-c", "kill -9 $(pidof homing)"]);
    homing.wait().expect("it ends");
    if !is_pinned {
        skip("no kernel path here, and so nothing that is pinned");
        return;
    }
    assert!(machine.has("/sys/fs/bpf/homing"), "pins outlive kill -9");
    machine.ask(&["dpkg", "--purge", "homing"]);
    assert!(!machine.has("/sys/fs/bpf/homing"));
}
