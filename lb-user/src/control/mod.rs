//! Who runs, who gets new clients, and when: `step` decides, `runner` does.
//!
//! `step` is pure: no clock, no I/O, no randomness. Everything that happens is an [`Event`], everything to be done an
//! [`Effect`], so that every scenario is a list of events.

mod backends;
mod certificates;
mod change;
mod chore;
mod confinement;
pub mod doors;
mod fixed;
mod fronts;
mod ghosts;
mod given;
mod housekeeping;
mod last_output;
mod launch;
mod listeners;
pub mod persist;
pub mod predecessor;
mod readiness;
mod reload;
mod remotes;
mod report;
mod requests;
pub mod runner;
mod saver;
#[cfg(test)]
mod scenarios;
mod schedule;
mod snapshot;
pub mod state;
pub mod step;
mod succession;
mod tally;
mod taps;
mod trace;

pub use state::{App, AppSpec, Phase, State, Worker};
pub use step::step;

use std::time::Duration;

use lb_common::abi::BackendId;

/// What happened. A backend id names one process, so that a late event about a dead one is recognised. `app` is the
/// app's place in [`State::apps`] at that moment.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A worker of an earlier run still lives, or a remote host had this id then. Before [`Event::Boot`].
    Adopted { app: usize, number: u32, backend: BackendId, as_it_was: AsItWas },
    /// All that could be adopted is: start what is missing.
    Boot,
    /// The worker accepts connections.
    Ready { backend: BackendId },
    /// The worker does not accept connections yet, for this reason.
    Waiting { backend: BackendId, why: String },
    /// The worker could not be started.
    NotStarted { backend: BackendId, reason: String },
    /// A remote host answers.
    Answers { backend: BackendId },
    /// A remote host does not answer.
    FellSilent { backend: BackendId, reason: String },
    /// A ready worker has not answered for a while, or (`None`) does again.
    Unresponsive { backend: BackendId, reason: Option<String> },
    /// No new clients for these workers of the app (`None`: all); those who are bound stay.
    Drain { app: usize, number: Option<u32> },
    /// As before the drain.
    Undrain { app: usize, number: Option<u32> },
    /// Other bounds for the app's processes.
    Scale { app: usize, min: u32, max: u32 },
    /// New processes for the app's old ones, at most so many at once.
    Restart { app: usize, at_once: usize },
    /// The apps are these now; those that were known keep their ids. `restart`: ids of apps whose processes are to be
    /// replaced.
    Configure { specs: Vec<AppSpec>, restart: Vec<u32> },
    /// The worker's process is gone.
    Exited { backend: BackendId, how: String },
    /// A request is held because no worker of the app can take it.
    Demand { app: usize },
    /// How many connections workers have.
    Load { connections: Vec<(BackendId, u64)> },
    /// Of the app's slots in transition only these still have a live binding to another than their owner; sorted.
    Settled { app: usize, held: Vec<u32> },
    /// End: drain first, or at once.
    Stop { now: bool },
    /// Time has passed.
    Tick,
}

/// What the next run knows of a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct AsItWas {
    /// Its place on the ring; 0 where that is not known.
    pub place: u64,
    /// It would be given something else at its start now: another command, environment or user, for instance.
    pub outdated: bool,
    /// By an operator.
    pub drained: bool,
    /// It takes no new clients, for whatever reason.
    pub draining: bool,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    Spawn {
        app: usize,
        number: u32,
        backend: BackendId,
    },
    /// Ask a remote host from now on whether it answers.
    Watch {
        app: usize,
        number: u32,
        backend: BackendId,
    },
    /// Do not ask it any more.
    Unwatch {
        backend: BackendId,
    },
    /// Its listening sockets into the datapath: it can be chosen.
    Enlist {
        backend: BackendId,
    },
    /// Out of the datapath: it cannot be chosen any more.
    Retire {
        backend: BackendId,
    },
    PublishRing {
        app: usize,
    },
    Signal {
        backend: BackendId,
        signal: Signal,
    },
    /// Something that an operator wants to know, about one worker.
    Say {
        severity: Severity,
        app: usize,
        number: u32,
        text: String,
    },
    /// The app that was removed is gone; those after it move up by one. Last of all effects.
    Forget {
        app: usize,
    },
    /// Everything has ended.
    Exit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Please end.
    Terminate,
    /// End.
    Kill,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    Info,
    Warning,
    Error,
}

/// Time since the runner's start.
pub type Moment = Duration;
