//! Worker processes: starting, watching, killing and adopting them, what they listen on, and asking
//! whether they answer. Nothing here decides anything; `control` does.

mod account;
pub mod cgroup;
pub mod entrance;
mod limits;
pub mod listener;
pub mod memory;
pub mod port;
pub mod probe;
pub mod process;
mod procfs;
pub mod program;
pub mod socket;
pub mod spawn;
#[cfg(test)]
pub(crate) mod testing;

pub use entrance::Entrance;
pub use listener::Listener;
pub use process::{Exit, Kin, Process};
pub use procfs::leftovers;
pub use rustix::process::Signal;
pub use spawn::{Spawned, Spec, spawn};
