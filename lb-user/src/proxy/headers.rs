//! Headers that end at homing, and those that it adds: RFC 9110 section 7.6.1 and what workers are told of the client.

use std::net::IpAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use http::header::{self, CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, TE, UPGRADE};

use super::check::tokens;

pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub const X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What requests say of their client: made once for a connection, or for each request that a trusted proxy sends.
pub struct Client {
    pub address: IpAddr,
    /// It came by TLS.
    pub is_secure: bool,
    /// The client and the proxies between, the nearest last.
    pub forwarded_for: HeaderValue,
    /// `for=…;proto=…;host=`, the host to follow, and then what comes after it: `, for=…` of the proxies between.
    forwarded: (String, String),
    /// What that makes of the host that was asked for first: most connections ask for one.
    first_forwarded: OnceLock<(HeaderValue, HeaderValue)>,
    /// What a trusted proxy says of the host that was asked for,
    pub host: Option<HeaderValue>,
    /// the path that it took off,
    pub prefix: Option<String>,
    /// and how it calls the request.
    pub id: Option<HeaderValue>,
}

/// A client, or a proxy, as the next one saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    pub address: IpAddr,
    /// Whether it came by TLS, if that was said.
    pub proto: Option<bool>,
}

impl Client {
    pub fn new(address: IpAddr, is_secure: bool) -> Self {
        Self::through(&[Hop { address, proto: None }], is_secure)
    }

    /// The first of these, through the others.
    ///
    /// # Panics
    /// When there is none.
    pub fn through(hops: &[Hop], is_secure: bool) -> Self {
        let address = hops.first().expect("a client").address;
        let node = |hop: &Hop| match hop.address {
            IpAddr::V4(v4) => format!("for={v4}"),
            // RFC 7239 section 6: in brackets, and so quoted.
            IpAddr::V6(v6) => format!("for=\"[{v6}]\""),
        };
        let between = hops[1..].iter().map(|hop| format!(", {}", node(hop))).collect();
        let addresses: Vec<String> = hops.iter().map(|hop| hop.address.to_string()).collect();
        Self {
            address,
            is_secure,
            forwarded_for: HeaderValue::try_from(addresses.join(", ")).expect("addresses are a valid header value"),
            forwarded: (format!("{};proto={};host=", node(&hops[0]), scheme(is_secure)), between),
            first_forwarded: OnceLock::new(),
            host: None,
            prefix: None,
            id: None,
        }
    }

    /// `Forwarded` of a request for this host.
    fn forwarded(&self, host: &HeaderValue) -> HeaderValue {
        let (first, forwarded) = self.first_forwarded.get_or_init(|| {
            // A copy: a clone would keep the whole buffer that the request was read into for as long as the connection.
            let host_alone = HeaderValue::from_bytes(host.as_bytes()).expect("it is a header value");
            (host_alone, self.forwarded_with(host))
        });
        if first == host { forwarded.clone() } else { self.forwarded_with(host) }
    }

    fn forwarded_with(&self, host: &HeaderValue) -> HeaderValue {
        let (before, after) = &self.forwarded;
        // Quoted: a host with a port or brackets is no token (RFC 7239 section 4). A checked host has no quote in it.
        let text = format!("{before}\"{}\"{after}", host.to_str().unwrap_or_default());
        HeaderValue::try_from(text).expect("addresses and a host are a valid header value")
    }
}

fn scheme(is_secure: bool) -> &'static str {
    if is_secure { "https" } else { "http" }
}

/// Headers that are added to every request.
const ADDED: usize = 6;

/// Names for requests: unique, not secret.
pub struct RequestIds {
    prefix: u64,
    next: AtomicU64,
}

impl RequestIds {
    pub fn new(prefix: u64) -> Self {
        Self { prefix, next: AtomicU64::new(0) }
    }

    pub fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// The id of the request with this number.
    pub fn value(&self, number: u64) -> HeaderValue {
        let number = (u128::from(self.prefix) << 64) | u128::from(number);
        let digits: [u8; 32] = std::array::from_fn(|at| b"0123456789abcdef"[(number >> (124 - 4 * at)) as usize & 15]);
        HeaderValue::from_bytes(&digits).expect("hexadecimal digits are a valid header value")
    }
}

/// Turns a checked request's headers into what the worker gets. `upgrade`: the request may switch protocols.
pub fn to_worker(headers: &mut HeaderMap, client: &Client, id: HeaderValue, upgrade: bool) {
    let protocol = upgrade.then(|| headers.get(UPGRADE).cloned()).flatten();
    let trailers = tokens(&headers.get_all(TE)).any(|token| token.eq_ignore_ascii_case(b"trailers"));
    strip(headers, ends_here);
    match (protocol, trailers) {
        (Some(protocol), _) => {
            headers.insert(UPGRADE, protocol);
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        }
        // Trailers are passed on, so the worker may send some.
        (None, true) => {
            headers.insert(TE, HeaderValue::from_static("trailers"));
            headers.insert(CONNECTION, HeaderValue::from_static("te"));
        }
        (None, false) => {}
    }
    headers.reserve(ADDED);
    if let Some(host) = client.host.as_ref().or_else(|| headers.get(HOST)).cloned() {
        headers.insert(header::FORWARDED, client.forwarded(&host));
        headers.insert(X_FORWARDED_HOST, host);
    }
    headers.insert(X_FORWARDED_FOR, client.forwarded_for.clone());
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(scheme(client.is_secure)));
    headers.insert(X_REQUEST_ID, id);
}

