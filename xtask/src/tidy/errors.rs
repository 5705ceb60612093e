//! Every error message has a test that provokes it, or a reason why not.
//!
//! Collected are the literals in the forms that [`FORMS`] names, outside of tests: what `homing` says to a user, and most of what
//! it logs. A message counts as provoked when three words of it in a row stand in a test. That proves no more than that somebody
//! thought of it; it keeps a message from being written that nobody has ever seen.

use std::collections::BTreeMap;
use std::path::Path;

/// What a message follows, with nothing but [`GLUE`] between.
const FORMS: [&str; 10] =
    ["#[error(", "bail!(", "anyhow!(", "context(", "Err(", "fail(", "Refused(", "map_err(|_|", "other(", "wrong("];
/// What may stand between a form and its message, beside a plain argument.
const GLUE: [&str; 5] = ["format!(", "format_args!(", "anyhow!(", "||", "{"];
/// Further from its form nothing is a form's message.
const GAP_MAX: usize = 100;
/// Words in a row by which a message is known.
const WORDS: usize = 3;
/// Shorter ones are in every text.
const LETTERS_MIN: usize = 10;

/// Words of a message that no test provokes, and why.
const UNPROVOKED: [(&str, &str); 25] = [
    (
        "broke off its answer",
        "homing ends between the head and the body of an answer, which is a moment that a test cannot hit",
    ),
    ("the commands before it were run", "`ip` or `sysctl` of the machine would have to fail midway"),
    ("a client lost its worker", "that the demo fails is what its test forbids"),
    ("the WebSocket did not last", "of the demo's client; that it happens is what every test of it forbids"),
    ("the workers did not start", "that the demo fails is what its test forbids"),
    ("cannot find homing's own binary", "the kernel would have to lose /proc/self/exe"),
    ("cannot list this machine's addresses", "the kernel would have to refuse netlink"),
    ("answer questions for routes", "/proc/sys would have to be read-only where eBPF may be loaded"),
    ("cannot draw on this terminal", "a terminal that is one and takes no orders"),
    ("has not been bound", "control binds before it opens; said in case that it does not"),
    ("and this homing reads version", "compared as a value in control/persist, whose warning is tested"),
    (
        "the kernel refused the eBPF programs",
        "a kernel that has everything and refuses them; tests of other kernels see what lacks (lacking.rs)",
    ),
    ("cannot give up the privileges", "the kernel would have to refuse a process to have less"),
    (
        "the worker sent",
        "logged for debugging alone; what stands in its place is compared as a value where answers are read",
    ),
    ("cannot connect from", "of the demo's client, which is where its addresses are"),
    ("the app closed the WebSocket", "of the demo's client, whose app does not"),
    ("it became shorter while", "a race with a writer who truncates, which a test cannot hold open"),
    (
        "the client's body broke off",
        "carried inside hyper's errors and compared as a value; clients are told in words of proxy/answer.rs",
    ),
    (
        "the client fell silent",
        "carried inside hyper's errors and compared as a value; clients are told in words of proxy/answer.rs",
    ),
    ("no random bytes", "the kernel would have to refuse getrandom"),
    (
        "not among homing.trusted_proxies",
        "logged, once in a while; that such a connection is refused is tested by its counter",
    ),
    ("controller in", "depends on the machine's cgroups; the words around it are tested"),
    ("systemd started homing in", "needs a unit without Delegate; said in a log alone"),
    ("was closed before anybody accepted", "a worker that closes its socket between two instants; retried at once"),
    ("no place for a worker's socket", "run_dir would have to turn unusable between homing's start and a worker's"),
];

/// `files`: path and text of all that is tracked.
pub(super) fn check(files: &BTreeMap<String, String>, find: &mut impl FnMut(String)) {
    check_with(&UNPROVOKED, files, find);
}

fn check_with(excuses: &[(&str, &str)], files: &BTreeMap<String, String>, find: &mut impl FnMut(String)) {
    let mut tested = String::new();
    let mut messages = Vec::new();
    let only_tests = only_tests(files);
    for (path, text) in files.iter().filter(|(path, _)| path.ends_with(".rs")) {
        if path.starts_with("tests/") || only_tests.contains(path) {
            tested.push_str(&normal(text));
        } else if path.starts_with("lb-user/src/") {
            let end = text.find("\n#[cfg(test)]\nmod tests {").unwrap_or(text.len());
            tested.push_str(&normal(&text[end..]));
            messages.extend(messages_of(&text[..end]).map(|(line, message)| (path, line, message)));
        }
    }
    let mut unused: Vec<&str> = excuses.iter().map(|(words, _)| *words).collect();
    for (path, line, message) in messages {
        let excuse = excuses.iter().find(|(words, _)| message.contains(words));
        if let Some((words, _)) = excuse {
            unused.retain(|unused| unused != words);
        }
        let marks = marks(&message);
        let is_provoked = marks.is_empty() || marks.iter().any(|mark| tested.contains(mark));
        match (is_provoked, excuse) {
            (false, None) => find(format!(
                "{path}:{line}: no test provokes \"{message}\"; write one, or a reason into xtask/src/tidy/errors.rs"
            )),
            (true, Some((words, _))) => {
                find(format!("xtask/src/tidy/errors.rs: a test provokes \"{words}\" by now; remove its reason"));
            }
            _ => {}
        }
    }
    for words in unused {
        find(format!("xtask/src/tidy/errors.rs: no message says \"{words}\"; remove its reason"));
    }
}

