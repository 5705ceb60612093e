//! Queues as one thread sees them; what several threads make of them is in `tests/synchronisation.rs`.

use futures_util::FutureExt as _;
use lb_common::addr::Addr;

use super::limits::HELD_MAX;
use super::queue::{Queues, Turn};

const CLIENT: Addr = Addr { high: 0, low: 1 };
const OTHER: Addr = Addr { high: 0, low: 2 };

fn is_called(turn: &Turn<'_>) -> bool {
    turn.called().now_or_never().is_some()
}

#[test]
fn those_who_wait_are_called_in_the_order_in_which_they_came() {
    let queues = Queues::default();
    let [first, second, third] = [(); 3].map(|()| queues.join(7, 3, CLIENT).expect("there is room"));
    assert!(queues.join(7, 3, CLIENT).is_none(), "three may wait");
    assert!(queues.join(8, 3, CLIENT).is_some(), "another app's queue is its own");
    assert!(first.is_first() && !second.is_first());
    assert!(![&first, &second, &third].into_iter().any(is_called));
    first.pass_on();
    assert!(is_called(&second) && !is_called(&third));
    second.pass_on();
    assert!(is_called(&third));
    third.pass_on();
    drop(first);
    assert!(second.is_first() && is_called(&second));
    assert_eq!(queues.of(7), 2);
}

#[test]
fn who_leaves_with_the_call_in_hand_passes_it_on() {
    let queues = Queues::default();
    let [first, second, third] = [(); 3].map(|()| queues.join(7, 9, CLIENT).expect("there is room"));
    first.pass_on();
    drop(second);
    assert!(is_called(&third));
}

/// One client could take all places there are.
#[test]
fn in_a_full_queue_who_has_many_places_makes_room_for_who_has_few() {
    let queues = Queues::default();
    let [first, second, third] = [(); 3].map(|()| queues.join(7, 3, CLIENT).expect("there is room"));
    let other = queues.join(7, 3, OTHER).expect("the other one has three");
    assert!(third.is_over() && is_called(&third) && ![&first, &second, &other].into_iter().any(Turn::is_over));
    assert!(queues.join(7, 3, OTHER).is_none(), "then it would have as many itself");
    assert!(queues.join(7, 3, CLIENT).is_none());
    drop(third);
    assert_eq!(queues.of(7), 3, "its place is not given up twice");
    drop((first, second));
    let again = [(); 2].map(|()| queues.join(7, 3, CLIENT).expect("there is room"));
    assert!(!again[1].is_over());
}

#[test]
fn the_longest_queue_makes_room_for_another_app() {
    let queues = Queues::default();
    let long: Vec<_> = (0..HELD_MAX).map(|_| queues.join(7, u32::MAX, CLIENT).expect("there is room")).collect();
    assert!(queues.join(7, u32::MAX, CLIENT).is_none());
    let other = queues.join(8, 9, CLIENT).expect("app 7 has all");
    assert_eq!((queues.of(7), queues.of(8)), (HELD_MAX - 1, 1));
    assert!(long[HELD_MAX - 1].is_over() && !other.is_over());
}
