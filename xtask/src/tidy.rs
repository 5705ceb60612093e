//! `cargo xtask tidy`: the house rules that no compiler checks. Every finding says where, what and what to do.

pub mod documents;
mod errors;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::run::root;

/// A longer file is two rooms in one.
const LINES_MAX: usize = 500;

/// Where unsafe code may stand.
const UNSAFE_ALLOWED: [&str; 11] = [
    "lb-ebpf/src/cookie.rs",
    "lb-ebpf/src/floors.rs",
    "lb-ebpf/src/forward.rs",
    "lb-ebpf/src/steer.rs",
    "lb-ebpf/src/main.rs",
    "lb-ebpf/src/maps.rs",
    "lb-ebpf/src/packet.rs",
    "lb-ebpf/src/socket.rs",
    "lb-ebpf/src/tap.rs",
    "lb-user/src/datapath/pod.rs",
    "lb-user/src/sys.rs",
];

/// (files below, must not contain, because)
const DIRECTIONS: [(&str, &[&str], &str); 8] = [
    (
        "lb-common/src/",
        &["std::fs", "std::net::Tcp", "std::time::", "aya"],
        "lb-common decides; it does no I/O and reads no clock",
    ),
    ("lb-user/src/proxy/", &["crate::datapath", "crate::control"], "the HTTP path knows `routing` alone"),
    (
        "lb-user/src/datapath/",
        &["crate::proxy", "crate::control", "crate::worker"],
        "the datapath knows neither requests nor processes",
    ),
    (
        "lb-user/src/control/st",
        &["tokio", "std::fs", "std::net", "Instant::now", "SystemTime"],
        "control's state and step are pure; `now` is an argument",
    ),
    ("lb-user/src/datapath/", &["SystemTime"], MONOTONIC),
    ("lb-user/src/worker/", &["SystemTime"], MONOTONIC),
    ("lb-user/src/routing", &["SystemTime"], MONOTONIC),
    ("lb-user/src/bindings", &["SystemTime"], MONOTONIC),
];

const MONOTONIC: &str = "a wall clock that jumps must not decide; use Instant";

pub fn tidy() -> anyhow::Result<()> {
    let mut findings = Vec::new();
    let files = tracked()?;
    for path in &files {
        let Ok(text) = fs::read_to_string(root().join(path)) else { continue };
        let mut find = |line: usize, what: String| findings.push(format!("{path}:{line}: {what}"));
        check_text(path, &text, &mut find);
        if Path::new(path).extension().is_some_and(|extension| extension == "rs") {
            check_rust(path, &text, &mut find);
        }
    }
    documents::check(&files, &mut findings)?;
    check_dependencies(&files, &mut findings)?;
    let read = |path: &String| Some((path.clone(), fs::read_to_string(root().join(path)).ok()?));
    errors::check(&files.iter().filter_map(read).collect(), &mut |finding| findings.push(finding));
    if findings.is_empty() {
        println!("tidy: {} files, nothing found", files.len());
        return Ok(());
    }
    for finding in &findings {
        eprintln!("{finding}");
    }
    bail!("tidy: {} findings", findings.len())
}

fn tracked() -> anyhow::Result<Vec<String>> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .context("git cannot be run")?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

fn check_text(path: &str, text: &str, find: &mut impl FnMut(usize, String)) {
    // Written apart, so that this file is not its own finding.
    let machine_paths = [concat!("/wo", "rk/"), concat!("/ro", "ot/")];
    for (number, line) in (1..).zip(text.lines()) {
        if path != "Cargo.lock" && machine_paths.iter().any(|machine| line.contains(machine)) {
            find(number, "a path of one machine; make it relative".to_owned());
        }
    }
}

fn check_rust(path: &str, text: &str, find: &mut impl FnMut(usize, String)) {
    let lines: Vec<&str> = text.lines().collect();
    if lines.len() > LINES_MAX {
        find(LINES_MAX, format!("{} lines, {LINES_MAX} at most; make two modules of it", lines.len()));
    }
    if !text.starts_with("//!") {
        find(1, "a module opens with //!: what it is for and what it is not".to_owned());
    }
    for (index, line) in lines.iter().enumerate() {
        let number = index + 1;
        let code = line.split("//").next().unwrap_or_default();
        if path != "xtask/src/tidy.rs" {
            for mark in ["todo!(", "unimplemented!(", "dbg!("] {
                if code.contains(mark) {
                    find(number, format!("{mark}…): finish it or leave it out"));
                }
            }
            check_unsafe(path, &lines, index, code, find);
        }
        for (below, words, because) in DIRECTIONS {
            if let Some(word) = words.iter().find(|word| path.starts_with(below) && code.contains(**word)) {
                find(number, format!("`{word}` does not belong here: {because}"));
            }
        }
    }
}

fn check_unsafe(path: &str, lines: &[&str], index: usize, code: &str, find: &mut impl FnMut(usize, String)) {
    let is_block = code.contains("unsafe {") || code.contains("unsafe impl");
    if !is_block {
        return;
    }
    if !UNSAFE_ALLOWED.contains(&path) {
        find(index + 1, "unsafe code; it belongs to lb-ebpf, datapath/pod.rs or sys.rs".to_owned());
    }
    let before = &lines[index.saturating_sub(5)..index];
    if !before.iter().any(|line| line.contains("SAFETY:")) {
        find(index + 1, "unsafe without its reason; write // SAFETY: … above it".to_owned());
    }
}

/// Each direct dependency is explained, and nothing else.
fn check_dependencies(files: &[String], findings: &mut Vec<String>) -> anyhow::Result<()> {
    const PAGE: &str = "docs/dependencies.md";
    let page = fs::read_to_string(root().join(PAGE)).context(PAGE)?;
    let mut explained: BTreeMap<&str, usize> = (1..)
        .zip(page.lines())
        .filter_map(|(number, line)| Some((line.strip_prefix("| `")?.split_once('`')?.0, number)))
        .collect();
    let manifests = files.iter().filter(|path| path.ends_with("Cargo.toml"));
    let manifests: Vec<(&String, toml::Table)> = manifests
        .map(|path| Ok((path, fs::read_to_string(root().join(path))?.parse().context(path.clone())?)))
        .collect::<anyhow::Result<_>>()?;
    let own: Vec<&str> =
        manifests.iter().filter_map(|(_, manifest)| manifest.get("package")?.get("name")?.as_str()).collect();
    let mut used = BTreeMap::new();
    for (path, manifest) in &manifests {
        let tables = ["dependencies", "dev-dependencies", "build-dependencies"];
        for (name, _) in tables.iter().filter_map(|table| manifest.get(*table)?.as_table()).flatten() {
            if !own.contains(&name.as_str()) {
                used.entry(name.as_str()).or_insert(path);
            }
        }
    }
    for (name, path) in used {
        if explained.remove(name).is_none() {
            findings.push(format!("{path}: {name} is not in {PAGE}; add its row, and why it is needed"));
        }
    }
    findings.extend(
        explained.iter().map(|(name, line)| format!("{PAGE}:{line}: nothing depends on {name}; remove its row")),
    );
    Ok(())
}
