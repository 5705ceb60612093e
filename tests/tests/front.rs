//! Several apps behind one address, and TLS, end to end, while configuration and certificates change. Needs root, and curl.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use std::path::Path;
use std::process::Command;

use homing_tests::certificate::issue;
use homing_tests::instance::{DEADLINE, Homing, demo_app, free_address, wait_for};

/// The status line, and the answer whole.
fn ask(connection: &mut TcpStream, host: &str, target: &str, more: &str) -> String {
    write!(connection, "GET {target} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n").expect("sent");
    let mut answer = Vec::new();
    let mut byte = [0];
    let length = |head: &str| {
        let line =
            head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_owned));
        line.and_then(|length| length.parse::<usize>().ok()).expect("an answer with a length")
    };
    while !answer.ends_with(b"\r\n\r\n") {
        connection.read_exact(&mut byte).expect("an answer");
        answer.push(byte[0]);
    }
    let mut body = vec![0; length(&String::from_utf8_lossy(&answer))];
    connection.read_exact(&mut body).expect("its body");
    answer.extend(body);
    String::from_utf8_lossy(&answer).into_owned()
}

fn connect(address: SocketAddr) -> TcpStream {
    let connection = TcpStream::connect(address).expect("it listens");
    connection.set_read_timeout(Some(DEADLINE)).expect("set");
    connection
}

/// Puts these apps in the place of those, while homing runs.
fn reload(homing: &Homing, from: &str, to: &str) {
    let file = homing.dir().join("homing.toml");
    let text = std::fs::read_to_string(&file).expect("the configuration");
    assert!(text.contains(from), "{text}");
    std::fs::write(&file, text.replace(from, to)).expect("it is written");
    let output = homing.ask(&["reload"]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn two_apps_share_a_port_through_reloads_that_add_and_remove_one() {
    let address = free_address();
    let app = |name: &str, more: &str| demo_app(name, &[address], "127.0.0.1", 1, more);
    let sales = app("sales", "hosts = [\"sales.test\"]");
    let both = format!("{sales}{}", app("stock", "path = \"/stock\""));
    let homing = Homing::start(&sales);
    homing.wait_for_workers(0, 1);
    let mut open = connect(address);
    let served = ask(&mut open, "sales.test", "/", "");
    assert!(served.starts_with("HTTP/1.1 200"), "{served}");
    assert!(ask(&mut open, "other.test", "/stock/", "").starts_with("HTTP/1.1 404"));

    reload(&homing, &sales, &both);
    homing.wait_for_workers(1, 1);
    assert!(ask(&mut open, "other.test", "/stock/", "").starts_with("HTTP/1.1 200"), "on the connection that is open");
    let redirect = ask(&mut open, "other.test", "/stock", "");
    assert!(redirect.starts_with("HTTP/1.1 308") && redirect.contains("location: /stock/\r\n"), "{redirect}");
    assert!(ask(&mut open, "sales.test", "/", "").starts_with("HTTP/1.1 200"));
    let status = homing.status();
    assert_eq!((&status["apps"][0]["path"], &status["apps"][1]["path"]), (&"http".into(), &"http".into()));
    assert_eq!(status["counters"]["http_refused_no_app"], 1);

    reload(&homing, &both, &app("stock", ""));
    assert!(ask(&mut open, "sales.test", "/", "").starts_with("HTTP/1.1 200"), "all of it is stock's now");
    let fresh = ask(&mut connect(address), "any.test", "/stock", "");
    assert!(fresh.starts_with("HTTP/1.1"), "{fresh}");
}

/// What curl shows of a page, head first; `None` where it does not trust the certificate.
fn curl(address: SocketAddr, name: &str, trusted: &Path, more: &[&str]) -> Option<String> {
    let port = address.port();
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--include", "--max-time", "20", "--cacert"])
        .arg(trusted)
        .args(["--resolve", &format!("{name}:{port}:127.0.0.1"), &format!("https://{name}:{port}/")])
        .args(more)
        .output()
        .expect("curl runs");
    const NOT_TRUSTED: Option<i32> = Some(60);
    assert!(output.status.success() || output.status.code() == NOT_TRUSTED, "{output:?}");
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn tls_is_ended_and_a_renewed_certificate_is_taken_while_connections_are_open() {
    let certificates = tempfile::tempdir().expect("a directory");
    let directory = certificates.path();
    issue(directory, "sales.test");
    let address = free_address();
    let tls =
        format!("tls = {{ certificate = {:?}, key = {:?} }}\n", directory.join("cert.pem"), directory.join("key.pem"));
    let homing = Homing::start(&demo_app("sales", &[address], "127.0.0.1", 1, &tls));
    homing.wait_for_workers(0, 1);
    let old = directory.join("old.pem");
    std::fs::copy(directory.join("cert.pem"), &old).expect("copied");
    for (version, expected) in [
        ("--http2", "HTTP/2 200"),
        ("--http1.1", "HTTP/1.1 200"),
        ("--tlsv1.3", "HTTP/2 200"),
        ("--tls-max 1.2", "HTTP/2 200"),
    ] {
        let arguments: Vec<&str> = version.split(' ').collect();
        let page = curl(address, "sales.test", &old, &arguments).expect("it is trusted");
        assert!(page.starts_with(expected), "{version}: {page}");
    }
    let plain = ask(&mut connect(address), "sales.test", "/", "");
    assert!(plain.starts_with("HTTP/1.1 400") && plain.contains("https://"), "{plain}");

    std::fs::write(directory.join("key.pem"), "broken").expect("written");
    wait_for("the broken key to be told", || homing.said().contains("has no private key in it").then_some(()));
    assert!(curl(address, "sales.test", &old, &[]).is_some(), "the one before stays in use");
    issue(directory, "sales.test");
    wait_for("the new certificate", || curl(address, "sales.test", &directory.join("cert.pem"), &[]));
    assert_eq!(curl(address, "sales.test", &old, &[]), None);
    assert_eq!(homing.said().matches("the certificate before stays in use").count(), 1, "once is enough");
}
