//! What is synchronised by hand, under a scheduler that changes threads wherever they touch what they share: the very files
//! of the program, on [shuttle](https://docs.rs/shuttle)'s locks and atomics in place of the standard library's. It tries orders by
//! chance, the same in each run, and says of one that fails how to repeat it.
//!
//! Nothing here has a deadline: whoever is not called waits for ever, which the scheduler calls a deadlock.
//!
//! What it cannot see: it runs one thread at a time, so that memory is in one order for all; that is reasoned where it matters
//! (`routing::open`). What tokio has (`Notify`, `watch`, `oneshot`) is taken as it is documented.

mod sync {
    pub use shuttle::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering, fence};
    pub use shuttle::sync::{Arc, Mutex, MutexGuard};
    pub use std::sync::PoisonError;

    /// Tokio's, before whose use threads may be changed, too.
    #[derive(Default)]
    pub struct Notify {
        inner: tokio::sync::Notify,
        touched: AtomicBool,
    }

    impl Notify {
        pub fn new() -> Self {
            Self::default()
        }

        pub fn notify_one(&self) {
            self.touched.load(Ordering::SeqCst);
            self.inner.notify_one();
        }

        pub async fn notified(&self) {
            self.touched.load(Ordering::SeqCst);
            self.inner.notified().await;
        }
    }
}

mod limits {
    pub const HELD_MAX: usize = 100;
}

/// As much of a worker's as is waited for.
mod routing {
    #[derive(Default)]
    pub struct Load {
        pub open: super::open::Open,
    }
}

#[path = "../src/control/chore.rs"]
mod chore;
#[path = "../src/proxy/tunnel/lending.rs"]
mod lending;
#[path = "../src/routing/open.rs"]
mod open;
#[path = "../src/proxy/queue.rs"]
mod queue;
#[path = "../src/proxy/vacancies.rs"]
mod vacancies;

use std::ops::Range;
use std::pin::pin;

use chore::Chore;
use futures_util::future::{Either, select};
use lb_common::addr::Addr;
use lending::Lending;
use queue::Queues;
use routing::Load;
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner, future, thread};
use sync::{Arc, AtomicU32, Mutex, Notify, Ordering};
use tokio::sync::watch;

const CLIENT: Addr = Addr { high: 0, low: 1 };
const OTHER: Addr = Addr { high: 0, low: 2 };
const APP: u32 = 7;
/// Orders that are tried of each test.
const ORDERS: usize = 10_000;
/// Where an order is not by chance alone: how often it changes threads against the order of their turns.
const CHANGES: usize = 4;

/// Tries orders, half of them by chance alone and half by the scheduler that finds what takes few changes (Burckhardt et al., A
/// Randomized Scheduler with Probabilistic Guarantees of Finding Bugs, ASPLOS 2010).
fn in_many_orders(test: impl Fn() + Clone + Send + Sync + 'static) {
    const SEED: u64 = 1;
    Runner::new(RandomScheduler::new_from_seed(SEED, ORDERS / 2), Config::new()).run(test.clone());
    Runner::new(PctScheduler::new_from_seed(SEED, CHANGES, ORDERS / 2), Config::new()).run(test);
}

/// An app's workers, each with room for one, and those who wait for them.
struct House {
    queues: Queues,
    workers: Vec<Arc<Load>>,
    /// Held from looking for room to taking it, as by `proxy::place`.
    assigning: Mutex<()>,
    /// Whether the workers take anybody; the place of a snapshot.
    takes: watch::Sender<bool>,
}

impl House {
    /// All of whose workers are full.
    fn full(workers: usize) -> Arc<Self> {
        let workers: Vec<_> = (0..workers).map(|_| Arc::<Load>::default()).collect();
        workers.iter().for_each(|worker| worker.open.begin());
        Arc::new(Self {
            queues: Queues::default(),
            workers,
            assigning: Mutex::default(),
            takes: watch::Sender::new(true),
        })
    }

    /// As `proxy::admit` waits, for one of these workers. Which it was; `None`: another client has its place.
    async fn admit(&self, wanted: Range<usize>, most: u32, client: Addr) -> Option<Arc<Load>> {
        let turn = self.queues.join(APP, most, client)?;
        let mut changes = self.takes.subscribe();
        loop {
            let takes = *changes.borrow_and_update();
            match turn.look(self.workers.iter(), || self.place(takes, wanted.clone())) {
                Ok(worker) => return Some(worker),
                Err(_) if turn.is_over() => return None,
                Err(look) => look.again(changes.changed()).await.expect("the house stands"),
            }
        }
    }

