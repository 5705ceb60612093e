//! `cargo xtask book`: the pages of docs/ as a book, in target/book. `cargo xtask tidy` has looked at the links of the pages
//! already; here each link of the book itself is followed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::markdown::without_links;
use crate::run::{output, root, run, target_dir};
use crate::tidy::documents::beside;

/// Without what serves and watches.
const MDBOOK: [&str; 6] = ["mdbook", "--version", "0.5.3", "--locked", "--no-default-features", "--features=search"];
/// The line of the summary under which decisions are put.
const DECISIONS: &str = "- [Decisions](decisions/README.md)\n";

pub fn book() -> anyhow::Result<()> {
    let mdbook = mdbook()?;
    let (source, made) = (target_dir().join("book-source"), target_dir().join("book"));
    for folder in [&source, &made] {
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
    }
    lay_out(&source)?;
    run(Command::new(mdbook).arg("build").arg(&source).arg("--dest-dir").arg(&made))?;
    let pages = check(&made)?;
    println!("{pages} pages, every link of which leads somewhere: {}", made.join("index.html").display());
    Ok(())
}

/// The one that is installed, or one made for this.
fn mdbook() -> anyhow::Result<PathBuf> {
    let own = target_dir().join("tools");
    let program = own.join("bin/mdbook");
    if !program.exists() {
        println!("mdbook is not here; building it takes some minutes, once");
        run(Command::new("cargo").arg("install").args(MDBOOK).arg("--root").arg(&own))?;
    }
    Ok(program)
}

/// The pages as the book has them: with all decisions, and without links to what is no page.
fn lay_out(source: &Path) -> anyhow::Result<()> {
    for path in output(
        Command::new("git")
            .args(["ls-files", "--cached", "--others", "--exclude-standard", "docs"])
            .current_dir(root()),
    )?
    .lines()
    {
        let text = fs::read_to_string(root().join(path)).with_context(|| path.to_owned())?;
        let text = match path {
            "docs/SUMMARY.md" => text.replacen(DECISIONS, &format!("{DECISIONS}{}", decisions()?), 1),
            page if page.ends_with(".md") => without_links(&text, |target| {
                let path = target.split('#').next().unwrap_or_default();
                let is_page = |target: &str| target.starts_with("docs/") && target.ends_with(".md");
                target.contains("://") || path.is_empty() || beside(page, path).is_some_and(|target| is_page(&target))
            }),
            _ => text,
        };
        // mdbook renames these pages, and not what links to them.
        let text = text.replace("README.md)", "index.md)").replace("README.md#", "index.md#");
        let to = source.join(path.trim_start_matches("docs/").replace("README.md", "index.md"));
        fs::create_dir_all(to.parent().context("it is in a folder")?)?;
        fs::write(&to, text).with_context(|| to.display().to_string())?;
    }
    Ok(())
}

fn decisions() -> anyhow::Result<String> {
    let mut lines = Vec::new();
    for entry in fs::read_dir(root().join("docs/decisions"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let text = fs::read_to_string(root().join("docs/decisions").join(&name))?;
        let title = text.lines().next().unwrap_or_default().trim_start_matches("# ");
        if name != "README.md" {
            lines.push(format!("  - [{title}](decisions/{name})\n"));
        }
    }
    lines.sort();
    Ok(lines.concat())
}

/// How many pages there are.
fn check(made: &Path) -> anyhow::Result<usize> {
    let mut pages = BTreeMap::new();
    let mut folders = vec![made.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "html") {
                pages.insert(path.clone(), fs::read_to_string(path)?);
            }
        }
    }
    let mut broken = Vec::new();
    for (page, html) in &pages {
        let targets = html.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next());
        for target in targets.filter(|target| !target.contains("://") && !target.starts_with("data:")) {
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = if path.is_empty() { page.clone() } else { page.with_file_name("").join(path) };
            let file = file.canonicalize().unwrap_or(file);
            let has_anchor = |html: &String| anchor.is_empty() || html.contains(&format!("id=\"{anchor}\""));
            if !file.exists() || !pages.get(&file).is_none_or(has_anchor) {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    if !broken.is_empty() {
        bail!("links of the book that lead nowhere:\n{}", broken.join("\n"));
    }
    Ok(pages.len())
}
