//! What the pages say of each other and of the code: no link leads nowhere, every page is in the book, and whatever an
//! operator can set or read has its row in the reference, in the code's own words, and no row is of something that is not there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::Context as _;

use crate::markdown::{anchors, code, links, rows};
use crate::run::root;

const REFERENCE: &str = "docs/operations.md";
pub const OPTIONS_HEAD: &str = "| key | default | meaning |";
const COUNTERS_HEAD: &str = "| counter | counts |";
const METRICS_HEAD: &str = "| metric | type | labels | meaning |";
const THREATS_HEAD: &str = "| threat | what stands against it | test |";

const KEYS: &str = "lb-user/src/config/file/keys.rs";
const COUNTERS: [&str; 2] = ["lb-common/src/abi.rs", "lb-user/src/proxy/counters.rs"];
const METRICS: &str = "lb-user/src/metrics/families.rs";
/// What is counted elsewhere than in the two tables of counters.
const OTHER_COUNTERS: [&str; 1] = ["closed_untold"];

pub fn check(files: &[String], findings: &mut Vec<String>) -> anyhow::Result<()> {
    let pages: BTreeMap<&str, String> = files
        .iter()
        .filter(|path| path.ends_with(".md"))
        .filter_map(|path| Some((path.as_str(), fs::read_to_string(root().join(path)).ok()?)))
        .collect();
    check_links(&pages, findings);
    check_book(&pages, findings);
    let reference = pages.get(REFERENCE).context(REFERENCE)?;
    check_options(reference, findings)?;
    check_counters(reference, findings)?;
    check_metrics(reference, findings)?;
    check_threats(files, &pages, findings);
    Ok(())
}

fn check_links(pages: &BTreeMap<&str, String>, findings: &mut Vec<String>) {
    for (page, text) in pages {
        for link in links(text).iter().filter(|link| !link.target.contains("://")) {
            let (path, anchor) = link.target.split_once('#').unwrap_or((&link.target, ""));
            let target = if path.is_empty() { Some((*page).to_owned()) } else { beside(page, path) };
            let found = target.filter(|target| root().join(target).exists());
            let complaint = match found {
                None => "there is no such file",
                Some(_) if anchor.is_empty() => continue,
                Some(target) => match pages.get(target.as_str()) {
                    Some(text) if anchors(text).contains(anchor) => continue,
                    _ => "that page has no such heading",
                },
            };
            findings.push(format!("{page}:{}: the link to {} leads nowhere: {complaint}", link.line, link.target));
        }
    }
}

/// The path from the root of what a page calls `link`; nothing for what is outside.
pub fn beside(page: &str, link: &str) -> Option<String> {
    let mut path = PathBuf::from(page).parent()?.to_owned();
    for part in Path::new(link).components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::ParentDir if path.pop() => {}
            Component::CurDir => {}
            _ => return None,
        }
    }
    path.to_str().map(str::to_owned)
}

/// Each page below docs/ is in the book's summary; decisions are put there by `cargo xtask book`.
fn check_book(pages: &BTreeMap<&str, String>, findings: &mut Vec<String>) {
    const SUMMARY: &str = "docs/SUMMARY.md";
    let summary = pages.get(SUMMARY).map_or("", String::as_str);
    let listed: BTreeSet<String> = links(summary).iter().filter_map(|link| beside(SUMMARY, &link.target)).collect();
    let is_part = |page: &&&str| {
        let is_decision = page.starts_with("docs/decisions/") && !page.ends_with("/README.md");
        page.starts_with("docs/") && **page != SUMMARY && !is_decision
    };
    for page in pages.keys().filter(is_part).filter(|page| !listed.contains(**page)) {
        findings.push(format!("{page}:1: it is not in {SUMMARY}, so nobody finds it in the book; add it there"));
    }
}

