//! Every file in config/ is right, and is started as it stands: in a network namespace of its own, so that its ports are
//! free. Those of Streamlit, Dash and the sticky Shiny apps are tried more thoroughly by other tests.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};

use homing_tests::instance::{DEADLINE, Homing, binary, wait_for};
use homing_tests::network::Namespace;
use homing_tests::peers;
use homing_tests::skips::skip_part;
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the workspace is there")
}

/// All of them, beside and below each other.
fn examples() -> Vec<PathBuf> {
    let mut folders = vec![root().join("config")];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|extension| extension == "toml") {
                found.push(entry);
            }
        }
    }
    assert!(found.len() >= 11, "{found:?}");
    found
}

/// `[homing]` without what a test has places of its own for, and the apps.
fn adapted(path: &Path, certificates: &Path) -> (String, String) {
    let venvs = std::env::var("HOMING_VENVS").expect("HOMING_VENVS names their folder; use cargo xtask test --apps");
    let text = fs::read_to_string(path).expect("an example");
    let apps = root().join("config/apps");
    let text = text
        .replace("../../../target/venv", &venvs)
        .replace("\"../../apps", &format!("\"{}", apps.display()))
        .replace("\"apps", &format!("\"{}", apps.display()))
        .replace("\"tls/", &format!("\"{}/", certificates.display()))
        .replace("/var/log/homing-access.log", "access.log");
    let (settings, tables) = text.split_at(text.find("[[app]]").expect("an app"));
    let settings = settings.lines().filter(|line| line.contains(" = ") && !line.starts_with(['#', 'l']));
    (settings.collect::<Vec<_>>().join("\n"), tables.to_owned())
}

fn certificates() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let made = rcgen::generate_simple_self_signed(["apps.example.org".to_owned()]).expect("a certificate");
    fs::write(dir.path().join("fullchain.pem"), made.cert.pem()).expect("written");
    fs::write(dir.path().join("privkey.pem"), made.signing_key.serialize_pem()).expect("written");
    dir
}

fn get(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).ok()?;
    stream.set_read_timeout(Some(DEADLINE)).ok()?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: example\r\nConnection: close\r\n\r\n").as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    Some(String::from_utf8_lossy(&answer).into_owned())
}

#[test]
fn every_example_is_started_as_it_stands_and_serves() {
    let certificates = certificates();
    for path in examples() {
        let name = path.strip_prefix(root()).expect("it is there").display().to_string();
        println!("{name}");
        let namespace = Namespace::new("example");
        namespace.ip(&["addr", "add", "10.0.0.1/24", "dev", "lo"]);
        let (settings, apps) = adapted(&path, certificates.path());
        let wrapper = namespace.wrapper();
        let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
        let homing = Homing::start_under(&wrapper, &settings, &apps);
        let status = homing.status();
        for app in status["apps"].as_array().expect("apps") {
            let is_local = app["max"].as_u64() > Some(0);
            let listen = app["listen"][0].as_str().expect("an address");
            let port: u16 = listen.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
            if !is_local {
                continue;
            }
            let text = fs::read_to_string(&path).expect("an example");
            let at = format!("path      = \"/{}\"", app["name"].as_str().expect("a name"));
            let target =
                if text.contains(&at) { format!("/{}/", app["name"].as_str().expect("a name")) } else { "/".into() };
            let answer = namespace.enter(|| get(port, &target)).unwrap_or_default();
            if text.contains("tls       =") {
                assert!(answer.contains("This port speaks HTTPS"), "{name} {app}: {answer:?}");
            } else {
                assert!(answer.starts_with("HTTP/1.1 200"), "{name} {app}: {answer:?}\n{}", homing.said());
            }
        }
        wait_for("no worker has failed", || {
            let status = homing.status();
            let apps = status["apps"].as_array()?.iter().filter(|app| app["max"].as_u64() > Some(0));
            let workers = apps.flat_map(|app| app["workers"].as_array().cloned().unwrap_or_default());
            let states: Vec<Value> = workers.map(|worker| worker["state"].clone()).collect();
            assert!(!states.iter().any(|state| state == "failed" || state == "backoff"), "{name}: {status}");
            (!states.iter().any(|state| state == "starting")).then_some(())
        });
    }
}

#[test]
fn what_others_are_migrated_from_is_right_for_them() {
    let migrate = root().join("config/migrate");
    let checks: [(&str, &[&str], PathBuf); 2] = [
        ("nginx", &["-t", "-e", "stderr", "-g", "pid /dev/null;", "-c"], migrate.join("nginx/nginx.conf")),
        ("haproxy", &["-c", "-f"], migrate.join("haproxy/haproxy.cfg")),
    ];
    for (name, arguments, file) in checks {
        let Some(program) = peers::program(name) else {
            skip_part(&format!("{name} is not installed"));
            continue;
        };
        let told = std::process::Command::new(program).args(arguments).arg(&file).output().expect("it can be run");
        assert!(told.status.success(), "{}: {}", file.display(), String::from_utf8_lossy(&told.stderr));
    }
}

#[test]
fn homing_check_finds_nothing_wrong_with_any_example() {
    let certificates = certificates();
    for path in examples() {
        let (settings, apps) = adapted(&path, certificates.path());
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("homing.toml");
        fs::write(&file, format!("[homing]\n{settings}\n{apps}")).expect("written");
        let told =
            std::process::Command::new(binary()).args(["check", "--config"]).arg(&file).output().expect("it runs");
        let said = String::from_utf8_lossy(&told.stdout).into_owned() + &String::from_utf8_lossy(&told.stderr);
        assert!(told.status.success() && said.contains("no errors"), "{}: {said}", path.display());
    }
}
