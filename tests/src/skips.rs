//! What a test cannot do here, told to `cargo xtask test`, which counts it; libtest knows only tests that passed.

use std::fs::OpenOptions;
use std::io::Write as _;

/// Names the file that is told. By hand there is none.
pub const FILE: &str = "HOMING_SKIPS";

/// Nothing of the test can be done: it counts as skipped in place of passed.
pub fn skip(why: &str) {
    tell("all", why);
}

/// A part of the test cannot be done: it counts as skipped beside what passed.
pub fn skip_part(why: &str) {
    tell("part", why);
}

fn tell(how_much: &str, why: &str) {
    eprintln!("SKIPPED: {why}");
    let Some(file) = std::env::var_os(FILE) else { return };
    let thread = std::thread::current();
    // Of one piece, since tests do this side by side.
    let line = format!("{how_much}\t{}: {}\n", thread.name().unwrap_or("a test"), why.replace('\n', " "));
    let told = OpenOptions::new().create(true).append(true).open(file);
    told.and_then(|mut file| file.write_all(line.as_bytes())).expect("a skip can be told");
}
