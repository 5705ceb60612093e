//! Builds lb-ebpf with whatever suitable Rust toolchain this machine has, and says exactly what is missing if none.
//!
//! An eBPF build needs three things that a default Rust installation lacks: the standard library's sources (`core` is
//! compiled for the BPF target), permission to use `-Z build-std` on a stable compiler, and `bpf-linker`. This crate
//! finds the first and the last and grants the second. It installs nothing: `cargo xtask setup` does. It has no
//! dependencies, because every build of `homing` waits for it.

mod compile;
mod discover;
mod embed;

pub use compile::{Built, build};
pub use discover::{LLVM_MAJOR, Missing, Need, TOOLS_DIR, Toolchain, discover};
pub use embed::embed;
