//! homing's control plane, kernel-path loader and HTTP path; the `homing` binary is a thin `main` around it.

pub mod access;
pub mod address;
pub mod admin;
pub mod bindings;
pub mod cli;
pub mod config;
pub mod control;
pub mod datapath;
pub mod demo;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod gather;
mod introduction;
pub mod live;
pub mod metrics;
pub mod output;
mod privileges;
pub mod proxy;
pub mod routing;
pub mod spans;
mod sync;
mod sys;
pub mod tls;
mod trouble;
pub mod worker;
