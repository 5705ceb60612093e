//! What one run of homing leaves to the next: saved after every change, adopted at start.

use std::cell::LazyCell;
use std::collections::HashSet;
use std::path::Path;

use lb_common::abi::{BackendId, Slot};

use super::given::Given;
use super::persist::{Refusal, Saved, SavedRemote, SavedWorker};
use super::remotes;
use super::runner::Runner;
use super::saver::Found;
use super::state::{Kind, Worker};
use super::{AsItWas, Event};
use crate::routing::Load;
use crate::{output, worker};

impl Runner {
    /// Takes over the workers, rings and ids that an earlier run left.
    pub(super) fn adopt(&mut self, found: Found) {
        let saved = match found {
            Found::Nothing => Saved::default(),
            Found::State(saved) => saved,
            Found::Refused { why, aside } => {
                self.say_refused(&why, aside.as_deref());
                self.spare_ids();
                Saved::default()
            }
        };
        self.state.resume_after(saved.last_ids.iter().map(|&id| BackendId(id)));
        // Without the kernel path rings are in memory alone; bindings are told by the homing that was replaced.
        let is_bound: LazyCell<HashSet<u32>, _> =
            LazyCell::new(|| self.bindings.all().into_iter().map(|(key, _)| key.app).collect());
        for app in &mut self.state.apps {
            let same_app = saved.apps.get(app.spec.id as usize) == Some(&app.spec.name);
            let ring = self.kernel.datapath().and_then(|datapath| datapath.found_rings().get(&app.spec.id).cloned());
            match ring {
                Some(ring) if same_app && ring.len() == app.ring.len() => app.ring = ring.into(),
                // Its clients fall into other slots now, or nobody knows into which they fell: the bound ones are known by
                // their bindings alone.
                ring if same_app && (ring.is_some() || is_bound.contains(&app.spec.id)) => {
                    let asked = Slot { current: BackendId::NONE, previous: BackendId::FORMER };
                    app.ring = vec![asked; app.ring.len()].into();
                }
                Some(_) | None => {}
            }
        }
        let mut adopted = Vec::new();
        for worker in &saved.workers {
            let wanted = self.config.apps.iter().position(|app| app.name == worker.app && !app.command.is_empty());
            let backend = BackendId(worker.backend);
            match self.launcher.adopt(worker, backend, wanted.map(|app| &self.config.apps[app])) {
                Some(mut running) => {
                    tracing::info!(app = %worker.app, worker = worker.number, pid = worker.pid, "adopted a worker");
                    let app = wanted.expect("only wanted workers are adopted");
                    running.load = Load::counted_in(&self.fixed[app].times);
                    self.running.insert(backend, running);
                    adopted.push(backend);
                    let given = Given::by(&self.config.apps[app]).fingerprint(worker.incarnation);
                    let &SavedWorker { number, place, drained, draining, .. } = worker;
                    let as_it_was = AsItWas { place, outdated: given != worker.given, drained, draining };
                    self.happen(Event::Adopted { app, number, backend, as_it_was });
                }
                None => {
                    let log = self.launcher.log_file(&worker.app, worker.number);
                    let lines = output::last::lines(&log, worker.output_since);
                    let last_output = Some(lines).filter(|lines| !lines.is_empty()).map(tracing::field::debug);
                    tracing::info!(app = %worker.app, worker = worker.number, last_output, "a worker of the last run is gone");
                }
            }
        }
        self.launcher.confinement.reap(self.running.values().map(|running| &*running.process));
        for remote in &saved.remotes {
            let place = self.config.apps.iter().enumerate().find_map(|(app, config)| {
                let wanted = config.backends.iter().find(|backend| backend.address == remote.address)?;
                let name = remotes::member(wanted).name;
                let is_it = |worker: &&Worker| matches!(&worker.kind, Kind::Remote(remote) if remote.name == name);
                let worker = self.state.apps[app].workers.iter().find(is_it)?;
                (config.name == remote.app).then_some((app, worker.number))
            });
            if let Some((app, number)) = place {
                let backend = BackendId(remote.backend);
                adopted.push(backend);
                self.happen(Event::Adopted { app, number, backend, as_it_was: AsItWas::default() });
            }
        }
        self.table("forget the last run's workers", |datapath| {
            datapath.forget_found_rings();
            datapath.retire_others(&adopted)
        });
    }

    fn say_refused(&self, why: &Refusal, aside: Option<&Path>) {
        let apps: Vec<&str> = self.config.apps.iter().map(|app| app.name.as_str()).collect();
        let left = worker::leftovers(&apps, &self.config.homing.log_dir);
        let pids: Vec<String> = left.iter().map(|(pid, _)| format!("-{pid}")).collect();
        let ids: Vec<&str> = left.iter().map(|(_, id)| id.as_str()).collect();
        let advice = match left.len() {
            0 => "none is seen running".to_owned(),
            _ => format!(
                "{} seem to run still and are sent no new clients; when their clients have left, end them with: kill -- {}",
                ids.join(", "),
                pids.join(" ")
            ),
        };
        let aside = aside.map_or_else(|| "where it was".to_owned(), |aside| aside.display().to_string());
        tracing::warn!(
            %aside,
            "the state file was set aside: {why}. Workers of the last run are not adopted, new ones are started: {advice}"
        );
    }

    /// Ids that the kernel's tables still name are not given to others, although the state file does not list them.
    fn spare_ids(&mut self) {
        let datapath = self.kernel.datapath();
        let listed = datapath.map_or_else(Vec::new, |datapath| {
            let owners = datapath.found_rings().values().flatten().flat_map(|slot| [slot.current, slot.previous]);
            owners.chain(datapath.backends()).collect()
        });
        let bound = self.bindings.all().into_iter().map(|(_, binding)| binding.backend);
        let named = listed.into_iter().chain(bound);
        self.state.resume_after(named.filter(|&id| !id.is_none() && id != BackendId::FORMER));
    }

    pub(super) fn save(&mut self) {
        let workers = self
            .state
            .apps
            .iter()
            .flat_map(|app| app.workers.iter().map(move |worker| (app, worker)))
            .filter_map(|(app, worker)| Some(self.running.get(&worker.backend)?.saved(&app.spec.name, worker)))
            .collect();
        let remotes = self
            .state
            .apps
            .iter()
            .flat_map(|app| app.workers.iter().map(move |worker| (app, worker)))
            .filter_map(|(app, worker)| {
                let address = self.remotes.get(&worker.backend)?.address;
                Some(SavedRemote { app: app.spec.name.clone(), address, backend: worker.backend.0 })
            })
            .collect();
        let numbered = self.state.apps.iter().map(|app| (app.spec.id as usize, &app.spec.name));
        let mut apps = vec![String::new(); numbered.clone().map(|(id, _)| id + 1).max().unwrap_or(0)];
        numbered.for_each(|(id, name)| apps[id].clone_from(name));
        let saved = Saved::new(&self.state.last_ids(), apps, workers, remotes);
        self.saver.save(&saved);
    }
}
