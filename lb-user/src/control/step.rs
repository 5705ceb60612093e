//! `step`: one event in, the next state and what to do about it out.

use std::time::Duration;

use lb_common::abi::{BackendId, Slot};
use lb_common::maglev;

use super::state::{After, App, Phase, State, Worker};
use super::{Effect, Event, Moment, Severity, Signal};

/// A worker that was ready for this long counts as steady: its next crash is its first.
const STEADY: Duration = Duration::from_secs(30);
/// Crashes in a row after which a worker is given up.
const CRASHES_MAX: u32 = 5;
/// Wait before the first restart; doubled with every further crash.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// A worker that was given up is tried again for a request, this long after.
const FAILED_RETRY: Duration = Duration::from_secs(30);
/// Between the polite signal and the other.
const TERMINATE_GRACE: Duration = Duration::from_secs(5);

/// Decides. Events about processes that are gone change nothing.
pub fn step(mut state: State, event: Event, now: Moment) -> (State, Vec<Effect>) {
    let mut effects = Vec::new();
    match event {
        Event::Adopted { app, number, backend } => {
            state.backends.seen(backend);
            state.take_index(app, number, backend.index());
            let worker = &mut state.apps[app].workers[number as usize];
            worker.backend = backend;
            worker.enter(Phase::Ready, now);
            if !worker.is_process() {
                effects.push(Effect::Watch { app, number, backend });
            }
            effects.push(Effect::Enlist { backend });
        }
        Event::Boot => {
            for app in 0..state.apps.len() {
                watch_remotes(&mut state, app, now, &mut effects);
                publish_ring(&mut state.apps[app], app, now, &mut effects);
                start_missing(&mut state, app, now, &mut effects);
            }
        }
        Event::Ready { backend } => {
            if let Some((app, worker)) = find(&mut state, backend)
                && matches!(worker.phase, Phase::Starting { .. })
            {
                worker.enter(Phase::Ready, now);
                effects.push(Effect::Enlist { backend });
                publish_ring(&mut state.apps[app], app, now, &mut effects);
            }
        }
        Event::NotStarted { backend, reason } => {
            if let Some((app, worker)) = find(&mut state, backend)
                && matches!(worker.phase, Phase::Starting { .. })
            {
                ended(&mut state, app, backend, reason, now, &mut effects);
            }
        }
        Event::Answers { backend } => {
            if let Some((app, worker)) = known(&mut state, backend)
                && matches!(worker.phase, Phase::Silent { .. })
            {
                let drain = Phase::Draining { deadline: Moment::MAX };
                let phase = if worker.drained { drain } else { Phase::Ready };
                worker.enter(phase, now);
                effects.push(Effect::Enlist { backend });
                publish_ring(&mut state.apps[app], app, now, &mut effects);
            }
        }
        Event::FellSilent { backend, reason } => {
            if let Some((app, worker)) = known(&mut state, backend)
                && !matches!(worker.phase, Phase::Stopped)
            {
                let was_up = worker.is_up();
                let is_news = worker.reason() != Some(&reason);
                let number = worker.number;
                worker.enter(Phase::Silent { reason: Some(reason.clone()) }, now);
                if is_news {
                    effects.push(Effect::Say { severity: Severity::Warning, app, number, text: reason });
                }
                if was_up {
                    effects.push(Effect::Retire { backend });
                    publish_ring(&mut state.apps[app], app, now, &mut effects);
                }
            }
        }
        Event::Drain { app, number } => drain(&mut state, app, number, now, &mut effects),
        Event::Undrain { app, number } => undrain(&mut state, app, number, now, &mut effects),
        Event::Exited { backend, how } => {
            if let Some((app, _)) = find(&mut state, backend) {
                effects.push(Effect::Retire { backend });
                ended(&mut state, app, backend, how, now, &mut effects);
                publish_ring(&mut state.apps[app], app, now, &mut effects);
            }
        }
        Event::Demand { app } => demand(&mut state, app, now, &mut effects),
        Event::Idle { backend } => {
            if let Some((_, worker)) = find(&mut state, backend)
                && worker.is_process()
                && matches!(worker.phase, Phase::Draining { .. })
            {
                worker.end(After::Stop, now, &mut effects);
            }
        }
        Event::Settled { app, held } => settle(&mut state.apps[app], app, &held, &mut effects),
        Event::Stop { now: at_once } => stop(&mut state, at_once, now, &mut effects),
        Event::Tick => {
            for app in 0..state.apps.len() {
                due(&mut state, app, now, &mut effects);
            }
        }
    }
    if state.stopping && !state.apps.iter().flat_map(|app| &app.workers).any(Worker::is_up) {
        effects.push(Effect::Exit);
    }
    (state, effects)
}

