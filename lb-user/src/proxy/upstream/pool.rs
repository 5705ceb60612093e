//! Idle connections to one worker process, or to it for one client.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::address::Stream;
use crate::proxy::limits::{POOL_IDLE_MAX, POOL_IDLE_TIMEOUT};

#[derive(Default)]
pub struct Pool(Mutex<Vec<Idle>>);

struct Idle {
    stream: Stream,
    since: Instant,
}

impl Idle {
    /// Young, and the worker has neither closed it nor said anything unasked.
    fn is_usable(&self) -> bool {
        self.since.elapsed() < POOL_IDLE_TIMEOUT && self.stream.is_quiet()
    }
}

impl Pool {
    /// The connection that was used last, so that those in excess grow old.
    pub fn take(&self) -> Option<Stream> {
        let mut idle = self.idle();
        while let Some(last) = idle.pop() {
            if last.is_usable() {
                return Some(last.stream);
            }
        }
        None
    }

    pub fn put(&self, stream: Stream) {
        let mut idle = self.idle();
        if idle.len() < POOL_IDLE_MAX {
            idle.push(Idle { stream, since: Instant::now() });
        }
    }

    /// Closes what cannot be used any more.
    pub fn sweep(&self) {
        self.idle().retain(Idle::is_usable);
    }

    pub fn is_empty(&self) -> bool {
        self.idle().is_empty()
    }

    /// Connections that the next requests would find.
    #[cfg(test)]
    pub fn ready(&self) -> usize {
        self.idle().iter().filter(|idle| idle.is_usable()).count()
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
