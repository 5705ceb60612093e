//! The control socket: what `homing status`, `trace` and `stop` ask of a running homing, and how.
//!
//! HTTP with JSON over a unix socket of mode 0600. It answers from what control tells it and decides nothing.

pub mod client;
pub mod report;
pub mod server;
