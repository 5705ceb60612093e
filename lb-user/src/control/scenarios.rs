//! Scenarios as lists of events: what an operator expects of each, read as a sentence.

mod changes;
mod scheduling;
mod simulation;

use std::time::Duration;

use lb_common::abi::BackendId;
use proptest::prelude::*;

use super::state::{AppSpec, Phase, Remote, State};
use super::{AsItWas, Effect, Event, Moment, Severity, Signal, step};

const START: Duration = Duration::from_secs(60);
const DRAIN: Duration = Duration::from_secs(600);
const STOP: Duration = Duration::from_secs(7);

fn spec(id: u32, min: u32, max: u32) -> AppSpec {
    AppSpec {
        id,
        name: format!("app{id}"),
        min,
        max,
        max_connections: 50,
        load_factor: 0.05,
        start: START,
        idle: None,
        drain: DRAIN,
        stop: STOP,
        ring_len: 509,
        remotes: Vec::new(),
    }
}

/// A control plane under test, with its clock and all effects so far.
struct Control {
    state: State,
    now: Moment,
    effects: Vec<Effect>,
}

impl Control {
    fn new(min: u32, max: u32) -> Self {
        let state = State::new(vec![spec(0, min, max)], 1_000).expect("few workers");
        Self { state, now: Moment::ZERO, effects: Vec::new() }
    }

    fn booted(min: u32, max: u32) -> Self {
        let mut control = Self::new(min, max);
        control.event(Event::Boot);
        control
    }

    /// All of `n` workers started and ready.
    fn ready(n: u32) -> Self {
        let mut control = Self::booted(n, n);
        for backend in control.spawned() {
            control.event(Event::Ready { backend });
        }
        control
    }

    /// The effects of one event.
    fn event(&mut self, event: Event) -> Vec<Effect> {
        let (state, effects) = step(std::mem::take(&mut self.state), event, self.now);
        self.state = state;
        self.effects.extend(effects.iter().cloned());
        effects
    }

    fn after(&mut self, time: Duration) -> Vec<Effect> {
        self.now += time;
        self.event(Event::Tick)
    }

    fn load(&mut self, connections: &[(BackendId, u64)]) -> Vec<Effect> {
        self.event(Event::Load { connections: connections.to_vec() })
    }

    fn spawned(&self) -> Vec<BackendId> {
        let spawn = |effect: &Effect| match effect {
            Effect::Spawn { backend, .. } => Some(*backend),
            _ => None,
        };
        self.effects.iter().filter_map(spawn).collect()
    }

    fn crash(&mut self, backend: BackendId) -> Vec<Effect> {
        self.event(Event::Exited { backend, how: "exited with status 1".into() })
    }

    fn phase(&self, number: u32) -> &Phase {
        &self.state.apps[0].worker(number).expect("a worker").phase
    }

    fn backend(&self, number: u32) -> BackendId {
        self.state.apps[0].worker(number).expect("a worker").backend
    }

    fn slots_of(&self, backend: BackendId) -> usize {
        self.state.apps[0].ring.iter().filter(|slot| slot.current == backend).count()
    }
}

#[test]
fn min_workers_are_started_at_boot_and_share_the_ring_once_ready() {
    let control = Control::ready(4);
    for number in 0..4 {
        assert_eq!(control.phase(number), &Phase::Ready);
        let slots = control.slots_of(control.backend(number));
        assert!((100..=155).contains(&slots), "worker {number} owns {slots} of 509 slots");
    }
}

#[test]
fn a_worker_gets_no_client_before_it_is_ready() {
    let control = Control::booted(1, 1);
    assert_eq!(control.slots_of(control.backend(0)), 0);
    assert!(!control.effects.iter().any(|effect| matches!(effect, Effect::Enlist { .. })));
}

#[test]
fn with_min_zero_the_first_request_starts_one_worker_and_the_second_no_other() {
    let mut control = Control::booted(0, 4);
    assert_eq!(control.spawned(), []);
    control.event(Event::Demand { app: 0 });
    control.event(Event::Demand { app: 0 });
    assert_eq!(control.spawned().len(), 1);
}

#[test]
fn a_dead_workers_slots_go_to_the_others_at_once_and_it_is_retired_first() {
    let mut control = Control::ready(4);
    let dead = control.backend(1);
    let effects = control.crash(dead);
    assert_eq!(effects.first(), Some(&Effect::Retire { backend: dead }));
    assert!(effects.contains(&Effect::PublishRing { app: 0 }));
    assert_eq!(control.slots_of(dead), 0);
    assert!(control.state.apps[0].ring.iter().all(|slot| !slot.current.is_none()), "nobody is left without a worker");
}

