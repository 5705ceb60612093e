//! How an app's workers are started: `command` and `env`, and what in them would not do what it seems to.

use std::collections::BTreeMap;
use std::path::Path;

use toml::de::DeValue;

use super::reader::{Given, Table, kind, shown};
use crate::worker::entrance::{FD_PLACEHOLDER, PORT_PLACEHOLDER, SOCKET_PLACEHOLDER};
use crate::worker::program;

/// What homing itself tells every worker.
const SET_BY_HOMING: &[&str] =
    &["PORT", "HOMING_APP", "HOMING_WORKER", "HOMING_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];
const PLACEHOLDERS: [&str; 3] = [PORT_PLACEHOLDER, SOCKET_PLACEHOLDER, FD_PLACEHOLDER];

/// `command`, looked up as the spawn of a worker would.
pub(super) fn command(table: &Table<'_>, directory: Option<&Path>, env: &BTreeMap<String, String>) -> Vec<String> {
    const EXAMPLE: &str = "[\"uvicorn\", \"app:app\", \"--port\", \"{port}\"]";
    if !table.has("command") && !table.has("backends") {
        table.absent(format!("[[app]] has no `command`; add what starts a worker, such as command = {EXAMPLE}"));
    }
    let Some(words) = table.strings("command", EXAMPLE) else { return Vec::new() };
    for word in &words {
        if let Some(message) = wrong_word(word.value) {
            table.wrong(word.span.clone(), message);
        }
    }
    let is_first = |word: &&Given<&str>| table.first_of("command") == Some(word.span.start);
    if let (Some(program), Some(directory)) = (words.first().filter(is_first), directory) {
        let text = program.value;
        if text.is_empty() {
            table.wrong(program.span.clone(), "the program's name is empty; give a program");
        } else if wrong_word(text).is_none()
            && !PLACEHOLDERS.iter().any(|placeholder| text.contains(placeholder))
            && let Err(error) = program::resolve(text, directory, &program::search_path(env))
        {
            table.wrong(program.span.clone(), error.to_string());
        }
    }
    words.into_iter().map(|word| word.value.to_owned()).collect()
}

/// What would not do in a word of `command` what it seems to.
fn wrong_word(word: &str) -> Option<String> {
    if word.contains('\0') {
        return Some("an argument cannot contain a NUL character; remove it".to_owned());
    }
    for (placeholder, becomes, variable) in [
        (PORT_PLACEHOLDER, "$8080", "$PORT"),
        (SOCKET_PLACEHOLDER, "$/run/…", "$HOMING_SOCKET"),
        (FD_PLACEHOLDER, "$3", "3"),
    ] {
        if word.contains(&format!("${placeholder}")) {
            return Some(format!(
                "`${placeholder}` would become `{becomes}`; write `{placeholder}`, or `{variable}` for a shell"
            ));
        }
    }
    [
        (PORT_PLACEHOLDER, "port", ["{PORT}", "{Port}", "{ port }"]),
        (SOCKET_PLACEHOLDER, "socket", ["{SOCKET}", "{Socket}", "{ socket }"]),
        (FD_PLACEHOLDER, "descriptor", ["{FD}", "{Fd}", "{ fd }"]),
    ]
    .into_iter()
    .find_map(|(right, what, typos)| {
        let typo = typos.into_iter().find(|typo| without_shell(word, typo))?;
        Some(format!("`{typo}` stays as it is; write `{right}` for the worker's {what}"))
    })
}

/// Whether `typo` is there and is not a shell's variable.
fn without_shell(word: &str, typo: &str) -> bool {
    word.match_indices(typo).any(|(at, _)| !word[..at].ends_with('$'))
}

/// The table `env`.
pub(super) fn env(table: &Table<'_>) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    for (key, value) in table.entries() {
        let name = key.value;
        if name.is_empty() || name.contains(['=', '\0']) {
            table.wrong(key.span, format!("`{}` cannot be the name of an environment variable", shown(name)));
            continue;
        }
        if SET_BY_HOMING.contains(&name) {
            table.wrong(key.span, format!("`{name}` is set by homing for each worker; remove it from `env`"));
            continue;
        }
        match value.get_ref() {
            DeValue::String(text) if text.contains('\0') => {
                table.wrong(value.span(), format!("`{}` cannot contain a NUL character", shown(name)));
            }
            DeValue::String(text) => drop(env.insert(name.to_owned(), text.to_string())),
            other => {
                let kind = kind(other);
                table.wrong(value.span(), format!("`{}` must be a string in quotes, not {kind}", shown(name)));
            }
        }
    }
    env
}
