//! `step`: one event in, the next state and what to do about it out. The life of a worker is here; who is started and
//! ended when is `schedule`'s, what operators ask for `change`'s.

use std::time::Duration;

use lb_common::abi::{BackendId, Slot};
use lb_common::maglev;

use super::state::{After, App, AppSpec, Phase, State, Worker};
use super::{AsItWas, Effect, Event, Moment, Severity, Signal, change, schedule};

/// A worker that was ready for this long counts as steady: its next crash is its first.
const STEADY: Duration = Duration::from_secs(30);
/// Crashes in a row after which a worker is given up.
const CRASHES_MAX: u32 = 5;
/// Wait before the first restart; doubled with every further crash.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// A worker that was given up is tried again for a request, this long after …
const FAILED_RETRY: Duration = Duration::from_secs(30);
/// … and by itself this long after that: others may serve all requests.
pub(super) const FAILED_AGAIN: Duration = Duration::from_secs(270);
/// Between SIGKILLs to a worker that does not go: it may wait for a disk or a network file system.
const KILL_AGAIN: Duration = Duration::from_secs(5);
/// From the moment when a worker can be chosen no more to the last look at its connections: longer than a handshake that
/// was under way, and than the time between two looks.
const LEAVING: Duration = Duration::from_secs(1);

/// Decides. Events about processes that are gone change nothing.
pub fn step(mut state: State, event: Event, now: Moment) -> (State, Vec<Effect>) {
    let mut effects = Vec::new();
    let out = &mut effects;
    match event {
        Event::Adopted { app, number, backend, as_it_was } => {
            adopted(&mut state, app, number, backend, now, out);
            let it = &mut state.apps[app];
            let AsItWas { place, outdated, drained, draining } = as_it_was;
            if outdated {
                it.restarting = Some(1);
            }
            let revision = if outdated { it.revision.wrapping_sub(1) } else { it.revision };
            let deadline = now + it.spec.drain;
            let worker = it.process(number);
            (worker.revision, worker.drained) = (revision, drained);
            if place != 0 {
                worker.place = place;
            }
            if drained || draining {
                worker.enter(Phase::Draining { deadline, idle: false }, now);
            }
        }
        Event::Boot => {
            for app in 0..state.apps.len() {
                change::watch_remotes(&mut state, app, now, out);
                publish_ring(&mut state.apps[app], app, now, out);
                let AppSpec { min, max, .. } = state.apps[app].spec;
                change::scale(&mut state, app, min, max, now, out);
                schedule::replace(&mut state, app, now, out);
            }
        }
        Event::Ready { backend } => {
            if let Some((app, worker)) = find(&mut state, backend)
                && matches!(worker.phase, Phase::Starting { .. })
            {
                let (number, replaced) = (worker.number, worker.replaces.take());
                worker.used = now;
                worker.enter(Phase::Ready, now);
                if let Some(old) = replaced {
                    change::drain_replaced(&mut state.apps[app], old, now);
                }
                let it = &mut state.apps[app];
                if replaced.is_some() && it.serving() > it.spec.max {
                    // Its predecessor was taken away meanwhile, and nobody misses that one.
                    let grace = it.spec.stop;
                    it.process(number).end(After::Stop, grace, now, out);
                } else {
                    out.push(Effect::Enlist { backend });
                }
                publish_ring(&mut state.apps[app], app, now, out);
                schedule::replace(&mut state, app, now, out);
            }
        }
        Event::Waiting { backend, why } => {
            if let Some((_, worker)) = find(&mut state, backend) {
                worker.waiting = Some(why);
            }
        }
        Event::NotStarted { backend, reason } => {
            if let Some((app, worker)) = find(&mut state, backend)
                && matches!(worker.phase, Phase::Starting { .. })
            {
                ended(&mut state, app, backend, reason, now, out);
            }
        }
        Event::Answers { backend } => {
            if let Some((app, worker)) = known(&mut state, backend)
                && matches!(worker.phase, Phase::Silent { .. })
            {
                let drain = Phase::Draining { deadline: Moment::MAX, idle: false };
                let phase = if worker.drained { drain } else { Phase::Ready };
                worker.enter(phase, now);
                out.push(Effect::Enlist { backend });
                publish_ring(&mut state.apps[app], app, now, out);
            }
        }
        Event::FellSilent { backend, reason } => {
            if let Some((app, worker)) = known(&mut state, backend)
                && !matches!(worker.phase, Phase::Stopped)
            {
                let was_up = worker.is_up();
                let is_news = worker.reason() != Some(&reason);
                let number = worker.number;
                if is_news {
                    worker.enter(Phase::Silent { reason: Some(reason.clone()) }, now);
                    out.push(Effect::Say { severity: Severity::Warning, app, number, text: reason });
                }
                if was_up {
                    out.push(Effect::Retire { backend });
                    publish_ring(&mut state.apps[app], app, now, out);
                }
            }
        }
        Event::Unresponsive { backend, reason } => unresponsive(&mut state, backend, reason, now, out),
        Event::Drain { app, number } => change::drain(&mut state, app, number, now, out),
        Event::Undrain { app, number } => change::undrain(&mut state, app, number, now, out),
        Event::Scale { app, min, max } => change::scale(&mut state, app, min, max, now, out),
        Event::Restart { app, at_once } => change::restart(&mut state, app, at_once, now, out),
        Event::Configure { specs, restart } => change::configure(&mut state, specs, &restart, now, out),
        Event::Exited { backend, how } => {
            if let Some((app, _)) = find(&mut state, backend) {
                out.push(Effect::Retire { backend });
                ended(&mut state, app, backend, how, now, out);
                publish_ring(&mut state.apps[app], app, now, out);
                schedule::fill(&mut state, app, now, out);
                schedule::replace(&mut state, app, now, out);
            }
        }
        Event::Demand { app } => schedule::demand(&mut state, app, now, out),
        Event::Load { connections } => schedule::load(&mut state, &connections, now, out),
        Event::Settled { app, held } => settle(&mut state.apps[app], app, &held, out),
        Event::Stop { now: at_once } => change::stop(&mut state, at_once, now, out),
        Event::Tick => {
            for app in 0..state.apps.len() {
                due(&mut state, app, now, out);
            }
        }
    }
    schedule::start_queued(&mut state, now, out);
    schedule::forget(&mut state, out);
    if state.stopping && !state.apps.iter().flat_map(|app| &app.workers).any(Worker::is_up) {
        effects.push(Effect::Exit);
    }
    (state, effects)
}

