//! Random events, more than anyone would write down, with the invariants looked at after each.

use std::collections::HashSet;

use super::*;
use crate::control::Worker;

/// A random world: every event that can happen may happen, in any order.
struct World {
    control: Control,
    random: fastrand::Rng,
    next_app: u32,
    ids: HashSet<BackendId>,
}

const STARTS: usize = 3;

impl World {
    fn new(seed: u64) -> Self {
        let specs = vec![spec(0, 1, 3), spec(1, 0, 2)];
        let state = State::new(specs, STARTS).expect("few");
        let mut control = Control { state, now: Moment::ZERO, effects: Vec::new() };
        control.event(Event::Boot);
        Self { control, random: fastrand::Rng::with_seed(seed), next_app: 2, ids: HashSet::new() }
    }

    fn worker(&mut self) -> Option<Worker> {
        let workers: Vec<&Worker> = self.control.state.apps.iter().flat_map(|app| &app.workers).collect();
        (!workers.is_empty()).then(|| workers[self.random.usize(..workers.len())].clone())
    }

    fn specs(&mut self) -> Vec<AppSpec> {
        let apps = self.control.state.apps.iter().filter(|app| !app.removed);
        let mut specs: Vec<AppSpec> = apps.map(|app| app.spec.clone()).collect();
        match self.random.u8(..4) {
            0 if specs.len() < 4 => {
                self.next_app += 1;
                specs.push(spec(self.next_app, self.random.u32(0..2), self.random.u32(2..4)));
            }
            1 if specs.len() > 1 => drop(specs.remove(self.random.usize(..specs.len()))),
            _ => {
                let at = self.random.usize(..specs.len());
                let max = self.random.u32(1..5);
                (specs[at].min, specs[at].max) = (self.random.u32(..=max), max);
                specs[at].idle = self.random.bool().then(|| Duration::from_secs(self.random.u64(1..60)));
            }
        }
        specs
    }

    fn event(&mut self) -> Event {
        let app = self.random.usize(..self.control.state.apps.len());
        let worker = self.worker();
        let backend = worker.as_ref().map_or(BackendId::NONE, |worker| worker.backend);
        let number = worker.map(|worker| worker.number);
        match self.random.u32(..1_000) {
            0..250 => Event::Ready { backend },
            250..330 => Event::Exited { backend, how: "exited".into() },
            330..350 => Event::NotStarted { backend, reason: "no".into() },
            350..450 => Event::Demand { app },
            450..700 => {
                let up = self.control.state.apps.iter().flat_map(|app| &app.workers).filter(|worker| worker.is_up());
                let up: Vec<BackendId> = up.map(|worker| worker.backend).collect();
                let most = if self.random.bool() { 60 } else { 1 };
                Event::Load { connections: up.into_iter().map(|backend| (backend, self.random.u64(..=most))).collect() }
            }
            700..720 => Event::Drain { app, number: number.filter(|_| self.random.bool()) },
            720..760 => Event::Undrain { app, number: None },
            760..775 => {
                let max = self.random.u32(1..5);
                Event::Scale { app, min: self.random.u32(..=max), max }
            }
            775..790 => Event::Restart { app, at_once: self.random.usize(1..4) },
            790..800 => {
                let specs = self.specs();
                let restart = if self.random.bool() { vec![specs[0].id] } else { Vec::new() };
                Event::Configure { specs, restart }
            }
            800..830 => Event::Unresponsive { backend, reason: self.random.bool().then(|| "hangs".into()) },
            830..850 => Event::Settled { app, held: Vec::new() },
            _ => Event::Tick,
        }
    }

    fn step(&mut self) {
        // Mostly a moment, at times an hour.
        let wait = if self.random.u8(..20) == 0 { 3_600_000 } else { 500 };
        self.control.now += Duration::from_millis(self.random.u64(..wait));
        let event = self.event();
        let shown = format!("{event:?}");
        let effects = self.control.event(event);
        self.control.effects.clear();
        self.check(&effects, &shown);
    }

