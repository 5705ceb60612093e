//! What operators ask for, and what it does to workers: no client is moved that need not move.

use lb_common::abi::BackendId;

use super::state::{After, App, AppSpec, Kind, Phase, Remote, State, Worker};
use super::step::publish_ring;
use super::{Effect, Moment, schedule};

/// Remote hosts of no earlier run get their id, and are asked whether they answer.
pub(super) fn watch_remotes(state: &mut State, app: usize, now: Moment, effects: &mut Vec<Effect>) {
    for worker in &mut state.apps[app].workers {
        if worker.is_process() || !worker.backend.is_none() {
            continue;
        }
        let Some(backend) = state.backends.take() else { continue };
        worker.backend = backend;
        worker.enter(Phase::Silent { reason: None }, now);
        effects.push(Effect::Watch { app, number: worker.number, backend });
    }
}

pub(super) fn drain(state: &mut State, app: usize, number: Option<u32>, now: Moment, effects: &mut Vec<Effect>) {
    let it = &mut state.apps[app];
    let (deadline, grace) = (now + it.spec.drain, it.spec.stop);
    let mut spare = it.spec.max.saturating_sub(it.serving());
    for worker in it.workers.iter_mut().filter(|worker| number.is_none_or(|n| worker.number == n)) {
        if worker.is_process() && !worker.counts() {
            // Its place was given up, or given to another; it can be kept empty while there is one.
            if spare == 0 || worker.replaces.is_some() {
                continue;
            }
            spare -= 1;
        }
        worker.drained = true;
        match (&worker.phase, worker.is_process()) {
            (Phase::Ready | Phase::Draining { .. }, true) => {
                worker.enter(Phase::Draining { deadline, idle: false }, now);
            }
            // Nobody here sees when the last of a remote host's clients leaves, and its end is not homing's.
            (Phase::Ready, false) => worker.enter(Phase::Draining { deadline: Moment::MAX, idle: false }, now),
            (_, true) => worker.give_up(grace, now, effects),
            _ => {}
        }
    }
    publish_ring(&mut state.apps[app], app, now, effects);
}

pub(super) fn undrain(state: &mut State, app: usize, number: Option<u32>, now: Moment, effects: &mut Vec<Effect>) {
    let it = &mut state.apps[app];
    if state.stopping || it.removed {
        return;
    }
    let numbers: Vec<u32> = it.workers.iter().map(|worker| worker.number).collect();
    for number in numbers.into_iter().filter(|&own| number.is_none_or(|number| number == own)) {
        // Its successor may have it.
        let place = schedule::free_place(it, number);
        let worker = it.process(number);
        let was_drained = std::mem::take(&mut worker.drained);
        if was_drained && matches!(worker.phase, Phase::Draining { .. }) {
            (worker.used, worker.place) = (now, place);
            worker.enter(Phase::Ready, now);
        }
    }
    publish_ring(&mut state.apps[app], app, now, effects);
    schedule::fill(state, app, now, effects);
    schedule::replace(state, app, now, effects);
}

/// The replacement is ready: the old worker keeps its clients and gets no others.
pub(super) fn drain_replaced(app: &mut App, old: BackendId, now: Moment) {
    let deadline = now + app.spec.drain;
    let is_old = |worker: &&mut Worker| worker.backend == old && worker.phase == Phase::Ready;
    if let Some(worker) = app.workers.iter_mut().find(is_old) {
        worker.enter(Phase::Draining { deadline, idle: false }, now);
    }
}

/// More than the new maximum are drained, the last ones first; the new minimum is started.
pub(super) fn scale(state: &mut State, app: usize, min: u32, max: u32, now: Moment, effects: &mut Vec<Effect>) {
    let it = &mut state.apps[app];
    (it.spec.min, it.spec.max) = (min, max);
    let (deadline, grace) = (now + it.spec.drain, it.spec.stop);
    let mut surplus = it.serving().saturating_sub(max);
    for worker in it.workers.iter_mut().rev().filter(|worker| worker.is_process() && worker.counts()) {
        if surplus == 0 {
            break;
        }
        surplus -= 1;
        worker.drained = false;
        match worker.phase {
            Phase::Ready => worker.enter(Phase::Draining { deadline, idle: false }, now),
            _ => worker.give_up(grace, now, effects),
        }
    }
    publish_ring(it, app, now, effects);
    schedule::fill(state, app, now, effects);
}

/// New processes for all of the app's, at most so many at once; what had failed is tried again.
pub(super) fn restart(state: &mut State, app: usize, at_once: usize, now: Moment, effects: &mut Vec<Effect>) {
    if state.stopping || state.apps[app].removed {
        return;
    }
    let it = &mut state.apps[app];
    it.revision = it.revision.wrapping_add(1);
    (it.restarting, it.restart_failed) = (Some(at_once), None);
    for worker in it.workers.iter_mut().filter(|worker| worker.is_process()) {
        worker.crashes = 0;
        if matches!(worker.phase, Phase::Failed { .. } | Phase::Backoff { .. }) {
            worker.enter(Phase::Stopped, now);
        }
    }
    schedule::fill(state, app, now, effects);
    schedule::replace(state, app, now, effects);
}

