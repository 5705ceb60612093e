//! Several apps behind one address, end to end, while the configuration changes. Needs root.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use homing_tests::instance::{DEADLINE, Homing, demo_app, free_address};

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