    fn check(&mut self, effects: &[Effect], event: &str) {
        let state = &self.control.state;
        for effect in effects {
            if let Effect::Spawn { backend, .. } = effect {
                assert!(self.ids.insert(*backend), "{event}: the id {backend:?} came twice");
            }
        }
        let workers = || state.apps.iter().flat_map(|app| &app.workers);
        let starting = workers().filter(|worker| matches!(worker.phase, Phase::Starting { .. })).count();
        assert!(starting <= STARTS, "{event}: {starting} are starting");
        let queued = workers().any(|worker| worker.phase == Phase::Queued);
        assert!(!queued || starting == STARTS, "{event}: somebody waits for nothing");
        let mut indices = HashSet::new();
        for worker in workers().filter(|worker| worker.is_up()) {
            assert!(indices.insert(worker.backend.index()), "{event}: two share a place in the datapath");
        }
        for app in state.apps.iter().filter(|app| !app.removed) {
            let max = app.spec.max.max(app.workers.iter().filter(|worker| worker.drained).count() as u32);
            assert!(app.serving() <= max, "{event}: {} serve, of {}: {:#?}", app.serving(), app.spec.max, app.workers);
            let mut numbers = HashSet::new();
            assert!(app.workers.iter().all(|worker| numbers.insert(worker.number)), "{event}: a number came twice");
            let mut places = HashSet::new();
            let ready = || app.workers.iter().filter(|worker| worker.phase == Phase::Ready);
            assert!(
                ready().all(|worker| places.insert(worker.place)),
                "{event}: a place on the ring is shared: {app:#?}"
            );
            for slot in app.ring.iter().filter(|slot| !slot.current.is_none()) {
                assert!(
                    ready().any(|worker| worker.backend == slot.current && !worker.full),
                    "{event}: a client would meet nobody"
                );
            }
            let is_owned = app.ring.iter().all(|slot| !slot.current.is_none());
            assert_eq!(is_owned, ready().any(|worker| !worker.full), "{event}: a ring is whole, or nobody's");
        }
    }

    /// Given time, processes that start and no further orders, every app serves again.
    fn settle(&mut self) {
        let apps = self.control.state.apps.iter().filter(|app| !app.removed);
        let specs = apps.map(|app| AppSpec { idle: None, ..app.spec.clone() }).collect();
        self.control.event(Event::Configure { specs, restart: Vec::new() });
        for app in 0..self.control.state.apps.len() {
            self.control.event(Event::Undrain { app, number: None });
        }
        for _ in 0..200 {
            self.control.now += Duration::from_secs(50);
            self.control.event(Event::Tick);
            let up: Vec<Worker> = self.control.state.apps.iter().flat_map(|app| app.workers.clone()).collect();
            for Worker { backend, phase, .. } in up.into_iter().filter(Worker::is_up) {
                match phase {
                    Phase::Starting { .. } => self.control.event(Event::Ready { backend }),
                    Phase::Ending { .. } => self.control.event(Event::Exited { backend, how: "ended".into() }),
                    _ => self.control.load(&[(backend, 0)]),
                };
            }
            for app in 0..self.control.state.apps.len() {
                self.control.event(Event::Demand { app });
            }
        }
        for app in &self.control.state.apps {
            assert!(!app.removed, "what left is forgotten");
            assert_eq!(app.restarting, None, "a restart ends: {app:#?}");
            let ready = app.workers.iter().filter(|worker| worker.phase == Phase::Ready).count() as u32;
            assert!((app.spec.min.max(1)..=app.spec.max).contains(&ready), "{ready} of {app:#?}");
        }
        self.control.effects.clear();
    }
}

impl World {
    /// Told to stop, at whatever moment, it ends: when the last connection has, or the drain is over.
    fn stop(mut self) {
        let mut all = self.control.event(Event::Stop { now: self.random.bool() });
        for _ in 0..50 {
            if all.contains(&Effect::Exit) {
                return;
            }
            self.control.now += DRAIN / 20;
            all = self.control.event(Event::Tick);
            let up: Vec<Worker> = self.control.state.apps.iter().flat_map(|app| app.workers.clone()).collect();
            for Worker { backend, phase, .. } in up.into_iter().filter(Worker::is_up) {
                let effects = match phase {
                    Phase::Starting { .. } => self.control.event(Event::Ready { backend }),
                    Phase::Ending { .. } => self.control.event(Event::Exited { backend, how: "ended".into() }),
                    _ => self.control.load(&[(backend, self.random.u64(..2))]),
                };
                all.extend(effects);
            }
        }
        panic!("it does not end: {:#?}", self.control.state);
    }
}

/// HOMING_SIMULATION asks for more steps than a test run takes time for.
#[test]
fn invariants_hold_and_every_app_serves_again_after_whatever_happened() {
    let steps = std::env::var("HOMING_SIMULATION").ok().and_then(|steps| steps.parse().ok()).unwrap_or(60_000_u64);
    for seed in 0..steps.div_ceil(2_000) {
        let mut world = World::new(seed);
        for _ in 0..2_000 {
            world.step();
        }
        // One half ends in the middle of things.
        if seed % 2 == 0 {
            world.settle();
        }
        world.stop();
    }
}
