//! The configurations that the documentation shows are ones that homing takes.

use std::fs;
use std::path::{Path, PathBuf};

use super::parse;
use super::tests::APP;

/// Complaints about what such a page cannot bring along: users, programs, files, and the rest of an app.
const OF_THIS_MACHINE: [&str; 6] = [
    "is not on this machine",
    "cannot be read",
    "cannot be used",
    "was not found on PATH",
    "does not exist",
    "[[app]] has no `command`",
];

fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let docs = fs::read_dir(root.join("docs")).expect("docs").map(|entry| entry.expect("an entry").path());
    docs.filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .chain([root.join("README.md")])
        .collect()
}

/// What is shown, made whole: tables of an app get one, and of lines for `command` each is an app of its own.
fn configurations(page: &str) -> Vec<String> {
    let blocks = page.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let whole = |block: &str| match block {
        block if block.contains("[[app]]") => vec![block.to_owned()],
        block if block.starts_with("[app.") => vec![format!("{APP}{block}")],
        block if block.starts_with("[homing]") => vec![format!("{block}{APP}")],
        lines => {
            let (app, _) = APP.split_once("command").expect("it has one");
            lines.lines().map(|line| format!("{app}{line}\n")).collect()
        }
    };
    blocks.flat_map(whole).collect()
}

#[test]
fn what_the_documentation_shows_is_taken() {
    let mut count = 0;
    for path in pages() {
        for text in configurations(&fs::read_to_string(&path).expect("readable")) {
            count += 1;
            let Err(errors) = parse(&text, &path.display().to_string(), Path::new("/")) else { continue };
            let mut wrong = errors.0.iter().map(ToString::to_string);
            let wrong = wrong.find(|error| !OF_THIS_MACHINE.iter().any(|words| error.contains(words)));
            assert_eq!(wrong, None, "in:\n{text}");
        }
    }
    assert!(count >= 10, "the pages show configurations, and {count} were found");
}
