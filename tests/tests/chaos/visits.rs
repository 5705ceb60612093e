//! Clients of both paths that take the sticky test again and again, and what may have gone wrong with one.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use homing::demo::client::{Client, Dialect, Outcome};
use homing_tests::network::{SERVER_V4, client_v4};

use crate::PORTS;

/// Clients of each path.
pub const CLIENTS: u8 = 12;

/// What a client saw, and when.
pub struct Visit {
    pub app: usize,
    begun: Instant,
    ended: Instant,
    pub outcome: Outcome,
}

/// What was done to homing that clients may notice.
#[derive(Default)]
pub struct Done {
    /// Processes that were ended.
    pub ended: BTreeSet<u32>,
    /// From when to when a worker was about to end: who comes in that moment may be refused.
    pub deaths: Vec<(usize, Instant, Instant)>,
    /// From when to when nobody was there to forward.
    pub absences: Vec<(Instant, Instant)>,
    /// From when to when the kernel had more clients to remember than it may.
    pub crowds: Vec<(Instant, Instant)>,
}

impl Done {
    /// Why the visit may have failed; `None`: it may not.
    pub fn excuse(&self, visit: &Visit) -> Option<&'static str> {
        let during = |from: Instant, until: Instant| visit.begun <= until && from <= visit.ended;
        if visit.outcome.pid.is_some_and(|pid| self.ended.contains(&pid)) {
            return Some("its worker was ended");
        }
        if visit.outcome.pid.is_none()
            && self.deaths.iter().any(|&(app, from, until)| app == visit.app && during(from, until))
        {
            return Some("a worker ended while it came in");
        }
        // The kernel path needs nobody.
        let is_forwarded = visit.outcome.forwarded != Some(false) || visit.app == 1;
        if is_forwarded && self.absences.iter().any(|&(from, until)| during(from, until)) {
            return Some("homing was not there");
        }
        if visit.app == 0 && self.crowds.iter().any(|&(from, until)| during(from, until)) {
            return Some("its binding may have been forgotten");
        }
        None
    }
}

pub async fn visit_again_and_again(number: u8, is_over: &AtomicBool, visits: &Mutex<Vec<Visit>>) {
    let app = usize::from(number >= CLIENTS);
    let client = Client {
        target: SocketAddr::from((SERVER_V4, PORTS[app])),
        // Not strangers: the way back to them goes with the link.
        from: Some(client_v4(if app == 0 { number + 1 } else { CLIENTS + 1 })),
        dialect: Dialect::Demo,
        cookies: app == 1,
    };
    while !is_over.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let outcome = client.sticky_test(|_| {}).await;
        visits.lock().expect("nobody panicked").push(Visit { app, begun, ended: Instant::now(), outcome });
    }
}
