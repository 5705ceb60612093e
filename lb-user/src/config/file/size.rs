//! Sizes in bytes, with their unit: text in, a number or what is wrong with the text out.

use super::reader::shown;

const UNITS: &[(&str, u64)] = &[
    ("B", 1),
    ("KB", 1_000),
    ("KiB", 1 << 10),
    ("MB", 1_000_000),
    ("MiB", 1 << 20),
    ("GB", 1_000_000_000),
    ("GiB", 1 << 30),
    ("TB", 1_000_000_000_000),
    ("TiB", 1 << 40),
];

/// Reads "64MiB", "2GB", "512 KiB".
pub(super) fn bytes(text: &str, min: u64, max: u64) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    if !number.is_empty() && unit.is_empty() {
        return Err(format!("needs a unit; write \"{}MiB\" (or B, KiB, GiB, KB, MB, GB)", shown(number)));
    }
    let scale = UNITS.iter().find(|(name, _)| *name == unit.trim_start()).map(|(_, scale)| *scale);
    let (Some(scale), false) = (scale, number.is_empty()) else {
        return Err(format!(
            "must be a whole number and a unit (B, KiB, MiB, GiB, KB, MB, GB), such as \"64MiB\", not `{}`",
            shown(text)
        ));
    };
    match number.parse::<u64>().ok().and_then(|number| number.checked_mul(scale)) {
        Some(bytes) if (min..=max).contains(&bytes) => Ok(bytes),
        _ => Err(format!("must be from {} to {}, not `{}`", in_units(min), in_units(max), shown(text))),
    }
}

/// In the largest unit that leaves no fraction.
fn in_units(bytes: u64) -> String {
    let fitting = UNITS.iter().rev().find(|(_, scale)| bytes != 0 && bytes.is_multiple_of(*scale));
    fitting.map_or_else(|| "0B".to_owned(), |(unit, scale)| format!("{}{unit}", bytes / scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_of_a_thousand_and_of_1024() {
        for (text, expected) in
            [("64MiB", 64 << 20), ("2GB", 2_000_000_000), ("512 KiB", 512 << 10), ("65536B", 65_536), ("1TiB", 1 << 40)]
        {
            assert_eq!(bytes(text, 1, u64::MAX), Ok(expected));
        }
    }

    #[test]
    fn what_is_no_size_or_out_of_bounds_is_told_so() {
        let told = |text: &str| bytes(text, 64 << 10, 64 << 30).expect_err("it is wrong");
        assert_eq!(told("64"), "needs a unit; write \"64MiB\" (or B, KiB, GiB, KB, MB, GB)");
        for text in ["", "MiB", "64mib", "-1MiB", "1.5GiB", "64 M"] {
            assert!(told(text).starts_with("must be a whole number and a unit"), "{text}: {}", told(text));
        }
        for text in ["1KiB", "1TiB", "99999999999999999999GiB", "18446744073709551615GiB"] {
            assert_eq!(told(text), format!("must be from 64KiB to 64GiB, not `{text}`"));
        }
    }
}
