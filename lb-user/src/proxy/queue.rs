//! Who waits for a worker, or for room at one, app by app: the first to come is the first to be tried when something
//! changes, and who cannot be placed does not keep those behind from it.

use std::collections::{BTreeMap, HashMap};

use super::limits::HELD_MAX;
use super::vacancies::Vacancies;
use crate::routing::Load;
use crate::sync::{Arc, Mutex, MutexGuard, Notify, PoisonError};

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
    /// Looks for a place by `place`, at the workers with these loads.
    ///
    /// # Errors
    /// There was none: what to wait by for one.
    pub fn look<'a, P>(
        &self,
        loads: impl Iterator<Item = &'a Arc<Load>>,
        place: impl FnOnce() -> Option<P>,
    ) -> Result<P, Look<'_>> {
        // Before room is looked for, so that none is given up unseen.
        let vacancies = self.is_first().then(|| Vacancies::watch(loads));
        place().ok_or(Look { turn: self, vacancies })
    }

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

/// Who has looked in vain.
pub struct Look<'a> {
    turn: &'a Turn<'a>,
    /// Seen by the first one alone.
    vacancies: Option<Vacancies>,
}

impl Look<'_> {
    /// Completes when it is worth looking again: by a worker's room, or by what `changed` tells.
    pub async fn again<E>(self, changed: impl Future<Output = Result<(), E>>) -> Result<(), E> {
        // Those behind may have other workers.
        self.turn.pass_on();
        // Only the first one looks out; it calls the others.
        let Some(vacancies) = &self.vacancies else {
            self.turn.called().await;
            return Ok(());
        };
        tokio::select! {
            biased;
            changed = changed => changed,
            () = self.turn.called() => Ok(()),
            () = vacancies.one() => Ok(()),
        }
    }
}
