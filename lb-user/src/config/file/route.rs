//! `hosts`, `path` and `strip_path`: which requests are an app's, and that no two apps on one address want the same.

use std::net::Ipv6Addr;

use super::listen::Taken;
use super::reader::{Given, Table, shown};
use crate::config::{App, Forward, Host, HttpOnly, Route};

const HOSTS_MAX: usize = 256;
const HOST_CHARS_MAX: usize = 253;
const LABEL_CHARS_MAX: usize = 63;
const PATH_CHARS_MAX: usize = 255;

pub(super) fn route(app: &Table<'_>) -> Route {
    let mut hosts: Vec<Host> = Vec::new();
    for Given { value: text, span } in
        app.strings("hosts", "[\"sales.example.org\", \"*.example.org\"]").unwrap_or_default()
    {
        match host(text) {
            Ok(host) if hosts.contains(&host) => app.wrong(span, format!("`{host}` is given twice; remove one")),
            Ok(_) if hosts.len() == HOSTS_MAX => app.wrong(span, format!("`hosts` has more than {HOSTS_MAX}")),
            Ok(host) => hosts.push(host),
            Err(message) => app.wrong(span, format!("`{}` {message}", shown(text))),
        }
    }
    let path = app.parsed("path", path).map_or_else(|| Route::default().path, |given| given.value);
    let strip_path = app.flag("strip_path");
    if let Some(given) = strip_path.as_ref().filter(|_| !app.has("path")) {
        app.wrong(given.span.clone(), "`strip_path` is of no use without a `path`; add one, or remove it");
    }
    Route { hosts, path, strip_path: strip_path.is_none_or(|given| given.value) }
}

fn host(text: &str) -> Result<Host, String> {
    let name = text.to_ascii_lowercase();
    if let Some(address) = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let address: Ipv6Addr = address.parse().map_err(|_| "has no IPv6 address in its brackets".to_owned())?;
        return Ok(Host::Exact(format!("[{address}]")));
    }
    let (is_below, name) = name.strip_prefix("*.").map_or((false, name.as_str()), |rest| (true, rest));
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.contains("://") || name.contains(['/', ':']) {
        return Err("must be a host's name alone, without scheme, port and path".to_owned());
    }
    if !name.is_ascii() {
        return Err("must be written as browsers send it, in Punycode: xn--…".to_owned());
    }
    if name.contains('*') {
        return Err(
            "may have its `*` as the first label only, as in `*.example.org`; for any host give no `hosts`".to_owned()
        );
    }
    let is_label = |label: &str| {
        (1..=LABEL_CHARS_MAX).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    if name.len() > HOST_CHARS_MAX || !name.split('.').all(is_label) {
        return Err("must be a host's name, such as `sales.example.org` or `*.example.org`".to_owned());
    }
    Ok(if is_below { Host::Below(name.to_owned()) } else { Host::Exact(name.to_owned()) })
}

/// A prefix of whole segments that every client writes alike.
fn path(text: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._~/".contains(c);
    if !text.starts_with('/') || !text.chars().all(is_plain) || text.len() > PATH_CHARS_MAX {
        return Err(format!(
            "must be \"/\" and segments of letters, digits and -._~, such as \"/sales\", not `{}`",
            shown(text)
        ));
    }
    let path = text.strip_suffix('/').unwrap_or(text);
    if path.is_empty() {
        return Ok("/".to_owned());
    }
    if path[1..].split('/').any(|segment| matches!(segment, "" | "." | "..")) {
        return Err(format!("must have no empty segment and none of dots, as `{}` does", shown(text)));
    }
    Ok(path.to_owned())
}

/// Why two apps on one address cannot be told apart; `address`: where.
pub(super) fn conflict(new: &App, other: &App, address: &str) -> Option<String> {
    let (route, others) = (&new.route, &other.route);
    let both = route.patterns().find(|&pattern| others.patterns().any(|other| other == pattern));
    if let Some(pattern) = both.filter(|_| route.path == others.path) {
        let name = &other.name;
        return Some(if *route == Route::default() && *others == Route::default() {
            format!(
                "`{address}` is already an address of app `{name}`; choose another, or tell the apps apart by `hosts` or `path`"
            )
        } else {
            let host = pattern.map_or("any host".to_owned(), |host| format!("host `{host}`"));
            let path = &route.path;
            let new = &new.name;
            format!(
                "apps `{name}` and `{new}` both take {host} with path `{path}` on `{address}`; change `hosts` or `path` of one"
            )
        });
    }
    None
}

/// How a connection begins must be known before the app is.
pub(super) fn mixed_flags(new: &App, other: &App, address: &str) -> Option<String> {
    let flags = |app: &App| [("proxy_protocol", app.proxy_protocol), ("h2c", app.h2c)];
    let (key, _) = flags(new).into_iter().zip(flags(other)).find_map(|(new, other)| (new != other).then_some(new))?;
    let (other, new) = (&other.name, &new.name);
    Some(format!(
        "of the apps `{other}` and `{new}` on `{address}` one has `{key}` and one has not; give it to both or to none"
    ))
}

/// What a whole app must be for requests to tell whether they are its own.
pub(super) fn check(table: &Table<'_>, app: &App, listen: &[Taken]) {
    if matches!(app.http_only(), None | Some(HttpOnly::Tls))
        || app.backends.iter().all(|backend| backend.forward == Forward::Http)
    {
        return;
    }
    let span = |key: &str| table.value(key).map(toml::Spanned::span);
    let keys = ["hosts", "path", "proxy_protocol", "h2c", "send_proxy_protocol", "listen"];
    let place = keys.into_iter().find_map(span).unwrap_or(0..0);
    let names = listen.iter().filter(|taken| taken.app != app.name && app.listen.contains(&taken.address));
    let beside =
        names.map(|taken| format!(" (`{}` is on {}, too)", taken.app, taken.address)).next().unwrap_or_default();
    let (what, without) = match app.http_only() {
        Some(HttpOnly::ProxyProtocol) => ("reads `proxy_protocol`", "`proxy_protocol`"),
        Some(HttpOnly::H2c) => ("speaks `h2c`", "`h2c`"),
        Some(HttpOnly::SendProxy) => ("writes `send_proxy_protocol`", "`send_proxy_protocol`"),
        _ => ("tells requests apart", "`hosts` and `path`"),
    };
    table.wrong(
        place,
        format!(
            "only the HTTP path {what}{beside}, and app `{}` has backends that are sent packets; use \
             forward = \"http\" for them, or an address of its own without {without}",
            app.name
        ),
    );
}
