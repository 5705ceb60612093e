//! Writes the packets of `homing_tests::packets` into a folder, a file each, for `cargo xtask fuzz` to begin with.

use std::path::PathBuf;

use anyhow::Context as _;
use homing_tests::packets::fixtures;

fn main() -> anyhow::Result<()> {
    let folder = PathBuf::from(std::env::args_os().nth(1).context("a folder is named")?);
    for (number, fixture) in fixtures().iter().enumerate() {
        std::fs::write(folder.join(format!("fixture-{number:03}")), &fixture.bytes)?;
    }
    Ok(())
}
