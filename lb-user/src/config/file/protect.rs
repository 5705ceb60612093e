//! `[app.protect]`: who may connect, and how often.

use std::net::IpAddr;

use ipnet::IpNet;

use super::keys;
use super::reader::{Given, Table, shown};
use crate::config::{Protect, Rate};

const RATE_MAX: u32 = 1_000_000;
const BURST_MAX: u32 = 10_000_000;
/// Seconds' worth of new connections that may come at once unless `…_burst` is given.
const BURST_SECONDS: u32 = 10;
const PREFIXES_MAX: usize = 16_384;

pub(super) fn protect(app: &Table<'_>) -> Protect {
    let Some(table) = app.table("protect") else { return Protect::default() };
    table.know(keys::PROTECT);
    let allow = prefixes(&table, "allow");
    let deny = prefixes(&table, "deny");
    for both in deny.iter().filter(|denied| allow.iter().any(|allowed| allowed.value == denied.value)) {
        table.wrong(both.span.clone(), format!("{} is in `allow` and in `deny`; remove one", both.value));
    }
    let values = |given: Vec<Given<IpNet>>| given.into_iter().map(|given| given.value).collect();
    Protect {
        allow: values(allow),
        deny: values(deny),
        client: rate(&table, "client_rate", "client_burst"),
        app: rate(&table, "app_rate", "app_burst"),
    }
}

/// Those that are right; of the others it is said what is wrong.
pub(super) fn prefixes(table: &Table<'_>, key: &str) -> Vec<Given<IpNet>> {
    let mut prefixes = Vec::new();
    for Given { value: text, span } in table.strings(key, "[\"192.0.2.0/24\", \"2001:db8::/32\"]").unwrap_or_default() {
        match prefix(text) {
            Ok(value) => prefixes.push(Given { value, span }),
            Err(message) => table.wrong(span, message),
        }
    }
    if let Some(Given { span, .. }) = prefixes.get(PREFIXES_MAX) {
        table.wrong(span.clone(), format!("`{key}` has {} prefixes, {PREFIXES_MAX} at most", prefixes.len()));
    }
    prefixes
}

/// A prefix, or one address.
fn prefix(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.into());
    }
    let Ok(prefix) = text.parse::<IpNet>() else {
        return Err(format!(
            "`{}` must be an address or a prefix, such as 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32",
            shown(text)
        ));
    };
    if prefix.trunc() != prefix {
        return Err(format!("{prefix} has an address within the prefix; write {}", prefix.trunc()));
    }
    Ok(prefix)
}

pub(super) fn rate(table: &Table<'_>, rate: &str, burst: &str) -> Option<Rate> {
    let given = table.number(burst, 1, BURST_MAX);
    let per_second = table.number(rate, 1, RATE_MAX).map(|given| given.value);
    if let (Some(given), false) = (&given, table.has(rate)) {
        table.wrong(given.span.clone(), format!("`{burst}` without `{rate}` limits nothing; add {rate}, or remove it"));
    }
    let per_second = per_second?;
    Some(Rate { per_second, burst: given.map_or(per_second.saturating_mul(BURST_SECONDS), |given| given.value) })
}
