//! What must hold after each fault, when its clients have gone.

use std::collections::BTreeMap;
use std::time::Instant;

use homing_tests::network::Namespace;

use crate::counted::Counted;
use crate::faults::Machine;
use crate::level::Level;
use crate::visits::{CLIENTS, Visit, Visitors};
use crate::{APPS, PORTS, tcp};

pub struct Judge {
    counted: Counted,
    level: Level,
    /// Visits of each path that passed.
    passed: [usize; 2],
    /// Visits that failed, by the reason why they might.
    excused: BTreeMap<&'static str, usize>,
}

impl Judge {
    /// After some visits, with what they leave in homing's memory.
    pub fn new(machine: &Machine<'_>, visitors: &Visitors) -> Self {
        visitors.let_come();
        let visits = visitors.keep_away();
        assert!(visits.iter().all(|visit| visit.outcome.passed()), "before anything happened: {visits:#?}");
        Self {
            counted: Counted::of(&machine.homing, &machine.network.server),
            level: Level::of(&machine.homing, &machine.network.server),
            passed: [0; 2],
            excused: BTreeMap::new(),
        }
    }

    /// Sends the clients away, and looks at what the fault has left.
    pub fn judge(&mut self, machine: &mut Machine<'_>, visitors: &Visitors) {
        machine.wait_for_workers();
        let over = Instant::now();
        let visits = visitors.keep_away();
        let longest = visits.iter().map(|visit| visit.ended - visit.begun).max().unwrap_or_default();
        println!(
            "{:18}{} visits, the longest {longest:.1?}, the last {:.1?} after it",
            "",
            visits.len(),
            over.elapsed()
        );
        self.judge_visits(machine, &visits);
        machine.wait_for_formers();
        let status = machine.homing.wait_until("the state is saved", |status| status["unsaved"].is_null());
        assert_eq!(status["kernel_path"]["active"], true, "{}", status["kernel_path"]);
        let counted = Counted::of(&machine.homing, &machine.network.server);
        let fallen = counted.fallen_since(&self.counted);
        assert!(fallen.is_empty(), "counters only grow: {fallen:#?}");
        self.counted = counted;
        let server = &machine.network.server;
        // All have gone, but not all that the kernel has must know: a connection that was made by SYN cookie in a flood can stay
        // without its other end. That is its worker's.
        self.level.wait_for_return(&machine.homing, server, || PORTS.iter().map(|&port| open(server, port)).sum());
    }

    fn judge_visits(&mut self, machine: &mut Machine<'_>, visits: &[Visit]) {
        let excuses = std::mem::take(&mut machine.excuses);
        let mut lost = Vec::new();
        for visit in visits {
            match excuses.excuse(visit) {
                _ if visit.outcome.passed() => self.passed[visit.app] += 1,
                Some(why) => *self.excused.entry(why).or_default() += 1,
                None => lost.push(visit),
            }
        }
        assert!(lost.is_empty(), "{} of {} lost a worker that lives: {lost:#?}", lost.len(), visits.len());
    }

    pub fn sum_up(&self, machine: &Machine<'_>) {
        println!("visits that passed: {:?} of {APPS:?}; that failed: {:?}", self.passed, self.excused);
        assert!(self.passed.iter().all(|&passed| passed > usize::from(CLIENTS)), "hardly anybody was served");
        // Nothing may be counted but what a flood has left.
        machine.homing.wait_until("what is counted is what is open", |status| {
            (0..2).all(|app| status["apps"][app]["connections"] == open(&machine.network.server, PORTS[app]))
        });
    }
}

/// Connections to a port of a namespace.
fn open(machine: &Namespace, port: u16) -> usize {
    tcp::connections(machine).iter().filter(|connection| connection.local_port == port).count()
}
