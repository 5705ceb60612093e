//! What operators ask for, and what clients notice of it.

use super::*;

/// For each slot of app 0, its owner.
fn owners(control: &Control) -> Vec<BackendId> {
    control.state.apps[0].ring.iter().map(|slot| slot.current).collect()
}

fn ready_in(control: &Control, app: usize) -> usize {
    control.state.apps[app].workers.iter().filter(|worker| worker.phase == Phase::Ready).count()
}

#[test]
fn rolling_restart_starts_the_new_worker_first_in_the_old_ones_place_and_the_old_one_drains() {
    let mut control = Control::ready(4);
    let old: Vec<BackendId> = (0..4).map(|number| control.backend(number)).collect();
    let before = owners(&control);
    control.event(Event::Restart { app: 0, at_once: 1 });
    assert_eq!(control.spawned().len(), 5, "one at a time");
    assert_eq!(owners(&control), before, "nobody notices");
    let new = control.spawned()[4];
    control.event(Event::Ready { backend: new });
    for (owner, was) in owners(&control).into_iter().zip(&before) {
        assert_eq!(owner, if *was == old[0] { new } else { *was }, "nobody else's slot moves");
    }
    assert!(matches!(control.phase(0), Phase::Draining { .. }), "its clients stay");
    for _ in 0..3 {
        control.ready_all();
    }
    assert_eq!((control.spawned().len(), control.state.apps[0].restarting), (8, None));
    assert!(old.iter().all(|&backend| control.slots_of(backend) == 0));
    // The clients leave, and the old ones with them.
    let none: Vec<_> = old.iter().map(|&backend| (backend, 0)).collect();
    control.load(&none);
    control.after(Duration::from_secs(1));
    for backend in old {
        control.crash(backend);
    }
    assert_eq!(control.state.apps[0].workers.len(), 4, "no more numbers than workers");
    assert_eq!(ready_in(&control, 0), 4);
}

#[test]
fn restart_all_at_once_starts_a_successor_for_each() {
    let mut control = Control::ready(4);
    control.event(Event::Restart { app: 0, at_once: usize::MAX });
    assert_eq!((control.spawned().len(), ready_in(&control, 0)), (8, 4));
    control.ready_all();
    assert_eq!((ready_in(&control, 0), control.state.apps[0].restarting), (4, None));
}

#[test]
fn a_restart_whose_new_worker_fails_stops_there_and_the_old_ones_go_on() {
    let mut control = Control::ready(4);
    let before = owners(&control);
    control.event(Event::Restart { app: 0, at_once: 1 });
    let effects = control.crash(control.spawned()[4]);
    assert!(
        effects.iter().any(|effect| matches!(effect, Effect::Say { severity: Severity::Error, .. })),
        "{effects:?}"
    );
    control.after(Duration::from_secs(60));
    assert_eq!((control.spawned().len(), owners(&control)), (5, before));
    let app = &control.state.apps[0];
    assert_eq!((app.restarting, app.restart_failed.as_deref()), (None, Some("exited with status 1")));
    control.event(Event::Restart { app: 0, at_once: 1 });
    for _ in 0..4 {
        control.ready_all();
    }
    assert_eq!((control.spawned().len(), control.state.apps[0].restart_failed.as_deref()), (9, None), "asked again");
}

#[test]
fn an_old_worker_that_dies_while_its_successor_starts_is_not_started_again_beside_it() {
    let mut control = Control::ready(2);
    control.event(Event::Restart { app: 0, at_once: 1 });
    control.crash(control.backend(0));
    control.after(Duration::from_secs(2));
    for _ in 0..4 {
        control.ready_all();
    }
    assert_eq!((control.spawned().len(), control.state.apps[0].serving()), (4, 2));
}

#[test]
fn scaled_up_the_minimum_is_started_and_scaled_down_the_last_ones_drain() {
    let mut control = Control::ready(2);
    control.event(Event::Scale { app: 0, min: 4, max: 8 });
    control.ready_all();
    assert_eq!(ready_in(&control, 0), 4);
    let before = owners(&control);
    let first = control.backend(0);
    control.event(Event::Scale { app: 0, min: 1, max: 1 });
    assert_eq!(owners(&control), vec![first; 509]);
    assert!(before.contains(&first));
    for number in 1..4 {
        assert!(matches!(control.phase(number), Phase::Draining { idle: false, .. }), "{:?}", control.phase(number));
    }
}

