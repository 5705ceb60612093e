//! Single values: text in, a value or what is wrong with the text out. Complaints are made to follow the key's name.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::reader::shown;
use crate::config::isolation::{SIZE_UNITS, size_in_words};

pub(super) const NAME_CHARS_MAX: usize = 64;
const UNITS: &[(&str, u64)] = &[("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

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

/// Reads "60s", "15m", "3h", "500ms".
pub(super) fn duration(text: &str, min: Duration, max: Duration) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    if !number.is_empty() && unit.is_empty() {
        return Err(format!("needs a unit; write \"{0}s\" for seconds (or ms, m, h, d)", shown(number)));
    }
    let scale_ms = UNITS.iter().find(|(name, _)| *name == unit.trim_start()).map(|(_, scale_ms)| *scale_ms);
    let (Some(scale_ms), false) = (scale_ms, number.is_empty()) else {
        return Err(format!(
            "must be a whole number and a unit (ms, s, m, h, d), such as \"60s\", \"15m\" or \"3h\", not `{}`",
            shown(text)
        ));
    };
    let millis = number.parse::<u64>().ok().and_then(|number| number.checked_mul(scale_ms));
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
pub(super) fn size(text: &str, bounds: &RangeInclusive<u64>) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let is_zero = number == "0";
    if !number.is_empty() && unit.is_empty() && !is_zero {
        return Err(format!("needs a unit; write \"{0}MiB\" (or GiB, TiB, KiB, B)", shown(number)));
    }
    let scale = SIZE_UNITS.iter().find(|(name, _)| *name == unit.trim_start()).map(|(_, scale)| *scale);
    let (Some(scale), false) = (scale.or(is_zero.then_some(1)), number.is_empty()) else {
        return Err(format!(
            "must be a whole number and a unit (MiB, GiB, TiB; MB, GB, TB), such as \"512MiB\" or \"2GiB\", not `{}`",
            shown(text)
        ));
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(scale));
    bytes.filter(|bytes| bounds.contains(bytes)).ok_or_else(|| {
        let (low, high) = (size_in_words(*bounds.start()), size_in_words(*bounds.end()));
        format!("must be from {low} to {high}, not `{}`", shown(text))
    })
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
