//! What control looks at from time to time, because nobody tells it.

use std::collections::HashSet;
use std::sync::Arc;

use lb_common::abi::{BackendId, Service};
use lb_common::affinity;

use super::runner::Runner;
use super::state::Phase;
use super::{Event, state};
use crate::config::Affinity;
use crate::datapath::{Attached, interfaces};

impl Runner {
    /// While every slot has its owner and the HTTP path holds no connection of an app of remote backends alone, XDP need
    /// not look for sockets.
    pub(super) fn look_at_sockets(&mut self) {
        let before = self.sockets.clone();
        for (app, state) in self.state.apps.iter().enumerate() {
            let is_busy =
                state.ring.iter().any(|slot| slot.current.is_none()) || self.proxy.connections(state.spec.id) > 0;
            // Calm is believed the second time: a connection may be on its way to the proxy.
            self.sockets[app] = is_busy || (self.sockets[app] && !self.calm[app]);
            self.calm[app] = !is_busy;
        }
        if before != self.sockets
            && let Err(error) = self.publish_services()
        {
            tracing::error!(%error, "the kernel did not take the services");
        }
    }

    /// Puts the app's ring into the kernel. What that has no descriptor or no memory for is tried again.
    pub(super) fn publish_ring(&mut self, app: usize) {
        let (id, ring) = (self.state.apps[app].spec.id, Arc::clone(&self.state.apps[app].ring));
        let published = self.kernel.datapath().map(|datapath| datapath.publish_ring(id, &ring));
        let app = &self.config.apps[app].name;
        match published {
            Some(Err(error)) if self.stale_rings.insert(id) => {
                tracing::error!(%error, app, "the kernel did not take the ring; the one before decides until it does");
            }
            Some(Ok(())) if self.stale_rings.remove(&id) => tracing::info!(app, "the kernel has taken the ring"),
            _ => {}
        }
    }

    /// Those that the kernel did not take.
    pub(super) fn look_at_rings(&mut self) {
        for id in self.stale_rings.clone() {
            match self.place(id) {
                Some(app) => self.publish_ring(app),
                None => drop(self.stale_rings.remove(&id)),
            }
        }
    }

