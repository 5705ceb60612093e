//! Single values: text in, a value or what is wrong with the text out. Complaints are made to follow the key's name.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::reader::shown;
use crate::config::isolation::SIZE_UNITS;

pub(super) const NAME_CHARS_MAX: usize = 64;
const UNITS: &[(&str, u64)] = &[("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// A size that makes sense for a key.
pub(super) struct Sizes {
    /// As they are written in the configuration, and in complaints.
    pub(super) least: &'static str,
    pub(super) most: &'static str,
    /// What a number without a unit may have meant, beside MiB.
    pub(super) units: &'static str,
}

/// An app's name: it becomes part of file names, addresses of the control API and commands.
pub(super) fn name(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    if (1..=NAME_CHARS_MAX).contains(&text.len()) && text.chars().all(allowed) {
        return Ok(text.to_owned());
    }
    Err(format!("must be 1 to {NAME_CHARS_MAX} characters of a-z, 0-9, _ and -, not `{}`", shown(text)))
}

/// A path; relative ones start from `base`.
pub(super) fn path(text: &str, base: &Path) -> Result<PathBuf, String> {
    if text.is_empty() {
        return Err("must not be empty; give a path, or remove the line".to_owned());
    }
    if text.contains('\0') {
        return Err("must not contain a NUL character".to_owned());
    }
    if text == "~" || text.starts_with("~/") {
        return Err(format!("must be a full path: `~` is not expanded in `{}`", shown(text)));
    }
    Ok(base.join(text))
}

/// What a text says of an amount.
enum Amount {
    /// In the smallest unit; nothing where that is beyond all bounds.
    Scaled(Option<u64>),
    WithoutUnit,
    Unreadable,
}

/// Reads a whole number and one of these units.
fn amount(text: &str, units: &[(&str, u64)]) -> Amount {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    match units.iter().find(|(name, _)| *name == unit.trim_start()) {
        _ if number.is_empty() => Amount::Unreadable,
        _ if unit.is_empty() => Amount::WithoutUnit,
        Some((_, scale)) => Amount::Scaled(number.parse().ok().and_then(|number: u64| number.checked_mul(*scale))),
        None => Amount::Unreadable,
    }
}

/// Reads "60s", "15m", "3h", "500ms".
pub(crate) fn duration(text: &str, min: Duration, max: Duration) -> Result<Duration, String> {
    let millis = match amount(text, UNITS) {
        Amount::Scaled(millis) => millis,
        Amount::WithoutUnit => {
            return Err(format!("needs a unit; write \"{0}s\" for seconds (or ms, m, h, d)", shown(text)));
        }
        Amount::Unreadable => {
            return Err(format!(
                "must be a whole number and a unit (ms, s, m, h, d), such as \"60s\", \"15m\" or \"3h\", not `{}`",
                shown(text)
            ));
        }
    };
    match millis.map(Duration::from_millis) {
        Some(duration) if (min..=max).contains(&duration) => Ok(duration),
        _ => Err(format!("must be from {} to {}, not `{}`", in_units(min), in_units(max), shown(text))),
    }
}

/// In the largest unit that leaves no fraction.
fn in_units(duration: Duration) -> String {
    let millis = duration.as_millis();
    let fitting = UNITS.iter().rev().find(|(_, scale_ms)| millis != 0 && millis.is_multiple_of(u128::from(*scale_ms)));
    fitting.map_or_else(|| "0s".to_owned(), |(unit, scale_ms)| format!("{}{unit}", millis / u128::from(*scale_ms)))
}

/// Reads "2GiB", "512MB", "0".
pub(super) fn size(text: &str, sizes: &Sizes) -> Result<u64, String> {
    let Sizes { least, most, units } = sizes;
    let bytes = match bytes(text) {
        Amount::Scaled(bytes) => bytes,
        Amount::WithoutUnit => return Err(format!("needs a unit; write \"{0}MiB\" (or {units})", shown(text))),
        Amount::Unreadable => {
            return Err(format!(
                "must be a whole number and a unit (MiB, GiB, TiB; MB, GB, TB), such as \"512MiB\" or \"2GiB\", not `{}`",
                shown(text)
            ));
        }
    };
    let bound = |text| match self::bytes(text) {
        Amount::Scaled(Some(bytes)) => bytes,
        _ => unreachable!("the bounds of every key are sizes"),
    };
    bytes
        .filter(|bytes| (bound(least)..=bound(most)).contains(bytes))
        .ok_or_else(|| format!("must be from {least} to {most}, not `{}`", shown(text)))
}

fn bytes(text: &str) -> Amount {
    if text == "0" { Amount::Scaled(Some(0)) } else { amount(text, &SIZE_UNITS) }
}

/// One of these words.
pub(super) fn choice<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, String> {
    if let Some((_, value)) = choices.iter().find(|(word, _)| *word == text) {
        return Ok(*value);
    }
    let words: Vec<String> = choices.iter().map(|(word, _)| format!("\"{word}\"")).collect();
    let words = match words.split_last() {
        Some((last, others)) if !others.is_empty() => format!("{} or {last}", others.join(", ")),
        _ => words.join(""),
    };
    Err(format!("must be {words}, not `{}`", shown(text)))
}

/// A cookie's name: a token (RFC 6265, section 4.1.1).
pub(super) fn cookie_name(text: &str) -> Result<String, String> {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    if (1..=NAME_CHARS_MAX).contains(&text.len()) && text.chars().all(is_token) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "must be 1 to {NAME_CHARS_MAX} letters, digits or characters of !#$%&'*+-.^_`|~ (RFC 6265), not `{}`",
        shown(text)
    ))
}

