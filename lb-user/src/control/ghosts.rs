//! Connections that the kernel counts and that are gone: their end was not told to the state hook. So it is for all that ended
//! between two homings of different versions, and on guest kernels that run no tracing program while their own agent is
//! what was interrupted (docs/ARCHITECTURE.md, "The kernel path"). A worker must not wait for them.

use std::collections::HashMap;

use lb_common::abi::{BackendId, Live};

use super::runner::Runner;
use crate::worker::listener;

/// What is known of them, by worker.
#[derive(Default)]
pub(super) struct Ghosts {
    known: HashMap<BackendId, Known>,
    /// Found by this homing, of whichever worker.
    found: u64,
}

#[derive(Clone, Copy, Default)]
struct Known {
    /// What was counted at the last look. The same twice: nothing happened in between.
    last: Live,
    ghosts: u64,
}

impl Ghosts {
    fn of(&self, backend: BackendId) -> u64 {
        self.known.get(&backend).map_or(0, |known| known.ghosts)
    }

    /// For `homing status`: what the kernel's own counter of ends lacks.
    pub(super) fn found(&self) -> u64 {
        self.found
    }

    pub(super) fn forget(&mut self, backend: BackendId) {
        self.known.remove(&backend);
    }
}

impl Runner {
    /// Those of a worker on the kernel path: what the kernel counts, without ghosts.
    pub(super) fn real_connections(&mut self, backend: BackendId) -> u64 {
        let counted = self.kernel.datapath().map_or(0, |datapath| datapath.live(backend).connections);
        counted.saturating_sub(self.ghosts.of(backend))
    }

    /// Workers whose counts say that they have connections, and that nothing has changed since the last look, are looked at:
    /// whether they have them.
    pub(super) fn look_at_ghosts(&mut self) {
        let Some(datapath) = self.kernel.datapath() else { return };
        let counted: Vec<(BackendId, Live)> =
            self.running.keys().map(|&backend| (backend, datapath.live(backend))).collect();
        for (backend, before) in counted {
            let known = self.ghosts.known.entry(backend).or_default();
            let is_unchanged = std::mem::replace(&mut known.last, before) == before;
            if !is_unchanged || before.connections <= known.ghosts {
                continue;
            }
            let Some((app, _)) = self.state.worker(backend) else { continue };
            let ports: Vec<u16> = self.config.apps[app].listen.iter().map(std::net::SocketAddr::port).collect();
            // An app that left the configuration has no addresses any more; its workers' connections are as they are.
            let Some(running) = self.running.get(&backend).filter(|_| !ports.is_empty()) else { continue };
            let Ok(real) = listener::connections(&running.process, &ports) else { continue };
            let after = self.kernel.datapath().map(|datapath| datapath.live(backend));
            let ghosts = before.connections.saturating_sub(real);
            if after == Some(before)
                && let Some(known) = self.ghosts.known.get_mut(&backend)
                && ghosts > known.ghosts
            {
                tracing::debug!(?backend, ghosts, "connections are counted that are gone");
                self.ghosts.found += ghosts - known.ghosts;
                known.ghosts = ghosts;
            }
        }
    }
}
