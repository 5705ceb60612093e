//! Who is started and ended when: the arithmetic of SEMANTICS' peers, to the number.

use super::*;

const IDLE: Duration = Duration::from_secs(60);

/// Workers 0 to N-1, ready, of an app with these bounds.
fn app(min: u32, max: u32, change: impl FnOnce(&mut AppSpec)) -> Control {
    let mut spec = spec(0, min, max);
    change(&mut spec);
    let state = State::new(vec![spec], 1_000).expect("few workers");
    let mut control = Control { state, now: Moment::ZERO, effects: Vec::new() };
    control.event(Event::Boot);
    control.ready_all();
    control
}

impl Control {
    /// Whoever is starting gets ready.
    pub(super) fn ready_all(&mut self) {
        let starting = |worker: &&crate::control::Worker| matches!(worker.phase, Phase::Starting { .. });
        let starting: Vec<BackendId> =
            self.state.apps.iter().flat_map(|app| &app.workers).filter(starting).map(|w| w.backend).collect();
        for backend in starting {
            self.event(Event::Ready { backend });
        }
    }

    /// Worker 0, ready, of an app on demand with `max`, whose idle workers are ended after [`IDLE`].
    fn on_demand(max: u32) -> (Self, BackendId) {
        let mut control = app(0, max, |spec| spec.idle = Some(IDLE));
        control.event(Event::Demand { app: 0 });
        control.ready_all();
        let backend = control.backend(0);
        (control, backend)
    }

    /// As many connections as are given on worker 0, none on the others; how many serve then.
    fn serving_with(&mut self, connections: u64) -> u32 {
        self.load(&[(self.backend(0), connections)]);
        self.state.apps[0].serving()
    }
}

#[test]
fn shinyapps_the_third_connection_of_fifty_at_five_per_cent_starts_the_second_worker() {
    let mut control = app(1, 3, |_| {});
    assert_eq!([1, 2, 3].map(|connections| control.serving_with(connections)), [1, 1, 2], "strictly above 2.5");
    assert_eq!([4, 5, 6].map(|connections| control.serving_with(connections)), [2, 2, 3], "strictly above 5");
    control.ready_all();
    assert_eq!(control.serving_with(49), 3, "there is a maximum");
}

#[test]
fn utilization_scheduler_five_half_three_starts_the_second_at_the_third_and_is_full_at_the_fifteenth() {
    let mut control = app(1, 3, |spec| (spec.max_connections, spec.load_factor) = (5, 0.5));
    assert_eq!([2, 3].map(|connections| control.serving_with(connections)), [1, 2]);
    control.ready_all();
    control.load(&[(control.backend(0), 3), (control.backend(1), 3)]);
    control.ready_all();
    assert_eq!(control.state.apps[0].serving(), 3);
    let all = [0, 1, 2].map(|number| (control.backend(number), 5));
    control.load(&all);
    let app = &control.state.apps[0];
    assert!(app.workers.iter().all(|worker| worker.full) && !app.may_grow(), "the sixteenth is refused");
    assert!(app.ring.iter().all(|slot| slot.current.is_none()), "and falls to the HTTP path, which says so");
}

#[test]
fn a_full_worker_leaves_the_ring_keeps_its_clients_and_comes_back_when_it_has_room() {
    let mut control = app(2, 2, |_| {});
    let (a, b) = (control.backend(0), control.backend(1));
    control.load(&[(a, 50), (b, 1)]);
    assert_eq!((control.slots_of(a), control.slots_of(b)), (0, 509));
    assert_eq!(control.phase(0), &Phase::Ready, "nobody is sent away");
    control.load(&[(a, 46), (b, 1)]);
    assert_eq!(control.slots_of(a), 0, "not with every connection");
    control.load(&[(a, 44), (b, 1)]);
    assert!(control.slots_of(a) > 200, "it has room again");
}

#[test]
fn a_burst_of_requests_for_an_app_with_no_worker_starts_one_and_never_more_than_the_maximum() {
    let mut control = app(0, 3, |_| {});
    for _ in 0..100 {
        control.event(Event::Demand { app: 0 });
    }
    assert_eq!(control.spawned().len(), 1);
    control.ready_all();
    control.serving_with(10_000);
    control.serving_with(10_000);
    assert_eq!(control.spawned().len(), 3);
}

#[test]
fn a_request_that_finds_every_worker_full_starts_another() {
    let mut control = app(1, 2, |spec| (spec.max_connections, spec.load_factor) = (5, 1.0));
    control.serving_with(5);
    assert_eq!(control.state.apps[0].serving(), 1, "five are not above five");
    control.event(Event::Demand { app: 0 });
    assert_eq!(control.state.apps[0].serving(), 2);
}

