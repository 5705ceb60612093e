//! The control socket: what `homing status`, `trace` and `stop` ask of a running homing, and how.
//!
//! HTTP with JSON over a unix socket of mode 0600. It answers from what control tells it and decides nothing.

pub mod client;
pub mod report;
#[cfg(test)]
mod schema;
pub mod server;

/// What is said of a name that no app has.
pub fn unknown_app<'a>(name: &str, there: impl Iterator<Item = &'a str>) -> String {
    format!("no app is called {name:?}; there are: {}", there.collect::<Vec<_>>().join(", "))
}