    fn place(&self, takes: bool, wanted: Range<usize>) -> Option<Arc<Load>> {
        let _one_at_a_time = self.assigning.lock().expect("nobody panics");
        let free = self.workers[wanted].iter().find(|worker| takes && worker.open.count() == 0)?;
        free.open.begin();
        Some(Arc::clone(free))
    }

    /// Somebody comes for one of these workers, and goes when it has been served.
    fn visited_for(self: &Arc<Self>, wanted: Range<usize>) -> thread::JoinHandle<()> {
        let house = Arc::clone(self);
        thread::spawn(move || future::block_on(house.admit(wanted, 10, CLIENT)).expect("there is room").open.end())
    }

    /// So many come, for any worker.
    fn visited_by(self: &Arc<Self>, visitors: usize) -> Vec<thread::JoinHandle<()>> {
        (0..visitors).map(|_| self.visited_for(0..self.workers.len())).collect()
    }

    fn assert_is_left_by(&self, visitors: Vec<thread::JoinHandle<()>>) {
        visitors.into_iter().for_each(|visitor| visitor.join().expect("it was admitted"));
        assert!(self.workers.iter().all(|worker| worker.open.count() == 0));
        assert_eq!(self.queues.of(APP), 0);
    }
}

#[test]
fn whoever_waits_for_room_gets_it_when_those_before_are_done() {
    in_many_orders(|| {
        let house = House::full(1);
        let visitors = house.visited_by(3);
        house.workers[0].open.end();
        house.assert_is_left_by(visitors);
    });
}

#[test]
fn who_is_put_out_of_a_full_queue_is_told_and_keeps_nobody_from_room() {
    in_many_orders(|| {
        let house = House::full(1);
        let visitors = [CLIENT, CLIENT, OTHER].map(|client| {
            let house = Arc::clone(&house);
            thread::spawn(move || {
                let worker = future::block_on(house.admit(0..1, 2, client));
                worker.inspect(|worker| worker.open.end()).is_some()
            })
        });
        house.workers[0].open.end();
        let [one, two, other] = visitors.map(|visitor| visitor.join().expect("it was admitted or told"));
        assert!(other && (one || two), "OTHER finds room or makes some, and not of both");
        house.assert_is_left_by(vec![]);
    });
}

#[test]
fn room_at_any_worker_is_seen() {
    in_many_orders(|| {
        let house = House::full(2);
        let visitors = house.visited_by(3);
        // The first stays full.
        house.workers[1].open.end();
        visitors.into_iter().for_each(|visitor| visitor.join().expect("it was admitted"));
        assert_eq!((house.workers[0].open.count(), house.workers[1].open.count()), (1, 0));
    });
}

#[test]
fn who_cannot_be_placed_keeps_nobody_behind_from_it() {
    in_many_orders(|| {
        let house = House::full(2);
        let [one, other] = [0..1, 1..2].map(|wanted| house.visited_for(wanted));
        house.workers[1].open.end();
        other.join().expect("it was admitted");
        house.workers[0].open.end();
        house.assert_is_left_by(vec![one]);
    });
}

#[test]
fn who_gives_up_keeps_nobody_from_room() {
    in_many_orders(|| {
        let house = House::full(1);
        let deadline = Arc::new(Notify::new());
        let impatient = thread::spawn({
            let (house, deadline) = (Arc::clone(&house), Arc::clone(&deadline));
            move || {
                let admitted = future::block_on(async {
                    match select(pin!(house.admit(0..1, 10, CLIENT)), pin!(deadline.notified())).await {
                        Either::Left((worker, _)) => Some(worker),
                        Either::Right(_) => None,
                    }
                });
                if let Some(worker) = admitted {
                    worker.expect("there is room").open.end();
                }
            }
        });
        let mut visitors = house.visited_by(2);
        visitors.push(impatient);
        visitors.push(thread::spawn(move || deadline.notify_one()));
        house.workers[0].open.end();
        house.assert_is_left_by(visitors);
    });
}

#[test]
fn a_change_is_seen_by_all_who_wait() {
    in_many_orders(|| {
        let house = House::full(1);
        house.takes.send_replace(false);
        let visitors = house.visited_by(3);
        house.workers[0].open.end();
        house.takes.send_replace(true);
        house.assert_is_left_by(visitors);
    });
}

/// The sockets of a tunnel: how often they were closed, by whomever.
struct Sockets(Arc<AtomicU32>);

