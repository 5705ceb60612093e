//! What cannot work is refused or reported in one clear sentence, and nothing half-started stays behind. Needs root.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

use homing_tests::instance::{Homing, demo_app, free_address, wait_for, workers};
use homing_tests::session::Client;

/// Root's user id without any capability: as any user, but for the ownership of files.
const UNPRIVILEGED: [&str; 3] = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"];

/// Runs it where it must refuse; what it said.
fn refused(homing: &Homing, code: i32) -> String {
    let output = homing.run_to_its_end();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    assert!(!homing.pin_dir().exists(), "pins are left: {said}");
    assert!(!homing.dir().join("control.sock").exists(), "the control socket is left: {said}");
    said
}

/// One worker whose command is `command`, a TOML array; `more` are further tables.
fn app_with(listen: SocketAddr, command: &str, more: &str) -> String {
    format!("[[app]]\nname = \"odd\"\nlisten = [\"{listen}\"]\naffinity = \"ip\"\ncommand = {command}\n{more}\n")
}

fn local(target: SocketAddr) -> Client<'static> {
    Client { namespace: None, from: IpAddr::V4(Ipv4Addr::LOCALHOST), target }
}

#[test]
fn a_port_in_use_is_named_with_how_to_find_its_holder() {
    let holder = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = holder.local_addr().expect("bound");
    let said = refused(&Homing::configured(&[], "", &demo_app("demo", &[address], "127.0.0.1", 1, "")), 1);
    assert!(
        said.contains(&format!(
            "app demo: cannot listen on {address}: Address already in use (os error 98); find who has the port with: ss"
        )),
        "{said}"
    );
}

#[test]
fn an_unreadable_configuration_and_unknown_keys_are_named_with_their_place() {
    let homing = Homing::configured(&[], "kernel_pth = \"off\"", "[[app]\n");
    assert!(refused(&homing, 2).contains("homing.toml:7:"), "the place of the syntax error");
    let apps = demo_app("demo", &[free_address()], "127.0.0.1", 1, "");
    let said = refused(&Homing::configured(&[], "kernel_pth = \"off\"", &apps), 2);
    assert!(said.contains("homing.toml:7:1") && said.contains("kernel_path"), "{said}");
}

#[test]
fn two_homings_on_one_state_directory_do_not_fight() {
    let listen = free_address();
    let homing = Homing::start(&demo_app("demo", &[listen], "127.0.0.1", 1, ""));
    homing.wait_for_workers(0, 1);
    let second = homing.run_to_its_end();
    let said = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1));
    assert!(said.contains("another homing (pid ") && said.contains("homing stop"), "{said}");
    assert_eq!(local(listen).get("/health").expect("the first serves on").status, 200);
    assert!(homing.pin_dir().exists(), "the first one's pins are its own");
}

#[test]
fn without_privileges_the_http_path_serves_alone_and_says_what_is_missing() {
    let listen = free_address();
    let homing = Homing::start_under(&UNPRIVILEGED, "", &demo_app("demo", &[listen], "127.0.0.1", 2, ""));
    homing.wait_for_workers(0, 2);
    let said = homing.said();
    assert_eq!(said.matches("no kernel path").count(), 1, "said once: {said}");
    assert!(said.contains("CAP_BPF"), "and how to grant it: {said}");
    let session = local(listen).open();
    assert!(session.hello.forwarded);
    assert_eq!(session.check().expect("served").status, 200);
    let status = homing.status();
    assert_eq!(status["kernel_path"]["active"], false);
    assert!(status["kernel_path"]["reason"].as_str().is_some_and(|reason| reason.contains("CAP_BPF")), "{status:#}");
    assert!(!homing.pin_dir().exists());
}

#[test]
fn a_required_kernel_path_without_privileges_is_refused() {
    let apps = demo_app("demo", &[free_address()], "127.0.0.1", 1, "");
    let said = refused(&Homing::configured(&UNPRIVILEGED, "kernel_path = \"required\"", &apps), 1);
    assert!(said.contains("kernel_path = \"required\"") && said.contains("CAP_BPF"), "{said}");
}

#[test]
fn an_interface_that_is_not_there_is_reported_and_steering_goes_on() {
    let listen = free_address();
    let apps = demo_app("demo", &[listen], "127.0.0.1", 1, "");
    let homing = Homing::start_under(&[], "interfaces = [\"nowhere0\"]", &apps);
    homing.wait_for_workers(0, 1);
    assert!(homing.said().contains("nowhere0"), "{}", homing.said());
    assert_eq!(homing.status()["kernel_path"]["interfaces"][0]["mode"], "none");
    assert!(!local(listen).open().hello.forwarded, "sk_lookup steers all the same");
}

#[test]
fn a_missing_command_is_named_with_its_place() {
    for program in ["/no/such/program", "no-such-program"] {
        let app = app_with(free_address(), &format!("[{program:?}]"), "");
        let said = refused(&Homing::configured(&[], "", &app), 2);
        assert!(said.contains("homing.toml:12:12: command") && said.contains(program), "{said}");
    }
}

#[test]
fn a_command_that_exits_at_once_is_tried_with_growing_waits_then_failed() {
    let listen = free_address();
    let homing = Homing::start(&app_with(listen, "[\"sh\", \"-c\", \"echo no such table >&2; exit 3\"]", ""));
    let status = homing.wait_until("given up", |status| status["apps"][0]["state"] == "failed");
    let worker = &workers(&status, 0)[0];
    assert!(worker["reason"].as_str().is_some_and(|reason| reason.contains("exited with code 3")), "{worker:#}");
    let log = std::fs::read_to_string(homing.dir().join("log/odd-0.log")).expect("its output");
    assert!(log.contains("no such table"), "{log}");
    assert_eq!(local(listen).get("/").expect("answered").status, 503);
}

#[test]
fn a_command_that_never_listens_is_ended_at_the_start_timeout_and_its_requests_are_answered() {
    let listen = free_address();
    let homing = Homing::start(&app_with(listen, "[\"sleep\", \"1000\"]", "[app.timeouts]\nstart = \"1s\""));
    let pid = homing.pids(0)[0];
    let answer = local(listen).get("/").expect("held at most as long as a start may take, then answered");
    assert_eq!(answer.status, 503, "{answer:?}");
    let status = homing.wait_until("the worker was not ready in time", |status| {
        workers(status, 0)[0]["reason"].as_str().is_some_and(|reason| reason.contains("did not accept connections"))
    });
    wait_for("its process was ended", || (!homing_tests::instance::is_alive(pid)).then_some(()));
    assert!(status["apps"][0]["state"] != "ready");
}