/// The path of a health check, with a query or without.
pub(super) fn health_path(text: &str) -> Result<String, String> {
    let understood = text.parse::<http::uri::PathAndQuery>().is_ok_and(|path| path.as_str() == text);
    if text.starts_with('/') && understood {
        return Ok(text.to_owned());
    }
    Err(format!("must be a path such as \"/\" or \"/health\", percent-encoded, not `{}`", shown(text)))
}

/// The name of a user or a group, whom the machine is asked for.
pub(super) fn account<T>(
    name: &str,
    what: &str,
    look_up: impl FnOnce(&str) -> nix::Result<Option<T>>,
) -> Result<String, String> {
    if name.is_empty() || name.contains('\0') {
        return Err(format!("must be the name of a {what}"));
    }
    match look_up(name) {
        Ok(None) => Err(format!("`{}` is not on this machine; create that {what}, or correct the name", shown(name))),
        // When the database cannot be asked, starting the worker will tell.
        Ok(Some(_)) | Err(_) => Ok(name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: Sizes = Sizes { least: "1 B", most: "16777215 TiB", units: "" };
    const LOGS: Sizes = Sizes { least: "64KiB", most: "64GiB", units: "B, KiB, GiB, KB, MB, GB" };

    #[test]
    fn sizes_have_units_of_a_thousand_and_of_1024() {
        for (text, expected) in
            [("64MiB", 64 << 20), ("2GB", 2_000_000_000), ("512 KiB", 512 << 10), ("65536B", 65_536), ("1TiB", 1 << 40)]
        {
            assert_eq!(size(text, &ANY), Ok(expected));
        }
    }

    #[test]
    fn what_is_no_size_or_out_of_bounds_is_told_so() {
        let told = |text: &str| size(text, &LOGS).expect_err("it is wrong");
        assert_eq!(told("64"), "needs a unit; write \"64MiB\" (or B, KiB, GiB, KB, MB, GB)");
        for text in ["", "MiB", "64mib", "-1MiB", "1.5GiB", "64 M"] {
            assert!(told(text).starts_with("must be a whole number and a unit"), "{text}: {}", told(text));
        }
        for text in ["1KiB", "1TiB", "99999999999999999999GiB", "18446744073709551615GiB"] {
            assert_eq!(told(text), format!("must be from 64KiB to 64GiB, not `{text}`"));
        }
    }
}
