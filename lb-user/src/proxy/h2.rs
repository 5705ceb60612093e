//! What HTTP/2 says in its own way, said as HTTP/1.1 does: everything after this knows one kind of request.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, HOST, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT,
    SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::{Method, Response, StatusCode, Version};
use hyper::ext::Protocol;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::answer::Refusal;
use super::limits::HEADERS_MAX;

const WEBSOCKET: &str = "websocket";

/// A WebSocket that came by extended CONNECT (RFC 8441), and is asked of the worker as an upgrade.
pub struct Bootstrap {
    /// What the worker must answer our key with.
    accept: String,
}

/// Makes an HTTP/1.1 request of it. `has_body`: one follows.
pub fn normalise(parts: &mut Parts, has_body: bool) -> Result<Option<Bootstrap>, Refusal> {
    join_cookies(&mut parts.headers);
    if parts.headers.len() > HEADERS_MAX {
        return Err(Refusal::TooManyHeaders);
    }
    if let Some(authority) = parts.uri.authority().filter(|_| parts.method != Method::CONNECT || is_extended(parts)) {
        let host =
            HeaderValue::try_from(authority.as_str()).map_err(|_| Refusal::Bad("the authority is not a host"))?;
        // RFC 9113 section 8.3.1: who sends both says the same, or means mischief.
        if parts.headers.get_all(HOST).iter().any(|other| !other.as_bytes().eq_ignore_ascii_case(host.as_bytes())) {
            return Err(Refusal::Bad("Host and :authority differ"));
        }
        if !parts.headers.contains_key(HOST) {
            parts.headers.insert(HOST, host);
        }
    }
    // RFC 9110 section 8.6: who says it twice is refused by HTTP/1.1, too, be it the same number.
    if parts.headers.get_all(CONTENT_LENGTH).iter().nth(1).is_some() {
        return Err(Refusal::Bad("more than one Content-Length"));
    }
    parts.version = Version::HTTP_11;
    if is_extended(parts) {
        return bootstrap(parts).map(Some);
    }
    // hyper drops the body of a GET that does not say it has one.
    if has_body && !parts.headers.contains_key(CONTENT_LENGTH) {
        parts.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    Ok(None)
}

fn is_extended(parts: &Parts) -> bool {
    parts.method == Method::CONNECT && parts.extensions.get::<Protocol>().is_some()
}

fn bootstrap(parts: &mut Parts) -> Result<Bootstrap, Refusal> {
    if !parts.extensions.get::<Protocol>().is_some_and(|protocol| protocol.as_str().eq_ignore_ascii_case(WEBSOCKET)) {
        return Err(Refusal::Connect);
    }
    let mut key = [0; 16];
    // The key proves that the worker answers this very request; it is no secret.
    getrandom::fill(&mut key).map_err(|_| Refusal::Broke)?;
    let key = STANDARD.encode(key);
    let accept = derive_accept_key(key.as_bytes());
    parts.method = Method::GET;
    let headers = &mut parts.headers;
    headers.remove(CONTENT_LENGTH);
    headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::try_from(key).map_err(|_| Refusal::Broke)?);
    headers.entry(SEC_WEBSOCKET_VERSION).or_insert(HeaderValue::from_static("13"));
    headers.insert(UPGRADE, HeaderValue::from_static(WEBSOCKET));
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    Ok(Bootstrap { accept })
}

/// Clients split cookies for the sake of compression; HTTP/1.1 has one line of them (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(cookies) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(COOKIE, cookies);
    }
}

impl Bootstrap {
    /// Whether this head of an answer is the worker's to our key.
    pub fn is_met_by<B>(&self, response: &Response<B>) -> bool {
        let accept = response.headers().get(SEC_WEBSOCKET_ACCEPT);
        accept.is_some_and(|accept| accept.as_bytes() == self.accept.as_bytes())
    }

