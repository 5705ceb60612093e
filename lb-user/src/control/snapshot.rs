//! The picture that control publishes to the HTTP path, made from its state.

use std::collections::HashMap;
use std::sync::Arc;

use lb_common::abi::BackendId;

use super::fixed::Fixed;
use super::fronts::Fronts;
use super::launch::Running;
use super::remotes::Remote;
use super::state::{App, State};
use crate::config::Config;
use crate::routing::{AppRoute, Snapshot, WorkerRoute};

pub(super) fn snapshot(
    state: &State,
    config: &Config,
    fixed: &[Fixed],
    running: &HashMap<BackendId, Running>,
    remotes: &HashMap<BackendId, Remote>,
    by_kernel: &HashMap<BackendId, u64>,
    fronts: &Fronts,
) -> Snapshot {
    let routes = state.apps.iter().zip(config.apps.iter().zip(fixed)).map(|(app, (config, fixed))| {
        let route = AppRoute {
            name: Arc::clone(&fixed.name),
            app: app.spec.id,
            affinity: config.affinity_in_force(),
            cookie: Arc::clone(&fixed.cookie),
            protect: fixed.protect.clone(),
            http: Arc::clone(&fixed.http),
            send_proxy: config.send_proxy,
            hold: config.timeouts.start,
            service: fixed.service,
            ring: Arc::clone(&app.ring),
            workers: workers(app, running, remotes, by_kernel),
            may_grow: !state.stopping && app.may_grow(),
            failed: failed(state, app),
            times: Arc::clone(&fixed.times),
        };
        (app.spec.id, Arc::new(route))
    });
    Snapshot {
        apps: routes.collect(),
        doors: Arc::clone(fronts),
        trusted: config.homing.trusted_proxies.as_slice().into(),
    }
}

fn workers(
    app: &App,
    running: &HashMap<BackendId, Running>,
    remotes: &HashMap<BackendId, Remote>,
    by_kernel: &HashMap<BackendId, u64>,
) -> Vec<WorkerRoute> {
    let reach = |backend: BackendId| {
        let process =
            running.get(&backend).map(|process| (process.incarnation, process.address.clone(), &process.load));
        process
            .or_else(|| remotes.get(&backend).map(|remote| (remote.incarnation, remote.address.into(), &remote.load)))
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
                room: room(app, worker, by_kernel.get(&worker.backend).copied().unwrap_or(0)),
                address,
                load: Arc::clone(load),
            })
        })
        .collect()
}

/// What a worker may have in flight on the HTTP path, beside its connections on the kernel path.
fn room(app: &App, worker: &super::Worker, by_kernel: u64) -> u32 {
    if !worker.is_process() {
        return u32::MAX;
    }
    let by_kernel = u32::try_from(by_kernel).unwrap_or(u32::MAX);
    if worker.full { 0 } else { app.spec.max_connections.saturating_sub(by_kernel) }
}

fn failed(state: &State, app: &App) -> Option<Arc<str>> {
    if app.removed {
        Some("the app left the configuration".into())
    } else if state.stopping {
        Some("homing is stopping".into())
    } else {
        app.failure().map(Into::into)
    }
}
