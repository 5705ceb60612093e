//! What is synchronised by hand, under a scheduler that changes threads wherever they touch what they share: the very files
//! of the program, on [shuttle](https://docs.rs/shuttle)'s locks and atomics in place of the standard library's. It tries orders by
//! chance, the same in each run, and says of one that fails how to repeat it.
//!
//! What it cannot see: it runs one thread at a time, so that memory is in one order for all; that is reasoned where it matters
//! (`routing::open`). Tokio's `Notify` is taken as it is documented.

mod sync {
    pub use shuttle::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
    pub use shuttle::sync::{Arc, Mutex, MutexGuard};
    pub use std::sync::PoisonError;
}

mod limits {
    pub const HELD_MAX: usize = 100;
}

#[path = "../src/routing/open.rs"]
mod open;
#[path = "../src/proxy/queue.rs"]
mod queue;

use futures_util::future::select;
use open::Open;
use queue::Queues;
use shuttle::scheduler::PctScheduler;
use shuttle::{Config, Runner, thread};
use sync::Arc;

const APP: u32 = 7;
/// Orders that are tried of each test.
const ORDERS: usize = 20_000;
/// Where an order is not by chance alone: how often it changes threads against the order of their turns.
const CHANGES: usize = 4;

/// Tries orders, half of them by chance alone and half by the scheduler that finds what takes few changes (Burckhardt et al., A
/// Randomized Scheduler with Probabilistic Guarantees of Finding Bugs, ASPLOS 2010).
fn in_many_orders(test: impl Fn() + Clone + Send + Sync + 'static) {
    const SEED: u64 = 1;
    let by_chance = shuttle::scheduler::RandomScheduler::new_from_seed(SEED, ORDERS / 2);
    Runner::new(by_chance, Config::new()).run(test.clone());
    let by_turns = PctScheduler::new_from_seed(SEED, CHANGES, ORDERS / 2);
    Runner::new(by_turns, Config::new()).run(test);
}

/// A worker and those who wait for it.
#[derive(Default)]
struct House {
    queues: Queues,
    open: Open,
}

impl House {
    /// As `proxy::admit` waits, for a worker that takes one at a time; without a deadline, so that whoever is not called
    /// waits for ever, which the scheduler calls a deadlock.
    async fn admit(&self, takes: &sync::AtomicBool) {
        let turn = self.queues.join(APP, 10).expect("there is room in the queue");
        loop {
            let watches = turn.is_first();
            if watches {
                self.open.watch();
            }
            // The last place is taken by one, as by `Inner::place`.
            let is_placed = self.open.count() == 0 && !takes.swap(true, sync::Ordering::SeqCst);
            if is_placed {
                self.open.begin();
                takes.store(false, sync::Ordering::SeqCst);
            } else {
                turn.pass_on();
                let called = turn.called();
                if watches {
                    select(std::pin::pin!(called), std::pin::pin!(self.open.fewer())).await;
                } else {
                    called.await;
                }
            }
            if watches {
                self.open.unwatch();
            }
            if is_placed {
                return;
            }
        }
    }
}

#[test]
fn whoever_waits_for_room_gets_it_when_those_before_are_done() {
    in_many_orders(|| {
        let house = Arc::new(House::default());
        let takes = Arc::new(sync::AtomicBool::new(false));
        house.open.begin();
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let (house, takes) = (Arc::clone(&house), Arc::clone(&takes));
                thread::spawn(move || {
                    shuttle::future::block_on(house.admit(&takes));
                    house.open.end();
                })
            })
            .collect();
        house.open.end();
        waiting.into_iter().for_each(|waits| waits.join().expect("it was admitted"));
        assert_eq!((house.open.count(), house.queues.of(APP)), (0, 0));
    });
}
