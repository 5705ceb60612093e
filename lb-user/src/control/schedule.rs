//! Who is started and ended when: shinyapps.io's arithmetic, strict ">", with capacity reserved before it is used.

use std::collections::HashMap;

use lb_common::abi::BackendId;

use super::state::{After, App, Kind, Phase, State, Worker};
use super::step::publish_ring;
use super::{Effect, Moment, Severity};

/// A full worker takes new clients again when it has this part of its connections or less, so that the ring does not
/// change with every connection.
const ROOM_AGAIN: f64 = 0.9;

/// Starts what the app lacks of its minimum.
pub(super) fn fill(state: &mut State, app: usize, now: Moment, effects: &mut Vec<Effect>) {
    while state.apps[app].serving() < state.apps[app].spec.min {
        if !grow(state, app, now, effects) {
            return;
        }
    }
}

/// One worker more: one that was being ended for want of connections, or a new process. `false`: there is none to be had.
fn grow(state: &mut State, app: usize, now: Moment, effects: &mut Vec<Effect>) -> bool {
    if state.stopping || state.apps[app].removed {
        return false;
    }
    let spared =
        state.apps[app].workers.iter().find(|worker| matches!(worker.phase, Phase::Draining { idle: true, .. }));
    if let Some(backend) = spared.map(|worker| worker.backend) {
        come_back(&mut state.apps[app], backend, true, now);
        publish_ring(&mut state.apps[app], app, now, effects);
        return true;
    }
    let number = free_process(&mut state.apps[app]).number;
    spawn(state, app, number, now, effects)
}

/// A process that is not running and that nobody drained.
fn free_process(app: &mut App) -> &mut Worker {
    let is_free = |worker: &Worker| worker.is_process() && worker.phase == Phase::Stopped && !worker.drained;
    let number = app.workers.iter().find(|worker| is_free(worker)).map(|worker| worker.number);
    let number = number.unwrap_or_else(|| app.free_number());
    app.process(number)
}

/// Starts a process, or puts it in the queue for that. `false`: there is no room in the datapath.
pub(super) fn spawn(state: &mut State, app: usize, number: u32, now: Moment, effects: &mut Vec<Effect>) -> bool {
    if state.starting() >= state.starts_max {
        state.apps[app].process(number).enter(Phase::Queued, now);
        return true;
    }
    launch(state, app, number, now, effects)
}

/// Starts a process now. `false`: there is no room in the datapath.
fn launch(state: &mut State, app: usize, number: u32, now: Moment, effects: &mut Vec<Effect>) -> bool {
    let Some(backend) = state.backends.take() else {
        let text = "not started: homing steers as many workers as it can".to_owned();
        effects.push(Effect::Say { severity: Severity::Error, app, number, text });
        return false;
    };
    let place = free_place(&state.apps[app], number);
    let App { spec, revision, .. } = &state.apps[app];
    let (deadline, revision) = (now + spec.start, *revision);
    let worker = state.apps[app].process(number);
    worker.restarts += u32::from(!worker.backend.is_none());
    worker.waiting = None;
    (worker.backend, worker.revision, worker.place) = (backend, revision, place);
    worker.enter(Phase::Starting { deadline }, now);
    effects.push(Effect::Spawn { app, number, backend });
    true
}

/// The place on the ring that the process had, if nobody took it since; else the first that is free. Who replaces
/// another takes its place.
pub(super) fn free_place(app: &App, number: u32) -> u64 {
    let own = app.worker(number).map_or(u64::from(number) + 1, |worker| worker.place);
    if app.worker(number).is_some_and(|worker| worker.replaces.is_some()) {
        return own;
    }
    let is_taken = |place: u64| {
        app.workers.iter().any(|other| {
            other.number != number
                && other.place == place
                && (matches!(other.phase, Phase::Starting { .. } | Phase::Ready | Phase::Backoff { .. }))
        })
    };
    if is_taken(own) { (1..).find(|&place| !is_taken(place)).expect("fewer workers than places") } else { own }
}

/// Starts those who wait for that, the longest first.
pub(super) fn start_queued(state: &mut State, now: Moment, effects: &mut Vec<Effect>) {
    for _ in state.starting()..state.starts_max {
        let workers = state.apps.iter().enumerate().flat_map(|(app, a)| a.workers.iter().map(move |w| (app, w)));
        let queued = workers.filter(|(_, worker)| worker.phase == Phase::Queued).min_by_key(|(_, w)| w.since);
        let Some((app, number)) = queued.map(|(app, worker)| (app, worker.number)) else { return };
        if !launch(state, app, number, now, effects) {
            return;
        }
    }
}

/// Somebody waits for a worker of this app.
pub(super) fn demand(state: &mut State, app: usize, now: Moment, effects: &mut Vec<Effect>) {
    let is_coming = |worker: &Worker| {
        worker.is_process()
            && matches!(
                worker.phase,
                Phase::Queued | Phase::Starting { .. } | Phase::Backoff { .. } | Phase::Ending { .. }
            )
            && worker.counts()
    };
    let has_room = |worker: &Worker| worker.phase == Phase::Ready && !worker.full;
    let App { workers, spec, .. } = &state.apps[app];
    if state.stopping || workers.iter().any(|worker| is_coming(worker) || has_room(worker)) {
        return;
    }
    let failed =
        workers.iter().find(|worker| matches!(worker.phase, Phase::Failed { retry_at, .. } if now >= retry_at));
    if let Some(number) = failed.map(|worker| worker.number) {
        spawn(state, app, number, now, effects);
    } else if state.apps[app].serving() < spec.max {
        grow(state, app, now, effects);
    }
}

