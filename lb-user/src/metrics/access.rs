//! Who may see what: whoever shows the token, or, where there is none, whoever names an address and not a name.

use std::net::IpAddr;

use http::StatusCode;
use http::header::{AUTHORIZATION, HOST, HeaderMap, ORIGIN};

use super::token::Token;

/// Why not, for who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Denied {
    pub(super) status: StatusCode,
    pub(super) why: &'static str,
}

/// # Errors
/// When these headers show no right to an answer.
pub(super) fn check(headers: &HeaderMap, token: Option<&Token>) -> Result<(), Denied> {
    match token {
        Some(token) if shown(headers).is_some_and(|shown| token.is(shown)) => Ok(()),
        Some(_) => Err(Denied {
            status: StatusCode::UNAUTHORIZED,
            why: "show the token of homing.metrics_token_file: Authorization: Bearer TOKEN\n",
        }),
        None if names_an_address(headers) => Ok(()),
        // A page of another site can make its own name lead here (DNS rebinding) and read what it gets. An address is nobody's.
        None => Err(Denied {
            status: StatusCode::MISDIRECTED_REQUEST,
            why: "without homing.metrics_token_file ask for an IP address or localhost, not for another name\n",
        }),
    }
}

/// Whether an order is given by the dashboard's own page, or by no browser at all. The token says so already, since no browser
/// sends it by itself; this is the second lock.
///
/// # Errors
/// When another site's page gives it.
pub(super) fn check_origin(headers: &HeaderMap) -> Result<(), Denied> {
    let is_own_site = headers.get("sec-fetch-site").is_none_or(|site| site == "same-origin");
    let is_own_page = headers.get(ORIGIN).is_none_or(|origin| {
        let authority = origin.to_str().ok().and_then(|origin| Some(origin.split_once("://")?.1));
        authority.is_some_and(|authority| headers.get(HOST).is_some_and(|host| host == authority))
    });
    if is_own_site && is_own_page {
        return Ok(());
    }
    Err(Denied {
        status: StatusCode::FORBIDDEN,
        why: "orders are taken from this page alone, not from another site's\n",
    })
}

fn shown(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.as_bytes().split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

fn names_an_address(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next().and_then(|host| host.to_str().ok()), hosts.next()) else { return false };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => name,
        _ => host,
    };
    let is_ipv6 = |name: &str| {
        let inner = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        inner.is_some_and(|inner| matches!(inner.parse(), Ok(IpAddr::V6(_))))
    };
    name.eq_ignore_ascii_case("localhost") || matches!(name.parse(), Ok(IpAddr::V4(_))) || is_ipv6(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().expect("a value"));
        }
        headers
    }

    #[test]
    fn without_a_token_only_addresses_are_answered() {
        for host in ["127.0.0.1:9180", "127.0.0.1", "[::1]:9180", "[::1]", "localhost:9180", "LOCALHOST"] {
            assert_eq!(check(&headers(&[("host", host)]), None), Ok(()), "{host}");
        }
        for host in
            ["evil.example:9180", "127.0.0.1.evil.example", "localhost.evil.example:9180", "", "::1", "[x]:1", "a:b"]
        {
            let denied = check(&headers(&[("host", host)]), None).expect_err(host);
            assert_eq!(denied.status, StatusCode::MISDIRECTED_REQUEST, "{host}");
        }
        assert!(check(&headers(&[]), None).is_err());
        assert!(check(&headers(&[("host", "127.0.0.1"), ("host", "evil")]), None).is_err());
    }

    #[test]
    fn orders_come_from_the_own_page_or_from_no_page() {
        let host = ("host", "127.0.0.1:9180");
        for (more, is_right) in [
            (&[][..], true),
            (&[("origin", "http://127.0.0.1:9180"), ("sec-fetch-site", "same-origin")], true),
            (&[("origin", "https://127.0.0.1:9180")], true),
            (&[("origin", "http://evil.example")], false),
            (&[("origin", "http://127.0.0.1:9181")], false),
            (&[("origin", "null")], false),
            (&[("sec-fetch-site", "cross-site")], false),
            (&[("sec-fetch-site", "same-site")], false),
        ] {
            assert_eq!(check_origin(&headers(&[&[host], more].concat())).is_ok(), is_right, "{more:?}");
        }
    }

    #[test]
    fn with_a_token_nothing_else_counts() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("token");
        std::fs::write(&path, "0123456789abcdef").expect("written");
        let token = Token::read(&path).expect("a token");
        for (shown, is_right) in [
            ("Bearer 0123456789abcdef", true),
            ("bearer 0123456789abcdef", true),
            ("Bearer 0123456789abcdee", false),
            ("Basic 0123456789abcdef", false),
            ("0123456789abcdef", false),
            ("Bearer", false),
        ] {
            let headers = headers(&[("host", "any.example"), ("authorization", shown)]);
            assert_eq!(check(&headers, Some(&token)).is_ok(), is_right, "{shown}");
        }
        let denied = check(&headers(&[("host", "127.0.0.1")]), Some(&token)).expect_err("nothing shown");
        assert_eq!(denied.status, StatusCode::UNAUTHORIZED);
    }
}
