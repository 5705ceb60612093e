//! The configuration read again while homing runs: the difference is applied, or nothing is.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use lb_common::abi::APPS_MAX;

use super::fixed;
use super::given::Given;
use super::runner::Runner;
use super::state::{AppSpec, check_workers};
use super::{Event, doors};
use crate::config::{self, App, Homing};
use crate::privileges;

/// When an app's `restart.txt` was last touched, by app number.
pub(super) type RestartFiles = HashMap<u32, Option<SystemTime>>;

/// Touched, it restarts the app whose directory it is in.
const RESTART_FILE: &str = "restart.txt";

/// Numbers for apps in the datapath's tables: those that are known keep theirs.
pub(super) fn number(apps: &[App], known: &HashMap<String, u32>) -> Vec<u32> {
    let mut taken: Vec<u32> = known.values().copied().collect();
    let number = |app: &App| {
        known.get(&app.name).copied().unwrap_or_else(|| {
            let free = (0..).find(|id| !taken.contains(id)).expect("fewer apps than numbers");
            taken.push(free);
            free
        })
    };
    apps.iter().map(number).collect()
}

/// # Errors
/// When homing could not hold these apps.
pub(super) fn check(specs: &[AppSpec]) -> Result<(), String> {
    check_workers(specs).map_err(|error| error.to_string())?;
    match specs.iter().find(|spec| spec.id >= APPS_MAX) {
        Some(_) => Err(format!("there are more than {APPS_MAX} apps, which is all that homing can steer")),
        None => Ok(()),
    }
}

impl Runner {
    /// SIGHUP.
    pub(super) fn hang_up(&mut self) {
        match self.reload() {
            Ok(done) => tracing::info!("{done}"),
            Err(why) => tracing::error!("not reloaded, everything goes on as it was: {why}"),
        }
    }

    /// What changed.
    ///
    /// # Errors
    /// Why nothing did.
    pub(super) fn reload(&mut self) -> Result<String, String> {
        if self.state.stopping {
            return Err("homing is stopping".to_owned());
        }
        let file = self.file.clone().ok_or("homing was not started from a file")?;
        let next = config::file::load(&file).map_err(|errors| errors.to_string())?;
        check_homing(&self.config.homing, &next.homing)?;
        check_privileges(&self.config.apps, &next.apps)?;
        let mut gone = self.state.apps.iter().filter(|app| app.removed).map(|app| &app.spec.name);
        if let Some(name) = gone.find(|name| next.apps.iter().any(|app| app.name == **name)) {
            return Err(format!(
                "the workers of the former app {name} are still draining; try again when they have ended"
            ));
        }
        let known = self.state.apps.iter().map(|app| (app.spec.name.clone(), app.spec.id)).collect();
        let ids = number(&next.apps, &known);
        let specs: Vec<AppSpec> = ids.iter().zip(&next.apps).map(|(&id, app)| fixed::spec(id, app)).collect();
        check(&specs)?;
        let listeners = self.bind_new(&next.apps)?;
        let for_metrics = self.bind_for_metrics(&next.homing)?;
        // Another instance may have made new ones.
        self.keys.reload(&self.config.homing.state_dir).map_err(|error| error.to_string())?;
        let mut changes = self.changes(&next.apps);
        if self.look_at_certificates(true) {
            changes.push("new certificates".to_owned());
        }
        if changes.is_empty() && next.homing == self.config.homing {
            return Ok("nothing has changed.".to_owned());
        }
        let metrics = self.metrics.configure(next.homing.metrics.as_ref(), for_metrics);
        metrics.map_err(|error| format!("the metrics listener cannot be had: {error}"))?;
        self.apply(next.homing, next.apps, &ids, specs, listeners);
        Ok(format!(
            "reloaded: {}.",
            if changes.is_empty() { "homing's own settings".to_owned() } else { changes.join("; ") }
        ))
    }

    /// Listens on the addresses that are new, before anything is changed.
    fn bind_new(&self, apps: &[App]) -> Result<Vec<(SocketAddr, TcpListener)>, String> {
        let addresses = doors::addresses(apps).filter(|(_, address)| !self.doors.has(*address));
        addresses.map(|(app, address)| Ok((address, doors::bind(app, address)?))).collect()
    }

    /// The same for the metrics listener.
    fn bind_for_metrics(&self, next: &Homing) -> Result<Option<TcpListener>, String> {
        let address = next.metrics.as_ref().map(|metrics| metrics.address);
        address.filter(|&address| !self.metrics.is_on(address)).map(doors::bind_for_metrics).transpose()
    }

    /// In words, an app each.
    fn changes(&self, next: &[App]) -> Vec<String> {
        let current = || self.config.apps.iter().zip(&self.state.apps).filter(|(_, state)| !state.removed);
        let mut changes = Vec::new();
        for app in next {
            match current().find(|(old, _)| old.name == app.name) {
                None => changes.push(format!("app {} added", app.name)),
                Some((old, _)) if needs_restart(old, app) => {
                    changes.push(format!("app {} changed, its workers are replaced one by one", app.name));
                }
                Some((old, state)) => {
                    let is_scaled = (state.spec.min, state.spec.max) != (app.workers.min, app.workers.max);
                    if old != app || is_scaled {
                        changes.push(format!("app {} changed", app.name));
                    }
                }
            }
        }
        let removed = current().filter(|(old, _)| !next.iter().any(|app| app.name == old.name));
        changes.extend(removed.map(|(old, _)| format!("app {} removed, its workers drain", old.name)));
        changes
    }

