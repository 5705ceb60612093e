//! homing's decisions, shared by the kernel programs and user space: bytes in, a decision out.
//!
//! Nothing here does I/O, reads a clock, draws a random number or knows of aya. What the kernel runs is
//! what the tests, the proxy and `homing trace` run.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

#[cfg(feature = "alloc")]
extern crate alloc;

pub mod abi;
pub mod addr;
pub mod affinity;
pub mod checksum;
pub mod encap;
pub mod guard;
pub mod hash;
#[cfg(feature = "alloc")]
pub mod maglev;
pub mod parse;
pub mod synack;
pub mod tap;