#[test]
fn an_idle_worker_is_ended_in_steps_that_lose_no_connection() {
    let (mut control, backend) = Control::on_demand(2);
    control.load(&[(backend, 1)]);
    control.now += IDLE * 2;
    control.load(&[(backend, 0)]);
    assert_eq!(control.after(IDLE - Duration::from_secs(1)), [], "the time begins with the end of the last connection");
    control.after(Duration::from_secs(1));
    assert_eq!(control.slots_of(backend), 0, "first nobody new");
    assert_eq!(control.load(&[(backend, 0)]), [Effect::Retire { backend }], "then nobody at all");
    assert!(matches!(control.phase(0), Phase::Leaving { .. }));
    let effects = control.after(Duration::from_secs(1));
    assert_eq!(effects, [Effect::Signal { backend, signal: Signal::Terminate }][..], "and then a last look");
    control.crash(backend);
    assert_eq!(control.phase(0), &Phase::Stopped);
    control.event(Event::Demand { app: 0 });
    assert_eq!(control.spawned().len(), 2, "who comes next is served again");
}

#[test]
fn a_connection_that_races_the_end_of_an_idle_worker_keeps_it() {
    for look in [Duration::ZERO, Duration::from_millis(500)] {
        let (mut control, backend) = Control::on_demand(1);
        control.after(IDLE);
        if !look.is_zero() {
            control.load(&[(backend, 0)]);
            control.now += look;
        }
        control.load(&[(backend, 1)]);
        control.after(Duration::from_secs(1));
        assert_eq!(control.phase(0), &Phase::Ready, "it came before the last look");
        assert_eq!(control.slots_of(backend), 509);
        let told = control.effects.iter().any(|effect| matches!(effect, Effect::Signal { .. }));
        assert!(!told, "and the process never heard of it");
    }
}

#[test]
fn a_stop_while_an_idle_worker_is_being_left_ends_even_if_a_connection_was_under_way_to_it() {
    let (mut control, backend) = Control::on_demand(1);
    control.after(IDLE);
    control.load(&[(backend, 0)]);
    assert!(matches!(control.phase(0), Phase::Leaving { .. }));
    control.event(Event::Stop { now: false });
    control.load(&[(backend, 1)]);
    control.after(Duration::from_secs(1));
    assert!(matches!(control.phase(0), Phase::Draining { .. }), "it serves that one, and does not come back");
    control.load(&[(backend, 0)]);
    assert!(control.crash(backend).contains(&Effect::Exit));
}

#[test]
fn idle_workers_are_ended_down_to_the_minimum_the_last_ones_first() {
    let mut control = app(1, 4, |spec| spec.idle = Some(IDLE));
    control.serving_with(100);
    control.ready_all();
    assert_eq!(control.state.apps[0].serving(), 4);
    control.serving_with(0);
    for _ in 0..8 {
        control.after(IDLE);
        let all: Vec<_> = control.state.apps[0].workers.iter().map(|worker| (worker.backend, 0)).collect();
        control.load(&all);
    }
    assert_eq!(control.state.apps[0].serving(), 1);
    assert_eq!(control.phase(0), &Phase::Ready);
}

#[test]
fn at_most_so_many_workers_are_starting_at_once_and_the_rest_in_turn() {
    let specs = (0..10).map(|id| spec(id, 2, 2)).collect();
    let mut control = Control { state: State::new(specs, 3).expect("few"), now: Moment::ZERO, effects: Vec::new() };
    control.event(Event::Boot);
    for done in [3, 6, 9, 12, 15, 18] {
        assert_eq!(control.spawned().len(), done);
        control.ready_all();
    }
    assert_eq!(control.spawned().len(), 20);
    control.ready_all();
    let ready = control.state.apps.iter().flat_map(|app| &app.workers).filter(|w| w.phase == Phase::Ready).count();
    assert_eq!(ready, 20);
}

#[test]
fn a_worker_that_hangs_gets_no_new_clients_and_is_not_ended_for_it() {
    let mut control = app(2, 2, |_| {});
    let (a, b) = (control.backend(0), control.backend(1));
    let reason = || Some("no answer".to_owned());
    control.event(Event::Unresponsive { backend: a, reason: reason() });
    assert_eq!((control.slots_of(a), control.slots_of(b)), (0, 509), "its clients stay bound to it");
    assert_eq!(control.state.apps[0].workers[0].reason(), Some("no answer"));
    control.event(Event::Unresponsive { backend: b, reason: reason() });
    assert!(control.slots_of(a) > 200, "where nobody responds somebody is better than nobody");
    control.event(Event::Unresponsive { backend: a, reason: None });
    assert_eq!((control.slots_of(a), control.slots_of(b)), (509, 0));
    assert!(!control.effects.iter().any(|effect| matches!(effect, Effect::Signal { .. })));
}