#[test]
fn reload_adds_removes_and_changes_apps_and_leaves_the_others_as_they_are() {
    let specs = || vec![spec(0, 2, 2), spec(1, 2, 2)];
    let state = State::new(specs(), 1_000).expect("few");
    let mut control = Control { state, now: Moment::ZERO, effects: Vec::new() };
    control.event(Event::Boot);
    control.ready_all();
    let before = control.state.clone();
    assert_eq!(control.event(Event::Configure { specs: specs(), restart: vec![] }), [], "nothing has changed");
    assert_eq!(control.state, before);

    let mut changed = specs();
    changed.remove(1);
    changed.push(spec(2, 1, 1));
    control.event(Event::Configure { specs: changed.clone(), restart: vec![] });
    assert_eq!(control.state.apps[0], before.apps[0], "the one that stays notices nothing");
    assert!(control.state.apps[1].removed);
    assert!(control.state.apps[1].workers.iter().all(|w| matches!(w.phase, Phase::Draining { .. })), "clients stay");
    control.ready_all();
    assert_eq!(ready_in(&control, 2), 1);
    let left: Vec<BackendId> = control.state.apps[1].workers.iter().map(|worker| worker.backend).collect();
    control.after(DRAIN);
    control.crash(left[0]);
    assert!(control.crash(left[1]).contains(&Effect::Forget { app: 1 }));
    let ids: Vec<u32> = control.state.apps.iter().map(|app| app.spec.id).collect();
    assert_eq!(ids, [0, 2]);

    let spawned = control.spawned().len();
    control.event(Event::Configure { specs: changed, restart: vec![0] });
    assert_eq!(control.spawned().len(), spawned + 1, "what changed is replaced one by one");
}

#[test]
fn a_worker_that_was_draining_when_homing_ended_is_adopted_draining() {
    let mut control = Control::new(1, 2);
    let (old, new) = (BackendId::new(0, 3), BackendId::new(1, 3));
    let as_it_was = AsItWas { place: 1, draining: true, ..AsItWas::default() };
    control.event(Event::Adopted { app: 0, number: 0, backend: old, as_it_was });
    let as_it_was = AsItWas { place: 1, ..AsItWas::default() };
    control.event(Event::Adopted { app: 0, number: 1, backend: new, as_it_was });
    control.event(Event::Boot);
    assert_eq!((control.slots_of(old), control.slots_of(new)), (0, 509), "its successor has its place");
    assert_eq!(control.spawned(), [], "and nobody is missing");
    control.load(&[(old, 1), (new, 1)]);
    assert!(matches!(control.phase(0), Phase::Draining { .. }));
}

#[test]
fn a_remote_host_that_is_added_or_leaves_is_asked_or_not_asked_any_more() {
    let host = |name| Remote { name, weight: 1 };
    let with = |hosts: &[u64]| AppSpec { remotes: hosts.iter().map(|&name| host(name)).collect(), ..spec(0, 0, 1) };
    let state = State::new(vec![with(&[7])], 8).expect("few");
    let mut control = Control { state, now: Moment::ZERO, effects: Vec::new() };
    control.event(Event::Boot);
    let first = control.backend(1);
    control.event(Event::Answers { backend: first });
    let effects = control.event(Event::Configure { specs: vec![with(&[7, 8])], restart: vec![] });
    let second = control.backend(2);
    assert_eq!(effects, [Effect::Watch { app: 0, number: 2, backend: second }]);
    control.event(Event::Answers { backend: second });
    assert!(control.slots_of(first) > 200 && control.slots_of(second) > 200);
    let effects = control.event(Event::Configure { specs: vec![with(&[8])], restart: vec![] });
    assert!(
        effects.contains(&Effect::Unwatch { backend: first }) && effects.contains(&Effect::Retire { backend: first })
    );
    assert_eq!(control.slots_of(second), 509);
}