/// Files that are modules of tests: `#[cfg(test)] mod name;`, and all below them.
fn only_tests(files: &BTreeMap<String, String>) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in files.iter().filter(|(path, _)| path.ends_with(".rs")) {
        let dir = Path::new(path).parent().unwrap_or(Path::new("")).to_string_lossy();
        let stem = path.trim_end_matches(".rs");
        let is_root = ["/mod", "/lib", "/main"].iter().any(|name| stem.ends_with(name));
        let below = if is_root { &*dir } else { stem };
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            let is_for_tests = line.trim() == "#[cfg(test)]" || line.trim().starts_with("#[cfg(any(test,");
            let declared = lines.peek().filter(|_| is_for_tests).and_then(|next| next.trim().strip_suffix(';'));
            if let Some((_, name)) = declared.and_then(|declared| declared.split_once("mod ")) {
                let (file, folder) = (format!("{below}/{name}.rs"), format!("{below}/{name}/"));
                found.extend(files.keys().filter(|path| **path == file || path.starts_with(&folder)).cloned());
            }
        }
    }
    found
}

/// As the compiler joins lines that end with a backslash, and without escapes.
fn normal(text: &str) -> String {
    let mut joined = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\\\n") {
        joined.push_str(before);
        rest = after.trim_start();
    }
    joined.push_str(rest);
    joined.replace("\\\"", "\"").replace("\\n", " ")
}

/// Line and text of each message.
fn messages_of(code: &str) -> impl Iterator<Item = (usize, String)> {
    let starts = FORMS.iter().flat_map(move |form| code.match_indices(form).map(|(at, form)| at + form.len()));
    starts.filter_map(move |start| {
        let (gap, rest) = code[start..].split_once('"')?;
        let is_glue = gap.split_whitespace().map(|word| word.trim_start_matches('&')).all(|word| {
            let is_argument = |word: &str| word.chars().all(|c| c.is_alphanumeric() || "_.()".contains(c));
            word.is_empty() || GLUE.contains(&word) || word.strip_suffix(',').is_some_and(is_argument)
        });
        let message = literal(rest).filter(|_| is_glue && gap.len() < GAP_MAX)?;
        Some((1 + code[..start].matches('\n').count(), normal(message)))
    })
}

/// Up to the quote that ends it.
fn literal(text: &str) -> Option<&str> {
    let mut is_escaped = false;
    let end = text.char_indices().find(|&(_, c)| {
        let ends = c == '"' && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        ends
    })?;
    Some(&text[..end.0])
}

/// What a message is known by: words in a row between its placeholders.
fn marks(message: &str) -> Vec<String> {
    let mut marks = Vec::new();
    for piece in message.split('{').map(|piece| piece.split_once('}').map_or(piece, |(_, after)| after)) {
        let words: Vec<&str> = piece.split(' ').collect();
        let joined = words.windows(WORDS).map(|words| words.join(" "));
        let bare = joined.map(|mark| mark.trim_matches(|c: char| !c.is_alphanumeric()).to_owned());
        marks.extend(bare.filter(|mark| mark.len() >= LETTERS_MIN));
    }
    marks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(excuses: &[(&str, &str)], code: &str, test: &str) -> Vec<String> {
        let files = [("lb-user/src/a.rs", code), ("tests/tests/a.rs", test)];
        let files = files.map(|(path, text)| (path.to_owned(), text.to_owned())).into();
        let mut found = Vec::new();
        check_with(excuses, &files, &mut |what| found.push(what));
        found
    }

    const CODE: &str =
        "fn f() {\n    return Err(format!(\"no app is called {name:?}; there \\\n        are: {all}\"));\n}\n";

    #[test]
    fn a_message_that_no_test_knows_is_found() {
        let found_without = found(&[], CODE, "");
        assert!(
            found_without[0].starts_with("lb-user/src/a.rs:2: no test provokes \"no app is called"),
            "{found_without:?}"
        );
        assert!(found(&[], CODE, "assert!(said.contains(\"app is called \\\"x\"));").is_empty());
    }

    #[test]
    fn a_reason_stands_for_a_test_until_there_is_one() {
        let excuses = [("is called", "nobody calls")];
        assert!(found(&excuses, CODE, "").is_empty());
        assert!(found(&excuses, CODE, "app is called")[0].contains("remove its reason"));
        assert!(found(&excuses, "", "")[0].contains("no message says"));
    }

    #[test]
    fn what_stands_in_tests_is_no_message_and_what_is_short_has_no_marks() {
        let tests = "\n#[cfg(test)]\nmod tests {\n    fn f() { Err(\"nobody will ever see this\") }\n}\n";
        assert!(found(&[], tests, "").is_empty());
        assert!(found(&[], "Err(\"{path}: {error}\")", "").is_empty());
    }
}