/// Applies the difference between the apps as they are and these.
pub(super) fn configure(
    state: &mut State,
    specs: Vec<AppSpec>,
    restarts: &[u32],
    now: Moment,
    effects: &mut Vec<Effect>,
) {
    for app in 0..state.apps.len() {
        if !specs.iter().any(|spec| spec.id == state.apps[app].spec.id) && !state.apps[app].removed {
            remove(state, app, now, effects);
        }
    }
    for spec in specs {
        let id = spec.id;
        match state.apps.iter().position(|app| app.spec.id == id && !app.removed) {
            Some(app) => {
                let (min, max) = (spec.min, spec.max);
                state.apps[app].spec = AppSpec { ring_len: state.apps[app].spec.ring_len, ..spec };
                settle_remotes(state, app, now, effects);
                scale(state, app, min, max, now, effects);
                if restarts.contains(&id) {
                    restart(state, app, 1, now, effects);
                }
            }
            None => {
                state.apps.push(App::new(spec));
                let app = state.apps.len() - 1;
                watch_remotes(state, app, now, effects);
                publish_ring(&mut state.apps[app], app, now, effects);
                schedule::fill(state, app, now, effects);
            }
        }
    }
}

/// Hosts as the configuration has them now.
fn settle_remotes(state: &mut State, app: usize, now: Moment, effects: &mut Vec<Effect>) {
    let App { spec, workers, .. } = &mut state.apps[app];
    let mut gone = Vec::new();
    for worker in workers.iter_mut() {
        let Kind::Remote(remote) = &mut worker.kind else { continue };
        match spec.remotes.iter().find(|wanted| wanted.name == remote.name) {
            Some(wanted) => *remote = wanted.clone(),
            None => gone.push(worker.backend),
        }
    }
    for &backend in &gone {
        effects.extend([Effect::Retire { backend }, Effect::Unwatch { backend }]);
        state.backends.release(backend);
    }
    workers.retain(|worker| !gone.contains(&worker.backend) || worker.is_process());
    let is_known = |workers: &[Worker], wanted: &Remote| {
        workers.iter().any(|worker| matches!(&worker.kind, Kind::Remote(remote) if remote.name == wanted.name))
    };
    let added: Vec<Remote> = spec.remotes.iter().filter(|wanted| !is_known(workers, wanted)).cloned().collect();
    for remote in added {
        let it = &mut state.apps[app];
        let number = (it.spec.max..).find(|&number| it.worker(number).is_none()).expect("fewer workers than numbers");
        it.workers.push(Worker::new(number, Kind::Remote(remote)));
    }
    watch_remotes(state, app, now, effects);
}

/// The app left the configuration: its clients may stay until the drain's deadline.
fn remove(state: &mut State, app: usize, now: Moment, effects: &mut Vec<Effect>) {
    let it = &mut state.apps[app];
    it.removed = true;
    it.restarting = None;
    end_workers(it, false, now, effects);
    for worker in it.workers.iter().filter(|worker| !worker.is_process()) {
        effects.push(Effect::Unwatch { backend: worker.backend });
        state.backends.release(worker.backend);
    }
    publish_ring(&mut state.apps[app], app, now, effects);
}

pub(super) fn stop(state: &mut State, at_once: bool, now: Moment, effects: &mut Vec<Effect>) {
    state.stopping = true;
    for (number, app) in state.apps.iter_mut().enumerate() {
        end_workers(app, at_once, now, effects);
        publish_ring(app, number, now, effects);
    }
}

fn end_workers(app: &mut App, at_once: bool, now: Moment, effects: &mut Vec<Effect>) {
    let (deadline, grace) = (now + app.spec.drain, app.spec.stop);
    for worker in &mut app.workers {
        worker.replaces = None;
        if !worker.is_process() {
            // It goes on without homing; only the way to it ends.
            if worker.is_up() {
                effects.push(Effect::Retire { backend: worker.backend });
            }
            worker.enter(Phase::Stopped, now);
            continue;
        }
        match worker.phase {
            Phase::Ready if !at_once => worker.enter(Phase::Draining { deadline, idle: false }, now),
            Phase::Draining { idle: true, .. } if !at_once => {
                worker.enter(Phase::Draining { deadline, idle: false }, now);
            }
            // Who is under way to it is served, but does not bring it back.
            Phase::Leaving { until, idle: true } if !at_once => worker.phase = Phase::Leaving { until, idle: false },
            Phase::Ready | Phase::Starting { .. } => worker.end(After::Stop, grace, now, effects),
            Phase::Draining { .. } | Phase::Leaving { .. } if at_once => worker.end(After::Stop, grace, now, effects),
            Phase::Queued | Phase::Backoff { .. } | Phase::Failed { .. } => worker.enter(Phase::Stopped, now),
            Phase::Draining { .. }
            | Phase::Leaving { .. }
            | Phase::Ending { .. }
            | Phase::Stopped
            | Phase::Silent { .. } => {}
        }
    }
}
