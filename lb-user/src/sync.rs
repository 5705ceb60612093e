//! What hand-made synchronisation is made of. `tests/synchronisation.rs` has the same names from a scheduler that tries many
//! orders, and the same files on top of them.

pub use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering, fence};
pub use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use tokio::sync::Notify;
