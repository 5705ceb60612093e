//! How many clients each worker has: a walk through all bindings, which control leaves to another thread where it is asked for
//! again and again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lb_common::abi::{BackendId, Service};
use lb_common::affinity;

use crate::routing::Bindings;

/// Between walks, at least …
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// … and so many times as long as one takes: a fiftieth of a processor at most.
const PAUSE_FACTOR: u32 = 50;

/// As it was counted.
#[derive(Default)]
pub(super) struct Tally {
    /// Clients bound to each backend.
    pub(super) clients: HashMap<BackendId, u64>,
    /// All that are bound, idle ones and former ones too.
    pub(super) bound: u64,
    /// Clients of each app that are promoted, by its number.
    pub(super) promoted: HashMap<u32, u64>,
}

impl Tally {
    /// `services`: by app number.
    pub(super) fn of(bindings: &dyn Bindings, services: &HashMap<u32, Service>) -> Self {
        let now_s = bindings.now_s();
        let mut tally = Self::default();
        for (key, binding) in bindings.all() {
            tally.bound += 1;
            if services.get(&key.app).is_some_and(|service| affinity::is_fresh(service, &binding, now_s)) {
                *tally.clients.entry(binding.backend).or_default() += 1;
            }
        }
        for (key, _) in bindings.promotions() {
            *tally.promoted.entry(key.app).or_default() += 1;
        }
        tally
    }
}

/// The last one, and whether the next is under way.
#[derive(Default)]
pub(super) struct Tallies(Arc<Mutex<Last>>);

#[derive(Default)]
struct Last {
    tally: Arc<Tally>,
    /// When the next walk may begin; `None`: at once.
    next: Option<Instant>,
    is_under_way: bool,
}

impl Tallies {
    /// The last one that is there, at once; a newer one is begun when it is time. Empty before the first.
    pub(super) fn last(&self, bindings: &Arc<dyn Bindings>, services: HashMap<u32, Service>) -> Arc<Tally> {
        let mut last = lock(&self.0);
        if !last.is_under_way && last.next.is_none_or(|next| next <= Instant::now()) {
            last.is_under_way = true;
            let (table, bindings) = (Arc::clone(&self.0), Arc::clone(bindings));
            tokio::task::spawn_blocking(move || {
                let begun = Instant::now();
                let tally = Arc::new(Tally::of(&*bindings, &services));
                let pause = PAUSE_MIN.max(begun.elapsed().saturating_mul(PAUSE_FACTOR));
                *lock(&table) = Last { tally, next: Some(Instant::now() + pause), is_under_way: false };
            });
        }
        Arc::clone(&last.tally)
    }
}

fn lock(table: &Mutex<Last>) -> std::sync::MutexGuard<'_, Last> {
    // A panic cannot leave it half-changed.
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use lb_common::abi::BindingKey;
    use lb_common::addr::Addr;

    use super::*;
    use crate::bindings::MemoryBindings;

    fn key(app: u32, client: u8) -> BindingKey {
        BindingKey { client: Addr::from(std::net::IpAddr::from([10, 0, 0, client])), app, reserved: 0 }
    }

    #[tokio::test]
    async fn clients_are_counted_elsewhere_and_not_twice_in_a_second() {
        let bindings: Arc<dyn Bindings> = Arc::new(MemoryBindings::new());
        let services = || HashMap::from([(0, Service { affinity_s: 60, ..Service::default() })]);
        bindings.bind(&key(0, 1), BackendId(7));
        bindings.bind(&key(0, 2), BackendId(7));
        bindings.bind(&key(9, 3), BackendId(8));
        bindings.promote(&key(0, 1));
        let tallies = Tallies::default();
        assert_eq!(tallies.last(&bindings, services()).bound, 0, "nobody waits for the first");
        while lock(&tallies.0).is_under_way {
            tokio::task::yield_now().await;
        }
        bindings.bind(&key(0, 4), BackendId(7));
        let tally = tallies.last(&bindings, services());
        assert_eq!((tally.bound, tally.clients.get(&BackendId(7)), tally.promoted.get(&0)), (3, Some(&2), Some(&1)));
        assert_eq!(tally.clients.get(&BackendId(8)), None, "of an app that is gone");
        assert!(!lock(&tallies.0).is_under_way, "the next is not begun yet");
    }
}
