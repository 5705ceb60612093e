//! What is done to homing, to its workers and to the machine. Each fault waits until it is there, until `homing status`, the metrics
//! or the log tell of it where somebody has to know, and until it is over.

mod homing;
mod machine;
mod workers;

use std::collections::BTreeSet;
use std::process::Child;

use homing_tests::instance::{Homing, wait_for, wait_seeing, workers as workers_of};
use homing_tests::network::{Network, client_v4};
use serde_json::Value;

use crate::counted::{counters, sample, scrape};
use crate::disk::Disk;
use crate::excuses::Excuses;
use crate::visits::{CLIENTS, address};
use crate::{APPS, Dice};

/// Where faults happen, and what they leave for the judgement.
pub struct Machine<'a> {
    pub homing: Homing,
    pub network: &'a Network,
    disk: &'a Disk,
    /// Of the fault that is there.
    pub excuses: Excuses,
    /// Why it cannot happen on this machine.
    pub left_out: Option<String>,
    formers: Vec<Child>,
}

type Fault = fn(&mut Machine<'_>, usize, &mut Dice);

pub const ALL: [(&str, Fault); 16] = [
    ("a worker killed", workers::killed),
    ("a worker stopped", workers::stopped),
    ("a worker out of memory", workers::out_of_memory),
    ("a worker drained", workers::drained),
    ("a rolling restart", workers::restarted),
    ("homing killed", homing::killed),
    ("homing stopped", homing::stopped),
    ("homing replaced", homing::replaced),
    ("homing without descriptors", homing::without_descriptors),
    ("the configuration changed", homing::configured_anew),
    ("an app comes and goes", homing::app_comes_and_goes),
    ("the link down", machine::link_down),
    ("the disk full", machine::disk_full),
    ("the table of bindings full", machine::bindings_full),
    ("clients that never read", machine::clients_that_never_read),
    ("a flood from 100,000 addresses", machine::flood_of_syns),
];

impl<'a> Machine<'a> {
    pub fn new(homing: Homing, network: &'a Network, disk: &'a Disk) -> Self {
        Self { homing, network, disk, excuses: Excuses::default(), left_out: None, formers: Vec::new() }
    }

    /// To strangers, and to forged addresses: answers go somewhere, as they would on the internet.
    pub fn ways_back(&self) {
        self.network.server.ip(&["route", "replace", "default", "via", &client_v4(1).to_string(), "dev", "eth0"]);
    }

    /// Until all workers of both apps take clients, and nothing is said against them.
    pub fn wait_for_workers(&self) -> Value {
        self.homing.wait_until("all workers are well", |status| {
            (0..APPS.len()).all(|app| {
                let is_well = |worker: &&Value| worker["state"] == "ready" && worker["reason"].is_null();
                workers_of(status, app).iter().filter(is_well).count() == crate::WORKERS as usize
            })
        })
    }

    /// They end with the last connection that they have, and nobody is here.
    pub fn wait_for_formers(&mut self) {
        for mut former in self.formers.drain(..) {
            let ended = wait_for("a former homing has ended", || former.try_wait().expect("it can be waited for"));
            assert!(ended.success(), "a former homing ended with {ended}");
        }
    }

    /// A counter of `homing status`.
    fn counter(&self, name: &str) -> u64 {
        counters(&self.homing.status())[name]
    }

    fn sample(&self, name: &str) -> Option<f64> {
        sample(&scrape(&self.network.server), name)
    }

    /// Metrics are some moments behind.
    fn wait_for_sample(&self, name: &str, is_so: impl Fn(f64) -> bool) {
        wait_seeing(&format!("{name} tells of it"), || {
            let value = self.sample(name);
            if value.is_some_and(&is_so) { Ok(()) } else { Err(format!("it is {value:?}")) }
        });
    }

    /// One of those that take clients: its id and its process.
    fn any_worker(&self, app: usize, dice: &mut Dice) -> (String, i32) {
        let ready: Vec<_> =
            workers_of(&self.homing.status(), app).into_iter().filter(|worker| worker["state"] == "ready").collect();
        let worker = &ready[dice.throw(ready.len())];
        let pid = worker["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("a process");
        (worker["id"].as_str().expect("an id").to_owned(), pid)
    }

    /// The app's clients whose address is traced, and what is said of it. Those who are told apart by cookie have one in common.
    fn traces(&self, app: usize) -> Vec<(u8, Value)> {
        let trace = |client| self.homing.trace(APPS[app], &address(app, client).to_string());
        (0..CLIENTS).map(|client| (client, trace(client))).collect()
    }

    /// Those who may be on their way to a worker: anybody may where a newcomer gets a cookie.
    fn clients_of(&self, app: usize, worker: &str) -> BTreeSet<u8> {
        if app == 1 {
            return (0..CLIENTS).collect();
        }
        self.traces(app).into_iter().filter(|(_, trace)| trace["worker"] == worker).map(|(client, _)| client).collect()
    }
}

/// The state, reasons and history of one worker in a status; null where it is not there.
fn worker_of(status: &Value, app: usize, id: &str) -> Value {
    workers_of(status, app).into_iter().find(|worker| worker["id"] == id).unwrap_or_default()
}