/// Tells the worker what of the path it does not see; after [`to_worker`].
pub fn tell_prefix(headers: &mut HeaderMap, prefix: &str) {
    let prefix = HeaderValue::try_from(prefix).expect("a checked path is a valid header value");
    headers.insert(X_FORWARDED_PREFIX, prefix);
}

/// Takes out of a request's trailers what must not come behind the body (RFC 9110 section 6.5.1), or not by the client.
pub fn trailers_to_worker(trailers: &mut HeaderMap) {
    let doomed: Vec<_> = trailers.keys().filter(|name| ends_here(name) || is_end_to_end(name)).cloned().collect();
    for name in doomed {
        trailers.remove(name);
    }
}

/// Turns a worker's headers into what the client gets. `upgrade`: the answer is a 101 that is passed on.
pub fn to_client(headers: &mut HeaderMap, upgrade: bool) {
    let protocol = upgrade.then(|| headers.get(UPGRADE).cloned()).flatten();
    // Transfer-Encoding: hyper frames the answer anew, as the client's version asks for.
    let is_chunked = headers.contains_key(header::TRANSFER_ENCODING);
    strip(headers, |name| {
        is_hop_by_hop(name)
            || *name == header::TRANSFER_ENCODING
            // Of two framings hyper has taken the chunks, and the other one would lie (RFC 9112 section 6.3).
            || is_chunked && *name == header::CONTENT_LENGTH
    });
    if upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        if let Some(protocol) = protocol {
            headers.insert(UPGRADE, protocol);
        }
    }
}

/// Removes what Connection lists and what `ends` says. Allocates only when there is something to remove.
fn strip(headers: &mut HeaderMap, ends: impl Fn(&HeaderName) -> bool) {
    let mut doomed: Vec<HeaderName> = headers.keys().filter(|name| ends(name)).cloned().collect();
    for token in tokens(&headers.get_all(CONNECTION)) {
        if [&b"keep-alive"[..], b"close", b"upgrade", b"te"].iter().any(|known| token.eq_ignore_ascii_case(known)) {
            continue;
        }
        if let Ok(name) = HeaderName::from_bytes(token)
            && !is_end_to_end(&name)
        {
            doomed.push(name);
        }
    }
    for name in doomed {
        headers.remove(name);
    }
}

/// A request's header that is for homing, not for the worker: hop-by-hop ones, and what only homing may say.
fn ends_here(name: &HeaderName) -> bool {
    // Transfer-Encoding stays: hyper has checked it, needs it to frame a GET's body, and writes that framing itself.
    is_hop_by_hop(name)
        // hyper has answered 100 Continue, or will; the worker is not asked again.
        || *name == header::EXPECT
        || *name == header::FORWARDED
        || *name == X_REQUEST_ID
        || name.as_str().starts_with("x-forwarded-")
        || name.as_str() == "x-real-ip"
        // CGI makes HTTP_PROXY of it, which many programs take for the proxy to go by (CVE-2016-5385 and others).
        || name.as_str() == "proxy"
        // CGI-like servers (WSGI among them) read `x_forwarded_for` as `x-forwarded-for`; nginx drops these too.
        || name.as_str().contains('_')
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    *name == CONNECTION
        || *name == TE
        || *name == UPGRADE
        || *name == header::PROXY_AUTHENTICATE
        || *name == header::PROXY_AUTHORIZATION
        || matches!(name.as_str(), "keep-alive" | "proxy-connection" | "http2-settings")
}

