//! Tables of a TOML document, read key by key: whatever is wrong is noted with its place, and reading goes on.

use std::cell::RefCell;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{self, Keys};

/// Values longer than this are cut in messages.
const SHOWN_CHARS_MAX: usize = 60;
/// A known name is offered for an unknown one when no more than one letter in three differs.
const LETTERS_PER_TYPO: usize = 3;

/// Something wrong, and where.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) span: Range<usize>,
    pub(super) message: String,
    /// It is about something that is not there.
    pub(super) absence: bool,
}

#[derive(Debug, Default)]
pub(super) struct Report(RefCell<Vec<Finding>>);

impl Report {
    pub(super) fn into_findings(self) -> Vec<Finding> {
        self.0.into_inner()
    }

    fn add(&self, span: Range<usize>, message: String, absence: bool) {
        self.0.borrow_mut().push(Finding { span, message, absence });
    }
}

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Given<T> {
    pub(super) value: T,
    pub(super) span: Range<usize>,
}

/// One table of the document.
pub(super) struct Table<'a> {
    /// As it is written in the file, for messages.
    name: &'a str,
    table: &'a DeTable<'a>,
    span: Range<usize>,
    report: &'a Report,
}

impl<'a> Table<'a> {
    pub(super) fn top(table: &'a DeTable<'a>, report: &'a Report) -> Self {
        Table { name: "the file", table, span: 0..0, report }
    }

    pub(super) fn inner(&self, name: &'a str, table: &'a DeTable<'a>, span: Range<usize>) -> Self {
        Table { name, table, span, report: self.report }
    }

    /// Complains of every key but these.
    pub(super) fn know(&self, keys: Keys) {
        let known: Vec<&str> = keys.iter().map(|key| keys::name(key)).collect();
        for key in self.table.keys() {
            let name = key.get_ref().as_ref();
            if !known.contains(&name) {
                let (shown, place) = (shown(name), self.name);
                let remedy = match nearest(name, known.iter().copied()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("known are {}", listed(&known)),
                };
                self.wrong(key.span(), format!("unknown key `{shown}` in {place}; {remedy}"));
            }
        }
    }

    pub(super) fn wrong(&self, span: Range<usize>, message: impl Into<String>) {
        self.report.add(span, message.into(), false);
    }

    /// Something that the table lacks.
    pub(super) fn absent(&self, message: impl Into<String>) {
        self.report.add(self.span.clone(), message.into(), true);
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    pub(super) fn value(&self, key: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.table.get(key)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (Given<&'a str>, &'a Spanned<DeValue<'a>>)> {
        self.table.iter().map(|(key, value)| (Given { value: key.get_ref().as_ref(), span: key.span() }, value))
    }

    pub(super) fn table(&self, key: &'static str) -> Option<Table<'a>> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::Table(table) => Some(self.inner(key, table, value.span())),
            other => {
                self.wrong(value.span(), format!("`{key}` must be a table, not {}", kind(other)));
                None
            }
        }
    }

    /// As [`Self::table`]; that it is none is complained of elsewhere.
    pub(super) fn silent_table(&self, key: &'static str) -> Option<Table<'a>> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::Table(table) => Some(self.inner(key, table, value.span())),
            _ => None,
        }
    }

