//! Who runs, who gets new clients, and when: `step` decides, `runner` does.
//!
//! `step` is pure: no clock, no I/O, no randomness. Everything that happens is an [`Event`], everything to be done an
//! [`Effect`], so that every scenario is a list of events.

pub mod backends;
mod fixed;
mod housekeeping;
mod launch;
pub mod persist;
mod remotes;
mod report;
pub mod runner;
#[cfg(test)]
mod scenarios;
mod snapshot;
pub mod state;
pub mod step;
mod succession;

pub use state::{App, AppSpec, Phase, State, Worker};
pub use step::step;

use std::time::Duration;

use lb_common::abi::BackendId;

/// What happened. A backend id names one process, so that a late event about a dead one is recognised.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A worker of an earlier run still lives, or a remote host had this id then. Before [`Event::Boot`].
    Adopted { app: usize, number: u32, backend: BackendId },
    /// All that could be adopted is: start what is missing.
    Boot,
    /// The worker accepts connections.
    Ready { backend: BackendId },
    /// The worker could not be started.
    NotStarted { backend: BackendId, reason: String },
    /// A remote host answers.
    Answers { backend: BackendId },
    /// A remote host does not answer.
    FellSilent { backend: BackendId, reason: String },
    /// No new clients for these workers of the app (`None`: all); those who are bound stay.
    Drain { app: usize, number: Option<u32> },
    /// As before the drain.
    Undrain { app: usize, number: Option<u32> },
    /// The worker's process is gone.
    Exited { backend: BackendId, how: String },
    /// A request is held because the app has no worker.
    Demand { app: usize },
    /// A draining worker has no connection left.
    Idle { backend: BackendId },
    /// Of the app's slots in transition only these still have a live binding to another than their owner; sorted.
    Settled { app: usize, held: Vec<u32> },
    /// End: drain first, or at once.
    Stop { now: bool },
    /// Time has passed.
    Tick,
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
    Warning,
    Error,
}

/// Time since the runner's start.
pub type Moment = Duration;
