//! What the end-to-end tests share.

pub mod browser;
pub mod local;
pub mod packets;
pub mod round_robin;
