//! What tasks lend to a thread, until it gives that back or they take it away: a table for all of them, behind one lock.

use slab::Slab;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use crate::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Things that are lent now, and come back as `R`. `None`: the thread is gone, for good.
pub struct Lending<T, R>(Mutex<Option<Slab<Entry<T, R>>>>);

struct Entry<T, R> {
    thing: T,
    back: oneshot::Sender<R>,
}

impl<T, R> Default for Lending<T, R> {
    fn default() -> Self {
        Self(Mutex::new(Some(Slab::new())))
    }
}

impl<T, R> Lending<T, R> {
    /// Lends it if `prepare` succeeds, which learns its key; the thread looks nothing up in between.
    ///
    /// # Errors
    /// The thing, where there is no thread for it or it is not prepared.
    pub fn lend(self: &Arc<Self>, thing: T, prepare: impl FnOnce(usize, &T) -> bool) -> Result<Lent<T, R>, T> {
        let mut entries = self.entries();
        let Some(slab) = entries.as_mut() else { return Err(thing) };
        let entry = slab.vacant_entry();
        let key = entry.key();
        if !prepare(key, &thing) {
            return Err(thing);
        }
        let (back, returned) = oneshot::channel();
        entry.insert(Entry { thing, back });
        Ok(Lent { lending: Arc::clone(self), key, back: returned })
    }

    /// For the thread: all that is lent, which nobody else touches meanwhile.
    pub fn serve(&self) -> Serving<'_, T, R> {
        Serving(self.entries())
    }

    /// The thread is gone: whom it served is told, and it is lent nothing any more.
    pub fn end(&self) {
        *self.entries() = None;
    }

    /// How much is lent now.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.entries().as_ref().map_or(0, Slab::len)
    }

    fn entries(&self) -> MutexGuard<'_, Option<Slab<Entry<T, R>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The table, locked by the thread.
pub struct Serving<'a, T, R>(MutexGuard<'a, Option<Slab<Entry<T, R>>>>);

impl<T, R> Serving<'_, T, R> {
    pub fn get(&self, key: usize) -> Option<&T> {
        Some(&self.0.as_ref()?.get(key)?.thing)
    }

    /// Gives it back, as what it has become. Where nobody waits any more that is dropped.
    pub fn give_back(&mut self, key: usize, become_returned: impl FnOnce(T) -> R) {
        if let Some(Entry { thing, back }) = self.0.as_mut().and_then(|slab| slab.try_remove(key)) {
            drop(back.send(become_returned(thing)));
        }
    }
}

/// Something that is lent. Dropped, it is taken away.
pub struct Lent<T, R> {
    lending: Arc<Lending<T, R>>,
    key: usize,
    back: oneshot::Receiver<R>,
}

impl<T, R> Lent<T, R> {
    /// Completes when it is given back; `None`: the thread is gone, and all that it had.
    pub async fn returned(mut self) -> Option<R> {
        (&mut self.back).await.ok()
    }
}

impl<T, R> Drop for Lent<T, R> {
    fn drop(&mut self) {
        let mut entries = self.lending.entries();
        // What is given back is sent while the table is locked: as long as nothing has come the key is this one's.
        if let (Some(slab), Err(TryRecvError::Empty)) = (entries.as_mut(), self.back.try_recv()) {
            drop(slab.try_remove(self.key));
        }
    }
}
