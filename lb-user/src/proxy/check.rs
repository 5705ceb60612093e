//! What a request must be before anything else looks at it: one host, a method that is forwarded, a target in origin
//! form. hyper has judged framing and syntax; this is what it lets through.

use std::net::{Ipv6Addr, SocketAddr};

use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderValue, SEC_WEBSOCKET_KEY, UPGRADE};
use http::request::Parts;
use http::{Method, Uri, Version};

use super::answer::Refusal;
use super::gate::Unclear;
use crate::config::Http;

/// Refuses the request or brings it into the form that is forwarded: origin-form target and exactly one `Host`.
/// `local` stands in for the host that an HTTP/1.0 client may leave out.
pub fn check(parts: &mut Parts, local: SocketAddr) -> Result<(), Refusal> {
    if parts.extensions.get::<Unclear>().is_some() {
        return Err(Refusal::Unclear);
    }
    check_method(&parts.method)?;
    check_expect(&parts.headers)?;
    check_websocket(parts)?;
    check_host(parts, local)?;
    if parts.uri.path() == "*" {
        let asks = parts.method == Method::OPTIONS;
        return Err(if asks { Refusal::AboutServer } else { Refusal::Bad("the target * is for OPTIONS only") });
    }
    check_target(&parts.uri)
}

/// Refuses what is larger than the app takes, as far as the head tells. A body that does not say its length is counted as
/// it comes.
pub fn bounds(parts: &Parts, http: &Http) -> Result<(), Refusal> {
    if let Some(head_max) = http.head_max {
        // As RFC 9112 writes them: the target, and for each header a colon, a space and an end of line.
        let target = parts.uri.path_and_query().map_or(0, |target| target.as_str().len());
        let headers = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
        if target + headers.sum::<usize>() > head_max as usize {
            return Err(Refusal::HeadTooLarge);
        }
    }
    if let Some(body_max) = http.body_max {
        let length = parts.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if length.is_some_and(|length| length > body_max) {
            return Err(Refusal::BodyTooLarge);
        }
    }
    Ok(())
}

/// Whether the request asks for another protocol that is passed on. `h2c` is not: the worker would answer in a
/// protocol that nobody here checks (RFC 9113 section 3.1 dropped it), so that the request stays what it is.
pub fn wants_upgrade(parts: &Parts) -> bool {
    let Some(protocol) = parts.headers.get(UPGRADE) else { return false };
    parts.version == Version::HTTP_11
        && tokens(&parts.headers.get_all(CONNECTION)).any(|token| token.eq_ignore_ascii_case(b"upgrade"))
        && !protocol.is_empty()
        && !tokens(&parts.headers.get_all(UPGRADE)).any(|token| token.eq_ignore_ascii_case(b"h2c"))
}