    /// Makes the worker's 101 what the client waits for.
    pub fn answer<B>(response: &mut Response<B>) {
        *response.status_mut() = StatusCode::OK;
        for name in [SEC_WEBSOCKET_ACCEPT, CONTENT_LENGTH] {
            response.headers_mut().remove(name);
        }
    }
}

/// Takes off what an answer must not have in HTTP/2.
pub fn finish<B>(response: &mut Response<B>) {
    const PER_CONNECTION: [HeaderName; 3] = [CONNECTION, TRANSFER_ENCODING, UPGRADE];
    for name in PER_CONNECTION {
        response.headers_mut().remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn parts(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut builder = Request::builder().method(method).uri(uri).version(Version::HTTP_2);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    #[test]
    fn the_authority_is_the_host_and_both_must_agree() {
        let normalised = |headers| {
            let mut parts = parts("GET", "https://a.test:8443/p", headers);
            normalise(&mut parts, false).map(|_| parts)
        };
        assert_eq!(normalised(&[]).unwrap().headers[HOST], "a.test:8443");
        assert_eq!(normalised(&[("host", "A.test:8443")]).unwrap().version, Version::HTTP_11);
        for other in [&[("host", "b.test")][..], &[("host", "a.test")], &[("host", "a.test:8443"), ("host", "b.test")]]
        {
            assert!(matches!(normalised(other), Err(Refusal::Bad("Host and :authority differ"))), "{other:?}");
        }
    }

    #[test]
    fn cookies_come_in_one_line() {
        let mut parts = parts("GET", "https://a/", &[("cookie", "a=1"), ("cookie", "b=2; c=3")]);
        normalise(&mut parts, false).unwrap();
        assert_eq!(parts.headers.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2; c=3"]);
    }

    #[test]
    fn a_body_without_a_length_says_that_it_is_there() {
        for (length, expected) in [(&[][..], Some("chunked")), (&[("content-length", "3")], None)] {
            let mut parts = parts("GET", "https://a/", length);
            normalise(&mut parts, true).unwrap();
            assert_eq!(parts.headers.get(TRANSFER_ENCODING).map(|value| value.to_str().unwrap()), expected);
        }
    }

    #[test]
    fn an_extended_connect_becomes_an_upgrade_with_a_key_of_its_own() {
        let mut parts =
            parts("CONNECT", "https://a/ws?q", &[("sec-websocket-key", "mine"), ("sec-websocket-protocol", "x")]);
        parts.extensions.insert(Protocol::from_static("websocket"));
        let bootstrap = normalise(&mut parts, false).unwrap().unwrap();
        assert_eq!((&parts.method, parts.uri.path()), (&Method::GET, "/ws"));
        assert_eq!(
            (&parts.headers[UPGRADE], &parts.headers[SEC_WEBSOCKET_VERSION]),
            (&"websocket".parse().unwrap(), &"13".parse().unwrap())
        );
        assert_ne!(parts.headers[SEC_WEBSOCKET_KEY], "mine");
        let answer = |accept: &str| Response::builder().header(SEC_WEBSOCKET_ACCEPT, accept).body(()).unwrap();
        assert!(bootstrap.is_met_by(&answer(&derive_accept_key(parts.headers[SEC_WEBSOCKET_KEY].as_bytes()))));
        assert!(!bootstrap.is_met_by(&answer("x")) && !bootstrap.is_met_by(&Response::new(())));
        let mut other = self::parts("CONNECT", "https://a/", &[]);
        other.extensions.insert(Protocol::from_static("connect-udp"));
        assert!(matches!(normalise(&mut other, false), Err(Refusal::Connect)));
    }

    #[test]
    fn too_many_headers_are_too_many() {
        let many: Vec<(String, &str)> = (0..=HEADERS_MAX).map(|n| (format!("x-{n}"), "1")).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        assert!(matches!(normalise(&mut parts("GET", "https://a/", &many), false), Err(Refusal::TooManyHeaders)));
    }
}