    fn apply(
        &mut self,
        homing: Homing,
        apps: Vec<App>,
        ids: &[u32],
        specs: Vec<AppSpec>,
        listeners: Vec<(SocketAddr, TcpListener)>,
    ) {
        let mut restart = Vec::new();
        self.config.homing = homing;
        for place in 0..self.state.apps.len() {
            // Its services and doors end, its workers drain.
            let left = &mut self.config.apps[place];
            if !apps.iter().any(|app| app.name == left.name) {
                left.listen.clear();
                left.listen_udp.clear();
            }
        }
        for (&id, app) in ids.iter().zip(apps) {
            let fixed = fixed::fix(id, &app, &self.keys);
            match self.place(id) {
                Some(place) => {
                    if needs_restart(&self.config.apps[place], &app) {
                        restart.push(id);
                    }
                    // The ring keeps its size while it has clients.
                    let ring_len = self.state.apps[place].ring.len() as u32;
                    let service = lb_common::abi::Service { ring_len, ..fixed.service };
                    let times = Arc::clone(&self.fixed[place].times);
                    self.fixed[place] = fixed::Fixed { service, times, ..fixed };
                    self.config.apps[place] = app;
                }
                None => {
                    self.fixed.push(fixed);
                    self.config.apps.push(app);
                    self.sockets.push(true);
                    self.calm.push(false);
                }
            }
        }
        for why in self.certificates.fit(&self.config.apps) {
            tracing::error!("a certificate that was there a moment ago cannot be used: {why}");
        }
        self.look_at_fronts();
        self.happen(Event::Configure { specs, restart });
        if let Err(error) = self.publish_protection().and_then(|()| self.publish_services()) {
            tracing::error!(%error, "the kernel did not take all of the new configuration");
        }
        if let Err(error) = self.open_doors(listeners) {
            tracing::error!(%error, "not all of the new configuration's addresses could be opened");
        }
        self.look_at_interfaces();
        self.publish_snapshot();
        self.save();
    }

    /// Opens the doors of all apps as they are configured, and closes the others.
    pub(super) fn open_doors(&mut self, listeners: Vec<(SocketAddr, TcpListener)>) -> anyhow::Result<()> {
        let sockets: HashMap<SocketAddr, TcpListener> = listeners.into_iter().collect();
        for (_, address) in doors::addresses(&self.config.apps) {
            self.doors.open(address, sockets.get(&address))?;
        }
        let fronts = Arc::clone(&self.fronts);
        self.doors.keep(|address| fronts.contains_key(&address));
        Ok(())
    }

    /// The app at this place has left the state; what stood beside it goes too.
    pub(super) fn forget(&mut self, place: usize) {
        let id = self.fixed[place].service.app;
        self.config.apps.remove(place);
        self.fixed.remove(place);
        self.sockets.remove(place);
        self.calm.remove(place);
        self.table("forget a ring", |datapath| datapath.forget_ring(id));
    }

    /// An app's `restart.txt` was touched: as Shiny Server has it.
    pub(super) fn look_at_restart_files(&mut self) {
        for place in 0..self.state.apps.len() {
            let app = &self.state.apps[place];
            if app.removed || !app.workers.iter().any(|worker| worker.is_process() && worker.is_up()) {
                continue;
            }
            let touched = touched(self.config.apps[place].directory.join(RESTART_FILE));
            let known = self.restart_files.insert(app.spec.id, touched);
            if touched.is_some() && known.is_some_and(|known| known != touched) {
                tracing::info!(app = %app.spec.name, "{RESTART_FILE} was touched: restarting, one worker after the other");
                self.happen(Event::Restart { app: place, at_once: 1 });
            }
        }
    }
}

fn touched(file: PathBuf) -> Option<SystemTime> {
    std::fs::metadata(file).and_then(|metadata| metadata.modified()).ok()
}

/// Whether a process that lives does not have what a new one would get.
fn needs_restart(old: &App, new: &App) -> bool {
    Given::by(old) != Given::by(new) || old.isolation != new.isolation
}

/// What homing has given up no worker of its can gain.
fn check_privileges(old: &[App], new: &[App]) -> Result<(), String> {
    let has_given_up = rustix::thread::no_new_privs().unwrap_or(false) && !privileges::may_gain(old);
    if has_given_up && privileges::may_gain(new) {
        return Err(
            "`no_new_privileges = false` is new, and homing has given up at its start what programs could gain; replace it by \
             one that keeps that: homing run --replace, or systemctl restart homing"
                .to_owned(),
        );
    }
    Ok(())
}

/// What of `[homing]` a running homing cannot change.
fn check_homing(old: &Homing, new: &Homing) -> Result<(), String> {
    let fixed = [
        ("control_socket", old.control_socket != new.control_socket),
        ("state_dir", old.state_dir != new.state_dir),
        ("run_dir", old.run_dir != new.run_dir),
        ("log_dir", old.log_dir != new.log_dir),
        ("access_log", old.access_log != new.access_log),
        ("traces", old.traces != new.traces),
        ("pin_dir", old.pin_dir != new.pin_dir),
        ("cgroups", old.cgroups != new.cgroups),
        ("kernel_path", old.kernel_path != new.kernel_path),
        ("bindings", old.bindings != new.bindings),
        ("starts_at_once", old.starts_at_once != new.starts_at_once),
    ];
    match fixed.into_iter().find(|(_, changed)| *changed) {
        Some((key, _)) => {
            Err(format!("homing.{key} cannot change while homing runs; stop homing and start it again for that"))
        }
        None => Ok(()),
    }
}
