//! The cookie of an app.

use std::time::Duration;

use super::keys;
use super::reader::{Given, Table};
use super::value;
use crate::config::{Cookie, SameSite, Secure};

const MAX_AGE_MIN: Duration = Duration::from_secs(1);
/// Browsers keep none longer (RFC 6265bis section 5.5).
const MAX_AGE_MAX: Duration = Duration::from_secs(400 * 24 * 60 * 60);

/// `path`: the app's.
pub(super) fn cookie(app: &Table<'_>, path: &str) -> Cookie {
    let default = Cookie { path: path.to_owned(), ..Cookie::default() };
    let Some(table) = app.table("cookie") else { return default };
    table.know(keys::COOKIE);
    let secure = table.parsed("secure", |text| {
        value::choice(text, &[("auto", Secure::Auto), ("always", Secure::Always), ("never", Secure::Never)])
    });
    let same_site = table.parsed("same_site", |text| {
        value::choice(text, &[("strict", SameSite::Strict), ("lax", SameSite::Lax), ("none", SameSite::None)])
    });
    let max_age = table.amount("max_age", |text| value::duration(text, MAX_AGE_MIN, MAX_AGE_MAX));
    let partitioned = table.flag("partitioned");
    let name = table.parsed("name", value::cookie_name);
    let secure = secure.map_or(default.secure, |given| given.value);

    let needs_secure = |span: std::ops::Range<usize>, what: &str| {
        table.wrong(span, format!("browsers keep {what} only when it is secure; drop secure = \"never\""));
    };
    if let Some(Given { value: SameSite::None, span }) = &same_site
        && secure == Secure::Never
    {
        needs_secure(span.clone(), "a cookie with same_site = \"none\"");
    }
    if let Some(Given { value: true, span }) = &partitioned
        && secure == Secure::Never
    {
        needs_secure(span.clone(), "a partitioned cookie");
    }
    let prefix = name.as_ref().and_then(|name| {
        let starts = |prefix: &&str| name.value.get(..prefix.len()).is_some_and(|s| s.eq_ignore_ascii_case(prefix));
        ["__Host-", "__Secure-"].into_iter().find(starts)
    });
    if let (Some(prefix), Some(name), true) = (prefix, &name, secure != Secure::Always) {
        table.wrong(
            name.span.clone(),
            format!(
                "browsers keep a cookie named `{prefix}…` only when it is secure; add secure = \"always\", or rename it"
            ),
        );
    }
    if let (Some("__Host-"), Some(name), true) = (prefix, &name, path != "/") {
        table.wrong(
            name.span.clone(),
            format!("browsers keep a cookie named `__Host-…` only with the path `/`, not `{path}`; rename it"),
        );
    }
    Cookie {
        path: default.path,
        name: name.map_or(default.name, |given| given.value),
        secure,
        same_site: same_site.map_or(default.same_site, |given| given.value),
        max_age: max_age.map(|given| given.value),
        partitioned: partitioned.is_some_and(|given| given.value),
    }
}