#[test]
fn a_crashed_worker_comes_back_with_a_new_generation_and_its_old_slots_in_transition() {
    let mut control = Control::ready(4);
    let dead = control.backend(1);
    let had: Vec<bool> = control.state.apps[0].ring.iter().map(|slot| slot.current == dead).collect();
    control.crash(dead);
    control.after(Duration::from_millis(100));
    let successor = control.backend(1);
    assert_eq!((successor.index(), successor.generation()), (dead.index(), dead.generation() + 1));
    control.event(Event::Ready { backend: successor });
    for (slot, had) in control.state.apps[0].ring.iter().zip(had) {
        assert_eq!(slot.current == successor, had);
        assert!(!had || !slot.previous.is_none(), "who was bound elsewhere meanwhile must be able to stay");
    }
}

#[test]
fn late_events_of_a_dead_generation_change_nothing() {
    let mut control = Control::ready(2);
    let dead = control.backend(0);
    control.crash(dead);
    control.after(Duration::from_millis(100));
    let before = control.state.clone();
    for event in [
        Event::Ready { backend: dead },
        Event::Exited { backend: dead, how: "again".into() },
        Event::Load { connections: vec![(dead, 3)] },
        Event::Unresponsive { backend: dead, reason: Some("late".into()) },
        Event::NotStarted { backend: dead, reason: "late".into() },
    ] {
        assert_eq!(control.event(event), []);
    }
    assert_eq!(control.state, before);
}

#[test]
fn a_command_that_exits_at_once_is_given_up_after_five_crashes_with_its_reason() {
    let mut control = Control::booted(1, 1);
    for _ in 0..5 {
        control.crash(control.backend(0));
        control.after(Duration::from_secs(2));
    }
    assert_eq!(control.spawned().len(), 5);
    assert!(matches!(control.phase(0), Phase::Failed { reason, .. } if reason == "exited with status 1"));
    assert_eq!(control.state.apps[0].failure(), Some("exited with status 1"));
    let said = control.effects.iter().filter(|e| matches!(e, Effect::Say { severity: Severity::Error, .. })).count();
    assert_eq!(said, 1, "the operator is told once");
}

#[test]
fn a_failed_app_is_tried_again_for_a_request_after_half_a_minute_and_not_before() {
    let mut control = Control::booted(1, 1);
    for _ in 0..5 {
        control.crash(control.backend(0));
        control.after(Duration::from_secs(2));
    }
    control.event(Event::Demand { app: 0 });
    assert_eq!(control.spawned().len(), 5);
    control.now += Duration::from_secs(30);
    control.event(Event::Demand { app: 0 });
    assert_eq!(control.spawned().len(), 6);
}

#[test]
fn the_wait_before_a_restart_doubles() {
    let mut control = Control::booted(1, 1);
    for wait_ms in [100, 200, 400, 800] {
        control.crash(control.backend(0));
        control.after(Duration::from_millis(wait_ms - 1));
        assert!(matches!(control.phase(0), Phase::Backoff { .. }), "{wait_ms} ms are not over");
        control.after(Duration::from_millis(1));
        assert!(matches!(control.phase(0), Phase::Starting { .. }), "{wait_ms} ms are over");
    }
}

#[test]
fn a_worker_that_was_steady_starts_its_crashes_anew() {
    let mut control = Control::ready(1);
    for _ in 0..20 {
        control.now += Duration::from_secs(30);
        control.crash(control.backend(0));
        control.after(Duration::from_millis(100));
        control.event(Event::Ready { backend: control.backend(0) });
    }
    assert_eq!(control.phase(0), &Phase::Ready);
}

#[test]
fn why_a_worker_does_not_get_ready_is_told_while_it_starts_and_when_it_is_given_up() {
    let mut control = Control::booted(1, 1);
    let backend = control.backend(0);
    for why in ["nothing there", "listens elsewhere"] {
        control.event(Event::Waiting { backend, why: why.into() });
        assert_eq!(control.state.apps[0].workers[0].reason(), Some(why));
    }
    control.after(START);
    control.event(Event::Exited { backend, how: "was killed by signal 15".into() });
    let reason = "did not accept connections within 60 s of its start: listens elsewhere";
    assert!(matches!(control.phase(0), Phase::Backoff { reason: r, .. } if r == reason), "{:?}", control.phase(0));
    control.after(Duration::from_millis(100));
    control.event(Event::Waiting { backend, why: "late news of the last process".into() });
    assert_eq!(control.state.apps[0].workers[0].reason(), None, "another process has reasons of its own");
}

#[test]
fn a_command_that_never_listens_is_ended_then_killed_and_the_reason_says_so() {
    let mut control = Control::booted(1, 1);
    let backend = control.backend(0);
    let effects = control.after(START);
    assert!(effects.contains(&Effect::Signal { backend, signal: Signal::Terminate }));
    assert_eq!(control.after(STOP - Duration::from_millis(1)), [], "it has its time");
    let effects = control.after(Duration::from_millis(1));
    assert_eq!(effects, [Effect::Signal { backend, signal: Signal::Kill }]);
    control.event(Event::Exited { backend, how: "was killed by signal 9".into() });
    let reason = "did not accept connections within 60 s of its start";
    assert!(matches!(control.phase(0), Phase::Backoff { reason: r, .. } if r == reason), "{:?}", control.phase(0));
}

