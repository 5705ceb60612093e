//! What one at a time does for all who ask, and does once more where somebody has asked since it began.

use crate::sync::{AtomicU8, Ordering};

/// Nobody is at it.
const IDLE: u8 = 0;
/// Somebody is, for all who have asked.
const BUSY: u8 = 1;
/// … and somebody has asked since.
const BEHIND: u8 = 2;

/// Whether it is being done.
#[derive(Default)]
pub struct Chore(AtomicU8);

impl Chore {
    /// Asks for it, when what it finds is there. Whether it is for the caller to have it done, by [`Self::work`].
    pub fn falls_to_who_asks(&self) -> bool {
        self.0.swap(BEHIND, Ordering::SeqCst) == IDLE
    }

    /// Does it until nobody has asked for more.
    pub fn work(&self, mut once: impl FnMut()) {
        loop {
            // Whoever asks from here on may come too late for this time.
            self.0.store(BUSY, Ordering::SeqCst);
            once();
            if self.0.compare_exchange(BUSY, IDLE, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                return;
            }
        }
    }

    /// Whether all that was asked for is done.
    pub fn is_done(&self) -> bool {
        self.0.load(Ordering::SeqCst) == IDLE
    }
}