pub(super) fn find(state: &mut State, backend: BackendId) -> Option<(usize, &mut Worker)> {
    known(state, backend).filter(|(_, worker)| worker.is_up())
}

/// The worker with this id, up or not.
fn known(state: &mut State, backend: BackendId) -> Option<(usize, &mut Worker)> {
    state
        .apps
        .iter_mut()
        .enumerate()
        .find_map(|(number, app)| Some((number, app.workers.iter_mut().find(|worker| worker.backend == backend)?)))
}

fn adopted(state: &mut State, app: usize, number: u32, backend: BackendId, now: Moment, effects: &mut Vec<Effect>) {
    state.backends.adopt(backend);
    let worker = state.apps[app].process(number);
    worker.backend = backend;
    worker.used = now;
    worker.enter(Phase::Ready, now);
    if !worker.is_process() {
        effects.push(Effect::Watch { app, number, backend });
    }
    effects.push(Effect::Enlist { backend });
}

fn unresponsive(state: &mut State, backend: BackendId, reason: Option<String>, now: Moment, effects: &mut Vec<Effect>) {
    let Some((app, worker)) = find(state, backend) else { return };
    if worker.phase != Phase::Ready || worker.unresponsive.is_some() == reason.is_some() {
        worker.unresponsive = reason;
        return;
    }
    let (severity, text) = match &reason {
        Some(reason) => (Severity::Warning, format!("takes no new clients: {reason}")),
        None => (Severity::Info, "responds again".to_owned()),
    };
    effects.push(Effect::Say { severity, app, number: worker.number, text });
    worker.unresponsive = reason;
    publish_ring(&mut state.apps[app], app, now, effects);
}

/// A process is gone, asked for or not.
fn ended(state: &mut State, app: usize, backend: BackendId, how: String, now: Moment, effects: &mut Vec<Effect>) {
    let is_over = state.stopping || state.apps[app].removed;
    state.backends.release(backend);
    let it = &mut state.apps[app];
    let leaves_room = it.up(backend).is_some_and(|worker| worker.counts() && !worker.drained);
    let mut spare = it.spec.max.saturating_sub(it.serving()) + u32::from(leaves_room);
    let mut is_replaced = false;
    for successor in it.workers.iter_mut().filter(|other| other.replaces == Some(backend)) {
        // From now on it stands for itself, where there is a place.
        (successor.replaces, is_replaced) = (None, true);
        if spare == 0 {
            successor.give_up(it.spec.stop, now, effects);
        }
        spare = spare.saturating_sub(1);
    }
    let Some((_, worker)) = find(state, backend) else { return };
    let number = worker.number;
    let was_steady = matches!(worker.phase, Phase::Ready | Phase::Draining { .. }) && now - worker.since >= STEADY;
    worker.connections = 0;
    worker.full = false;
    worker.unresponsive = None;
    let replaced = worker.replaces.take();
    let reason = match std::mem::replace(&mut worker.phase, Phase::Stopped) {
        Phase::Ending { then: After::Stop, .. } | Phase::Draining { .. } | Phase::Leaving { .. } => {
            return worker.enter(Phase::Stopped, now);
        }
        Phase::Ending { then: After::Crash(reason), .. } => reason,
        _ => how,
    };
    if is_over || is_replaced {
        return worker.enter(Phase::Stopped, now);
    }
    if replaced.is_some() {
        worker.enter(Phase::Stopped, now);
        let text = format!("the restart is stopped, the old workers go on: the new one {reason}");
        (state.apps[app].restarting, state.apps[app].restart_failed) = (None, Some(reason));
        return effects.push(Effect::Say { severity: Severity::Error, app, number, text });
    }
    worker.crashes = if was_steady { 1 } else { worker.crashes + 1 };
    if worker.crashes >= CRASHES_MAX {
        let text =
            format!("given up after {CRASHES_MAX} crashes in a row; a request tries again; the last one {reason}");
        worker.enter(Phase::Failed { retry_at: now + FAILED_RETRY, reason }, now);
        effects.push(Effect::Say { severity: Severity::Error, app, number, text });
    } else {
        let wait = BACKOFF_MIN * 2_u32.pow(worker.crashes - 1);
        let text = format!("{reason}; starting it again in {} ms", wait.as_millis());
        worker.enter(Phase::Backoff { until: now + wait, reason }, now);
        effects.push(Effect::Say { severity: Severity::Warning, app, number, text });
    }
}

