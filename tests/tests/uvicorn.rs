//! uvicorn on a unix socket and on a socket that it is passed, with the Shiny app. Needs root and the environment of
//! `cargo xtask setup --apps`.

use homing::demo::client::Dialect;
use homing_tests::instance::{signal, wait_for, workers};
use homing_tests::shiny::{self, CLIENTS, all, by_address, by_cookie, spread};
use rustix::process::Signal;

const ON_UNIX_SOCKETS: &str = "\"--uds\", \"{socket}\", \"--forwarded-allow-ips\", \"*\"";
const PASSED: &str = "\"--fd\", \"{fd}\"";

#[tokio::test(flavor = "multi_thread")]
async fn users_keep_their_shiny_session_over_unix_sockets_also_after_homing_was_killed() {
    let (mut homing, target) = shiny::start("cookie", ON_UNIX_SOCKETS);
    let before = spread(&all(by_cookie(target, Dialect::Shiny)).await);
    assert_eq!(before.len(), 4);
    let pids = homing.pids(0);
    homing.kill();
    homing.start_again();
    homing.wait_for_workers(0, 4);
    assert_eq!(homing.pids(0), pids, "adopted");
    let after = spread(&all(by_cookie(target, Dialect::Shiny)).await);
    assert!(after.keys().eq(before.keys()), "the same processes serve: {before:?}, {after:?}");
    for worker in workers(&homing.status(), 0) {
        let address = worker["address"].as_str().expect("an address");
        assert!(address.starts_with("unix:/") && address.ends_with("/socket"), "{address}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_keep_their_shiny_session_on_the_kernel_path_when_uvicorn_is_passed_its_socket() {
    let (homing, target) = shiny::start("ip", PASSED);
    assert_eq!(spread(&all(by_address(target, Dialect::Shiny)).await).len(), 4);
    let counters = homing.status()["counters"].clone();
    assert_eq!(counters["http_requests"], 0, "no request passed through homing");
    assert_eq!(counters["established"], u64::from(CLIENTS) * 102);
    // Another process gets another socket.
    signal(homing.pids(0)[0], Signal::KILL);
    wait_for("the worker is back", || {
        let workers = workers(&homing.status(), 0);
        workers.iter().any(|worker| worker["restarts"] == 1 && worker["state"] == "ready").then_some(())
    });
    assert_eq!(spread(&all(by_address(target, Dialect::Shiny)).await).len(), 4);
}
