//! Which worker a Shiny session lives in, as its WebSocket said (`learn`): for users whose browsers keep no cookies.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use lb_common::abi::BackendId;
use lru::LruCache;

use super::limits::{SESSION_LINGER, SESSIONS_MAX};

/// Sessions of all apps. What is kept is a keyed hash of each id, 128 bits of it: ids are as good as passwords.
pub struct Sessions {
    table: Mutex<LruCache<u128, Entry>>,
    hashers: [RandomState; 2],
}

struct Entry {
    backend: BackendId,
    /// Its WebSocket has ended.
    ended: Option<Instant>,
}

/// A session whose WebSocket is open.
pub struct Living {
    sessions: Arc<Sessions>,
    key: u128,
}

impl Default for Sessions {
    fn default() -> Self {
        // Unbounded for the crate, bounded in `learn`: a bounded cache would allocate its whole table at once.
        Self { table: Mutex::new(LruCache::unbounded()), hashers: [RandomState::new(), RandomState::new()] }
    }
}

impl Sessions {
    /// The session lives there until the value is dropped, and for [`SESSION_LINGER`] more.
    pub fn learn(self: &Arc<Self>, app: u32, id: &str, backend: BackendId) -> Living {
        let key = self.key(app, id);
        let mut table = self.table();
        table.put(key, Entry { backend, ended: None });
        if table.len() > SESSIONS_MAX {
            table.pop_lru();
        }
        Living { sessions: Arc::clone(self), key }
    }

    pub fn find(&self, app: u32, id: &str, now: Instant) -> Option<BackendId> {
        let key = self.key(app, id);
        let mut table = self.table();
        let entry = table.get(&key)?;
        if entry.ended.is_some_and(|ended| now.duration_since(ended) > SESSION_LINGER) {
            table.pop(&key);
            return None;
        }
        Some(entry.backend)
    }

    fn key(&self, app: u32, id: &str) -> u128 {
        let [high, low] = self.hashers.each_ref().map(|hasher| u128::from(hasher.hash_one((app, id))));
        (high << 64) | low
    }

    fn table(&self) -> MutexGuard<'_, LruCache<u128, Entry>> {
        // A panic between two operations cannot leave half an entry.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Living {
    fn drop(&mut self) {
        if let Some(entry) = self.sessions.table().peek_mut(&self.key) {
            entry.ended = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_session_is_found_while_it_lives_and_shortly_after() {
        let sessions = Arc::new(Sessions::default());
        let living = sessions.learn(1, "abc", BackendId::new(3, 1));
        let later = |seconds| Instant::now() + Duration::from_secs(seconds);
        assert_eq!(sessions.find(1, "abc", later(1_000_000)), Some(BackendId::new(3, 1)));
        assert_eq!(sessions.find(2, "abc", later(0)), None, "another app's");
        assert_eq!(sessions.find(1, "abd", later(0)), None);
        drop(living);
        assert_eq!(sessions.find(1, "abc", later(1)), Some(BackendId::new(3, 1)));
        assert_eq!(sessions.find(1, "abc", later(3_600)), None);
    }

    #[test]
    fn the_table_is_bounded() {
        let sessions = Arc::new(Sessions::default());
        let living: Vec<_> =
            (0..=SESSIONS_MAX).map(|n| sessions.learn(1, &n.to_string(), BackendId::new(1, 1))).collect();
        assert_eq!(sessions.table().len(), SESSIONS_MAX);
        assert_eq!(sessions.find(1, "0", Instant::now()), None, "the one asked for longest ago is forgotten");
        drop(living);
    }
}
