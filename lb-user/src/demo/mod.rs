//! The demo: a small stateful app that is built in, clients that test its stickiness, and a picture of what they saw.
//!
//! The clients are also what the end-to-end tests drive real apps with. Nothing here is part of serving.

pub mod app;
pub mod client;
pub mod picture;
