//! `[app.http]`, and the timeouts of the HTTP path.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::app::{DAY, duration};
use super::keys;
use super::protect::rate;
use super::reader::{Table, shown};
use super::value::{self, Sizes};
use crate::config::http::{CONNECTIONS_MAX, ErrorPage, HEAD_BYTES_MAX, HELD_MAX, Http};

const HEAD: Sizes = Sizes { least: "1KiB", most: "32KiB", units: "KiB" };
const _: () = assert!(HEAD_BYTES_MAX == 32 << 10);
const BODY: Sizes = Sizes { least: "1KiB", most: "1TiB", units: "KiB, GiB, KB, MB, GB" };
const ERROR_PAGE_BYTES_MAX: u64 = 256 << 10;
const FULL_MAX: Duration = Duration::from_secs(60 * 60);

pub(super) fn http(app: &Table<'_>, base: &Path) -> Http {
    let mut http = Http::default();
    if let Some(table) = app.table("http") {
        table.know(keys::HTTP);
        http.max_connections = table.number("max_connections", 1, CONNECTIONS_MAX).map(|given| given.value);
        let head = table.amount("head_max", |text| value::size(text, &HEAD));
        http.head_max = head.map(|given| given.value as u32);
        http.body_max = table.amount("body_max", |text| value::size(text, &BODY)).map(|given| given.value);
        http.rate = rate(&table, "client_rate", "client_burst");
        http.queue = table.number("queue", 0, HELD_MAX).map_or(http.queue, |given| given.value);
        http.error_page = table.parsed("error_page", |text| error_page(text, base)).map(|given| Arc::new(given.value));
    }
    // What is no table is complained of by the reader of the others.
    if let Some(table) = app.silent_table("timeouts") {
        let or_never = |key: &str, default| match duration(&table, key, Duration::ZERO, DAY.saturating_mul(7)) {
            Some(given) => (!given.is_zero()).then_some(given),
            None => default,
        };
        http = Http {
            full: duration(&table, "full", Duration::ZERO, FULL_MAX).unwrap_or(http.full),
            body: or_never("body", http.body),
            response: or_never("response", http.response),
            websocket_idle: or_never("websocket_idle", http.websocket_idle),
            websocket_read: or_never("websocket_read", http.websocket_read),
            ..http
        };
    }
    http
}

fn error_page(text: &str, base: &Path) -> Result<ErrorPage, String> {
    let path = value::path(text, base)?;
    let name = shown(&path.to_string_lossy());
    let mut html = String::new();
    let read = File::open(&path).and_then(|file| file.take(ERROR_PAGE_BYTES_MAX + 1).read_to_string(&mut html));
    if let Err(error) = read {
        return Err(format!("`{name}` cannot be read: {error}; correct the path, or remove the line"));
    }
    if html.len() as u64 > ERROR_PAGE_BYTES_MAX {
        return Err(format!("`{name}` is larger than {} KiB; make it smaller", ERROR_PAGE_BYTES_MAX >> 10));
    }
    ErrorPage::parse(&html).map_err(|error| format!("`{name}`, {error}"))
}
