//! What the end-to-end tests share.

pub mod browser;
pub mod certificate;
pub mod example;
pub mod forged;
pub mod frames;
pub mod groups;
pub mod hosts;
pub mod instance;
pub mod machine;
pub mod network;
pub mod packets;
pub mod peers;
pub mod promtool;
pub mod raw;
pub mod round_robin;
pub mod session;
pub mod shiny;
pub mod site;
pub mod skips;
pub mod slow;
pub mod wire;
