//! Queues as one thread sees them; what several threads make of them is in `tests/synchronisation.rs`.

use futures_util::FutureExt as _;

use super::queue::{Queues, Turn};

fn is_called(turn: &Turn<'_>) -> bool {
    turn.called().now_or_never().is_some()
}

#[test]
fn those_who_wait_are_called_in_the_order_in_which_they_came() {
    let queues = Queues::default();
    let [first, second, third] = [(); 3].map(|()| queues.join(7, 3).expect("there is room"));
    assert!(queues.join(7, 3).is_none(), "three may wait");
    assert!(queues.join(8, 3).is_some(), "another app's queue is its own");
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
    let [first, second, third] = [(); 3].map(|()| queues.join(7, 9).expect("there is room"));
    first.pass_on();
    drop(second);
    assert!(is_called(&third));
}
