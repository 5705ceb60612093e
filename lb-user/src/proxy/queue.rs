//! Who waits for a worker, or for room at one, app by app: the first to come is the first to be tried when something
//! changes, and who cannot be placed does not keep those behind from it.

use std::collections::{BTreeMap, HashMap};

use tokio::sync::Notify;

use super::limits::HELD_MAX;
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// All queues.
#[derive(Default)]
pub struct Queues(Mutex<HashMap<u32, Queue>>);

#[derive(Default)]
struct Queue {
    next: u64,
    /// By the order in which they came.
    waiting: BTreeMap<u64, Arc<Notify>>,
}

impl Queue {
    fn call_behind(&self, number: u64) {
        if let Some((_, next)) = self.waiting.range(number + 1..).next() {
            next.notify_one();
        }
    }
}

impl Queues {
    /// How many wait for the app.
    pub fn of(&self, app: u32) -> usize {
        self.table().get(&app).map_or(0, |queue| queue.waiting.len())
    }

    /// A turn at the end of the app's queue; `None` where `most` wait already, or [`HELD_MAX`] over all apps.
    pub fn join(&self, app: u32, most: u32) -> Option<Turn<'_>> {
        let mut table = self.table();
        let all: usize = table.values().map(|queue| queue.waiting.len()).sum();
        let queue = table.entry(app).or_default();
        if all >= HELD_MAX || queue.waiting.len() >= most as usize {
            return None;
        }
        let number = queue.next;
        queue.next += 1;
        let called = Arc::new(Notify::new());
        queue.waiting.insert(number, Arc::clone(&called));
        Some(Turn { queues: self, app, number, called })
    }

    fn table(&self) -> MutexGuard<'_, HashMap<u32, Queue>> {
        // A panic cannot leave a queue half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in a queue, left when this is dropped: then the next one is called.
pub struct Turn<'a> {
    queues: &'a Queues,
    app: u32,
    number: u64,
    called: Arc<Notify>,
}

impl Turn<'_> {
    /// Whether it is for this one to see what changes, and to call the others.
    pub fn is_first(&self) -> bool {
        let table = self.queues.table();
        table.get(&self.app).and_then(|queue| queue.waiting.keys().next()) == Some(&self.number)
    }

    /// Calls the one behind: something has changed, and this one has tried.
    pub fn pass_on(&self) {
        if let Some(queue) = self.queues.table().get(&self.app) {
            queue.call_behind(self.number);
        }
    }

    /// Completes when the one before has tried, or left.
    pub async fn called(&self) {
        self.called.notified().await;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(queue) = self.queues.table().get_mut(&self.app) {
            // Called but not tried, or first: either way the next one must know, and only when this one has left: it looks
            // whether it is the first now.
            queue.waiting.remove(&self.number);
            queue.call_behind(self.number);
        }
    }
}
