//! Who waits for a worker, or for room at one, app by app: the first to come is the first to be tried when something
//! changes, and who cannot be placed does not keep those behind from it. In a queue that is full, a client with many places
//! gives its last one up for another client who has fewer.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use lb_common::addr::Addr;

use super::limits::HELD_MAX;
use super::vacancies::Vacancies;
use crate::routing::Load;
use crate::sync::{Arc, Mutex, MutexGuard, Notify, PoisonError};

/// All queues.
#[derive(Default)]
pub struct Queues(Mutex<Table>);

#[derive(Default)]
struct Table {
    apps: HashMap<u32, Queue>,
    /// Places of all apps.
    all: usize,
}

#[derive(Default)]
struct Queue {
    next: u64,
    /// By the order in which they came.
    waiting: BTreeMap<u64, Waiting>,
    /// The numbers of a client's places.
    places: HashMap<Addr, BTreeSet<u64>>,
    /// Clients by how many these are.
    ranks: BTreeSet<(usize, Addr)>,
}

struct Waiting {
    called: Arc<Notify>,
    client: Addr,
}

impl Queue {
    fn call_behind(&self, number: u64) {
        if let Some((_, next)) = self.waiting.range(number + 1..).next() {
            next.called.notify_one();
        }
    }

    /// A place for the client, at the end.
    fn add(&mut self, client: Addr) -> (u64, Arc<Notify>) {
        let number = self.next;
        self.next += 1;
        let called = Arc::new(Notify::new());
        self.waiting.insert(number, Waiting { called: Arc::clone(&called), client });
        self.change(client, |places| places.insert(number));
        (number, called)
    }

    fn remove(&mut self, number: u64) -> Option<Waiting> {
        let waiting = self.waiting.remove(&number)?;
        self.change(waiting.client, |places| places.remove(&number));
        Some(waiting)
    }

    fn change(&mut self, client: Addr, change: impl FnOnce(&mut BTreeSet<u64>) -> bool) {
        let places = self.places.entry(client).or_default();
        self.ranks.remove(&(places.len(), client));
        change(places);
        match places.len() {
            0 => drop(self.places.remove(&client)),
            count => drop(self.ranks.insert((count, client))),
        }
    }

    fn places_of(&self, client: Addr) -> usize {
        self.places.get(&client).map_or(0, BTreeSet::len)
    }

    /// The last place of the client with the most, if those are more than `than`.
    fn to_put_out(&self, than: usize) -> Option<u64> {
        let &(most, client) = self.ranks.last()?;
        (most > than).then(|| self.places.get(&client)?.last().copied()).flatten()
    }
}

impl Table {
    fn length(&self, app: u32) -> usize {
        self.apps.get(&app).map_or(0, |queue| queue.waiting.len())
    }

    fn add(&mut self, app: u32, client: Addr) -> (u64, Arc<Notify>) {
        self.all += 1;
        self.apps.entry(app).or_default().add(client)
    }

    fn remove(&mut self, app: u32, number: u64) -> Option<Waiting> {
        let waiting = self.apps.get_mut(&app)?.remove(number)?;
        self.all -= 1;
        Some(waiting)
    }

    /// Puts out the last place of that client of the app who has most, and more than `than`. Whether there was one.
    fn put_one_out(&mut self, app: u32, than: usize) -> bool {
        let number = self.apps.get(&app).and_then(|queue| queue.to_put_out(than));
        let out = number.and_then(|number| self.remove(app, number));
        out.inspect(|waiting| waiting.called.notify_one()).is_some()
    }
}

impl Queues {
    /// How many wait for the app.
    pub fn of(&self, app: u32) -> usize {
        self.table().length(app)
    }

    /// A turn at the end of the app's queue. Where `most` wait already, or [`HELD_MAX`] over all apps, it is another client's
    /// of that app, or the longest queue's, if that has more than this one would have then; `None` where nobody has.
    pub fn join(&self, app: u32, most: u32, client: Addr) -> Option<Turn<'_>> {
        let mut table = self.table();
        let length = table.length(app);
        let is_full = length >= most as usize;
        if is_full || table.all >= HELD_MAX {
            let longest = table.apps.iter().max_by_key(|(_, queue)| queue.waiting.len()).filter(|_| !is_full);
            let longer = longest.filter(|(_, queue)| queue.waiting.len() > length + 1).map(|(&longer, _)| longer);
            let places = table.apps.get(&app).map_or(0, |queue| queue.places_of(client));
            let (from, than) = longer.map_or((app, places + 1), |longer| (longer, 0));
            table.put_one_out(from, than).then_some(())?;
        }
        let (number, called) = table.add(app, client);
        Some(Turn { queues: self, app, number, called })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
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
        table.apps.get(&self.app).and_then(|queue| queue.waiting.keys().next()) == Some(&self.number)
    }

    /// Whether its place is another's now.
    pub fn is_over(&self) -> bool {
        !self.queues.table().apps.get(&self.app).is_some_and(|queue| queue.waiting.contains_key(&self.number))
    }

    /// Calls the one behind: something has changed, and this one has tried.
    pub fn pass_on(&self) {
        if let Some(queue) = self.queues.table().apps.get(&self.app) {
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
        let mut table = self.queues.table();
        // Called but not tried, or first: either way the next one must know, and only when this one has left: it looks
        // whether it is the first now.
        drop(table.remove(self.app, self.number));
        if let Some(queue) = table.apps.get(&self.app) {
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