    /// A string, to be understood by `parse`, whose complaint is put after the key.
    pub(super) fn parsed<T>(&self, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<Given<T>> {
        self.understood(key, |value| parse(text(value)?))
    }

    /// As [`Self::parsed`], for what has a unit: of a bare number, too, `parse` says which one it lacks.
    pub(super) fn amount<T>(&self, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<Given<T>> {
        self.understood(key, |value| match value {
            DeValue::Integer(digits) => parse(&digits.to_string()),
            other => parse(text(other)?),
        })
    }

    fn understood<T>(&self, key: &str, understand: impl FnOnce(&DeValue<'_>) -> Result<T, String>) -> Option<Given<T>> {
        let value = self.value(key)?;
        let span = value.span();
        match understand(value.get_ref()) {
            Ok(value) => Some(Given { value, span }),
            Err(message) => {
                self.wrong(span, format!("`{key}` {message}"));
                None
            }
        }
    }

    /// A list of one string or more; what is no string is complained of and left out.
    pub(super) fn strings(&self, key: &str, example: &str) -> Option<Vec<Given<&'a str>>> {
        let value = self.value(key)?;
        let DeValue::Array(entries) = value.get_ref() else {
            let kind = kind(value.get_ref());
            self.wrong(value.span(), format!("`{key}` must be a list of strings, not {kind}; write {key} = {example}"));
            return None;
        };
        if entries.is_empty() {
            self.wrong(value.span(), format!("`{key}` is empty; write {key} = {example}"));
        }
        let mut strings = Vec::new();
        for entry in entries.iter() {
            match entry.get_ref() {
                DeValue::String(text) => strings.push(Given { value: text.as_ref(), span: entry.span() }),
                other => {
                    let kind = kind(other);
                    self.wrong(entry.span(), format!("`{key}` must hold strings only, not {kind}; put it in quotes"));
                }
            }
        }
        Some(strings)
    }

    /// Where the first entry of a list begins.
    pub(super) fn first_of(&self, key: &str) -> Option<usize> {
        match self.value(key)?.get_ref() {
            DeValue::Array(entries) => entries.iter().next().map(|first| first.span().start),
            _ => None,
        }
    }

    /// True or false.
    pub(super) fn flag(&self, key: &str) -> Option<Given<bool>> {
        self.understood(key, |value| match value {
            DeValue::Boolean(value) => Ok(*value),
            other => Err(format!("must be true or false, not {}", kind(other))),
        })
    }

    /// A whole number from `min` to `max`.
    pub(super) fn number(&self, key: &str, min: u32, max: u32) -> Option<Given<u32>> {
        let value = self.value(key)?;
        let span = value.span();
        let DeValue::Integer(digits) = value.get_ref() else {
            let kind = kind(value.get_ref());
            self.wrong(span, format!("`{key}` must be a whole number from {min} to {max}, not {kind}"));
            return None;
        };
        match u32::from_str_radix(digits.as_str().trim_start_matches('+'), digits.radix()) {
            Ok(value) if (min..=max).contains(&value) => Some(Given { value, span }),
            _ => {
                self.wrong(span, format!("`{key}` must be from {min} to {max}"));
                None
            }
        }
    }

    /// A number from 0 to 1.
    pub(super) fn fraction(&self, key: &str) -> Option<f64> {
        let value = self.value(key)?;
        let number = match value.get_ref() {
            DeValue::Float(text) => text.as_str().parse::<f64>().ok(),
            DeValue::Integer(text) => text.as_str().parse::<f64>().ok(),
            _ => None,
        };
        let given = number.filter(|number| (0.0..=1.0).contains(number));
        if given.is_none() {
            self.wrong(value.span(), format!("`{key}` must be a number from 0 to 1, such as 0.05"));
        }
        given
    }
}

fn text<'v>(value: &'v DeValue<'_>) -> Result<&'v str, String> {
    match value {
        DeValue::String(text) => Ok(text),
        other => Err(format!("must be a string in quotes, not {}", kind(other))),
    }
}

/// What a value is, with its article.
pub(super) fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// A value as messages show it: on one line, and not longer than makes sense.
pub(super) fn shown(text: &str) -> String {
    let clean = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut shown: String = text.chars().take(SHOWN_CHARS_MAX).map(clean).collect();
    if text.chars().nth(SHOWN_CHARS_MAX).is_some() {
        shown.push('…');
    }
    shown
}

/// The one that was probably meant.
pub(crate) fn nearest<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    // Distances grow with the square of the length, and no key is that long.
    if name.chars().nth(SHOWN_CHARS_MAX).is_some() {
        return None;
    }
    known
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len() / LETTERS_PER_TYPO).max(1))
        .min()
        .map(|(_, candidate)| candidate)
}

fn listed(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
