//! Whom a trusted proxy speaks for: read off the headers that it sends. From anybody else these end here.

use std::net::IpAddr;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

use super::check::is_host;
use super::headers::{
    Client, Hop, X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PREFIX, X_FORWARDED_PROTO, X_REQUEST_ID,
};
use crate::routing::is_trusted;

/// Proxies in a row that are believed; who has more of them is taken for the last of these.
const HOPS_MAX: usize = 32;
const PREFIX_BYTES_MAX: usize = 255;
const REQUEST_ID_BYTES_MAX: usize = 128;

/// The client of a request that a trusted proxy with this address sent. `is_secure`: the proxy came by TLS.
///
/// The chain is read from its end, where each proxy wrote whom it saw: the first that is not trusted is the client. What
/// stands before it anybody may have written, so it is dropped.
pub fn client(headers: &HeaderMap, peer: IpAddr, is_secure: bool, trusted: &[IpNet]) -> Client {
    let mut chain = chain(headers);
    let length = chain.len();
    let mut hops = vec![Hop { address: peer, proto: None }];
    let mut taken = 0;
    while hops.len() <= HOPS_MAX && hops.last().is_some_and(|hop| is_trusted(trusted, hop.address)) {
        let Some(Some(hop)) = chain.pop() else { break };
        hops.push(hop);
        taken += 1;
    }
    let told = hops.last().and_then(|hop| hop.proto);
    // A list as long as the chain says what each of them saw; else the nearest proxy speaks for all.
    let protos = list(headers, &X_FORWARDED_PROTO);
    let listed = if protos.len() == length && taken > 0 { protos.get(length - taken) } else { protos.last() };
    let is_secure = told.or_else(|| listed.and_then(|proto| by_tls(proto))).unwrap_or(is_secure);
    let last = |name: &HeaderName| list(headers, name).pop().map(str::to_owned);
    hops.reverse();
    let mut client = Client::through(&hops, is_secure);
    let host = last(&X_FORWARDED_HOST).filter(|host| is_host(host.as_bytes()));
    client.host = host.and_then(|host| HeaderValue::try_from(host).ok());
    client.prefix = last(&X_FORWARDED_PREFIX).and_then(|text| prefix(&text));
    client.id = headers.get(X_REQUEST_ID).filter(|id| is_id(id.as_bytes())).cloned();
    client
}

/// From the client to the nearest proxy; `None` for who is not named by address. `X-Forwarded-For` if there is one: it is
/// what proxies set that know of one only.
fn chain(headers: &HeaderMap) -> Vec<Option<Hop>> {
    if headers.contains_key(X_FORWARDED_FOR) {
        let hop = |text: &str| node(text).map(|address| Hop { address, proto: None });
        return list(headers, &X_FORWARDED_FOR).into_iter().map(hop).collect();
    }
    list(headers, &header::FORWARDED).into_iter().map(element).collect()
}

/// `for=192.0.2.60;proto=http;by=203.0.113.43` (RFC 7239 section 4).
fn element(text: &str) -> Option<Hop> {
    let mut hop: Option<IpAddr> = None;
    let mut proto = None;
    for pair in text.split(';') {
        let (name, value) = pair.split_once('=')?;
        let value = value.trim().trim_matches('"');
        match name.trim().to_ascii_lowercase().as_str() {
            "for" => hop = node(value),
            "proto" => proto = by_tls(value),
            _ => {}
        }
    }
    hop.map(|address| Hop { address, proto })
}

/// An address, in brackets or not, with a port or without.
fn node(text: &str) -> Option<IpAddr> {
    let text = text.trim().trim_matches('"');
    let address = if let Some(rest) = text.strip_prefix('[') {
        rest.split_once(']')?.0.parse().ok()?
    } else if let Some((address, port)) = text.split_once(':').filter(|(_, port)| !port.contains(':')) {
        port.parse::<u16>().ok()?;
        address.parse().ok()?
    } else {
        text.parse::<IpAddr>().ok()?
    };
    Some(address.to_canonical())
}

fn by_tls(proto: &str) -> Option<bool> {
    match proto.to_ascii_lowercase().as_str() {
        "https" | "wss" => Some(true),
        "http" | "ws" => Some(false),
        _ => None,
    }
}

/// The entries of a list that may come in several lines; one that is no text is an entry too, and means nothing.
fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Vec<&'a str> {
    headers.get_all(name).iter().flat_map(|value| value.to_str().unwrap_or("?").split(',')).map(str::trim).collect()
}

fn prefix(text: &str) -> Option<String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/%".contains(&byte);
    let is_path = text.starts_with('/') && !text.starts_with("//") && text.bytes().all(is_plain);
    let prefix = text.trim_end_matches('/');
    (is_path && !prefix.is_empty() && prefix.len() <= PREFIX_BYTES_MAX).then(|| prefix.to_owned())
}