#[test]
fn stop_drains_then_ends_each_worker_when_its_last_connection_is_gone_and_exits_last() {
    let mut control = Control::ready(2);
    let effects = control.event(Event::Stop { now: false });
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Signal { .. })), "sessions go on: {effects:?}");
    assert!(control.state.apps[0].ring.iter().all(|slot| slot.current.is_none()), "no new clients");
    let (a, b) = (control.backend(0), control.backend(1));
    let effects = control.load(&[(a, 0), (b, 1)]);
    assert!(effects.contains(&Effect::Signal { backend: a, signal: Signal::Terminate }));
    assert!(!control.crash(a).contains(&Effect::Exit));
    let effects = control.after(DRAIN);
    assert!(effects.contains(&Effect::Signal { backend: b, signal: Signal::Terminate }), "the deadline ends the rest");
    assert!(control.crash(b).contains(&Effect::Exit));
}

#[test]
fn stop_now_ends_everything_at_once_also_what_is_only_starting() {
    let mut control = Control::booted(3, 3);
    let effects = control.event(Event::Stop { now: true });
    let ended = effects.iter().filter(|e| matches!(e, Effect::Signal { signal: Signal::Terminate, .. })).count();
    assert_eq!(ended, 3);
}

#[test]
fn an_adopted_worker_keeps_its_id_and_only_the_missing_ones_are_started() {
    let mut control = Control::new(2, 2);
    let adopted = BackendId::new(1, 7);
    control.event(Event::Adopted { app: 0, number: 1, backend: adopted, as_it_was: AsItWas::default() });
    control.event(Event::Boot);
    assert_eq!(control.backend(1), adopted);
    assert_eq!(control.spawned(), [BackendId::new(0, 1)]);
    control.crash(adopted);
    control.after(Duration::from_millis(100));
    assert_eq!(control.backend(1), BackendId::new(1, 8), "later generations are newer than the adopted one");
}

#[test]
fn a_slot_leaves_transition_when_no_binding_holds_it() {
    let mut control = Control::ready(2);
    control.crash(control.backend(0));
    let in_transition: Vec<u32> = (0..)
        .zip(control.state.apps[0].ring.iter())
        .filter(|(_, slot)| !slot.previous.is_none())
        .map(|(index, _)| index)
        .collect();
    let held = vec![in_transition[0]];
    assert_eq!(control.event(Event::Settled { app: 0, held: held.clone() }), [Effect::PublishRing { app: 0 }]);
    let left: Vec<u32> = (0..)
        .zip(control.state.apps[0].ring.iter())
        .filter(|(_, slot)| !slot.previous.is_none())
        .map(|(index, _)| index)
        .collect();
    assert_eq!(left, held);
}

proptest! {
    /// Whatever happens in whatever order: never more processes than max, no slot owned by anyone but a ready worker,
    /// ids never repeat, and time always brings a worker back.
    #[test]
    fn invariants_hold_through_random_events(
        min in 0_u32..3,
        script in prop::collection::vec((0_u8..8, 0_u32..4, 0_u64..40_000), 1..120),
    ) {
        let mut control = Control::booted(min, 4);
        for (what, worker, wait_ms) in script {
            control.now += Duration::from_millis(wait_ms);
            let backend = control.backend(worker);
            control.event(match what {
                0 | 1 => Event::Ready { backend },
                2 => Event::Exited { backend, how: "exited".into() },
                3 => Event::NotStarted { backend, reason: "no".into() },
                4 => Event::Demand { app: 0 },
                5 => Event::Load { connections: vec![(backend, wait_ms % 7)] },
                6 => Event::Settled { app: 0, held: vec![] },
                _ => Event::Tick,
            });
            let app = &control.state.apps[0];
            prop_assert!(app.workers.iter().filter(|w| w.is_up()).count() <= 4);
            for slot in app.ring.iter().filter(|slot| !slot.current.is_none()) {
                prop_assert!(app.workers.iter().any(|w| w.backend == slot.current && w.phase == Phase::Ready));
            }
            let any_ready = app.workers.iter().any(|w| w.phase == Phase::Ready);
            prop_assert_eq!(any_ready, app.ring.iter().all(|slot| !slot.current.is_none()));
            let mut ids = control.spawned();
            let spawned = ids.len();
            ids.sort_unstable();
            ids.dedup();
            prop_assert_eq!(ids.len(), spawned, "an id came twice");
        }
        control.event(Event::Demand { app: 0 });
        control.after(Duration::from_secs(120));
        control.event(Event::Demand { app: 0 });
        let coming = control.state.apps[0].workers.iter().any(|w| w.is_up());
        prop_assert!(coming, "a request must bring a worker: {:?}", control.state.apps[0].workers);
    }
}
