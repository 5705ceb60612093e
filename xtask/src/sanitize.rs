//! `cargo xtask sanitize`: homing's unit tests under AddressSanitizer, with what C is linked into it: ring's, which sees the bytes of
//! whoever opens TLS. Not for ring's assembly, which no sanitizer looks into.

use crate::run::{at_root, host, run, target_dir};
use crate::setup;

/// The C is watched for undefined behaviour, too, and traps there: who tells of it more nicely is not linked.
const C: &str = "-fsanitize=address -fsanitize=undefined -fsanitize-undefined-trap-on-error -fno-omit-frame-pointer -g";
/// Tests leave some things to the end of their process on purpose.
const RUN_TIME: &str = "detect_leaks=0:abort_on_error=1";

#[derive(clap::Args)]
pub struct Options {
    /// Only tests whose name contains one of these.
    filter: Vec<String>,
}

pub fn sanitize(options: &Options) -> anyhow::Result<()> {
    setup::build_tools()?;
    let host = host()?;
    // Named, so that build scripts and macros are not watched.
    let mut command = at_root("cargo", ["test", "--package", "homing", "--lib", "--target", &host]);
    command.arg("--").args(&options.filter);
    command.env("CARGO_TARGET_DIR", target_dir().join("sanitize"));
    // The run time comes with every compiler; only the option that links it wants a nightly one.
    command.env("RUSTC_BOOTSTRAP", "1").env("CARGO_ENCODED_RUSTFLAGS", "-Zsanitizer=address");
    command.env(format!("CFLAGS_{}", host.replace('-', "_")), C);
    run(command.env("ASAN_OPTIONS", RUN_TIME))
}
