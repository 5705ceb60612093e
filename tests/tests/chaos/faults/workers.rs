//! What happens to workers.

use std::process::Command;
use std::time::Instant;

use homing_tests::groups::directories;
use homing_tests::instance::{ask, is_alive, signal, wait_for};
use rustix::process::Signal;

use super::{Machine, worker_of};
use crate::excuses::{Death, Span};
use crate::{APPS, Dice};

impl Machine<'_> {
    /// How often workers of the app ended unasked, as Prometheus is told.
    fn failures(app: usize) -> String {
        format!("homing_app_worker_failures_total{{app={:?}}}", APPS[app])
    }

    /// Kills one, and waits until it is told why it ended.
    pub(super) fn kill_worker(&mut self, app: usize, dice: &mut Dice) {
        let (id, pid) = self.any_worker(app, dice);
        let clients = self.clients_of(app, &id);
        let failures = self.sample(&Self::failures(app)).expect("failures are counted");
        let from = Instant::now();
        signal(pid, Signal::KILL);
        self.homing.wait_until("it is told why the worker ended", |status| {
            // Of one that an earlier homing started the signal is not known.
            let told = worker_of(status, app, &id)["history"].to_string();
            ["SIGKILL", "how is not known"].iter().any(|why| told.contains(why))
        });
        self.excuses.deaths.push(Death { app, pid: pid as u32, span: Span(from, Instant::now()), clients });
        self.wait_for_sample(&Self::failures(app), |now| now > failures);
    }
}

pub(super) fn killed(machine: &mut Machine<'_>, app: usize, dice: &mut Dice) {
    machine.kill_worker(app, dice);
}

/// Until it is told that it does not answer. Its clients wait: none may be taken from it.
pub(super) fn stopped(machine: &mut Machine<'_>, app: usize, dice: &mut Dice) {
    let (id, pid) = machine.any_worker(app, dice);
    signal(pid, Signal::STOP);
    machine.homing.wait_until("it is told that the worker does not answer", |status| {
        let reason = &worker_of(status, app, &id)["reason"];
        reason.as_str().is_some_and(|reason| reason.contains("did not answer 3 times in a row"))
    });
    signal(pid, Signal::CONT);
}

/// Something in the worker's cgroup takes more than the worker may have: the kernel chooses whom it kills for that.
pub(super) fn out_of_memory(machine: &mut Machine<'_>, app: usize, dice: &mut Dice) {
    const TOLD: &str = "it used more than memory_max";
    if machine.homing.status()["isolation"]["memory"]["by"] == "polling" {
        machine.left_out = Some("no memory controller here, and so no worker that is killed for its memory".to_owned());
        return;
    }
    let (id, pid) = machine.any_worker(app, dice);
    let clients = machine.clients_of(app, &id);
    let told = |machine: &Machine<'_>| machine.homing.said().matches(TOLD).count();
    let before = told(machine);
    let from = Instant::now();
    let groups = directories(pid).into_iter().map(|group| format!("echo $$ > {}/cgroup.procs; ", group.display()));
    let script = groups.collect::<String>() + "exec python3 -c \"b'x' * (1 << 30)\"";
    let eater = Command::new("sh").args(["-c", &script]).status().expect("sh is there");
    // The worker went in its stead, and left it too little all the same.
    assert!(!eater.success(), "the kernel let it have more than memory_max");
    wait_for("it is told that memory ran out", || (told(machine) > before).then_some(()));
    if is_alive(pid) {
        return;
    }
    machine.homing.wait_until("it is told that the worker ended of it", |status| {
        worker_of(status, app, &id)["history"].to_string().contains(TOLD)
    });
    machine.excuses.deaths.push(Death { app, pid: pid as u32, span: Span(from, Instant::now()), clients });
}

/// Who is bound to it stays; where nobody is, it ends.
pub(super) fn drained(machine: &mut Machine<'_>, app: usize, dice: &mut Dice) {
    let (worker, _) = machine.any_worker(app, dice);
    ask(&machine.homing, &["drain", &worker]);
    machine.homing.wait_until("it drains", |status| {
        let state = worker_of(status, app, &worker)["state"].clone();
        ["draining", "stopped"].iter().any(|gone| state == *gone)
    });
    ask(&machine.homing, &["undrain", &worker]);
}

/// All have successors, and nobody is taken from those that go.
pub(super) fn restarted(machine: &mut Machine<'_>, app: usize, _: &mut Dice) {
    let before = machine.homing.pids(app);
    ask(&machine.homing, &["restart", APPS[app], "--rolling"]);
    let status = machine.homing.status();
    assert!(status["apps"][app]["restart_failed"].is_null(), "{:#}", status["apps"][app]);
    let ready = homing_tests::instance::workers(&status, app).into_iter().filter(|worker| worker["state"] == "ready");
    let stayed = ready.filter(|worker| before.iter().any(|pid| worker["pid"] == *pid)).count();
    assert_eq!(stayed, 0, "all are new: {:#}", status["apps"][app]);
}