fn find(state: &mut State, backend: BackendId) -> Option<(usize, &mut Worker)> {
    state
        .apps
        .iter_mut()
        .enumerate()
        .find_map(|(number, app)| Some((number, app.workers.iter_mut().find(|w| w.backend == backend && w.is_up())?)))
}

/// The worker with this id, up or not.
fn known(state: &mut State, backend: BackendId) -> Option<(usize, &mut Worker)> {
    state
        .apps
        .iter_mut()
        .enumerate()
        .find_map(|(number, app)| Some((number, app.workers.iter_mut().find(|worker| worker.backend == backend)?)))
}

/// Remote hosts of no earlier run get their id, and are asked whether they answer.
fn watch_remotes(state: &mut State, app: usize, now: Moment, effects: &mut Vec<Effect>) {
    for number in 0..state.apps[app].workers.len() {
        let worker = &mut state.apps[app].workers[number];
        if worker.is_process() || !worker.backend.is_none() {
            continue;
        }
        worker.backend = state.backends.next(worker.index);
        worker.enter(Phase::Silent { reason: None }, now);
        effects.push(Effect::Watch { app, number: number as u32, backend: worker.backend });
    }
}

fn drain(state: &mut State, app: usize, number: Option<u32>, now: Moment, effects: &mut Vec<Effect>) {
    let deadline = now + state.apps[app].spec.drain;
    for worker in state.apps[app].workers.iter_mut().filter(|worker| number.is_none_or(|n| worker.number == n)) {
        worker.drained = true;
        match (&worker.phase, worker.is_process()) {
            (Phase::Ready, true) => worker.enter(Phase::Draining { deadline }, now),
            // Nobody here sees when the last of a remote host's clients leaves, and its end is not homing's.
            (Phase::Ready, false) => worker.enter(Phase::Draining { deadline: Moment::MAX }, now),
            (Phase::Starting { .. }, _) => worker.end(After::Stop, now, effects),
            (Phase::Backoff { .. } | Phase::Failed { .. }, _) => worker.enter(Phase::Stopped, now),
            _ => {}
        }
    }
    publish_ring(&mut state.apps[app], app, now, effects);
}

fn undrain(state: &mut State, app: usize, number: Option<u32>, now: Moment, effects: &mut Vec<Effect>) {
    for worker in state.apps[app].workers.iter_mut().filter(|worker| number.is_none_or(|n| worker.number == n)) {
        worker.drained = false;
        if matches!(worker.phase, Phase::Draining { .. }) {
            worker.enter(Phase::Ready, now);
        }
    }
    publish_ring(&mut state.apps[app], app, now, effects);
    start_missing(state, app, now, effects);
}

