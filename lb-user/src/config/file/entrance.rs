//! What an app's workers are given to listen on: read off the placeholders in `command` and `env`, and `pass_socket`.

use std::ops::Range;
use std::path::Path;

use toml::de::DeValue;

use super::reader::Table;
use crate::config::{Affinity, App, ListensOn};
use crate::worker::entrance::{FD_PLACEHOLDER, PORT_PLACEHOLDER, SOCKET_PLACEHOLDER};
use crate::worker::socket::{self, PATH_BYTES_MAX};

const PLACEHOLDERS: [(&str, ListensOn); 3] =
    [(PORT_PLACEHOLDER, ListensOn::Port), (SOCKET_PLACEHOLDER, ListensOn::Socket), (FD_PLACEHOLDER, ListensOn::Passed)];

/// A port unless something else is asked for.
pub(super) fn listens_on(table: &Table<'_>) -> ListensOn {
    let mut wanted: Option<(ListensOn, String)> = None;
    let mut want = |kind: ListensOn, by: String, span: Range<usize>| match &wanted {
        Some((first, first_by)) if *first != kind => {
            table.wrong(span, format!("{by} and {first_by} exclude each other: a worker gets one of them; remove one"));
        }
        Some(_) => {}
        None => wanted = Some((kind, by)),
    };
    for (text, span) in texts(table) {
        for (placeholder, kind) in PLACEHOLDERS.iter().filter(|(placeholder, _)| text.contains(placeholder)) {
            want(*kind, format!("`{placeholder}`"), span.clone());
        }
    }
    if let Some(given) = table.flag("pass_socket").filter(|given| given.value) {
        if table.has("command") {
            want(ListensOn::Passed, "`pass_socket`".to_owned(), given.span);
        } else {
            table.wrong(given.span, "`pass_socket` is for workers, and there is no `command`; remove it");
        }
    }
    wanted.map_or(ListensOn::Port, |(kind, _)| kind)
}

/// What a worker's arguments and environment are made of; what is no string is complained of elsewhere.
fn texts<'t>(table: &'t Table<'_>) -> Vec<(&'t str, Range<usize>)> {
    let values = |key: &str| table.value(key).map(toml::Spanned::get_ref);
    let words = match values("command") {
        Some(DeValue::Array(words)) => words.iter().collect(),
        _ => Vec::new(),
    };
    let variables = match values("env") {
        Some(DeValue::Table(variables)) => variables.values().collect(),
        _ => Vec::new(),
    };
    let text = |value: &'t toml::Spanned<DeValue<'_>>| match value.get_ref() {
        DeValue::String(text) => Some((text.as_ref(), value.span())),
        _ => None,
    };
    words.into_iter().chain(variables).filter_map(text).collect()
}

/// What a whole app must be for its workers to listen on unix sockets.
pub(super) fn check(table: &Table<'_>, app: &App, run_dir: Option<&Path>) {
    if app.listens_on != ListensOn::Socket {
        return;
    }
    let span = |key: &str| table.value(key).map_or(0..0, toml::Spanned::span);
    if app.affinity == Affinity::Ip {
        table.wrong(
            span("affinity"),
            format!(
                "\"ip\" is kept by the kernel, which hands connections to TCP sockets alone, and these workers listen on unix \
                 sockets; use `{PORT_PLACEHOLDER}` in place of `{SOCKET_PLACEHOLDER}`, or affinity = \"auto\" or \"cookie\""
            ),
        );
    }
    let Some(run_dir) = run_dir else { return };
    let longest = socket::longest_path(run_dir, &app.name, app.workers.max);
    let bytes = longest.as_os_str().len();
    if bytes > PATH_BYTES_MAX {
        table.wrong(
            span("command"),
            format!(
                "the workers' sockets would be called like {}: {bytes} bytes, and a unix socket's path has at most \
                 {PATH_BYTES_MAX}; choose a homing.run_dir, or a `name`, that is {} bytes shorter",
                longest.display(),
                bytes - PATH_BYTES_MAX
            ),
        );
    }
}
