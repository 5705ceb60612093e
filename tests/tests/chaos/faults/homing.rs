//! What happens to homing itself, and to what it is told.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use homing_tests::instance::{ask, edit, wait_for};
use homing_tests::network::{SERVER_V4, client_v4};
use homing_tests::session::Client;

use super::Machine;
use crate::counted::{counters, kernels_fallen};
use crate::excuses::Span;
use crate::{APPS, Dice, PORTS, WORKERS, tcp};

/// Cannot reach the running homing.
const UNREACHABLE: i32 = 3;
/// Of the app that comes and goes.
const PASSING_PORT: u16 = 8082;

impl Machine<'_> {
    /// What `homing status` says where there is no status to have.
    fn status_says(&self, words: &str) {
        let told = self.homing.ask(&["status"]);
        let said = String::from_utf8_lossy(&told.stderr).into_owned();
        assert!(told.status.code() == Some(UNREACHABLE) && said.contains(words), "{words:?} in {told:?}");
    }
}

/// The kernel's programs go on, and go on counting where they were.
pub(super) fn killed(machine: &mut Machine<'_>, _: usize, _: &mut Dice) {
    let before = machine.homing.status();
    let from = Instant::now();
    machine.homing.kill();
    machine.status_says("cannot reach homing");
    machine.homing.start_again();
    machine.excuses.absence = Some(Span(from, Instant::now()));
    let after = machine.homing.status();
    assert_ne!(before["pid"], after["pid"]);
    let fallen = kernels_fallen(&counters(&before), &counters(&after));
    assert!(fallen.is_empty(), "the kernel's counters are pinned: {fallen:?}");
}

/// As on a machine that was put to sleep: whoever needs homing waits, and who asks how it is is told that it does not say.
pub(super) fn stopped(machine: &mut Machine<'_>, _: usize, _: &mut Dice) {
    // Who came before it, and asks while it does not hear, waits longer than there is time for the head of a request.
    let target = SocketAddr::from((SERVER_V4, PORTS[1]));
    let client = Client { namespace: Some(&machine.network.clients), from: client_v4(1), target };
    let mut early = client.connect().expect("whoever comes is served");
    let port = early.local_addr().expect("it is a socket").port();
    wait_for("it is accepted", || {
        let open = tcp::connections(&machine.network.server);
        open.iter().any(|connection| connection.remote_port == port && connection.inode != 0).then_some(())
    });
    let paused = machine.homing.pause();
    early.write_all(format!("GET /health HTTP/1.1\r\nHost: {target}\r\n\r\n").as_bytes()).expect("it is connected");
    machine.status_says("is there and has not answered");
    drop(paused);
    let mut answer = [0; 15];
    early.read_exact(&mut answer).expect("who asked in time is answered");
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
}

pub(super) fn replaced(machine: &mut Machine<'_>, _: usize, _: &mut Dice) {
    let before = machine.homing.status();
    let successor = machine.homing.replace();
    let former = machine.homing.now(successor);
    machine.formers.push(former);
    let after = machine.homing.status();
    assert_eq!(after["pid"], machine.homing.pid(), "the successor answers");
    let fallen = kernels_fallen(&counters(&before), &counters(&after));
    assert!(fallen.is_empty(), "the kernel's counters are pinned: {fallen:?}");
}

/// None of its descriptors is closed by a limit below their number, but it gets no others.
pub(super) fn without_descriptors(machine: &mut Machine<'_>, _: usize, _: &mut Dice) {
    const WHY: &str = "Too many open files";
    let said = |machine: &Machine<'_>, words| machine.homing.said().matches(words).count();
    let told = |machine: &Machine<'_>| said(machine, "cannot accept connections");
    let over = |machine: &Machine<'_>| said(machine, "connections are accepted again");
    let (before, over_before, lacked) = (told(machine), over(machine), machine.counter("http_no_descriptors"));
    let starved = machine.homing.starve();
    // All who come of themselves may be waiting at their workers, whom homing cannot reach either.
    let target = SocketAddr::from((SERVER_V4, PORTS[1]));
    let client = Client { namespace: Some(&machine.network.clients), from: client_v4(1), target };
    let _waits = client.connect().expect("the kernel connects it");
    wait_for("it is told that no connection can be accepted", || (told(machine) > before).then_some(()));
    assert!(machine.homing.said().contains(WHY), "{}", machine.homing.said());
    // It waits for a descriptor, too.
    let asked = machine.homing.ask_meanwhile(&["status"]);
    drop(starved);
    let asked = asked.wait_with_output().expect("homing can be waited for");
    assert!(asked.status.success(), "{asked:?}");
    assert!(machine.counter("http_no_descriptors") > lacked, "it is counted");
    wait_for("it is told that it is over", || (over(machine) > over_before).then_some(()));
}

/// Again and again, and once with a mistake: then all stays as it is.
pub(super) fn configured_anew(machine: &mut Machine<'_>, app: usize, _: &mut Dice) {
    let (few, more) = (format!("max = {WORKERS}\n"), format!("max = {}\n", WORKERS + 1));
    for _ in 0..5 {
        for (from, to, most) in [(&few, &more, WORKERS + 1), (&more, &few, WORKERS)] {
            edit(&machine.homing, from, to);
            ask(&machine.homing, &["reload"]);
            assert_eq!(machine.homing.status()["apps"][app]["max"], most, "the reload is in force");
        }
    }
    edit(&machine.homing, &few, "max = \"many\"\n");
    let refused = machine.homing.ask(&["reload"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("max"), "{refused:?}");
    assert_eq!(machine.homing.status()["apps"][app]["max"], WORKERS, "what was refused is not in force");
    edit(&machine.homing, "max = \"many\"\n", &few);
    ask(&machine.homing, &["reload"]);
}

pub(super) fn app_comes_and_goes(machine: &mut Machine<'_>, _: usize, _: &mut Dice) {
    let file = machine.homing.dir().join("homing.toml");
    let text = std::fs::read_to_string(&file).expect("the configuration");
    let other =
        crate::app(0).replace(APPS[0], "passing").replace(&format!(":{}", PORTS[0]), &format!(":{PASSING_PORT}"));
    std::fs::write(&file, format!("{text}{other}")).expect("written");
    ask(&machine.homing, &["reload"]);
    machine.homing.wait_for_workers(2, WORKERS as usize);
    let target = SocketAddr::from((SERVER_V4, PASSING_PORT));
    let client = Client { namespace: Some(&machine.network.clients), from: client_v4(1), target };
    assert_eq!(client.get("/health").expect("it is served").status, 200);
    std::fs::write(&file, text).expect("written");
    ask(&machine.homing, &["reload"]);
    machine
        .homing
        .wait_until("the app has left", |status| status["apps"].as_array().is_some_and(|apps| apps.len() == 2));
    let after: std::io::Result<TcpStream> = client.connect();
    assert!(after.is_err(), "nobody listens there any more: {after:?}");
}