/// A process is gone, asked for or not.
fn ended(state: &mut State, app: usize, backend: BackendId, how: String, now: Moment, effects: &mut Vec<Effect>) {
    let stopping = state.stopping;
    let Some((_, worker)) = find(state, backend) else { return };
    let was_steady = matches!(worker.phase, Phase::Ready | Phase::Draining { .. }) && now - worker.since >= STEADY;
    let reason = match std::mem::replace(&mut worker.phase, Phase::Stopped) {
        Phase::Ending { then: After::Stop, .. } | Phase::Draining { .. } => {
            worker.enter(Phase::Stopped, now);
            return;
        }
        Phase::Ending { then: After::Crash(reason), .. } => reason,
        _ => how,
    };
    if stopping {
        worker.enter(Phase::Stopped, now);
        return;
    }
    worker.crashes = if was_steady { 1 } else { worker.crashes + 1 };
    let number = worker.number;
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

/// Somebody waits for a worker of this app.
fn demand(state: &mut State, app: usize, now: Moment, effects: &mut Vec<Effect>) {
    let coming = |worker: &Worker| worker.is_up() || matches!(worker.phase, Phase::Backoff { .. });
    if state.stopping || state.apps[app].workers.iter().any(coming) {
        return;
    }
    let candidate = state.apps[app].workers.iter_mut().find(|worker| match worker.phase {
        Phase::Stopped => worker.is_process() && !worker.drained,
        Phase::Failed { retry_at, .. } => now >= retry_at,
        _ => false,
    });
    if let Some(number) = candidate.map(|worker| worker.number) {
        spawn(state, app, number, now, effects);
    }
}

fn start_missing(state: &mut State, app: usize, now: Moment, effects: &mut Vec<Effect>) {
    if state.stopping {
        return;
    }
    // A drained worker's place is not filled again: whoever drained it wanted fewer.
    let counts = |worker: &&Worker| worker.is_process() && (worker.is_up() || worker.drained);
    let running = state.apps[app].workers.iter().filter(counts).count();
    let missing = (state.apps[app].spec.min as usize).saturating_sub(running);
    let stopped: Vec<u32> = state.apps[app]
        .workers
        .iter()
        .filter(|worker| worker.is_process() && worker.phase == Phase::Stopped && !worker.drained)
        .map(|worker| worker.number)
        .take(missing)
        .collect();
    for number in stopped {
        spawn(state, app, number, now, effects);
    }
}

fn spawn(state: &mut State, app: usize, number: u32, now: Moment, effects: &mut Vec<Effect>) {
    let deadline = now + state.apps[app].spec.start;
    let worker = &mut state.apps[app].workers[number as usize];
    let is_restart = !worker.backend.is_none();
    worker.backend = state.backends.next(worker.index);
    worker.restarts += u32::from(is_restart);
    worker.enter(Phase::Starting { deadline }, now);
    effects.push(Effect::Spawn { app, number, backend: worker.backend });
}

/// What the clock alone brings about.
fn due(state: &mut State, app: usize, now: Moment, effects: &mut Vec<Effect>) {
    for number in 0..state.apps[app].workers.len() as u32 {
        let start = state.apps[app].spec.start;
        let worker = &mut state.apps[app].workers[number as usize];
        match &worker.phase {
            Phase::Starting { deadline } if now >= *deadline => {
                let reason =
                    format!("did not accept connections on its port within {} s of its start", start.as_secs());
                worker.end(After::Crash(reason), now, effects);
            }
            Phase::Draining { deadline } if now >= *deadline => worker.end(After::Stop, now, effects),
            Phase::Ending { kill_at, then } if now >= *kill_at => {
                effects.push(Effect::Signal { backend: worker.backend, signal: Signal::Kill });
                worker.phase = Phase::Ending { kill_at: now + TERMINATE_GRACE, then: then.clone() };
            }
            Phase::Backoff { until, .. } if now >= *until => spawn(state, app, number, now, effects),
            _ => {}
        }
    }
}

fn stop(state: &mut State, at_once: bool, now: Moment, effects: &mut Vec<Effect>) {
    state.stopping = true;
    for (number, app) in state.apps.iter_mut().enumerate() {
        for worker in &mut app.workers {
            if !worker.is_process() {
                // It goes on without homing; only the way to it ends.
                if worker.is_up() {
                    effects.push(Effect::Retire { backend: worker.backend });
                }
                worker.enter(Phase::Stopped, now);
                continue;
            }
            match worker.phase {
                Phase::Ready if !at_once => worker.enter(Phase::Draining { deadline: now + app.spec.drain }, now),
                Phase::Ready | Phase::Starting { .. } => worker.end(After::Stop, now, effects),
                Phase::Draining { .. } if at_once => worker.end(After::Stop, now, effects),
                Phase::Backoff { .. } | Phase::Failed { .. } => worker.enter(Phase::Stopped, now),
                Phase::Draining { .. } | Phase::Ending { .. } | Phase::Stopped | Phase::Silent { .. } => {}
            }
        }
        publish_ring(app, number, now, effects);
    }
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

fn publish_ring(app: &mut App, number: usize, now: Moment, effects: &mut Vec<Effect>) {
    let next = maglev::succeed(&app.ring, &app.owners());
    if *next != *app.ring {
        app.ring = next.into();
        app.ring_since = now;
        effects.push(Effect::PublishRing { app: number });
    }
}

impl Worker {
    fn enter(&mut self, phase: Phase, now: Moment) {
        self.phase = phase;
        self.since = now;
    }

    fn end(&mut self, then: After, now: Moment, effects: &mut Vec<Effect>) {
        effects.push(Effect::Retire { backend: self.backend });
        effects.push(Effect::Signal { backend: self.backend, signal: Signal::Terminate });
        self.enter(Phase::Ending { kill_at: now + TERMINATE_GRACE, then }, now);
    }
}