/// Headers that a Connection header cannot take away: without them the worker would see another request than the
/// client sent, and who could strip `Cookie` could strip a login.
fn is_end_to_end(name: &HeaderName) -> bool {
    matches!(
        *name,
        HOST | header::COOKIE
            | header::SET_COOKIE
            | header::AUTHORIZATION
            | header::ORIGIN
            | header::TRANSFER_ENCODING
            | header::TRAILER
            | header::CACHE_CONTROL
            | header::RANGE
            | header::DATE
            | header::LOCATION
    ) || name.as_str().starts_with("content-")
        || name.as_str().starts_with("sec-")
        || name.as_str().starts_with("if-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|&(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    fn sent(pairs: &[(&'static str, &'static str)], upgrade: bool) -> HeaderMap {
        let mut headers = map(pairs);
        let client = Client::new("2001:db8::7".parse().unwrap(), false);
        to_worker(&mut headers, &client, RequestIds::new(1).value(1), upgrade);
        headers
    }

    const ADDED: [&str; 6] =
        ["forwarded", "host", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-request-id"];

    #[test]
    fn a_connection_does_not_keep_the_buffer_that_its_first_request_was_read_into() {
        let client = Client::new("192.0.2.7".parse().unwrap(), false);
        let read = bytes::Bytes::from_static(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        let host = HeaderValue::from_maybe_shared(read.slice(22..23)).unwrap();
        assert_eq!(client.forwarded(&host), "for=192.0.2.7;proto=http;host=\"a\"");
        let (kept, _) = client.first_forwarded.get().unwrap();
        assert_eq!(kept, host);
        assert!(!read.as_ptr_range().contains(&kept.as_bytes().as_ptr()));
    }

    #[test]
    fn hop_by_hop_headers_end_here_and_so_do_those_that_connection_lists() {
        let headers = sent(
            &[
                ("host", "a"),
                ("connection", "close, X-Mine , keep-alive"),
                ("x-mine", "1"),
                ("keep-alive", "timeout=5"),
                ("proxy-connection", "keep-alive"),
                ("proxy-authorization", "Basic x"),
                ("te", "gzip"),
                ("upgrade", "h2c"),
                ("http2-settings", "AAMAAABk"),
                ("expect", "100-continue"),
                ("x_forwarded_for", "6.6.6.6"),
            ],
            false,
        );
        assert_eq!(names(&headers), ADDED);
    }

    #[test]
    fn connection_cannot_take_away_what_makes_the_request() {
        let essential = [
            ("authorization", "Basic x"),
            ("content-length", "3"),
            ("content-type", "text/plain"),
            ("cookie", "a=1"),
            ("sec-websocket-key", "x"),
        ];
        let mut pairs = vec![
            ("host", "a"),
            ("connection", "cookie, Host, authorization"),
            ("connection", "content-length, content-type, sec-websocket-key, x-forwarded-for"),
        ];
        pairs.extend(essential);
        let mut expected: Vec<_> = essential.iter().map(|(name, _)| *name).chain(ADDED).collect();
        expected.sort_unstable();
        assert_eq!(names(&sent(&pairs, false)), expected);
    }

    #[test]
    fn the_worker_is_told_of_the_client_by_homing_alone() {
        let headers = sent(
            &[
                ("host", "app.example:8080"),
                ("x-forwarded-for", "6.6.6.6"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-prefix", "/evil"),
                ("forwarded", "for=6.6.6.6"),
                ("x-request-id", "mine"),
                ("x-real-ip", "6.6.6.6"),
                ("proxy", "http://6.6.6.6/"),
            ],
            false,
        );
        assert_eq!(names(&headers), ADDED);
        assert_eq!(headers["x-forwarded-for"], "2001:db8::7");
        assert_eq!(headers["x-forwarded-proto"], "http");
        assert_eq!(headers["x-forwarded-host"], "app.example:8080");
        assert_eq!(headers["forwarded"], "for=\"[2001:db8::7]\";proto=http;host=\"app.example:8080\"");
        assert_eq!(headers["x-request-id"].len(), 32);
    }

    #[test]
    fn an_upgrade_keeps_its_two_headers_and_its_extensions() {
        let headers = sent(
            &[
                ("host", "a"),
                ("connection", "keep-alive, Upgrade"),
                ("upgrade", "websocket"),
                ("sec-websocket-extensions", "permessage-deflate; client_max_window_bits"),
            ],
            true,
        );
        assert_eq!(headers["connection"], "upgrade");
        assert_eq!(headers["upgrade"], "websocket");
        assert_eq!(headers["sec-websocket-extensions"], "permessage-deflate; client_max_window_bits");
    }

    #[test]
    fn trailers_may_still_be_asked_for() {
        let headers = sent(&[("host", "a"), ("te", "trailers, gzip"), ("connection", "TE")], false);
        assert_eq!((&headers["te"], &headers["connection"]), (&"trailers".parse().unwrap(), &"te".parse().unwrap()));
    }

    #[test]
    fn trailers_say_nothing_that_a_head_must_say() {
        let mut trailers =
            map(&[("x-sum", "7"), ("x-forwarded-for", "6.6.6.6"), ("host", "b"), ("content-length", "1"), ("x_y", "")]);
        trailers_to_worker(&mut trailers);
        assert_eq!(names(&trailers), ["x-sum"]);
    }

    #[test]
    fn an_answer_loses_its_hop_by_hop_headers_only() {
        let mut headers = map(&[
            ("content-length", "7"),
            ("connection", "close, x-hop"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("set-cookie", "a=1"),
            ("x_odd", "kept: workers may name theirs as they like"),
        ]);
        to_client(&mut headers, false);
        assert_eq!(names(&headers), ["set-cookie", "x_odd"]);
        let mut sized = map(&[("content-length", "7")]);
        to_client(&mut sized, false);
        assert_eq!(names(&sized), ["content-length"]);
    }
}