/// The comma-separated tokens of a header that may come in several lines.
pub fn tokens<'a>(values: &http::header::GetAll<'a, HeaderValue>) -> impl Iterator<Item = &'a [u8]> + use<'a> {
    values
        .iter()
        .flat_map(|value| value.as_bytes().split(|&b| b == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|token| !token.is_empty())
}

fn check_method(method: &Method) -> Result<(), Refusal> {
    match *method {
        // TRACE would echo cookies to whoever can make a browser send it (RFC 9110 section 9.3.8).
        Method::TRACE => Err(Refusal::Method),
        // The same by another vendor's name.
        _ if method.as_str() == "TRACK" => Err(Refusal::Method),
        Method::CONNECT => Err(Refusal::Connect),
        _ if method.as_str().bytes().any(|b| b.is_ascii_lowercase()) => {
            Err(Refusal::Bad("methods are case-sensitive and written in capitals"))
        }
        _ => Ok(()),
    }
}

fn check_expect(headers: &HeaderMap) -> Result<(), Refusal> {
    let can_be_met = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    if headers.get_all(EXPECT).iter().all(can_be_met) { Ok(()) } else { Err(Refusal::Expect) }
}

/// A key is part of a WebSocket's request (RFC 6455 section 4.2.1); without one it is something else that only looks like it.
fn check_websocket(parts: &Parts) -> Result<(), Refusal> {
    let is_asked = || tokens(&parts.headers.get_all(UPGRADE)).any(|token| token.eq_ignore_ascii_case(b"websocket"));
    if wants_upgrade(parts) && is_asked() && !parts.headers.contains_key(SEC_WEBSOCKET_KEY) {
        return Err(Refusal::Bad("a WebSocket without a key"));
    }
    Ok(())
}

/// What servers understand differently is refused: bytes that are none of a URI's, escapes of nothing or of NUL, and
/// paths that leave the root. Else the path is the app's, and passed on as it came.
fn check_target(uri: &Uri) -> Result<(), Refusal> {
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    if !target.is_ascii() {
        return Err(Refusal::Bad("the target has characters that are not escaped"));
    }
    let path = uri.path();
    if !path.starts_with('/') {
        return Err(Refusal::Bad("the target is not a path"));
    }
    if path.contains('%') {
        let path = unescape(path.as_bytes()).ok_or(Refusal::Bad("the path has an escape of no character"))?;
        return check_dots(&path);
    }
    check_dots(path.as_bytes())
}

fn unescape(path: &[u8]) -> Option<Vec<u8>> {
    let digit = |at: usize| path.get(at).and_then(|&byte| char::from(byte).to_digit(16));
    let mut unescaped = Vec::with_capacity(path.len());
    let mut at = 0;
    while let Some(&byte) = path.get(at) {
        let is_escape = byte == b'%';
        let byte = if is_escape { (digit(at + 1)? * 16 + digit(at + 2)?) as u8 } else { byte };
        if byte == 0 {
            return None;
        }
        unescaped.push(byte);
        at += if is_escape { 3 } else { 1 };
    }
    Some(unescaped)
}

fn check_dots(path: &[u8]) -> Result<(), Refusal> {
    let mut depth = 0_usize;
    for segment in path.split(|&byte| byte == b'/') {
        depth = match segment {
            b"" | b"." => depth,
            b".." => depth.checked_sub(1).ok_or(Refusal::Bad("the path leads above the root"))?,
            _ => depth + 1,
        };
    }
    Ok(())
}

fn check_host(parts: &mut Parts, local: SocketAddr) -> Result<(), Refusal> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(_), Some(_)) => return Err(Refusal::Bad("more than one Host header")),
        (Some(host), None) if !is_host(host.as_bytes()) => return Err(Refusal::Bad("the Host header is not a host")),
        (Some(_), None) => {}
        (None, _) if parts.version >= Version::HTTP_11 => return Err(Refusal::Bad("no Host header")),
        (None, _) => {
            let value = HeaderValue::try_from(local.to_string()).expect("an address is a valid header value");
            parts.headers.insert(HOST, value);
        }
    }
    // Absolute form: the target's authority wins over Host (RFC 9112 section 3.2.2).
    if let Some(authority) = parts.uri.authority() {
        if !is_host(authority.as_str().as_bytes()) || !matches!(parts.uri.scheme_str(), Some("http" | "https")) {
            return Err(Refusal::Bad("the request target is not an http URL"));
        }
        let host = HeaderValue::try_from(authority.as_str()).expect("a checked host is a valid header value");
        parts.headers.insert(HOST, host);
        parts.uri = match parts.uri.path_and_query().cloned() {
            Some(path) => Uri::from(path),
            None => Uri::from_static("/"),
        };
    }
    Ok(())
}

/// `host[:port]` of RFC 3986 section 3.2.2, without user information. An empty host names nothing that is served here.
pub fn is_host(bytes: &[u8]) -> bool {
    let (host, port) = match bytes {
        [b'[', rest @ ..] => {
            let Some(end) = rest.iter().position(|&b| b == b']') else { return false };
            let address = std::str::from_utf8(&rest[..end]).ok().and_then(|text| text.parse::<Ipv6Addr>().ok());
            if address.is_none() {
                return false;
            }
            match &rest[end + 1..] {
                [] => return true,
                [b':', port @ ..] => return is_port(port),
                _ => return false,
            }
        }
        _ => match bytes.iter().position(|&b| b == b':') {
            Some(colon) => (&bytes[..colon], Some(&bytes[colon + 1..])),
            None => (bytes, None),
        },
    };
    !host.is_empty()
        && host.iter().all(|&b| is_reg_name(b))
        && !host.windows(2).any(|two| two == b"..")
        && port.is_none_or(is_port)
}

/// Without the comma, which is where two Hosts would have been joined.
fn is_reg_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=".contains(&byte)
}

