//! The picture that control publishes to the HTTP path, made from its state.

use std::collections::HashMap;
use std::sync::Arc;

use lb_common::abi::{BackendId, Service};

use super::launch::Running;
use super::state::{App, State};
use crate::config;
use crate::routing::{AppRoute, Snapshot, WorkerRoute};

/// What of an app never changes while homing runs.
pub(super) struct Fixed {
    pub(super) service: Service,
    pub(super) cookie: Arc<config::Cookie>,
    pub(super) name: Arc<str>,
}

pub(super) fn snapshot(
    state: &State,
    apps: &[config::App],
    fixed: &[Fixed],
    running: &HashMap<BackendId, Running>,
) -> Snapshot {
    let routes = (0..).zip(&state.apps).zip(apps.iter().zip(fixed)).map(|((number, app), (config, fixed))| {
        Arc::new(AppRoute {
            name: Arc::clone(&fixed.name),
            app: number,
            affinity: config.affinity,
            cookie: Arc::clone(&fixed.cookie),
            hold: config.timeouts.start,
            service: fixed.service,
            ring: Arc::clone(&app.ring),
            workers: workers(app, running),
            failed: failed(state, app),
        })
    });
    Snapshot { apps: routes.collect() }
}

fn workers(app: &App, running: &HashMap<BackendId, Running>) -> Vec<WorkerRoute> {
    app.workers
        .iter()
        .filter(|worker| worker.takes_bound_clients())
        .filter_map(|worker| {
            let process = running.get(&worker.backend)?;
            Some(WorkerRoute {
                number: worker.number,
                backend: worker.backend,
                incarnation: process.incarnation,
                draining: worker.phase != super::Phase::Ready,
                address: process.address,
                load: Arc::clone(&process.load),
            })
        })
        .collect()
}

fn failed(state: &State, app: &App) -> Option<Arc<str>> {
    if state.stopping { Some("homing is stopping".into()) } else { app.failure().map(Into::into) }
}
