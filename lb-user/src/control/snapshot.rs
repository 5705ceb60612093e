//! The picture that control publishes to the HTTP path, made from its state.

use std::collections::HashMap;
use std::sync::Arc;

use lb_common::abi::BackendId;

use super::fixed::Fixed;
use super::launch::Running;
use super::remotes::Remote;
use super::state::{App, State};
use crate::config;
use crate::routing::{AppRoute, Snapshot, WorkerRoute};

pub(super) fn snapshot(
    state: &State,
    apps: &[config::App],
    fixed: &[Fixed],
    running: &HashMap<BackendId, Running>,
    remotes: &HashMap<BackendId, Remote>,
) -> Snapshot {
    let routes = (0..).zip(&state.apps).zip(apps.iter().zip(fixed)).map(|((number, app), (config, fixed))| {
        Arc::new(AppRoute {
            name: Arc::clone(&fixed.name),
            app: number,
            affinity: config.affinity_in_force(),
            cookie: Arc::clone(&fixed.cookie),
            protect: fixed.protect.clone(),
            hold: config.timeouts.start,
            service: fixed.service,
            ring: Arc::clone(&app.ring),
            workers: workers(app, running, remotes),
            failed: failed(state, app),
        })
    });
    Snapshot { apps: routes.collect() }
}

fn workers(app: &App, running: &HashMap<BackendId, Running>, remotes: &HashMap<BackendId, Remote>) -> Vec<WorkerRoute> {
    let reach = |backend: BackendId| {
        let process = running.get(&backend).map(|process| (process.incarnation, process.address, &process.load));
        process.or_else(|| remotes.get(&backend).map(|remote| (remote.incarnation, remote.address, &remote.load)))
    };
    app.workers
        .iter()
        .filter(|worker| worker.takes_bound_clients())
        .filter_map(|worker| {
            let (incarnation, address, load) = reach(worker.backend)?;
            Some(WorkerRoute {
                number: worker.number,
                backend: worker.backend,
                incarnation,
                draining: worker.phase != super::Phase::Ready,
                address,
                load: Arc::clone(load),
            })
        })
        .collect()
}

fn failed(state: &State, app: &App) -> Option<Arc<str>> {
    if state.stopping { Some("homing is stopping".into()) } else { app.failure().map(Into::into) }
}