/// RFC 3986 lets the port be empty.
fn is_port(digits: &[u8]) -> bool {
    digits.len() <= 5
        && digits.iter().all(u8::is_ascii_digit)
        && digits.iter().fold(0_u32, |port, digit| port * 10 + u32::from(digit - b'0')) <= u32::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);

    fn request(method: &str, target: &str, headers: &[(&str, &str)]) -> Parts {
        let mut builder = Request::builder().method(method).uri(target);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    fn checked(method: &str, target: &str, headers: &[(&str, &str)]) -> Result<Parts, Refusal> {
        let mut parts = request(method, target, headers);
        check(&mut parts, LOCAL).map(|()| parts)
    }

    #[test]
    fn hosts_are_one_and_well_formed() {
        for good in ["a", "a.example:8080", "192.0.2.1", "[::1]:80", "[2001:db8::1]", "a:", "xn--bcher-kva.example"] {
            assert!(checked("GET", "/", &[("host", good)]).is_ok(), "{good}");
        }
        for bad in [
            "", "a@b/c", "a/b", "a b", "[::1", "[zz]:80", "a:99999", "a:b", "a:1:2", ":80", "a?b", "[::1]x", "a\\b",
            "a,b", "a..b",
        ] {
            let refusal = checked("GET", "/", &[("host", bad)]).err();
            assert!(matches!(refusal, Some(Refusal::Bad(_))), "{bad:?}: {refusal:?}");
        }
        assert!(matches!(checked("GET", "/", &[]), Err(Refusal::Bad("no Host header"))));
        let two = checked("GET", "/", &[("host", "a"), ("host", "a")]);
        assert!(matches!(two, Err(Refusal::Bad("more than one Host header"))));
    }

    #[test]
    fn http_1_0_may_leave_the_host_out() {
        let mut parts = request("GET", "/", &[]);
        parts.version = Version::HTTP_10;
        check(&mut parts, LOCAL).unwrap();
        assert_eq!(parts.headers[HOST], "127.0.0.1:8080");
    }

    #[test]
    fn the_authority_of_an_absolute_target_wins() {
        let parts = checked("GET", "http://b.example:81/p?q=1", &[("host", "a.example")]).unwrap();
        assert_eq!((parts.headers[HOST].to_str().unwrap(), parts.uri.to_string().as_str()), ("b.example:81", "/p?q=1"));
        for bad in ["http://user@b.example/", "ftp://b.example/"] {
            assert!(matches!(checked("GET", bad, &[("host", "a")]), Err(Refusal::Bad(_))), "{bad}");
        }
        let root = checked("GET", "http://b.example", &[("host", "a")]).unwrap();
        assert_eq!(root.uri.path(), "/");
    }

    #[test]
    fn targets_that_servers_understand_differently_are_refused() {
        for good in ["/a/../b", "/a/%2e%2e/b", "/a%2Fb/..", "/..a/...", "/a?../..%00%&%zz", "/%25", "/."] {
            assert!(checked("GET", good, &[("host", "a")]).is_ok(), "{good}");
        }
        for bad in [
            "/..",
            "/../a",
            "/a/../..",
            "/%2e%2E/a",
            "/a%2f../../b",
            "//..",
            "/./..",
            "/%00",
            "/%",
            "/%2",
            "/%g0",
            "/\u{e9}",
        ] {
            let refusal = checked("GET", bad, &[("host", "a")]).err();
            assert!(matches!(refusal, Some(Refusal::Bad(_))), "{bad:?}: {refusal:?}");
        }
    }

    #[test]
    fn methods_and_expectations_that_are_not_forwarded_get_an_answer() {
        let host = [("host", "a")];
        assert!(matches!(checked("TRACE", "/", &host), Err(Refusal::Method)));
        assert!(matches!(checked("TRACK", "/", &host), Err(Refusal::Method)));
        let two = [("host", "a"), ("expect", "100-continue"), ("expect", "cake")];
        assert!(matches!(checked("PUT", "/", &two), Err(Refusal::Expect)));
        assert!(matches!(checked("CONNECT", "b.example:443", &host), Err(Refusal::Connect)));
        assert!(matches!(checked("get", "/", &host), Err(Refusal::Bad(_))));
        assert!(matches!(checked("OPTIONS", "*", &host), Err(Refusal::AboutServer)));
        assert!(matches!(checked("GET", "*", &host), Err(Refusal::Bad(_))));
        assert!(matches!(checked("PUT", "/", &[("host", "a"), ("expect", "cake")]), Err(Refusal::Expect)));
        for fine in ["GET", "PATCH", "PROPFIND", "QUERY"] {
            assert!(checked(fine, "/", &[("host", "a"), ("expect", "100-Continue")]).is_ok(), "{fine}");
        }
    }

    #[test]
    fn a_websocket_has_a_key() {
        let upgrade = [("host", "a"), ("connection", "upgrade"), ("upgrade", "WebSocket")];
        assert!(matches!(checked("GET", "/", &upgrade), Err(Refusal::Bad(_))));
        assert!(checked("GET", "/", &[&upgrade[..], &[("sec-websocket-key", "x")]].concat()).is_ok());
        assert!(checked("GET", "/", &[("host", "a"), ("upgrade", "websocket")]).is_ok(), "it asks for nothing");
    }

    #[test]
    fn only_a_complete_upgrade_that_is_not_h2c_is_one() {
        let upgrade = |connection, protocol| {
            wants_upgrade(&request("GET", "/", &[("connection", connection), ("upgrade", protocol)]))
        };
        assert!(upgrade("keep-alive, Upgrade", "WebSocket"));
        assert!(!upgrade("keep-alive", "websocket"));
        assert!(!upgrade("upgrade", "h2c"));
        assert!(!upgrade("upgrade", "websocket, H2C"));
        assert!(!upgrade("upgrade", ""));
    }
}