/// Takes note of connections, and of what follows: more workers, full ones, idle ones.
pub(super) fn load(state: &mut State, connections: &[(BackendId, u64)], now: Moment, effects: &mut Vec<Effect>) {
    let stopping = state.stopping;
    let connections: HashMap<BackendId, u64> = connections.iter().copied().collect();
    for app in 0..state.apps.len() {
        let App { spec, workers, .. } = &mut state.apps[app];
        let mut back = Vec::new();
        let mut is_ring_new = false;
        for worker in workers.iter_mut().filter(|worker| worker.is_up()) {
            let Some(&count) = connections.get(&worker.backend) else { continue };
            if count > 0 || worker.connections > 0 {
                worker.used = now;
            }
            worker.connections = count;
            let bound = f64::from(spec.max_connections);
            let is_process = worker.kind == Kind::Process;
            let bound = if worker.full { (bound * ROOM_AGAIN).max(1.0) } else { bound };
            let was_full = std::mem::replace(&mut worker.full, is_process && count as f64 >= bound);
            is_ring_new |= was_full != worker.full;
            match worker.phase {
                Phase::Draining { idle: true, .. } if count > 0 => back.push(worker.backend),
                // Nobody is under way to a homing that stops.
                Phase::Draining { .. } if count == 0 && is_process && stopping => {
                    worker.end(After::Stop, spec.stop, now, effects);
                }
                Phase::Draining { idle, .. } if count == 0 && is_process => worker.leave(idle, now, effects),
                _ => {}
            }
        }
        is_ring_new |= !back.is_empty();
        for backend in back {
            come_back(&mut state.apps[app], backend, true, now);
        }
        if is_ring_new {
            publish_ring(&mut state.apps[app], app, now, effects);
        }
        loop {
            let it = &state.apps[app];
            let ready = it.workers.iter().filter(|worker| worker.is_process() && worker.phase == Phase::Ready);
            let (serving, total) = (it.serving(), ready.map(|worker| worker.connections).sum::<u64>());
            // None at all is for a request to ask for.
            if serving == 0 || serving >= it.spec.max || total as f64 <= it.grows_above(serving) {
                break;
            }
            if !grow(state, app, now, effects) {
                break;
            }
        }
    }
}

/// Ends a worker that nobody has used for long, unless the app needs it.
pub(super) fn reap(app: &mut App, number: usize, now: Moment, effects: &mut Vec<Effect>) {
    let Some(idle) = app.reaps_after() else { return };
    let deadline = now + app.spec.drain;
    let is_due = |worker: &&mut Worker| worker.idle_since().is_some_and(|since| now >= since + idle);
    // The last one goes first, so that the first ones keep their numbers.
    let Some(worker) = app.workers.iter_mut().filter(is_due).max_by_key(|worker| worker.number) else { return };
    worker.enter(Phase::Draining { deadline, idle: true }, now);
    publish_ring(app, number, now, effects);
}

/// It was ending for want of connections or of clients, and has some again.
pub(super) fn come_back(app: &mut App, backend: BackendId, idle: bool, now: Moment) {
    let deadline = now + app.spec.drain;
    // Another may have been started in its place: then it serves those that it has.
    let is_wanted = idle && app.serving() < app.spec.max;
    let number = app.workers.iter().find(|worker| worker.backend == backend).map(|worker| worker.number);
    let place = number.map_or(0, |number| free_place(app, number));
    if let Some(worker) = app.workers.iter_mut().find(|worker| worker.backend == backend) {
        (worker.used, worker.place) = (now, place);
        worker.enter(if is_wanted { Phase::Ready } else { Phase::Draining { deadline, idle: false } }, now);
    }
}

/// Goes on with a restart: replacements for workers of an earlier revision.
pub(super) fn replace(state: &mut State, app: usize, now: Moment, effects: &mut Vec<Effect>) {
    while let Some(at_once) = state.apps[app].restarting {
        let it = &state.apps[app];
        let replacing: Vec<BackendId> = it.workers.iter().filter_map(|worker| worker.replaces).collect();
        let is_old =
            |worker: &&Worker| worker.is_process() && worker.phase == Phase::Ready && worker.revision != it.revision;
        let is_coming = |worker: &Worker| {
            worker.is_process() && worker.revision != it.revision && matches!(worker.phase, Phase::Starting { .. })
        };
        let old = it.workers.iter().filter(is_old).find(|worker| !replacing.contains(&worker.backend));
        let Some((old, place)) = old.map(|worker| (worker.backend, worker.place)) else {
            if replacing.is_empty() && !it.workers.iter().any(is_coming) {
                state.apps[app].restarting = None;
            }
            return;
        };
        if replacing.len() >= at_once {
            return;
        }
        let successor = free_process(&mut state.apps[app]);
        let number = successor.number;
        (successor.replaces, successor.place) = (Some(old), place);
        if !spawn(state, app, number, now, effects) {
            let successor = state.apps[app].process(number);
            successor.replaces = None;
            state.apps[app].restarting = None;
            return;
        }
    }
}

/// Drops what is no longer needed: numbers past the app's maximum, and apps that were removed and have ended.
pub(super) fn forget(state: &mut State, effects: &mut Vec<Effect>) {
    for app in &mut state.apps {
        let mut spare =
            app.workers.iter().filter(|worker| worker.is_process()).count().saturating_sub(app.spec.max as usize);
        for at in (0..app.workers.len()).rev() {
            let worker = &app.workers[at];
            let is_over = worker.phase == Phase::Stopped
                && (app.removed || (!worker.drained && worker.is_process() && spare > 0));
            if is_over {
                spare = spare.saturating_sub(1);
                app.workers.remove(at);
            }
        }
    }
    while let Some(app) = state.apps.iter().position(|app| app.removed && app.workers.is_empty()) {
        state.apps.remove(app);
        effects.push(Effect::Forget { app });
    }
}
