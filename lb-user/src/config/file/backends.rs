//! `backends`: remote hosts behind an app's address.

use std::net::SocketAddr;

use toml::de::DeValue;

use super::keys;
use super::reader::{Given, Table, kind};
use super::value;
use crate::config::{Affinity, Backend, Forward};

const EXAMPLE: &str = "[{ address = \"10.0.0.11:8080\", forward = \"http\" }]";
const BACKENDS_MAX: usize = 1_024;
const WEIGHT_MAX: u32 = 100;
const FORWARDS: &[(&str, Forward)] =
    &[("http", Forward::Http), ("l2", Forward::L2), ("ipip", Forward::Ipip), ("gue", Forward::Gue)];

/// Reads the list; `listen`, `listen_udp` and `affinity` are the app's.
pub(super) fn backends(
    app: &Table<'_>,
    listen: &[Given<SocketAddr>],
    listen_udp: &[SocketAddr],
    affinity: Affinity,
) -> Vec<Backend> {
    let addresses: Vec<SocketAddr> = listen.iter().map(|given| given.value).chain(listen_udp.iter().copied()).collect();
    let backends = list(app, &addresses, affinity);
    let answer_directly = !backends.is_empty() && backends.iter().all(|backend| backend.forward != Forward::Http);
    if let Some(value) = app.value("listen_udp").filter(|_| !answer_directly || app.has("command")) {
        app.wrong(
            value.span(),
            "`listen_udp` needs `backends` that all take `l2`, `ipip` or `gue`, and no `command`: workers and the HTTP path \
             speak TCP; remove the line, or change those",
        );
    }
    backends
}

fn list(app: &Table<'_>, listen: &[SocketAddr], affinity: Affinity) -> Vec<Backend> {
    let Some(value) = app.value("backends") else { return Vec::new() };
    let DeValue::Array(entries) = value.get_ref() else {
        let kind = kind(value.get_ref());
        app.wrong(value.span(), format!("`backends` must be a list of tables, not {kind}; write backends = {EXAMPLE}"));
        return Vec::new();
    };
    if entries.is_empty() && !app.has("command") {
        app.wrong(value.span(), format!("`backends` is empty, and there is no `command`; write backends = {EXAMPLE}"));
    }
    if entries.len() > BACKENDS_MAX {
        app.wrong(value.span(), format!("`backends` has {} entries, {BACKENDS_MAX} at most", entries.len()));
    }
    let mut backends: Vec<Backend> = Vec::new();
    for entry in entries.iter().take(BACKENDS_MAX) {
        let DeValue::Table(inner) = entry.get_ref() else {
            let kind = kind(entry.get_ref());
            app.wrong(entry.span(), format!("a backend must be a table, not {kind}; write backends = {EXAMPLE}"));
            continue;
        };
        let table = app.inner("backends", inner, entry.span());
        let Some(backend) = backend(&table, listen, affinity) else { continue };
        if backends.iter().any(|other| other.address == backend.address) {
            app.wrong(entry.span(), format!("backend {} is given twice; remove one", backend.address));
        }
        backends.push(backend);
    }
    backends
}

fn backend(table: &Table<'_>, listen: &[SocketAddr], affinity: Affinity) -> Option<Backend> {
    table.know(keys::BACKEND);
    if !table.has("address") {
        table.absent("a backend has no `address`; add one, such as address = \"10.0.0.11:8080\"");
    }
    let forward = table.parsed("forward", |text| value::choice(text, FORWARDS));
    let weight = table.number("weight", 1, WEIGHT_MAX).map_or(1, |given| given.value);
    let address = table.parsed("address", address)?;
    let Some(forward) = forward else {
        return Some(Backend { address: address.value, forward: Forward::Http, weight });
    };
    let backend = Backend { address: address.value, forward: forward.value, weight };
    if backend.forward != Forward::Http {
        // The kernel path changes neither address nor port: the host takes the service's own.
        let port = backend.address.port();
        if let Some(other) = listen.iter().find(|listen| listen.port() != port) {
            table.wrong(
                address.span,
                format!(
                    "port {port} must be that of `listen`, {}: `{}` forwards packets as they are; \
                     correct it, or use forward = \"http\"",
                    other.port(),
                    backend.forward.name()
                ),
            );
        }
        if affinity == Affinity::Cookie {
            table.wrong(
                forward.span,
                "with affinity = \"cookie\" only the HTTP path forwards; use forward = \"http\", or another affinity",
            );
        }
    }
    Some(backend)
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| {
        "must be an IP address and a port, such as \"10.0.0.11:8080\" or \"[fd00::11]:8080\"".to_owned()
    })?;
    if address.port() == 0 || address.ip().is_unspecified() || address.ip().is_multicast() {
        return Err(format!("{address} is no address of one host and port; give the backend's own"));
    }
    Ok(address)
}
