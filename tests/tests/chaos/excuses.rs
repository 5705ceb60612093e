//! Why a visit may have failed: what one fault did, when, and to which clients. Whoever else fails has lost a worker that lives.

use std::collections::BTreeSet;
use std::time::Instant;

use homing::demo::client::Outcome;

use crate::visits::Visit;

/// What one fault did that clients may notice. Clients come and go between two faults, so that no other fault's count.
#[derive(Default)]
pub struct Excuses {
    pub deaths: Vec<Death>,
    /// When nobody was there to forward.
    pub absence: Option<Span>,
    pub oblivion: Option<Oblivion>,
}

/// From when to when.
#[derive(Clone, Copy)]
pub struct Span(pub Instant, pub Instant);

/// A worker was ended.
pub struct Death {
    pub app: usize,
    pub pid: u32,
    /// Until homing had told of it.
    pub span: Span,
    /// Those who could be on their way to it, without a session yet.
    pub clients: BTreeSet<u8>,
}

/// The kernel had more clients to remember than it may.
pub struct Oblivion {
    pub span: Span,
    /// Those whom nothing but the binding kept at their worker: the owner of their slot is another.
    pub clients: BTreeSet<u8>,
}

impl Span {
    fn meets(self, visit: &Visit) -> bool {
        visit.begun <= self.1 && self.0 <= visit.ended
    }
}

impl Excuses {
    /// Why the visit may have failed; `None`: it may not.
    pub fn excuse(&self, visit: &Visit) -> Option<&'static str> {
        let of_death = |death: &Death| death.app == visit.app && death.span.meets(visit);
        for death in self.deaths.iter().filter(|death| of_death(death)) {
            match visit.outcome.pid {
                Some(pid) if pid == death.pid => return Some("its worker was ended"),
                // On the HTTP path a page is asked for once more, of another worker.
                None if death.clients.contains(&visit.client) && (visit.app == 0 || is_about_the_websocket(visit)) => {
                    return Some("the worker that it came to was ended");
                }
                _ => {}
            }
        }
        // The kernel path needs nobody; and whoever has an answer has been forwarded.
        if visit.app == 1 && self.absence.is_some_and(|span| span.meets(visit)) && found_nobody(&visit.outcome) {
            return Some("homing was not there");
        }
        if visit.app == 0
            && let Some(oblivion) = &self.oblivion
            && oblivion.span.meets(visit)
            && oblivion.clients.contains(&visit.client)
            && was_elsewhere_alone(&visit.outcome)
        {
            return Some("its binding was forgotten");
        }
        None
    }
}

fn is_about_the_websocket(visit: &Visit) -> bool {
    visit.outcome.error.as_ref().is_some_and(|error| error.starts_with("WebSocket"))
}

/// Nothing was answered but what is right.
fn found_nobody(Outcome { elsewhere, failure, error, .. }: &Outcome) -> bool {
    // A status where there should be the reason for no answer.
    let is_status = |failure: &String| failure.starts_with(|first: char| first.is_ascii_digit());
    let is_answer = |error: &String| error.contains("was answered");
    *elsewhere == 0 && !failure.as_ref().is_some_and(is_status) && !error.as_ref().is_some_and(is_answer)
}

/// Everything was answered, by a worker that does not know the session.
fn was_elsewhere_alone(outcome: &Outcome) -> bool {
    outcome.error.is_none() && outcome.elsewhere == outcome.failed
}
