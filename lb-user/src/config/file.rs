//! The configuration file: TOML text in, resolved types or all of its errors out. It looks at the machine only to say
//! early what would fail later: whether directories, commands, users and certificates are there.

mod app;
mod backends;
mod command;
mod cookie;
mod entrance;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod homing;
mod http;
mod isolation;
mod keys;
mod listen;
mod metrics;
mod output;
mod protect;
mod reader;
mod route;
mod tls;
mod value;

use std::fs::File;
use std::io::{self, Read};
use std::path::{self, Path};

use toml::de::{DeTable, DeValue};

use self::app::Apps;
pub use self::output::DEFAULT as DEFAULT_OUTPUT;
pub(crate) use self::reader::nearest;
use self::reader::{Report, Table};
pub(crate) use self::value::duration;
use super::location::place;
use super::{Config, Errors, Problem};

/// Far beyond the largest configuration; a log or a device given by mistake is refused rather than read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Errors told at once. More come only from a file of another kind.
const TOLD_MAX: usize = 100;

/// Reads the file. Relative paths in it start from the directory it is in.
pub fn load(path: &Path) -> Result<Config, Errors> {
    let name = path.display().to_string();
    let whole = |message: String| Errors(vec![Problem { file: name.clone(), place: None, message }]);
    let text =
        read(path).map_err(|error| whole(format!("cannot be read: {error}; give another file with --config")))?;
    let base = path.parent().unwrap_or(Path::new(""));
    parse(&text, &name, base)
}

/// Reads a configuration from text. `name` is what messages call the file, `base` where relative paths start.
pub fn parse(text: &str, name: &str, base: &Path) -> Result<Config, Errors> {
    let (document, syntax_errors) = DeTable::parse_recoverable(text);
    let report = Report::default();
    let base = path::absolute(if base.as_os_str().is_empty() { Path::new(".") } else { base });
    let base = base.unwrap_or_else(|_| Path::new("/").to_owned());
    let config = config(&Table::top(document.get_ref(), &report), &base);
    let findings = report.into_findings();
    match config {
        Some(config) if syntax_errors.is_empty() && findings.is_empty() => Ok(config),
        _ => Err(rendered(text, name, &syntax_errors, findings)),
    }
}

fn config(top: &Table<'_>, base: &Path) -> Option<Config> {
    top.know(keys::FILE);
    let homing = top.table("homing").map_or_else(|| homing::read(None, base), |table| homing::read(Some(&table), base));
    let mut apps = Apps::new(base, homing.as_ref());
    match top.value("app").map(|value| (value.get_ref(), value.span())) {
        None => top.absent("no [[app]] is given; add one with `name`, `listen` and `command`"),
        Some((DeValue::Array(entries), span)) => {
            if entries.is_empty() {
                top.wrong(span, "no [[app]] is given; add one with `name`, `listen` and `command`");
            }
            for entry in entries.iter() {
                match entry.get_ref() {
                    DeValue::Table(table) => apps.read(&top.inner("[[app]]", table, entry.span())),
                    other => top.wrong(entry.span(), format!("an app must be a table, not {}", reader::kind(other))),
                }
            }
        }
        Some((DeValue::Table(_), span)) => top.wrong(span, "apps are a list; write [[app]], with two brackets"),
        Some((other, span)) => {
            top.wrong(span, format!("`app` must be tables, not {}; write [[app]]", reader::kind(other)));
        }
    }
    let (homing, apps) = (homing?, apps.finish());
    if let (Some(table), Some(given)) = (top.silent_table("homing"), &homing.metrics) {
        metrics::check(&table, given, &apps);
    }
    Some(Config { homing, apps })
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("it has more than {FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}

/// All that was found, in the order of the file. Where the text is no TOML, what was read from it is a guess: findings
/// that may only come from a wrong guess are left out.
fn rendered(text: &str, name: &str, syntax_errors: &[toml::de::Error], mut findings: Vec<reader::Finding>) -> Errors {
    let total = syntax_errors.len() + findings.len();
    let start = |error: &toml::de::Error| error.span().map_or(0, |span| span.start);
    let mut first: Vec<_> = syntax_errors.iter().collect();
    first.sort_by_key(|error| start(error));
    first.truncate(TOLD_MAX);
    findings.sort_by_key(|finding| finding.span.start);
    findings.truncate(TOLD_MAX);

    let mut syntax: Vec<_> = first
        .iter()
        .map(|error| (place(text, &error.span().unwrap_or(0..0)), format!("not valid TOML: {}", error.message())))
        .collect();
    // One slip makes the parser stumble several times.
    syntax.dedup_by_key(|(place, _)| place.line);
    // An unclosed bracket swallows the rest of the file.
    let swallowed = syntax_errors.iter().any(|error| error.message().starts_with("unclosed"));
    let trusted = |finding: &reader::Finding, line: usize| {
        syntax.is_empty()
            || !(finding.absence
                || syntax.iter().any(|(place, _)| place.line == line)
                || (swallowed && line > syntax[0].0.line))
    };
    let mut all: Vec<_> = findings
        .into_iter()
        .map(|finding| (place(text, &finding.span), finding))
        .filter(|(place, finding)| trusted(finding, place.line))
        .map(|(place, finding)| (place, finding.message))
        .collect();
    all.extend(syntax.iter().cloned());
    all.sort_by_key(|(place, _)| (place.line, place.column));
    all.truncate(TOLD_MAX);
    let problem = |(place, message)| Problem { file: name.to_owned(), place: Some(place), message };
    let mut problems: Vec<Problem> = all.into_iter().map(problem).collect();
    if total > TOLD_MAX {
        let message = "there are more errors than these; correct them first".to_owned();
        problems.push(Problem { file: name.to_owned(), place: None, message });
    }
    Errors(problems)
}

#[cfg(test)]
mod documented;
#[cfg(test)]
mod mistakes;
#[cfg(test)]
mod tests;
