//! A kernel that lacks what the programs need: homing says what in one sentence and serves by the HTTP path. Needs root and such
//! a kernel: `cargo xtask vm --kernel 5.10`.

use homing_tests::instance::{Homing, demo_app, free_address};
use homing_tests::session::Client;

const LACKS: &str = "this kernel (Linux 5.10.";

#[test]
fn an_old_kernel_is_named_with_what_it_lacks_and_the_http_path_serves() {
    let listen = free_address();
    let homing = Homing::start(&demo_app("demo", &[listen], "127.0.0.1", 2, ""));
    homing.wait_for_workers(0, 2);
    let said = homing.said();
    let about: Vec<&str> = said.lines().filter(|line| line.contains("no kernel path")).collect();
    let [line] = about.as_slice() else { panic!("said once: {said}") };
    assert!(line.contains(LACKS) && line.contains("bpf_ktime_get_coarse_ns") && line.contains("5.11"), "{line}");
    let client = Client { namespace: None, from: listen.ip(), target: listen };
    let sessions: Vec<_> = (0..4).map(|_| client.open()).collect();
    for session in &sessions {
        assert!(session.hello.forwarded);
        assert_eq!(session.check().expect("served").status, 200, "by address all the same");
    }
    let status = homing.status();
    assert_eq!(status["kernel_path"]["active"], false);
    assert!(status["kernel_path"]["reason"].as_str().is_some_and(|reason| reason.contains(LACKS)), "{status:#}");
    assert!(!homing.pin_dir().exists(), "nothing half-started stays behind");
}

#[test]
fn check_says_so_before_anything_is_started() {
    let homing = Homing::configured(&[], "", &demo_app("demo", &[free_address()], "127.0.0.1", 1, ""));
    let checked = homing.check();
    let said = String::from_utf8_lossy(&checked.stdout);
    assert!(checked.status.success(), "{checked:?}");
    assert!(said.contains("no kernel path here: ") && said.contains(LACKS), "{said}");
}

#[test]
fn a_required_kernel_path_is_refused() {
    let apps = demo_app("demo", &[free_address()], "127.0.0.1", 1, "");
    let homing = Homing::configured(&[], "kernel_path = \"required\"", &apps);
    let ended = homing.run_to_its_end();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("kernel_path = \"required\"") && said.contains(LACKS), "{said}");
}