    /// Interfaces come and go, and addresses move between them.
    pub(super) fn look_at_interfaces(&mut self) {
        let wanted = match interfaces(&self.config) {
            Ok(wanted) => wanted,
            Err(error) => {
                return tracing::warn!(%error, "cannot list this machine's addresses; interfaces stay as they are");
            }
        };
        let Some(datapath) = self.kernel.datapath() else { return };
        let before: Vec<Attached> = datapath.attached().to_vec();
        match datapath.follow(&wanted) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => return tracing::error!(%error, "interfaces could not be followed"),
        }
        for attached in datapath.attached().iter().filter(|attached| !before.contains(attached)) {
            attached.say();
        }
        for gone in before.iter().filter(|gone| !wanted.contains(&gone.name)) {
            match datapath.attached().iter().find(|now| now.index == gone.index && now.index != 0) {
                Some(now) => tracing::info!(interface = %gone.name, "renamed: {}", now.name),
                None => tracing::info!(interface = %gone.name, "no XDP here any more: it carries no listen address"),
            }
        }
        self.kernel_status = super::report::kernel_status(&self.kernel);
        if let Err(error) = self.publish_services() {
            tracing::error!(%error, "the kernel did not take the services");
        }
    }

    /// The kernel sends no news of programs: whose are beside homing's, and whether one let go of an interface.
    pub(super) fn look_at_others(&mut self) {
        let known = self.kernel_status.other_lookups.clone();
        self.look_at_interfaces();
        self.kernel_status = super::report::kernel_status(&self.kernel);
        let lookups = self.kernel_status.other_lookups.iter().filter(|program| !known.contains(program));
        crate::datapath::say_other_lookups(&lookups.cloned().collect::<Vec<_>>());
    }

    /// What workers have to do. Said to control when that has changed, and while one of them is being left.
    pub(super) fn look_at_loads(&mut self) {
        let up = self.state.apps.iter().flat_map(|app| &app.workers).filter(|worker| worker.is_up());
        let is_leaving =
            up.clone().any(|worker| matches!(worker.phase, Phase::Draining { .. } | Phase::Leaving { .. }));
        let up: Vec<BackendId> = up.map(|worker| worker.backend).collect();
        let counted: Vec<(BackendId, (u64, u64))> =
            up.into_iter().map(|backend| (backend, self.connections(backend))).collect();
        let connections: Vec<(BackendId, u64)> = counted.iter().map(|&(backend, (_, all))| (backend, all)).collect();
        let by_kernel = counted.into_iter().map(|(backend, (by_kernel, _))| (backend, by_kernel)).collect();
        let is_news = connections != self.loads;
        if is_news || is_leaving {
            (self.loads, self.by_kernel) = (connections.clone(), by_kernel);
            self.happen(Event::Load { connections });
        }
        if is_news {
            self.publish_snapshot();
        }
    }

    /// Slots whose previous owner is a remote host that lives: its open flows are known by what they send alone, so that
    /// each of them gets the time of a binding to send something and be bound.
    fn held_for_remotes(&self, app: usize) -> Vec<u32> {
        let state = &self.state.apps[app];
        if self.started.elapsed().saturating_sub(state.ring_since) >= self.config.apps[app].timeouts.affinity {
            return Vec::new();
        }
        let is_live_remote =
            |backend: BackendId| self.remotes.contains_key(&backend) && self.state.worker(backend).is_some();
        (0..).zip(state.ring.iter()).filter(|(_, slot)| is_live_remote(slot.previous)).map(|(index, _)| index).collect()
    }

    /// A promotion ends when none of the client's users was seen for as long as a binding is kept.
    pub(super) fn look_at_promotions(&mut self) {
        let now_s = self.bindings.now_s();
        let places = self.places();
        for (key, promotion) in self.bindings.promotions() {
            let app = places.get(&key.app).map(|&app| (&self.config.apps[app], &self.fixed[app]));
            let is_wanted = app.is_some_and(|(app, fixed)| {
                let Service { affinity_s, promote_above, .. } = fixed.service;
                let connections = self.bindings.get(&key).map_or(0, |binding| binding.connections);
                app.affinity_in_force() == Affinity::Auto
                    && (now_s.wrapping_sub(promotion.seen_s) < affinity_s || connections > promote_above)
            });
            if !is_wanted {
                self.bindings.demote(&key);
            }
        }
    }

    pub(super) fn look_at_transitions(&mut self) {
        let in_transition = |app: &state::App| app.ring.iter().any(|slot| !slot.previous.is_none());
        let apps: Vec<usize> = (0..self.state.apps.len()).filter(|&app| in_transition(&self.state.apps[app])).collect();
        if apps.is_empty() {
            return;
        }
        let bindings = self.bindings.all();
        let now_s = self.bindings.now_s();
        let up = self.state.apps.iter().flat_map(|app| &app.workers).filter(|worker| worker.is_up());
        let live: HashSet<BackendId> = up.map(|worker| worker.backend).collect();
        for app in apps {
            let service = &self.fixed[app].service;
            let id = service.app;
            let ring = &self.state.apps[app].ring;
            let mut held: Vec<u32> = bindings
                .iter()
                .filter(|(key, binding)| {
                    key.app == id && live.contains(&binding.backend) && affinity::is_fresh(service, binding, now_s)
                })
                .map(|(key, binding)| (affinity::slot_of(service, key.client), binding.backend))
                .filter(|&(slot, backend)| ring[slot as usize].current != backend)
                .map(|(slot, _)| slot)
                .collect();
            held.extend(self.held_for_remotes(app));
            held.sort_unstable();
            held.dedup();
            self.happen(Event::Settled { app, held });
        }
    }
}