fn check_options(reference: &str, findings: &mut Vec<String>) -> anyhow::Result<()> {
    let text = fs::read_to_string(root().join(KEYS)).context(KEYS)?;
    let mut known = BTreeMap::new();
    for (number, line) in (1..).zip(text.lines().filter(|line| !line.trim_start().starts_with("//"))) {
        known.extend(
            line.split('"')
                .skip(1)
                .step_by(2)
                .filter(|key| key.contains('.') && key.len() > 1)
                .map(|key| (key, number)),
        );
    }
    let mut documented = BTreeMap::new();
    for (number, cells) in rows(reference, OPTIONS_HEAD) {
        let names = code(cells[0]);
        let table = names.first().and_then(|first| Some(first.rsplit_once('.')?.0)).unwrap_or_default();
        for name in names {
            let name = if name.contains('.') { name.to_owned() } else { format!("{table}.{name}") };
            documented.insert(name, number);
        }
    }
    let is_table =
        |key: &str| known.keys().any(|other| other.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')));
    for (key, line) in known.iter().filter(|(key, _)| !is_table(key) && !documented.contains_key(**key)) {
        findings.push(format!("{KEYS}:{line}: {key} has no row in the options of {REFERENCE}; add it"));
    }
    for (key, line) in documented.iter().filter(|(key, _)| !known.contains_key(key.as_str())) {
        findings.push(format!("{REFERENCE}:{line}: there is no option {key}; remove it, or correct it"));
    }
    Ok(())
}

/// What a table of the code names, in its order: the name, the words above it, and where.
fn named<'text>(path: &str, text: &'text str) -> Vec<(&'text str, String, String)> {
    let mut found = Vec::new();
    let mut words = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if let Some(word) = line.trim().strip_prefix("///") {
            words.push(word.trim());
            continue;
        }
        let name = line.split_once(" = \"").and_then(|(_, name)| name.strip_suffix("\","));
        if let Some(name) = name.filter(|_| line.starts_with("    ") && !line.contains("=>")) {
            found.push((name, words.join(" "), format!("{path}:{number}")));
        }
        words.clear();
    }
    found
}

fn check_counters(reference: &str, findings: &mut Vec<String>) -> anyhow::Result<()> {
    let documented = rows(reference, COUNTERS_HEAD);
    let documented =
        documented.iter().filter(|(_, cells)| !code(cells[0]).iter().all(|name| OTHER_COUNTERS.contains(name)));
    let mut code_names = Vec::new();
    for path in COUNTERS {
        let text = fs::read_to_string(root().join(path)).context(path)?;
        code_names.extend(
            named(path, &text).into_iter().map(|(name, words, place)| (format!("| `{name}` | {words} |"), place)),
        );
    }
    compare(&code_names, documented.map(|(number, cells)| (*number, format!("| {} |", cells.join(" | ")))), findings);
    Ok(())
}

fn check_metrics(reference: &str, findings: &mut Vec<String>) -> anyhow::Result<()> {
    let text = fs::read_to_string(root().join(METRICS)).context(METRICS)?;
    let kinds = text.lines().filter_map(|line| Some(line.split_once("(\"")?.1.split_once("\") = ")?.0));
    let families = named(METRICS, &text).into_iter().zip(kinds);
    let in_code: Vec<_> =
        families.map(|((name, words, place), kind)| (format!("| `{name}` | {kind} | {words} |"), place)).collect();
    // Labels are the page's own.
    let documented = rows(reference, METRICS_HEAD).into_iter().filter_map(|(number, cells)| match cells[..] {
        [name, kind, _, words] => Some((number, format!("| {name} | {kind} | {words} |"))),
        _ => None,
    });
    compare(&in_code, documented, findings);
    Ok(())
}

/// Both ways: each row of the code's is on the page as it stands, and none besides.
fn compare(in_code: &[(String, String)], on_page: impl Iterator<Item = (usize, String)>, findings: &mut Vec<String>) {
    let mut on_page: BTreeMap<String, usize> = on_page.map(|(number, row)| (row, number)).collect();
    for (row, place) in in_code {
        if on_page.remove(row).is_none() {
            findings.push(format!("{place}: {REFERENCE} has no row {row}"));
        }
    }
    for (row, line) in on_page {
        findings.push(format!("{REFERENCE}:{line}: nothing in the code is {row}"));
    }
}

/// Each threat names its tests, and these exist.
fn check_threats(files: &[String], pages: &BTreeMap<&str, String>, findings: &mut Vec<String>) {
    let mut tests = BTreeSet::new();
    for path in files.iter().filter(|path| path.ends_with(".rs")) {
        let text = fs::read_to_string(root().join(path)).unwrap_or_default();
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            let name = line.trim_start_matches("async ").strip_prefix("fn ").and_then(|rest| rest.split_once('('));
            match name {
                Some((name, _)) if is_test => drop(tests.insert(name.to_owned())),
                _ => {}
            }
            is_test =
                line.starts_with("#[test]") || line.starts_with("#[tokio::test") || is_test && line.starts_with("#[");
        }
    }
    for (page, text) in pages {
        for (number, cells) in rows(text, THREATS_HEAD) {
            let named = cells.get(2).map(|cell| code(cell)).unwrap_or_default();
            if named.is_empty() {
                findings.push(format!("{page}:{number}: a threat without a test; name one, or write one"));
            }
            for test in named.into_iter().filter(|test| !tests.contains(*test)) {
                findings.push(format!("{page}:{number}: there is no test {test}; correct it, or write it"));
            }
        }
    }
}
