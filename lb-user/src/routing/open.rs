//! What a worker has open, and the call to who waits for less of it.

use crate::sync::{AtomicBool, AtomicU32, Notify, Ordering, fence};

/// Requests and tunnels in flight at one worker.
#[derive(Default)]
pub struct Open {
    count: AtomicU32,
    /// Somebody waits for [`Self::fewer`].
    watched: AtomicBool,
    fewer: Notify,
}

impl Open {
    /// How many there are; they come and go meanwhile.
    pub fn count(&self) -> u32 {
        self.count.load(Ordering::Relaxed)
    }

    pub fn begin(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// One that was begun has ended: who watches is told.
    pub fn end(&self) {
        // Counted before it is looked who watches, and there the other way round, in one order for all threads: either this
        // one sees who watches, or who watches sees the count.
        self.count.fetch_sub(1, Ordering::SeqCst);
        if self.watched.load(Ordering::SeqCst) {
            self.fewer.notify_one();
        }
    }

    /// From now on ends are told. One at a time watches.
    pub fn watch(&self) {
        self.watched.store(true, Ordering::SeqCst);
        // What is counted is read after that, on machines that would read it before, too.
        fence(Ordering::SeqCst);
    }

    pub fn unwatch(&self) {
        self.watched.store(false, Ordering::SeqCst);
    }

    /// Completes when one has ended since it was first watched, or since this last completed.
    pub async fn fewer(&self) {
        self.fewer.notified().await;
    }
}
