//! What is asked on the control socket, and the answers.

use super::runner::Runner;
use super::{Event, reload};
use crate::admin::server::{Order, Request};
use crate::admin::unknown_app;
use crate::output;
use crate::proxy::KEY_FILE;

impl Runner {
    pub(super) fn answer(&mut self, request: Request) {
        match request {
            Request::Status(answer) => drop(answer.send(self.status())),
            Request::Report(answer) => drop(answer.send(self.report())),
            Request::Trace { app, address, answer } => drop(answer.send(self.trace(&app, address))),
            Request::Live { query, answer } => drop(answer.send(self.listen(&query))),
            Request::Output { worker, answer } => drop(answer.send(output::files(&self.config, &worker))),
            Request::Stop { now } => self.stop(now),
            Request::Handover(answer) => drop(answer.send(self.handover())),
            // The one is for a homing that was replaced, the other for the loop.
            Request::Loads(_) | Request::Yield { .. } => {}
            Request::Order(order, answer) => drop(answer.send(self.obey(order))),
        }
    }

    /// What was done, or why nothing was.
    fn obey(&mut self, order: Order) -> Result<String, String> {
        match order {
            Order::Drain { worker, undo } => {
                let (app, number) = self.place_of(&worker)?;
                self.happen(if undo { Event::Undrain { app, number } } else { Event::Drain { app, number } });
                Ok(format!("{worker} {}", if undo { "takes new clients." } else { "is draining: no new clients." }))
            }
            Order::Scale { app: name, min, max } => self.scale(&name, min, max),
            Order::Restart { app: name, rolling } => {
                let (app, None) = self.place_of(&name)? else {
                    return Err(format!("workers are restarted by app: homing restart {}", name_only(&name)));
                };
                if self.config.apps[app].command.is_empty() {
                    return Err(format!("{name} has no workers here: its backends are started by somebody else"));
                }
                self.happen(Event::Restart { app, at_once: if rolling { 1 } else { usize::MAX } });
                Ok(format!(
                    "{name} is restarting: new workers first, the old ones keep their clients until these leave."
                ))
            }
            Order::Reload => self.reload(),
            Order::RotateKeys => self.rotate_keys(),
        }
    }

    fn rotate_keys(&self) -> Result<String, String> {
        let dir = &self.config.homing.state_dir;
        self.keys.rotate(dir).map_err(|error| error.to_string())?;
        Ok(format!(
            "Cookies are sealed with a fresh key; those of the key before it are still good, and renewed when their users \
             come.\nOther instances that share the key: copy {} there, then homing reload.",
            dir.join(KEY_FILE).display()
        ))
    }

    fn scale(&mut self, name: &str, min: u32, max: u32) -> Result<String, String> {
        let (app, None) = self.place_of(name)? else {
            return Err(format!("apps are scaled, not workers: homing scale {} N", name_only(name)));
        };
        if self.config.apps[app].command.is_empty() {
            return Err(format!("{name} has no workers here to scale: its backends are started by somebody else"));
        }
        if min > max || max == 0 {
            return Err(format!("the bounds must be MIN..MAX with MAX at least 1 and MIN, not {min}..{max}"));
        }
        let mut specs: Vec<_> = self.state.apps.iter().map(|app| app.spec.clone()).collect();
        (specs[app].min, specs[app].max) = (min, max);
        reload::check(&specs)?;
        self.happen(Event::Scale { app, min, max });
        Ok(format!("{name} has {min} to {max} workers until homing reload or the next start."))
    }

    /// What `APP` or `APP/N` names.
    fn place_of(&self, name: &str) -> Result<(usize, Option<u32>), String> {
        let (app_name, number) = name.split_once('/').map_or((name, None), |(app, number)| (app, Some(number)));
        let named = |app: &super::App| app.spec.name == app_name && !app.removed;
        let Some(app) = self.state.apps.iter().position(named) else {
            return Err(unknown_app(app_name, self.state.apps.iter().map(|app| app.spec.name.as_str())));
        };
        let Some(text) = number else { return Ok((app, None)) };
        let workers = &self.state.apps[app].workers;
        match text.parse::<u32>().ok().filter(|&number| workers.iter().any(|worker| worker.number == number)) {
            Some(number) => Ok((app, Some(number))),
            None => {
                let there: Vec<String> = workers.iter().map(|worker| format!("{app_name}/{}", worker.number)).collect();
                Err(format!("{app_name} has no worker {text:?}; there are {}", there.join(", ")))
            }
        }
    }
}

fn name_only(name: &str) -> &str {
    name.split_once('/').map_or(name, |(app, _)| app)
}