impl Drop for Sockets {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Tunnels of a relay, each with its number.
type Tunnels = Lending<(u32, Sockets), (u32, Sockets)>;

/// Lends a tunnel's sockets, and waits for them or is broken off. What came back.
fn talk(tunnels: &Arc<Tunnels>, number: u32, closed: &Arc<AtomicU32>, broken_off: &Notify) -> Option<u32> {
    let lent = tunnels.lend((number, Sockets(Arc::clone(closed))), |_, _| true).ok()?;
    let returned = future::block_on(async {
        match select(pin!(lent.returned()), pin!(broken_off.notified())).await {
            Either::Left((returned, _)) => returned,
            Either::Right(_) => None,
        }
    });
    returned.map(|(number, _)| number)
}

#[test]
fn a_tunnel_that_is_broken_off_closes_its_own_sockets_alone() {
    in_many_orders(|| {
        let tunnels = Arc::<Tunnels>::default();
        let closed: Vec<_> = (0..2).map(|_| Arc::<AtomicU32>::default()).collect();
        let broken_off = Arc::new(Notify::new());
        let relay = thread::spawn({
            let tunnels = Arc::clone(&tunnels);
            // Both may have the same key, one after the other.
            move || {
                for _ in 0..2 {
                    let mut serving = tunnels.serve();
                    if serving.get(0).is_some() {
                        serving.give_back(0, |pair| {
                            thread::yield_now();
                            pair
                        });
                    }
                }
            }
        });
        let first = thread::spawn({
            let (tunnels, closed, broken_off) = (Arc::clone(&tunnels), Arc::clone(&closed[0]), Arc::clone(&broken_off));
            move || talk(&tunnels, 0, &closed, &broken_off)
        });
        let second = thread::spawn({
            let (tunnels, closed) = (Arc::clone(&tunnels), Arc::clone(&closed[1]));
            move || {
                let sockets = Sockets(Arc::clone(&closed));
                let Ok(lent) = tunnels.lend((1, sockets), |_, _| true) else { panic!("there is a thread") };
                (lent, closed)
            }
        });
        broken_off.notify_one();
        relay.join().expect("it served");
        assert!(matches!(first.join().expect("it ended"), None | Some(0)), "another's sockets came back");
        assert_eq!(closed[0].load(Ordering::SeqCst), 1);
        let (lent, closed) = second.join().expect("it lent");
        assert_eq!(closed.load(Ordering::SeqCst), 0, "another has closed them");
        (0..2).for_each(|key| tunnels.serve().give_back(key, |pair| pair));
        let (number, sockets) = future::block_on(lent.returned()).expect("they come back");
        assert_eq!(number, 1);
        drop(sockets);
        assert_eq!((closed.load(Ordering::SeqCst), tunnels.count()), (1, 0));
    });
}

#[test]
fn nobody_waits_for_a_thread_that_is_gone() {
    in_many_orders(|| {
        let tunnels = Arc::<Tunnels>::default();
        let closed = Arc::<AtomicU32>::default();
        let tasks: Vec<_> = (0..2)
            .map(|number| {
                let (tunnels, closed) = (Arc::clone(&tunnels), Arc::clone(&closed));
                thread::spawn(move || talk(&tunnels, number, &closed, &Notify::new()))
            })
            .collect();
        tunnels.end();
        for task in tasks {
            assert_eq!(task.join().expect("it ended"), None);
        }
        assert_eq!(closed.load(Ordering::SeqCst), 2);
    });
}

#[test]
fn the_last_save_reaches_the_disk() {
    in_many_orders(|| {
        let (chore, disk) = (Arc::<Chore>::default(), Arc::<AtomicU32>::default());
        let (file, at_work) = (Arc::<AtomicU32>::default(), Arc::<AtomicU32>::default());
        let mut workers = Vec::new();
        for save in 1..=3 {
            file.store(save, Ordering::SeqCst);
            if !chore.falls_to_who_asks() {
                continue;
            }
            let (chore, disk) = (Arc::clone(&chore), Arc::clone(&disk));
            let (file, at_work) = (Arc::clone(&file), Arc::clone(&at_work));
            workers.push(thread::spawn(move || {
                chore.work(|| {
                    assert_eq!(at_work.fetch_add(1, Ordering::SeqCst), 0, "two are at the files");
                    disk.store(file.load(Ordering::SeqCst), Ordering::SeqCst);
                    at_work.fetch_sub(1, Ordering::SeqCst);
                });
            }));
        }
        if chore.is_done() {
            assert_eq!(disk.load(Ordering::SeqCst), 3, "done, but for the last");
        }
        workers.into_iter().for_each(|worker| worker.join().expect("it worked"));
        assert!(chore.is_done());
        assert_eq!(disk.load(Ordering::SeqCst), 3);
    });
}