fn is_id(id: &[u8]) -> bool {
    (1..=REQUEST_ID_BYTES_MAX).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PEER: &str = "10.0.0.1";

    fn told(lines: &[(&'static str, &str)]) -> Client {
        let value = |text: &str| HeaderValue::from_bytes(text.as_bytes()).unwrap();
        let headers = lines.iter().map(|(name, text)| (HeaderName::from_static(name), value(text))).collect();
        let trusted = ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        client(&headers, PEER.parse().unwrap(), false, &trusted)
    }

    #[test]
    fn the_first_from_the_end_who_is_not_trusted_is_the_client() {
        for (chain, client, passed_on) in [
            (None, PEER, PEER),
            (Some("192.0.2.7"), "192.0.2.7", "192.0.2.7, 10.0.0.1"),
            (Some("6.6.6.6, 192.0.2.7"), "192.0.2.7", "192.0.2.7, 10.0.0.1"),
            (Some("10.6.6.6, 192.0.2.7"), "192.0.2.7", "192.0.2.7, 10.0.0.1"),
            (Some("6.6.6.6,192.0.2.7 , 10.9.9.9"), "192.0.2.7", "192.0.2.7, 10.9.9.9, 10.0.0.1"),
            (Some("192.0.2.7, fd00::1, 10.9.9.9"), "192.0.2.7", "192.0.2.7, fd00::1, 10.9.9.9, 10.0.0.1"),
            (Some("10.2.2.2, 10.3.3.3"), "10.2.2.2", "10.2.2.2, 10.3.3.3, 10.0.0.1"),
            (Some("2001:db8::7"), "2001:db8::7", "2001:db8::7, 10.0.0.1"),
            (Some("\"[2001:db8::7]:4711\""), "2001:db8::7", "2001:db8::7, 10.0.0.1"),
            (Some("::ffff:192.0.2.7"), "192.0.2.7", "192.0.2.7, 10.0.0.1"),
            (Some("192.0.2.7:4711"), "192.0.2.7", "192.0.2.7, 10.0.0.1"),
            (Some("192.0.2.7, unknown"), PEER, PEER),
            (Some("192.0.2.7, , 10.9.9.9"), "10.9.9.9", "10.9.9.9, 10.0.0.1"),
            (Some("192.0.2.7:port"), PEER, PEER),
            (Some("192.0.2.7; DROP"), PEER, PEER),
            (Some(""), PEER, PEER),
            (Some("6.6.6.6, \u{fc}"), PEER, PEER),
        ] {
            let lines: Vec<_> = chain.iter().map(|chain| ("x-forwarded-for", *chain)).collect();
            let told = told(&lines);
            assert_eq!(told.address, client.parse::<IpAddr>().unwrap(), "{chain:?}");
            assert_eq!(told.forwarded_for, passed_on, "{chain:?}");
        }
        let two_lines = told(&[("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "192.0.2.7, 10.2.2.2")]);
        assert_eq!(two_lines.address.to_string(), "192.0.2.7");
        let endless = "10.0.0.2, ".repeat(100) + "10.0.0.3";
        assert_eq!(
            told(&[("x-forwarded-for", &endless)]).forwarded_for.to_str().unwrap().split(", ").count(),
            HOPS_MAX + 1
        );
    }

    #[test]
    fn forwarded_is_read_where_it_is_alone() {
        let forwarded =
            "for=6.6.6.6;proto=https, For=\"[2001:db8::7]:1\"; Proto=HTTPS;host=a, for=10.9.9.9;proto=http;by=_x";
        let alone = told(&[("forwarded", forwarded)]);
        assert_eq!((alone.address.to_string().as_str(), alone.is_secure), ("2001:db8::7", true));
        let both = told(&[("forwarded", forwarded), ("x-forwarded-for", "192.0.2.7")]);
        assert_eq!((both.address.to_string().as_str(), both.is_secure), ("192.0.2.7", false));
        for hidden in ["for=_hidden", "for=unknown", "proto=https", "nonsense", "for", ";"] {
            assert_eq!(told(&[("forwarded", hidden)]).address.to_string(), PEER, "{hidden}");
        }
    }

    #[test]
    fn the_scheme_is_the_one_that_the_client_used() {
        for (chain, protos, is_secure) in [
            ("192.0.2.7", "https", true),
            ("192.0.2.7, 10.9.9.9", "https", true),
            ("192.0.2.7, 10.9.9.9", "https, http", true),
            ("192.0.2.7, 10.9.9.9", "http, https", false),
            ("6.6.6.6, 192.0.2.7", "https, http", false),
            ("192.0.2.7", "wss", true),
            ("192.0.2.7", "gopher", false),
            ("192.0.2.7", "", false),
        ] {
            let told = told(&[("x-forwarded-for", chain), ("x-forwarded-proto", protos)]);
            assert_eq!(told.is_secure, is_secure, "{chain} {protos}");
        }
    }

    #[test]
    fn what_a_proxy_says_beside_is_kept_if_it_makes_sense() {
        let good =
            told(&[("x-forwarded-host", "a, b:80"), ("x-forwarded-prefix", "/outer/"), ("x-request-id", "abc-1")]);
        assert_eq!(
            (good.host.unwrap(), good.prefix.unwrap(), good.id.unwrap()),
            ("b:80".parse().unwrap(), "/outer".into(), "abc-1".parse().unwrap())
        );
        let long = "x".repeat(200);
        let bad =
            told(&[("x-forwarded-host", "a@b/c"), ("x-forwarded-prefix", "//evil.test/"), ("x-request-id", &long)]);
        assert!(bad.host.is_none() && bad.prefix.is_none() && bad.id.is_none());
    }

    proptest! {
        #[test]
        fn nobody_talks_his_way_past_the_hop_that_saw_him(forged in "[ -~]{0,60}", tail in "(, 10\\.1\\.2\\.3){0,3}") {
            let chain = format!("{forged}, 192.0.2.7{tail}");
            for name in ["x-forwarded-for", "forwarded"] {
                let chain = if name == "forwarded" { chain.replace(", 1", ", for=1") } else { chain.clone() };
                let told = told(&[(name, &chain)]);
                prop_assert_eq!(told.address.to_string(), "192.0.2.7", "{}", chain);
            }
        }
    }
}
