//! How much of workers' output is kept: `log_max_size`, `log_max_age` and `log_keep` of `[homing]`.

use std::time::Duration;

use super::reader::Table;
use super::value::{self, Sizes};
use crate::output::Limits;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// A file is made shorter by whole blocks of its file system, so that much less makes no sense.
const SIZE: Sizes = Sizes { least: "64KiB", most: "64GiB", units: "B, KiB, GiB, KB, MB, GB" };
const AGE_MIN: Duration = Duration::from_secs(60);
const AGE_MAX: Duration = DAY.saturating_mul(3650);
const KEEP_MAX: u32 = 1_000;

pub const DEFAULT: Limits = Limits { size_max: 64 << 20, age_max: DAY.saturating_mul(7), keep: 5 };

pub(super) fn limits(table: &Table<'_>) -> Limits {
    let age = |text: &str| match text.parse::<u64>() {
        Ok(days) => Err(format!("needs a unit; write \"{days}d\" for days (or s, m, h)")),
        Err(_) => value::duration(text, AGE_MIN, AGE_MAX),
    };
    let size = table.amount("log_max_size", |text| value::size(text, &SIZE));
    let age = table.amount("log_max_age", age);
    let keep = table.number("log_keep", 0, KEEP_MAX);
    Limits {
        size_max: size.map_or(DEFAULT.size_max, |given| given.value),
        age_max: age.map_or(DEFAULT.age_max, |given| given.value),
        keep: keep.map_or(DEFAULT.keep, |given| given.value),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{APP, complaints};

    #[test]
    fn each_mistake_is_told_with_what_to_write() {
        for (line, complaint) in [
            ("log_max_size = 64", "16: `log_max_size` needs a unit; write \"64MiB\" (or B, KiB, GiB, KB, MB, GB)"),
            ("log_max_size = \"1KiB\"", "16: `log_max_size` must be from 64KiB to 64GiB, not `1KiB`"),
            ("log_max_age = 7", "15: `log_max_age` needs a unit; write \"7d\" for days (or s, m, h)"),
            ("log_max_age = \"1s\"", "15: `log_max_age` must be from 1m to 3650d, not `1s`"),
            ("log_keep = -1", "12: `log_keep` must be from 0 to 1000"),
            ("log_keep = \"5\"", "12: `log_keep` must be a whole number from 0 to 1000, not a string"),
            ("log_max_sise = \"1MiB\"", "1: unknown key `log_max_sise` in homing; did you mean `log_max_size`?"),
        ] {
            let text = format!("[homing]\n{line}\n{APP}");
            assert_eq!(complaints(&text), [format!("homing.toml:2:{complaint}")], "{line}");
        }
    }
}