/// What the clock alone brings about.
fn due(state: &mut State, app: usize, now: Moment, effects: &mut Vec<Effect>) {
    let AppSpec { start, stop: grace, .. } = state.apps[app].spec;
    for at in 0..state.apps[app].workers.len() {
        let worker = &mut state.apps[app].workers[at];
        let number = worker.number;
        match worker.phase.clone() {
            Phase::Starting { deadline } if now >= deadline => {
                let why = worker.waiting.as_ref().map_or_else(String::new, |why| format!(": {why}"));
                let reason = format!("did not accept connections within {} s of its start{why}", start.as_secs());
                worker.end(After::Crash(reason), grace, now, effects);
            }
            Phase::Draining { deadline, .. } if now >= deadline => worker.end(After::Stop, grace, now, effects),
            Phase::Leaving { until, idle } if now >= until => {
                if worker.connections == 0 {
                    worker.end(After::Stop, grace, now, effects);
                } else {
                    // Somebody was under way.
                    let backend = worker.backend;
                    effects.push(Effect::Enlist { backend });
                    schedule::come_back(&mut state.apps[app], backend, idle, now);
                    publish_ring(&mut state.apps[app], app, now, effects);
                }
            }
            Phase::Ending { kill_at, then } if now >= kill_at => {
                effects.push(Effect::Signal { backend: worker.backend, signal: Signal::Kill });
                worker.phase = Phase::Ending { kill_at: now + KILL_AGAIN, then };
            }
            Phase::Backoff { until, .. } if now >= until => {
                schedule::spawn(state, app, number, now, effects);
            }
            Phase::Failed { retry_at, .. } if now >= retry_at + FAILED_AGAIN => {
                schedule::spawn(state, app, number, now, effects);
            }
            _ => {}
        }
    }
    schedule::reap(&mut state.apps[app], app, now, effects);
}

/// Ends the transition of every slot that no binding needs any more.
fn settle(app: &mut App, number: usize, held: &[u32], effects: &mut Vec<Effect>) {
    let settled: Vec<Slot> = (0..)
        .zip(app.ring.iter())
        .map(
            |(index, slot)| {
                if held.binary_search(&index).is_ok() { *slot } else { Slot { previous: BackendId::NONE, ..*slot } }
            },
        )
        .collect();
    if *settled != *app.ring {
        app.ring = settled.into();
        effects.push(Effect::PublishRing { app: number });
    }
}

pub(super) fn publish_ring(app: &mut App, number: usize, now: Moment, effects: &mut Vec<Effect>) {
    let next = maglev::succeed(&app.ring, &app.owners());
    if *next != *app.ring {
        app.ring = next.into();
        app.ring_since = now;
        effects.push(Effect::PublishRing { app: number });
    }
}

impl Worker {
    pub(super) fn end(&mut self, then: After, grace: Duration, now: Moment, effects: &mut Vec<Effect>) {
        if !matches!(self.phase, Phase::Leaving { .. }) {
            effects.push(Effect::Retire { backend: self.backend });
        }
        effects.push(Effect::Signal { backend: self.backend, signal: Signal::Terminate });
        self.enter(Phase::Ending { kill_at: now + grace, then }, now);
    }

    /// What has not begun to serve is not wanted any more.
    pub(super) fn give_up(&mut self, grace: Duration, now: Moment, effects: &mut Vec<Effect>) {
        match self.phase {
            Phase::Starting { .. } => self.end(After::Stop, grace, now, effects),
            Phase::Queued | Phase::Backoff { .. } | Phase::Failed { .. } => self.enter(Phase::Stopped, now),
            Phase::Ending { kill_at, .. } => self.phase = Phase::Ending { kill_at, then: After::Stop },
            _ => {}
        }
    }

    /// Its last connection is gone: nobody new, and then a last look.
    pub(super) fn leave(&mut self, idle: bool, now: Moment, effects: &mut Vec<Effect>) {
        effects.push(Effect::Retire { backend: self.backend });
        self.enter(Phase::Leaving { until: now + LEAVING, idle }, now);
    }
}
